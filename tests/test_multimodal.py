"""Queries across the modalities of a MuData store, against mudata in memory."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import polars as pl
import pytest

import lobster_zarr as lz
from lobster_zarr import errors
from mudatas import assert_mudata_equal, citeseq, pulled, selected

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=["mudata"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, mudata.MuData]:
    """A store of three modalities, and what mudata reads of it."""
    source = citeseq()
    path = tmp_path_factory.mktemp("mudata") / "m.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.write_zarr(path)
        return lz.open(path), mudata.read_zarr(path)


def rows_of(mdata: mudata.MuData, condition: str) -> np.ndarray:
    """Evaluate a condition as pandas does, on the table of all columns; missing is false."""
    table = pulled(mdata)
    return table.eval(condition).fillna(value=False).to_numpy(bool)


ROWS: dict[str, tuple[Any, str]] = {
    "global": ("batch == 'x'", "batch == 'x'"),
    "modality": ("rna:cell_type == 'T cell'", "`rna:cell_type` == 'T cell'"),
    "backticks": ("`rna:cell_type` == 'T cell'", "`rna:cell_type` == 'T cell'"),
    "two": ("rna:cell_type == 'T cell' and prot:n_counts > 500", "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500"),
    "all three": (
        "batch != 'z' and prot:is_doublet and 100 < atac:n_counts <= 900",
        "batch != 'z' and `prot:is_doublet` and 100 < `atac:n_counts` <= 900",
    ),
    "sql": ("rna.cell_type = 'T cell' AND prot.n_counts > 500", "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500"),
    "sql colon": ("rna:cell_type IN ('NK') AND batch = 'y'", "`rna:cell_type` == 'NK' and batch == 'y'"),
    "mapping": ({"rna:cell_type": ["NK", "B cell"], "batch": "x"}, "`rna:cell_type` != 'T cell' and batch == 'x' and `rna:n_counts` >= 0"),
    "polars": (pl.col("atac:score") > 0.5, "`atac:score` > 0.5"),
    "nothing": ("rna:n_counts < 0", "`rna:n_counts` < 0"),
}


@pytest.mark.parametrize("name", ROWS)
def test_predicates_on_any_modality(opened: tuple[Any, mudata.MuData], name: str) -> None:
    data, memory = opened
    asked, condition = ROWS[name]
    mask = rows_of(memory, condition)
    selection = data.query(asked)
    assert selection.count() == mask.sum()
    assert_mudata_equal(selection.to_memory(), selected(memory, mask))


@pytest.mark.parametrize("join", ["outer", "inner"])
@pytest.mark.parametrize("modalities", [["prot"], ["rna", "atac"], ["atac", "rna", "prot"]])
@pytest.mark.parametrize("obs", [None, "rna:cell_type == 'T cell'"])
def test_modalities_and_joins(opened: tuple[Any, mudata.MuData], obs: Any, modalities: list[str], join: Any) -> None:
    data, memory = opened
    mask = None if obs is None else rows_of(memory, "`rna:cell_type` == 'T cell'")
    selection = data.query(obs, modalities=modalities, join=join)
    expected = selected(memory, mask, modalities=modalities, join=join)
    assert_mudata_equal(selection.to_memory(), expected)
    assert data.query(obs, modalities=modalities, join=join).count() == expected.n_obs
    assert list(selection.to_pandas().index) == list(expected.obs_names)
