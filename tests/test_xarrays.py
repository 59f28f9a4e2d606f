"""The xarray view of a selection against AnnData in memory."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from clusters import two_workers
from layouts import tiny_chunks
from oracle import sliced, stored
from scipy import sparse
from test_aggregate import STORES, experiment, write_store
from test_convert import convert

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import anndata as ad

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def flat(n_obs: int = 60) -> ad.AnnData:
    """An experiment whose obsm holds a sparse matrix beside a dense one."""
    adata = experiment(n_obs)
    adata.obsm["scores"] = sparse.csr_matrix(np.random.default_rng(2).poisson(0.5, (n_obs, 3)).astype("float64"))
    return adata


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[lz.Dataset, ad.AnnData]:
    path, how, adata = tmp_path_factory.mktemp("xarrays") / "a.zarr", STORES[request.param], flat()
    write_store(adata, path, how)
    return lz.open(path), stored(flat())


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


ROWS: dict[str, Any] = {
    "all": (None, lambda _: slice(None)),
    "predicate": ("n_genes > 40", lambda a: a.obs["n_genes"].to_numpy() > 40),
    "positions": ([5, 59, 0, 3, 5], lambda _: [5, 59, 0, 3, 5]),
    "none": ("n_genes > 1000", lambda _: np.zeros(60, bool)),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("genes", [None, ["gene7", "gene2", "gene11"], []], ids=["all", "some", "no"])
@pytest.mark.parametrize("block_bytes", [200, "1GB"])
def test_values_and_labels(
    store: tuple[lz.Dataset, ad.AnnData], rows: str, genes: list[str] | None, block_bytes: Any
) -> None:
    dataset, source = store
    selector, in_memory = ROWS[rows]
    expected = sliced(source, in_memory(source), slice(None) if genes is None else genes)
    found = dataset.query(selector).to_xarray(genes, block_bytes=block_bytes)
    assert dict(found.sizes) == {"obs": expected.n_obs, "var": expected.n_vars, "X_umap_dim": 2, "scores_dim": 3}
    for name, matrix in {"X": expected.X, **expected.obsm}.items():
        assert dask.is_dask_collection(found[name].data)
        assert found[name].dtype == matrix.dtype
        np.testing.assert_array_equal(found[name].to_numpy(), dense(matrix))
        assert found[name].chunks[0] == found["X"].chunks[0], "blocks of the same rows"
    assert found["obs"].to_numpy().tolist() == list(expected.obs_names)
    assert found["var"].to_numpy().tolist() == list(expected.var_names)
    for column in source.obs:
        assert_column(found[column].to_numpy(), expected.obs[column])


def assert_column(found: np.ndarray, expected: pd.Series) -> None:
    assert isinstance(found, np.ndarray)
    assert found.dtype.kind in "biufO"
    missing = expected.isna().to_numpy()
    assert pd.isna(found).tolist() == missing.tolist()
    assert found[~missing].tolist() == expected[~missing].tolist()


def test_genes_of_a_selection_of_genes(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    dataset, source = store
    selection = dataset.query("doublet == False", ["gene9", "gene1", "gene4"])
    found = selection.to_xarray(["gene4", "gene9"], path="layers/counts", obsm=[])
    expected = source[~source.obs["doublet"].to_numpy(), ["gene4", "gene9"]]
    np.testing.assert_array_equal(found["counts"].to_numpy(), dense(expected.layers["counts"]))
    assert list(found.data_vars) == ["counts", *source.obs]
    assert selection.to_xarray()["var"].to_numpy().tolist() == ["gene9", "gene1", "gene4"]
    with pytest.raises(errors.NotFoundError, match="gene2"):
        selection.to_xarray(["gene2"])


def test_ordinary_operations_work(store: tuple[lz.Dataset, ad.AnnData], tmp_path: Path) -> None:
    dataset, source = store
    found = dataset.query(obs_columns=["donor", "n_counts", "dose", "note"]).to_xarray(obsm=["X_umap"], block_bytes=500)
    x = dense(source.X)
    means = found["X"].groupby(found["donor"]).mean().compute()
    for donor in ("d1", "d2"):
        np.testing.assert_allclose(
            means.sel(donor=donor), x[(source.obs["donor"] == donor).to_numpy()].mean(0), rtol=1e-5
        )
    one = found.sel(var="gene3", obs=["cell5", "cell9"]).compute()
    assert one["X"].to_numpy().tolist() == x[[5, 9], 3].tolist()
    few = found.isel(obs=(found["donor"] == "d1").to_numpy())
    frame = few[["donor", "n_counts", "dose"]].to_dataframe()
    assert list(frame.index) == list(source.obs_names[(source.obs["donor"] == "d1").to_numpy()])
    assert found.sortby("n_counts")["n_counts"].to_numpy().tolist() == sorted(source.obs["n_counts"])
    assert found.chunk(obs=7)["X"].chunks[0][0] == 7
    found[["X", "n_counts", "dose"]].to_zarr(tmp_path / "out.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "out.zarr", consolidated=False)
    np.testing.assert_array_equal(back["X"].to_numpy(), x)


def test_nothing_of_a_matrix_is_read_before_it_is_asked_for(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    selection = store[0].query("donor == 'd1'")
    selection.to_xarray()
    assert not [path for path in selection.stats.by_array if path.startswith(("X", "obsm"))]


def test_two_views_of_one_selection_are_the_same_to_dask(store: tuple[lz.Dataset, ad.AnnData]) -> None:
    first, second, other = (
        store[0].query(f"donor == '{donor}'").to_xarray(block_bytes=300)["X"].data for donor in ("d1", "d1", "d2")
    )
    assert first.name == second.name != other.name


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "gene": ({"genes": ["gene77"]}, errors.NotFoundError, "Did you mean"),
    "position": ({"genes": [99]}, errors.InvalidSelectionError, "out of bounds"),
    "obsm": ({"obsm": ["umap"]}, errors.NotFoundError, "brings no obsm 'umap'"),
    "text": ({"obsm": "X_umap"}, errors.InvalidArgumentError, "expected a list"),
    "path": ({"path": "obsm/X_umap"}, errors.InvalidArgumentError, "expected 'X' or a layer"),
    "layer": ({"path": "layers/count"}, errors.NotFoundError, "Did you mean 'layers/counts'"),
    "block": ({"block_bytes": -1}, errors.InvalidArgumentError, "block_bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_asked_is_told(store: tuple[lz.Dataset, ad.AnnData], case: str) -> None:
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        store[0].query().to_xarray(**options)


@pytest.mark.parametrize("name", ["X", "var", "obs", "X_umap", "X_umap_dim"])
def test_names_that_would_be_taken_twice_are_told(name: str) -> None:
    adata = flat()
    adata.obs[name] = np.arange(60)
    convert(adata, f"memory://xarrays-{name}")
    dataset = lz.open(f"memory://xarrays-{name}")
    with pytest.raises(errors.InvalidArgumentError, match=f"obs column '{name}'.*obs_columns"):
        dataset.query().to_xarray()
    assert "donor" in dataset.query(obs_columns=["donor"]).to_xarray()


def test_a_frame_in_obsm_is_told() -> None:
    adata = flat()
    adata.obsm["frame"] = pd.DataFrame({"a": np.arange(60.0)}, index=adata.obs_names)
    convert(adata, "memory://xarrays-frame")
    dataset = lz.open("memory://xarrays-frame")
    with pytest.raises(errors.UnsupportedError, match=r"'obsm/frame' .* leave it out: obsm=\['X_umap', 'scores'\]"):
        dataset.query().to_xarray()
    assert "scores" in dataset.query().to_xarray(obsm=["scores"])


# ---------------------------------------------------------------- on dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with two_workers() as client:
        yield client


def test_workers_read_what_a_small_graph_without_credentials_says(client: Any, s3: S3Server) -> None:
    bucket, adata = s3.bucket("xarrays"), flat(300)
    with tiny_chunks(chunk=64):
        convert(adata, f"{bucket}/a.zarr", sort_by=["donor"], storage_options=s3.storage_options)
    dataset = lz.open(f"{bucket}/a.zarr", storage_options=s3.storage_options)
    selection = dataset.query("n_genes > 20")
    found = selection.to_xarray(["gene3", "gene1"], block_bytes=200, obsm=["X_umap"])
    graph = dict(found.__dask_graph__())
    assert len(graph) > 20
    for key, task in graph.items():
        packed = pickle.dumps(task)
        assert len(packed) < 5_000, key
        assert not any(secret.encode() in packed for secret in (s3.key, s3.secret))
    assert not any(secret.encode() in pickle.dumps(graph) for secret in (s3.key, s3.secret))
    before = dict(selection.stats.by_array)
    computed = found.compute()
    assert selection.stats.by_array == before, "the values were read by the workers"
    expected = sliced(stored(flat(300)), adata.obs["n_genes"].to_numpy() > 20, ["gene3", "gene1"])
    np.testing.assert_array_equal(computed["X"], dense(expected.X))
    np.testing.assert_array_equal(computed["X_umap"], expected.obsm["X_umap"])
    assert client.run(lambda: 1)
