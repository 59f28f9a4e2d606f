"""Reads obs and var: one column at a time, and only the rows that are wanted.

One AnnData element of ring 5: AnnData's ``dataframe`` encoding
(https://anndata.readthedocs.io/en/stable/fileformat-prose.html#dataframes).
Must not know predicates or matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr.dense import read_array
from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.grid import Runs
    from lobster_zarr.node import Tree

type Column = Any
"""A numpy array, a Categorical or another pandas extension array."""

KINDS = {"string-array": "string", "nullable-string-array": "string", "nullable-boolean": "boolean"}


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
    """

    def __init__(self, fetcher: Fetcher, tree: Tree, path: str) -> None:
        self.fetcher, self.tree, self.path = fetcher, tree, path
        attributes = tree.attributes(path) if path in tree else {}
        if "column-order" not in attributes or "_index" not in attributes:
            msg = (
                f"{path!r} is not an AnnData dataframe (encoding {tree.encoding(path)!r}); expected a group with "
                "'column-order' and '_index'. Re-save the store with a current anndata."
            )
            raise FormatError(msg)
        self.columns: tuple[str, ...] = tuple(attributes["column-order"])
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
        msg = f"column {path!r} is listed but not stored; the store is damaged."
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

    async def index(self, rows: Runs | None = None) -> pd.Index:
        """Read the names, obs_names or var_names."""
        return self._as_index(await self.column(self.index_column, rows))

    def _as_index(self, values: Column) -> pd.Index:
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
                return pd.Categorical.from_codes(codes, pd.Index(categories), ordered=ordered)
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
        known: Mapping[str, Column] | None = None,
    ) -> pd.DataFrame:
        """Read columns and names as a DataFrame, in storage order.

        Parameters
        ----------
        columns
            In the order of the result; None for all.
        rows
            Runs of rows; None for all.
        known
            Columns that were read whole already.
        """
        names = list(self.columns if columns is None else columns)
        stored, known = self.frame_columns(columns), known or {}
        missing = [n for n in stored if n not in known]
        read = dict(zip(missing, await together(*(self.column(n, rows) for n in missing)), strict=True))
        read |= {n: known[n] if rows is None else known[n][rows.positions()] for n in stored if n in known}
        index = self._as_index(read[self.index_column])
        lengths = {n: len(read[n]) for n in names if len(read[n]) != len(index)}
        if lengths:
            msg = f"{self.path} has {len(index):,} names but columns of other lengths: {lengths}; the store is damaged."
            raise FormatError(msg)
        return pd.DataFrame({n: read[n] for n in names}, index=index, columns=names or None)


def _nullable(encoding: str, values: np.ndarray, mask: np.ndarray, na_value: str) -> Any:
    if encoding == "nullable-integer":
        return pd.arrays.IntegerArray(values, mask=mask)
    if encoding == "nullable-boolean":
        return pd.arrays.BooleanArray(values, mask=mask)
    strings = pd.array(values.astype(object), dtype=pd.StringDtype(na_value=np.nan if na_value == "NaN" else pd.NA))
    strings[mask] = pd.NA
    return strings
