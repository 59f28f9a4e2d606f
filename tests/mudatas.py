"""MuData objects for tests, and what mudata makes of a selection of one: the oracle of every multimodal query."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
from oracle import assert_equal
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

N_CELLS = 300


def modality(
    rng: np.random.Generator, cells: np.ndarray, n_vars: int, prefix: str, *, dense: bool = False, plain: bool = False
) -> ad.AnnData:
    """Make an AnnData with every kind of column that a predicate may name."""
    n = len(cells)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["T cell", "B cell", "NK"], n), ["B cell", "NK", "T cell", "none"]),
            "n_counts": rng.integers(0, 1_000, n),
            "score": np.where(rng.random(n) > 0.1, rng.random(n), np.nan),
            "is_doublet": rng.random(n) > 0.8,
        },
        index=cells,
    )
    var = pd.DataFrame({"highly_variable": rng.random(n_vars) > 0.5}, index=[f"{prefix}{i}" for i in range(n_vars)])
    density = 0.05 if plain else 0.3
    values: Any = np.round(sparse.random(n, n_vars, density, "csr", dtype=np.float32, rng=rng) * 10)
    made = ad.AnnData(values.toarray() if dense else values, obs=obs, var=var)
    if plain:
        del made.obs["score"], made.obs["is_doublet"]
        return made
    made.layers["counts"] = sparse.csr_matrix(values).astype(np.int32)
    made.obsm["X_pca"] = rng.random((n, 3))
    made.uns["cell_type_colors"] = np.array(["#000000", "#ff0000", "#00ff00", "#0000ff"], object)
    return made


def citeseq(seed: int = 0) -> mudata.MuData:
    """Make three modalities: all cells, some in another order, and some with cells of their own."""
    rng = np.random.default_rng(seed)
    cells = np.asarray([f"cell{i}" for i in range(N_CELLS)], object)
    more = np.asarray([f"only{i}" for i in range(5)], object)
    made = mudata.MuData(
        {
            "rna": modality(rng, cells, 60, "GENE"),
            "prot": modality(rng, rng.permutation(cells)[: N_CELLS // 2], 12, "CD", dense=True),
            "atac": modality(rng, np.concatenate([cells[N_CELLS // 3 :], more]), 40, "chr"),
        }
    )
    made.obs["batch"] = pd.Categorical(rng.choice(["x", "y", "z"], made.n_obs))
    made.obs["rank"] = np.arange(made.n_obs)
    made.obsm["X_joint"] = rng.random((made.n_obs, 4))
    made.obsp["wnn"] = sparse.random(made.n_obs, made.n_obs, 0.05, "csr", rng=rng)
    made.uns["method"] = {"name": "wnn", "k": 20}
    return made


def pulled(mdata: mudata.MuData) -> pd.DataFrame:
    """Return global obs with the columns of the modalities beside it, missing where a modality lacks the cell."""
    tables = [mdata.obs]
    for name, part in mdata.mod.items():
        renamed = part.obs.rename(columns=lambda column, name=name: f"{name}:{column}")
        tables.append(renamed.convert_dtypes().reindex(mdata.obs_names))
    return pd.concat(tables, axis=1)


def rows_of(mdata: mudata.MuData, condition: str) -> np.ndarray:
    """Evaluate a condition as pandas does, on the table of all columns; missing is false."""
    table = pulled(mdata)
    return table.eval(condition).fillna(value=False).to_numpy(bool)


def selected(
    mdata: mudata.MuData,
    obs: Any = None,
    var: Any = None,
    *,
    var_of: Mapping[str, Any] | None = None,
    modalities: Sequence[str] | None = None,
    join: str = "outer",
) -> mudata.MuData:
    """Select with mudata itself, in memory."""
    chosen = list(mdata.mod) if modalities is None else [name for name in mdata.mod if name in modalities]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if join == "inner":
            rows = np.arange(mdata.n_obs)
            rows = rows if obs is None else rows[obs]
            obs = rows[np.all([mdata.obsmap[name][rows] > 0 for name in chosen], axis=0)]
        part = mdata
        if obs is not None or var is not None:
            everything = slice(None)
            part = mdata[everything if obs is None else obs, everything if var is None else var].copy()
        if modalities is None and not var_of:
            return part
        genes = var_of or {}
        data = {name: part.mod[name][:, genes[name]] if name in genes else part.mod[name] for name in chosen}
        groups = {
            group: {name: value for name, value in getattr(part, group).items() if name not in part.mod}
            for group in ("obsm", "varm", "obsp", "varp")
        }
        copies = {name: adata.copy() for name, adata in data.items()}
        return mudata.MuData(copies, obs=part.obs, var=part.var, uns=dict(part.uns), axis=part.axis, **groups)


def assert_mudata_equal(actual: mudata.MuData, expected: mudata.MuData) -> None:
    """Raise AssertionError, naming the elements that differ, unless the two are equal, the order of modalities too."""
    assert list(actual.mod) == list(expected.mod)
    assert_equal(_parts(actual), _parts(expected))


def _parts(mdata: mudata.MuData) -> dict[str, Any]:
    groups = ("obsm", "varm", "obsp", "varp", "obsmap", "varmap", "mod")
    parts = {group: dict(getattr(mdata, group)) for group in groups}
    return {"obs": mdata.obs, "var": mdata.var, "uns": dict(mdata.uns), "axis": int(mdata.axis), **parts}
