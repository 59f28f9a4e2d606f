"""Queries across the modalities of a MuData store, against mudata in memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from mudatas import assert_mudata_equal, citeseq, pulled, selected

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    import anndata as ad


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
    "two": (
        "rna:cell_type == 'T cell' and prot:n_counts > 500",
        "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500",
    ),
    "all three": (
        "batch != 'z' and prot:is_doublet and 100 < atac:n_counts <= 900",
        "batch != 'z' and `prot:is_doublet` and 100 < `atac:n_counts` <= 900",
    ),
    "sql": (
        "rna.cell_type = 'T cell' AND prot.n_counts > 500",
        "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500",
    ),
    "sql colon": ("rna:cell_type IN ('NK') AND batch = 'y'", "`rna:cell_type` == 'NK' and batch == 'y'"),
    "mapping": (
        {"rna:cell_type": ["NK", "B cell"], "batch": "x"},
        "`rna:cell_type` != 'T cell' and batch == 'x' and `rna:n_counts` >= 0",
    ),
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


def values_of(adata: ad.AnnData, layer: str, feature: str) -> np.ndarray:
    matrix = adata[:, feature].X if layer == "X" else adata[:, feature].layers[layer]
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix).ravel()


FEATURES: dict[str, tuple[Any, dict[str, tuple[str, str, str]], str]] = {
    "of X": ("prot:CD3 > 2", {"f": ("prot", "X", "CD3")}, "f > 2"),
    "with columns": (
        "prot:CD3 > 2 and rna:n_counts > 500 and batch != 'x'",
        {"f": ("prot", "X", "CD3")},
        "f > 2 and `rna:n_counts` > 500 and batch != 'x'",
    ),
    "two modalities": (
        "prot:CD3 + prot:CD4 > rna:GENE7",
        {"a": ("prot", "X", "CD3"), "b": ("prot", "X", "CD4"), "c": ("rna", "X", "GENE7")},
        "a + b > c",
    ),
    "of a layer": ("rna:layers['counts'].GENE3 >= 4", {"f": ("rna", "counts", "GENE3")}, "f >= 4"),
    "in brackets": ("rna:X['GENE3'] >= 4", {"f": ("rna", "X", "GENE3")}, "f >= 4"),
    "in backticks": ("atac:`chr5` == 0", {"f": ("atac", "X", "chr5")}, "f == 0"),
    "sql": ("prot.CD3 > 2 AND rna.n_counts > 500", {"f": ("prot", "X", "CD3")}, "f > 2 and `rna:n_counts` > 500"),
    "polars": (pl.col("prot:CD3") > 2, {"f": ("prot", "X", "CD3")}, "f > 2"),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("modalities", [None, ["atac"]])
def test_features_of_any_modality(opened: tuple[Any, mudata.MuData], name: str, modalities: Any) -> None:
    data, memory = opened
    asked, features, condition = FEATURES[name]
    table = pulled(memory)
    for column, (modality, layer, feature) in features.items():
        values = values_of(memory.mod[modality], layer, feature)
        table[column] = pd.Series(values, memory.mod[modality].obs_names).astype("Float64").reindex(table.index)
    mask = table.eval(condition).fillna(value=False).to_numpy(bool)
    assert mask.any()
    selection = data.query(asked, modalities=modalities)
    assert_mudata_equal(selection.to_memory(), selected(memory, mask, modalities=modalities))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cell_type == 'T cell'", "write rna:cell_type or prot:cell_type"),
        ("rna:cell_typ == 'T cell'", "'cell_type'"),
        ("prot:CD33 > 1", "prot:obs has no column 'CD33' and X no feature of that name"),
        ("gex:n_counts > 1", "rna:…"),
        ("rna:layers['count'].GENE3 > 1", "'counts'"),
        ("nothing > 1", "rna:…"),
    ],
)
def test_what_is_named_and_not_there(opened: tuple[Any, mudata.MuData], asked: str, said: str) -> None:
    with pytest.raises(errors.NotFoundError, match="has no") as caught:
        opened[0].query(asked).count()
    assert said in str(caught.value)


GENES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "global names": (["GENE7", "CD3", "chr1", "GENE2"], ["GENE7", "CD3", "chr1", "GENE2"], {}),
    "global predicate": ("rna:highly_variable", "`rna:highly_variable`", {}),
    "by modality": ({"rna": ["GENE5", "GENE1"], "prot": "all"}, None, {"rna": ["GENE5", "GENE1"]}),
    "predicate of a modality": ({"rna": "highly_variable", "atac": []}, None, {"rna": "highly_variable", "atac": []}),
    "slice": ({"atac": slice(3, 9)}, None, {"atac": slice(3, 9)}),
}


@pytest.mark.parametrize("name", GENES)
@pytest.mark.parametrize("obs", [None, "rna:cell_type == 'T cell'"])
@pytest.mark.parametrize("modalities", [None, ["rna", "prot"]])
def test_genes(opened: tuple[Any, mudata.MuData], name: str, obs: Any, modalities: Any) -> None:
    data, memory = opened
    asked, var, var_of = GENES[name]
    if isinstance(var, str):
        flag = memory.mod["rna"].var["highly_variable"].reindex(memory.var_names)
        var = (flag == True).to_numpy(bool)  # noqa: E712 - missing is false
    own = {m: memory.mod[m].var[s].to_numpy() if isinstance(s, str) else s for m, s in var_of.items()}
    mask = None if obs is None else rows_of(memory, "`rna:cell_type` == 'T cell'")
    expected = selected(memory, mask, var, var_of=own, modalities=modalities)
    assert_mudata_equal(data.query(obs, asked, modalities=modalities).to_memory(), expected)
