"""The streams that a conversion reads: matrices by blocks, dataframes by columns.

Knows how HDF5, Zarr and memory hold a matrix. Must not know files or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from scipy import sparse

from lobster_zarr.errors import FormatError
from lobster_zarr.h5node import FileDataset, FileGroup, read_slices
from lobster_zarr.stage import is_plain_string

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd


@dataclass(frozen=True, eq=False)
class SparseStream:
    """A compressed sparse matrix that is read by spans of its values.

    Parameters
    ----------
    shape
        Rows and columns.
    row_major
        Whether ``indptr`` runs over the rows.
    indptr : ndarray of int64
        In memory.
    values, indices
        Sliceable: arrays, HDF5 datasets or Zarr arrays.
    name
        For messages.

    Raises
    ------
    FormatError
        The parts do not fit each other; of ``indices``, when its block is read.
    """

    shape: tuple[int, int]
    row_major: bool
    indptr: np.ndarray
    values: Any
    indices: Any
    name: str

    def __post_init__(self) -> None:
        lengths, sizes = np.diff(self.indptr), {*self.values.shape, *self.indices.shape}
        n_major = self.shape[0 if self.row_major else 1]
        fits = len(self.indptr) == n_major + 1 and self.indptr[0] == 0 and (lengths >= 0).all()
        if not fits or min(sizes) < self.nnz:
            msg = (
                f"{self.name} has {len(lengths):,} slices of {sorted(sizes)} values; expected {n_major:,} that "
                "follow each other. The file is damaged."
            )
            raise FormatError(msg)

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return int(self.indptr[-1])

    def blocks(self, max_values: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Read blocks of major slices.

        Yields
        ------
        tuple
            First major position, lengths, indices and values of the block.
        """
        n_major, at = len(self.indptr) - 1, 0
        while at < n_major:
            fit = int(np.searchsorted(self.indptr, self.indptr[at] + max_values, side="right")) - 1
            stop = min(max(fit, at + 1), n_major)
            lo, hi = int(self.indptr[at]), int(self.indptr[stop])
            indices, values = self._read(lo, hi)
            yield at, np.diff(self.indptr[at : stop + 1]), indices, values
            at = stop

    @property
    def is_in_memory(self) -> bool:
        """Whether its slices can be taken in any order."""
        return isinstance(self.values, np.ndarray) and isinstance(self.indices, np.ndarray)

    def take(self, majors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take major slices in any order, of a matrix that is in memory: lengths, indices and values."""
        starts = self.indptr[majors]
        lengths = self.indptr[majors + 1] - starts
        at = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        return lengths, self._checked(self.indices[at]), native(self.values[at])

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read minor positions, checked, and values; of a file at once."""
        if isinstance(self.values, FileDataset) and isinstance(self.indices, FileDataset):
            indices, values = read_slices((self.indices, self.values), slice(start, stop))
            return self._checked(indices), values
        return self.minors(start, stop), native(self.values[start:stop])

    def minors(self, start: int, stop: int) -> np.ndarray:
        """Read minor positions, checked: scipy would write through those outside the matrix."""
        return self._checked(np.asarray(self.indices[start:stop]))

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        n_minor = self.shape[1 if self.row_major else 0]
        if len(indices) and not (indices.min() >= 0 and indices.max() < n_minor):
            msg = f"{self.name} holds a position outside [0, {n_minor:,}); the file is damaged."
            raise FormatError(msg)
        return indices


@dataclass(frozen=True, eq=False)
class DenseStream:
    """A dense array that is read by blocks of rows.

    Parameters
    ----------
    values
        Sliceable along the first axis.
    """

    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype, in this machine's byte order."""
        dtype: np.dtype[Any] = np.dtype(self.values.dtype).newbyteorder("=")
        return dtype

    def blocks(self, max_values: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read blocks of rows: first row and values."""
        n_rows = self.shape[0]
        width = max(int(np.prod(self.shape[1:])), 1)
        step = max(max_values // width, 1)
        for at in range(0, n_rows, step):
            yield at, native(np.asarray(self.values[at : min(at + step, n_rows)]))


Stream = SparseStream | DenseStream


def native(values: np.ndarray) -> np.ndarray:
    """Return values in this machine's byte order."""
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


@dataclass(frozen=True, eq=False)
class Frame:
    """A dataframe whose columns are read one by one.

    Parameters
    ----------
    index
        The names.
    index_name
        Of the index, or None.
    columns
        Name to a function that reads the column.
    """

    index: Any
    index_name: str | None
    columns: dict[str, Callable[[], Any]]

    def stored(self) -> dict[str, Callable[[], Any]]:
        """Columns as they are stored: the index first, unless a column of its name holds it."""
        if self.index_name in self.columns:
            return self.columns
        plain = np.asarray(self.index, object) if is_plain_string(self.index) else self.index
        return {self.index_name or "_index": lambda: plain, **self.columns}


def array_of(values: pd.Series | pd.Index) -> Any:
    """Return the array behind a Series or Index, as anndata takes it to write."""
    return values._values  # noqa: SLF001 - ``.array`` would wrap numpy's


def stream_of(node: Any, name: str) -> Stream | None:
    """Return a matrix as a stream, or None where a node or object is not a matrix."""
    if sparse.issparse(node) and node.format in {"csr", "csc"}:
        return SparseStream(
            node.shape, node.format == "csr", node.indptr.astype(np.int64), node.data, node.indices, name
        )
    if isinstance(node, np.ndarray) and node.ndim and node.dtype.kind in "biufc":
        return DenseStream(np.asarray(node))
    if isinstance(node, FileGroup | zarr.Group):
        encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
        if encoding[:3] in {"csr", "csc"}:
            shape: Any = node.attrs["shape"] if "shape" in node.attrs else node.attrs["h5sparse_shape"]
            stored: Any = node["indptr"]
            indptr = np.asarray(stored[:]).astype(np.int64)
            return SparseStream(
                (int(shape[0]), int(shape[1])),
                encoding.startswith("csr"),
                indptr,
                node["data"],
                node["indices"],
                name,
            )
    if isinstance(node, FileDataset | zarr.Array) and node.ndim and node.dtype.kind in "biufc":
        return DenseStream(node)
    return None
