"""Turns a URI into a Zarr store.

Knows obstore, Zarr's store interface, timeouts and retries; all above it speak
Zarr keys. Must not know what is kept in a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, override

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store
from zarr.storage import ObjectStore, ZipStore

from lobster_zarr import errors, regions
from lobster_zarr.address import Address
from lobster_zarr.connection import connect, is_renewed
from lobster_zarr.location import Access, Location, check_key, display_uri, is_local, local_path
from lobster_zarr.loop import run
from lobster_zarr.redact import fit_to_show
from lobster_zarr.refusal import DELETE, LIST, READ, WRITE, Attempt, Operation, ask_s3

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from obstore import ObjectMeta
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = [
    "UriStore",
    "display_uri",
    "explain_missing",
    "is_local",
    "local_path",
    "open_store",
    "run",
]

SINGLE_PUT_BYTES = 256 << 20  # one PUT up to here; obstore by itself splits from 5 MiB
_PART_BYTES = 32 << 20
_PIECE_BYTES = 256 << 10
_obstore_processes: set[int] = set()


class UriStore(ObjectStore[Any]):
    """A Zarr store at a URI; obstore beneath.

    Failures raise this package's errors. A bucket of another region is followed
    there, once, and credentials that were renewed in the meantime (a token file, a
    login) are taken up. Keys cannot leave the URI. Neither its
    text nor its pickle holds credentials: a pickle carries the URI without user
    and query, and the options that are not secret. Where it is loaded, those that
    were passed here are asked for at this process (`lobster_zarr.agent`), if it
    still runs on the same machine; else the environment there has to have some.

    Parameters
    ----------
    uri, storage_options, read_only
        As for `open_store`.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        read_only: bool = True,
    ) -> None:
        self._where = Location.of(uri)
        self._where.check()
        self._access = regions.settled(self._where, Access.of(storage_options))
        super().__init__(connect(self._where, self._access, read_only=read_only), read_only=read_only)
        self._uploads: Any = None

    @override
    def with_read_only(self, read_only: bool = False) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _read_only=read_only)
        return twin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UriStore) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]  # as all Zarr stores

    def _identity(self) -> tuple[object, ...]:
        return self._where, self._access, self.read_only

    def __str__(self) -> str:
        return str(self._where)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def address(self) -> Address:
        """Where it is, as may be told to another process."""
        return Address.from_parts(self._where, self._access)

    def __getstate__(self) -> dict[str, Any]:
        return {"read_only": self.read_only, **vars(self.address)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        address, more = Address.taken(state)
        uri, options = address.borrow()
        try:
            self.__dict__.update(type(self)(uri, options, **more).__dict__)
        except errors.CredentialsError as error:
            if not address.lent or "secret" in options:
                raise
            raise errors.CredentialsError(
                f"{error} What was passed in storage_options is lent by the process that it was passed to, as long "
                f"as that runs, and on its machine alone; elsewhere {uri} needs credentials of its own."
            ) from error

    @property
    @override
    def supports_listing(self) -> bool:
        return self._where.scheme not in {"http", "https"}

    def _check_process(self, operation: Operation, key: str) -> None:
        _obstore_processes.add(os.getpid())
        if len(_obstore_processes) > 1:  # its threads stayed in the parent: it would wait for them for ever
            raise errors.StorageError(
                f"Cannot {operation.verb} {key!r} in {self}: this process was forked from one that had used "
                "storage. Start workers with the 'spawn' or 'forkserver' method."
            )

    async def _once[T](
        self, operation: Operation, key: str, pieces: Callable[[], AsyncIterator[T]], content: Any
    ) -> AsyncGenerator[T, None]:
        from obstore.exceptions import BaseError

        self._check_process(operation, key)
        start = time.monotonic()
        try:
            async for piece in pieces():
                yield piece
            return
        except errors.LobsterZarrError:
            raise
        except (BaseError, OSError) as error:
            if operation is READ and isinstance(error, FileNotFoundError):
                raise
            caught = error
        attempt = Attempt(operation, key, self._where, self._access, content, time.monotonic() - start)
        failure = await asyncio.to_thread(attempt.failure, caught)
        # Raised out here, so that no context holds what is not fit to show.
        raise failure from fit_to_show(caught, secret=self._where.is_secret)

    async def _streamed[T](
        self, operation: Operation, key: str, pieces: Callable[[], AsyncIterator[T]], content: Any = b""
    ) -> AsyncGenerator[T, None]:
        """Make a request; where that helps, once again in the bucket's own region or with renewed credentials."""
        tried, has_begun = self.store, False
        try:
            async for piece in self._once(operation, key, pieces, content):
                has_begun = True
                yield piece
            return
        except errors.StorageError as failure:
            if has_begun or not await self._mended(tried, failure):
                raise
        async for piece in self._once(operation, key, pieces, content):
            yield piece

    async def _asked[T](
        self, operation: Operation, key: str, request: Callable[[], Awaitable[T]], content: Any = b""
    ) -> T:
        """As `_streamed`, of an answer in one piece."""

        async def whole() -> AsyncIterator[T]:
            yield await request()

        [answer] = [answer async for answer in self._streamed(operation, key, whole, content)]
        return answer

    async def _mended(self, tried: Any, failure: errors.StorageError) -> bool:
        """Connect anew where a failure shows that it would help; whether it did."""
        if self._where.scheme != "s3" or isinstance(failure, (errors.NetworkError, errors.BucketNotFoundError)):
            return False
        if self.store is not tried:  # another request was quicker
            return True
        if failure.region:
            self._access = regions.learn(self._where, self._access, failure.region)
        elif not await asyncio.to_thread(is_renewed, tried, self._access):
            return False
        self.store, self._uploads = connect(self._where, self._access, read_only=self.read_only), None
        return True

    @property
    def _writer(self) -> Any:
        if not self.is_remote:
            return self.store
        if self._uploads is None:
            self._uploads = connect(self._where, self._access, read_only=False, uploads_of=self.store)
        return self._uploads

    async def _put(self, key: str, value: Buffer, **options: Any) -> None:
        """Write an object; with ``mode="create"``, only where there is none."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        content, n_bytes = value.as_buffer_like(), len(value)
        storage_class = self._access.placement.class_of(n_bytes) if self._where.scheme == "s3" else None
        options |= {"attributes": {"Storage-Class": storage_class}} if storage_class else {}
        multipart = n_bytes > SINGLE_PUT_BYTES and "mode" not in options  # in parts, it would overwrite

        async def put() -> None:
            with contextlib.suppress(AlreadyExistsError):
                await obstore.put_async(
                    self._writer, key, content, use_multipart=multipart, chunk_size=_PART_BYTES, **options
                )

        await self._asked(WRITE, key, put, content)

    async def explain_missing(self) -> errors.StorageError | None:
        """As the function of this name."""
        if self._where.scheme != "s3":
            return None
        answer = await asyncio.to_thread(ask_s3, self._where, self._access, LIST, "")
        return None if isinstance(answer, errors.AccessDeniedError) else answer  # listing is not needed

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        check_key(key)
        empty = prototype.buffer.from_bytes(b"")
        if isinstance(byte_range, RangeByteRequest) and byte_range.end <= byte_range.start:
            return empty if await self.exists(key) else None
        try:
            return await self._asked(READ, key, lambda: super(UriStore, self).get(key, prototype, byte_range))
        except errors.StorageError as failure:
            # Only a failure that has no other explanation is worth a HEAD.
            beyond = type(failure) is errors.StorageError and byte_range and await self._is_beyond(key, byte_range)
            if not beyond:
                raise
            return empty
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def is_remote(self) -> bool:
        """Whether bytes arrive over a network, one after another."""
        return self._where.scheme not in {"file", "memory"}

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Read a range of an object piece by piece, as it arrives. One request.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        StorageError
            The storage refused, or broke off.
        """
        import obstore

        check_key(key)

        async def pieces() -> AsyncIterator[bytes]:
            answer = await obstore.get_async(self.store, key, options={"range": (start, stop)})
            async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                yield bytes(piece)

        async for piece in self._streamed(READ, key, pieces):
            yield piece

    async def _is_beyond(self, key: str, byte_range: ByteRequest) -> bool:
        size = await self.getsize(key)
        if isinstance(byte_range, RangeByteRequest):
            return byte_range.start >= size
        if isinstance(byte_range, OffsetByteRequest):
            return byte_range.offset >= size
        return min(byte_range.suffix, size) == 0

    @override
    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    @override
    async def exists(self, key: str) -> bool:
        check_key(key)
        try:
            return await self._asked(READ, key, lambda: super(UriStore, self).exists(key))
        except NotADirectoryError:
            return False

    @override
    async def getsize(self, key: str) -> int:
        check_key(key)
        return await self._asked(READ, key, lambda: super(UriStore, self).getsize(key))

    @override
    async def set(self, key: str, value: Buffer) -> None:
        check_key(key)
        self._check_writable()
        await self._put(key, value)

    @override
    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        check_key(key)
        self._check_writable()
        await self._put(key, value, mode="create")

    @override
    async def delete(self, key: str) -> None:
        check_key(key)
        await self._asked(DELETE, key, lambda: super(UriStore, self).delete(key))

    @override
    async def delete_dir(self, prefix: str) -> None:
        import obstore

        self._check_writable()
        keys = [key async for key in self.list_prefix(prefix)]
        await self._asked(DELETE, prefix, lambda: obstore.delete_async(self.store, keys))  # on S3, 1,000 a request

    @override
    async def _list(self, prefix: str | None = None) -> AsyncGenerator[ObjectMeta, None]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        async for item in self._streamed(LIST, prefix or "", lambda: super(UriStore, self)._list(prefix)):
            yield item

    @override
    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        async for name in self._streamed(LIST, prefix, lambda: super(UriStore, self).list_dir(prefix)):
            yield name


def open_store(
    uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True
) -> Store:
    """Open a Zarr store by its URI; makes no request.

    Parameters
    ----------
    uri
        ``s3://``, ``gs://``, ``az://`` (account from the environment), ``http(s)://`` (read only),
        ``memory://name`` (one for all of the process), ``file://``, a local path, or a local ``.zip``
        (read only). A writable local directory is made.
    storage_options
        s3fs's names: key, secret, token, endpoint_url, anon, profile, requester_pays, client_kwargs
        (region_name, endpoint_url, verify); also region, and allow_http for an unencrypted
        endpoint off loopback. Without keys the ``AWS_*`` variables, then boto3's chain, give them.
        Of what is written: sse, sse_kms_key_id, bucket_key, storage_class. Of the way there:
        accelerate, connect_timeout and read_timeout (seconds), max_attempts.
    read_only
        Whether writes are refused.

    Returns
    -------
    zarr.abc.store.Store
        A `UriStore`, or a `zarr.storage.ZipStore`.

    Raises
    ------
    InvalidArgumentError
        An unknown scheme or option, or an unencrypted endpoint.
    CredentialsError
        No AWS credentials are to be found, or the profile is unknown.
    NotFoundError, FormatError
        A local path that does not exist, or is no store.
    UnsupportedError
        Writing where that cannot be done.
    """
    where = Location.of(uri)
    path = Path(where.root)
    if where.scheme != "file" or path.suffix.lower() != ".zip" or path.is_dir():
        return UriStore(uri, storage_options, read_only=read_only)
    Access.of(storage_options)
    if not read_only:
        raise errors.UnsupportedError(f"{where} cannot be written, expected a directory or a bucket.")
    if not path.exists():
        raise errors.NotFoundError(f"There is no store at {where}, expected a zip file. Check the path.")
    if not zipfile.is_zipfile(path):
        raise errors.FormatError(f"{where} is not a zip file, or is cut short. Copy it again.")
    return ZipStore(path, mode="r")


async def explain_missing(store: Store) -> errors.StorageError | None:
    """Why a store that answered "not found" may be missing: its bucket is, or None. One request.

    For an opener that found nothing: by an object's 404 the two cannot be told apart.
    """
    return await store.explain_missing() if isinstance(store, UriStore) else None
