"""Makes an AnnData of the elements that were read, or that will be.

Must not know stores or plans.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import pandas as pd


def assemble(obs: Any, var: Any, results: dict[str, Any], *, sliced: bool) -> ad.AnnData:
    """Make an AnnData of elements by path.

    Parameters
    ----------
    obs, var
        DataFrames, or lazy ones.
    results
        Element by path, such as ``layers/counts``.
    sliced
        Whether it is a part of the source: AnnData drops unused categories, and their colors, of a part.

    Raises
    ------
    ValueError
        The lengths of the elements do not fit each other.
    """
    uns = results.pop("uns", None) or {}
    parts: dict[str, Any] = {p: {} for p in ("layers", "obsm", "varm", "obsp", "varp", "raw")}
    for path, value in results.items():
        parent, _, name = path.partition("/")
        if name:
            parts[parent][name] = value
    raw = parts.pop("raw")
    varm = {name.removeprefix("varm/"): raw.pop(name) for name in list(raw) if name.startswith("varm/")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's notes on names that are not unique
        frames: dict[str, Any] = {
            p: {n: v for n, v in parts[p].items() if isinstance(v, pd.DataFrame)} for p in ("obsm", "varm")
        }
        tables = [obs, var, *frames["obsm"].values(), *frames["varm"].values()]
        if sliced and any(map(_has_categories, tables)):
            shell = ad.AnnData(obs=obs, var=var, uns=uns, **frames)[:, :].copy()
            obs, var, uns = shell.obs, shell.var, shell.uns
            for parent in frames:
                parts[parent] |= dict(getattr(shell, parent))
        whole_raw = {"X": None, **raw, "varm": varm} if raw else None
        return ad.AnnData(results.get("X"), obs=obs, var=var, uns=uns, raw=whole_raw, **parts)


def release(adata: ad.AnnData) -> None:
    """Empty an AnnData of which views were taken, and which is not used any more.

    A view is part of a reference cycle and holds what it was taken of: without this its
    matrices would stay in memory until the garbage collector happens to run.
    """
    block: Any = adata
    del block.X, block.raw
    for members in (block.layers, block.obsm, block.obsp):
        for name in [name for name in members if name is not None]:  # which is X
            del members[name]


def _has_categories(frame: pd.DataFrame) -> bool:
    return any(isinstance(dtype, pd.CategoricalDtype) for dtype in frame.dtypes)
