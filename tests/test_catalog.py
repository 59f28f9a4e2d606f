"""What lies below a prefix or folder: found by a listing, described by at most one request each."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from mudatas import citeseq
from scipy import sparse
from test_convert import by_anndata, cells, convert

import lobster_zarr as lz
from lobster_zarr import cli, errors
from lobster_zarr.holdings import holdings
from lobster_zarr.layout import MARKER
from lobster_zarr.listing import objects
from lobster_zarr.location import Access
from lobster_zarr.place import place
from tests.gates import gate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column; mudata's notes on names are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
BUCKET = "catalog"
EXPECTED = {
    "broken.zarr": ("unknown", None, None),
    "deep/down/no-suffix": ("AnnData", 50, 20),
    "empty.h5ad": ("unknown", None, None),
    "half.zarr": ("unfinished", None, None),
    "image.zarr": ("unknown", None, None),
    "indexed.h5ad": ("AnnData", 4_000, 100),
    "large.h5ad": ("AnnData", None, None),
    "left.zarr": ("unfinished", None, None),
    "mu.zarr": ("MuData", *citeseq(1).shape),
    "proteins.h5mu": ("MuData", *citeseq(1).shape),
    "runs/a.zarr": ("AnnData", 60, 20),
    "small.h5ad": ("AnnData", 40, 20),
    "stale.h5ad": ("AnnData", None, None),
    "text.h5ad": ("unknown", None, None),
    "theirs.zarr": ("AnnData", 30, 20),
    "unconsolidated.zarr": ("AnnData", None, None),
    "v2.zarr": ("AnnData", 30, 20),
}


def small(n_obs: int) -> ad.AnnData:
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(n_obs)]
    return ad.AnnData(
        sparse.random(n_obs, 20, 0.5, "csr", "float32", rng), obs=pd.DataFrame({"n": range(n_obs)}, index=names)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, as they lie on a disk."""
    path = tmp_path_factory.mktemp("catalog")
    convert(cells(60), path / "runs" / "a.zarr", sort_by=["cell_type", "donor"])
    convert(small(50), path / "deep" / "down" / "no-suffix")
    convert(citeseq(1), path / "mu.zarr")
    citeseq(1).write_h5mu(path / "proteins.h5mu")
    by_anndata(small(30), path / "theirs.zarr")
    by_anndata(small(30), path / "v2.zarr", zarr_format=2)
    by_anndata(small(30), path / "unconsolidated.zarr")
    root = path / "unconsolidated.zarr" / "zarr.json"
    told = json.loads(root.read_text())
    del told["consolidated_metadata"]
    root.write_text(json.dumps(told))
    shutil.copytree(path / "deep" / "down" / "no-suffix", path / "half.zarr")
    (path / "half.zarr" / "zarr.json").rename(path / "half.zarr" / MARKER)
    (path / "half.zarr" / MARKER).write_text("{}")
    shutil.copytree(path / "deep" / "down" / "no-suffix", path / "left.zarr")
    (path / "left.zarr" / "zarr.json").unlink()
    (path / "broken.zarr").mkdir()
    (path / "broken.zarr" / "zarr.json").write_text("{")
    zarr.create_array(str(path / "image.zarr"), shape=(4, 4), dtype="f4")
    small(40).write_h5ad(path / "small.h5ad")
    rng = np.random.default_rng(0)
    large = ad.AnnData(sparse.random(4_000, 100, 0.5, "csr", "float32", rng))
    large.write_h5ad(path / "large.h5ad")
    for name in ("indexed", "stale"):
        shutil.copy(path / "large.h5ad", path / f"{name}.h5ad")
    (path / "empty.h5ad").touch()
    (path / "text.h5ad").write_text("no HDF5")
    (path / "notes.txt").write_text("passed over")
    return path


@pytest.fixture(scope="module")
def bucket(s3: S3Server, folder: Path) -> str:
    uri = f"{s3.bucket(BUCKET)}/lab"
    client = s3.client()

    def put(path: Path) -> None:
        client.put_object(Bucket=BUCKET, Key=f"lab/{path.relative_to(folder).as_posix()}", Body=path.read_bytes())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, [p for p in folder.rglob("*") if p.is_file()]))
    for name in ("indexed", "stale"):
        lz.index(f"{uri}/{name}.h5ad", s3.storage_options, progress=False)
    client.upload_file(str(folder / "small.h5ad"), BUCKET, "lab/stale.h5ad")  # another file by now
    client.put_object(Bucket=BUCKET, Key="lab/folder/", Body=b"")
    return uri


def told(found: lz.Catalog) -> dict[str, tuple[str, int | None, int | None]]:
    return {e.uri.removeprefix(f"{found.uri}/"): (e.kind, e.n_obs, e.n_vars) for e in found}


