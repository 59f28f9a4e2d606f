"""Makes the obstore client of a location.

Knows obstore's configuration, its timeouts and its retries. Must not know of Zarr,
nor make a request.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr import errors
from lobster_zarr.credentials import Provider
from lobster_zarr.location import DEFAULT_REGION
from lobster_zarr.refusal import WRITE, refused_by_system

if TYPE_CHECKING:
    from lobster_zarr.location import Access, Location

_REQUEST_SECONDS = 300  # 256 MiB at 7 Mbit/s
_RETRY_SECONDS, _MOST_RETRY_SECONDS = 50, 280  # obstore's own bound is five minutes: it signs a request once
_memory: dict[str, Any] = {}  # obstore MemoryStores by name, for the life of the process


def connect(where: Location, access: Access, *, read_only: bool, uploads_of: Any = None) -> Any:
    """Return the obstore store of a location; no request is made.

    Parameters
    ----------
    read_only
        Whether it has to be there already, and will not be written.
    uploads_of
        The store whose twin for writing this is to be, with the same credentials. Its requests have
        no `read_timeout`, which would also count the time that an upload takes.

    Raises
    ------
    InvalidArgumentError, CredentialsError, NotFoundError, FormatError, UnsupportedError
        As `lobster_zarr.store.open_store`.
    """
    from obstore import store as obstores

    if where.scheme == "file":
        return obstores.LocalStore(_local_root(where, read_only=read_only), automatic_cleanup=True)
    if where.scheme == "memory":
        return _memory.setdefault(where.root, obstores.MemoryStore())
    common: Any = {
        "client_options": _client(where, access, uploads=uploads_of is not None),
        "retry_config": _retry(access),
    }
    if where.scheme in {"http", "https"}:
        if not read_only:
            raise errors.UnsupportedError(f"{where} cannot be written, expected s3:// or a local path.")
        return obstores.HTTPStore(where.url, **common)
    common |= {"prefix": where.prefix or None, "config": {"skip_signature": True} if access.anon else {}}
    if where.scheme == "gs":
        return obstores.GCSStore(where.root, **common)
    if where.scheme == "az":
        return obstores.AzureStore(where.root, **common)
    if not read_only:
        access.placement.check_store()
    common["credential_provider"], config = _s3(where, access, uploads_of)
    common["config"] |= config
    return obstores.S3Store(where.root, **common)


def _client(where: Location, access: Access, *, uploads: bool) -> dict[str, Any]:
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=access.connect_seconds),
        "timeout": timedelta(seconds=max(_REQUEST_SECONDS, access.stall_seconds)),
        "pool_max_idle_per_host": "64",
        "allow_http": where.scheme == "http" or (access.endpoint_url or "").startswith("http:"),
        "allow_invalid_certificates": access.verify is False,
    }
    if not uploads:
        client["read_timeout"] = timedelta(seconds=access.stall_seconds)
    if isinstance(access.verify, str):
        client["root_certificate"] = Path(access.verify).read_bytes()
    return client


def _retry(access: Access) -> dict[str, Any]:
    # After 100 ms, doubling.
    patience = _RETRY_SECONDS
    if access.max_attempts or access.read_timeout:
        patience = int(min(max(patience, access.attempts * access.stall_seconds), _MOST_RETRY_SECONDS))
    return {"max_retries": access.attempts - 1, "retry_timeout": timedelta(seconds=patience)}


def _s3(where: Location, access: Access, uploads_of: Any) -> tuple[Provider | None, dict[str, Any]]:
    access.check_endpoint()
    access.check_accelerated(where.root)
    provider, region = (None, None) if access.anon else access.provider()
    if uploads_of is not None:
        provider = uploads_of.credential_provider
    path_style = bool(access.endpoint_url) or "." in where.root  # no certificate covers a.b.s3.amazonaws.com
    config = access.placement.for_obstore() | {
        "region": access.region or region or DEFAULT_REGION,
        "virtual_hosted_style_request": not path_style,
        "request_payer": access.requester_pays,
    }
    endpoint = f"https://{where.root}.s3-accelerate.amazonaws.com" if access.accelerate else access.endpoint_url
    if endpoint:  # under this name it wins over the environment, under "endpoint" it does not
        config["aws_endpoint_url_s3"] = endpoint
    return provider, config


def is_renewed(store: Any, access: Access) -> bool:
    """Whether other credentials are to be had by now than this S3 store used last; blocks, as it may ask for them.

    Raises
    ------
    CredentialsError
        There are none any more.
    """
    provider = store.credential_provider
    return isinstance(provider, Provider) and provider.handed not in {None, access.provider()[0].find()}


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
