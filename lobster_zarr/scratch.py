"""Out-of-core regrouping of compressed slices: sorting rows, and transposing.

A conversion puts pieces of a matrix, each tagged with the major positions it
belongs to; the pieces wait in one scratch file, compressed, and come back
bucket by bucket in major order. Memory is one bucket, disk is the compressed
pieces. Must not know the source or the destination.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numcodecs.blosc import Blosc
from scipy import sparse

from lobster_zarr.errors import StorageError
from lobster_zarr.fetch import decode_pool, n_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOSC = Blosc(cname="lz4", clevel=1, shuffle=Blosc.SHUFFLE)
# Codecs run on our own threads; blosc's would only contend with them.


@dataclass(frozen=True, eq=False)
class Slices:
    """Major slices of a sparse matrix: what an exchange takes and gives.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n_major,)
        Values in each slice.
    indices : ndarray of int, shape (nnz,)
        Minor positions.
    values : ndarray, shape (nnz,)
        Stored values.
    """

    lengths: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    def reorder(self, order: np.ndarray) -> Slices:
        """Take slices in another order. O(nnz), in C."""
        matrix = self._matrix(int(self.indices.max()) + 1 if len(self.indices) else 1)
        taken = matrix[order]
        return Slices(self.lengths[order], taken.indices, taken.data.view(self.values.dtype))

    def transpose(self, n_minor: int) -> Slices:
        """Regroup by the minor axis; the major order is kept within. O(nnz), in C."""
        turned = self._matrix(n_minor).tocsc()
        return Slices(np.diff(turned.indptr), turned.indices, turned.data.view(self.values.dtype))

    def sort_indices(self) -> Slices:
        """Order the indices within each slice."""
        matrix = self._matrix(int(self.indices.max()) + 1 if len(self.indices) else 1).copy()
        matrix.has_sorted_indices = False
        matrix.sort_indices()
        return Slices(self.lengths, matrix.indices, matrix.data.view(self.values.dtype))

    def _matrix(self, n_minor: int) -> sparse.csr_matrix:
        # scipy moves float16 only as integers of the same width.
        values = self.values.view(np.uint16) if self.values.dtype == np.float16 else self.values
        indptr = np.zeros(len(self.lengths) + 1, self.indices.dtype)
        np.cumsum(self.lengths, out=indptr[1:])
        matrix = sparse.csr_matrix((len(self.lengths), n_minor), dtype=values.dtype)
        matrix.indptr, matrix.indices, matrix.data = indptr, self.indices, values
        return matrix


class Scratch:
    """A temporary directory for exchanges, removed with all it holds.

    Parameters
    ----------
    directory
        Where to make it; None for the system's (``TMPDIR``).
    """

    def __init__(self, directory: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="lobster-zarr-", dir=directory))
        self.written_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass
class _Piece:
    """Where the compressed arrays of one piece lie in the file."""

    spans: list[tuple[int, int, np.dtype[Any]]]


@dataclass
class Exchange:
    """Regroups slices by major position, out of core.

    Parameters
    ----------
    scratch
        Holds the file.
    name
        Of the file.
    bounds : ndarray of int64, shape (n_buckets + 1,)
        Major positions at which the buckets begin and end.
    """

    scratch: Scratch
    name: str
    bounds: np.ndarray
    _pieces: list[list[Future[_Piece]]] = field(init=False)
    _pending: deque[Future[_Piece]] = field(init=False, default_factory=deque)
    _end: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._pieces = [[] for _ in self.bounds[1:]]
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._file = os.open(self.scratch.path / self.name, flags, 0o600)
        import threading

        self._lock = threading.Lock()

    def put(self, majors: np.ndarray, slices: Slices) -> None:
        """Add slices whose major positions ascend.

        Parameters
        ----------
        majors : ndarray of int64, shape (n_slices,)
            Ascending positions, repeats allowed.
        slices
            One slice for each.
        """
        edges = np.searchsorted(majors, self.bounds)
        ends = np.zeros(len(majors) + 1, np.int64)
        np.cumsum(slices.lengths, out=ends[1:])
        for bucket, (lo, hi) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            if lo == hi or ends[lo] == ends[hi]:
                continue
            span = slice(int(ends[lo]), int(ends[hi]))
            arrays = (majors[lo:hi], slices.lengths[lo:hi], slices.indices[span], slices.values[span])
            while len(self._pending) >= 4 * n_cores():
                self._pending.popleft().result()
            future = decode_pool().submit(self._store, arrays)
            self._pending.append(future)
            self._pieces[bucket].append(future)

    def _store(self, arrays: tuple[np.ndarray, ...]) -> _Piece:
        encoded = [_BLOSC.encode(np.ascontiguousarray(a)) for a in arrays]
        total = sum(map(len, encoded))
        with self._lock:
            at = self._end
            self._end += total
            self.scratch.written_bytes += total
        try:
            written = os.pwrite(self._file, b"".join(encoded), at)
        except OSError as error:
            written = 0 if error.errno == errno.ENOSPC else -1
            if written < 0:
                raise
        if written != total:
            msg = (
                f"the scratch directory {self.scratch.path} is full after {self._end:,} bytes; "
                "set TMPDIR to a larger disk and convert again. Nothing was committed."
            )
            raise StorageError(msg)
        spans = []
        for array, chunk in zip(arrays, encoded, strict=True):
            spans.append((at, len(chunk), array.dtype))
            at += len(chunk)
        return _Piece(spans)

    def _load(self, piece: _Piece) -> list[np.ndarray]:
        return [
            np.frombuffer(_BLOSC.decode(os.pread(self._file, size, at)), dtype)
            for at, size, dtype in piece.spans
        ]

    def take(self) -> Iterator[Slices]:
        """Give the buckets back in major order, each position's values in the order they came.

        Yields
        ------
        Slices
            One slice for every position of the bucket, empty ones included.
        """
        for bucket, (start, stop) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            loaded = list(decode_pool().map(self._load, [f.result() for f in self._pieces[bucket]]))
            self._pieces[bucket] = []
            yield _assemble(loaded, int(start), int(stop))
        os.close(self._file)
        (self.scratch.path / self.name).unlink()


def _assemble(pieces: list[list[np.ndarray]], start: int, stop: int) -> Slices:
    if not pieces:
        return Slices(np.zeros(stop - start, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8))
    majors, lengths, indices, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    pieces.clear()
    merged = Slices(lengths, indices, values)
    if np.any(np.diff(majors) < 0):
        merged = merged.reorder(np.argsort(majors, kind="stable"))
    totals = np.bincount(majors - start, weights=lengths, minlength=stop - start).astype(np.int64)
    return Slices(totals, merged.indices, merged.values)


def balanced_bounds(weights: np.ndarray, target: int) -> np.ndarray:
    """Cut an axis into buckets of about `target` summed weight.

    Parameters
    ----------
    weights : ndarray of int64, shape (n,)
        Of each position.
    target
        A bucket holds at most about this, or a single position.

    Returns
    -------
    ndarray of int64
        Bucket bounds from 0 to n.
    """
    ends = np.cumsum(weights)
    n_buckets = max(int(ends[-1] // max(target, 1)) + 1 if len(ends) else 1, 1)
    cuts = np.searchsorted(ends, np.arange(1, n_buckets) * (ends[-1] / n_buckets) if len(ends) else [])
    return np.unique(np.concatenate(([0], cuts, [len(weights)]))).astype(np.int64)
