"""One version of a store or file in a bucket that keeps versions, read only.

Every object is asked for by the id of its version, so that nothing that is written or deleted
meanwhile shows. Must not know how the objects of a version are found.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self, override

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from lobster_zarr.errors import ConflictError
from lobster_zarr.h5store import PIECE_BYTES, FileStore, is_file
from lobster_zarr.location import Location
from lobster_zarr.refusal import READ_VERSION
from lobster_zarr.store import UriStore
from lobster_zarr.versioning import ROOT, check_place, history_of, snapshot

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from obstore import ObjectMeta
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from lobster_zarr.sidecar import Sidecar


class _OfVersion(UriStore):
    """What a store and a file have in common: their version is a part of what they are, also in a pickle."""

    version: str

    @override
    def __str__(self) -> str:
        return f"{super().__str__()} (version {self.version})"

    @override
    def _identity(self) -> tuple[object, ...]:
        return (*super()._identity(), self.version)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "version": self.version}


class VersionStore(_OfVersion):
    """A version of a store; making one lists the versions of its objects.

    Its pickle holds the id of the version: where it is loaded, the versions are listed again.

    Parameters
    ----------
    uri, storage_options
        As for `lobster_zarr.store.open_store`.
    version
        Id of a version of the root metadata, or the beginning of it.
    read_only
        Always.

    Raises
    ------
    LobsterZarrError
        As of `lobster_zarr.versioning.snapshot`.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        version: str,
        read_only: bool = True,  # noqa: ARG002 - as of all stores
    ) -> None:
        super().__init__(uri, storage_options, read_only=True)
        self.snapshot = snapshot(self._where, self._access, version)
        self.version = self.snapshot.commit.version

    @override
    def with_read_only(self, read_only: bool = True) -> Self:
        return self

    async def _answer(self, key: str, start: int, stop: int) -> Any:
        import obstore

        options: Any = {"range": (start, stop), "version": self.snapshot.objects[key].version}
        return await obstore.get_async(self.store, key, options=options)

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        entry = self.snapshot.objects.get(key)
        if entry is None:
            return None
        start, stop = _bounds(byte_range, entry.n_bytes)
        if key == ROOT:
            return prototype.buffer.from_bytes(self.snapshot.document[start:stop])
        body = b"" if stop <= start else None

        async def request() -> bytes:
            answer = await self._answer(key, start, stop)
            return bytes(await answer.bytes_async())

        with contextlib.suppress(FileNotFoundError):
            body = await self._asked(READ_VERSION, key, request) if body is None else body
        if body is None:
            raise self._gone(key)
        return prototype.buffer.from_bytes(body)

    def _gone(self, key: str) -> ConflictError:
        msg = f"{key!r} of {self} was removed for good since it was opened: by a lifecycle rule, or a person."
        return ConflictError(f"{msg} Open another version.")

    @override
    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        async def pieces() -> AsyncIterator[bytes]:
            answer = await self._answer(key, start, stop)
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

        if key not in self.snapshot.objects:
            raise FileNotFoundError(key)
        async for piece in self._streamed(READ_VERSION, key, pieces):
            yield piece

    @override
    async def exists(self, key: str) -> bool:
        return key in self.snapshot.objects

    @override
    async def getsize(self, key: str) -> int:
        if key not in self.snapshot.objects:
            raise FileNotFoundError(key)
        return self.snapshot.objects[key].n_bytes

    @override
    async def _list(self, prefix: str | None = None) -> AsyncGenerator[ObjectMeta, None]:
        for key, entry in self.snapshot.objects.items():
            if key.startswith(prefix or ""):
                yield {
                    "path": key,
                    "last_modified": entry.at,
                    "size": entry.n_bytes,
                    "e_tag": entry.etag,
                    "version": entry.version,
                }

    @override
    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        base = f"{prefix.rstrip('/')}/".lstrip("/")
        for name in dict.fromkeys(
            key.removeprefix(base).partition("/")[0] for key in self.snapshot.objects if key.startswith(base)
        ):
            yield name


class VersionedFile(_OfVersion, FileStore):
    """A version of a file; making one lists its versions.

    Parameters
    ----------
    uri, storage_options
        As for `lobster_zarr.store.open_store`.
    version
        Its id, or the beginning of it.
    read_only
        Always.
    """

    reading = READ_VERSION

    def __init__(
        self,
        uri: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        version: str,
        read_only: bool = True,  # noqa: ARG002 - as of all stores
    ) -> None:
        super().__init__(uri, storage_options, read_only=True)
        where = self.file_location
        self.version = history_of(where, self._access).commit(version, str(where)).version

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {"version": self.version}  # which never changes

    @override
    async def check(self) -> None:
        """Do nothing: a version does not change."""

    @override
    async def kept(self) -> Sidecar | None:
        """Return None: what is kept beside a file tells of the current version."""
        return None


def open_version(
    uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, version: str
) -> VersionStore | VersionedFile:
    """Open a version of a store or file; errors as of `lobster_zarr.versioning.snapshot`."""
    where = Location.of(uri)
    where.check()
    check_place(where)
    return (VersionedFile if is_file(uri) else VersionStore)(uri, storage_options, version=version)


def _bounds(byte_range: ByteRequest | None, n_bytes: int) -> tuple[int, int]:
    match byte_range:
        case RangeByteRequest(start, end):
            return start, min(end, n_bytes)
        case OffsetByteRequest(offset):
            return offset, n_bytes
        case SuffixByteRequest(suffix):
            return max(n_bytes - suffix, 0), n_bytes
    return 0, n_bytes
