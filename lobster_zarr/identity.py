"""Notices that a store was overwritten while it was open.

What is kept of an open store (offsets, places of chunks, copies of small
objects) would not fit what lies there now. Must not know AnnData.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from lobster_zarr.cached import Cached
from lobster_zarr.cachedstore import CachedStore
from lobster_zarr.errors import ChunkDecodeError, ConflictError, FormatError, NotFoundError
from lobster_zarr.h5store import FileStore
from lobster_zarr.tree import is_ours, read_tree

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import Tree

FRESH_SECONDS = 30
"""A store is not looked at again so soon."""


@dataclass(eq=False)
class Identity:
    """The metadata that an open store had.

    Parameters
    ----------
    uri
        For messages.
    fetcher
        Of the store.
    tree
        What its metadata was.
    """

    uri: str
    fetcher: Fetcher
    tree: Tree
    seen: float = field(default_factory=time.monotonic)
    is_stale: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        store = self.fetcher.store
        if isinstance(store, FileStore) and not store.is_met:
            self.seen = float("-inf")

    async def check(self, *, now: bool = False) -> None:
        """Read the root metadata again, of a file its ETag, where that was long ago: one request, beside a query's.

        Parameters
        ----------
        now
            However recently it was read: something does not fit.

        Raises
        ------
        ConflictError
            The store is another than the one that was opened, or gone.
        """
        store = self.fetcher.store
        own = store if isinstance(store, FileStore | CachedStore) else None
        is_free = own is not None and not own.is_remote
        patience = store.patience_seconds if isinstance(store, Cached) and store.is_caching else FRESH_SECONDS
        is_recent = not (now or is_free) and time.monotonic() - self.seen < patience
        if is_recent or not (own is not None or is_ours(self.tree)):
            return
        self.seen = time.monotonic()
        try:
            if own is not None:
                await own.check()
            elif (await read_tree(store, self.uri)).nodes != self.tree.nodes:
                raise self.stale()
        except (NotFoundError, FormatError, ConflictError) as error:
            self.seen, self.is_stale = float("-inf"), True  # whoever asks next is told as well
            if isinstance(error, ConflictError):
                raise
            raise self.stale() from error

    @cached_property
    def digest(self) -> str:
        """A digest of the metadata."""
        return hashlib.sha256(json.dumps(self.tree.nodes, sort_keys=True).encode()).hexdigest()[:32]

    def stale(self) -> ConflictError:
        """Make the error of a store that is another by now."""
        return ConflictError(f"{self.uri} was overwritten, or removed, since it was opened; open it again.")

    async def guarded[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work on the store and check meanwhile; what seems damaged may be another store by now.

        Raises
        ------
        ConflictError
            As :meth:`check`.
        """
        done, stale = await asyncio.gather(work, self.check(), return_exceptions=True)
        if isinstance(done, ChunkDecodeError | FormatError) and stale is None:
            (stale,) = await asyncio.gather(self.check(now=True), return_exceptions=True)
        for failure in (stale, done):
            if isinstance(failure, BaseException):
                raise failure
        return cast("T", done)
