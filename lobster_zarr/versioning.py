"""Asks S3 for the past of a store or file, and takes the state of one version: which objects it had.

Knows boto3's listing of versions. Must not know AnnData, nor change anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import NotFoundError, StorageError, UnsupportedError, VerificationError
from lobster_zarr.h5store import is_file
from lobster_zarr.history import Entry, History
from lobster_zarr.inventory import n_keys
from lobster_zarr.layout import MARKER
from lobster_zarr.loop import run
from lobster_zarr.place import name
from lobster_zarr.refusal import ASK_VERSIONING, LIST_VERSIONS, READ_VERSION
from lobster_zarr.s3client import payer, s3_client
from lobster_zarr.tree import is_ours, of_root, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lobster_zarr.location import Access, Location
    from lobster_zarr.node import Tree

ROOT = "zarr.json"
_UNVERSIONED = "null"  # S3's id of what was written while versioning was off
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a store at one commit.

    Parameters
    ----------
    commit
        The version of its root metadata.
    document
        The root metadata.
    tree
        Its nodes, where the root metadata tells them.
    objects
        By key from the root of the store, the root among them.
    """

    commit: Entry
    document: bytes
    tree: Tree | None
    objects: Mapping[str, Entry]

    @property
    def n_bytes(self) -> int:
        """The size of all objects."""
        return sum(entry.n_bytes for entry in self.objects.values())


def base_of(where: Location) -> tuple[str, str]:
    """Return what the keys of a store or file begin with, and the key of its root after that."""
    if is_file(str(where)):
        file = name(where)
        return where.prefix.removesuffix(file), file
    return f"{where.prefix}/".lstrip("/"), ROOT


def check_place(where: Location) -> None:
    """Refuse a storage that keeps no versions."""
    if where.scheme != "s3":
        raise UnsupportedError(f"{where} has no versions; expected s3://bucket/name, in a bucket with versioning.")


def history_of(where: Location, access: Access) -> History:
    """List all versions of a store's objects, or of a file and its kept index: one request for each 1,000.

    Raises
    ------
    UnsupportedError
        The storage or the bucket keeps no versions.
    NotFoundError
        There is nothing, and never was.
    StorageError
        S3 refused or failed.
    """
    check_place(where)
    base, root = base_of(where)
    wanted = base if root == ROOT else base + root
    with s3_client(where, access, LIST_VERSIONS) as client:
        listing = client.get_paginator("list_object_versions")
        pages = list(listing.paginate(Bucket=where.root, Prefix=wanted, **payer(access)))
    entries = tuple(entry for page in pages for entry in _entries(page, "Versions", base))
    entries += tuple(entry for page in pages for entry in _entries(page, "DeleteMarkers", base))
    if all(entry.version == _UNVERSIONED for entry in entries):
        _check_versioning(where, access)
    history = History(entries, root)
    if not history.commits:
        expected = f"versions of {root}" if root == ROOT else "versions of a file"
        if entries:
            msg = f"Below {where} lie objects, but no {expected}, now or before. `lobster-zarr ls` tells what there is."
            raise NotFoundError(msg)
        raise NotFoundError(f"There is nothing at {where}, nor was there; expected {expected}. Check the path.")
    return history


def _entries(page: Mapping[str, Any], kind: str, base: str) -> Iterator[Entry]:
    for told in page.get(kind, ()):
        yield Entry(
            told["Key"].removeprefix(base),
            told["VersionId"],
            told["LastModified"],
            told.get("Size", 0),
            told.get("ETag", ""),
            told.get("StorageClass", "STANDARD"),
            told["IsLatest"],
            kind == "DeleteMarkers",
        )


def _check_versioning(where: Location, access: Access) -> None:
    with s3_client(where, access, ASK_VERSIONING) as client:
        status = client.get_bucket_versioning(Bucket=where.root).get("Status")
    if status is None:
        msg = (
            f"the bucket of {where} keeps no versions: what is overwritten or deleted there is gone. Turn them on, for "
            f"what is written from then on: `aws s3api put-bucket-versioning --bucket {where.root} "
            "--versioning-configuration Status=Enabled`."
        )
        raise UnsupportedError(msg)


def documents(where: Location, access: Access, commits: Sequence[Entry]) -> list[bytes]:
    """Read versions of a store's root metadata: one request each, ten at once."""
    from concurrent.futures import ThreadPoolExecutor

    base, root = base_of(where)

    def one(commit: Entry) -> bytes:
        found = client.get_object(Bucket=where.root, Key=base + root, VersionId=commit.version, **payer(access))
        body: bytes = found["Body"].read()
        return body

    with s3_client(where, access, READ_VERSION) as client, ThreadPoolExecutor(10) as threads:
        return list(threads.map(one, commits))


def snapshot(where: Location, access: Access, version: str) -> Snapshot:
    """Take the state of one version: the listing, and one request for its root metadata.

    Parameters
    ----------
    version
        Its id, or the beginning of it.

    Raises
    ------
    NotFoundError
        There is no such version, or objects of it are gone.
    ConflictError, VerificationError
        Its objects cannot be told from those of another, or do not fit it.
    FormatError, StorageError
        The root metadata is damaged; or S3 refused.
    """
    history = history_of(where, access)
    commit = history.commit(version, str(where))
    [document] = documents(where, access, [commit])
    return taken(where, history, commit, document)


def taken(where: Location, history: History, commit: Entry, document: bytes) -> Snapshot:
    """As `snapshot`, of what was read already: no request."""
    known = of_root(document)
    tree = None if known is None else run(read_tree(known, str(where)))
    if tree is None or not is_ours(tree):
        objects = history.state(commit)
    else:
        if n_keys(tree) > len(history.by_key):
            raise _gone(where, commit, n_keys(tree) - len(history.by_key))
        named = _named(tree)
        objects = history.state(commit, named)
        if lost := named - objects.keys():
            raise _gone(where, commit, len(lost), f" (first: {min(lost)})")
        _check_sizes(where, commit, tree, objects)
    objects.pop(MARKER, None)  # which goes when the root is there
    away = [key for key, entry in objects.items() if entry.storage_class in _ARCHIVED]
    if away:
        msg = (
            f"{len(away):,} objects of version {commit.version} of {where} are archived ({min(away)}, …); restore them "
            "first: `aws s3api restore-object`, with their --version-id."
        )
        raise StorageError(msg)
    return Snapshot(commit, document, tree, objects)


def _named(tree: Tree) -> set[str]:
    """Return the keys that a store of this package has, the root left out."""
    nodes = {f"{path}/{ROOT}" for path in tree.nodes if path}
    return nodes.union(*(tree.array(path).object_keys() for path in tree.arrays_below("")))


def _gone(where: Location, commit: Entry, n_lost: int, first: str = "") -> NotFoundError:
    return NotFoundError(
        f"{n_lost:,} objects of version {commit.version} of {where} are gone{first}: a lifecycle rule removed "
        "them, or a person did. Choose another version."
    )


def _check_sizes(where: Location, commit: Entry, tree: Tree, objects: Mapping[str, Entry]) -> None:
    """Compare with the sizes that the root metadata notes: what another writer left in between does not pass."""
    sizes = tree.noted().get("stored_bytes")
    for path, n_bytes in sizes.items() if isinstance(sizes, dict) else ():
        found = sum(objects[key].n_bytes for key in tree.array(path).object_keys())
        if found != n_bytes:
            msg = (
                f"version {commit.version} of {where} is not whole: {path!r} has {found:,} bytes, not {n_bytes:,}. "
                "Several wrote at the same time. Choose another version."
            )
            raise VerificationError(msg)
