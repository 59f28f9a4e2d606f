"""A store copied object by object, its roots last, and the look of a store at its destination.

Knows keys and bytes. Must not know what the arrays of a store mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.checksum import of_bytes
from lobster_zarr.commit import ROOT, Commit
from lobster_zarr.errors import NotFoundError, VerificationError
from lobster_zarr.layout import MARKER, VERIFIED
from lobster_zarr.loop import run
from lobster_zarr.store import UriStore, display_uri

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_ROOTS = ("zarr.json", ".zattrs", ".zgroup", ".zmetadata")


class _Replica(Commit):
    def finish_as(self, roots: Mapping[str, bytes]) -> None:
        """Upload the roots as they are, in this order, and take the marker away."""
        self._flush()
        for key, payload in roots.items():
            self._note(key, payload)
            self._put_alone(key, payload)
        self._finished = True
        run(self.store.delete(MARKER))


def copy_store(
    folder: Path, dest: str, storage_options: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> int:
    """Copy a local store; it is there wholly or not at all. Returns the bytes that it has.

    Raises
    ------
    ConflictError, StorageError
        As of `commit.Commit`.
    """
    keys = _keys(folder)
    roots = [key for key in keys if ROOT.fullmatch(key)]
    with _Replica(dest, storage_options, overwrite=overwrite) as replica:
        for key in keys:
            if key not in roots:
                replica.put(key, (folder / key).read_bytes())
        last = sorted(roots, key=lambda key: (not key.startswith("mod/"), key))
        replica.finish_as({key: (folder / key).read_bytes() for key in last})
    return replica.stored_bytes


def check_copy(folder: Path, dest: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Read every object of a copied store and compare it with the local one.

    Raises
    ------
    VerificationError
        One differs, is missing, or is too much.
    """
    run(_check_copy(folder, UriStore(dest, storage_options), display_uri(dest)))


async def _check_copy(folder: Path, store: UriStore, where: str) -> None:
    there = {key async for key in store.list_prefix("")} - {VERIFIED, MARKER}
    for key in sorted(there.symmetric_difference(_keys(folder))):
        raise VerificationError(f"{where}: {key!r} is {'not in the source' if key in there else 'missing'}.")
    for key in sorted(there):
        found = await store.get(key, default_buffer_prototype())
        if found is None or found.to_bytes() != (folder / key).read_bytes():
            raise VerificationError(f"{where}: {key!r} differs from that of {folder}.")


def _keys(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Occupant:
    """What a place for a store holds.

    Parameters
    ----------
    objects
        Size and ETag of each object, by its key.
    roots
        The metadata of the root by its key; empty where no store opens.
    record
        What was noted of it when it was verified.
    """

    objects: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)
    roots: Mapping[str, bytes] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_free(self) -> bool:
        """Whether there is nothing, or only what a broken conversion left."""
        return not self.roots and (not self.objects or MARKER in self.objects)

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the root; empty where they are no JSON."""
        if "zarr.json" not in self.roots:
            return _document(self.roots.get(".zattrs"))
        attributes = _document(self.roots["zarr.json"]).get("attributes")
        return attributes if isinstance(attributes, dict) else {}

    def seal(self, source_sha256: str) -> dict[str, str]:
        """What is noted of it when it was compared with a source: it changes with each object that is replaced."""
        told = sorted((key, *found) for key, found in self.objects.items() if key not in {VERIFIED, MARKER})
        return {"source_sha256": source_sha256, "objects_sha256": of_bytes(json.dumps(told).encode())}


def occupant(dest: str, storage_options: Mapping[str, Any] | None = None) -> Occupant:
    """Look at the place for a store: a listing, and a request for each root.

    Raises
    ------
    StorageError, FormatError
        The storage refused; the place is that of a file.
    """
    try:
        store = UriStore(dest, storage_options)
    except NotFoundError:
        return Occupant()
    return run(_occupant(store))


async def _occupant(store: UriStore) -> Occupant:
    listed = store._list()  # noqa: SLF001 - Zarr's lists have no sizes
    objects = {entry["path"]: (entry["size"], entry["e_tag"]) async for entry in listed}
    found = {}
    for key in (*_ROOTS, VERIFIED):
        buffer = await store.get(key, default_buffer_prototype()) if key in objects else None
        if buffer is not None:
            found[key] = buffer.to_bytes()
    return Occupant(objects, found, _document(found.pop(VERIFIED, None)))


def note_verified(dest: str, source_sha256: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Note in a store that it was compared with its source; nothing that reads stores looks there."""
    body = json.dumps(occupant(dest, storage_options).seal(source_sha256)).encode()
    store = UriStore(dest, storage_options, read_only=False)
    run(store.set(VERIFIED, default_buffer_prototype().buffer.from_bytes(body)))


def _document(body: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(body or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
