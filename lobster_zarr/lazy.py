"""Lazy views of a selection: an AnnData of dask arrays, and columns that are read when they are used.

A matrix is a dask array of row blocks, one small task each, that knows what
it stands for: subsetting it, also through AnnData, makes another one of the
rows and columns that are left, and only their bytes are read. Must not know
what is done with the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, override

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from anndata._core.views import as_view
from anndata.experimental.backed import Dataset2D
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from scipy import sparse
from xarray.backends.common import BackendArray
from xarray.core.extension_array import PandasExtensionArray
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)

from lobster_zarr.assemble import assemble
from lobster_zarr.blocks import BLOCK_BYTES
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.projection import Axis
from lobster_zarr.selection import positions
from lobster_zarr.store import run

if TYPE_CHECKING:
    from lobster_zarr.element import StoreReader
    from lobster_zarr.projection import Names, Part
    from lobster_zarr.reading import Reading
    from lobster_zarr.table import Column, TableReader

type SparseFormat = Literal["matrix", "array"]

TASK_BYTES = 3 << 10
"""Positions that take more, encoded, are not in every task of an array but in one key of its graph."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows and columns of one matrix of a store.

    Parameters
    ----------
    reading
        Of the selection that it was made for.
    path
        Of the matrix.
    rows, columns
        Settled; None for an axis that has no positions of its own.
    of_genes
        Whether the rows are genes (varm, varp).
    sparse_format
        Whether sparse blocks are ``csr_matrix`` or ``csr_array``.
    block_bytes
        Decoded bytes of a block.
    """

    reading: Reading
    path: str
    rows: Axis
    columns: Axis | None
    of_genes: bool
    sparse_format: SparseFormat
    block_bytes: int

    @property
    def reader(self) -> StoreReader:
        """Of the store."""
        return self.reading.reader

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the matrix in the store."""
        if self.reader.is_sparse(self.path):
            return self.reader.sparse(self.path).shape
        return self.reader.dense(self.path).shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is left of it."""
        whole = self.stored_shape
        n_columns = [n if self.columns is None else self.columns.count(n) for n in whole[1:2]]
        return self.rows.count(whole[0]), *n_columns, *whole[2:]

    @property
    def by_column(self) -> bool:
        """Whether blocks are columns: of a matrix that is stored by column alone."""
        if not self.reader.is_sparse(self.path):
            return False
        return not self.reader.sparse(self.path).row_major

    @property
    def meta(self) -> Any:
        """An empty block."""
        if not self.reader.is_sparse(self.path):
            return np.empty((0,) * len(self.stored_shape), self.reader.dense(self.path).dtype)
        kinds = {
            ("matrix", False): sparse.csr_matrix,
            ("matrix", True): sparse.csc_matrix,
            ("array", False): sparse.csr_array,
            ("array", True): sparse.csc_array,
        }
        return kinds[self.sparse_format, self.by_column]((0, 0), dtype=self.reader.sparse(self.path).values.dtype)

    async def bounds(self) -> np.ndarray:
        """Where blocks begin and end, along the axis that is cut."""
        if self.by_column or self.of_genes:
            cut = 1 if self.by_column else 0
            n_blocks = math.ceil(math.prod(self.shape) * self._density / self.block_bytes)
            return np.linspace(0, self.shape[cut], max(min(n_blocks, self.shape[cut]), 1) + 1).astype(np.int64)
        return await self.reading.part(self.rows, self.columns or Axis(None, None)).bounds(
            self.block_bytes, self.path, 1
        )

    @property
    def _density(self) -> float:
        return self.reader.size_bytes(self.path) / max(math.prod(self.stored_shape), 1)

    def pick(self, axis: int, which: slice | np.ndarray) -> Matrix:
        """Take some rows or columns."""
        if axis == 0:
            return replace(self, rows=self.rows.pick(which, self.stored_shape[0]))
        return replace(self, columns=(self.columns or Axis(None, None)).pick(which, self.stored_shape[1]))


class LazyMatrix(da.Array):
    """A dask array of the blocks of a :class:`Matrix`, that subsets itself by what it reads.

    Everything but subsetting by slices, masks and positions is dask's.
    """

    _matrix: Matrix

    def __new__(cls, matrix: Matrix) -> Self:  # noqa: D102
        graph, name, chunks = _graph(matrix, run(matrix.bounds()))
        made: Self = super().__new__(cls, graph, name, chunks, meta=matrix.meta)  # type: ignore[no-untyped-call]
        made._matrix = matrix
        return made

    @override
    def __getitem__(self, index: Any) -> da.Array:
        given = index if isinstance(index, tuple) else (index,)
        plain = [i for i in given if isinstance(i, slice | list | np.ndarray | pd.Series | pd.Index)]
        n_lists = sum(not isinstance(i, slice) for i in plain)
        if len(plain) < len(given) or len(given) > min(self.ndim, 2) or n_lists > 1:
            return cast("da.Array", super().__getitem__(index))  # type: ignore[no-untyped-call]
        matrix = self._matrix
        for axis, which in enumerate(given):
            if not (isinstance(which, slice) and which == slice(None)):
                matrix = matrix.pick(axis, positions(which, None, self.shape[axis], axis=f"axis {axis}"))
        return self if matrix is self._matrix else LazyMatrix(matrix)

    @override
    def copy(self) -> da.Array:
        return LazyMatrix(self._matrix)


@as_view.register(LazyMatrix)
def _as_view(array: LazyMatrix, view_args: Any) -> LazyMatrix:  # noqa: ARG001 - AnnData's signature
    return array  # AnnData's own view of a dask array would forget what it stands for


def _graph(matrix: Matrix, bounds: np.ndarray) -> tuple[HighLevelGraph, str, tuple[tuple[int, ...], ...]]:
    """Make the graph of a matrix, its name and its chunks."""
    rows, columns, reader, cut = matrix.rows, matrix.columns, matrix.reader, int(matrix.by_column)
    kind = type(matrix.meta)
    packed = rows.pack(), columns.pack() if columns else b""
    token = tokenize(reader.uri, reader.identity.digest, matrix.path, packed, kind, bounds)
    name = f"{matrix.path.replace('/', '-')}-{token}"
    large = len(packed[cut]) / max(len(bounds) - 1, 1) + len(packed[1 - cut]) > TASK_BYTES
    shared = f"positions-{token}"
    tasks: dict[Any, Any] = {shared: DataNode(shared, (rows, columns))} if large else {}
    n_dims = len(matrix.shape)
    for block, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        key = (name, *(block if axis == cut else 0 for axis in range(n_dims)))
        which = slice(start, stop)
        if large:
            axes: Any = TaskRef(shared)
        else:
            parts = [rows, columns or Axis(None, None)]
            parts[cut] = parts[cut].pick(which, matrix.stored_shape[cut])
            axes, which = (parts[0], parts[1] if columns or cut else None), slice(None)
        tasks[key] = Task(key, read_block, reader, matrix.path, kind, axes, (cut, which))
    sizes = tuple(np.diff(bounds).tolist())
    chunks = tuple(sizes if axis == cut else (n,) for axis, n in enumerate(matrix.shape))
    return HighLevelGraph.from_collections(name, tasks), name, chunks


def read_block(
    reader: StoreReader, path: str, kind: type, axes: tuple[Axis, Axis | None], part: tuple[int, slice]
) -> Any:
    """Read one block of a matrix: what a task of the graph does, wherever it runs.

    Parameters
    ----------
    reader
        Of the store.
    path
        Of the matrix.
    kind
        The type of a sparse block.
    axes
        Rows and columns.
    part
        Along which of them, and where, the block lies.
    """
    sparse_block = reader.is_sparse(path)
    shape = reader.sparse(path).shape if sparse_block else reader.dense(path).shape
    picked = [axes[0], axes[1] or Axis(None, None)]
    picked[part[0]] = picked[part[0]].pick(part[1], shape[part[0]])
    rows, columns = picked
    value = run(reader.identity.guarded(reader.matrix(path, rows.runs, columns.runs)))
    value = rows.arrange(value)
    value = value if columns.take is None else value[:, columns.take]
    return kind(value) if sparse_block and not isinstance(value, kind) else value


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
        if last is not None and last[0].pack() == rows.pack():
            return last[1]
        values = rows.arrange(run(self.reader.identity.guarded(self._table.column(self.name, rows.runs))))
        self._last = rows, values
        return values

    def _get(self, key: tuple[Any, ...]) -> Any:
        one = not isinstance(key[0], slice | np.ndarray)
        which = np.asarray([key[0]]) if one else key[0]
        rows = self.rows.pick(which, self._table.n_rows)
        is_sliced = self.is_sliced or rows is not self.rows
        values = self._read(rows, which)
        if isinstance(values, pd.Categorical) and is_sliced and ad.settings.remove_unused_categories:
            values = values.remove_unused_categories()
        if self.is_nullable_string:
            values = np.asarray(values.to_numpy(object, na_value=pd.NA), self.dtype)
        elif not isinstance(values, np.ndarray):
            values = PandasExtensionArray(values)
        return values[0] if one else values


def lazy_anndata(reading: Reading, sparse_format: SparseFormat, block_bytes: int) -> ad.AnnData:
    """Make the lazy AnnData of a selection. Reads its names, what a plan needs, and what cannot be lazy."""
    rows, columns = reading.run(reading.settled_axes())
    reader, want = reading.reader, reading.projection
    parts = reading.parts(rows, columns)
    arrays = [p for p in parts if not p.whole or (p.path[:5] in {"varm/", "varp/"} and reader.is_matrix(p.path))]
    rest = [p for p in parts if p not in arrays]
    (obs, no_obs), (var, no_var), results = reading.run(_read(reading, rest))
    for part in arrays:
        of_genes = part.path.startswith(("varm/", "varp/"))
        matrix = Matrix(reading, part.path, part.rows or rows, part.columns, of_genes, sparse_format, block_bytes)
        results[part.path] = LazyMatrix(matrix)
    return assemble(
        _lazy_table(reading, "obs", (obs.index, no_obs), rows, want.obs_columns),
        _lazy_table(reading, "var", (var.index, no_var), columns, want.var_columns),
        results,
        sliced=False,
    )


type _Frames = tuple[pd.DataFrame, pd.DataFrame]


async def _read(reading: Reading, rest: list[Part]) -> tuple[_Frames, _Frames, dict[str, Any]]:
    """Read obs and var without columns and without rows, and by path the elements that cannot be lazy."""
    rows, columns = await reading.settled_axes()
    reader, want = reading.reader, reading.projection
    tables = (reader.obs, rows, want.obs_columns), (reader.var, columns, want.var_columns)
    names = (table.frame([], axis.runs, reading.known(table.path)) for table, axis, _ in tables)
    empty = (table.frame(chosen, Runs.whole(0)) for table, _, chosen in tables)
    work: Any = (*names, *empty, *map(reading.element, rest), reading.bounds(BLOCK_BYTES, None, 1))
    obs, var, no_obs, no_var, *values, _ = await together(*work)
    results = dict(zip((part.path for part in rest), values, strict=True))
    if reading.is_sliced:
        results |= await _pruned(reading, no_obs, no_var, results)
    return (rows.arrange(obs), no_obs), (columns.arrange(var), no_var), results


async def _pruned(reading: Reading, no_obs: Any, no_var: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Drop from uns the colors of categories that are not left, and these from frames, as AnnData does of a part."""
    uns = results.get("uns") or {}
    axes, tables = await reading.settled_axes(), (reading.reader.obs, reading.reader.var)
    read = []
    for table, axis, empty in zip(tables, axes, (no_obs, no_var), strict=True):
        colored = [name for name in empty.columns if f"{name}_colors" in uns]
        read.append(table.frame(colored, axis.runs, reading.known(table.path)))
    obs, var = (axis.arrange(frame) for axis, frame in zip(axes, await together(*read), strict=True))
    aligned = [p for p, v in results.items() if p[:5] in {"obsm/", "varm/"} and isinstance(v, pd.DataFrame)]
    shell = assemble(obs, var, {path: results[path] for path in aligned} | {"uns": uns}, sliced=True)
    return {path: getattr(shell, path[:4])[path[5:]] for path in aligned} | {"uns": shell.uns}


def _lazy_table(
    reading: Reading, table: Literal["obs", "var"], found: tuple[pd.Index, pd.DataFrame], rows: Axis, chosen: Names
) -> Dataset2D:
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
