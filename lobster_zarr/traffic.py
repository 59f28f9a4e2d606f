"""Counts what is read, and bounds what of it is in memory at once.

Must not know stores or arrays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@dataclass
class Stats:
    """What was really read: requests and body bytes, by key; and what a cache on this machine had of it."""

    n_requests: int = 0
    n_bytes: int = 0
    by_array: dict[str, tuple[int, int]] = field(default_factory=dict)
    n_cached: int = 0
    """Requests that were not made, as a cache had the answer."""
    cached_bytes: int = 0
    begun_bytes: int = field(default=0, repr=False, compare=False)
    """Of ranges that reads were planned to fetch, whether they have arrived or not: for progress bars."""

    def add(self, path: str, n_bytes: int) -> None:
        """Count one response."""
        self.n_requests += 1
        self.n_bytes += n_bytes
        requests, total = self.by_array.get(path, (0, 0))
        self.by_array[path] = requests + 1, total + n_bytes

    def add_cached(self, n_bytes: int) -> None:
        """Count one answer of a cache."""
        self.n_cached += 1
        self.cached_bytes += n_bytes

    @property
    def arrived_bytes(self) -> int:
        """Bytes from wherever they came."""
        return self.n_bytes + self.cached_bytes


_observers: ContextVar[tuple[Stats, ...]] = ContextVar("lobster_zarr_observers", default=())


@contextmanager
def observed(stats: Stats) -> Iterator[None]:
    """Count, in `stats` too, what is read inside the block, by tasks that it starts as well."""
    token = _observers.set((*_observers.get(), stats))
    try:
        yield
    finally:
        _observers.reset(token)


def counting(own: Stats) -> tuple[Stats, ...]:
    """Return everything that counts what is read here and now, `own` first."""
    return (own, *_observers.get())


class Window:
    """Bounds the bytes that are in memory at once; first come, first served.

    What is larger than all of it waits until it is alone.

    Parameters
    ----------
    limit_bytes
        What fits.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, n_bytes: int) -> AsyncIterator[None]:
        """Hold room for some bytes."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((n_bytes, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.used_bytes -= n_bytes
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            n_bytes, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif not self.used_bytes or self.used_bytes + n_bytes <= self.limit_bytes:
                self._waiting.popleft()
                self.used_bytes += n_bytes
                turn.set_result(None)
            else:
                break
