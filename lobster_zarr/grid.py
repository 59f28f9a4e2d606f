"""Chunk and shard arithmetic on regular grids.

Knows how positions along an axis fall into chunks and how chunks fall into
shards. Must not know what the chunks hold, how they are encoded, or where
they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def cdiv(a: int, b: int) -> int:
    """Return ``ceil(a / b)`` for non-negative integers."""
    return -(-a // b)


@dataclass(frozen=True)
class Grid:
    """A regular grid of chunks, optionally grouped into shards.

    Parameters
    ----------
    shape
        The array's shape.
    chunk
        The shape of the smallest piece that can be decoded alone (the inner
        chunk of a sharded array).
    shard
        The shape of one stored object; a multiple of `chunk` on every axis.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    @cached_property
    def chunks_per_axis(self) -> tuple[int, ...]:
        """The number of chunks that hold elements, along each axis."""
        return tuple(cdiv(n, c) for n, c in zip(self.shape, self.chunk, strict=True))

    @cached_property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """The number of chunk slots of one shard, along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @cached_property
    def shards_per_axis(self) -> tuple[int, ...]:
        """The number of stored objects, along each axis."""
        return tuple(cdiv(n, s) for n, s in zip(self.shape, self.shard, strict=True))

    @property
    def n_chunks(self) -> int:
        """The number of chunks that hold elements."""
        return math.prod(self.chunks_per_axis)

    def locate(self, chunk_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place chunks in their shards.

        Parameters
        ----------
        chunk_ids : ndarray of int64, shape (n,)
            C-order flat indices into :attr:`chunks_per_axis`.

        Returns
        -------
        shard_ids : ndarray of int64, shape (n,)
            C-order flat indices into :attr:`shards_per_axis`.
        slots : ndarray of int64, shape (n,)
            C-order flat indices into :attr:`chunks_per_shard`.
        """
        if not self.shape:
            return np.zeros_like(chunk_ids), np.zeros_like(chunk_ids)
        coords = np.unravel_index(chunk_ids, self.chunks_per_axis)
        per_shard = self.chunks_per_shard
        outer = tuple(c // p for c, p in zip(coords, per_shard, strict=True))
        inner = tuple(c % p for c, p in zip(coords, per_shard, strict=True))
        return (
            np.ravel_multi_index(outer, self.shards_per_axis).astype(np.int64),
            np.ravel_multi_index(inner, per_shard).astype(np.int64),
        )

    def chunks_in(self, shard_id: int) -> int:
        """Chunks that a stored object holds: fewer than its slots at the edge."""
        return math.prod(
            min((i + 1) * per, n) - i * per
            for i, per, n in zip(self.shard_coords(shard_id), self.chunks_per_shard, self.chunks_per_axis, strict=True)
        )

    def shard_coords(self, shard_id: int) -> tuple[int, ...]:
        """Grid coordinates of a stored object."""
        return _coords(shard_id, self.shards_per_axis)

    def chunk_coords(self, chunk_id: int) -> tuple[int, ...]:
        """Grid coordinates of a chunk."""
        return _coords(chunk_id, self.chunks_per_axis)

    def chunk_slices(self, chunk_id: int) -> tuple[slice, ...]:
        """Return where a chunk lies in the array, clipped to its shape."""
        return tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(self.chunk_coords(chunk_id), self.chunk, self.shape, strict=True)
        )


def _coords(flat: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    coords: list[int] = []
    for count in reversed(counts):
        flat, at = divmod(flat, count)
        coords.append(at)
    return tuple(reversed(coords))


def chunks_of_runs(starts: np.ndarray, stops: np.ndarray, chunk: int) -> np.ndarray:
    """Indices along one axis of the chunks that sorted runs touch.

    Parameters
    ----------
    starts, stops : ndarray of int64, shape (n,)
        Half-open, non-overlapping runs in ascending order; empty runs touch
        nothing.
    chunk
        Chunk length along the axis.

    Returns
    -------
    ndarray of int64
        Ascending and unique.
    """
    keep = stops > starts
    first = starts[keep] // chunk
    last = (stops[keep] - 1) // chunk
    if not len(first):
        return np.empty(0, np.int64)
    # A chunk that the run before already touched is not counted again.
    first[1:] = np.maximum(first[1:], last[:-1] + 1)
    return expand_runs(first, last + 1)


def expand_runs(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(start, stop)`` of each run, vectorised.

    Returns
    -------
    ndarray of int64
        One entry for each position; runs with ``stop <= start`` give none.
    """
    lengths = np.maximum(stops - starts, 0)
    total = int(lengths.sum())
    if not total:
        return np.empty(0, np.int64)
    ends = np.cumsum(lengths)
    offsets = np.repeat(starts - (ends - lengths), lengths)
    positions: np.ndarray = np.arange(total, dtype=np.int64) + offsets
    return positions


@dataclass(frozen=True, eq=False)
class Runs:
    """Sorted half-open runs of positions along one axis.

    Parameters
    ----------
    starts, stops : ndarray of int64, shape (n,)
        Ascending and non-overlapping.
    """

    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def whole(cls, length: int) -> Runs:
        """Return the run of everything."""
        return cls(np.asarray([0], np.int64), np.asarray([length], np.int64))

    @cached_property
    def ends(self) -> np.ndarray:
        """Positions in the result where each run ends."""
        return np.cumsum(self.stops - self.starts)

    @property
    def total(self) -> int:
        """The number of positions."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def positions(self) -> np.ndarray:
        """Every position, one by one."""
        return expand_runs(self.starts, self.stops)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the positions at some places among all of them. O(places), without the others."""
        run = self.ends.searchsorted(places, side="right")
        found: np.ndarray = places - self.ends[run] + self.stops[run]
        return found

    def between(self, first: int, last: int) -> Runs:
        """Return the runs of the positions at the places [first, last). O(runs)."""
        begins = self.ends - (self.stops - self.starts)
        starts = self.starts + np.clip(first - begins, 0, self.stops - self.starts)
        stops = self.stops - np.clip(self.ends - last, 0, self.stops - self.starts)
        kept = starts < stops
        return Runs(starts[kept], stops[kept])

    def within(self, start: int, stop: int) -> tuple[slice | np.ndarray, slice]:
        """Positions that lie in ``[start, stop)``, and where they land in the result.

        Returns
        -------
        slice or ndarray of int64
            Relative to `start`, ascending; a slice where they are contiguous.
        slice
            Their places among all positions of the runs, always contiguous.
        """
        a = int(self.stops.searchsorted(start, side="right"))
        b = int(self.starts.searchsorted(stop, side="left"))
        if a >= b:
            return slice(0, 0), slice(0, 0)
        first = int(self.starts[a])
        lo = max(first, start)
        at = int(self.ends[a]) - int(self.stops[a]) + lo
        if b - a == 1:
            hi = min(int(self.stops[a]), stop)
            return slice(lo - start, hi - start), slice(at, at + hi - lo)
        inside = expand_runs(np.maximum(self.starts[a:b], start) - start, np.minimum(self.stops[a:b], stop) - start)
        return inside, slice(at, at + len(inside))
