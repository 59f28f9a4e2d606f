"""Tells which stores and files lie below a folder or prefix: a listing, and at most one request for each.

Changes nothing. Must not know what a store or file says of itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload, override

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.errors import LobsterZarrError, NotFoundError
from lobster_zarr.glance import glance, to_read
from lobster_zarr.holdings import Holding, holdings
from lobster_zarr.listing import STORE_SUFFIX, objects
from lobster_zarr.location import Access
from lobster_zarr.markup import body, box, heading, name, notes, table
from lobster_zarr.place import place, suffix
from lobster_zarr.report import Progress, human_bytes
from lobster_zarr.store import UriStore, run
from lobster_zarr.typeset import aligned, titled, wrapped

if TYPE_CHECKING:
    import datetime as dt
    import os
    from collections.abc import Callable, Mapping

    import pandas as pd

    from lobster_zarr.location import Location

AT_ONCE = 64
_HEADS = ("name", "kind", "cells × genes", "size", "modified", "sorted by")


@dataclass(frozen=True)
class CatalogEntry:
    """One store or file.

    Parameters
    ----------
    uri
        Of it, for `lobster_zarr.open`.
    kind
        ``"AnnData"``, ``"MuData"``, ``"Zarr"`` (of another kind), ``"unfinished"`` or ``"unknown"``.
    form
        ``"zarr"``, ``"h5ad"`` or ``"h5mu"``.
    n_bytes, n_objects
        Of all its objects.
    modified
        When it was written; of a store, its root metadata.
    n_obs, n_vars
        None where they are not known.
    modalities
        Of a MuData, by name: cells and features, where they are known.
    sort_by
        Columns by which the rows of a store are grouped.
    writer
        What wrote a store, and in which format.
    problem
        Why it cannot be read, and what to do; empty where it can.
    hint
        What would tell a shape that is not known.
    """

    uri: str
    kind: str
    form: str
    n_bytes: int
    n_objects: int
    modified: dt.datetime
    n_obs: int | None = None
    n_vars: int | None = None
    modalities: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    sort_by: tuple[str, ...] = ()
    writer: str = ""
    problem: str = ""
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain values; the time as ISO text."""
        return asdict(self) | {"modified": self.modified.isoformat(), "sort_by": list(self.sort_by)}


@dataclass(frozen=True)
class Catalog(Sequence[CatalogEntry]):
    """The stores and files below a folder or prefix, by URI."""

    uri: str
    entries: tuple[CatalogEntry, ...]

    @overload
    def __getitem__(self, at: int) -> CatalogEntry: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[CatalogEntry, ...]: ...
    @override
    def __getitem__(self, at: int | slice) -> CatalogEntry | tuple[CatalogEntry, ...]:
        return self.entries[at]

    @override
    def __len__(self) -> int:
        return len(self.entries)

    @property
    def n_bytes(self) -> int:
        """The size of all."""
        return sum(entry.n_bytes for entry in self)

    def to_dict(self) -> dict[str, Any]:
        """Return the catalog as plain values."""
        return {"uri": self.uri, "n_bytes": self.n_bytes, "entries": [entry.to_dict() for entry in self]}

    def to_pandas(self) -> pd.DataFrame:
        """Return a table of the entries, a row each; what is not known is NA."""
        import pandas as pd

        names = list(CatalogEntry.__dataclass_fields__)
        frame = pd.DataFrame([asdict(entry) for entry in self], columns=names)
        return frame.astype({"n_obs": "Int64", "n_vars": "Int64"})

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                e.uri.removeprefix(self.uri).lstrip("/") or ".",
                f"{e.kind} ({', '.join(e.modalities)})" if e.modalities else e.kind,
                _shape(e),
                human_bytes(e.n_bytes),
                f"{e.modified:%Y-%m-%d}",
                ", ".join(e.sort_by),
            )
            for e in self
        ]

    def _remarks(self) -> list[str]:
        found = [e.problem for e in self if e.problem]
        if hints := [e.hint for e in self if e.hint]:
            more = f" (and of {len(hints) - 1:,} more)" if len(hints) > 1 else ""
            found.append(f"{hints[0]}{more}")
        return found

    @property
    def _title(self) -> str:
        n_stores = sum(e.form == "zarr" for e in self)
        told = [f"{n:,} {what}{'s'[: n != 1]}" for n, what in ((n_stores, "store"), (len(self) - n_stores, "file"))]
        return f"{', '.join(told)}, {human_bytes(self.n_bytes)}"

    def __str__(self) -> str:
        lines = titled(self._title, self.uri)
        lines += aligned([_HEADS, *self._rows()], {2, 3}, (5, 1, 0)) if self.entries else []
        return "\n".join([*lines, *(line for text in self._remarks() for line in wrapped(f"  {text}", 4))])

    def _repr_html_(self) -> str:
        rows = [(name(path), *more) for path, *more in self._rows()]
        made = table(_HEADS, (34, 16, 18, 10, 11, 11), rows, {2, 3})
        return box(str(self), heading("Catalog", self._title, self.uri), body(made, notes(self._remarks())))


