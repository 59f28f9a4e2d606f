"""Stores that are read through a cache on this machine, and what of it may be believed.

A store that this package wrote is as its root says: of an overwriting the root goes first and comes last, so while it
is the same, written at the same time, its objects are; which ETag each has is noted when it is first read. Of any
other store a listing tells. Must not know AnnData.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, cast, override

from zarr.abc.store import RangeByteRequest

from lobster_zarr.cache import Version
from lobster_zarr.cached import Cached, is_strong, span, version_of
from lobster_zarr.cachedfile import CachedFileStore
from lobster_zarr.errors import AccessDeniedError, InvalidArgumentError, NetworkError, StorageError
from lobster_zarr.h5store import PIECE_BYTES, is_file, open_file_store
from lobster_zarr.location import Access, Location, check_key
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.refusal import READ
from lobster_zarr.store import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from obstore import ObjectMeta
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

ROOTS = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
MOST_LISTED = 20_000
"""Objects; a store of more that others wrote is read without a cache."""
logger = logging.getLogger(__name__)


def open_readable(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """Open a store or a file to be read, through a cache where `storage_options` ask for one; makes no request.

    What lies on this machine, and what a URI with a password or a signature names, is never cached.

    Raises
    ------
    InvalidArgumentError
        `offline` without a cache.
    LobsterZarrError
        As of `open_store` and `open_file_store`.
    """
    access, where = Access.of(storage_options), Location.of(uri)
    is_remote = where.scheme not in {"file", "memory"}
    is_cached = is_remote and bool(access.cache) and not where.is_secret
    if access.offline and is_remote and not is_cached:
        msg = f"{where} cannot be read offline: expected a cache, and a URI without a password or a signature."
        raise InvalidArgumentError(msg)
    if is_file(uri):
        return CachedFileStore(uri, storage_options) if is_cached else open_file_store(uri, storage_options)
    return CachedStore(uri, storage_options) if is_cached else open_store(uri, storage_options)


class CachedStore(Cached):
    """A Zarr store that is read through a cache. Parameters and errors as of `lobster_zarr.store.UriStore`."""

    def __init__(
        self, uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True
    ) -> None:
        super().__init__(uri, storage_options, read_only=read_only)
        self._roots: dict[str, Version] = {}
        self._is_committed = False
        self._etags: dict[str, str] = {}
        self._listing: dict[str, str] | None = None
        self._was_listed = False
        self._lists = asyncio.Lock()

    @property
    @override
    def patience_seconds(self) -> float:
        return super().patience_seconds if self._is_committed else 0.0

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        check_key(key)
        if key in ROOTS and byte_range is None:
            body = await self._root(key)
            return None if body is None else prototype.buffer.from_bytes(body)
        held = await self.held(key, byte_range)
        if held is not None:
            return prototype.buffer.from_bytes(held)
        if await self.is_absent(key):
            return None
        if self.is_offline:
            raise self._not_held(repr(key))
        part = span(byte_range)
        if part.stop is not None and part.stop <= part.start:
            return await super().get(key, prototype, byte_range)
        try:
            body = await self._fetched(key, part)
        except StorageError as failure:
            if type(failure) is not StorageError:
                raise
            return await super().get(key, prototype, byte_range)  # which knows ranges that are none
        return None if body is None else prototype.buffer.from_bytes(body)

    async def _root(self, key: str) -> bytes | None:
        found = await self._current(key, key)
        if found is None:
            if self.is_offline and not self._roots and await self._listed() is None:
                raise self._not_held(repr(key))
            if key in self._roots:
                raise self._changed()
            return None
        version, body = found
        if self._roots.setdefault(key, version) != version:
            raise self._changed()
        if key == "zarr.json" and is_strong(version.etag) and _is_ours(body):
            self._is_committed = True
            await asyncio.to_thread(self.folder.forget, self._label, but=self._generation)
        return body

    @property
    def _generation(self) -> str:
        """What stands for all objects: the same root, written anew, is another."""
        root = self._roots["zarr.json"]
        return f"{root.etag} {root.modified:.0f}"

    @override
    async def _etag(self, key: str) -> str | None:
        if key in ROOTS:
            return None
        if self._is_committed:
            if key not in self._etags:
                etag = await asyncio.to_thread(self.folder.member, self._label, self._generation, key)
                if etag is not None:
                    self._etags[key] = etag
            return self._etags.get(key)
        etag = (await self._listed() or {}).get(key, "")
        return etag if is_strong(etag) else None

    @override
    async def is_absent(self, key: str) -> bool:
        listing = await self._listed()
        return listing is not None and key not in listing

    async def _listed(self) -> dict[str, str] | None:
        """Return the ETags of all objects, of a store that others wrote; None where the storage does not tell them."""
        if self._is_committed:
            return None
        async with self._lists:
            if not self._was_listed:
                found = await self._list_now() or {}
                fits = all(found.get(key) == version.etag for key, version in self._roots.items())
                self._listing, self._was_listed = found if found and fits else None, True
            return self._listing

    async def _list_now(self) -> dict[str, str] | None:
        label, name = f"listing of {self._label}", ""
        known = await asyncio.to_thread(self.folder.latest, label, name)
        if not self.is_offline:
            try:
                return await self._list_all(label, name)
            except NetworkError as failure:
                await self._go_on_without(failure, name, label)
        if known is None:
            return None
        body = await asyncio.to_thread(self.folder.read, label, name, known[0].etag, slice(0, None))
        return cast("dict[str, str]", json.loads(body)) if body else None

    async def _list_all(self, label: str, name: str) -> dict[str, str] | None:
        if not self.supports_listing:
            return None
        found: dict[str, str] = {}
        try:
            async for entry in super()._list():
                found[entry["path"]] = _quoted(entry["e_tag"] or "")
                if len(found) > MOST_LISTED:
                    logger.info("%s has more than %d objects: it is read without a cache.", self, MOST_LISTED)
                    return None
        except AccessDeniedError:
            logger.info("%s may not be listed: it is read without a cache.", self)
            return None
        body = json.dumps(found, sort_keys=True).encode()
        version = Version(hashlib.sha256(body).hexdigest(), len(body), 0.0)
        await asyncio.to_thread(self.folder.keep, label, name, version, 0, body)
        return found

    async def check(self) -> None:
        """Ask whether the store is the one that was opened, as far as that can be told. One request.

        Raises
        ------
        ConflictError
            It is another, or gone.
        """
        if self.is_offline:
            return
        if not self._is_committed and not self._was_listed:
            await self._listed()
        elif self._listing is not None:
            if await self._list_now() != self._listing:
                raise self._changed()
        else:
            for key, version in self._roots.items():
                if is_strong(version.etag) and not await self._is_still(key, key, version):
                    raise self._changed()

    @override
    async def _list(self, prefix: str | None = None) -> AsyncGenerator[ObjectMeta, None]:
        if not self.is_offline:
            async for item in super()._list(prefix):
                yield item
            return
        listing = await self._listed()
        if listing is None:
            raise self._not_held("the names of the objects")
        for key in listing:
            if key.startswith(prefix or ""):
                yield cast("ObjectMeta", {"path": key, "e_tag": listing[key]})

    async def _fetched(self, key: str, part: slice) -> bytes | None:
        """Read from the storage, and keep it where it is certain what it is."""
        found = await self._ask(key, part, await self._etag(key))
        if found is None:
            return None
        answer, body = found
        if await self._believes(key, version_of(answer.meta)):
            await self._keep(key, version_of(answer.meta), answer.range[0], body)
        return body

    async def _believes(self, key: str, version: Version) -> bool:
        """Whether an object that was just read is the one that belongs to the store as it was opened."""
        expected = await self._etag(key)
        if expected is not None or not self._is_committed:
            if expected is not None and version.etag != expected:
                raise self._changed()
            return expected is not None
        root = self._roots["zarr.json"]
        # What is younger than the root is of an overwriting that has begun.
        if not is_strong(version.etag) or not 0 < version.modified <= root.modified:
            return False
        self._etags[key] = version.etag
        await asyncio.to_thread(self.folder.remember, self._label, self._generation, key, version.etag)
        return True

    @override
    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        import obstore
        from obstore.exceptions import PreconditionError

        held = await self.held(key, RangeByteRequest(start, stop))
        if held is not None:
            yield held
            return
        if self.is_offline:
            raise self._not_held(repr(key))
        etag = await self._etag(key)
        options: Any = {"range": (start, stop)} | ({} if etag is None else {"if_match": etag})
        answers: list[Any] = []

        async def pieces() -> AsyncIterator[bytes]:
            try:
                answer = await obstore.get_async(self.store, key, options=options)
            except PreconditionError:
                raise self._changed() from None
            answers.append(answer)
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

        body = bytearray()
        async for piece in self._streamed(READ, key, pieces):
            body += piece
            yield piece
        version = version_of(answers[-1].meta)
        if await self._believes(key, version):
            await self._keep(key, version, answers[-1].range[0], bytes(body))


def _quoted(etag: str) -> str:
    """Return an ETag of a listing, where some storages leave out its quotes, as an answer has it."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'


def _is_ours(body: bytes) -> bool:
    """Whether root metadata is of a store that this package wrote."""
    try:
        return ATTRIBUTE in json.loads(body)["attributes"]
    except (ValueError, LookupError, TypeError):
        return False
