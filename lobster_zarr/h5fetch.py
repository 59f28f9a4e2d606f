"""Reads chunks of the datasets of one HDF5 file: by ranges of the file, as the planner plans them.

Learns where chunks lie as it needs to know, keeps libhdf5 supplied with what it
asks for, and brings text, which HDF5 keeps apart from its dataset. Must not know
AnnData.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, override

import h5py
import numpy as np
from zarr.abc.store import RangeByteRequest

from lobster_zarr.byterange import coalesce
from lobster_zarr.errors import FormatError, LobsterZarrError
from lobster_zarr.fetch import ASSUMED_RATIO, Fetcher, together
from lobster_zarr.h5array import FileArray
from lobster_zarr.h5format import HEAP_BYTES, TREE, heap_size, heaps, texts
from lobster_zarr.h5image import FileImage, ImageFile
from lobster_zarr.h5tree import Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from zarr.abc.store import ByteRequest

    from lobster_zarr.byterange import Network
    from lobster_zarr.fetch import Deliver, Places
    from lobster_zarr.h5format import Branch
    from lobster_zarr.h5store import FileStore
    from lobster_zarr.node import ArrayNode, Tree
    from lobster_zarr.plan import ArrayRead, ChunkPlan, Request

    type Read = Callable[[int, int], Coroutine[Any, Any, bytes]]

FIRST_BYTES = 64 << 10
MOST_PASSES = 1000
"""So often libhdf5 may ask for more; a sound file needs a dozen."""
INDEX_AHEAD_BYTES = 16 << 10
"""Read around a part of an index that libhdf5 asks for: its blocks lie among the chunks."""
TEXT_BYTES = 24
"""Assumed of a text, with what its heap keeps beside it, before its dataset was read."""


async def replay[T](image: FileImage, read: Read, name: str, work: Callable[[h5py.File, ImageFile], T]) -> T:
    """Do something with a file by libhdf5, and bring what it misses, until it misses nothing.

    Parameters
    ----------
    image
        What is in memory of the file; grows.
    read
        Reads a range of the file.
    name
        For messages.
    work
        Is called anew each time; nothing of the file may outlive it.

    Raises
    ------
    FormatError
        The file is damaged.
    """

    def attempt() -> tuple[T | None, ImageFile]:
        view = ImageFile(image)
        try:
            with h5py.File(view, "r") as file:
                return work(file, view), view
        except LobsterZarrError:
            if not view.missing:
                raise
        except Exception as error:
            # h5py raises whatever libhdf5 stumbles over: what is not in memory, or damage.
            if not view.missing:
                msg = (
                    f"{name} is not a readable HDF5 file: {error}. It may be truncated; "
                    "compare its size with the original."
                )
                raise FormatError(msg) from error
        return None, view

    for _ in range(MOST_PASSES):
        result, view = await asyncio.to_thread(attempt)
        if not view.missing:
            return result  # type: ignore[return-value]  # work's own answer
        ranges = image.to_fetch(view.missing)
        for (start, _stop), body in zip(ranges, await together(*(read(*r) for r in ranges)), strict=True):
            image.add(start, body)
    msg = f"{name} asks for ever more of itself; it is damaged."
    raise FormatError(msg)


async def read_file(store: FileStore) -> tuple[Tree, FileImage, int]:
    """Read what a file says of itself, in a few large requests; in one, where its index was kept.

    Raises
    ------
    NotFoundError, FormatError, UnsupportedError, StorageError
        There is no such file, it is damaged, parts of it lie elsewhere, or the storage refused.
    """
    kept = await store.kept()
    if kept is None:
        return await read_metadata(store)
    store.meant(kept.etag, kept.n_bytes)
    image = kept.image()
    tree, base = await _survey(store, image)
    kept.fill(tree)
    return tree, image, base


async def read_metadata(store: FileStore) -> tuple[Tree, FileImage, int]:
    """As `read_file`, from the file itself."""
    first = await store.meet(FIRST_BYTES)
    image = FileImage(store.n_bytes)
    image.add(0, first)
    tree, base = await _survey(store, image)
    return tree, image, base


async def _survey(store: FileStore, image: FileImage) -> tuple[Tree, int]:
    survey = Survey(str(store))
    await replay(image, store.read, str(store), survey.survey)
    return survey.tree(f"{store.etag} {store.n_bytes}"), survey.base


class FileFetcher(Fetcher):
    """Reads chunks of one HDF5 file.

    Parameters
    ----------
    store
        Of the file.
    network
        As of `Fetcher`.
    image
        What is in memory of the file: a range within it costs no request.
    base
        The address that addresses in the file count from.
    """

    def __init__(self, store: FileStore, *, network: Network, image: FileImage, base: int) -> None:
        super().__init__(store, network=network, strict=False)
        self.image, self.base, self.file = image, base, store
        self._learning: dict[str, asyncio.Lock] = {}

    @override
    def bare(self) -> FileFetcher:
        return FileFetcher(self.file, network=self.network, image=self.image, base=self.base)

    @override
    async def get(self, path: str, key: str, byte_range: ByteRequest | None = None) -> memoryview | None:
        if isinstance(byte_range, RangeByteRequest):
            known = self.image.read(byte_range.start, byte_range.end)
            if known is not None:
                return known
        return await super().get(path, key, byte_range)

    async def read(self, path: str, start: int, stop: int) -> bytes:
        """Read a range of the file, counted as of an array."""
        body = await self.get(path, path, RangeByteRequest(start, stop))
        return b"" if body is None else bytes(body)

    @override
    def _known(self, node: ArrayNode) -> dict[int, np.ndarray]:
        return {0: _index(node).places}

    @override
    def knows(self, node: ArrayNode) -> bool:
        return True

    @override
    async def learn(self, node: ArrayNode, chunk_ids: np.ndarray) -> None:
        """Read the nodes that say where chunks lie; a level of the tree at a time."""
        index = _index(node)
        async with self._learning.setdefault(node.path, asyncio.Lock()):
            while needed := index.needed(chunk_ids):
                unknown = [b for b in needed if b.address < 0]
                if unknown:
                    await self._learn_from_library(node)
                    return
                bodies = await self._nodes(node.path, needed)
                if any(body[:4] != TREE for body in bodies) and len(needed) == 1 and needed[0].first == 0:
                    await self._learn_from_library(node)
                    return
                for branch, body in zip(needed, bodies, strict=True):
                    index.take(branch, body, self.base, node.path)

    async def _nodes(self, path: str, branches: list[Branch]) -> list[bytes]:
        """Read nodes, in one request where they lie close."""
        order = sorted(branches, key=lambda b: b.address)
        starts = np.asarray([b.address for b in order], np.int64)
        stops = np.minimum(starts + [b.n_bytes for b in order], self.image.n_bytes)
        if (stops <= starts).any():
            msg = (
                f"the index of the chunks of {path!r} points beyond the end of {self.file}; it is truncated or damaged."
            )
            raise FormatError(msg)
        first, last = coalesce(starts, stops, gap_bytes=self.network.gap_bytes, max_bytes=1 << 30)
        ranges = [(int(starts[a]), int(stops[b - 1])) for a, b in zip(first, last, strict=True)]
        bodies = await together(*(self.read(path, *r) for r in ranges))
        own = FileImage(self.image.n_bytes)
        for (start, _), body in zip(ranges, bodies, strict=True):
            own.add(start, body)
        found = {b.address: own.read(int(s), int(e)) for b, s, e in zip(order, starts, stops, strict=True)}
        return [bytes(found[b.address] or b"") for b in branches]

    async def _learn_from_library(self, node: ArrayNode) -> None:
        """Let libhdf5 read an index of another kind than version 1 B-trees, whole."""
        index = _index(node)

        def work(file: h5py.File, _: ImageFile) -> list[Any]:
            chunks: list[Any] = []
            file[node.path].id.chunk_iter(chunks.append)
            return chunks

        async def read(start: int, stop: int) -> bytes:
            return await self.read(node.path, start, stop)

        image = FileImage(self.image.n_bytes, self.image, ahead_bytes=INDEX_AHEAD_BYTES)
        chunks = await replay(image, read, str(self.file), work)
        kept = [c for c in chunks if c.byte_offset is not None]
        if kept:
            at = np.asarray([c.chunk_offset for c in kept], np.uint64)
            offsets, sizes, masks = (
                np.asarray([getattr(c, name) for c in kept], np.uint64)
                for name in ("byte_offset", "size", "filter_mask")
            )
            index.add(at, offsets, sizes, masks)
        index.pending.clear()

    @override
    async def chunks(
        self, node: ArrayNode, chunk_ids: np.ndarray, deliver: Deliver, place: Places = lambda _: None
    ) -> None:
        if not _array(node).is_text:
            await super().chunks(node, chunk_ids, deliver, place)
            return
        references: dict[int, np.ndarray] = {}
        await super().chunks(node, chunk_ids, references.__setitem__)
        held = [r for r in references.values() if r.dtype.names is not None]
        bodies = await self.heaps(node.path, np.concatenate([r.ravel() for r in held])) if held else {}
        for chunk_id, values in references.items():
            told = values if values.dtype.names is None else await asyncio.to_thread(texts, values, bodies, node.path)
            deliver(chunk_id, told)

    @override
    async def _requests(self, node: ArrayNode, chunk_ids: np.ndarray, deliver: Deliver) -> tuple[Request, ...]:
        array = _array(node)
        if array.stored.literal is None:
            return await super()._requests(node, chunk_ids, deliver)
        padded = np.empty(array.grid.chunk, array.dtype)
        padded[tuple(slice(n) for n in array.shape)] = array.stored.literal
        for chunk_id in chunk_ids.tolist():
            deliver(chunk_id, padded)
        return ()

    async def heaps(self, path: str, references: np.ndarray) -> dict[int, memoryview]:
        """Read the heaps that hold the texts of references, by their addresses."""
        addresses, needed = heaps(references)
        starts = addresses.astype(np.int64) + self.base
        bodies = await self._heap_parts(path, starts, starts + needed)
        sizes = [heap_size(body, path) for body in bodies]
        short = [i for i, (body, size) in enumerate(zip(bodies, sizes, strict=True)) if len(body) < size]
        if short:
            longer = await self._heap_parts(path, starts[short], starts[short] + np.asarray([sizes[i] for i in short]))
            for i, body in zip(short, longer, strict=True):
                bodies[i] = body
        return dict(zip(addresses.tolist(), bodies, strict=True))

    async def _heap_parts(self, path: str, starts: np.ndarray, stops: np.ndarray) -> list[memoryview]:
        stops = np.minimum(stops, self.image.n_bytes)
        if (stops <= starts).any():
            msg = f"the text of {path!r} points beyond the end of {self.file}; it is truncated or damaged."
            raise FormatError(msg)
        gap, most = self.network.gap_bytes + HEAP_BYTES, self.network.max_request_bytes
        first, last = coalesce(starts, stops, gap_bytes=gap, max_bytes=most)
        ends = [int(stops[a:b].max()) for a, b in zip(first, last, strict=True)]
        ranges = [(int(starts[a]), end) for a, end in zip(first, ends, strict=True)]
        bodies = await together(*(self.read(path, *r) for r in ranges))
        parts: list[memoryview] = []
        for (at, _), body, a, b in zip(ranges, bodies, first, last, strict=True):
            parts += [
                memoryview(body)[s - at : e - at]
                for s, e in zip(starts[a:b].tolist(), stops[a:b].tolist(), strict=True)
            ]
        return parts

    @override
    def price(self, reads: Iterable[ArrayRead]) -> tuple[int, int]:
        n_requests = n_bytes = 0
        for read in reads:
            plan = self.plan(read)
            if _index(read.node).needed(read.chunk_ids):  # about, until the index is read
                n_requests, n_bytes = n_requests + 2, n_bytes + read.result_bytes // ASSUMED_RATIO
                continue
            n_requests += len(self.sent(plan))
            n_bytes += self.expected_bytes(read, plan)[0]
        return n_requests, n_bytes

    @override
    def holds(self, request: Request) -> bool:
        return self.image.read(request.start or 0, request.stop or 0) is not None

    @override
    def expected_bytes(self, read: ArrayRead, plan: ChunkPlan) -> tuple[int, bool]:
        n_bytes = sum(r.n_bytes or 0 for r in self.sent(plan))
        if not _array(read.node).is_text:
            return n_bytes, True
        return n_bytes + TEXT_BYTES * sum(len(r.chunk_ids) for r in plan.requests) * math.prod(
            read.node.grid.chunk
        ), False


def _array(node: ArrayNode) -> FileArray:
    assert isinstance(node, FileArray)  # noqa: S101 - a file has no others
    return node


def _index(node: ArrayNode) -> Any:
    return _array(node).index
