"""Aggregates of selections against pandas' groupby and NumPy over AnnData in memory."""

from __future__ import annotations

import pickle
import signal
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from clusters import two_workers
from hypothesis import given
from hypothesis import strategies as st
from layouts import tiny_chunks
from oracle import sliced, stored
from scipy import sparse
from test_convert import by_anndata, cells, convert

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.aggregate import Aggregation, Question
from lobster_zarr.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

FUNCS = ["sum", "mean", "count_nonzero", "var"]
CALLS: dict[str, Any] = {
    "sum": lambda x: x.sum(axis=0, dtype=np.float64 if x.dtype.kind == "f" else None),
    "mean": lambda x: x.mean(axis=0, dtype=np.float64),
    "count_nonzero": lambda x: np.count_nonzero(x, axis=0),
    "var": lambda x: x.var(axis=0, ddof=1, dtype=np.float64) if len(x) > 1 else np.full(x.shape[1], np.nan),
}


def experiment(n_obs: int = 60) -> ad.AnnData:
    """Cells with a NaN and an infinity, whose text column is missing now and then."""
    adata = cells(n_obs)
    rng = np.random.default_rng(1)
    adata.obs["batch"] = pd.array(rng.choice(["b1", "b2", None], n_obs), dtype="str")
    adata.obs["dose"] = pd.array(rng.choice([1, 2, None], n_obs), dtype="Int64")
    adata.obs["stage"] = pd.Categorical(rng.choice(["late", "early"], n_obs), ["late", "mid", "early"], ordered=True)
    scaled = adata.layers["scaled"]
    scaled[3, 4], scaled[9, 4] = np.nan, np.inf
    adata.layers["seen"] = sparse.csr_matrix(adata.X.toarray() > 0)
    return adata


def _csc(adata: ad.AnnData) -> None:
    adata.X, adata.layers["counts"] = adata.X.tocsc(), adata.layers["counts"].tocsc()


def _dense(adata: ad.AnnData) -> None:
    adata.X, adata.layers["counts"] = adata.X.toarray(), adata.layers["counts"].toarray()


STORES: dict[str, Any] = {
    "plain": {"gene_major": False},
    "companion": {"gene_major": True},
    "sorted": {"sort_by": ["cell_type"], "gene_major": True},
    "foreign": None,
    "foreign csc": _csc,
    "foreign dense": _dense,
}


def write_store(adata: ad.AnnData, path: Path, how: Any) -> None:
    """Convert with these options; or let anndata write it, changed by a function or as it is."""
    if isinstance(how, dict):
        with tiny_chunks():
            convert(adata, path, **how)
    else:
        if how is not None:
            how(adata)
        by_anndata(adata, path)


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[lz.Dataset, ad.AnnData]:
    path, how, adata = tmp_path_factory.mktemp("aggregate") / "a.zarr", STORES[request.param], experiment()
    write_store(adata, path, how)
    return lz.open(path), stored(experiment())


def assert_aggregated(found: ad.AnnData, source: ad.AnnData, by: list[str], funcs: list[str], path: str = "X") -> None:
    """Compare with pandas and NumPy over the cells in memory."""
    matrix = source.X if path == "X" else source.layers[path.removeprefix("layers/")]
    dense = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
    if by:
        groups = source.obs.groupby(by, observed=True, sort=True)
        numbers = groups.ngroup().fillna(-1).to_numpy(int)
        first = [int(np.flatnonzero(numbers == i)[0]) for i in range(numbers.max(initial=-1) + 1)]
        rows = [numbers == i for i in range(len(first))]
        assert list(found.obs) == [*by, "n_obs_aggregated"]
        for column in by:
            assert found.obs[column].tolist() == source.obs[column].iloc[first].tolist()
        assert list(found.obs_names) == [
            "_".join(map(str, row)) for row in source.obs[by].iloc[first].itertuples(index=False)
        ]
    else:
        rows = [np.ones(len(dense), bool)]
        assert list(found.obs_names) == ["all"]
    assert found.obs["n_obs_aggregated"].tolist() == [int(mask.sum()) for mask in rows]
    assert list(found.layers.keys() - {None}) == funcs or set(found.layers.keys() - {None}) == set(funcs)
    for func in funcs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # means of no cells, infinities
            wanted = np.array([CALLS[func](dense[mask]) for mask in rows]).reshape(len(rows), dense.shape[1])
        got = found.layers[func]
        exact = func == "count_nonzero" or (func == "sum" and dense.dtype.kind in "iub")
        assert got.dtype == (np.int64 if exact else np.float64)
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    if len(funcs) == 1:
        np.testing.assert_array_equal(found.X, found.layers[funcs[0]])
    else:
        assert found.X is None
    pd.testing.assert_frame_equal(found.var, source.var)


