"""Deletes a file or a store, locally or on S3; of a store first what makes it open. Must not know what they hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr import transfer
from lobster_zarr.commit import ROOT
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.loop import run
from lobster_zarr.place import suffix
from lobster_zarr.refusal import DELETE, refused_by_system
from lobster_zarr.s3client import missing
from lobster_zarr.store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.location import Location


def remove(where: Location, storage_options: Mapping[str, Any] | None = None) -> None:
    """Delete what a name says: a store where it ends in ``.zarr``, else a file.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or the storage refused.
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
        if not path.is_dir():
            path.unlink()
        elif suffix(where) != STORE_SUFFIX:
            raise missing(where)  # a folder of the caller's
        else:
            for root in (name for name in path.iterdir() if ROOT.fullmatch(name.name)):
                root.unlink()
            shutil.rmtree(path)
    except FileNotFoundError as error:
        raise missing(where) from error
    except OSError as error:
        raise refused_by_system(error, DELETE, path.name, where) from error


async def _remove_store(where: Location, storage_options: Mapping[str, Any] | None) -> None:
    store = open_store(str(where), storage_options, read_only=False)
    keys = [key async for key in store.list_prefix("")]
    if not keys:
        raise missing(where)
    for key in filter(ROOT.fullmatch, keys):
        await store.delete(key)
    await store.delete_dir("")
