"""A selection of cells and genes: nothing is read until its rows, table or matrices are asked for.

Resolves what a user asks to positions in storage order, reads the elements of
exactly those, and assembles what slicing the source in memory would give.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr import predicate as predicates
from lobster_zarr.dense import Runs, read_array
from lobster_zarr.fetch import together
from lobster_zarr.layout import SOURCE_ORDER
from lobster_zarr.selection import positions, runs
from lobster_zarr.store import run

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from lobster_zarr.element import StoreReader
    from lobster_zarr.table import TableReader

Order = Literal["source", "storage"]
Names = Sequence[str] | None


@dataclass(frozen=True)
class Projection:
    """Which elements a selection brings, None meaning all.

    Parameters
    ----------
    X, uns, raw
        Whether to bring them.
    layers, obsm, varm, obsp, varp
        Names of members.
    obs_columns, var_columns
        Names of columns.
    """

    X: bool = True
    layers: Names = None
    obsm: Names = None
    varm: Names = None
    obsp: Names = None
    varp: Names = None
    uns: bool = True
    raw: bool = True
    obs_columns: Names = None
    var_columns: Names = None


@dataclass(frozen=True, eq=False)
class Axis:
    """Positions wanted along one axis.

    Parameters
    ----------
    runs
        In storage order; None for the whole axis.
    take : ndarray of int64 or None
        Reorders what was read in storage order to the order of the result.
    """

    runs: Runs | None
    take: np.ndarray | None

    @classmethod
    def of(cls, stored: np.ndarray) -> Axis:
        """Bring positions, in any order and repeated, to runs and a reordering."""
        if np.all(np.diff(stored) > 0):
            return cls(Runs(*runs(stored)), None)
        unique, take = np.unique(stored, return_inverse=True)
        return cls(Runs(*runs(unique)), take)

    def count(self, length: int) -> int:
        """The number of positions in the result."""
        if self.take is not None:
            return len(self.take)
        return length if self.runs is None else self.runs.total

    def arrange(self, value: Any) -> Any:
        """Bring rows that were read in storage order to the order of the result."""
        if self.take is None:
            return value
        return value.iloc[self.take] if isinstance(value, pd.DataFrame) else value[self.take]

    def slice_rows(self, value: Any) -> Any:
        """Take the positions from a value that was read whole."""
        if self.runs is None:
            return self.arrange(value)
        at = self.runs.positions() if self.take is None else self.runs.positions()[self.take]
        return value.iloc[at] if isinstance(value, pd.DataFrame) else value[at]


@dataclass(eq=False)
class Selection:
    """Cells and genes of a store, not yet read. Made by :meth:`Dataset.query`."""

    reader: StoreReader
    uri: str
    obs: Any
    var: Any
    order: Order
    projection: Projection

    def __repr__(self) -> str:
        return f"Selection(obs={self.obs!r}, var={self.var!r}, order={self.order!r}) of {self.uri}"

    def count(self) -> int:
        """Count the cells. Reads the columns that the predicate names, nothing else."""
        axis = run(self._resolve(self.reader.obs, self.obs, ordered=False))
        return axis.count(self.reader.obs.n_rows)

    def to_pandas(self) -> pd.DataFrame:
        """Read the obs rows alone. Categories stay as they are stored."""
        return run(self._obs())

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the obs rows to a Parquet file, names in a column ``index`` or as the index is named."""
        from pathlib import Path

        frame = self.to_pandas()
        frame.index.name = frame.index.name or "index"
        frame.reset_index().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self) -> ad.AnnData:
        """Read the selection: what slicing the source in memory gives.

        Returns
        -------
        AnnData
            Values, dtypes, categories, order, names and uns as
            ``source[obs, var].copy()``; a companion or sort order does not show.
        """
        return run(self._read())

    async def _obs(self) -> pd.DataFrame:
        rows = await self._resolve(self.reader.obs, self.obs, ordered=True)
        frame = await self.reader.obs.frame(self.projection.obs_columns, rows.runs)
        return rows.arrange(frame)

    async def _resolve(self, table: TableReader, selector: Any, *, ordered: bool) -> Axis:
        """Bring a selector to positions in storage order."""
        sorted_rows = table.path == "obs" and self.reader.tree.is_array(f"obs/{SOURCE_ORDER}")
        to_source = sorted_rows and self.order == "source"
        if selector is None:
            if not (ordered and to_source):
                return Axis(None, None)
            stored_at = await self._source_order(None)
            return Axis(None, np.argsort(stored_at))
        if isinstance(selector, str | Mapping | pl.Expr) and not _is_name(selector, table):
            stored = np.flatnonzero(await self._mask(table, selector))
            axis = Axis(Runs(*runs(stored)), None)
            if ordered and to_source and len(stored):
                # Rows of one group keep their source order: mostly there is nothing to reorder.
                source_rows = await self._source_order(axis.runs)
                if np.any(np.diff(source_rows) < 0):
                    axis = Axis(axis.runs, np.argsort(source_rows))
            return axis
        names = await table.index() if _names_needed(selector) else None
        if sorted_rows and names is not None:
            names = names[np.argsort(await self._source_order(None))]
        source = positions(selector, names, table.n_rows, axis=table.path)
        source = np.arange(table.n_rows)[source] if isinstance(source, slice) else source
        if not sorted_rows:
            return Axis.of(source if self.order == "source" else np.sort(source))
        place = np.argsort(await self._source_order(None))
        stored = place[source]
        return Axis.of(stored if self.order == "source" else np.sort(stored))

    async def _source_order(self, rows: Runs | None) -> np.ndarray:
        node = self.reader.tree.array(f"obs/{SOURCE_ORDER}")
        return await read_array(self.reader.fetcher, node, rows)

    async def _mask(self, table: TableReader, selector: Any) -> np.ndarray:
        kinds = {name: table.kind(name) for name in table.columns}
        index = "_index" if "index" in kinds else "index"
        parsed = predicates.parse(selector, kinds, index=index, axis=table.path)
        values = await together(*(table.column(c if c in kinds else table.index_column) for c in parsed.columns))
        series = [predicates.to_polars(c, v) for c, v in zip(parsed.columns, values, strict=True)]
        frame = pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(table.n_rows, bool)})
        return predicates.evaluate(parsed, frame)

    async def _read(self) -> ad.AnnData:
        data, want = self.reader, self.projection
        rows, columns = await together(
            self._resolve(data.obs, self.obs, ordered=True), self._resolve(data.var, self.var, ordered=True)
        )
        jobs: dict[str, Any] = {
            "obs": data.obs.frame(want.obs_columns, rows.runs),
            "var": data.var.frame(want.var_columns, columns.runs),
        }
        if want.X and "X" in data.tree and data.tree.encoding("X") != "null":
            jobs["X"] = self._matrix("X", rows, columns)
        for parent, axes in (("layers", (rows, columns)), ("obsp", (rows, rows)), ("obsm", (rows, None))):
            for name in _members(data, want, parent):
                jobs[f"{parent}/{name}"] = self._aligned(f"{parent}/{name}", *axes)
        for parent in ("varm", "varp"):
            for name in _members(data, want, parent):
                jobs[f"{parent}/{name}"] = self._whole_sliced(f"{parent}/{name}", columns, pair=parent == "varp")
        if want.uns and "uns" in data.tree:
            jobs["uns"] = data.whole("uns")
        if want.raw and "raw" in data.tree and data.tree.encoding("raw") != "null":
            jobs["raw"] = self._raw(rows)
        results = dict(zip(jobs, await together(*jobs.values()), strict=True))
        results["obs"], results["var"] = rows.arrange(results["obs"]), columns.arrange(results["var"])
        return await asyncio.to_thread(self._assemble, results)

    async def _matrix(self, path: str, rows: Axis, columns: Axis | None) -> Any:
        value = await self.reader.matrix(path, rows.runs, columns.runs if columns else None)
        value = rows.arrange(value)
        return value if columns is None or columns.take is None else value[:, columns.take]

    async def _aligned(self, path: str, rows: Axis, columns: Axis | None) -> Any:
        if self.reader.is_matrix(path):
            return await self._matrix(path, rows, columns)
        return rows.slice_rows(await self.reader.whole(path))

    async def _whole_sliced(self, path: str, axis: Axis, *, pair: bool) -> Any:
        value = axis.slice_rows(await self.reader.whole(path))
        return axis.slice_rows(value.T).T if pair and (axis.runs or axis.take is not None) else value

    async def _raw(self, rows: Axis) -> dict[str, Any]:
        data = self.reader
        jobs: dict[str, Any] = {"var": data.whole("raw/var")}
        if "raw/X" in data.tree:
            jobs["X"] = self._matrix("raw/X", rows, None)
        for name in data.tree.children("raw/varm"):
            jobs[f"varm/{name}"] = data.whole(f"raw/varm/{name}")
        got = dict(zip(jobs, await together(*jobs.values()), strict=True))
        varm = {k.removeprefix("varm/"): v for k, v in got.items() if k.startswith("varm/")}
        return {"X": got.get("X"), "var": got["var"], "varm": varm}

    def _assemble(self, results: dict[str, Any]) -> ad.AnnData:
        obs, var, uns = results.pop("obs"), results.pop("var"), results.pop("uns", None) or {}
        parts: dict[str, Any] = {p: {} for p in ("layers", "obsm", "varm", "obsp", "varp")}
        for path, value in results.items():
            parent, _, name = path.partition("/")
            if name:
                parts[parent][name] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's notes on names that are not unique
            if self.obs is not None or self.var is not None:
                # AnnData drops unused categories, and their colors, when it is sliced.
                frames: dict[str, Any] = {
                    p: {n: v for n, v in parts[p].items() if isinstance(v, pd.DataFrame)} for p in ("obsm", "varm")
                }
                shell = ad.AnnData(obs=obs, var=var, uns=uns, **frames)[:, :].copy()
                obs, var, uns = shell.obs, shell.var, shell.uns
                for parent in frames:
                    parts[parent] |= dict(getattr(shell, parent))
            return ad.AnnData(results.get("X"), obs=obs, var=var, uns=uns, raw=results.get("raw"), **parts)


def _members(data: StoreReader, want: Projection, parent: str) -> Sequence[str]:
    chosen = getattr(want, parent)
    members: Sequence[str] = data.tree.children(parent) if chosen is None else chosen
    return members


def _names_needed(selector: Any) -> bool:
    if isinstance(selector, str):
        return True
    if isinstance(selector, slice | int | np.integer):
        return isinstance(selector, slice) and isinstance(selector.start or selector.stop, str)
    first = next(iter(selector), None) if hasattr(selector, "__iter__") else None
    return isinstance(first, str)


def _is_name(selector: Any, table: TableReader) -> bool:
    """Whether a text is one name, such as a gene's, rather than a predicate."""
    return (
        isinstance(selector, str) and table.path == "var" and selector.isidentifier() and selector not in table.columns
    )
