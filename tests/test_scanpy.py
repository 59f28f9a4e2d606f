"""scanpy's pipeline on the lazy AnnData gives what it gives in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import lobster_zarr as lz
from tests.layouts import tiny_chunks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def atlas() -> ad.AnnData:
    rng = np.random.default_rng(0)
    n, m = 500, 120
    types = rng.integers(0, 3, n)
    rates = rng.gamma(0.5, 2, (3, m))
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(rates[types]).astype("float32")),
        obs=pd.DataFrame({"cell_type": pd.Categorical(types.astype(str))}, index=[f"cell-{i}" for i in range(n)]),
        var=pd.DataFrame({"mt": rng.random(m) < 0.1}, index=[f"gene-{i}" for i in range(m)]),
    )


@pytest.fixture
def lazy(atlas: ad.AnnData, tmp_path: Path) -> ad.AnnData:
    with tiny_chunks(chunk=256, shard_chunks=8):
        lz.convert(atlas, tmp_path / "a.zarr", sort_by=["cell_type"], progress=False)
    adata = lz.open(tmp_path / "a.zarr").to_lazy(order="storage", block_bytes=32_768)
    assert adata.X.numblocks[0] > 5
    return adata


def in_memory(lazy: ad.AnnData, atlas: ad.AnnData) -> ad.AnnData:
    return atlas[lazy.obs_names].copy()


def test_the_pipeline_from_counts_to_components(lazy: ad.AnnData, atlas: ad.AnnData) -> None:
    expected = in_memory(lazy, atlas)
    for adata in (lazy, expected):
        sc.pp.filter_genes(adata, min_cells=5)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=30)
    assert isinstance(lazy.X, da.Array)
    assert list(lazy.var_names) == list(expected.var_names)
    got = lazy.var.to_memory()
    np.testing.assert_array_equal(got["highly_variable"], expected.var["highly_variable"])
    np.testing.assert_allclose(got["dispersions_norm"], expected.var["dispersions_norm"], rtol=1e-4)
    np.testing.assert_allclose(lazy.X.compute().toarray(), expected.X.toarray(), rtol=1e-6)

    few = lazy[:, got["highly_variable"].to_numpy()].copy()
    expected = expected[:, expected.var["highly_variable"]].copy()
    for adata in (few, expected):
        sc.pp.pca(adata, n_comps=5, svd_solver="covariance_eigh")
    assert isinstance(few.obsm["X_pca"], da.Array)
    components = few.obsm["X_pca"].compute()
    signs = np.sign((components * expected.obsm["X_pca"]).sum(axis=0))
    np.testing.assert_allclose(components * signs, expected.obsm["X_pca"], atol=1e-3)


def test_quality_metrics_with_the_tables_in_memory(lazy: ad.AnnData, atlas: ad.AnnData) -> None:
    expected = in_memory(lazy, atlas)
    lazy.obs, lazy.var = lazy.obs.to_memory(), lazy.var.to_memory()
    for adata in (lazy, expected):
        sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, inplace=True)
        sc.pp.filter_cells(adata, min_genes=20)
    pd.testing.assert_frame_equal(lazy.obs, expected.obs, check_dtype=False, rtol=1e-5)
    pd.testing.assert_frame_equal(lazy.var, expected.var, check_dtype=False, rtol=1e-5)
    np.testing.assert_array_equal(lazy.X.compute().toarray(), expected.X.toarray())


def test_sums_by_cell_type(lazy: ad.AnnData, atlas: ad.AnnData) -> None:
    lazy.obs = lazy.obs.to_memory()
    summed = sc.get.aggregate(lazy, "cell_type", "sum").layers["sum"]
    expected = sc.get.aggregate(atlas, "cell_type", "sum").layers["sum"]
    np.testing.assert_allclose(np.asarray(summed.compute() if isinstance(summed, da.Array) else summed), expected)
