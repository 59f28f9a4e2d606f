"""Runs plans against a store: bounded requests, decoding on all cores as bytes arrive.

The reading half of the only ring that talks to a network. Must not know
AnnData: it delivers decoded chunks of arrays to whoever asked.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.cached import Cached
from lobster_zarr.decode import Decoding, fill, truncated
from lobster_zarr.errors import FormatError
from lobster_zarr.plan import MISSING, Request, index_needed, plan_chunks
from lobster_zarr.store import UriStore
from lobster_zarr.traffic import Stats, Window, counting

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from zarr.abc.store import ByteRequest

    from lobster_zarr.byterange import Network
    from lobster_zarr.node import ArrayNode
    from lobster_zarr.plan import ArrayRead, ChunkPlan

    Deliver = Callable[[int, np.ndarray], None]
    Places = Callable[[int], np.ndarray | None]

STREAM_BYTES = 1 << 20
"""A longer response is decoded while it arrives."""
WINDOW_BYTES = 128 << 20
"""Responses that are in memory at once, until they are decoded."""
INDEX_CACHE_BYTES = 256 << 20
ASSUMED_RATIO = 3
"""Compression of an array whose writer did not note its stored size."""


async def together[T](*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run coroutines at once; the first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    # Not inside: its context would be the group that holds it, a circle that cannot be pickled.
    raise first from first.__cause__


class Fetcher:
    """Reads chunks of one store.

    Shard indexes are kept (the oldest go first), so that a second
    read of the same array costs its chunks alone. Safe to share between
    threads that call through one event loop.

    Parameters
    ----------
    store
        Any Zarr store.
    network
        What the planner assumes; `network.concurrency` bounds the requests.
    strict
        Whether a chunk that is not there is damage (stores written by this
        package leave none out) or Zarr's fill value.
    stored_bytes
        Size of all objects of an array, by its path, where the writer noted it.
    objects
        Whole objects by key that are known already, and cost no request.
    noted
        Whether the sizes of chunks that an array notes are believed.
    elements
        Whole elements by path that were read already; for whoever asks for one whole.
    """

    def __init__(
        self,
        store: Store,
        *,
        network: Network,
        strict: bool,
        stored_bytes: Mapping[str, int] | None = None,
        objects: Mapping[str, bytes] | None = None,
        noted: bool = True,
        elements: Mapping[str, Any] | None = None,
    ) -> None:
        self.elements = dict(elements or {})
        self.noted = noted
        self.store = store
        self.network = network
        self.strict = strict
        self.stored_bytes = dict(stored_bytes or {})
        self.objects = dict(objects or {})
        self.stats = Stats()
        self._indexes: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._index_bytes = 0
        self._gate = asyncio.Semaphore(network.concurrency)
        self._window = Window(WINDOW_BYTES)

    def bare(self) -> Fetcher:
        """Return a fetcher of the same store that knows nothing of it yet."""
        return Fetcher(self.store, network=self.network, strict=self.strict, noted=False)

    async def get(self, path: str, key: str, byte_range: ByteRequest | None = None) -> memoryview | None:
        """Read one object or range, None where it does not exist. One request, none where it is known already."""
        if key in self.objects:
            return _part(self.objects[key], byte_range)
        if isinstance(self.store, Cached):
            held = await self.store.held(key, byte_range)
            if held is not None:
                for stats in counting(self.stats):
                    stats.add_cached(len(held))
                return memoryview(held)
            if await self.store.is_absent(key):
                return None
        async with self._gate:
            buffer = await self.store.get(key, default_buffer_prototype(), byte_range)
        payload: np.ndarray = np.empty(0, np.uint8) if buffer is None else np.asarray(buffer.as_numpy_array())
        for stats in counting(self.stats):
            stats.add(path, payload.nbytes)
        return None if buffer is None else memoryview(payload)

    async def chunks(
        self, node: ArrayNode, chunk_ids: np.ndarray, deliver: Deliver, place: Places = lambda _: None
    ) -> None:
        """Read chunks of an array and hand each to `deliver`, from worker threads.

        Parameters
        ----------
        node
            The array.
        chunk_ids : ndarray of int64
            Ascending, unique.
        deliver
            Called once a chunk with its number and its decoded values in full
            chunk shape; must be safe to call from several threads.
        place
            Called first: an array in which to decode the chunk, which is then
            not delivered, or None.

        Raises
        ------
        ChunkDecodeError
            A chunk is damaged, truncated or (in a strict store) missing.
        """
        requests = await self._requests(node, chunk_ids, deliver)
        await together(*(self._run(request, deliver, place) for request in requests))

    async def pairs(
        self, nodes: tuple[ArrayNode, ArrayNode], chunk_ids: np.ndarray, delivers: tuple[Deliver, Deliver]
    ) -> None:
        """Read the same chunks of two arrays of one grid, in the order of the chunks: both halves come about together.

        As :meth:`chunks` otherwise; what waits for its other half is bounded by what is under way.
        """
        wanted = list(zip(nodes, delivers, strict=True))
        planned = await together(*(self._requests(node, chunk_ids, deliver) for node, deliver in wanted))
        both = [(r, deliver) for requests, deliver in zip(planned, delivers, strict=True) for r in requests]
        both.sort(key=lambda one: int(one[0].chunk_ids[0]))
        await together(*(self._run(request, deliver, lambda _: None) for request, deliver in both))

    async def _requests(self, node: ArrayNode, chunk_ids: np.ndarray, deliver: Deliver) -> tuple[Request, ...]:
        """Plan a read; what was never written is delivered at once."""
        self._take_note(node)
        await self.learn(node, chunk_ids)
        plan = plan_chunks(node, chunk_ids, self._known(node), self.network)
        begun_bytes = sum(request.n_bytes or 0 for request in self.sent(plan))
        for stats in counting(self.stats):
            stats.begun_bytes += begun_bytes
        for chunk_id in plan.absent:
            deliver(int(chunk_id), fill(node, int(chunk_id), strict=self.strict))
        return plan.requests

    async def _run(self, request: Request, deliver: Deliver, place: Places) -> None:
        """Read a response and decode it; the bytes under way at once are bounded until they are decoded."""
        node, n_bytes = request.node, request.n_bytes
        if n_bytes is None:
            n_objects = math.prod(node.grid.shards_per_axis)
            decoded = len(request.chunk_ids) * math.prod(node.grid.chunk) * max(node.dtype.itemsize, 1)
            n_bytes = self.stored_bytes.get(node.path, decoded * n_objects // ASSUMED_RATIO) // n_objects
        async with self._window.room(n_bytes):
            await self._read_and_decode(request, deliver, place)

    async def _read_and_decode(self, request: Request, deliver: Deliver, place: Places) -> None:
        byte_range = None
        if request.start is not None and request.stop is not None:
            byte_range = RangeByteRequest(request.start, request.stop)
        if byte_range and isinstance(self.store, UriStore) and await self._comes_in_pieces(request, byte_range):
            await self._decode_as_it_arrives(self.store, request, byte_range, deliver, place)
            return
        body = await self.get(request.node.path, request.key, byte_range)
        if body is None:
            self._deliver_fill(request, deliver)
            return
        if request.n_bytes is not None and len(body) != request.n_bytes:
            raise truncated(request, len(body))
        await Decoding(request, body, deliver, place, strict=self.strict).finish()

    async def _comes_in_pieces(self, request: Request, wanted: RangeByteRequest) -> bool:
        """Whether a response is long, and comes over a network."""
        store = self.store
        if wanted.end - wanted.start <= STREAM_BYTES or not isinstance(store, UriStore) or not store.is_remote:
            return False
        return not self.holds(request) and not (
            isinstance(store, Cached) and await store.holds(request.key, wanted.start, wanted.end)
        )

    async def _decode_as_it_arrives(
        self, store: UriStore, request: Request, wanted: RangeByteRequest, deliver: Deliver, place: Places
    ) -> None:
        """Decode the first chunks of a long response while its last ones are on their way."""
        body = memoryview(np.empty(wanted.end - wanted.start, np.uint8))
        decoding, arrived = Decoding(request, body, deliver, place, strict=self.strict), 0
        try:
            async with self._gate:
                async for piece in store.stream(request.key, wanted.start, wanted.end):
                    if arrived + len(piece) > len(body):
                        raise truncated(request, arrived + len(piece))
                    body[arrived : arrived + len(piece)] = piece
                    arrived += len(piece)
                    decoding.arrived(arrived)
        except FileNotFoundError:
            self._deliver_fill(request, deliver)
            return
        for stats in counting(self.stats):
            stats.add(request.node.path, arrived)
        if arrived != len(body):
            raise truncated(request, arrived)
        await decoding.finish()

    def _deliver_fill(self, request: Request, deliver: Deliver) -> None:
        for chunk_id in request.chunk_ids.tolist():
            deliver(chunk_id, fill(request.node, chunk_id, strict=self.strict))

    def plan(self, read: ArrayRead) -> ChunkPlan:
        """Plan a read with what is known of the shard indexes: what :meth:`chunks` would send."""
        self._take_note(read.node)
        return plan_chunks(read.node, read.chunk_ids, {} if read.as_objects else self._known(read.node), self.network)

    def price(self, reads: Iterable[ArrayRead]) -> tuple[int, int]:
        """Requests and bytes of reads, as far as the shard indexes and sizes are known."""
        n_requests = n_bytes = 0
        for read in reads:
            node = read.node
            self._take_note(node)
            shards = [s for s in index_needed(node, read.chunk_ids).tolist() if (node.path, s) not in self._indexes]
            if shards and not read.as_objects and node.path in self.stored_bytes:
                n_requests += 2 * len(shards)
                share = len(read.chunk_ids) / node.grid.n_chunks
                n_bytes += len(shards) * node.index_bytes + int(self.stored_bytes[node.path] * share)
                continue
            plan = self.plan(read)
            n_requests += len(self.sent(plan))
            n_bytes += self.expected_bytes(read, plan)[0]
        return n_requests, n_bytes

    def sent(self, plan: ChunkPlan) -> list[Request]:
        """Return the requests of a plan that go to the store."""
        return [r for r in plan.requests if not self.holds(r)]

    def holds(self, request: Request) -> bool:
        """Whether what a request would bring is in memory already."""
        return request.key in self.objects

    def expected_bytes(self, read: ArrayRead, plan: ChunkPlan) -> tuple[int, bool]:
        """Bytes that a plan will read, and whether that is exact."""
        requests = self.sent(plan)
        known = [r.n_bytes for r in requests]
        ranged = sum(n for n in known if n is not None)
        n_open = sum(n is None for n in known)
        if not n_open:
            return ranged, True
        node = read.node
        stored, n_objects = self.stored_bytes.get(node.path), math.prod(node.grid.shards_per_axis)
        if stored is not None:
            return ranged + stored * n_open // n_objects, n_open == n_objects
        chunk_bytes = math.prod(node.grid.chunk) * max(node.dtype.itemsize, 1)
        chunks = sum(len(r.chunk_ids) for r in requests if r.n_bytes is None)
        return ranged + chunks * chunk_bytes // ASSUMED_RATIO, False

    async def prepare(self, reads: Iterable[ArrayRead]) -> None:
        """Read the shard indexes that plans for these reads need."""
        wanted = [r for r in reads if not r.as_objects]
        for read in wanted:
            self._take_note(read.node)
        await together(*(self.learn(read.node, read.chunk_ids) for read in wanted))

    async def learn(self, node: ArrayNode, chunk_ids: np.ndarray) -> None:
        """Read what says where chunks lie."""
        await self._load_indexes(node, index_needed(node, chunk_ids))

    def _known(self, node: ArrayNode) -> dict[int, np.ndarray]:
        return {shard: index for (path, shard), index in self._indexes.items() if path == node.path}

    async def _load_indexes(self, node: ArrayNode, shard_ids: np.ndarray) -> None:
        wanted = [int(s) for s in shard_ids if (node.path, int(s)) not in self._indexes]
        await together(*(self._load_index(node, shard) for shard in wanted))

    async def index(self, node: ArrayNode, shard: int) -> np.ndarray:
        """Return one shard's index: uint64, shape (n_slots, 2). At most one request."""
        await self._load_indexes(node, np.asarray([shard]))
        return self._indexes[node.path, shard]

    async def _load_index(self, node: ArrayNode, shard: int) -> None:
        byte_range: Any = SuffixByteRequest(node.index_bytes)
        if node.index_at_start:
            byte_range = RangeByteRequest(0, node.index_bytes)
        body = await self.get(node.path, node.key(shard), byte_range)
        if body is None:
            if self.strict:
                fill(node, int(shard), strict=True)
            slots = int(np.prod(node.grid.chunks_per_shard))
            index = np.full((slots, 2), MISSING, np.uint64)
        else:
            index = node.decode_index(body, shard)
        self.remember(node, shard, index)

    def remember(self, node: ArrayNode, shard: int, index: np.ndarray) -> None:
        """Keep a shard's index; the oldest go first when there are too many."""
        old = self._indexes.pop((node.path, shard), None)
        self._indexes[node.path, shard] = index
        self._index_bytes += index.nbytes - (0 if old is None else old.nbytes)
        while self._index_bytes > INDEX_CACHE_BYTES and len(self._indexes) > 1:
            _, old = self._indexes.popitem(last=False)
            self._index_bytes -= old.nbytes

    def _take_note(self, node: ArrayNode) -> None:
        """Derive the shard indexes of an array whose note has the sizes of its chunks."""
        if self.noted and not self.knows(node) and node.chunk_sizes is not None:
            self.remember_sizes((node,), node.chunk_sizes[None])

    def remember_sizes(self, nodes: tuple[ArrayNode, ...], sizes: np.ndarray) -> None:
        """Derive shard indexes from the sizes of all chunks.

        Parameters
        ----------
        nodes
            The arrays that the rows of `sizes` describe.
        sizes : ndarray of uint32, shape (len(nodes), n_chunks)
            Encoded bytes of each chunk; chunks lie one after another in a shard.
        """
        for node, row in zip(nodes, sizes.astype(np.uint64), strict=True):
            if not len(row):
                continue
            if math.prod(node.grid.chunks_per_shard) > len(row):
                msg = f"array {node.path!r} has shards of more slots than chunks; the sizes noted of them do not fit."
                raise FormatError(msg)
            shard_ids, slots = node.grid.locate(np.arange(len(row)))
            for shard in range(math.prod(node.grid.shards_per_axis)):
                own = np.flatnonzero(shard_ids == shard) if len(node.shape) > 1 else _span(shard_ids, shard)
                index = np.full((math.prod(node.grid.chunks_per_shard), 2), MISSING, np.uint64)
                index[slots[own], 0] = np.cumsum(row[own]) - row[own]
                index[slots[own], 1] = row[own]
                self.remember(node, shard, index)

    def knows(self, node: ArrayNode) -> bool:
        """Whether the index of the array's first shard is known already."""
        return (node.path, 0) in self._indexes


def _span(ascending: np.ndarray, value: int) -> slice:
    return slice(*np.searchsorted(ascending, [value, value + 1]).tolist())


def _part(payload: bytes, byte_range: ByteRequest | None) -> memoryview:
    """Cut what a request would have brought out of a whole object."""
    view = memoryview(payload)
    if isinstance(byte_range, RangeByteRequest):
        return view[byte_range.start : byte_range.end]
    return view[-byte_range.suffix :] if isinstance(byte_range, SuffixByteRequest) else view
