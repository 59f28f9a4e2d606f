"""One file on a storage, read by ranges, of which every answer belongs to the file that was first met.

Knows obstore's conditional requests. Must not know what the file holds.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, override

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.address import Address
from lobster_zarr.errors import ConflictError, FormatError, NotFoundError, StorageError
from lobster_zarr.h5format import SIGNATURE
from lobster_zarr.location import Access, Location
from lobster_zarr.refusal import READ
from lobster_zarr.sidecar import SUFFIX, Sidecar, cached_path
from lobster_zarr.store import UriStore

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from lobster_zarr.refusal import Operation

SUFFIXES = (".h5ad", ".h5mu", ".h5", ".hdf5")
MODALITY = re.compile(r"(.+\.(?:h5mu|zip))/(?:mod/)?([^/]+)/?")
"""A modality of a file, as mudata spells it: ``file.h5mu/mod/rna`` or ``file.h5mu/rna``."""
PIECE_BYTES = 256 << 10
_SIGNATURE_PLACES = (0, 512, 1024, 2048, 4096, 8192)
_replaced: set[tuple[str, str]] = set()
"""Versions of files that were found to be replaced: what was kept of them is not used again."""


def is_file(uri: str | os.PathLike[str]) -> bool:
    """Whether a URI names an HDF5 file: by its ending; of a local one, by what it is."""
    where = Location.of(uri)
    if where.scheme != "file":
        return posixpath.splitext(where.prefix or where.root)[1].lower() in SUFFIXES
    path = Path(where.root)
    if path.is_dir() or not path.exists():
        return path.suffix.lower() in SUFFIXES and not path.is_dir()
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return any((file.seek(at), file.read(8) == SIGNATURE)[1] for at in _SIGNATURE_PLACES)


class FileStore(UriStore):
    """A store of which every key is the same file; read only.

    The first answer says which file it is (ETag, size); later requests are
    conditional, so that a file that was replaced in the meantime is an error, never
    a mixture.

    Parameters
    ----------
    uri, storage_options
        As for `lobster_zarr.store.open_store`.
    """

    reading: ClassVar[Operation] = READ
    """What a request for a part of the file is."""

    def __init__(
        self, uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True
    ) -> None:
        where = Location.of(uri)
        where.check()
        if where.scheme == "file":
            if not Path(where.root).is_file():
                raise NotFoundError(f"There is no file at {where}. Check the path.")
            where = replace(where, root=str(Path(where.root).absolute()))
        self.file_location, self.etag, self.n_bytes = where, "", -1
        self.is_met = False
        folder, _, self.name = (where.prefix if where.scheme not in {"file", "memory"} else where.root).rpartition("/")
        if where.scheme == "file":
            parent = replace(where, root=str(Path(where.root).parent))
        elif where.scheme == "memory":
            parent = replace(where, root=folder)
        else:
            parent = replace(where, prefix=folder)
        super().__init__(parent.root if where.scheme == "file" else parent.url, storage_options, read_only=read_only)

    @override
    def with_read_only(self, read_only: bool = False) -> Self:
        return self

    @override
    def __str__(self) -> str:
        return str(self.file_location)

    @override
    def _identity(self) -> tuple[object, ...]:
        return self.file_location, self._access

    @property
    @override
    def address(self) -> Address:
        return Address.from_parts(self.file_location, self._access)

    async def meet(self, n_bytes: int) -> bytes:
        """Read the first bytes of the file, and learn which file it is. One request.

        Raises
        ------
        NotFoundError
            There is no such file.
        FormatError
            It is empty.
        StorageError
            The storage refused.
        """
        import obstore

        async def request() -> tuple[Any, bytes]:
            options: Any = {"range": (0, n_bytes), **self.options}
            answer = await obstore.get_async(self.store, self.name, options=options)
            return answer.meta, bytes(await answer.bytes_async())

        try:
            found = await self._found(request)
        except StorageError as failure:
            # Of an empty file no range can be answered; only a failure without another explanation is worth a HEAD.
            if type(failure) is StorageError and await self.getsize(self.name) == 0:
                raise FormatError(f"{self} is empty; expected an HDF5 file. Copy it again.") from failure
            raise
        if found is None:
            raise await self.explain_missing() or NotFoundError(f"There is no file at {self}. Check the path.")
        meta, body = found
        self.meant(meta["e_tag"] or "", meta["size"])
        self.is_met = True
        return body

    async def _found[T](self, request: Callable[[], Awaitable[T]]) -> T | None:
        """Make a request; None where there is no such file. No error has the client's as its context, URL and all."""
        with contextlib.suppress(FileNotFoundError):
            return await self._asked(self.reading, self.name, request)
        return None

    async def check(self) -> None:
        """Ask whether the file is still the one that it was. One request.

        Raises
        ------
        ConflictError
            It is another, or gone.
        """
        import obstore

        meta = await self._found(lambda: obstore.head_async(self.store, self.name))
        if meta is None or (meta["e_tag"] or "", meta["size"]) != (self.etag, self.n_bytes):
            raise self.changed()

    def meant(self, etag: str, n_bytes: int) -> None:
        """Take for granted which file it is."""
        self.etag, self.n_bytes = etag, n_bytes

    async def kept(self) -> Sidecar | None:
        """Return what was kept of the file, by this user or beside it. At most one request.

        Raises
        ------
        FormatError
            It is damaged.
        """
        local = self.cache_path
        if local.is_file():
            found = Sidecar.parse(local.read_bytes(), str(local))
        else:
            body = None if self.file_location.query else await self._beside()
            if body is None:
                return None
            found = Sidecar.parse(body, f"{self}{SUFFIX}")
        return None if (str(self), found.etag) in _replaced else found

    @property
    def cache_path(self) -> Path:
        """Where this user keeps what is kept of the file."""
        return cached_path(f"{self._access.endpoint_url or ''} {self}")

    async def _beside(self) -> bytes | None:
        import obstore
        from obstore.exceptions import PermissionDeniedError

        async def request() -> bytes | None:
            try:
                answer = await obstore.get_async(self.store, self.name + SUFFIX)
                return bytes(await answer.bytes_async())
            except (FileNotFoundError, PermissionDeniedError):  # S3's answer where it may not be listed
                return None

        return await self._asked(READ, self.name + SUFFIX, request)

    async def keep(self, body: bytes) -> None:
        """Write what is to be kept beside the file; of a store that is not read only."""
        await self.set(self.name + SUFFIX, default_buffer_prototype().buffer.from_bytes(body))

    @property
    def options(self) -> dict[str, Any]:
        """What makes a request conditional on the file that was met."""
        is_strong = self.etag and not self.etag.startswith("W/")  # a weak one matches nothing, by RFC 9110
        return {"if_match": self.etag} if is_strong and self._where.scheme != "memory" else {}

    async def _answer(self, start: int, stop: int) -> Any:
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            options: Any = {"range": (start, stop), **self.options}
            answer = await obstore.get_async(self.store, self.name, options=options)
        except PreconditionError:
            answer = None
        if answer is None or answer.meta["size"] != self.n_bytes:
            raise self.changed()
        return answer

    def changed(self) -> ConflictError:
        """Make the error of a file that is another by now."""
        _replaced.add((str(self), self.etag))
        return ConflictError(
            f"{self} was replaced since it was opened, or since its index was kept; open it again, and keep its "
            "index anew (`lobster-zarr index`) where there is one."
        )

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if not isinstance(byte_range, RangeByteRequest):
            return None  # there is no object but the file
        wanted = byte_range
        if wanted.end > self.n_bytes:
            raise FormatError(
                f"{self} ends at byte {self.n_bytes:,}, but part of it should lie at {wanted.start:,} to "
                f"{wanted.end:,}: it is truncated or damaged. Copy it again."
            )

        async def request() -> bytes:
            answer = await self._answer(wanted.start, wanted.end)
            return bytes(await answer.bytes_async())

        body = await self._found(request)
        if body is None:
            raise self.changed()
        return prototype.buffer.from_bytes(body)

    async def read(self, start: int, stop: int) -> bytes:
        """Read a range. One request."""
        found = await self.get(self.name, default_buffer_prototype(), RangeByteRequest(start, stop))
        return b"" if found is None else found.to_bytes()

    @override
    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        if stop > self.n_bytes:  # says why
            await self.read(start, stop)

        async def pieces() -> AsyncIterator[bytes]:
            answer = await self._answer(start, stop)
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

        async for piece in self._streamed(self.reading, self.name, pieces):
            yield piece


def open_file_store(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> FileStore:
    """Open one file by its URI; makes no request. Arguments and errors as of `open_store`."""
    Access.of(storage_options)
    return FileStore(uri, storage_options)
