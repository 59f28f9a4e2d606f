"""The sizes that docs/scaling.md gives on paper are those of stores that were written."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import lobster_zarr as lz
from benchmarks import footprint

N_OBS, N_VARS, VALUES_PER_ROW = 20_000, 500, 250


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    genes = np.arange(0, N_VARS, 2) + rng.integers(0, 2, (N_OBS, VALUES_PER_ROW))
    indptr = np.arange(0, genes.size + 1, VALUES_PER_ROW)
    x = sp.csr_matrix((np.ones(genes.size, np.float32), genes.ravel(), indptr), shape=(N_OBS, N_VARS))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(rng.choice(["a", "b"], N_OBS))}, index=[f"c{i}" for i in range(N_OBS)]
    )
    adata = ad.AnnData(x, obs, obsm={"X_pca": np.ones((N_OBS, footprint.N_OBSM), np.float32)})
    adata.var_names = [f"g{i}" for i in range(N_VARS)]
    path = tmp_path_factory.mktemp("scaling") / "cells.zarr"
    lz.convert(adata, path, sort_by=["cell_type"], gene_major=True, codec="fast", progress=False)
    return path


def written(path: str) -> str:
    """Return the array of the store that stands for one on paper."""
    return {"obs/cell_type": "obs/cell_type/codes", "obsm": "obsm/X_pca"}.get(path, path)


def test_values_chunks_and_objects_are_those_of_a_store(store: Path) -> None:
    group = zarr.open_group(store, mode="r")
    paper = footprint.arrays(N_OBS, N_VARS, VALUES_PER_ROW)
    absent = {"obs/donor", "obs/batch", "obs/n_counts", "obs/pct_mito"}
    assert absent < paper.keys()
    for path, expected in paper.items():
        if path in absent:
            continue
        node = group[written(path)]
        assert isinstance(node, zarr.Array)
        n_objects = sum(file.is_file() for file in (store / written(path) / "c").rglob("*"))
        n_chunks = np.prod([-(-n // chunk) for n, chunk in zip(node.shape, node.chunks, strict=True)])
        assert (node.size, n_chunks, n_objects) == (expected.n_values, expected.n_chunks, expected.n_objects), path


def test_the_metadata_does_not_grow_with_the_cells(store: Path) -> None:
    entries = json.loads((store / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    notes = {path: len(json.dumps(entry["attributes"])) for path, entry in entries.items()}
    # 512 noted sizes or 256 zones: at most 4 bytes each, packed, and as base64 a third longer
    assert max(notes.values()) < 512 * 4 * 4 / 3 + 64 + 2_048
    for n_obs in (10**6, 10**9):
        held = footprint.arrays(n_obs)
        assert all(a.n_chunks <= 256 for p, a in held.items() if p.startswith("obs/"))


def test_sizes_in_bytes_are_those_of_the_benchmarks_store() -> None:
    described = footprint.described(100_000)
    assert described["n_bytes"] == pytest.approx(284e6, rel=0.01)  # as in docs/benchmarks.md
    assert described["index_bytes"] == pytest.approx(195_463, rel=0.01)


def test_the_page_holds_what_the_formulas_give() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    for row in footprint.paper_rows():
        assert row in page
