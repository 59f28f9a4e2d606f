"""The command line's options that many commands take, and what they stand for.

Must not know commands.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator


class Codec(StrEnum):
    """Codec profiles."""

    small = "small"
    fast = "fast"
    compatible = "compatible"


class Encryption(StrEnum):
    """Encryptions by S3."""

    aes256 = "AES256"
    kms = "aws:kms"


Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint-url", help="S3 endpoint; AWS_ENDPOINT_URL by default.", metavar="URL"),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Share the work with the dask cluster at this address.", metavar="ADDRESS"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
GeneMajor = Annotated[
    bool | None,
    typer.Option("--gene-major/--no-gene-major", help="Store X by gene too (by default where X is sparse)."),
]
CodecProfile = Annotated[Codec, typer.Option(help="small: pcodec; fast: lz4; compatible: zstd, for browsers.")]
MemoryLimit = Annotated[str, typer.Option(help="Memory that the process should not exceed.")]
Sse = Annotated[Encryption | None, typer.Option(help="Have S3 encrypt what is written.")]
SseKey = Annotated[str | None, typer.Option("--sse-kms-key-id", help="Key of --sse aws:kms.", metavar="ARN")]
StorageClass = Annotated[
    str | None, typer.Option(help="Of what is written: STANDARD_IA, GLACIER_IR, …", metavar="CLASS")
]


def options_of(endpoint_url: str | None) -> dict[str, Any]:
    """Return `storage_options`."""
    return {"endpoint_url": endpoint_url} if endpoint_url else {}


def placement_of(sse: Encryption | None, key: str | None, storage_class: str | None) -> dict[str, Any]:
    """Return what `storage_options` say of objects that are written."""
    return {"sse": sse and sse.value, "sse_kms_key_id": key, "storage_class": storage_class}


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
