"""The lazy AnnData: what it computes is what memory holds, and it reads only what is left of it."""

from __future__ import annotations

import itertools
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata as ad
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import tiny_chunks
from oracle import assert_equal, sliced, stored
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import ConflictError, InvalidArgumentError, UnsupportedError
from tests.thrift import examples

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore:.*Dataset2D.*:Warning"),
]

N_OBS, N_VARS = 600, 60
GENES = [f"gene-{i}" for i in range(0, N_VARS, 7)]
_numbers = itertools.count()


def uri() -> str:
    return f"memory://lazy-{next(_numbers)}"


@pytest.fixture(scope="module")
def atlas() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sparse.random(N_OBS, N_VARS, 0.2, "csr", "float32", rng)
    names = pd.Index([f"cell-{i}" for i in range(N_OBS)], name="cell")
    return stored(
        ad.AnnData(
            counts,
            obs=pd.DataFrame(
                {
                    "cell_type": pd.Categorical(rng.choice(["B", "NK", "T"], N_OBS), ["B", "NK", "T", "never"]),
                    "n": rng.integers(0, 1_000, N_OBS),
                    "half": pd.array(np.where(rng.random(N_OBS) < 0.5, None, 1), "Int32"),
                    "note": pd.array(rng.choice(["a", "b", None], N_OBS), "string"),
                    "word": rng.choice(["x", "y"], N_OBS).astype(object),
                    "flag": rng.random(N_OBS) < 0.5,
                },
                index=names,
            ),
            var=pd.DataFrame({"mean": rng.random(N_VARS)}, index=[f"gene-{i}" for i in range(N_VARS)]),
            layers={"log": counts.log1p(), "dense": counts.toarray()},
            obsm={"X_pca": rng.random((N_OBS, 3)), "frame": pd.DataFrame({"a": rng.random(N_OBS)}, names)},
            varm={"loadings": rng.random((N_VARS, 2))},
            obsp={"near": sparse.random(N_OBS, N_OBS, 0.01, "csr", "float64", rng)},
            uns={"title": "atlas", "cell_type_colors": ["red", "green", "blue", "black"]},
        )
    )


