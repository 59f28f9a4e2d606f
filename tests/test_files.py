"""Files that are opened in place: what comes is what anndata and mudata read, however HDF5 lets it lie.

The oracle is always what `anndata.read_h5ad` or `mudata.read_h5mu` reads of the
same file. One difference is known: numbers come in the byte order of this machine.
"""

from __future__ import annotations

import copy
import pickle
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5old
import h5py
import mudata
import mudatas
import numpy as np
import oracle
import pytest
import strategies
from h5files import FORMS, IN_TURN, N_OBS, N_VARS, Form, Storage, changes, forms, sample, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import errors
from tests.thrift import examples

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

# What anndata and mudata say of old, odd and awkward files.
pytestmark = pytest.mark.filterwarnings("ignore")
few = settings(max_examples=examples(5), deadline=None, suppress_health_check=list(HealthCheck))

SWAPPED = {"numbers big-endian", "edit enumerations"}
"""Forms with numbers in the other byte order."""
REFUSED = {"four-byte addresses"}
"""Forms that may be refused, by an UnsupportedError."""


@dataclass
class Shelf:
    """Files by the names of their forms, each written once, and what anndata reads of them."""

    folder: Path
    _read: dict[str, ad.AnnData] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        path = self.folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.h5ad"
        if not path.exists():
            h5old.write_old(path, name) if name in h5old.OLD else write(sample(), path, FORMS[name])
        return path

    def read(self, name: str) -> ad.AnnData:
        if name not in self._read:
            read = ad.read_h5ad(self.path(name))
            if name not in h5old.OLD and name != "plain" and not changes(FORMS[name]):
                oracle.assert_equal(read, self.read("plain"))  # the form is sound
            self._read[name] = oracle.stored(read) if name in SWAPPED else read
        return self._read[name]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def _same(actual: Any, name: str, expected: Any) -> None:
    swapped = name in SWAPPED and isinstance(actual, ad.AnnData)
    oracle.assert_equal(oracle.stored(actual) if swapped else actual, expected)


def _comparable(actual: ad.AnnData, name: str, expected: ad.AnnData) -> tuple[Any, str, Any]:
    """Both, or where there is no row or no gene the matrices: raw, and types of text, are then lost by anndata too."""
    return (actual, name, expected) if 0 not in expected.shape else (actual.X, name, expected.X)


def _rows(adata: ad.AnnData, kind: str) -> Any:
    """What a query names by a predicate, as pandas finds it."""
    match kind:
        case "category":
            return (adata.obs["cell_type"] == "T cell").to_numpy()
        case "number":
            return (adata.obs["n_counts"] > 500).to_numpy()
    return ((adata.obs["cell_type"] == "NK") & (adata.obs["n_counts"] > 100)).to_numpy()


QUERIES: list[tuple[Any, Any, Any, Any]] = [
    # what is asked of obs and var; what that is in memory
    ("cell_type == 'T cell'", ["gene-7", "gene-1"], "category", ["gene-7", "gene-1"]),
    ("n_counts > 500", None, "number", slice(None)),
    ("cell_type = 'NK' AND n_counts > 100", "hv", "both", "hv"),
    ([3, 3, -1, 20], slice(2, 9, 3), [3, 3, -1, 20], slice(2, 9, 3)),
    (np.arange(N_OBS) % 4 == 1, [0], np.arange(N_OBS) % 4 == 1, [0]),
    (None, ["gene-4"], slice(None), ["gene-4"]),
    (slice(30, None), np.arange(N_VARS) > 6, slice(30, None), np.arange(N_VARS) > 6),
    (["cell-5", "cell-2"], None, ["cell-5", "cell-2"], slice(None)),
    (np.zeros(N_OBS, bool), None, np.zeros(N_OBS, bool), slice(None)),
]


def _check_query(data: Any, adata: ad.AnnData, number: int, name: str = "") -> None:
    """Ask one of QUERIES: what is told before is what is fetched, and what comes is what slicing gives."""
    obs, var, rows, genes = QUERIES[number % len(QUERIES)]
    rows = _rows(adata, rows) if isinstance(rows, str) else rows
    genes = adata.var["hv"].to_numpy(bool) if isinstance(genes, str) else genes
    selection = data.query(obs, var)
    wanted = oracle.sliced(adata, rows, genes)
    assert selection.count() == wanted.n_obs
    plan = selection.explain()
    result = selection.to_memory()
    fetched = selection.stats.n_requests - plan.spent_requests, selection.stats.n_bytes - plan.spent_bytes
    if plan.exact:
        assert fetched == (plan.n_requests, plan.n_bytes)
    assert (plan.n_obs, plan.n_vars) == wanted.shape == result.shape
    _same(*_comparable(result, name, wanted))


