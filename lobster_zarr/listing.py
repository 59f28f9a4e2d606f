"""Names of files and stores below a folder, locally or on S3, by a pattern; or all objects below it.

By a pattern a store is one name, whatever lies in it: its objects are not listed. Must not
know what files hold.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from lobster_zarr.location import Access
from lobster_zarr.refusal import LIST, refused_by_system
from lobster_zarr.s3client import payer, s3_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lobster_zarr.location import Location

    type Level = Callable[[str], tuple[list[str], list[str]]]
    """Names of the files and of the folders of a folder, given by its path below the start."""

STORE_SUFFIX = ".zarr"
_MISSING = 404


def names(where: Location, storage_options: Mapping[str, Any] | None = None, pattern: str = "*") -> list[str]:
    """List files and stores of a folder.

    Parameters
    ----------
    where
        Local or on S3.
    storage_options
        As for :func:`lobster_zarr.open`.
    pattern
        As of `pathlib`: ``*.h5ad``, ``runs/*.zarr``, ``**/*.h5ad`` for all levels.

    Returns
    -------
    list of str
        Paths or URIs, sorted. On S3 one request a folder and 1,000 names.

    Raises
    ------
    NotFoundError
        There is no such folder; on S3, nothing below it.
    StorageError
        The storage refused.
    """
    wanted = pattern.strip("/").split("/")
    if "" in wanted or ".." in wanted:
        raise InvalidArgumentError(f"The pattern {pattern!r} is none, expected one such as '*.h5ad' or '**/*.zarr'.")
    if where.scheme == "file":
        found = _walk(_local_level(where), "", wanted)
        return sorted({str(Path(where.root, name)) for name in found})
    if where.scheme != "s3":
        raise UnsupportedError(f"Cannot list {where}, expected a local folder or s3://bucket/prefix.")
    access = Access.of(storage_options)
    with s3_client(where, access, LIST) as client:
        found = _walk(_s3_level(client, where, payer(access)), "", wanted)
        return sorted({f"{where}/{name}" for name in found})


def _below(client: Any, where: Location, access: Access) -> Iterator[dict[str, Any]]:
    """Yield all objects below a prefix as S3 lists them: a request for 1,000."""
    prefix = f"{where.prefix}/".lstrip("/")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=where.root, Prefix=prefix, **payer(access)):
        yield from page.get("Contents", ())


def named_objects(client: Any, where: Location, access: Access) -> Iterator[dict[str, Any]]:
    """Yield all objects below a prefix as S3 lists them; where there are none, the object of that name itself.

    A request for 1,000 of them. The folders that a console makes are left out.
    """
    from botocore.exceptions import ClientError

    found = False
    for entry in _below(client, where, access):
        if not entry["Key"].endswith("/"):
            found = True
            yield entry
    if found or not where.prefix:
        return
    try:
        head = client.head_object(Bucket=where.root, Key=where.prefix, **payer(access))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != _MISSING:
            raise
        return
    yield {"Key": where.prefix, "Size": head["ContentLength"], **head}


class Listed(NamedTuple):
    """What a listing tells of an object."""

    key: str
    """From the folder that was listed, without a leading slash."""
    n_bytes: int
    modified: dt.datetime
    etag: str = ""
    storage_class: str = "STANDARD"


def objects(where: Location, access: Access) -> Iterator[Listed]:
    """List all objects below a folder, whatever they belong to; on S3 one request for each 1,000.

    Raises
    ------
    NotFoundError
        There is no such folder; on S3, nothing below it.
    StorageError
        The storage refused.
    """
    if where.scheme == "file":
        yield from _local_objects(where)
        return
    if where.scheme != "s3":
        raise UnsupportedError(f"Cannot list {where}, expected a local folder or s3://bucket/prefix.")
    prefix, n_found = f"{where.prefix}/".lstrip("/"), 0
    with s3_client(where, access, LIST) as client:
        for told in _below(client, where, access):
            n_found += 1
            key, kind = told["Key"].removeprefix(prefix), told.get("StorageClass", "STANDARD")
            yield Listed(key, told["Size"], told["LastModified"], told["ETag"], kind)
    if not n_found and prefix:
        raise NotFoundError(f"There is nothing below {where}. Check the path; `lobster-zarr info` tells of one file.")


def _local_objects(where: Location) -> Iterator[Listed]:
    def refuse(error: OSError) -> NoReturn:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NotFoundError(f"There is no folder at {where}. Check the path.") from error
        raise refused_by_system(error, LIST, "", where) from error

    for folder, _, files in os.walk(where.root, onerror=refuse):
        for name in files:
            path = Path(folder, name)
            try:
                stat = path.stat()
            except OSError:  # a link that leads nowhere, or a file that is gone by now
                continue
            key, modified = path.relative_to(where.root).as_posix(), dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC)
            yield Listed(key, stat.st_size, modified)


def _walk(level: Level, folder: str, pattern: Sequence[str]) -> Iterator[str]:
    files, folders = level(folder)
    first, *rest = pattern
    if list(pattern) == ["**"]:
        rest = ["*"]
    if not rest:
        stores = [name for name in folders if name.endswith(STORE_SUFFIX)]
        yield from (folder + name for name in [*files, *stores] if fnmatch.fnmatchcase(name, first))
        return
    if first == "**":
        yield from _walk(lambda at: (files, folders) if at == folder else level(at), folder, rest)  # no level at all
    for name in folders:
        if not name.endswith(STORE_SUFFIX) and (first == "**" or fnmatch.fnmatchcase(name, first)):
            yield from _walk(level, f"{folder}{name}/", [first, *rest] if first == "**" else rest)


def _local_level(where: Location) -> Level:
    def level(folder: str) -> tuple[list[str], list[str]]:
        try:
            entries = list(Path(where.root, folder).iterdir())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"There is no folder at {where}. Check the path.") from error
        except OSError as error:
            raise refused_by_system(error, LIST, folder, where) from error
        folders = [entry.name for entry in entries if entry.is_dir()]
        return [entry.name for entry in entries if entry.is_file()], folders

    return level


def _s3_level(client: Any, where: Location, options: Mapping[str, str]) -> Level:
    def level(folder: str) -> tuple[list[str], list[str]]:
        prefix = f"{where.prefix}/{folder}".lstrip("/")
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=where.root, Prefix=prefix, Delimiter="/", **options
        )
        files, folders = [], []
        for page in pages:
            files += [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", ())]
            folders += [entry["Prefix"].removeprefix(prefix).rstrip("/") for entry in page.get("CommonPrefixes", ())]
        if not files and not folders and prefix:
            raise NotFoundError(f"There is nothing below {where}. Check the path.")
        # A console's folder is an object without a name; a key with "//", a folder without one, which no path names.
        return [name for name in files if name], [name for name in folders if name]

    return level
