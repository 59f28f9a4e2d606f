"""Out-of-core regrouping of compressed slices: sorting rows, and transposing.

A conversion puts pieces of a matrix, each tagged with the major positions it
belongs to; the pieces wait, compressed, in memory as far as there is room for
them and then in one scratch file, and come back bucket by bucket in major order.
Must not know the source or the destination.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numcodecs.blosc import Blosc
from scipy import sparse

from lobster_zarr.decode import decode_pool, n_cores
from lobster_zarr.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOSC = Blosc(cname="lz4", clevel=1, shuffle=Blosc.SHUFFLE)
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

    def transpose(self, n_minor: int, first_major: int = 0) -> Slices:
        """Regroup by the minor axis; the major order is kept within. O(nnz), in C.

        Parameters
        ----------
        n_minor
            Length of the minor axis.
        first_major
            Position of the first slice, where these are a part of a matrix.
        """
        turned = self._matrix(n_minor).tocsc()
        indices = turned.indices.astype(self.indices.dtype, copy=False)
        indices += self.indices.dtype.type(first_major)
        return Slices(np.diff(turned.indptr), indices, turned.data.view(self.values.dtype))

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
    """A temporary directory for what does not fit in memory, removed with all it holds.

    Parameters
    ----------
    directory
        Where to make it; None for the system's (``TMPDIR``).

    Attributes
    ----------
    room_bytes
        Of memory that pieces may take before they go to disk.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="lobster-zarr-", dir=directory))
        self.room_bytes = 0
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def hold(self, n_bytes: int) -> bool:
        """Take room in memory, if there is enough."""
        with self._lock:
            is_held = self._held_bytes + n_bytes <= self.room_bytes
            self._held_bytes += n_bytes if is_held else 0
        return is_held

    def free(self, n_bytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._held_bytes -= n_bytes

    def file(self, name: str) -> ScratchFile:
        """Make a file; it is removed when it is closed."""
        return ScratchFile(self.path / name)


class ScratchFile:
    """A file that is written and read at positions, from several threads.

    Parameters
    ----------
    path
        Where it is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self.path.unlink()

    def write(self, payload: bytes, at: int) -> None:
        """Write all of `payload`.

        Raises
        ------
        StorageError
            The disk is full or failed.
        """
        try:
            written = os.pwrite(self._file, payload, at)
            while written < len(payload):
                # A full disk takes a part first and refuses the rest.
                written += os.pwrite(self._file, payload[written:], at + written)
        except OSError as error:
            msg = (
                f"cannot write to the scratch directory {self.path.parent}: {error.strerror}. "
                "Set TMPDIR to a larger disk and convert again; nothing was committed."
            )
            raise StorageError(msg) from error

    def read(self, n_bytes: int, at: int) -> bytes:
        """Read `n_bytes` at a position."""
        return os.pread(self._file, n_bytes, at)


@dataclass(frozen=True)
class _Piece:
    """Where the compressed arrays of one piece lie, in the file or in `held`."""

    spans: tuple[tuple[int, int, np.dtype[Any]], ...]
    held: bytes | None


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
    max_values
        A bucket that holds more comes back in parts.
    """

    def __init__(self, scratch: Scratch, name: str, bounds: np.ndarray, max_values: int) -> None:
        self.bounds, self.max_values = bounds, max_values
        self._scratch = scratch
        self._file = scratch.file(name)
        self._pieces: list[list[Future[_Piece]]] = [[] for _ in bounds[1:]]
        self._values = np.zeros(len(bounds) - 1, np.int64)
        self._pending: deque[Future[_Piece]] = deque()
        self._end = 0
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
            self._values[bucket] += span.stop - span.start

    def _store(self, arrays: tuple[np.ndarray, ...]) -> _Piece:
        encoded = [BLOSC.encode(np.ascontiguousarray(a)) for a in arrays]
        payload, at = b"".join(encoded), 0
        is_held = self._scratch.hold(len(payload))
        if not is_held:
            with self._lock:
                at = self._end
                self._end += len(payload)
            self._file.write(payload, at)
        spans = []
        for array, chunk in zip(arrays, encoded, strict=True):
            spans.append((at, len(chunk), array.dtype))
            at += len(chunk)
        return _Piece(tuple(spans), payload if is_held else None)

    def _load(self, piece: _Piece, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Read a piece back, and of it the slices of some major positions."""

        def read(n_bytes: int, at: int) -> bytes | memoryview:
            return self._file.read(n_bytes, at) if piece.held is None else memoryview(piece.held)[at : at + n_bytes]

        majors, lengths, indices, values = (
            np.frombuffer(BLOSC.decode(read(size, at)), dtype) for at, size, dtype in piece.spans
        )
        lo, hi = np.searchsorted(majors, (start, stop))
        first, last = int(lengths[:lo].sum()), int(lengths[:hi].sum())
        return majors[lo:hi], lengths[lo:hi], indices[first:last], values[first:last]

    def take(self) -> Iterator[Slices]:
        """Give the slices back in major order, each position's values in the order they came.

        Yields
        ------
        Slices
            One slice for every position of a bucket, or of a part of it, empty
            ones included.
        """
        with self._file:
            for bucket, total in enumerate(self._values.tolist()):
                pieces = [future.result() for future in self._pieces[bucket]]
                edges = self.bounds[bucket : bucket + 2]
                n_parts = min(-(-total // self.max_values), int(edges[1] - edges[0])) or 1
                cuts = np.linspace(edges[0], edges[1], n_parts + 1).astype(np.int64)
                for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                    loaded = decode_pool().map(self._load, pieces, repeat(start), repeat(stop))
                    yield assemble(list(loaded), start, stop)
                self._pieces[bucket] = []
                self._scratch.free(sum(len(piece.held) for piece in pieces if piece.held is not None))


def assemble(pieces: list[tuple[np.ndarray, ...]], start: int, stop: int) -> Slices:
    """Join pieces to one slice for every major position of [start, stop).

    Parameters
    ----------
    pieces
        Major positions, lengths, indices and values of each; within a position
        the values keep the order of the pieces. Taken over, to be freed early.
    """
    if not pieces:
        return Slices(np.zeros(stop - start, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8))
    majors, lengths, indices, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    pieces.clear()
    merged = Slices(lengths, indices, values)
    if np.any(np.diff(majors) < 0):
        merged = merged.reorder(np.argsort(majors, kind="stable"))
    totals = np.bincount(majors - start, weights=lengths, minlength=stop - start).astype(np.int64)
    return Slices(totals, merged.indices, merged.values)


def ahead[T](items: Iterator[T]) -> Iterator[T]:
    """Produce each item on another thread while the caller works on the one before it."""
    done = object()
    with ThreadPoolExecutor(1, "lobster-zarr-ahead") as thread:
        upcoming: Future[Any] = thread.submit(next, items, done)
        while (item := upcoming.result()) is not done:
            upcoming = thread.submit(next, items, done)
            yield item


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