# ---------------------------------------------------------------- every form


@pytest.mark.parametrize(("number", "name"), list(enumerate((*FORMS, *h5old.OLD)))[IN_TURN])
def test_a_file_is_read_as_anndata_reads_it(shelf: Shelf, number: int, name: str) -> None:
    expected = shelf.read(name)
    try:
        data = lz.open(shelf.path(name))
    except errors.UnsupportedError:
        assert name in REFUSED
        return
    assert data.shape == expected.shape
    assert str(shelf.path(name)) in str(data.uri)
    _same(data.to_memory(), name, expected)
    _check_query(data, expected, number, name)


@pytest.mark.parametrize("query", range(len(QUERIES)))
@pytest.mark.parametrize("name", ["chunks compact", "0.7"])
def test_every_query_of_a_file(shelf: Shelf, query: int, name: str) -> None:
    _check_query(lz.open(shelf.path(name)), shelf.read(name), query)


@few
@given(adata=strategies.anndatas(h5ad=True), form=forms(), drawn=st.data())
def test_drawn_objects_in_drawn_forms(
    adata: ad.AnnData, form: Form, drawn: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(adata, tmp_path_factory.mktemp("drawn") / "a.h5ad", form)
    expected = oracle.stored(ad.read_h5ad(path))
    rows, genes = (drawn.draw(strategies.selections(names)) for names in (adata.obs_names, adata.var_names))
    data = lz.open(path)
    oracle.assert_equal(oracle.stored(data.to_memory()), expected)
    selection = lz.open(path).query(rows, genes)
    plan = selection.explain()
    _same(*_comparable(oracle.stored(selection.to_memory()), "", oracle.stored(oracle.sliced(expected, rows, genes))))
    if plan.exact:
        assert selection.stats.n_requests - plan.spent_requests == plan.n_requests
        assert selection.stats.n_bytes - plan.spent_bytes == plan.n_bytes


# ---------------------------------------------------------------- everything that a store can


WORKED = ["ordered, latest", "0.7", "0.6"]


@pytest.fixture(params=WORKED)
def worked(request: pytest.FixtureRequest, shelf: Shelf) -> tuple[Path, ad.AnnData]:
    return shelf.path(request.param), shelf.read(request.param)


def test_a_file_answers_sql(worked: tuple[Path, ad.AnnData]) -> None:
    path, adata = worked
    found = lz.open(path).sql("SELECT cell_type, count(*) AS n FROM obs GROUP BY cell_type ORDER BY n, cell_type")
    counted = adata.obs["cell_type"].value_counts()
    named = {k: n for k, n in found.iter_rows() if k is not None}
    assert named == {k: n for k, n in counted.items() if n}
    rows = lz.open(path).query("flag").to_pandas()
    assert list(rows.index) == list(adata.obs_names[adata.obs["flag"].to_numpy(bool)])


def test_a_file_is_read_lazily(worked: tuple[Path, ad.AnnData]) -> None:
    path, adata = worked
    lazy = lz.open(path).query("cell_type == 'B cell'").to_lazy()
    wanted = oracle.sliced(adata, (adata.obs["cell_type"] == "B cell").to_numpy(), slice(None))
    read = lazy.to_memory()
    oracle.assert_equal(oracle.stored(read).X, oracle.stored(wanted).X)
    assert list(read.obs_names) == list(wanted.obs_names)
    assert lz.open(path).to_lazy().layers["dense"].sum().compute() == pytest.approx(adata.layers["dense"].sum())


def test_a_file_comes_in_batches(worked: tuple[Path, ad.AnnData]) -> None:
    path, adata = worked
    batches = list(lz.open(path).query(None, ["gene-2", "gene-9"]).batches(10))
    assert [b.n_obs for b in batches] == [10, 10, 10, 7]
    for number, batch in enumerate(batches):
        oracle.assert_equal(batch.X, oracle.sliced(adata, slice(number * 10, number * 10 + 10), [2, 9]).X)


def test_a_file_is_exported_and_converted(worked: tuple[Path, ad.AnnData], tmp_path: Path) -> None:
    path, adata = worked
    lz.export(path, tmp_path / "out.h5ad", progress=False)
    oracle.assert_equal(oracle.stored(ad.read_h5ad(tmp_path / "out.h5ad")), oracle.stored(adata))
    lz.convert(path, tmp_path / "out.zarr", sort_by=["cell_type"], progress=False)
    lz.verify(tmp_path / "out.zarr", against=path, progress=False)
    stored = oracle.stored(lz.open(tmp_path / "out.zarr").to_memory())
    oracle.assert_equal(stored, oracle.stored(adata), sparse_layout="any")  # sorted by cells, a CSC matrix is a CSR


def test_an_open_file_travels_and_is_small(shelf: Shelf) -> None:
    data = lz.open(shelf.path("latest"))
    body = pickle.dumps(data)
    assert len(body) < 20_000
    for twin in (pickle.loads(body), copy.deepcopy(data)):  # noqa: S301 - its own
        _check_query(twin, shelf.read("latest"), 0)


def test_a_dataset_without_an_ending_is_known_by_its_signature(shelf: Shelf, tmp_path: Path) -> None:
    for number, name in enumerate(["plain", "user block, latest"]):
        path = tmp_path / f"cells{number}"
        shutil.copy(shelf.path(name), path)
        oracle.assert_equal(lz.open(path).to_memory(), shelf.read(name))


@pytest.mark.parametrize("kind", ["Blosc", "Blosc2", "Bitshuffle", "LZ4", "Zstd"])
def test_filters_of_plugins(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    plugins, path = pytest.importorskip("hdf5plugin"), tmp_path / "a.h5ad"
    shutil.copy(shelf.path("plain"), path)
    with h5py.File(path, "r+") as file:
        values = file["layers/dense"][()]
        del file["layers/dense"]
        made = file["layers"].create_dataset("dense", data=values, chunks=(5, 4), **getattr(plugins, kind)())
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    oracle.assert_equal(lz.open(path).to_memory(), shelf.read("plain"))


# ---------------------------------------------------------------- what it costs


@pytest.fixture(scope="module", params=["earliest", "latest"])
def atlas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ad.AnnData]:
    """Some megabytes, as scanpy's users write them."""
    rng = np.random.default_rng(1)
    made = ad.AnnData(
        sparse.random(6_000, 900, 0.1, "csr", "float32", rng),
        obs={"cell_type": np.repeat(["B cell", "NK", "T cell"], 2_000), "n_counts": rng.integers(0, 1000, 6_000)},
        obsm={"X_pca": rng.random((6_000, 20)).astype("float32")},
        uns={f"group {i}": {"k": i, "v": np.arange(i)} for i in range(40)},
    )
    made.obs["cell_type"] = made.obs["cell_type"].astype("category")
    form = Form((Storage("guessed", "gzip"),), libver=request.param)
    path = write(made, tmp_path_factory.mktemp("atlas") / "a.h5ad", form)
    return path, ad.read_h5ad(path)


def test_opening_reads_metadata_alone_and_in_few_requests(atlas: tuple[Path, ad.AnnData]) -> None:
    path, _ = atlas
    data = lz.open(path)
    assert data.stats.n_requests <= 8
    assert data.stats.n_bytes < path.stat().st_size / 2


@pytest.mark.parametrize(
    ("obs", "var", "share"),
    [("cell_type == 'NK'", None, 0.45), ([17, 18, 19], None, 0.1), ("n_counts < 0", None, 0.02)],
)
def test_a_query_reads_what_it_needs(atlas: tuple[Path, ad.AnnData], obs: Any, var: Any, share: float) -> None:
    path, adata = atlas
    data = lz.open(path)
    opened = data.stats.n_bytes
    selection = data.query(obs, var, obsm=[], uns=False)
    rows = {"cell_type == 'NK'": slice(2_000, 4_000), "n_counts < 0": []}.get(obs, obs) if isinstance(obs, str) else obs
    oracle.assert_equal(selection.to_memory().X, oracle.sliced(adata, rows, slice(None)).X)
    of_x = sum(n for p, (_, n) in data.stats.by_array.items() if p.startswith("X/"))
    assert of_x <= share * path.stat().st_size
    assert data.stats.n_bytes - opened < (share + 0.25) * path.stat().st_size


# ---------------------------------------------------------------- storages other than the disk


def _uploaded(s3: S3Server, path: Path, bucket: str) -> str:
    s3.bucket(bucket)
    s3.client().upload_file(str(path), bucket, path.name)
    return f"s3://{bucket}/{path.name}"


@pytest.mark.parametrize("name", ["plain", "latest", "user block, latest", "edit long texts", "0.7", "0.5"])
def test_a_file_on_s3(shelf: Shelf, s3: S3Server, name: str) -> None:
    uri = _uploaded(s3, shelf.path(name), "files")
    data = lz.open(uri, storage_options=s3.storage_options)
    assert data.stats.n_requests <= 20
    oracle.assert_equal(data.to_memory(), shelf.read(name))
    _check_query(lz.open(uri, storage_options=s3.storage_options), shelf.read(name), 0)


def test_a_file_that_was_replaced_is_an_error_and_never_a_mixture(s3: S3Server, tmp_path: Path) -> None:
    rng, where = np.random.default_rng(4), tmp_path / "a.h5ad"
    first, second = (ad.AnnData(rng.random((2_000, 200))) for _ in range(2))
    write(first, where, FORMS["plain"])
    uri = _uploaded(s3, where, "replaced")
    on_s3, local = lz.open(uri, storage_options=s3.storage_options), lz.open(where)
    write(second, where, FORMS["plain"])
    _uploaded(s3, where, "replaced")
    for data in (on_s3, local):
        with pytest.raises(errors.ConflictError, match=re.escape("a.h5ad")):
            data.to_memory()
    oracle.assert_equal(lz.open(where).to_memory().X, second.X)


@pytest.mark.parametrize("name", ["a.h5ad", "folder/a.h5mu"])
def test_no_file_there(name: str, s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("empty")
    for uri, options in ((tmp_path / name, None), (f"s3://empty/{name}", s3.storage_options)):
        with pytest.raises(errors.NotFoundError, match=re.escape(name)):
            lz.open(uri, storage_options=options)


# ---------------------------------------------------------------- MuData


MU_FORMS = ["plain", "chunks guessed, latest", "texts fixed utf-8"]


@pytest.fixture(scope="module")
def citeseq() -> mudata.MuData:
    return mudatas.citeseq()


@pytest.mark.parametrize("name", MU_FORMS)
def test_a_multimodal_file(citeseq: mudata.MuData, name: str, tmp_path: Path) -> None:
    path = write(citeseq, tmp_path / "a.h5mu", FORMS[name])
    expected, data = mudata.read_h5mu(path), lz.open(path)
    assert isinstance(data, lz.MultimodalDataset)
    assert "rna" in str(data.info())
    mudatas.assert_mudata_equal(data.to_memory(), expected)
    oracle.assert_equal(data["prot"].to_memory(), expected.mod["prot"])
    rows = mudatas.rows_of(expected, "`rna:n_counts` > 500")
    selection = data.query("rna:n_counts > 500", modalities=["rna", "prot"])
    plan = selection.explain()
    wanted = mudatas.selected(expected, rows, modalities=["rna", "prot"])
    mudatas.assert_mudata_equal(selection.to_memory(), wanted)
    if plan.exact:
        assert selection.stats.n_requests - plan.spent_requests == plan.n_requests


@few
@given(data=strategies.mudatas(), form=forms())
def test_drawn_multimodal_objects_in_drawn_forms(
    data: mudata.MuData, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(data, tmp_path_factory.mktemp("drawn") / "a.h5mu", form)
    expected = oracle.stored_mudata(mudata.read_h5mu(path))
    oracle.assert_mudata_equal(oracle.stored_mudata(lz.open(path).to_memory()), expected)


def test_a_multimodal_file_is_exported_and_converted(citeseq: mudata.MuData, tmp_path: Path) -> None:
    path = write(citeseq, tmp_path / "a.h5mu", FORMS["latest"])
    expected = oracle.stored_mudata(mudata.read_h5mu(path))
    lz.export(path, tmp_path / "out.h5mu", progress=False)
    oracle.assert_mudata_equal(oracle.stored_mudata(mudata.read_h5mu(tmp_path / "out.h5mu")), expected)
    lz.convert(path, tmp_path / "out.zarr", progress=False)
    lz.verify(tmp_path / "out.zarr", against=path, progress=False)
