"""Finds the stores and files among the objects of a flat listing.

Keeps what it needs of each object and no more: a store of a million chunks is a few sums. Pure.
Must not know how objects are listed, or what they hold.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lobster_zarr.layout import MARKER
from lobster_zarr.listing import STORE_SUFFIX, Listed
from lobster_zarr.sidecar import SUFFIX as INDEX_SUFFIX

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

FILES = (".h5ad", ".h5mu")
_CONSOLIDATED = ("zarr.json", ".zmetadata")
_ROOTS = (*_CONSOLIDATED, ".zgroup", MARKER)
"""What shows that a folder is a store, or is to be one; what tells most of it comes first."""


@dataclass(frozen=True)
class Holding:
    """A store or file.

    Parameters
    ----------
    path
        From the folder that was listed; empty where that is the store itself.
    form
        ``"zarr"``, ``"h5ad"`` or ``"h5mu"``.
    n_bytes, n_objects
        Of all its objects.
    modified
        Of a store, when its root metadata was written.
    root
        The object that tells most of it: the file; of a store its root metadata, else the mark of
        an unfinished conversion; None where there is neither.
    index
        Of a file, its kept index, where there is one.
    """

    path: str
    form: str
    n_bytes: int
    n_objects: int
    modified: dt.datetime
    root: Listed | None
    index: Listed | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether it is a store that was never written to its end, or not deleted to its end."""
        return self.form == "zarr" and (self.root is None or self.root.key.endswith(MARKER))


@dataclass
class _Folder:
    n_bytes: int = 0
    n_objects: int = 0
    newest: dt.datetime | None = None
    roots: dict[str, Listed] = field(default_factory=dict)


def holdings(listed: Iterable[Listed], *, is_store: bool = False) -> list[Holding]:
    """Return the stores and files of a listing, by path.

    Parameters
    ----------
    listed
        All objects below a folder.
    is_store
        Whether the folder itself is named as a store is.
    """
    folders: dict[str, _Folder] = defaultdict(_Folder)
    files: list[Listed] = []
    indexes: dict[str, Listed] = {}
    for one in listed:
        at, _, name = one.key.rpartition("/")
        folder = folders[at]
        folder.n_bytes, folder.n_objects = folder.n_bytes + one.n_bytes, folder.n_objects + 1
        folder.newest = one.modified if folder.newest is None else max(folder.newest, one.modified)
        if name in _ROOTS:
            folder.roots[name] = one
        elif name.lower().endswith(FILES):
            files.append(one)
        elif name.endswith(INDEX_SUFFIX):
            indexes[one.key.removesuffix(INDEX_SUFFIX)] = one
    roots = {at for at, folder in folders.items() if folder.roots} | ({""} if is_store else set())
    owners = {at: _owner(at, roots) for at in folders}
    stores: dict[str, list[_Folder]] = defaultdict(list)
    for at, folder in folders.items():
        owner = owners[at]
        if owner is not None:
            stores[owner].append(folder)
    found = [_store(path, parts, folders.get(path)) for path, parts in stores.items()]
    for one in files:
        if owners[one.key.rpartition("/")[0]] is None:
            form = posixpath.splitext(one.key)[1].lower().lstrip(".")
            found.append(Holding(one.key, form, one.n_bytes, 1, one.modified, one, indexes.get(one.key)))
    return sorted(found, key=lambda holding: holding.path)


def _owner(folder: str, roots: set[str]) -> str | None:
    """Return the outermost store that a folder is, or lies in."""
    parts = folder.split("/") if folder else []
    for n in range(len(parts) + 1):
        at = "/".join(parts[:n])
        if at in roots or (n and parts[n - 1].endswith(STORE_SUFFIX)):
            return at
    return None


def _store(path: str, parts: list[_Folder], top: _Folder | None) -> Holding:
    known = {} if top is None else top.roots
    root = next((known[name] for name in _ROOTS if name in known), None)
    newest = max(part.newest for part in parts if part.newest is not None)
    n_bytes, n_objects = sum(part.n_bytes for part in parts), sum(part.n_objects for part in parts)
    return Holding(path, "zarr", n_bytes, n_objects, newest if root is None else root.modified, root)
