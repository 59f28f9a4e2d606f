"""Reads obs and var: one column at a time, and only the rows that are wanted.

One AnnData element of ring 5: AnnData's ``dataframe`` encoding
(https://anndata.readthedocs.io/en/stable/fileformat-prose.html#dataframes).
Must not know predicates or matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr.dense import read_array
from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs, cdiv
from lobster_zarr.layout import VALUES_OF
from lobster_zarr.plan import ArrayRead
from lobster_zarr.predicate import to_polars
from lobster_zarr.selection import runs
from lobster_zarr.zones import PRESENT, Zones, candidates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import ArrayNode, Tree

type Column = Any
"""A numpy array, a Categorical or another pandas extension array."""

KINDS = {"string-array": "string", "nullable-string-array": "string", "nullable-boolean": "boolean"}


@dataclass(eq=False)
class Known:
    """Columns that a predicate has read already.

    Parameters
    ----------
    rows
        Of which rows; None for all.
    columns
        By stored name.
    """

    rows: Runs | None = None
    columns: dict[str, Column] = field(default_factory=dict)

    def take(self, name: str, rows: Runs | None) -> Column:
        """Return some rows of a column; they are among those that were read."""
        values = self.columns[name]
        if rows is None:
            return values
        at = rows.positions()
        if self.rows is not None:
            run = self.rows.stops.searchsorted(at, side="right")
            at = at - self.rows.stops[run] + self.rows.ends[run]
        return values[at]


class TableReader:
    """Reads one dataframe group of a store.

    Parameters
    ----------
    fetcher
        Of the store.
    tree
        The store's nodes.
    path
        Of the group, ``obs`` or ``var``.
    where
        The store, for messages.
    """

    def __init__(self, fetcher: Fetcher, tree: Tree, path: str, where: str = "the store") -> None:
        self.fetcher, self.tree, self.path, self.where = fetcher, tree, path, where
        attributes = tree.attributes(path) if path in tree else {}
        if "column-order" not in attributes or "_index" not in attributes:
            msg = (
                f"{path!r} of {where} is not an AnnData dataframe (encoding {tree.encoding(path)!r}); expected a group "
                "with 'column-order' and '_index'. Re-save it with a current anndata."
            )
            raise FormatError(msg)
        order = attributes["column-order"]
        if not isinstance(order, list | tuple) or not all(isinstance(name, str) for name in order):
            msg = f"'column-order' of {path!r} is {order!r}; expected a list of names. The store is damaged."
            raise FormatError(msg)
        self.columns: tuple[str, ...] = tuple(order)
        self.index_column = str(attributes["_index"])

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return self.column_length(self.index_column)

    def column_length(self, name: str) -> int:
        """Rows of one column, from the metadata alone."""
        path = f"{self.path}/{name}"
        for member in ("", "/codes", "/values"):
            if self.tree.is_array(path + member):
                return self.tree.array(path + member).shape[0]
        msg = f"column {path!r} of {self.where} is listed but not stored; it is damaged."
        raise FormatError(msg)

    def kind(self, name: str) -> str:
        """Return what a predicate may do with a column: see :func:`lobster_zarr.predicate.parse`."""
        path = f"{self.path}/{name}"
        encoding = self.tree.encoding(path)
        if encoding == "categorical":
            kind = self._array_kind(f"{path}/categories")
            if kind == "string":
                return "ordered category" if self.tree.attributes(path).get("ordered") else "category"
            return kind
        if encoding in KINDS:
            return KINDS[encoding]
        return self._array_kind(path) if self.tree.is_array(path) else "number"

    def _array_kind(self, path: str) -> str:
        dtype_kind = self.tree.array(path).dtype.kind
        return {"b": "boolean", "T": "string", "U": "string", "O": "string"}.get(dtype_kind, "number")

    def polars_dtype(self, name: str) -> pl.DataType:
        """Return the Polars dtype of a column, from the metadata alone; text categories are text."""
        path = f"{self.path}/{name}"
        for member in ("/categories", "/values", ""):
            if self.tree.is_array(path + member):
                dtype = self.tree.array(path + member).dtype
                return pl.String() if dtype.kind in "OTU" else pl.Series(np.empty(0, dtype)).dtype
        msg = f"column {path!r} is listed but not stored; the store is damaged."
        raise FormatError(msg)

    def candidates(self, expression: pl.Expr, stored: Mapping[str, str], *, as_text: bool = False) -> Runs | None:
        """Return the rows among which are all that satisfy a condition, by the zones of its columns; no request.

        Parameters
        ----------
        expression
            The condition.
        stored
            Name in the condition to column of the table.
        as_text
            Whether text categories are plain text in the condition, also ordered ones.

        Returns
        -------
        Runs or None
            None for all rows.
        """
        nodes = {name: self._node(column) for name, column in stored.items()}
        rows = min((node.grid.chunk[0] for node in nodes.values() if node.note.entries), default=self.n_rows)
        known = {
            name: self._zones(stored[name], node, as_text=as_text)
            for name, node in nodes.items()
            if node.note.entries and node.grid.chunk[0] == rows
        }
        zones = {name: found for name, found in known.items() if found is not None}
        if not zones:
            return None
        chunks = np.flatnonzero(candidates(expression, zones, cdiv(self.n_rows, rows)))
        starts, stops = runs(chunks)
        whole = len(chunks) * rows >= self.n_rows
        return None if whole else Runs(starts * rows, np.minimum(stops * rows, self.n_rows))

    def _node(self, name: str) -> ArrayNode:
        """Return the array of a column that has its rows, and its zones in its note."""
        path = f"{self.path}/{name}"
        return self.tree.array(f"{path}{VALUES_OF.get(self.tree.encoding(path), '')}")

    def _zones(self, name: str, node: ArrayNode, *, as_text: bool) -> Zones | None:
        """Return what is noted of a column's chunks, where its categories need no request either."""
        if self.tree.encoding(f"{self.path}/{name}") != "categorical":
            kind = pl.Boolean() if self.kind(name) == "boolean" else self.polars_dtype(name)
            return Zones.of(
                node.note, node.grid.n_chunks, pl.Series([False, True, None] if kind == pl.Boolean else [], dtype=kind)
            )
        array = self.tree.array(f"{self.path}/{name}/categories")
        known = self.fetcher.objects.get(array.key(0)) if array.shape[0] else b""
        if PRESENT not in node.note.entries or known is None or array.sharding is not None:
            return None
        categories = pd.Index(array.decode(memoryview(known), 0)[: array.shape[0]] if known else [])
        ordered = bool(self.tree.attributes(f"{self.path}/{name}").get("ordered")) and not as_text
        domain = pd.Categorical.from_codes([*range(len(categories)), -1], categories, ordered=ordered)
        return Zones.of(node.note, node.grid.n_chunks, to_polars(name, domain))

    async def index(self, rows: Runs | None = None) -> pd.Index:
        """Read the names, obs_names or var_names."""
        return self.as_index(await self.column(self.index_column, rows))

    def as_index(self, values: Column) -> pd.Index:
        """Make names of the values of the index column."""
        name = None if self.index_column == "_index" else self.index_column
        if not len(values) and self.n_rows and getattr(values.dtype, "kind", "") in "OTU":
            # No row is left from which pandas would infer what the whole index is.
            return pd.Index(values, name=name, dtype=pd.Index([""]).dtype)
        return pd.Index(values, name=name)

    async def column(self, name: str, rows: Runs | None = None) -> Column:
        """Read one column, all rows or some.

        Raises
        ------
        NotFoundError
            There is no such column.
        UnsupportedError
            The column has an encoding that this version does not know.
        """
        path = f"{self.path}/{name}"
        if path not in self.tree:
            known = [*self.columns]
            msg = f"{self.path} has no column {name!r}.{did_you_mean(name, known)} Columns: {known}"
            raise NotFoundError(msg)

        async def part(member: str, which: Runs | None) -> np.ndarray:
            return await read_array(self.fetcher, self.tree.array(f"{path}/{member}"), which)

        match self.tree.encoding(path):
            case "categorical":
                codes, categories = await together(part("codes", rows), part("categories", None))
                ordered = bool(self.tree.attributes(path).get("ordered"))
                if len(codes) and not (codes.min() >= -1 and codes.max() < len(categories)):
                    msg = f"column {path!r} has codes outside [-1, {len(categories)}); the store is damaged."
                    raise FormatError(msg)
                try:
                    return pd.Categorical.from_codes(codes, pd.Index(categories), ordered=ordered)
                except ValueError as error:  # of categories that are not unique, or missing
                    msg = f"column {path!r} of {self.where} is no categorical: {error}. It is damaged."
                    raise FormatError(msg) from error
            case "nullable-integer" | "nullable-boolean" | "nullable-string-array" as encoding:
                values, mask = await together(part("values", rows), part("mask", rows))
                na_value = self.tree.attributes(path).get("na-value", "NA")
                return _nullable(encoding, values, mask, na_value)
            case "array" | "string-array" | "" if self.tree.is_array(path):
                return await read_array(self.fetcher, self.tree.array(path), rows)
            case encoding:
                msg = f"column {path!r} has the encoding {encoding!r}, which this version cannot read."
                raise UnsupportedError(msg)

    def reads(self, columns: Iterable[str], rows: Runs | None) -> list[ArrayRead]:
        """Return what reading columns reads: the rows of each, categories whole."""
        paths = [p for name in columns for p in self.tree.arrays_below(f"{self.path}/{name}")]
        whole = [p.endswith("/categories") for p in paths]
        return [ArrayRead(self.tree.array(p), None if w else rows) for p, w in zip(paths, whole, strict=True)]

    def frame_columns(self, columns: Sequence[str] | None) -> list[str]:
        """Return the stored columns that a frame is made of, the index first."""
        return list(dict.fromkeys((self.index_column, *(self.columns if columns is None else columns))))

    async def frame(
        self,
        columns: Sequence[str] | None = None,
        rows: Runs | None = None,
        known: Known | None = None,
    ) -> pd.DataFrame:
        """Read columns and names as a DataFrame, in storage order.

        Parameters
        ----------
        columns
            In the order of the result; None for all.
        rows
            Runs of rows; None for all.
        known
            Columns that were read already.
        """
        names = list(self.columns if columns is None else columns)
        stored, known = self.frame_columns(columns), known or Known()
        missing = [n for n in stored if n not in known.columns]
        read = dict(zip(missing, await together(*(self.column(n, rows) for n in missing)), strict=True))
        read |= {n: known.take(n, rows) for n in stored if n in known.columns}
        index = self.as_index(read[self.index_column])
        lengths = {n: len(read[n]) for n in names if len(read[n]) != len(index)}
        if lengths:
            msg = f"{self.path} has {len(index):,} names but columns of other lengths: {lengths}; the store is damaged."
            raise FormatError(msg)
        return pd.DataFrame({n: read[n] for n in names}, index=index, columns=names or None)


def named_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the names of the rows a column, the first: ``index``, or as the index is named."""
    if frame.index.name in frame.columns:  # which holds the same values
        return frame.reset_index(drop=True)
    return frame.reset_index(names=frame.index.name or ("_index" if "index" in frame.columns else "index"))


def _nullable(encoding: str, values: np.ndarray, mask: np.ndarray, na_value: str) -> Any:
    if encoding == "nullable-integer":
        return pd.arrays.IntegerArray(values, mask=mask)
    if encoding == "nullable-boolean":
        return pd.arrays.BooleanArray(values, mask=mask)
    strings = pd.array(values.astype(object), dtype=pd.StringDtype(na_value=np.nan if na_value == "NaN" else pd.NA))
    strings[mask] = pd.NA
    return strings
