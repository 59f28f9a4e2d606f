"""The command line's options that many commands take, and what they stand for.

Must not know commands.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint-url", help="S3 endpoint; AWS_ENDPOINT_URL by default.", metavar="URL"),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Share the work with the dask cluster at this address.", metavar="ADDRESS"),
]
CacheFolder = Annotated[
    str | None,
    typer.Option("--cache", help="Keep what is read in this folder; LOBSTER_ZARR_CACHE by default.", metavar="DIR"),
]
Offline = Annotated[bool, typer.Option("--offline", help="Ask the storage nothing: the cache has to have it.")]
VersionId = Annotated[
    str | None,
    typer.Option("--version-id", help="Read this version, as `versions` lists it.", metavar="ID"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def options_of(endpoint_url: str | None, cache: str | None = None, *, offline: bool = False) -> dict[str, Any]:
    """Return `storage_options`."""
    given = {"endpoint_url": endpoint_url, "cache": cache, "offline": offline}
    return {name: value for name, value in given.items() if value}


@contextmanager
def cluster_of(scheduler: str | None) -> Iterator[Any]:
    """Connect to a scheduler; without an address, None."""
    if scheduler is None:
        yield None
        return
    from distributed import Client

    from lobster_zarr.client import check_scheduler

    check_scheduler(scheduler)
    with Client(scheduler, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        yield client
