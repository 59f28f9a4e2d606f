"""What a process holds of a job on a cluster: the stores that its tasks have opened, and whether it still runs.

A task carries a :class:`Job`, which is small and holds no secret; what it opens
is kept for the next task of the job in the same process. Must not know what the
tasks do.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.byterange import Network
from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import FormatError, LobsterZarrError, NotFoundError, StorageError
from lobster_zarr.node import RESERVED_PREFIX
from lobster_zarr.reopen import open_reader
from lobster_zarr.report import peak_memory_bytes
from lobster_zarr.source import Source, open_source
from lobster_zarr.store import open_store, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr.abc.store import Store

    from lobster_zarr.address import Address
    from lobster_zarr.stream import Stream

IDLE_SECONDS = 3600
"""What the tasks of a client that vanished had opened is closed then."""


@dataclass(frozen=True)
class Job:
    """One conversion or verification on a cluster, as each of its tasks carries it.

    Parameters
    ----------
    number
        Of this job alone.
    store
        Of the store that is written, or verified.
    source
        Of what is converted, or compared with; None where there is none.
    """

    number: str
    store: Address
    source: Address | None

    @property
    def scratch(self) -> str:
        """Prefix of the keys of scratch objects in the store."""
        return f"{RESERVED_PREFIX}scratch/{self.number}"

    @property
    def place_key(self) -> str:
        """Scratch object: the stored row of each source row (int64), empty where the order is kept."""
        return f"{self.scratch}/place"


class Workplace:
    """What one process has opened for one job. Its tasks may run on several threads.

    Parameters
    ----------
    job
        The job.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.running, self.used = 0, time.monotonic()
        self.is_over = False
        self._lock = threading.RLock()
        self._open = ExitStack()
        self._streams: dict[str, Stream] = {}

    @cached_property
    def store(self) -> Store:
        """The store that is written."""
        self.place  # noqa: B018 - not before it is seen: opening a local path to write makes it
        uri, options = self.job.store.borrow()
        return open_store(uri, options, read_only=False)

    @cached_property
    def place(self) -> np.ndarray | None:
        """The stored row of each source row, int64, or None where the order is kept."""
        uri, options = self.job.store.borrow()
        try:
            found = run(open_store(uri, options).get(self.job.place_key, default_buffer_prototype()))
        except NotFoundError:
            found = None
        if found is None:
            msg = (
                f"the worker on {socket.gethostname()} does not see what is written to {self.job.store.uri}; expected "
                "object storage, or a file system that all workers share with the client. client=False converts here."
            )
            raise StorageError(msg)
        return np.frombuffer(found.to_bytes(), "<i8") if len(found) else None

    @cached_property
    def dataset(self) -> Dataset:
        """The store that is verified, read without its notes."""
        uri, options = self.job.store.borrow()
        opened = self._seen(lambda: open_reader(open_store(uri, options), uri, Network()))
        return Dataset(opened).without_notes()

    @cached_property
    def source(self) -> Source:
        """What is converted, or compared with."""
        if self.job.source is None:
            msg = f"job {self.job.number} has no source"
            raise FormatError(msg)
        uri, options = self.job.source.borrow()
        opening = open_source(uri, options, memory_limit_bytes=0, checksum=False)
        return self._seen(lambda: self._open.enter_context(opening))

    def _seen[T](self, opened: Callable[[], T]) -> T:
        try:
            return opened()
        except NotFoundError as error:
            msg = f"{error} So the worker on {socket.gethostname()} says; expected a path that all workers share."
            raise NotFoundError(msg) from error

    def stream(self, path: str) -> Stream:
        """Return a matrix of the source."""
        with self._lock:
            if path not in self._streams:
                stream = self.source.stream(path)
                if stream is None:
                    msg = f"{path!r} of {self.source.name} is not a matrix any more; it was changed meanwhile."
                    raise FormatError(msg)
                self._streams[path] = stream
            return self._streams[path]

    def put(self, key: str, payload: bytes) -> None:
        """Write an object to the store, unless the job is over."""
        self.check()
        run(self.store.set(key, default_buffer_prototype().buffer.from_bytes(payload)))

    def check(self) -> None:
        """Refuse to go on with a job that is over."""
        if self.is_over:
            msg = f"job {self.job.number} was given up."
            raise StorageError(msg)

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()


_workplaces: dict[str, Workplace] = {}
_ended: deque[str] = deque(maxlen=1000)
_lock = threading.Lock()


@contextmanager
def at_work(job: Job) -> Iterator[Workplace]:
    """Give a task what its process has opened for the job.

    Raises
    ------
    StorageError
        The job is over.
    LobsterZarrError
        What the task raised, without its causes.
    """
    with _lock:
        idle = [p for p in _workplaces.values() if not p.running and time.monotonic() - p.used > IDLE_SECONDS]
        for forgotten in idle:
            _workplaces.pop(forgotten.job.number).close()
        place = _workplaces.get(job.number) or Workplace(job)
        place.is_over |= job.number in _ended
        place.check()
        _workplaces[job.number] = place
        place.running += 1
    try:
        yield place
    except LobsterZarrError as error:
        # Not all causes can be pickled, and they may hold what must not travel.
        error.__cause__ = error.__context__ = None
        raise
    finally:
        with _lock:
            place.running -= 1
            place.used = time.monotonic()


async def end(number: str) -> int:
    """End a job in this process: nothing of it is written from then on. Waits for tasks under way.

    Returns
    -------
    int
        The most memory that the process has held.
    """
    with _lock:
        _ended.append(number)
        place = _workplaces.pop(number, None)
        if place is not None:
            place.is_over = True
    while place is not None and place.running:  # noqa: ASYNC110 - threads of dask's set no event
        await asyncio.sleep(0.02)
    if place is not None:
        place.close()
    return peak_memory_bytes()
