"""From chunks that are wanted to the requests that bring them.

Pure: given an array's grid and what is known of its shard indexes, says which
objects and byte ranges to read. Must not touch a store; what is planned here
is what :mod:`lobster_zarr.fetch` sends, request by request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.byterange import Network, coalesce
from lobster_zarr.errors import FormatError
from lobster_zarr.grid import Runs, chunks_of_runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.node import ArrayNode

MISSING = np.iinfo(np.uint64).max
"""Offset and size of a chunk that a shard does not hold."""


@dataclass(frozen=True, eq=False)
class ArrayRead:
    """What is wanted of one array.

    Parameters
    ----------
    node
        The array.
    rows, columns
        Runs along the first and second axis; None for all.
    as_objects
        Whether its objects are wanted as they are stored, to be decoded by
        another reader.
    kept
        About which share of the values stays in the result.
    """

    node: ArrayNode
    rows: Runs | None = None
    columns: Runs | None = None
    as_objects: bool = False
    kept: float = 1.0

    @cached_property
    def axes(self) -> list[Runs]:
        """Runs along every axis."""
        shape = self.node.shape
        if not shape:
            return []
        for runs, n in zip((self.rows, self.columns), shape[:2], strict=False):
            if runs is not None and len(runs.stops) and int(runs.stops[-1]) > n:
                msg = (
                    f"array {self.node.path!r} has the shape {shape}, but position {int(runs.stops[-1]) - 1:,} of an "
                    f"axis of length {n:,} is asked for: the elements of the store do not fit. It is damaged."
                )
                raise FormatError(msg)
        axes = [self.rows or Runs.whole(shape[0]), *(self.columns or Runs.whole(n) for n in shape[1:2])]
        return axes + [Runs.whole(n) for n in shape[2:]]

    @cached_property
    def chunk_ids(self) -> np.ndarray:
        """Chunks that hold what is wanted: ascending, int64."""
        grid = self.node.grid
        if not self.node.shape:
            return np.zeros(1, np.int64)
        per_axis = [chunks_of_runs(r.starts, r.stops, c) for r, c in zip(self.axes, grid.chunk, strict=True)]
        if not all(map(len, per_axis)):
            return np.empty(0, np.int64)
        mesh = np.meshgrid(*per_axis, indexing="ij")
        ids: np.ndarray = np.ravel_multi_index(tuple(mesh), grid.chunks_per_axis).ravel()
        return ids

    @property
    def result_bytes(self) -> int:
        """Decoded size of what is wanted; text counts 32 bytes."""
        itemsize = 32 if self.node.dtype.kind in "OTU" else self.node.dtype.itemsize
        return int(math.prod(axis.total for axis in self.axes) * itemsize * self.kept)


@dataclass(frozen=True, eq=False)
class Request:
    """One read of the store and the chunks that it brings.

    Parameters
    ----------
    node
        The array.
    shard_id
        The stored object.
    start, stop
        Half-open byte range of the object, or both None for the whole of it.
    chunk_ids, slots : ndarray of int64, shape (n,)
        Chunks in the grid of the array, and their places in the shard.
    offsets, sizes : ndarray of int64, shape (n,)
        Where each chunk lies in the response. Empty where the object is a
        whole shard whose index comes with it.
    """

    node: ArrayNode
    shard_id: int
    start: int | None
    stop: int | None
    chunk_ids: np.ndarray
    slots: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    @property
    def key(self) -> str:
        """The Zarr key that is read."""
        return self.node.key(self.shard_id)

    @property
    def n_bytes(self) -> int | None:
        """Bytes of the response; None where only the store knows the object's size."""
        return None if self.start is None or self.stop is None else self.stop - self.start


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """The requests for a set of chunks of one array.

    Parameters
    ----------
    requests
        In the order of the array.
    absent : ndarray of int64
        Chunks that the shard indexes say were never written.
    """

    requests: tuple[Request, ...]
    absent: np.ndarray


def index_needed(node: ArrayNode, chunk_ids: np.ndarray) -> np.ndarray:
    """Shards whose index must be known before `chunk_ids` can be read.

    A shard of which every chunk is wanted is read whole, index included; an
    array without shards has no index.

    Returns
    -------
    ndarray of int64
        Ascending shard numbers.
    """
    if not node.has_index or not len(chunk_ids):
        return np.empty(0, np.int64)
    shard_ids, _ = node.grid.locate(chunk_ids)
    shards, counts = np.unique(shard_ids, return_counts=True)
    return shards[counts < [node.grid.chunks_in(shard) for shard in shards.tolist()]]


def plan_chunks(
    node: ArrayNode, chunk_ids: np.ndarray, indexes: Mapping[int, np.ndarray], network: Network
) -> ChunkPlan:
    """Plan the requests for chunks of one array. O(chunks).

    Parameters
    ----------
    node
        The array.
    chunk_ids : ndarray of int64
        Ascending, unique.
    indexes
        Shard number to its index, uint64 (n_slots, 2); a shard that is not
        there is read whole.
    network
        Decides which gaps are read through.
    """
    shard_ids, slots = node.grid.locate(chunk_ids)
    empty = np.empty(0, np.int64)
    requests: list[Request] = []
    absent: list[np.ndarray] = []
    edges = np.flatnonzero(np.diff(shard_ids)) + 1
    by_shard = np.argsort(shard_ids, kind="stable") if np.any(np.diff(shard_ids) < 0) else None
    if by_shard is not None:
        chunk_ids, shard_ids, slots = chunk_ids[by_shard], shard_ids[by_shard], slots[by_shard]
        edges = np.flatnonzero(np.diff(shard_ids)) + 1
    for ids, shard_slots, shards in zip(
        np.split(chunk_ids, edges), np.split(slots, edges), np.split(shard_ids, edges), strict=True
    ):
        if not len(ids):
            continue
        shard = int(shards[0])
        if not node.has_index or shard not in indexes:
            requests.append(Request(node, shard, None, None, ids, shard_slots, empty, empty))
            continue
        found, lost = _plan_shard(node, shard, ids, shard_slots, indexes[shard], network)
        requests += found
        absent.append(lost)
    return ChunkPlan(tuple(requests), np.concatenate(absent) if absent else empty)


def _plan_shard(
    node: ArrayNode, shard: int, ids: np.ndarray, slots: np.ndarray, index: np.ndarray, network: Network
) -> tuple[list[Request], np.ndarray]:
    entries = index[slots]
    present = entries[:, 0] != MISSING
    lost = ids[~present]
    entries, ids, slots = entries[present].astype(np.int64), ids[present], slots[present]
    order = np.argsort(entries[:, 0], kind="stable")
    starts, sizes, ids, slots = entries[order, 0], entries[order, 1], ids[order], slots[order]
    stops = starts + sizes
    first, last = coalesce(starts, stops, gap_bytes=network.gap_bytes, max_bytes=network.max_request_bytes)
    requests = [
        Request(
            node,
            shard,
            int(starts[a]),
            int(stops[b - 1]),
            ids[a:b],
            slots[a:b],
            starts[a:b] - starts[a],
            sizes[a:b],
        )
        for a, b in zip(first, last, strict=True)
    ]
    return requests, lost
