"""Files that are read through a cache on this machine: a file has one ETag, and every look at it is conditional.

Must not know what the file holds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, override

from zarr.abc.store import RangeByteRequest

from lobster_zarr.cache import Version
from lobster_zarr.cached import Cached
from lobster_zarr.errors import AccessDeniedError, NetworkError
from lobster_zarr.h5store import FileStore
from lobster_zarr.sidecar import SUFFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class CachedFileStore(Cached, FileStore):
    """A file that is read through a cache. Parameters and errors as of `lobster_zarr.h5store.FileStore`."""

    @override
    async def _etag(self, key: str) -> str | None:
        return self.etag if self.options else None

    @override
    def _name(self, key: str) -> str:
        return ""

    @override
    async def is_absent(self, key: str) -> bool:
        return False

    @override
    async def meet(self, n_bytes: int) -> bytes:
        known = await asyncio.to_thread(self.folder.latest, self._label, "")
        if known is not None and await self._is_still(self.name, "", known[0]):
            version, self.is_met = known[0], True
            self.meant(version.etag, version.n_bytes)
            part = slice(0, min(n_bytes, version.n_bytes))
            first = await asyncio.to_thread(self.folder.read, self._label, "", version.etag, part)
            if first is not None:
                return first
        if self.is_offline:
            raise self._not_held("the beginning")
        first = await super().meet(n_bytes)
        await self._keep_of_file(0, first)
        return first

    async def _keep_of_file(self, start: int, body: bytes) -> None:
        if self.options:
            await self._keep("", Version(self.etag, self.n_bytes, 0.0), start, body)

    @override
    async def check(self) -> None:
        if self.is_offline:
            return
        try:
            await super().check()
        except NetworkError as failure:
            await self._go_on_without(failure, "")

    @override
    async def _beside(self) -> bytes | None:
        try:
            found = await self._current(self.name + SUFFIX, SUFFIX)
        except AccessDeniedError:  # S3's answer where it may not be listed
            return None
        except NetworkError as failure:
            await self._go_on_without(failure, "")
            return None
        return None if found is None else found[1]

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if isinstance(byte_range, RangeByteRequest):
            held = await self.held(key, byte_range)
            if held is not None:
                return prototype.buffer.from_bytes(held)
            if self.is_offline and byte_range.end <= self.n_bytes:
                raise self._not_held(f"bytes {byte_range.start:,} to {byte_range.end:,}")
        found = await super().get(key, prototype, byte_range)
        if found is not None and isinstance(byte_range, RangeByteRequest):
            await self._keep_of_file(byte_range.start, found.to_bytes())
        return found

    @override
    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        held = await self.held(key, RangeByteRequest(start, stop))
        if held is not None:
            yield held
            return
        if self.is_offline:
            raise self._not_held(f"bytes {start:,} to {stop:,}")
        body = bytearray()
        async for piece in super().stream(key, start, stop):
            body += piece
            yield piece
        await self._keep_of_file(start, bytes(body))