def test_everything_below_a_prefix_is_found_in_one_request_each(s3: S3Server, bucket: str, folder: Path) -> None:
    n_objects = sum(p.is_file() for p in folder.rglob("*")) + 3
    with gate(s3.endpoint) as watched:
        found = lz.catalog(bucket, s3.storage_options | {"endpoint_url": watched.endpoint})
        listings = [a for a in watched.asked if "list-type=2" in a.path]
        reads = Counter(a.path for a in watched.asked if "list-type=2" not in a.path)
    assert told(found) == EXPECTED
    assert len(listings) == -(-n_objects // 1000)
    assert max(reads.values()) == 1
    assert len(reads) == len(EXPECTED) - 2  # of what is empty, and of what has no root, there is nothing to read


def test_entries_say_what_is_known(s3: S3Server, bucket: str, folder: Path) -> None:
    found = {e.uri.rpartition("/lab/")[2]: e for e in lz.catalog(bucket, s3.storage_options)}
    store = found["runs/a.zarr"]
    files = [p for p in (folder / "runs" / "a.zarr").rglob("*") if p.is_file()]
    assert (store.n_bytes, store.n_objects) == (sum(p.stat().st_size for p in files), len(files))
    assert (store.form, store.sort_by) == ("zarr", ("cell_type", "donor"))
    assert store.writer.startswith("lobster")
    for name in ("mu.zarr", "proteins.h5mu"):
        assert found[name].modalities == {k: m.shape for k, m in citeseq(1).mod.items()}
    assert "is an unfinished conversion" in found["half.zarr"].problem
    assert "deletion was broken off" in found["left.zarr"].problem
    assert "not valid JSON" in found["broken.zarr"].problem
    assert "single Zarr array" in found["image.zarr"].problem
    assert "empty" in found["empty.h5ad"].problem
    assert "HDF5" in found["text.h5ad"].problem
    assert f"lobster-zarr index {bucket}/large.h5ad" in found["large.h5ad"].hint
    assert "another version" in found["stale.h5ad"].hint
    assert "consolidated" in found["unconsolidated.zarr"].hint
    readable = [e for e in found.values() if not e.problem]
    for entry in readable:
        if entry.n_obs is not None:
            assert lz.open(entry.uri, s3.storage_options).shape == (entry.n_obs, entry.n_vars)


def test_a_local_folder(folder: Path) -> None:
    local = EXPECTED | dict.fromkeys(["large.h5ad", "stale.h5ad"], EXPECTED["indexed.h5ad"])
    found = lz.catalog(folder)
    assert told(found) == local  # files are opened: that costs no request
    assert told(lz.catalog(folder / "runs")) == {"a.zarr": ("AnnData", 60, 20)}
    itself = lz.catalog(folder / "runs" / "a.zarr")
    assert [(e.uri, e.n_obs) for e in itself] == [(str(folder / "runs" / "a.zarr"), 60)]


def test_a_catalog_is_shown(s3: S3Server, bucket: str) -> None:
    found = lz.catalog(bucket, s3.storage_options)
    text = str(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "10 stores, 7 files" in lines[0]
    assert "runs/a.zarr" in text
    assert "60 × 20" in text
    assert "unknown" in text
    assert "runs/a.zarr" in found._repr_html_()
    frame = found.to_pandas()
    assert len(frame) == len(found) == len(EXPECTED)
    assert frame.set_index("uri").loc[f"{bucket}/runs/a.zarr", "n_obs"] == 60
    assert str(frame["n_obs"].dtype) == "Int64"
    assert json.loads(json.dumps(found.to_dict()))["n_bytes"] == found.n_bytes == sum(e.n_bytes for e in found)


def test_what_may_not_be_read_is_a_row_and_what_may_not_be_listed_an_error(s3: S3Server, bucket: str) -> None:
    lister = s3.storage_options | s3.user("catalog-lister", "s3:ListBucket")
    stranger = s3.storage_options | s3.user("catalog-stranger", "s3:GetObject")
    with s3.enforced_access():
        found = lz.catalog(f"{bucket}/runs", lister)
        assert [(e.kind, e.n_bytes > 0) for e in found] == [("unknown", True)]
        assert "s3:GetObject" in found[0].problem
        with pytest.raises(errors.AccessDeniedError, match="s3:ListBucket"):
            lz.catalog(bucket, stranger)


def test_where_there_is_nothing(s3: S3Server, tmp_path: Path) -> None:
    assert list(lz.catalog(s3.bucket("catalog-empty"), s3.storage_options)) == []
    for uri in ("s3://catalog-empty/absent", tmp_path / "absent"):
        with pytest.raises(errors.NotFoundError, match="absent"):
            lz.catalog(uri, s3.storage_options)
    with pytest.raises(errors.UnsupportedError, match="memory"):
        lz.catalog("memory://x")


def test_archived_files_are_not_asked_for(s3: S3Server) -> None:
    uri = s3.bucket("catalog-archive")
    s3.client().put_object(Bucket="catalog-archive", Key="cold.h5ad", Body=b"x" * 100, StorageClass="DEEP_ARCHIVE")
    s3.client().put_object(Bucket="catalog-archive", Key="odd//name.h5ad", Body=b"x")
    cold, odd = lz.catalog(uri, s3.storage_options)
    assert "restore-object" in cold.problem
    assert "may leave its store" in odd.problem


def test_a_store_of_many_chunks_is_a_few_sums(tmp_path: Path) -> None:
    (tmp_path / "a.zarr" / "X" / "c").mkdir(parents=True)
    for i in range(50):
        (tmp_path / "a.zarr" / "X" / "c" / str(i)).write_bytes(b"x" * i)
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "a.zarr" / "inner.h5ad").write_text("of the store")
    [found] = holdings(objects(place(tmp_path), Access.of(None)))
    assert (found.path, found.n_objects, found.n_bytes) == ("a.zarr", 52, sum(range(50)) + 2 + 12)


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", "ls", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert json.loads(run(folder / "runs", "--json"))["entries"][0]["n_obs"] == 60
    assert "60 × 20" in run(folder / "runs")
