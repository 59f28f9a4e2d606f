"""Real files from public repositories come back exactly; broken ones are refused and leave nothing.

The files are not part of the project: they are looked for in ``shared/data``
beside it, and the module's tests are skipped where there are none.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata
import pandas as pd
import pytest
from oracle import assert_equal, assert_mudata_equal, sliced, stored, stored_mudata
from zarr.storage import ZipStore

import lobster_zarr as lz
from lobster_zarr.errors import LobsterZarrError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What anndata says of old files, and what pandas says of anndata.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore:.*without encoding metadata:Warning"),
    pytest.mark.filterwarnings("ignore:.*very old version of AnnData:Warning"),
    pytest.mark.filterwarnings("ignore:Moving element from:FutureWarning"),
]


def _found() -> list[Path]:
    folders = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    folder = next((f for f in folders if f.is_dir()), None)
    return [] if folder is None else sorted(p for p in folder.rglob("*") if p.is_file())


def _cases(wanted: list[Path]) -> list[Any]:
    if not wanted:
        return [pytest.param(None, marks=pytest.mark.skip(reason="no shared/data beside the project"))]
    return [pytest.param(p, id=p.name) for p in wanted]


FILES = _found()
BROKEN = [p for p in FILES if p.name.startswith("FAIL_")]
H5AD = [p for p in FILES if p.suffix == ".h5ad" and p not in BROKEN]
H5MU = [p for p in FILES if p.suffix == ".h5mu" and p not in BROKEN]
ZIPPED = [p for p in FILES if p.name.endswith(".zarr.zip")]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _has_awkward(path: Path) -> bool:
    with h5py.File(path) as file:
        found = file.visititems(lambda _, node: True if node.attrs.get("encoding-type") == "awkward-array" else None)
    return bool(found)


@pytest.fixture(scope="module")
def expectations() -> dict[Path, ad.AnnData]:
    """Keep the last source and what anndata's own store gives back for it."""
    return {}


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if _has_awkward(path):
        pytest.importorskip("awkward")
    return path


@pytest.fixture
def expected(source: Path, expectations: dict[Path, ad.AnnData]) -> ad.AnnData:
    if source not in expectations:
        expectations.clear()
        with _quiet():
            expectations[source] = stored(ad.read_h5ad(source))
    return expectations[source]


def _first_categorical(obs: pd.DataFrame) -> str | None:
    return next((c for c in obs if isinstance(obs[c].dtype, pd.CategoricalDtype)), None)


@pytest.mark.parametrize("source", _cases(H5AD), indirect=True)
def test_a_real_file_comes_back(source: Path, expected: ad.AnnData, tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    lz.convert(source, dest, progress=False)
    lz.verify(dest, against=source)
    assert_equal(lz.open(dest).to_memory(), expected, sparse_layout="any")
    with _quiet():
        assert_equal(ad.read_zarr(dest), expected, sparse_layout="any")


@pytest.mark.parametrize("source", _cases(H5AD), indirect=True)
def test_a_real_file_sorted_and_exported_comes_back(source: Path, expected: ad.AnnData, tmp_path: Path) -> None:
    column = _first_categorical(expected.obs)
    if column is None:
        pytest.skip("no categorical column in obs")
    dest, exported = tmp_path / "a.zarr", tmp_path / "a.h5ad"
    lz.convert(source, dest, sort_by=[column], progress=False)
    assert_equal(lz.open(dest).to_memory(), expected, sparse_layout="any")
    lz.verify(dest, against=source)
    lz.export(dest, exported)
    with _quiet():
        assert_equal(stored(ad.read_h5ad(exported)), expected, sparse_layout="any")


@pytest.mark.parametrize("source", _cases(H5AD), indirect=True)
def test_a_slice_of_a_real_file(source: Path, expected: ad.AnnData, tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    lz.convert(source, dest, gene_major=True, progress=False)
    rows, genes = slice(1, expected.n_obs, 3), list(range(0, expected.n_vars, 7))
    wanted = sliced(expected, rows, genes)
    assert_equal(lz.open(dest).query(rows, var=genes).to_memory(), wanted, sparse_layout="any")


@pytest.mark.parametrize("source", _cases(H5MU), indirect=True)
def test_a_real_multimodal_file_comes_back(source: Path, tmp_path: Path) -> None:
    with _quiet():
        expected = stored_mudata(mudata.read_h5mu(source))
    own = [f"{name}:{column}" for name, part in expected.mod.items() for column in part.obs]
    for number, sort_by in enumerate([[], [*expected.obs.columns, *own][:1]]):
        dest, exported = tmp_path / f"{number}.zarr", tmp_path / f"{number}.h5mu"
        lz.convert(source, dest, sort_by=sort_by, progress=False)
        lz.verify(dest, against=source, progress=False)
        lz.export(dest, exported, progress=False)
        with _quiet():
            assert_mudata_equal(stored_mudata(mudata.read_h5mu(exported)), expected)
        for name, part in expected.mod.items():
            assert_equal(lz.open(dest / "mod" / name).to_memory(), part)
    with _quiet():
        assert_mudata_equal(mudata.read_zarr(tmp_path / "0.zarr"), expected)


@pytest.mark.parametrize("path", _cases(ZIPPED))
def test_a_zipped_store_comes_back(path: Path, tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    lz.convert(path, dest, progress=False)
    lz.verify(dest, against=path)
    with _quiet(), ZipStore(path, mode="r") as store:
        expected = stored(ad.read_zarr(store))
    assert_equal(lz.open(dest).to_memory(), expected, sparse_layout="any")


@pytest.mark.parametrize("path", _cases(BROKEN))
def test_a_broken_file_is_refused_and_nothing_is_written(path: Path, tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    with pytest.raises(LobsterZarrError):
        lz.convert(path, dest, progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
