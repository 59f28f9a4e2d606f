"""Reads compressed sparse matrices (CSR, or CSC as its transpose) by plan.

One AnnData element of ring 5. "Major" is the axis that ``indptr`` runs over:
cells in a ``csr_matrix``, genes in a ``csc_matrix``. Must not know which of
the two it reads, nor what the matrix means.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.errors import FormatError
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs, chunks_of_runs
from lobster_zarr.layout import CHUNK_SIZES
from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import ArrayNode, Tree

Half = Literal["values", "indices"]


@dataclass(frozen=True, eq=False)
class Compressed:
    """The three arrays of a compressed sparse matrix, in memory.

    Parameters
    ----------
    values : ndarray, shape (nnz,)
        Stored values.
    indices : ndarray of int, shape (nnz,)
        Position of each value along the minor axis.
    indptr : ndarray of int64, shape (n_major + 1,)
        Where each major slice begins.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray


class SparseReader:
    """Reads one sparse group of a store.

    Parameters
    ----------
    fetcher
        Of the store.
    tree
        The store's nodes.
    path
        Of the group, for example ``X`` or ``X/csc``.
    """

    def __init__(self, fetcher: Fetcher, tree: Tree, path: str) -> None:
        self.fetcher = fetcher
        self.path = path
        shape = tree.attributes(path).get("shape")
        if not (
            isinstance(shape, list | tuple) and len(shape) == 2 and all(isinstance(n, int) and n >= 0 for n in shape)
        ):
            msg = f"sparse group {path!r} has no valid 'shape' attribute, got {shape!r}; the store is damaged."
            raise FormatError(msg)
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.row_major = tree.encoding(path).startswith("csr")
        self.values = tree.array(f"{path}/data")
        self.indices = tree.array(f"{path}/indices")
        self._indptr_node = tree.array(f"{path}/indptr")
        if self.values.shape != self.indices.shape:
            msg = (
                f"'{path}/data' has {self.values.shape} values, '{path}/indices' {self.indices.shape}; "
                "the store is damaged."
            )
            raise FormatError(msg)
        sizes = f"{path}/{CHUNK_SIZES}"
        self._sizes_node: ArrayNode | None = tree.array(sizes) if tree.is_array(sizes) else None
        self._indptr: np.ndarray | None = None

    @property
    def n_minor(self) -> int:
        """Length of the minor axis."""
        return self.shape[1] if self.row_major else self.shape[0]

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return self.values.shape[0]

    async def indptr(self) -> np.ndarray:
        """Read ``indptr``, once. Returns int64, shape (n_major + 1,)."""
        if self._indptr is None:
            indptr = (await read_array(self.fetcher, self._indptr_node)).astype(np.int64)
            n_major = self.shape[0] if self.row_major else self.shape[1]
            if len(indptr) != n_major + 1 or indptr[0] != 0 or indptr[-1] != self.nnz or np.any(np.diff(indptr) < 0):
                msg = (
                    f"'{self.path}/indptr' is damaged: expected {n_major + 1:,} ascending offsets "
                    f"from 0 to {self.nnz:,}."
                )
                raise FormatError(msg)
            self._indptr = indptr
        return self._indptr

    async def prepare(self) -> None:
        """Read what any plan over this matrix needs: indptr and where the chunks lie."""
        await together(self.indptr(), self._load_sizes())

    async def _load_sizes(self) -> None:
        if self._sizes_node is not None and not self.fetcher.knows(self.values):
            sizes = await read_array(self.fetcher, self._sizes_node)
            self.fetcher.remember_sizes((self.values, self.indices), sizes)

    async def read(self, major: Runs | None = None) -> Compressed:
        """Read whole major slices. O(their chunks); memory: the result.

        Parameters
        ----------
        major
            Runs of major positions; None for all.
        """
        spans, indptr = await self._spans(major)
        values, indices = await together(
            read_array(self.fetcher, self.values, spans), read_array(self.fetcher, self.indices, spans)
        )
        self._check_range(indices)
        return Compressed(values, indices, indptr)

    def _check_range(self, indices: np.ndarray) -> None:
        """Refuse positions off the axis; a store of this package was verified by its checksums."""
        if not self.fetcher.strict and len(indices) and not (indices.min() >= 0 and indices.max() < self.n_minor):
            msg = f"'{self.path}/indices' holds positions outside [0, {self.n_minor:,}); the store is damaged."
            raise FormatError(msg)

    async def read_projected(self, major: Runs | None, minor: np.ndarray) -> Compressed:
        """Read major slices and keep some minor positions of each.

        Memory is bounded by the result and the chunks under way: each chunk
        is filtered as soon as both its halves are decoded.

        Parameters
        ----------
        major
            Runs of major positions; None for all.
        minor : ndarray of int64
            Ascending, unique minor positions to keep; indices of the result
            count among them.
        """
        spans, indptr = await self._spans(major)
        signed = np.int32 if self.indices.dtype.itemsize < 4 else np.dtype(f"i{self.indices.dtype.itemsize}")
        lookup = np.full(self.n_minor, -1, signed)
        lookup[minor] = np.arange(len(minor))
        chunk = self.values.grid.chunk[0]
        if self.indices.grid.chunk[0] != chunk:
            return _project(await self.read(major), lookup)
        pieces: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        pairs = _Pairs()

        def deliver(half: Half, chunk_id: int, decoded: np.ndarray) -> None:
            pair = pairs.put(half, chunk_id, decoded)
            if pair is not None:
                values, indices = pair
                inside, place = spans.within(chunk_id * chunk, min((chunk_id + 1) * chunk, self.nnz))
                self._check_range(indices[inside])
                kept = lookup[indices[inside]]
                hit = np.flatnonzero(kept >= 0)
                pieces[chunk_id] = (place.start + hit, kept[hit], values[inside][hit])

        chunk_ids = chunks_of_runs(spans.starts, spans.stops, chunk)
        await together(
            self.fetcher.chunks(self.values, chunk_ids, partial(deliver, "values")),
            self.fetcher.chunks(self.indices, chunk_ids, partial(deliver, "indices")),
        )
        ordered = [pieces[int(i)] for i in chunk_ids]
        if not ordered:
            return Compressed(np.empty(0, self.values.dtype), np.empty(0, self.indices.dtype), np.zeros_like(indptr))
        at, kept, values = (np.concatenate(part) for part in zip(*ordered, strict=True))
        return Compressed(values, kept, np.searchsorted(at, indptr).astype(np.int64))

    async def reads(self, major: Runs | None) -> list[ArrayRead]:
        """Return what reading major slices reads, once :meth:`prepare` has run."""
        spans, _ = await self._spans(major)
        return [ArrayRead(self.values, spans), ArrayRead(self.indices, spans)]

    async def _spans(self, major: Runs | None) -> tuple[Runs, np.ndarray]:
        """Value spans of the wanted major slices, merged, and the result's indptr."""
        await self.prepare()
        indptr = await self.indptr()
        if major is None:
            return Runs.whole(self.nnz), indptr
        starts, stops = indptr[major.starts], indptr[major.stops]
        keep = stops > starts
        starts, stops = starts[keep], stops[keep]
        if len(starts):
            joins = np.flatnonzero(starts[1:] != stops[:-1]) + 1
            starts, stops = starts[np.r_[0, joins]], stops[np.r_[joins - 1, len(stops) - 1]]
        positions = major.positions()
        result = np.zeros(len(positions) + 1, np.int64)
        np.cumsum(indptr[positions + 1] - indptr[positions], out=result[1:])
        return Runs(starts, stops), result


class _Pairs:
    """Brings the two halves of a chunk together, whichever is decoded first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, np.ndarray] = {}

    def put(self, half: Half, chunk_id: int, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return ``(values, indices)`` once both are there."""
        with self._lock:
            other = self._waiting.pop(chunk_id, None)
            if other is None:
                self._waiting[chunk_id] = decoded
                return None
        return (decoded, other) if half == "values" else (other, decoded)


def _project(whole: Compressed, lookup: np.ndarray) -> Compressed:
    kept = lookup[whole.indices]
    hit = np.flatnonzero(kept >= 0)
    return Compressed(whole.values[hit], kept[hit], np.searchsorted(hit, whole.indptr).astype(np.int64))
