"""Turns a URI into a Zarr store.

Knows obstore, Zarr's store interface, timeouts and retries; all above it speak
Zarr keys. Must not know what is kept in a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, override

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store
from zarr.storage import ObjectStore, ZipStore

from lobster_zarr import errors
from lobster_zarr.address import Address
from lobster_zarr.location import Access, Location, check_key, display_uri, is_local, local_path
from lobster_zarr.loop import run
from lobster_zarr.rawfile import open_file
from lobster_zarr.refusal import (
    CONNECT_SECONDS,
    DELETE,
    LIST,
    READ,
    STALL_SECONDS,
    WRITE,
    Attempt,
    Operation,
    ask_s3,
    refused_by_system,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping

    from obstore import ObjectMeta
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = [
    "UriStore",
    "display_uri",
    "explain_missing",
    "is_local",
    "local_path",
    "open_file",
    "open_store",
    "run",
]

SINGLE_PUT_BYTES = 256 << 20  # one PUT up to here; obstore by itself splits from 5 MiB
_PART_BYTES = 32 << 20
_PIECE_BYTES = 256 << 10
_REQUEST_SECONDS = 300  # 256 MiB at 7 Mbit/s
_RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=50)}  # after 100 ms, doubling
_memory: dict[str, Any] = {}  # obstore MemoryStores by name, for the life of the process
_obstore_processes: set[int] = set()


def _connect(where: Location, access: Access, *, read_only: bool) -> Any:
    """The obstore store of a location; no request is made."""
    from obstore import store as obstores

    if where.scheme == "file":
        return obstores.LocalStore(_local_root(where, read_only=read_only), automatic_cleanup=True)
    if where.scheme == "memory":
        return _memory.setdefault(where.root, obstores.MemoryStore())
    client: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=_REQUEST_SECONDS),
        "pool_max_idle_per_host": "64",
        "allow_http": where.scheme == "http" or (access.endpoint_url or "").startswith("http:"),
        "allow_invalid_certificates": access.verify is False,
    }
    if read_only:  # of a writer it would also count the time of its upload
        client["read_timeout"] = timedelta(seconds=STALL_SECONDS)
    if isinstance(access.verify, str):
        client["root_certificate"] = Path(access.verify).read_bytes()
    common: Any = {"client_options": client, "retry_config": _RETRY}
    if where.scheme in {"http", "https"}:
        if not read_only:
            raise errors.UnsupportedError(f"{where} cannot be written, expected s3:// or a local path.")
        return obstores.HTTPStore(where.url, **common)
    common |= {"prefix": where.prefix or None, "config": {"skip_signature": True} if access.anon else {}}
    if where.scheme == "gs":
        return obstores.GCSStore(where.root, **common)
    if where.scheme == "az":
        return obstores.AzureStore(where.root, **common)
    access.check_endpoint()
    provider, region = (None, None) if access.anon else access.provider()
    path_style = bool(access.endpoint_url) or "." in where.root  # no certificate covers a.b.s3.amazonaws.com
    common["config"] |= {
        "region": access.region or region or "us-east-1",
        "virtual_hosted_style_request": not path_style,
        "request_payer": access.requester_pays,
    }
    if access.endpoint_url:  # under this name it wins over the environment, under "endpoint" it does not
        common["config"]["aws_endpoint_url_s3"] = access.endpoint_url
    return obstores.S3Store(where.root, credential_provider=provider, **common)


def _local_root(where: Location, *, read_only: bool) -> Path:
    path = Path(where.root)
    if path.is_file():
        raise errors.FormatError(f"{where} is a file, expected a Zarr store (a directory). Convert it first.")
    if read_only and not path.exists():
        raise errors.NotFoundError(f"There is no store at {where}, expected a directory. Check the path.")
    try:
        if not read_only:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_by_system(error, WRITE, "", where) from error
    return path


class UriStore(ObjectStore[Any]):
    """A Zarr store at a URI; obstore beneath.

    Failures raise this package's errors. Keys cannot leave the URI. Neither its
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
        self._access = Access.of(storage_options)
        super().__init__(_connect(self._where, self._access, read_only=read_only), read_only=read_only)

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
        uri, options = Address(state["uri"], state["options"], state["lent"]).borrow()
        try:
            store = UriStore(uri, options, read_only=state["read_only"])
        except errors.CredentialsError as error:
            if not state["lent"] or "secret" in options:
                raise
            raise errors.CredentialsError(
                f"{error} What was passed in storage_options is lent by the process that it was passed to, as long "
                f"as that runs, and on its machine alone; elsewhere {uri} needs credentials of its own."
            ) from error
        self.__dict__.update(store.__dict__)

    @property
    @override
    def supports_listing(self) -> bool:
        return self._where.scheme not in {"http", "https"}

    @contextlib.asynccontextmanager
    async def _explained(self, operation: Operation, key: str, content: Any = b"") -> AsyncIterator[None]:
        from obstore.exceptions import BaseError

        _obstore_processes.add(os.getpid())
        if len(_obstore_processes) > 1:  # its threads stayed in the parent: it would wait for them for ever
            raise errors.StorageError(
                f"Cannot {operation.verb} {key!r} in {self}: this process was forked from one that had used "
                "storage. Start workers with the 'spawn' or 'forkserver' method."
            )
        try:
            yield
        except errors.LobsterZarrError:
            raise
        except (BaseError, OSError) as error:
            if operation is READ and isinstance(error, FileNotFoundError):
                raise
            attempt = Attempt(operation, key, self._where, self._access, content)
            # obstore's text holds the URL as it was sent, signature and all.
            cause = None if self._where.is_secret else error
            raise await asyncio.to_thread(attempt.failure, error) from cause

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
            async with self._explained(READ, key):
                return await super().get(key, prototype, byte_range)
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
        async with self._explained(READ, key):
            answer = await obstore.get_async(self.store, key, options={"range": (start, stop)})
            async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                yield bytes(piece)

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
            async with self._explained(READ, key):
                return await super().exists(key)
        except NotADirectoryError:
            return False

    @override
    async def getsize(self, key: str) -> int:
        check_key(key)
        async with self._explained(READ, key):
            return await super().getsize(key)

    @override
    async def set(self, key: str, value: Buffer) -> None:
        import obstore

        check_key(key)
        self._check_writable()
        content = value.as_buffer_like()
        async with self._explained(WRITE, key, content):
            multipart = len(value) > SINGLE_PUT_BYTES
            await obstore.put_async(self.store, key, content, use_multipart=multipart, chunk_size=_PART_BYTES)

    @override
    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        check_key(key)
        async with self._explained(WRITE, key, value.as_buffer_like()):
            await super().set_if_not_exists(key, value)

    @override
    async def delete(self, key: str) -> None:
        check_key(key)
        async with self._explained(DELETE, key):
            await super().delete(key)

    @override
    async def delete_dir(self, prefix: str) -> None:
        import obstore

        self._check_writable()
        keys = [key async for key in self.list_prefix(prefix)]
        async with self._explained(DELETE, prefix):
            await obstore.delete_async(self.store, keys)  # on S3, a thousand keys a request

    @override
    async def _list(self, prefix: str | None = None) -> AsyncGenerator[ObjectMeta, None]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        async with self._explained(LIST, prefix or ""):
            async for item in super()._list(prefix):
                yield item

    @override
    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        async with self._explained(LIST, prefix):
            async for name in super().list_dir(prefix):
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
