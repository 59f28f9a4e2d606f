"""What is read through a cache on this machine: what stores and files have in common.

Bytes are kept for one version of an object, so all depends on knowing which version is the right one; that is told by
:mod:`lobster_zarr.cachedstore` and :mod:`lobster_zarr.cachedfile`. Knows obstore's conditional requests, and how to go
on without a network. Must not know what objects hold.
"""

from __future__ import annotations

import asyncio
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from lobster_zarr.cache import DEFAULT_BYTES, Version, folder_of
from lobster_zarr.errors import ConflictError, NetworkError, StorageError
from lobster_zarr.location import Access
from lobster_zarr.refusal import READ
from lobster_zarr.store import UriStore

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Mapping

    from zarr.abc.store import ByteRequest


def span(byte_range: ByteRequest | None) -> slice:
    """Return what a request asks for as a slice of the object."""
    match byte_range:
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(-suffix, None) if suffix else slice(0, 0)
    return slice(0, None)


class Cached(UriStore):
    """What is read through a cache. Parameters and errors as of `lobster_zarr.store.UriStore`."""

    def __init__(
        self, uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True
    ) -> None:
        access = Access.of(storage_options)
        # Offline nobody is asked, and no credentials are needed.
        options = {**(storage_options or {}), "anon": True} if access.offline else storage_options
        super().__init__(uri, options, read_only=read_only)
        self.folder = folder_of(access.cache or "", access.cache_max_bytes or DEFAULT_BYTES)
        self.is_offline = access.offline
        self._label = label(access.endpoint_url, str(self))

    @property
    def patience_seconds(self) -> float:
        """It is not looked at again so soon; nothing but a look would tell that it is another by now."""
        return 0.5

    @property
    def is_caching(self) -> bool:
        """Whether the cache can be used."""
        return not self.folder.is_off

    async def _etag(self, key: str) -> str | None:
        """Return the ETag that an object has to have, where that is known."""
        raise NotImplementedError

    def _name(self, key: str) -> str:
        """Return what the cache calls an object."""
        return key

    async def held(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        """Return what a request would bring, where it is kept, and known to be what the storage has."""
        etag = await self._etag(key)
        if etag is None:
            return None
        return await asyncio.to_thread(self.folder.read, self._label, self._name(key), etag, span(byte_range))

    async def holds(self, key: str, start: int, stop: int) -> bool:
        """Whether a range is kept."""
        etag = await self._etag(key)
        of = self._label, self._name(key), etag or "", slice(start, stop)
        return etag is not None and await asyncio.to_thread(self.folder.holds, *of)

    async def is_absent(self, key: str) -> bool:
        """Whether it is known, without a request, that there is no such object."""
        raise NotImplementedError

    async def _keep(self, key: str, version: Version, start: int, body: bytes) -> None:
        await asyncio.to_thread(self.folder.keep, self._label, self._name(key), version, start, body)

    async def _ask(self, key: str, part: slice = slice(0, None), etag: str | None = None) -> tuple[Any, bytes] | None:
        """Read an object, of a version where `etag` names one: an answer and its bytes, None where there is none."""
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {} if etag is None else {"if_match": etag}
        match part:
            case slice(start=int(start), stop=int(stop)):
                options["range"] = (start, stop)
            case slice(start=int(start)) if start:
                options["range"] = {"suffix": -start} if start < 0 else {"offset": start}

        async def request() -> tuple[Any, bytes]:
            try:
                answer = await obstore.get_async(self.store, key, options=options)
                return answer, bytes(await answer.bytes_async())
            except PreconditionError:
                raise self._changed() from None

        return await self._or_none(key, request)

    async def _or_none[T](self, key: str, request: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await self._asked(READ, key, request)
        except FileNotFoundError as missing:
            if isinstance(missing, StorageError):  # the bucket is
                raise
            return None

    async def _current(self, key: str, name: str) -> tuple[Version, bytes] | None:
        """Return the whole of an object as it is now: of the cache, where the storage says that it is the same."""
        known = await asyncio.to_thread(self.folder.latest, self._label, name)
        is_same = known is not None and await self._is_still(key, name, known[0])
        if known is not None and is_same and (kept := await self._recalled(name, known[0])):
            await asyncio.to_thread(self.folder.touch, self._label, name, known[0].etag)
            return kept
        if self.is_offline:
            return None
        found = await self._ask(key)
        if found is None:
            return None
        version, body = version_of(found[0].meta), found[1]
        if is_strong(version.etag):
            await asyncio.to_thread(self.folder.keep, self._label, name, version, 0, body)
        return version, body

    async def _recalled(self, name: str, version: Version) -> tuple[Version, bytes] | None:
        body = await asyncio.to_thread(self.folder.read, self._label, name, version.etag, slice(0, None))
        return None if body is None else (version, body)

    async def _is_still(self, key: str, name: str, version: Version) -> bool:
        """Ask whether an object is of a version yet; where nobody answers, it is taken to be. One request."""
        if self.is_offline:
            return True
        import obstore

        try:
            meta = await self._or_none(key, lambda: obstore.head_async(self.store, key))
        except NetworkError as failure:
            await self._go_on_without(failure, name)
            return True
        if meta is None:
            return False
        now = version_of(meta)
        return now == version or (now[:2] == version[:2] and not version.modified)  # of a file the ETag is enough

    async def _go_on_without(self, failure: NetworkError, name: str, label: str = "") -> None:
        """From here on serve what is kept, if there is something, and say so, once."""
        known = await asyncio.to_thread(self.folder.latest, label or self._label, name)
        if known is None:
            raise failure
        if not self.is_offline:
            self.is_offline = True
            when = datetime.fromtimestamp(known[1], UTC).astimezone()
            warnings.warn(
                f"{failure} What the cache at {self._access.cache} holds of {self} is served, as it was seen last at "
                f"{when:%Y-%m-%d %H:%M}. Open it again when the network is back.",
                stacklevel=2,
            )

    def _not_held(self, what: str) -> NetworkError:
        return NetworkError(
            f"Cannot read {what} of {self}: it is not in the cache at {self._access.cache}, and the storage is not "
            "asked (offline). Bring it there first with `lobster-zarr cache prefetch`, or read without offline."
        )

    def _changed(self) -> ConflictError:
        """Make the error of what is another by now; nothing that was noted of it is believed any more."""
        self.folder.forget(self._label)
        return ConflictError(f"{self} was overwritten, or removed, since it was opened; open it again.")


def label(endpoint_url: str | None, uri: str) -> str:
    """Return what a cache calls a store or file: no endpoint and no name on it holds a line feed."""
    return f"{endpoint_url or ''}\n{uri}"


def uri_of(label: str) -> str:
    """Return the URI of what a cache calls so."""
    return label.partition("\n")[2]


def version_of(meta: Any) -> Version:
    """Return the version of an object that an answer of obstore's describes."""
    return Version(meta["e_tag"] or "", meta["size"], meta["last_modified"].timestamp())


def is_strong(etag: str) -> bool:
    """Whether objects of the same ETag are the same, byte for byte (RFC 9110, 8.8.1)."""
    return bool(etag) and not etag.startswith("W/")
