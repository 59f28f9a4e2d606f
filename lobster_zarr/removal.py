"""Deletes a file or a store, locally or on S3; of a store first what makes it open. Must not know what they hold."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr import transfer
from lobster_zarr.commit import ROOT
from lobster_zarr.errors import ConflictError
from lobster_zarr.layout import MARKER
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.loop import run
from lobster_zarr.place import suffix
from lobster_zarr.refusal import DELETE, refused_by_system
from lobster_zarr.s3client import missing
from lobster_zarr.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lobster_zarr.location import Location

_OF_A_STORE = re.compile(rf"{re.escape(MARKER)}|(.*/)?(zarr\.json|\.z(group|array|attrs|metadata)|c/\d[\d/]*)")
"""What shows that a folder is a store, or what an interrupted conversion or deletion left of one."""


def remove(where: Location, storage_options: Mapping[str, Any] | None = None) -> None:
    """Delete what a name says: a store where it ends in ``.zarr``, else a file.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or the storage refused.
    ConflictError
        The folder is no store, whatever its name says; nothing is deleted.
    """
    if where.scheme == "file":
        _remove_local(where)
    elif suffix(where) == STORE_SUFFIX:
        run(_remove_store(where, storage_options))
    else:
        transfer.remove(str(where), storage_options)


def _remove_local(where: Location) -> None:
    path = Path(where.root)
    try:
        if path.is_dir() and suffix(where) != STORE_SUFFIX:
            raise missing(where)  # a folder of the caller's
        if path.is_symlink() or not path.is_dir():  # of a link, what it leads to stays
            path.unlink()
        else:
            _check_store(where, (name.relative_to(path).as_posix() for name in path.rglob("*")))
            for root in (name for name in path.iterdir() if ROOT.fullmatch(name.name)):
                root.unlink()
            shutil.rmtree(path)
    except ConflictError:
        raise
    except FileNotFoundError as error:
        raise missing(where) from error
    except OSError as error:
        raise refused_by_system(error, DELETE, path.name, where) from error


async def _remove_store(where: Location, storage_options: Mapping[str, Any] | None) -> None:
    store = open_store(str(where), storage_options, read_only=False)
    keys = [key async for key in store.list_prefix("")]
    if not keys:
        raise missing(where)
    _check_store(where, keys)
    for key in filter(ROOT.fullmatch, keys):
        await store.delete(key)
    await store.delete_dir("")


def _check_store(where: Location, keys: Iterable[str]) -> None:
    first = None
    for key in keys:
        if _OF_A_STORE.fullmatch(key):
            return
        first = first or key
    if first is not None:
        msg = f"{where} holds no store (found {first}, …): nothing is deleted. Check the path, or delete it yourself."
        raise ConflictError(msg)
