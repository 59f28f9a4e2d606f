"""Runs the tasks of a job on a dask.distributed cluster, and ends them for certain.

Knows dask's client. Must not know what the tasks do.
"""

from __future__ import annotations

import itertools
import sys
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self

from lobster_zarr.errors import InvalidArgumentError, NetworkError, StorageError
from lobster_zarr.workplace import Job, end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from distributed import Client, Future

    from lobster_zarr.address import Address

MEMORY_SHARE = 0.6
"""Of what dask allows a worker: from there on it spills, later it pauses."""


def find_client(client: Client | Literal[False] | None) -> Client | None:
    """Return the client that was passed, or the active one, or None where the work is done here.

    Parameters
    ----------
    client
        False for none. None for the active one, if there is one; within a task
        of a cluster there is none, because a task that waits for tasks may wait for ever.

    Raises
    ------
    InvalidArgumentError
        It is not a client, or one of coroutines.
    """
    if client is False or (client is None and "distributed" not in sys.modules):
        return None
    import distributed

    if client is None:
        with suppress(ValueError):
            distributed.get_worker()
            return None
        with suppress(ValueError):
            found = distributed.default_client()
            return found if found.status == "running" and not found.asynchronous else None
        return None
    if not isinstance(client, distributed.Client) or client.asynchronous:
        msg = f"client is {client!r}; expected a distributed.Client that is not asynchronous, None or False."
        raise InvalidArgumentError(msg)
    return client


class Crew:
    """The tasks of one job on a cluster; a context manager.

    Leaving the block, for whatever reason, cancels what was not done and waits
    for what is under way: afterwards nothing of the job is written any more.

    Parameters
    ----------
    client
        Of the cluster.
    store, source
        As of a :class:`Job`.
    """

    def __init__(self, client: Client, store: Address, source: Address | None) -> None:
        self.client = client
        self.job = Job(uuid.uuid4().hex, store, source)
        self.peak_memory_bytes = 0
        self._futures: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from distributed.comm import CommClosedError

        with suppress(CommClosedError, OSError):  # the cluster is gone, and the tasks with it
            self.client.cancel(list(self._futures.values()), force=True)
            # A worker that is lost meanwhile writes nothing more either.
            peaks = self.client.run(end, self.job.number, on_error="ignore")
            self.peak_memory_bytes = max([p for p in peaks.values() if isinstance(p, int)], default=0)
        self._futures.clear()

    @property
    def n_threads(self) -> int:
        """Tasks that run at once; at least one, so that an adaptive cluster gets a reason to grow."""
        return max(sum(self._threads()), 1)

    def _threads(self) -> list[int]:
        return list(self.client.nthreads().values())

    def memory_per_task(self, limit_bytes: int, base_bytes: int) -> int:
        """Return what one task may use for its block.

        Parameters
        ----------
        limit_bytes
            What a worker process should not exceed.
        base_bytes
            What a process holds before its first task.
        """
        workers = self.client.scheduler_info()["workers"].values()
        allowed = [int(w["memory_limit"] * MEMORY_SHARE) for w in workers if w.get("memory_limit")]
        return max(min([limit_bytes, *allowed]) - base_bytes, 0) // max([1, *self._threads()])

    def submit(self, function: Callable[..., Any], *arguments: Any, priority: int = 0) -> Future[Any]:
        """Start ``function(job, *arguments)``; futures among the arguments are waited for there."""
        name = f"lobster-zarr-{function.__name__.strip('_')}-{self.job.number[:8]}-{next(self._numbers)}"
        future: Future[Any] = self.client.submit(
            function, self.job, *arguments, key=name, pure=False, priority=priority
        )
        self._futures[name] = future
        return future

    def let_go(self, futures: Sequence[Future[Any]]) -> None:
        """Keep the results no longer than other tasks need them."""
        for future in futures:
            self._futures.pop(future.key, None)

    def results(self, futures: Sequence[Future[Any]]) -> Iterator[tuple[int, Any]]:
        """Yield the number and the result of each as it is done, and let go of it.

        Raises
        ------
        LobsterZarrError
            What a task raised.
        StorageError
            A task ended its worker several times.
        NetworkError
            The cluster is gone.
        """
        from distributed import as_completed
        from distributed.client import FutureCancelledError
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        numbers = {future.key: number for number, future in enumerate(futures)}
        try:
            for future in as_completed(futures):
                self._futures.pop(future.key, None)
                yield numbers[future.key], future.result()
        except KilledWorker as error:
            msg = (
                f"a task ended {error.allowed_failures + 1} workers of {self.client.scheduler.address}, probably for "
                "lack of memory. Lower memory_limit, or give the workers more or fewer threads."
            )
            raise StorageError(msg) from error
        except (FutureCancelledError, CommClosedError) as error:
            msg = f"the cluster at {self.client.scheduler.address} is gone; start one and run this again."
            raise NetworkError(msg) from error
