"""obs and var whose columns are read when they are used.

Must not know matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import xarray as xr
from anndata.experimental.backed import Dataset2D
from xarray.backends.common import BackendArray
from xarray.core.extension_array import PandasExtensionArray
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)

from lobster_zarr.store import run

if TYPE_CHECKING:
    from lobster_zarr.element import StoreReader
    from lobster_zarr.projection import Axis, Names
    from lobster_zarr.reading import Reading
    from lobster_zarr.table import Column, TableReader


class LazyColumn(BackendArray):
    """A column of obs or var that is read when it is used: O(chunks of the rows that are left).

    What was read last is kept: xarray asks several times for the same.

    Parameters
    ----------
    reader
        Of the store.
    table
        ``"obs"`` or ``"var"``.
    name
        Of the column.
    rows
        Settled rows of the selection.
    is_sliced
        Whether they are a part of the source: AnnData drops unused categories of a part.
    empty
        No row of the column.
    """

    def __init__(
        self,
        reader: StoreReader,
        table: Literal["obs", "var"],
        name: str,
        rows: Axis,
        empty: Column,
        *,
        is_sliced: bool,
    ) -> None:
        self.reader, self.table, self.name, self.rows, self.is_sliced = reader, table, name, rows, is_sliced
        self.shape = (rows.count(self._table.n_rows),)
        self._last: tuple[Axis, Column] | None = None
        self.is_nullable_string = isinstance(empty.dtype, pd.StringDtype)
        # xarray does not take pandas' text; anndata makes `string` of this.
        self.dtype = np.dtypes.StringDType(na_object=pd.NA) if self.is_nullable_string else empty.dtype

    @property
    def _table(self) -> TableReader:
        return self.reader.obs if self.table == "obs" else self.reader.var

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER_1VECTOR, self._get)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def _read(self, rows: Axis, which: slice | np.ndarray) -> Column:
        last = self._last
        if last is not None and last[0] is self.rows:
            return last[1][which]
        if last is not None and last[0].equals(rows):
            return last[1]
        values = rows.arrange(run(self.reader.identity.guarded(self._table.column(self.name, rows.runs))))
        self._last = rows, values
        return values

    def _get(self, key: tuple[Any, ...]) -> Any:
        one = not isinstance(key[0], slice | np.ndarray)
        which = np.asarray([key[0]]) if one else key[0]
        rows = self.rows.pick(which, self._table.n_rows)
        is_sliced = self.is_sliced or rows is not self.rows
        values = self._read(rows, which).copy()  # who asked may write to it
        if isinstance(values, pd.Categorical) and is_sliced and ad.settings.remove_unused_categories:
            values = values.remove_unused_categories()
        if self.is_nullable_string:
            values = np.asarray(values.to_numpy(object, na_value=pd.NA), self.dtype)
        elif not isinstance(values, np.ndarray):
            values = PandasExtensionArray(values)
        return values[0] if one else values


def lazy_table(
    reading: Reading, table: Literal["obs", "var"], found: tuple[pd.Index, pd.DataFrame], rows: Axis, chosen: Names
) -> Dataset2D:
    """Make the lazy obs or var of a selection.

    Parameters
    ----------
    reading
        Of the selection.
    table
        Which.
    found
        The names of its rows, and all columns without a row.
    rows
        Its settled rows.
    chosen
        Names of columns; None for all.
    """
    names, empty = found
    stored = reading.reader.obs if table == "obs" else reading.reader.var
    dim, variables = stored.index_column, {}
    for name in stored.columns if chosen is None else chosen:
        if name == dim:  # AnnData keeps the names a second time where a column has their name
            continue
        values = LazyColumn(reading.reader, table, name, rows, empty[name].array, is_sliced=reading.is_sliced)
        attributes = {"is_nullable_string": values.is_nullable_string}
        variables[name] = xr.Variable([dim], LazilyIndexedArray(values), attributes)
    made = Dataset2D(xr.Dataset(variables, coords={dim: names.rename(dim)}))
    made.is_backed = True
    return made
