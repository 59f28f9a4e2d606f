"""Runs the tasks of a job on a dask.distributed cluster, and ends them for certain.

Knows dask's client. Must not know what the tasks do.
"""

from __future__ import annotations

import itertools
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from lobster_zarr.client import OUT_OF_REACH, find_client
from lobster_zarr.errors import InvalidArgumentError, NetworkError, StorageError
from lobster_zarr.grid import cdiv
from lobster_zarr.workplace import Job, end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from distributed import Client, Future

    from lobster_zarr.address import Address

MIN_VALUES = 1 << 20
"""The client itself deals with what is smaller."""
MIN_TASK_VALUES = 1 << 18
TASKS_PER_THREAD = 8
"""So that the last tasks leave no thread waiting for long."""
MEMORY_SHARE = 0.6
"""Of what dask allows a worker: from there on it spills, later it pauses."""


def crew_for(client: Client | Literal[False] | None, store: Address | None, source: Address | None) -> Crew | None:
    """Return a crew for a job, or None where it is done here.

    Parameters
    ----------
    client
        As for `find_client`.
    store
        What is written, or verified; None where the job needs what no other process can reach.
    source
        What is read besides; None where the tasks read nothing else.

    Raises
    ------
    InvalidArgumentError
        A client was passed, and its workers cannot do the job.
    """
    found = find_client(client)
    if found is None:
        return None
    if store is not None and store.is_shared and (source is None or source.is_shared):
        return Crew(found, store, source)
    if client is None:
        return None
    raise InvalidArgumentError(OUT_OF_REACH)


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
        self.client: Any = client  # much of it is untyped
        self._address: str = cast("Any", client.scheduler).address
        self.job = Job(uuid.uuid4().hex, store, source)
        self.peak_memory_bytes = 0
        self.is_announced = False
        """Whether the workers can read what all tasks of a conversion need."""
        self._futures: dict[Any, Future[Any]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from distributed.client import ClosedClientError

        with suppress(ClosedClientError, OSError):  # the cluster is gone, and the tasks with it
            self.client.cancel(list(self._futures.values()), force=True)
            # A worker that is lost meanwhile writes nothing more either.
            peaks = self.client.run(end, self.job.number, on_error="ignore")
            self.peak_memory_bytes = max([p for p in peaks.values() if isinstance(p, int)], default=0)
        self._futures.clear()

    @property
    def n_threads(self) -> int:
        """Tasks that run at once; at least one, so that an adaptive cluster gets a reason to grow."""
        n_threads: int = sum(self.client.nthreads().values())
        return max(n_threads, 1)

    @property
    def threads_per_worker(self) -> int:
        """Tasks that one process runs at once."""
        return max(self.client.nthreads().values(), default=1)

    @property
    def memory_bytes(self) -> int:
        """What a worker may hold without being slowed down by dask."""
        workers = self.client.scheduler_info()["workers"].values()
        return min((int(w["memory_limit"] * MEMORY_SHARE) for w in workers if w.get("memory_limit")), default=1 << 62)

    def pays_for(self, n_values: int) -> bool:
        """Whether an array is large enough to be shared out."""
        return n_values >= MIN_VALUES

    def share(self, n_values: int) -> int:
        """Values of one task."""
        return max(cdiv(n_values, TASKS_PER_THREAD * self.n_threads), MIN_TASK_VALUES)

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

    def results(self, futures: Sequence[Future[Any]], *, ordered: bool = False) -> Iterator[tuple[int, Any]]:
        """Yield the number and the result of each as it is done, or in order, and let go of it.

        Raises
        ------
        LobsterZarrError
            What a task raised.
        StorageError
            A task ended its worker several times.
        NetworkError
            The cluster is gone.
        """
        import distributed
        from distributed.client import ClosedClientError, FutureCancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker

        as_completed: Any = distributed.as_completed
        numbers = {future.key: number for number, future in enumerate(futures)}
        try:
            for future in futures if ordered else as_completed(futures, loop=self.client.loop):
                self._futures.pop(future.key, None)
                yield numbers[future.key], future.result()
        except KilledWorker as error:
            msg = (
                f"a task ended {error.allowed_failures + 1} workers of {self._address}, probably for "
                "lack of memory. Lower memory_limit, or give the workers more or fewer threads."
            )
            raise StorageError(msg) from error
        except (FutureCancelledError, ClosedClientError, CommClosedError) as error:
            msg = f"the cluster at {self._address} is gone; start one and run this again."
            raise NetworkError(msg) from error