def catalog(
    uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, progress: bool = True
) -> Catalog:
    """Tell which stores and files lie below a prefix or folder, at any depth: .h5ad, .h5mu and Zarr stores.

    A listing (on S3 one request for each 1,000 objects), then at most one request for each store or file,
    64 at once: a store's root metadata; a file's kept index (`lobster_zarr.index`), a file of up to 1 MiB, or
    the first 64 KiB of a larger one, which do not tell its shape.

    Parameters
    ----------
    uri
        ``s3://bucket``, ``s3://bucket/prefix`` or a local folder.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show a bar when on a terminal.

    Returns
    -------
    Catalog
        A sequence of :class:`CatalogEntry`; prints as a table. What is damaged, unfinished or may not be
        read is an entry that says why.

    Raises
    ------
    NotFoundError
        There is no such folder; on S3, nothing below the prefix.
    StorageError
        The storage refused the listing.
    """
    where, access = place(uri), Access.of(storage_options)
    found = holdings(objects(where, access), is_store=suffix(where) == STORE_SUFFIX)
    with Progress(enabled=progress).phase("Read metadata", len(found), "objects") as advance:
        told = run(_read(UriStore(str(where), storage_options), found, advance))
    return Catalog(str(where), tuple(_entry(where, h, t) for h, t in zip(found, told, strict=True)))


async def _read(
    store: UriStore, found: Sequence[Holding], advance: Callable[[int], None]
) -> list[bytes | LobsterZarrError | None]:
    """Read of each what tells most of it; None where there is nothing to read, an error where that fails."""
    gate, prototype = asyncio.Semaphore(AT_ONCE), default_buffer_prototype()

    async def one(holding: Holding) -> bytes | LobsterZarrError | None:
        wanted = to_read(holding)
        if wanted is None or (holding.form != "zarr" and not store.is_remote):  # those are opened
            return None
        key, n_bytes = wanted
        try:
            async with gate:
                body = await store.get(key, prototype, RangeByteRequest(0, n_bytes))
        except LobsterZarrError as error:
            return error
        finally:
            advance(1)
        return NotFoundError(f"{store}/{key} was removed meanwhile.") if body is None else body.to_bytes()

    return list(await asyncio.gather(*map(one, found)))


def _entry(where: Location, holding: Holding, told: bytes | LobsterZarrError | None) -> CatalogEntry:
    uri = f"{str(where).rstrip('/')}/{holding.path}".rstrip("/")
    made: dict[str, Any] = {name: getattr(holding, name) for name in ("form", "n_bytes", "n_objects", "modified")}
    made["uri"] = uri
    try:
        if isinstance(told, LobsterZarrError):
            raise told
        return CatalogEntry(**made, **glance(uri, holding, told))
    except LobsterZarrError as error:
        return CatalogEntry(**made, kind="unfinished" if holding.is_unfinished else "unknown", problem=str(error))


def _shape(entry: CatalogEntry) -> str:
    if entry.n_obs is None or entry.n_vars is None:
        return "" if entry.problem else "unknown"
    return f"{entry.n_obs:,} × {entry.n_vars:,}"
