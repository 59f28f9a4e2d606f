"""Decodes the chunks of a response, on all cores, as its bytes arrive.

Must not know stores, nor what the arrays mean.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.errors import ChunkDecodeError
from lobster_zarr.plan import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lobster_zarr.node import ArrayNode
    from lobster_zarr.plan import Request

    Deliver = Callable[[int, np.ndarray], None]
    Places = Callable[[int], np.ndarray | None]

BATCH = 128
"""Chunks that one thread decodes in a row."""


def n_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def decode_pool() -> ThreadPoolExecutor:
    """Return the process's pool for codecs, one thread a core."""
    return ThreadPoolExecutor(n_cores(), "lobster-zarr-codec")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a child makes a pool of its own.
    os.register_at_fork(after_in_child=decode_pool.cache_clear)


class Decoding:
    """The decoding of one response.

    Parameters
    ----------
    request
        What was asked.
    body
        The response; it may still be filling.
    deliver
        Called once a chunk with its number and its decoded values, from worker threads.
    place
        Called first: an array in which to decode the chunk, which is then not
        delivered, or None.
    strict
        Whether a chunk that is not there is damage.
    """

    def __init__(self, request: Request, body: memoryview, deliver: Deliver, place: Places, *, strict: bool) -> None:
        self.request, self.body, self.deliver, self.place, self.strict = request, body, deliver, place, strict
        self._offsets, self._sizes = _places(request, body)
        self._begun = 0
        self._work: list[asyncio.Future[None]] = []

    def arrived(self, n_bytes: int) -> None:
        """Begin with the chunks that lie in the first `n_bytes`, a batch at a time."""
        ready = int((self._offsets + self._sizes).searchsorted(n_bytes, side="right"))
        while ready - self._begun >= BATCH:
            self._begin(self._begun + BATCH)

    async def finish(self) -> None:
        """Decode all that is left, and wait for it."""
        while self._begun < len(self._offsets):
            self._begin(min(self._begun + BATCH, len(self._offsets)))
        await asyncio.gather(*self._work)

    def _begin(self, stop: int) -> None:
        loop = asyncio.get_running_loop()
        self._work.append(loop.run_in_executor(decode_pool(), self._decode, slice(self._begun, stop)))
        self._begun = stop

    def _decode(self, which: slice) -> None:
        node = self.request.node
        places = (self.request.chunk_ids[which], self._offsets[which], self._sizes[which])
        for chunk_id, offset, size in zip(*(p.tolist() for p in places), strict=True):
            if offset < 0:
                self.deliver(chunk_id, fill(node, chunk_id, strict=self.strict))
                continue
            encoded = self.body[offset : offset + size]
            out = self.place(chunk_id)
            if out is None:
                self.deliver(chunk_id, node.decode(encoded, chunk_id))
            else:
                node.decode_into(encoded, chunk_id, out)


def _places(request: Request, body: memoryview) -> tuple[np.ndarray, np.ndarray]:
    if request.n_bytes is not None:
        return request.offsets, request.sizes
    node = request.node
    if not node.has_index:
        return np.zeros(1, np.int64), np.full(1, len(body), np.int64)
    tail = body[: node.index_bytes] if node.index_at_start else body[-node.index_bytes :]
    entries = node.decode_index(tail, request.shard_id)[request.slots]
    missing = entries[:, 0] == MISSING
    beyond = ~missing & ((entries > len(body)).any(axis=1) | (entries.sum(axis=1) > len(body)))
    if beyond.any():
        msg = (
            f"the index of shard {request.key!r} points beyond the object's {len(body):,} bytes; "
            "it is damaged or truncated. Restore it or convert again."
        )
        raise ChunkDecodeError(msg)
    entries = np.where(missing[:, None], 0, entries).astype(np.int64)
    return np.where(missing, -1, entries[:, 0]), entries[:, 1]


def fill(node: ArrayNode, chunk_id: int, *, strict: bool) -> np.ndarray:
    """Return what stands for a chunk that is not there: in a strict store an error."""
    if strict:
        shard_ids, _ = node.grid.locate(np.asarray([chunk_id]))
        msg = (
            f"chunk {chunk_id} of array {node.path!r} is missing from object "
            f"{node.key(int(shard_ids[0]))!r}; this store leaves no chunk out, so an object was lost. "
            "Restore it or convert again."
        )
        raise ChunkDecodeError(msg)
    return node.fill()


def truncated(request: Request, n_bytes: int) -> ChunkDecodeError:
    """Make the error of a response of another length than was asked for."""
    msg = (
        f"object {request.key!r} answered {n_bytes:,} bytes for the range "
        f"[{request.start}, {request.stop}); it is truncated. Restore it or convert again."
    )
    return ChunkDecodeError(msg)
