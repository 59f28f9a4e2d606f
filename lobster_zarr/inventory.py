"""Stored sizes of the arrays of a store: as it notes them, else by one listing of its objects.

Must not know AnnData.
"""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Literal

from zarr.storage import ZipStore

from lobster_zarr.errors import AccessDeniedError
from lobster_zarr.h5store import FileStore
from lobster_zarr.store import UriStore
from lobster_zarr.tree import V2_FILES

if TYPE_CHECKING:
    from collections.abc import Container

    from zarr.abc.store import Store

    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import Tree

type Known = Literal["noted", "listed", "file", "assumed"]
"""How the sizes of arrays are known."""

PAGE_KEYS = 1_000
"""Of an answer of S3 to a listing."""
LOCAL_KEYS = 100_000


async def object_sizes(store: Store, n_keys: int) -> dict[str, int] | None:
    """Return the size of each object of a store, by key.

    One request. None where more would be needed, or where listing is not allowed or not possible.

    Parameters
    ----------
    store
        As :func:`lobster_zarr.store.open_store` gives it.
    n_keys
        About how many objects it has.
    """
    if isinstance(store, ZipStore) and store.path is not None:
        with zipfile.ZipFile(store.path) as file:
            return {entry.filename: entry.compress_size for entry in file.infolist()}
    if not isinstance(store, UriStore) or not store.supports_listing:
        return None
    if n_keys > (PAGE_KEYS if store.is_remote else LOCAL_KEYS):
        return None
    try:
        return {entry["path"]: entry["size"] async for entry in store._list()}  # noqa: SLF001 - Zarr's lists have no sizes
    except AccessDeniedError:
        return None


def n_keys(tree: Tree) -> int:
    """Return about how many objects a store has."""
    documents = len(tree.nodes) * (1 if tree.zarr_format == 3 else 2)
    arrays = map(tree.array, tree.arrays_below(""))
    return documents + sum(math.prod(a.grid.shards_per_axis) for a in arrays)


async def array_sizes(fetcher: Fetcher, tree: Tree) -> tuple[dict[str, int], Known]:
    """Return the stored bytes of each array by its path, as far as one request tells, and how they are known."""
    if fetcher.stored_bytes:
        return dict(fetcher.stored_bytes), "noted"
    if isinstance(fetcher.store, FileStore):
        listed: dict[str, int] | None = {key: len(body) for key, body in fetcher.objects.items()} or None
    else:
        listed = await object_sizes(fetcher.store, n_keys(tree))
    if listed is None:
        return {}, "assumed"
    sizes = dict.fromkeys((tree.array(p).path for p in tree.arrays_below("")), 0)
    for key, n_bytes in listed.items():
        owner = _owner(key, sizes)
        if owner is not None and key.rpartition("/")[2] not in {"zarr.json", *V2_FILES}:
            sizes[owner] += n_bytes
    return sizes, "listed"


def _owner(key: str, arrays: Container[str]) -> str | None:
    """Return the array that an object belongs to."""
    path = key
    while path := path.rpartition("/")[0]:
        if path in arrays:
            return path
    return None
