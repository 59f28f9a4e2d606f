"""Tells which versions there are of a store or file in a bucket that keeps versions. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload, override

from lobster_zarr.byterange import Network
from lobster_zarr.errors import LobsterZarrError
from lobster_zarr.layout import MARKER
from lobster_zarr.location import Access
from lobster_zarr.markup import body, box, heading, mono, notes, table
from lobster_zarr.multimodal import opened
from lobster_zarr.place import place
from lobster_zarr.report import human_bytes
from lobster_zarr.tree import of_root
from lobster_zarr.typeset import aligned, titled, wrapped
from lobster_zarr.versioning import ROOT, documents, history_of, taken

if TYPE_CHECKING:
    import datetime as dt
    import os
    from collections.abc import Mapping

    from lobster_zarr.history import Entry, History
    from lobster_zarr.location import Location

SHORTEST = 12
"""Characters of an id that are shown, where they tell all apart."""
_HEADS = ("version", "committed (UTC)", "size", "cells × genes", "")


@dataclass(frozen=True)
class Version:
    """One version of a store or file.

    Parameters
    ----------
    id
        Of the root metadata, or of the file; for `lobster_zarr.open` and `lobster_zarr.rollback`.
    committed
        When it was whole, to the second.
    n_bytes, n_objects
        Of a store as far as it can be taken together; None where it cannot.
    n_obs, n_vars
        Of a store whose root metadata tells them; else None.
    state
        ``"current"``, ``"replaced"`` or ``"deleted"``.
    ended
        When it was replaced or deleted; None of the current one.
    problem
        Why it cannot be read; empty where it can.
    """

    id: str
    committed: dt.datetime
    n_bytes: int | None = None
    n_objects: int | None = None
    n_obs: int | None = None
    n_vars: int | None = None
    state: str = "current"
    ended: dt.datetime | None = None
    problem: str = ""

    @property
    def is_current(self) -> bool:
        """Whether it is what is there now."""
        return self.state == "current"


@dataclass(frozen=True)
class Versions(Sequence[Version]):
    """The versions of a store or file, newest first."""

    uri: str
    entries: tuple[Version, ...]

    @overload
    def __getitem__(self, at: int) -> Version: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Version, ...]: ...
    @override
    def __getitem__(self, at: int | slice) -> Version | tuple[Version, ...]:
        return self.entries[at]

    @override
    def __len__(self) -> int:
        return len(self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain values; times as ISO text."""
        told = [
            asdict(v) | {"committed": v.committed.isoformat(), "ended": v.ended and v.ended.isoformat()} for v in self
        ]
        return {"uri": self.uri, "versions": told}

    def _rows(self) -> list[tuple[str, ...]]:
        n = SHORTEST
        while len({v.id[:n] for v in self}) < len(self):
            n += 1
        return [
            (
                v.id[:n],
                f"{v.committed:%Y-%m-%d %H:%M:%S}",
                "" if v.n_bytes is None else human_bytes(v.n_bytes),
                "" if v.n_obs is None else f"{v.n_obs:,} × {v.n_vars:,}",
                "cannot be read" if v.problem else v.state,
            )
            for v in self
        ]

    def _problems(self) -> list[str]:
        return [v.problem for v in self if v.problem]

    @property
    def _title(self) -> str:
        return f"{len(self)} version{'s'[: len(self) != 1]}"

    def __str__(self) -> str:
        lines = [*titled(self._title, self.uri), *aligned([_HEADS, *self._rows()], {2, 3}, (4, 3))]
        return "\n".join([*lines, *(line for text in self._problems() for line in wrapped(f"  {text}", 4))])

    def _repr_html_(self) -> str:
        rows = [(mono(i), *more) for i, *more in self._rows()]
        made = table(_HEADS, (26, 24, 14, 20, 16), rows, {2, 3})
        return box(str(self), heading("Versions", self._title, self.uri), body(made, notes(self._problems())))


def versions(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Versions:
    """List the versions of a store or file on S3, in a bucket that keeps versions.

    Each commit of a store, that is each version of its root ``zarr.json``, is one; what was deleted
    is listed too. One request for each 1,000 versions of objects, and of a store one for each of its versions.

    Parameters
    ----------
    uri
        ``s3://`` of a store, an .h5ad or .h5mu.
    storage_options
        As for :func:`lobster_zarr.open`.

    Returns
    -------
    Versions
        A sequence of :class:`Version`, newest first; prints as a table.

    Raises
    ------
    UnsupportedError
        The bucket keeps no versions.
    NotFoundError
        There is nothing, and never was.
    StorageError
        S3 refused or failed: ``s3:ListBucketVersions`` and ``s3:GetObjectVersion`` are needed.
    """
    where, access = place(uri), Access.of(storage_options)
    history = history_of(where, access)
    if history.root != ROOT:
        known = tuple(Version(c.version, c.at, c.n_bytes, 1, **_end(history, c)) for c in history.commits)
        return Versions(str(where), known)
    bodies = documents(where, access, history.commits)
    found = zip(history.commits, bodies, strict=True)
    return Versions(str(where), tuple(_version(where, history, commit, document) for commit, document in found))


def _version(where: Location, history: History, commit: Entry, document: bytes) -> Version:
    known: dict[str, Any] = _end(history, commit)
    try:
        state = taken(where, history, commit, document)
        known |= {"n_bytes": state.n_bytes, "n_objects": len(state.objects)}
        if store := of_root(document):
            known["n_obs"], known["n_vars"] = opened(store, str(where), Network()).shape
    except LobsterZarrError as error:
        known["problem"] = str(error)
    return Version(commit.version, commit.at, **known)


def _end(history: History, commit: Entry) -> dict[str, Any]:
    end = history.end(commit)
    if end is None:
        return {"state": "current"}
    # What overwrites a store leaves a mark in it before it deletes the root.
    marks = [e for e in history.by_key.get(MARKER, ()) if not e.is_deletion and commit.at <= e.at <= end.at]
    begun = [m for m in marks if m.at > commit.at] or marks[1:]
    return {"state": "deleted" if end.is_deletion and not begun else "replaced", "ended": end.at}
