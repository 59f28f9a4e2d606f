"""A cache as a caller holds it: how large it may be, what is in it, what is brought into it ahead of time.

Must not know how it lies on the disk.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.byterange import Network
from lobster_zarr.cache import DEFAULT_BYTES, folder_of
from lobster_zarr.cached import uri_of
from lobster_zarr.cachedfile import CachedFileStore
from lobster_zarr.cachedstore import ROOTS, CachedStore, open_readable
from lobster_zarr.cacheindex import ROW_BYTES
from lobster_zarr.errors import BudgetError, UnsupportedError
from lobster_zarr.fetch import together
from lobster_zarr.location import Access, display_uri
from lobster_zarr.markup import bar, body, box, figures, heading, mono, table
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.reopen import open_reader
from lobster_zarr.report import Progress, human_bytes, parse_size
from lobster_zarr.store import run
from lobster_zarr.typeset import aligned, human_seconds, shortened, titled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.cache import Folder
    from lobster_zarr.report import Advance

PART_BYTES = 8 << 20
"""Of a whole store or file, so much is asked for at once."""
REQUESTS = 16


@dataclass(frozen=True)
class CachedStoreInfo:
    """What a cache has of one store or file, of all its versions; `used` is when that was last used, in UTC."""

    uri: str
    n_bytes: int
    n_entries: int
    used: str


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache.

    Parameters
    ----------
    path
        Of its folder.
    n_bytes, max_bytes
        What it holds, and what it may hold, the index of its entries included.
    stores
        The last used first.
    """

    path: str
    n_bytes: int
    max_bytes: int
    stores: tuple[CachedStoreInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    def _told(self) -> str:
        return f"{human_bytes(self.n_bytes)} of {human_bytes(self.max_bytes)}, {len(self.stores):,} stores and files"

    def __str__(self) -> str:
        rows = [(s.uri, human_bytes(s.n_bytes), f"{s.n_entries:,}", s.used) for s in self.stores]
        heads = "store or file", "bytes", "ranges", "last used (UTC)"
        lines = [*titled("Cache", self.path), f"  {self._told()}"]
        return "\n".join([*lines, *(aligned([heads, *rows], {1, 2}, (0,)) if rows else [])])

    def _repr_html_(self) -> str:
        most = max((s.n_bytes for s in self.stores), default=0) or 1
        rows = [(mono(s.uri), human_bytes(s.n_bytes), s.used, bar(s.n_bytes / most)) for s in self.stores]
        told = figures((human_bytes(self.n_bytes), "held"), (human_bytes(self.max_bytes), "at most"))
        parts = [table(("store or file", "size", "last used (UTC)", ""), (50, 12, 22, 16), rows, {1})] if rows else []
        return box(str(self), heading("Cache", self._told(), self.path), told, body(*parts))


@dataclass(frozen=True)
class Cache(os.PathLike[str]):
    """A folder that keeps what is read from storages, for all processes of this user.

    Parameters
    ----------
    path
        Of the folder, on a disk of this machine; ``~`` is this user's home. Made when it is first needed. None for
        what ``LOBSTER_ZARR_CACHE`` says, else the user's own.
    max_bytes
        What it may hold, as a number or text such as ``"20GB"``; what was used least recently goes first.

    Raises
    ------
    InvalidArgumentError
        `max_bytes` is no size, or the path no folder of this machine.
    """

    path: str | os.PathLike[str] | None = None
    max_bytes: int | str = DEFAULT_BYTES

    def __post_init__(self) -> None:
        chosen = Access.of({"cache": self.path}).cache or Access.of({"cache": True}).cache
        object.__setattr__(self, "path", chosen)
        object.__setattr__(self, "max_bytes", parse_size(self.max_bytes, "max_bytes"))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def _folder(self) -> Folder:
        return folder_of(str(self.path), int(self.max_bytes))

    def info(self) -> CacheInfo:
        """Tell what it holds."""
        stores: dict[str, CachedStoreInfo] = {}
        for held in self._folder.held():
            uri = uri_of(held.store)
            used = datetime.fromtimestamp(held.used, UTC).strftime("%Y-%m-%d %H:%M")
            known = stores.setdefault(uri, CachedStoreInfo(uri, 0, 0, used))
            n_entries = known.n_entries + held.n_entries
            stores[uri] = CachedStoreInfo(uri, known.n_bytes + held.n_bytes, n_entries, known.used)
        n_bytes = sum(s.n_bytes + s.n_entries * ROW_BYTES for s in stores.values())
        return CacheInfo(str(self.path), n_bytes, int(self.max_bytes), tuple(stores.values()))

    def clear(self, uri: str | os.PathLike[str] | None = None) -> CacheInfo:
        """Drop what it holds of a store or file, its modalities included, or everything; return what is left."""
        wanted = None if uri is None else display_uri(uri)
        stores = [held.store for held in self._folder.held()]
        self._folder.clear(s for s in stores if wanted is None or f"{uri_of(s)}/".startswith(f"{wanted}/"))
        return self.info()


@dataclass(frozen=True)
class PrefetchReport:
    """What was brought into a cache.

    Parameters
    ----------
    uri
        Of the store or file.
    n_requests, n_bytes
        What was read for it.
    held_bytes
        What the cache had already.
    seconds
        Wall time.
    """

    uri: str
    n_requests: int
    n_bytes: int
    held_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        read = f"{human_bytes(self.n_bytes)} in {self.n_requests:,} requests, {human_seconds(self.seconds)}"
        held = f"; {human_bytes(self.held_bytes)} were there" if self.held_bytes else ""
        return f"Cached {shortened(self.uri, 70)}\n  {read}{held}"


def prefetch(
    uri: str | os.PathLike[str],
    where: Any = None,
    var: Any = None,
    *,
    cache: str | os.PathLike[str] | bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    **elements: Any,
) -> PrefetchReport:
    """Bring a query, or the whole of a store or file, into a cache, to be read from there later.

    Parameters
    ----------
    uri
        As of :func:`lobster_zarr.open`; not a local path.
    where, var
        Which cells and genes, as `obs` and `var` of :meth:`Dataset.query`. None of both, and no `elements`: every
        object of the store, or the whole file, as it lies there.
    cache
        As of :func:`lobster_zarr.open`; None for what `storage_options` or ``LOBSTER_ZARR_CACHE`` say, else the
        user's own folder.
    storage_options
        As of :func:`lobster_zarr.open`.
    progress
        Show progress bars when on a terminal.
    **elements
        More of :meth:`Dataset.query`: ``layers``, ``obsm`` and the like.

    Returns
    -------
    PrefetchReport
        The memory that it takes is a query's, or of a whole store a few parts of 8 MiB.

    Raises
    ------
    BudgetError
        It is more than the cache may hold; nothing was read.
    UnsupportedError
        It cannot be cached: it lies on this machine, or the storage gives no strong ETags.
    LobsterZarrError
        As of :func:`lobster_zarr.open` and :meth:`Dataset.query`.
    """
    started = time.perf_counter()
    options = {**(storage_options or {}), **({} if cache is None else {"cache": cache})}
    options |= {} if Access.of(options).cache else {"cache": True}
    if where is None and var is None and not elements:
        found = _whole(uri, options, Progress(enabled=progress))
    else:
        selection = open_dataset(uri, options).query(where, var, **elements)
        selection.to_memory(progress=progress)
        stats = selection.stats
        found = stats.n_requests, stats.n_bytes, stats.cached_bytes
    return PrefetchReport(display_uri(uri), *found, time.perf_counter() - started)


def _whole(uri: str | os.PathLike[str], options: Mapping[str, Any], bars: Progress) -> tuple[int, int, int]:
    """Bring all of a store or file; return requests, bytes, and bytes that were there."""
    store = open_readable(uri, options)
    if not isinstance(store, CachedStore | CachedFileStore):
        msg = f"{display_uri(uri)} is not cached: it lies on this machine, or its URI holds a password or a signature."
        raise UnsupportedError(msg)
    open_reader(store, os.fspath(uri), Network())  # which tells what it is
    sizes = run(_sizes(store))
    n_bytes = sum(sizes.values())
    if n_bytes + -(-n_bytes // PART_BYTES) * ROW_BYTES > store.folder.max_bytes:
        msg = (
            f"{store} has {human_bytes(n_bytes)}, the cache at {store.folder.path.parent} holds "
            f"{human_bytes(store.folder.max_bytes)} at most. Let it hold more (max_bytes), or prefetch a query."
        )
        raise BudgetError(msg)
    with bars.phase("prefetching", n_bytes, "bytes") as advance:
        return run(_bring(store, sizes, advance))


async def _sizes(store: CachedStore | CachedFileStore) -> dict[str, int]:
    if isinstance(store, CachedFileStore):
        return {store.name: store.n_bytes}
    entries = store._list()  # noqa: SLF001 - Zarr's lists have no sizes
    return {entry["path"]: entry["size"] async for entry in entries if entry["path"] not in ROOTS}


async def _bring(
    store: CachedStore | CachedFileStore, sizes: Mapping[str, int], advance: Advance
) -> tuple[int, int, int]:
    gate, read, held = asyncio.Semaphore(REQUESTS), [], []

    async def bring(key: str, start: int, stop: int) -> None:
        async with gate:
            if await store.holds(key, start, stop):
                held.append(stop - start)
            else:
                await store.get(key, default_buffer_prototype(), RangeByteRequest(start, stop))
                read.append(stop - start)
                if not await store.holds(key, start, stop):
                    msg = f"{key!r} of {store} is not kept: it has no strong ETag, or is younger than the store's root."
                    raise UnsupportedError(msg)
        advance(stop - start)

    parts = [(key, start, size) for key, size in sizes.items() for start in range(0, size, PART_BYTES)]
    await together(*(bring(key, start, min(start + PART_BYTES, size)) for key, start, size in parts))
    return len(read), sum(read), sum(held)
