"""A store goes back to an H5AD that equals its source, or to no file at all.

What each kind of element looks like when it comes back is `test_roundtrip.py`'s.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
from oracle import assert_equal, stored
from test_convert import by_anndata, cells, convert

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "a.zarr"
    convert(cells(), path, sort_by=["cell_type", "donor"], gene_major=True)
    return path


def export(uri: Any, dest: Any, **options: Any) -> Path:
    return lz.export(uri, dest, progress=False, **options)


def read(path: Path) -> ad.AnnData:
    return stored(ad.read_h5ad(path))


@pytest.mark.parametrize("sort_by", [[], ["cell_type", "donor"]], ids=["as-is", "sorted"])
@pytest.mark.parametrize("dense_x", [False, True], ids=["sparse", "dense"])
def test_block_by_block_the_source_comes_back(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, dense_x: bool, sort_by: list[str]
) -> None:
    monkeypatch.setattr(import_module("lobster_zarr.h5ad"), "BLOCK_VALUES", 64)
    adata = cells(130, 40)
    if dense_x:
        adata.X = adata.X.toarray()
    convert(adata, tmp_path / "a.zarr", sort_by=sort_by)
    path = export(tmp_path / "a.zarr", tmp_path / "new" / "a.h5ad")
    assert path == tmp_path / "new" / "a.h5ad"
    assert_equal(read(path), stored(adata))
    assert [p.name for p in path.parent.iterdir()] == ["a.h5ad"]
    assert not list(scratch.iterdir())
    lz.verify(tmp_path / "a.zarr", against=path, progress=False)


def test_from_s3_and_from_an_open_dataset(s3: S3Server, tmp_path: Path) -> None:
    uri = f"{s3.bucket('export')}/a.zarr"
    convert(cells(), uri, sort_by="donor", storage_options=s3.storage_options)
    export(uri, tmp_path / "a.h5ad", storage_options=s3.storage_options)
    assert_equal(read(tmp_path / "a.h5ad"), stored(cells()))
    export(lz.open(uri, s3.storage_options), f"file://{tmp_path}/b.h5ad")
    assert_equal(read(tmp_path / "b.h5ad"), stored(cells()))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_anndata_wrote_is_exported_too(tmp_path: Path, zarr_format: int) -> None:
    adata = cells()
    adata.X = adata.X.tocsc()
    by_anndata(adata, tmp_path / "a.zarr", zarr_format)
    export(tmp_path / "a.zarr", tmp_path / "a.h5ad")
    assert_equal(read(tmp_path / "a.h5ad"), stored(adata))


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_compression(store: Path, tmp_path: Path, compression: Any) -> None:
    export(store, tmp_path / "a.h5ad", compression=compression)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["X/data"].compression == compression
        assert file["layers/scaled"].compression == compression
    assert_equal(read(tmp_path / "a.h5ad"), stored(cells()))


def test_a_file_is_kept_unless_overwritten(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("mine")
    with pytest.raises(errors.ConflictError, match="overwrite"):
        export(store, tmp_path / "a.h5ad")
    assert (tmp_path / "a.h5ad").read_text() == "mine"
    export(store, tmp_path / "a.h5ad", overwrite=True)
    assert_equal(read(tmp_path / "a.h5ad"), stored(cells()))


def test_a_failing_export_leaves_what_was_there(tmp_path: Path, scratch: Path) -> None:
    convert(cells(), tmp_path / "a.zarr", sort_by="donor")
    chunk = tmp_path / "a.zarr/obsp/dense/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    (tmp_path / "there.h5ad").write_text("mine")
    for name in ("there.h5ad", "new.h5ad"):
        with pytest.raises(errors.ChunkDecodeError, match="obsp/dense"):
            export(tmp_path / "a.zarr", tmp_path / name, overwrite=True)
    assert (tmp_path / "there.h5ad").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["there.h5ad"]
    assert not list(scratch.iterdir())


def test_what_cannot_be_exported_to(store: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedError, match="local"):
        export(store, "s3://lab/a.h5ad")
    with pytest.raises(errors.NotFoundError):
        export(tmp_path / "absent.zarr", tmp_path / "a.h5ad")
    (tmp_path / "file").touch()
    with pytest.raises(errors.StorageError, match=r"a\.h5ad"):
        export(store, tmp_path / "file" / "a.h5ad")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


FULL = """
import resource, sys
import lobster_zarr as lz
from lobster_zarr.errors import StorageError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    lz.export(*sys.argv[1:], progress=False)
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("sort_by", [[], ["donor"]], ids=["as-is", "sorted"])
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, sort_by: list[str]) -> None:
    adata = cells(400, 100, seed=2)
    adata.X.data += np.random.default_rng(0).random(adata.X.nnz).astype("float32")
    convert(adata, tmp_path / "a.zarr", sort_by=sort_by)
    command = [sys.executable, "-c", FULL, str(tmp_path / "a.zarr"), str(tmp_path / "a.h5ad")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot write" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_an_exported_file_keeps_anndatas_encodings(store: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "a.h5ad")
    cells().write_h5ad(tmp_path / "b.h5ad", convert_strings_to_categoricals=False)

    def encodings(path: Path) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}

        def note(name: str, node: h5py.Group | h5py.Dataset) -> None:
            found[name] = (str(node.attrs.get("encoding-type")), str(node.attrs.get("encoding-version")))

        with h5py.File(path) as file:
            file.visititems(note)
            return found | {"": (file.attrs["encoding-type"], file.attrs["encoding-version"])}

    ours, theirs = encodings(tmp_path / "a.h5ad"), encodings(tmp_path / "b.h5ad")
    # The names go without the mask that says that none is missing, and no group is there for nothing.
    ours = {name: encoding for name, encoding in ours.items() if not name.endswith("_index")}
    assert len(ours) > 40
    assert {name: theirs.get(name) for name in ours} == ours