KEYS = [
    ["cell_type"],
    ["doublet"],
    ["note"],
    ["n_genes"],
    ["batch"],
    ["dose"],
    ["stage", "cell_type"],
    ["batch", "doublet", "donor"],
]


@pytest.mark.parametrize("by", KEYS, ids="-".join)
def test_keys_of_every_kind(store: tuple[lz.Dataset, ad.AnnData], by: list[str]) -> None:
    dataset, source = store
    found = dataset.query().aggregate(by, FUNCS, block_bytes=300)
    assert_aggregated(found, source, by, FUNCS)
    kept = dataset.query().to_pandas()
    assert found.obs[by].dtypes.tolist() == kept[by].dtypes.tolist(), "dtypes and categories stay"


@pytest.mark.parametrize("path", ["X", "layers/counts", "layers/scaled", "layers/seen"])
@pytest.mark.parametrize("block_bytes", [1, "1kB", "1GB"])
def test_matrices_of_every_kind(store: tuple[lz.Dataset, ad.AnnData], path: str, block_bytes: Any) -> None:
    dataset, source = store
    found = dataset.query().aggregate("cell_type", FUNCS, path=path, block_bytes=block_bytes)
    assert_aggregated(found, source, ["cell_type"], FUNCS, path)


ROWS: dict[str, Any] = {
    "predicate": ("n_genes > 40", lambda a: a.obs["n_genes"].to_numpy() > 40),
    "mask": (np.arange(60) % 3 == 1, lambda _: np.arange(60) % 3 == 1),
    "repeated": ([5, 5, 59, 0, 3, 5], lambda _: [5, 5, 59, 0, 3, 5]),
    "slice": (slice(50, 10, -2), lambda _: slice(50, 10, -2)),
    "none": ("n_genes > 1000", lambda _: np.zeros(60, bool)),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("genes", [None, ["gene7", "gene2", "gene11"], ["gene3"], []], ids=["all", "some", "one", "no"])
def test_what_is_selected_is_aggregated(
    store: tuple[lz.Dataset, ad.AnnData], rows: str, genes: list[str] | None
) -> None:
    dataset, source = store
    selector, in_memory = ROWS[rows]
    selection = dataset.query(selector, genes)
    expected = sliced(source, in_memory(source), slice(None) if genes is None else genes)
    for path in ("X", "layers/scaled"):
        assert_aggregated(
            selection.aggregate("cell_type", FUNCS, path=path, block_bytes=300), expected, ["cell_type"], FUNCS, path
        )
    selection = dataset.query(selector, genes, order="storage")
    assert_aggregated(selection.aggregate(["donor", "doublet"], "mean"), expected, ["donor", "doublet"], ["mean"])


def test_cells_of_no_group_leave_no_row(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    selection = store[0].query("batch.isna()")
    assert selection.count() > 0
    assert selection.aggregate(["donor", "batch"], FUNCS).shape == (0, 20)
    assert "X/data" not in selection.stats.by_array


@pytest.mark.parametrize("func", FUNCS)
def test_statistics_of_each_gene(store: tuple[lz.Dataset, ad.AnnData], func: str) -> None:
    dataset, source = store
    assert_aggregated(dataset.query().aggregate(None, func, block_bytes=300), source, [], [func])
    nobody = dataset.query("n_genes > 1000").aggregate(None, func)
    assert_aggregated(nobody, sliced(source, np.zeros(60, bool), slice(None)), [], [func])


def test_the_layout_is_that_of_scanpy(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    import scanpy as sc

    dataset, source = store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sc.get.aggregate(source, ["donor", "cell_type"], FUNCS)
    ours = dataset.query().aggregate(["donor", "cell_type"], FUNCS)
    pd.testing.assert_frame_equal(ours.obs, theirs.obs[[*ours.obs]], check_categorical=False)
    assert list(ours.var_names) == list(theirs.var_names)
    for func in FUNCS:
        np.testing.assert_allclose(ours.layers[func], theirs.layers[func], rtol=1e-6)


def test_a_sum_comes_out_the_same_every_time(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    dataset, _ = store
    sums = [dataset.query().aggregate("donor", path="layers/scaled", block_bytes=100).X for _ in range(3)]
    assert all(found.tobytes() == sums[0].tobytes() for found in sums)


def test_blocks_are_not_read_to_find_the_groups(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    dataset, _ = store
    selection = dataset.query()
    with pytest.raises(errors.BudgetError, match=r"groups × 20 genes would need .* memory_limit=1.0 kB"):
        selection.aggregate("n_genes", FUNCS, memory_limit="1kB")
    assert not [path for path in selection.stats.by_array if path.startswith("X/data")]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "column": ({"by": "cell_typ"}, errors.NotFoundError, "Did you mean 'cell_type'"),
    "names of cells": ({"by": "_index"}, errors.NotFoundError, "no column of obs"),
    "twice": ({"by": ["donor", "donor"]}, errors.InvalidArgumentError, "different names"),
    "nothing": ({"by": []}, errors.InvalidArgumentError, "name nothing"),
    "number": ({"by": 3}, errors.InvalidArgumentError, "by is 3"),
    "numbers": ({"by": [3]}, errors.InvalidArgumentError, "by is"),
    "count column": ({"by": "n_obs_aggregated"}, errors.InvalidArgumentError, "rename"),
    "func": ({"func": "meen"}, errors.InvalidArgumentError, "Did you mean 'mean'"),
    "no func": ({"func": []}, errors.InvalidArgumentError, "name nothing"),
    "path": ({"path": "obsm/X_umap"}, errors.InvalidArgumentError, "expected 'X' or a layer"),
    "layer": ({"path": "layers/count"}, errors.NotFoundError, "Did you mean 'layers/counts'"),
    "block": ({"block_bytes": 0}, errors.InvalidArgumentError, "block_bytes"),
    "limit": ({"memory_limit": "much"}, errors.InvalidArgumentError, "memory_limit"),
    "client": ({"client": "here"}, errors.InvalidArgumentError, "expected a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_asked_is_told(store: tuple[lz.Dataset, ad.AnnData], case: str) -> None:
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        store[0].query().aggregate(**{"by": "cell_type", **options})


def test_complex_values_are_refused(tmp_path: Path) -> None:
    adata = cells()
    adata.layers["phase"] = np.ones(adata.shape, "complex64")
    by_anndata(adata, tmp_path / "a.zarr")
    with pytest.raises(errors.UnsupportedError, match=r"'layers/phase' .* complex64"):
        lz.open(tmp_path / "a.zarr").query().aggregate("donor", path="layers/phase")


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    with tiny_chunks():
        convert(cells(), tmp_path / "a.zarr")
    shard = sorted(path for path in (tmp_path / "a.zarr/X/data/c").iterdir())[1]
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(errors.ChunkDecodeError):
        lz.open(tmp_path / "a.zarr").query().aggregate("donor", block_bytes=100)


@st.composite
def experiments(draw: st.DrawFn) -> tuple[ad.AnnData, list[str], str]:
    n_obs, n_vars = draw(st.integers(0, 14)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.poisson(0.7, (n_obs, n_vars)).astype(
        draw(st.sampled_from(["float32", "float64", "int32", "int64", "bool"]))
    )
    layout = draw(st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix]))
    obs = pd.DataFrame(
        {
            "a": pd.Categorical.from_codes(rng.integers(-1, 3, n_obs), ["z", "x", "y"]),
            "b": rng.integers(0, 2, n_obs),
            "c": rng.random(n_obs) < 0.5,
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    by = draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True))
    return ad.AnnData(layout(values), obs=obs), by, draw(st.sampled_from(["", "a", "b"]))


@given(experiments(), st.integers(1, 400))
def test_any_small_experiment(case: tuple[ad.AnnData, list[str], str], block_bytes: int) -> None:
    adata, by, sort_by = case
    with tiny_chunks():
        convert(adata, "memory://aggregate-any", sort_by=[sort_by] if sort_by else [], overwrite=True)
    found = lz.open("memory://aggregate-any").query().aggregate(by or None, FUNCS, block_bytes=block_bytes)
    assert_aggregated(found, stored(adata), by, FUNCS)


# ---------------------------------------------------------------- on dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with two_workers() as client:
        yield client


@pytest.fixture(scope="module", params=["sorted", "foreign csc"])
def remote(request: pytest.FixtureRequest, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A store on S3, and what is in it."""
    adata, how = experiment(300), STORES[request.param]
    uri = f"{s3.bucket(request.param.replace(' ', '-') + '-aggregate')}/a.zarr"
    if isinstance(how, dict):
        with tiny_chunks(chunk=64):
            convert(adata, uri, storage_options=s3.storage_options, **how)
    else:
        path = tmp_path_factory.mktemp("remote") / "a.zarr"
        how(adata)
        by_anndata(adata, path)
        bucket = uri.split("/")[2]
        for file in path.rglob("*"):
            if file.is_file():
                s3.client().upload_file(str(file), bucket, f"a.zarr/{file.relative_to(path)}")
    return lz.open(uri, storage_options=s3.storage_options), stored(experiment(300)), request.param


@pytest.mark.parametrize("by", [["cell_type"], ["batch", "dose"], []], ids="-".join)
def test_on_dask_as_here(client: Any, remote: Any, by: list[str]) -> None:
    dataset, source, kind = remote
    selection = dataset.query("n_genes > 20")
    found = selection.aggregate(by or None, FUNCS, block_bytes="1kB", client=client)
    assert_aggregated(found, sliced(source, source.obs["n_genes"].to_numpy() > 20, slice(None)), by, FUNCS)
    assert "X/data" not in selection.stats.by_array, "the values were read by the workers"
    here = selection.aggregate(by or None, FUNCS, block_bytes="1kB", client=False)
    assert "X/data" in selection.stats.by_array
    for func in FUNCS:
        np.testing.assert_allclose(found.layers[func], here.layers[func], rtol=1e-12)
    assert kind in STORES


def test_the_active_client_computes(client: Any, remote: Any) -> None:
    selection = remote[0].query()
    selection.aggregate("donor", "sum", block_bytes="1kB")
    assert "X/data" not in selection.stats.by_array


def test_what_tasks_carry_is_small_and_holds_no_credentials(s3: S3Server, remote: Any) -> None:
    reading = remote[0].query("n_genes > 20")._reading
    groups = pd.DataFrame({"donor": pd.Categorical(["d1", "d2"])})
    work = Aggregation(Recipe(reading, "storage"), Question.of("donor", "sum", "X"), groups, by_gene=False)
    reading.run(work.recipe.axes())
    packed = pickle.dumps(work)
    assert len(packed) < 5_000
    assert not any(secret.encode() in packed for secret in (s3.key, s3.secret))
    assert pickle.loads(packed).moments_of_task(0, 10).n_cells.sum() == 10  # noqa: S301 - our own


def test_a_failure_on_a_worker_is_the_error_here(client: Any, s3: S3Server) -> None:
    bucket = s3.bucket("aggregate-damaged")
    with tiny_chunks():
        convert(cells(), f"{bucket}/a.zarr", storage_options=s3.storage_options)
    dataset = lz.open(f"{bucket}/a.zarr", storage_options=s3.storage_options)
    s3.client().delete_object(Bucket="aggregate-damaged", Key="a.zarr/X/data/c/1")
    with pytest.raises(errors.ChunkDecodeError):
        dataset.query().aggregate("donor", block_bytes=100, client=client)
    assert not client.futures


def test_an_interrupt_cancels_what_the_workers_do(client: Any, remote: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    selection, before = remote[0].query(), signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(KeyboardInterrupt):
            [selection.aggregate("donor", FUNCS, block_bytes=1, client=client) for _ in range(100)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not client.futures
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3
