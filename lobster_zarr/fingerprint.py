"""Fingerprints of the rows of a matrix, and the parts of a store and its source that they are taken of.

A row's fingerprint is the sum of 64-bit hashes of its positions and values: parts
of a matrix can be read in any order, by any process, and added up. Must not know
what is compared with what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.errors import VerificationError
from lobster_zarr.grid import Runs
from lobster_zarr.scratch import Slices
from lobster_zarr.store import run
from lobster_zarr.stream import DenseStream, SparseStream, native

if TYPE_CHECKING:
    from lobster_zarr.dataset import Dataset

Span = tuple[int, int]
Columns = Literal["stored", "source"]
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX2 = np.uint64(0xBF58476D1CE4E5B9)
_MIX3 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, eq=False)
class Prints:
    """What a part of a matrix says of its rows.

    Parameters
    ----------
    row
        To which the first of `values` belongs.
    values : ndarray of uint64
        To be added to the fingerprints of the rows.
    n_values
        Values that were read.
    first : ndarray of int
        Of a matrix by gene, the first position of each chunk that begins here.
    """

    row: int
    values: np.ndarray
    n_values: int
    first: np.ndarray | None = None

    def add_to(self, rows: np.ndarray) -> None:
        """Add to the fingerprints of all rows."""
        rows[self.row : self.row + len(self.values)] += self.values


def stored_slices(data: Dataset, path: str, span: Span, columns: Columns = "stored") -> Prints:
    """Read and check major slices of a sparse matrix of a store.

    Parameters
    ----------
    data
        The store.
    path
        Of the matrix.
    span
        Which slices.
    columns
        Whether columns count as they are stored, or, of a square matrix, as in the source.

    Raises
    ------
    VerificationError
        Positions lie outside the matrix.
    """
    start, stop = span
    reader = data.reader.sparse(path)
    part = run(reader.read(Runs(np.asarray([start]), np.asarray([stop]))))
    if len(part.indices) and not (part.indices.min() >= 0 and part.indices.max() < reader.n_minor):
        msg = (
            f"{data.uri}: '{path}/indices' holds positions outside [0, {reader.n_minor:,}) "
            f"in slices {start:,} to {stop:,}."
        )
        raise VerificationError(msg)
    first = None
    if not reader.row_major:
        chunk = reader.indices.grid.chunk[0]
        first = part.indices[-int(run(reader.indptr())[start]) % chunk :: chunk]
    names = _names(data, columns)
    indices = part.indices if names is None else names[part.indices]
    slices = Slices(np.diff(part.indptr), indices, part.values)
    return _of_slices(slices, start, reader.shape[0], first, row_major=reader.row_major)


def stored_band(data: Dataset, path: str, span: Span, columns: Columns = "stored") -> Prints:
    """Read rows of a dense array of numbers of a store; arguments as of `stored_slices`."""
    return _of_rows(read_band(data, path, span), span[0], _names(data, columns))


def read_band(data: Dataset, path: str, span: Span) -> np.ndarray:
    """Read rows of an array of a store."""
    return run(read_array(data.fetcher, data.tree.array(path), Runs(np.asarray([span[0]]), np.asarray([span[1]]))))


def checked_band(data: Dataset, path: str, span: Span) -> None:
    """Read rows of an array of a store, for its checksums."""
    read_band(data, path, span)


def _names(data: Dataset, columns: Columns) -> np.ndarray | None:
    return run(data.reader.source_order()) if columns == "source" else None


def source_part(stream: SparseStream | DenseStream, span: Span) -> Prints:
    """Read rows, or major slices, of a matrix of a source."""
    start, stop = span
    if isinstance(stream, DenseStream):
        return _of_rows(native(np.asarray(stream.values[start:stop])), start, None)
    lo, hi = int(stream.indptr[start]), int(stream.indptr[stop])
    lengths = np.diff(stream.indptr[start : stop + 1])
    slices = Slices(lengths, stream.minors(lo, hi), native(np.asarray(stream.values[lo:hi])))
    return _of_slices(slices, start, stream.shape[0], None, row_major=stream.row_major)


def _of_rows(rows: np.ndarray, start: int, columns: np.ndarray | None) -> Prints:
    flat = rows.reshape(len(rows), -1)
    names = np.arange(flat.shape[1]) if columns is None else columns
    prints = _mix(np.broadcast_to(names, flat.shape), flat).sum(axis=1, dtype=np.uint64)
    return Prints(start, prints, flat.size)


def _of_slices(slices: Slices, start: int, n_rows: int, first: np.ndarray | None, *, row_major: bool) -> Prints:
    n_major = len(slices.lengths)
    majors = np.repeat(np.arange(start, start + n_major), slices.lengths)
    rows, columns = (majors - start, slices.indices) if row_major else (slices.indices, majors)
    prints = np.zeros(n_major if row_major else n_rows, np.uint64)
    np.add.at(prints, rows, _mix(columns, slices.values))
    return Prints(start if row_major else 0, prints, len(slices.values), first)


def _bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of each value as uint64; a complex value's halves are folded."""
    if values.dtype.kind == "c":
        halves = np.ascontiguousarray(values).view(f"f{values.dtype.itemsize // 2}").reshape(*values.shape, 2)
        folded: np.ndarray = _bits(halves[..., 0]) * _MIX2 + _bits(halves[..., 1])
        return folded
    bits: np.ndarray = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    return bits


def _mix(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mix a position and a value to 64 bits (the finaliser of splitmix64)."""
    z: np.ndarray = (columns.astype(np.uint64) + np.uint64(1)) * _MIX + _bits(values) * _MIX2
    for shift, factor in ((30, _MIX2), (27, _MIX3)):
        z = np.bitwise_xor(z, np.right_shift(z, np.uint64(shift))) * factor
    mixed: np.ndarray = np.bitwise_xor(z, np.right_shift(z, np.uint64(31)))
    return mixed
