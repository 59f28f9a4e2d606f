"""A dask cluster of real worker processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dask

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def two_workers() -> Iterator[Any]:
    """Start two worker processes of one thread, with a client that is the active one inside."""
    from distributed import Client, LocalCluster

    patient = {"distributed.comm.timeouts.connect": "120s"}  # workers import for long on a busy machine
    with (
        dask.config.set(patient),
        # None would be port 8787, which another test's cluster may have.
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client
