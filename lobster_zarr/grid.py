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
