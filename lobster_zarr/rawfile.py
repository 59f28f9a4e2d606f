"""Opens one object, such as a raw .h5ad, as a seekable file.

Knows fsspec and s3fs. Must not know of Zarr or of what a file holds.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lobster_zarr import errors
from lobster_zarr.location import Access, Location
from lobster_zarr.redact import fit_to_show, keep_out_of_logs
from lobster_zarr.refusal import READ, Attempt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

_FILE_BLOCK_BYTES = 8 << 20


@contextlib.contextmanager
def open_file(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Iterator[BinaryIO]:
    """Open one object, such as a raw .h5ad, as a seekable binary file.

    Parameters
    ----------
    uri
        A local path, ``s3://`` (s3fs), ``http(s)://``, or ``gs://`` and ``az://`` where fsspec's
        packages for them are installed.
    storage_options
        As for `open_store`.

    Yields
    ------
    binary file
        Reads ahead in blocks of 8 MiB where it is remote.

    Raises
    ------
    NotFoundError, StorageError
        There is no such object, or the storage refused it. Reads within the
        block raise what the client raises.
    UnsupportedError
        Nothing is installed that reads files of this scheme.
    """
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    where, access = Location.of(uri), Access.of(storage_options)
    where.check()
    try:
        file = _open_raw(where, access)
    except errors.LobsterZarrError:
        raise
    except (OSError, BotoCoreError, ClientError, aiohttp.ClientError, RecursionError) as error:
        # RecursionError: botocore follows a redirection that names no region with another one, and so on.
        failed: Exception = error
    else:
        with file:
            yield file
        return
    # Raised out here, so that no context holds what is not fit to show.
    raise _failure(where, access, failed) from fit_to_show(failed, secret=where.is_secret)


def _failure(where: Location, access: Access, error: Exception) -> Exception:
    import aiohttp

    refused = error.__cause__ or error  # fsspec calls whatever HTTP answers "not found"
    if isinstance(refused, aiohttp.ClientResponseError) and refused.status in {401, 403}:
        error = PermissionError()
    parent, _, name = where.prefix.rpartition("/")
    failure = Attempt(READ, name, replace(where, prefix=parent), access).failure(error)
    if isinstance(failure, FileNotFoundError) and not isinstance(failure, errors.LobsterZarrError):
        return errors.NotFoundError(f"There is no file at {where}. Check the path.")
    return failure


def _open_raw(where: Location, access: Access) -> BinaryIO:
    if where.scheme == "file":
        return Path(where.root).open("rb")
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    path = f"{where.root}/{where.prefix}"
    if where.scheme == "s3":
        access.check_endpoint()
        access.check_accelerated(where.root)
        options |= _s3fs_options(access)
    elif where.scheme in {"http", "https"}:
        path = where.url
    try:
        files = fsspec.filesystem("" if where.scheme == "memory" else where.scheme, **options)
    except (ImportError, ValueError) as error:
        raise errors.UnsupportedError(f"Nothing installed here reads {where}. Copy the file here first.") from error
    if where.scheme == "s3":
        files.retries = access.attempts
        keep_out_of_logs(access.keys() or ())
    return cast("BinaryIO", files.open(path, "rb", block_size=_FILE_BLOCK_BYTES, cache_type="readahead"))


def _s3fs_options(access: Access) -> dict[str, Any]:
    key, secret, token = access.keys() or (None, None, None)
    return {
        "key": key,
        "secret": secret,
        "token": token,
        "anon": access.anon,
        "profile": access.profile,
        "endpoint_url": access.endpoint_url,
        "requester_pays": access.requester_pays,
        "client_kwargs": {"region_name": access.region, "verify": access.verify},
        "config_kwargs": {
            "connect_timeout": access.connect_seconds,
            "read_timeout": access.stall_seconds,
            "retries": {"total_max_attempts": 1},  # s3fs has retries of its own, and would multiply them
            "s3": {
                "addressing_style": "path" if access.endpoint_url else "auto",
                "use_accelerate_endpoint": access.accelerate,
            },
        },
    }
