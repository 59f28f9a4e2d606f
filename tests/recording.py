"""A Zarr store that tells what was asked of it, and readers over stores that zarr-python wrote.

Knows Zarr's store interface. Must not know AnnData.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, WrapperStore

from lobster_zarr.byterange import Network
from lobster_zarr.dense import read_array
from lobster_zarr.fetch import Fetcher
from lobster_zarr.grid import Runs
from lobster_zarr.loop import run
from lobster_zarr.tree import read_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.abc.store import ByteRequest, Store

    from lobster_zarr.node import ArrayNode, Tree

EXACT = Network(latency_seconds=0.0, request_seconds=0.0)
"""Only ranges that touch share a request: every byte that is read was wanted."""
EAGER = Network(latency_seconds=1.0, bandwidth_bytes=1e9)
"""Gaps of up to 15 MB are read through."""
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


@dataclass(frozen=True)
class Call:
    """One request and the length of its answer, None where there was nothing."""

    method: str
    key: str
    byte_range: ByteRequest | None = None
    n_bytes: int | None = None


class RecordingStore(WrapperStore[Any]):
    """Passes everything on to a store (a new MemoryStore by default) and keeps a list of the reads."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(MemoryStore() if store is None else store)
        self.calls: list[Call] = []

    async def get(self, key, prototype, byte_range=None):
        await asyncio.sleep(0)  # as a network would: requests under way at once are seen to be
        buffer = await self._store.get(key, prototype, byte_range)
        self.calls.append(Call("get", key, byte_range, None if buffer is None else len(buffer)))
        return buffer

    async def get_ranges(self, key, byte_ranges, *, prototype, **options):
        async for group in self._store.get_ranges(key, byte_ranges, prototype=prototype, **options):
            for at, buffer in group:
                n_bytes = None if buffer is None else len(buffer)
                self.calls.append(Call("get_ranges", key, byte_ranges[at], n_bytes))
            yield group

    async def exists(self, key):
        self.calls.append(Call("exists", key))
        return await self._store.exists(key)

    def list_prefix(self, prefix):
        self.calls.append(Call("list_prefix", prefix))
        return self._store.list_prefix(prefix)

    def forget(self) -> None:
        """Start a new record."""
        self.calls.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes of all answers."""
        return sum(c.n_bytes or 0 for c in self.calls)

    @property
    def keys(self) -> list[str]:
        """The keys that were asked for, in order."""
        return [c.key for c in self.calls]

    def body(self, key: str) -> bytes:
        """The bytes of one object, not recorded."""
        buffer = run(self._store.get(key, default_buffer_prototype()))
        assert buffer is not None, key
        return buffer.to_bytes()

    def replace(self, key: str, body: bytes) -> None:
        """Overwrite one object."""
        run(self._store.set(key, default_buffer_prototype().buffer.from_bytes(body)))

    def lose(self, key: str) -> None:
        """Delete one object."""
        run(self._store.delete(key))


class Waves(RecordingStore):
    """Keeps, too, how many requests in a row had to wait for the answers of others."""

    n_waves = 0

    async def get(self, key, prototype, byte_range=None):
        wave = self.n_waves + 1
        await asyncio.sleep(0.15)  # long against the time that a busy machine takes to send what it can
        buffer = await super().get(key, prototype, byte_range)
        self.n_waves = max(self.n_waves, wave)
        return buffer

    def forget(self) -> None:
        super().forget()
        self.n_waves = 0


def fetcher(store: Store, *, strict: bool = False, network: Network = EXACT) -> Fetcher:
    """Return a fetcher that has read nothing yet."""
    return Fetcher(store, network=network, strict=strict)


def tree_of(store: Store) -> Tree:
    """Read the metadata of a store."""
    return run(read_tree(store, "memory://test"))


def keys_of(node: ArrayNode) -> list[str]:
    """Return the keys of all objects of an array, in C order."""
    return [node.key(i) for i in range(math.prod(node.grid.shards_per_axis))]


def as_runs(mask: np.ndarray | None) -> Runs | None:
    """Return the runs of the true positions of a mask; None stays None."""
    if mask is None:
        return None
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return Runs(edges[::2].astype(np.int64), edges[1::2].astype(np.int64))


def read(reader: Fetcher, node: ArrayNode, rows: np.ndarray | None = None, columns: Any = None) -> np.ndarray:
    """Read the rows and columns of two masks."""
    return run(read_array(reader, node, as_runs(rows), as_runs(columns)))


def write_foreign(store: Store, values: np.ndarray, *, path: str = "a", zarr_format: Any = 3, **options: Any):
    """Let zarr-python write an array, as a member of a group; returns its own view of it."""
    group = zarr.open_group(store, mode="a", zarr_format=zarr_format)
    array = group.create_array(path, shape=values.shape, dtype=options.pop("dtype", values.dtype), **options)
    array[...] = values
    return array


def write_own(store: Store, node: ArrayNode, values: np.ndarray) -> None:
    """Write an array as this package does: every chunk there, one after another in its shard."""
    grid = node.grid
    shard_ids, slots = grid.locate(np.arange(grid.n_chunks))
    encoded = [node.encode(values[grid.chunk_slices(i)]) for i in range(grid.n_chunks)]
    write_nodes(store, {"zarr.json": GROUP, f"{node.path}/zarr.json": node.to_json()})
    for shard in np.unique(shard_ids):
        own = {int(slots[i]): encoded[i] for i in np.flatnonzero(shard_ids == shard)}
        own = dict(sorted(own.items()))
        body = node.build_shard(own) if node.sharding else own[0]
        write_nodes(store, {node.key(int(shard)): body})


def shard_index(body: bytes, n_slots: int, location: str = "end") -> np.ndarray:
    """Parse the index of a shard by the specification: little-endian pairs and a crc32c."""
    size = 16 * n_slots
    raw = body[:size] if location == "start" else body[-size - 4 : -4]
    return np.frombuffer(raw, "<u8").reshape(n_slots, 2).astype(object)


def write_nodes(store: Store, documents: Mapping[str, Any]) -> None:
    """Write metadata objects, whatever they hold."""
    for key, document in documents.items():
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        run(store.set(key, default_buffer_prototype().buffer.from_bytes(body)))