@pytest.fixture(scope="module", params=["unsorted", "sorted", "no companion"])
def dataset(request: pytest.FixtureRequest, atlas: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> lz.Dataset:
    path = tmp_path_factory.mktemp("lazy") / "a.zarr"
    with tiny_chunks(chunk=64, shard_chunks=8):
        lz.convert(
            atlas,
            path,
            sort_by=["cell_type"] if request.param == "sorted" else [],
            gene_major=request.param != "no companion",
            progress=False,
        )
    return lz.open(path)


def as_lazy(adata: ad.AnnData) -> ad.AnnData:
    """What xarray and anndata make of a table: text that may be missing is `string`, names are not a column too."""
    for table in (adata.obs, adata.var):
        for name in table.columns:
            if isinstance(table[name].dtype, pd.StringDtype):
                table[name] = table[name].astype("string")
        if table.index.name in table.columns:
            del table[table.index.name]
    return adata


def test_everything_is_lazy_and_equals_the_direct_read(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    lazy = dataset.to_lazy(block_bytes=4_096)
    for matrix in (lazy.X, *lazy.layers.values(), lazy.obsm["X_pca"], lazy.varm["loadings"], lazy.obsp["near"]):
        assert isinstance(matrix, da.Array)
    assert type(lazy.obs).__name__ == type(lazy.var).__name__ == "Dataset2D"
    assert lazy.X.numblocks[0] > 3
    assert_equal(lazy.to_memory(), as_lazy(atlas.copy()), sparse_layout="any")


SUBSETS: dict[str, Any] = {
    "mask": (np.arange(N_OBS) % 3 == 0, slice(None)),
    "genes": (slice(None), GENES),
    "mask and genes": (np.arange(N_OBS) % 5 == 0, GENES),
    "slice": (slice(100, 300), slice(5, 50)),
    "positions, unordered and twice": (np.asarray([500, 3, 3, 77, 12]), np.asarray([9, 1, 4])),
    "one": (slice(7, 8), slice(0, 1)),
    "none": (np.zeros(N_OBS, bool), slice(None)),
    "names": ([f"cell-{i}" for i in range(50, 20, -3)], GENES[::-1]),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_of_it_stays_lazy_and_is_what_memory_gives(dataset: lz.Dataset, atlas: ad.AnnData, name: str) -> None:
    rows, genes = SUBSETS[name]
    lazy = dataset.to_lazy(block_bytes=4_096)
    part, expected = lazy[rows][:, genes], sliced(sliced(atlas, rows, slice(None)), slice(None), genes)
    assert isinstance(part.X, da.Array)
    got = part.to_memory()
    # AnnData leaves the colors of a lazy subset as they are.
    got.uns, expected.uns = {}, {}
    if name == "genes":  # nor does it look at obs where all cells are left
        got.obs["cell_type"] = got.obs["cell_type"].cat.remove_unused_categories()
    assert_equal(got, as_lazy(expected), sparse_layout="any")


@pytest.mark.parametrize("order", ["source", "storage"])
@pytest.mark.parametrize("expression", ["cell_type == 'T'", "n > 500", "cell_type in ['T', 'NK'] and flag", "n > 5000"])
def test_a_selection_computes_what_it_reads(dataset: lz.Dataset, expression: str, order: Any) -> None:
    selection = dataset.query(expression, GENES, order=order)
    assert_equal(selection.to_lazy(block_bytes=2_048).to_memory(), as_lazy(selection.to_memory()))
    some = dataset.query(expression, layers=["log"], obsm=[], obsp=[], varm=[], obs_columns=["n"], uns=False)
    assert_equal(some.to_lazy().to_memory(), some.to_memory())


@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.data(), adata=strategies.anndatas(), gene_major=st.booleans())
def test_whatever_anndata_stores(drawn: st.DataObject, adata: ad.AnnData, gene_major: bool) -> None:
    where, sort_by = uri(), drawn.draw(strategies.sort_keys(adata.obs), "sort_by")
    with tiny_chunks(chunk=8):
        lz.convert(adata, where, gene_major=gene_major, sort_by=sort_by, progress=False)
    rows = drawn.draw(strategies.selections(adata.obs_names), "rows")
    genes = drawn.draw(strategies.selections(adata.var_names), "genes")
    selection = lz.open(where).query(rows, genes)
    expected = as_lazy(selection.to_memory())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal(selection.to_lazy(block_bytes=64).to_memory(), expected, sparse_layout="any")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("cls", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_stores_that_anndata_wrote(tmp_path: Path, atlas: ad.AnnData, cls: Any, zarr_format: int) -> None:
    adata = ad.AnnData(cls(atlas.X.toarray()), atlas.obs, atlas.var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ad.settings.override(zarr_write_format=zarr_format):
            adata.write_zarr(tmp_path / "a.zarr", convert_strings_to_categoricals=False)
    lazy = lz.open(tmp_path / "a.zarr").to_lazy(block_bytes=8_192)
    assert lazy.X.npartitions > 1
    assert_equal(lazy.X.compute(), adata.X)
    rows = np.asarray([5, 2, 500])
    assert_equal(lazy[rows][:, GENES].to_memory().X, adata[rows][:, GENES].X.copy())


# ---------------------------------------------------------------- what it is


def test_a_copy_of_a_subset_knows_what_it_stands_for(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    some = dataset.to_lazy()[:200].copy()
    before = dataset.stats.n_bytes
    few = some[:, GENES[:1]].X.compute()
    assert_equal(few, atlas[:200, GENES[:1]].X.copy())
    if dataset.reader.has_companion("X"):
        whole = sum(dataset.fetcher.stored_bytes[f"X/{a}"] for a in ("data", "indices"))
        assert dataset.stats.n_bytes - before < whole / 2


def test_other_indexing_is_dasks(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    dense = dataset.to_lazy(block_bytes=4_096).layers["dense"]
    expected = atlas.layers["dense"]
    assert_equal(dense[3].compute(), expected[3])
    assert_equal(dense[..., 5].compute(), expected[..., 5])
    assert_equal(dense[dense[:, 0] > 0].compute(), expected[expected[:, 0] > 0])
    assert_equal((dense[::-1] > 0).sum(axis=0).compute(), (expected[::-1] > 0).sum(axis=0))
    with pytest.raises(IndexError):
        dense[[N_OBS]]
    with pytest.raises(IndexError):
        dense[np.ones(3, bool)]


def test_one_row_or_gene_reads_no_more_than_that(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    dense, expected = dataset.to_lazy(block_bytes=4_096).layers["dense"], atlas.layers["dense"]
    for index in (3, -1, np.int64(5), (3, 4), (slice(10, 20), 4), (-1, slice(None)), ([5, 1], 2), (2, [5, 1])):
        assert_equal(dense[index].compute(), expected[index])
    costs = []
    for gene in (slice(None), [4], [4], 4):  # the second time, the places of the chunks are known
        before = dataset.stats.by_array["layers/dense"][1]
        dense[:, gene].compute()
        costs.append(dataset.stats.by_array["layers/dense"][1] - before)
    assert costs[3] == costs[2] < costs[0]
    for outside in (N_OBS, -N_OBS - 1):
        with pytest.raises(IndexError):
            dense[outside]
    x = dataset.to_lazy(block_bytes=4_096).X
    assert_equal(x[:, 3].compute().toarray(), atlas.X[:, [3]].toarray())
    assert x[3].shape == (N_VARS,)


def test_what_is_assigned_in_place_is_there_after_subsetting(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    lazy, expected = dataset.to_lazy(block_bytes=4_096), atlas.copy()
    for adata in (lazy, expected):
        adata.layers["dense"][:5] = 7
    np.add(lazy.obsm["X_pca"], 1, out=lazy.obsm["X_pca"])
    expected.obsm["X_pca"] += 1
    for rows in (slice(0, 10), np.asarray([599, 3, 300]), slice(None)):
        for got in (lazy[rows], lazy[rows].copy(), lazy.copy()[rows]):
            assert_equal(got.layers["dense"].compute(), expected[rows].layers["dense"].copy())
            assert_equal(got.obsm["X_pca"].compute(), expected[rows].obsm["X_pca"].copy())


@pytest.mark.parametrize("rows", [slice(None), slice(10, 20)])
def test_assigning_to_a_view_leaves_its_parent_as_it_is(dataset: lz.Dataset, atlas: ad.AnnData, rows: slice) -> None:
    lazy = dataset.to_lazy(block_bytes=4_096)
    view = lazy[rows]
    with pytest.warns(ad.ImplicitModificationWarning, match="initializing view as actual"):
        view.layers["dense"][:3] = 7
    assert not view.is_view
    assert (view.layers["dense"][:3].compute() == 7).all()
    copied = lazy[rows].copy()
    copied.layers["dense"][:3] = 7
    assert_equal(lazy.layers["dense"].compute(), atlas.layers["dense"])


def test_writing_to_the_values_of_a_column_changes_nothing(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    lazy = dataset.to_lazy()
    for rows in (slice(None), slice(0, 10)):
        for _ in range(2):
            values = lazy.obs["n"][rows].to_numpy()
            assert_equal(values, atlas.obs["n"].to_numpy()[rows])
            values[:] = -1


@pytest.mark.parametrize(("sparse_format", "kind"), [("matrix", sparse.csr_matrix), ("array", sparse.csr_array)])
def test_the_format_of_sparse_blocks(dataset: lz.Dataset, sparse_format: Any, kind: type) -> None:
    x = dataset.to_lazy(sparse_format=sparse_format, block_bytes=4_096).X
    assert type(x._meta) is kind
    assert {type(block.compute()) for block in x.blocks} == {kind}


def test_a_lazy_anndata_is_no_source_of_a_conversion(dataset: lz.Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="to_memory"):
        lz.convert(dataset.to_lazy()[10:60], tmp_path / "a.zarr", progress=False)
    assert not (tmp_path / "a.zarr").exists()


def test_bad_options_are_refused(dataset: lz.Dataset) -> None:
    with pytest.raises(InvalidArgumentError, match="sparse_format"):
        dataset.to_lazy(sparse_format="coo")
    with pytest.raises(InvalidArgumentError, match="block_bytes"):
        dataset.to_lazy(block_bytes=0)
    with pytest.raises(InvalidArgumentError, match="order"):
        dataset.to_lazy(order="random")


# ---------------------------------------------------------------- what it costs


def largest_task_bytes(array: da.Array) -> int:
    graph = dict(array.__dask_graph__())
    positions = [key for key in graph if str(key).startswith("positions-")]
    assert len(graph) - len(positions) == array.npartitions
    return max(len(pickle.dumps(task)) for key, task in graph.items() if key not in positions)


ROWS: dict[str, Any] = {
    "mostly contiguous": np.r_[:60_000, np.sort(np.random.default_rng(0).choice(np.arange(60_000, 100_000), 6_000))],
    "all": slice(None),
    "slice": slice(20_000, 80_000),
    "scattered": np.random.default_rng(0).random(100_000) < 0.3,
    "random": np.random.default_rng(0).permutation(100_000),
}


@pytest.mark.parametrize("name", ROWS)
def test_tasks_are_small_and_one_a_block(name: str, tmp_path: Path) -> None:
    x, rows = sparse.random(100_000, 20, 0.2, "csr", "float32", np.random.default_rng(0)), ROWS[name]
    lz.convert(ad.AnnData(x), tmp_path / "a.zarr", progress=False)
    lazy = lz.open(tmp_path / "a.zarr").to_lazy(block_bytes=300_000)[rows]
    assert lazy.X.npartitions > 3
    assert largest_task_bytes(lazy.X) < 5_000
    assert_equal(lazy.X.compute(), x[rows])


def test_a_subset_costs_no_more_than_the_query(dataset: lz.Dataset) -> None:
    lazy = dataset.to_lazy()
    mask = np.asarray(lazy.obs["cell_type"] == "T")
    for genes in (slice(None), GENES[:2]):
        lazy[mask][:, genes].to_memory()  # both know their offsets by now
        before = dataset.stats.n_requests, dataset.stats.n_bytes
        lazy[mask][:, genes].to_memory()
        lazily = dataset.stats.n_requests - before[0], dataset.stats.n_bytes - before[1]
        query = dataset.query("cell_type == 'T'", genes)
        query.to_memory()
        assert lazily[0] <= 1.2 * query.stats.n_requests
        assert lazily[1] <= 1.2 * query.stats.n_bytes


def test_nothing_of_a_matrix_is_read_before_it_is_computed(dataset: lz.Dataset) -> None:
    before = dict(dataset.stats.by_array)
    part = dataset.to_lazy()[10:20][:, GENES]
    assert part.shape == (10, len(GENES))
    read = {p for p, cost in dataset.stats.by_array.items() if cost != before.get(p)}
    assert not {p for p in read if p.endswith(("/data", "/indices", "/codes", "X_pca", "dense"))}
    assert "obs/n" not in read


def test_equal_selections_are_equal_arrays(dataset: lz.Dataset) -> None:
    first, second = (dataset.query("n > 500").to_lazy() for _ in range(2))
    assert first.X.name == second.X.name
    assert first.X.name != dataset.query("n > 600").to_lazy().X.name
    assert first.X[:, :5].name == second.X[:, :5].name != first.X[:, :6].name


# ---------------------------------------------------------------- other processes


def test_a_store_that_was_overwritten_meanwhile_is_told(tmp_path: Path, atlas: ad.AnnData) -> None:
    lz.convert(atlas, tmp_path / "a.zarr", progress=False)
    pickled = pickle.dumps(lz.open(tmp_path / "a.zarr").to_lazy().X)
    assert_equal(pickle.loads(pickled).compute(), atlas.X)  # noqa: S301 - made here
    lz.convert(atlas[::-1].copy(), tmp_path / "a.zarr", overwrite=True, progress=False)
    import lobster_zarr.reopen

    lobster_zarr.reopen._reopened.clear()
    sent = pickle.loads(pickled)  # noqa: S301 - made here
    with pytest.raises(ConflictError, match="overwritten"):
        sent.compute()


def test_a_pickle_is_loaded_and_passed_on_without_the_store(tmp_path: Path, atlas: ad.AnnData) -> None:
    lz.convert(atlas, tmp_path / "a.zarr", progress=False)
    ds = lz.open(tmp_path / "a.zarr")
    sent = pickle.dumps((ds, ds.query("n > 500"), ds.to_lazy().X))
    (tmp_path / "a.zarr").rename(tmp_path / "away.zarr")
    passed_on = pickle.dumps(pickle.loads(sent))  # noqa: S301 - made here
    (tmp_path / "away.zarr").rename(tmp_path / "a.zarr")
    dataset, selection, x = pickle.loads(passed_on)  # noqa: S301 - made here
    assert repr(selection) == repr(ds.query("n > 500"))
    assert selection.count() == int((atlas.obs["n"] > 500).sum())
    assert dataset.shape == atlas.shape
    assert_equal(x.compute(), atlas.X)


def test_a_sent_reader_is_opened_by_many_threads_at_once(tmp_path: Path, atlas: ad.AnnData) -> None:
    import lobster_zarr.reopen

    lz.convert(atlas, tmp_path / "a.zarr", progress=False)
    pickled = pickle.dumps(lz.open(tmp_path / "a.zarr").reader)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            lobster_zarr.reopen._reopened.clear()
            sent = pickle.loads(pickled)  # noqa: S301 - made here
            assert list(threads.map(lambda _, sent=sent: sent.obs.n_rows, range(8))) == [N_OBS] * 8


def test_a_lazy_anndata_travels_in_a_small_pickle(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    pickled = pickle.dumps(dataset.query("n > 500", obsm=["X_pca"]).to_lazy(block_bytes=4_096))
    assert len(pickled) < 200_000
    with dask.config.set(scheduler="synchronous"):
        again = pickle.loads(pickled).to_memory()  # noqa: S301 - made here
    assert_equal(again.X, atlas[atlas.obs["n"] > 500].X.copy())
