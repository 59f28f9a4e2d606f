"""A matrix of a store as a dask array that subsets itself by what it reads.

It is made of row blocks, one small task each, and knows what it stands for:
subsetting it, also through AnnData, makes another one of the rows and columns
that are left. Must not know what is done with the blocks.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, override

import dask.array as da
import numpy as np
import pandas as pd
from anndata._core.access import ElementRef
from anndata._core.views import _SetItemMixin, as_view
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from scipy import sparse

from lobster_zarr.projection import Axis
from lobster_zarr.selection import positions
from lobster_zarr.store import run

if TYPE_CHECKING:
    from lobster_zarr.element import StoreReader
    from lobster_zarr.projection import Part
    from lobster_zarr.reading import Reading

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
    sparse_format
        Whether sparse blocks are ``csr_matrix`` or ``csr_array``.
    block_bytes
        Decoded bytes of a block.
    """

    reading: Reading
    path: str
    rows: Axis
    columns: Axis | None
    sparse_format: SparseFormat
    block_bytes: int

    @classmethod
    def of(cls, reading: Reading, part: Part, sparse_format: SparseFormat, block_bytes: int) -> Matrix:
        """Take a matrix of a selection whose rows are settled."""
        return cls(reading, part.path, part.rows or Axis(None, None), part.columns, sparse_format, block_bytes)

    @property
    def reader(self) -> StoreReader:
        """Of the store."""
        return self.reading.reader

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the matrix in the store."""
        return self.reader.shape(self.path)

    @property
    def of_genes(self) -> bool:
        """Whether the rows are genes."""
        return self.path.startswith(("varm/", "varp/"))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is left of it."""
        whole = self.stored_shape
        n_columns = [n if self.columns is None else self.columns.count(n) for n in whole[1:2]]
        return self.rows.count(whole[0]), *n_columns, *whole[2:]

    @property
    def by_column(self) -> bool:
        """Whether blocks are columns: of a matrix that is stored by column alone."""
        return self.reader.is_sparse(self.path) and not self.reader.sparse(self.path).row_major

    @property
    def meta(self) -> Any:
        """An empty block."""
        dtype = self.reader.value_dtype(self.path)
        if not self.reader.is_sparse(self.path):
            return np.empty((0,) * len(self.stored_shape), dtype)
        kinds = {
            ("matrix", False): sparse.csr_matrix,
            ("matrix", True): sparse.csc_matrix,
            ("array", False): sparse.csr_array,
            ("array", True): sparse.csc_array,
        }
        return kinds[self.sparse_format, self.by_column]((0, 0), dtype=dtype)

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


class LazyMatrix(_SetItemMixin, da.Array):
    """A dask array of the blocks of a :class:`Matrix`, that subsets itself by what it reads.

    Everything but subsetting by slices, masks and positions is dask's; so is all of an
    array that was assigned to. Assigning to that of an AnnData view makes the view actual.
    """

    _matrix: Matrix
    _read_name: str
    """The name that it was made with: assigning in place gives it another."""
    _view_args: ElementRef[Any] | None = None

    def __new__(cls, matrix: Matrix) -> Self:  # noqa: D102
        graph, name, chunks = _graph(matrix, run(matrix.bounds()))
        made: Self = super().__new__(cls, graph, name, chunks, meta=matrix.meta)  # type: ignore[no-untyped-call]
        made._matrix, made._read_name = matrix, name
        return made

    @override
    def __getitem__(self, index: Any) -> da.Array:
        given = index if isinstance(index, tuple) else (index,)
        one = [isinstance(i, int | np.integer) and not isinstance(i, bool) for i in given]
        lists = [isinstance(i, list | np.ndarray | pd.Series | pd.Index) for i in given]
        n_plain = sum(isinstance(i, slice) for i in given) + sum(one) + sum(lists)
        changed = self.name != self._read_name
        if changed or n_plain < len(given) or len(given) > min(self.ndim, 2) or sum(lists) > 1:
            return cast("da.Array", super().__getitem__(index))  # type: ignore[no-untyped-call]
        matrix = self._matrix
        for axis, which in enumerate(given):
            if not (isinstance(which, slice) and which == slice(None)):
                wanted = [which] if one[axis] else which
                matrix = matrix.pick(axis, positions(wanted, None, self.shape[axis], axis=f"axis {axis}"))
        if any(one):  # dask's own from here, of the one row or gene
            first = tuple(0 if single else slice(None) for single in one)
            return cast("da.Array", da.Array.__getitem__(LazyMatrix(matrix), first))  # type: ignore[no-untyped-call]
        return self.copy() if matrix is self._matrix else LazyMatrix(matrix)

    def join(self, blocks: list[Any]) -> Any:
        """Put its blocks together, that were computed one by one."""
        axis = int(self._matrix.by_column)
        if not sparse.issparse(self._meta):
            return np.concatenate(blocks, axis=axis)
        joined = (sparse.hstack if axis else sparse.vstack)(blocks, format=self._meta.format)
        return type(self._meta)(joined)

    @override
    def copy(self) -> LazyMatrix:
        twin = super().__new__(type(self), self.dask, self.name, self.chunks, meta=self._meta)  # type: ignore[no-untyped-call]
        twin._matrix, twin._read_name = self._matrix, self._read_name
        return cast("LazyMatrix", twin)


@as_view.register(LazyMatrix)
def _as_view(array: LazyMatrix, view_args: Any) -> LazyMatrix:
    view = array.copy()  # AnnData's own view of a dask array would forget what it stands for
    view._view_args = ElementRef(*view_args)  # noqa: SLF001 - where AnnData looks
    return view


def _graph(matrix: Matrix, bounds: np.ndarray) -> tuple[HighLevelGraph, str, tuple[tuple[int, ...], ...]]:
    """Make the graph of a matrix, its name and its chunks."""
    rows, columns, reader, cut = matrix.rows, matrix.columns, matrix.reader, int(matrix.by_column)
    kind = type(matrix.meta)
    packed = rows.pack(), columns.pack() if columns else b""
    token = tokenize(reader.uri, reader.identity.digest, matrix.path, packed, kind, bounds)
    name = f"{matrix.path.replace('/', '-')}-{token}"
    large = len(packed[cut]) / max(len(bounds) - 1, 1) + len(packed[1 - cut]) > TASK_BYTES
    blocks = [slice(*pair) for pair in itertools.pairwise(bounds.tolist())]
    parts = [rows, columns or Axis(None, None)]
    own = [] if large else [parts[cut].pick(which, matrix.stored_shape[cut]) for which in blocks]
    large = large or max((len(axis.pack()) for axis in own), default=0) + len(packed[1 - cut]) > TASK_BYTES
    shared = f"positions-{token}"
    tasks: dict[Any, Any] = {shared: DataNode(shared, (rows, columns))} if large else {}
    n_dims = len(matrix.shape)
    for block, which in enumerate(blocks):
        key = (name, *(block if axis == cut else 0 for axis in range(n_dims)))
        axes: Any = TaskRef(shared)
        if not large:
            parts[cut] = own[block]
            axes, which = (parts[0], parts[1] if columns or cut else None), slice(None)  # noqa: PLW2901
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
    picked = [axes[0], axes[1] or Axis(None, None)]
    picked[part[0]] = picked[part[0]].pick(part[1], reader.shape(path)[part[0]])
    rows, columns = picked
    value = run(reader.identity.guarded(reader.matrix(path, rows.runs, columns.runs)))
    value = rows.arrange(value)
    value = value if columns.take is None else value[:, columns.take]
    return kind(value) if reader.is_sparse(path) and not isinstance(value, kind) else value
