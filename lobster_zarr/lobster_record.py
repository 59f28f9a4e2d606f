"""Lobster AI's records of modalities, read from the metadata of stores: when they are asked for, all at once.

Must not know where the stores lie.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from lobster.core.backends.modality_backend import ModalityRecord

from lobster_zarr.errors import NotFoundError
from lobster_zarr.store import run
from lobster_zarr.table import TableReader
from lobster_zarr.tree import read_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.abc.store import Store

    from lobster_zarr.node import Tree

ATTRIBUTE = "lobster_modality"
"""Of the root of a store: what Lobster AI knows of a modality when it is ingested."""
_OPEN_AT_ONCE = 64


class Listing:
    """What a workspace held when it was listed; how large its modalities are is read when first asked for, of all."""

    def __init__(self, names: Sequence[str], store_of: Callable[[str], Store]) -> None:
        self.names, self._store_of = names, store_of

    @cached_property
    def records(self) -> dict[str, ModalityRecord]:
        """A record by name: one request each, all under way at once."""
        return run(self._read())

    async def _read(self) -> dict[str, ModalityRecord]:
        gate = asyncio.Semaphore(_OPEN_AT_ONCE)

        async def one(name: str) -> ModalityRecord:
            async with gate:
                try:
                    return record_of(name, await read_tree(self._store_of(name), name))
                except NotFoundError:  # an ingestion is under way, or was broken off: it holds nothing yet
                    return ModalityRecord(name=name, n_obs=0, n_vars=0, processing_step="unfinished")

        return dict(zip(self.names, await asyncio.gather(*map(one, self.names)), strict=True))


def _field(name: str) -> Any:
    return property(lambda listed: getattr(vars(listed)["_listing"].records[listed.name], name))


class ListedModality(ModalityRecord):  # type: ignore[misc]  # its package is not there where types are checked
    """A record whose fields, but for the name, are read when they are first asked for."""

    n_obs, n_vars, omics_type, is_backed = map(_field, ("n_obs", "n_vars", "omics_type", "is_backed"))
    created_at, parent_modality = map(_field, ("created_at", "parent_modality"))
    processing_step, storage_size_bytes = map(_field, ("processing_step", "storage_size_bytes"))

    def __init__(self, name: str, listing: Listing) -> None:
        self.__dict__.update(name=name, _listing=listing)  # the class is frozen: no attribute can be set

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._listing.records[self.name],)


def _same(record: ModalityRecord) -> ModalityRecord:
    return record


def record_of(name: str, tree: Tree) -> ModalityRecord:
    """Return what the metadata of a store tell of a modality."""
    stored = tree.noted().get("stored_bytes", {})
    known = tree.attributes("").get(ATTRIBUTE, {})
    n_obs, n_vars = (TableReader(cast("Any", None), tree, path).n_rows for path in ("obs", "var"))  # reads nothing
    return ModalityRecord(
        name=name,
        n_obs=n_obs,
        n_vars=n_vars,
        omics_type=known.get("omics_type", "multimodal" if tree.encoding("") == "MuData" else "unknown"),
        created_at=dt.datetime.fromisoformat(known["created_at"]) if "created_at" in known else None,
        parent_modality=known.get("parent_modality"),
        processing_step=known.get("processing_step") or "raw",
        storage_size_bytes=sum(stored.values()) or None,
    )
