"""Makes a version of a store or file the current one again, by copies within S3.

Of a store the root metadata goes first and comes back last, so that what is half done does not open;
what was current stays as a version. Nothing is removed for good. Must not know what objects hold.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lobster_zarr.commit import ROOT as ROOTS
from lobster_zarr.errors import ConflictError, InvalidArgumentError
from lobster_zarr.layout import MARKER
from lobster_zarr.location import Access
from lobster_zarr.place import place
from lobster_zarr.refusal import ROLL_BACK
from lobster_zarr.report import Progress, human_bytes
from lobster_zarr.s3client import payer, s3_client
from lobster_zarr.sidecar import SUFFIX
from lobster_zarr.typeset import titled
from lobster_zarr.versioning import ROOT, base_of, documents, history_of, taken

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from lobster_zarr.history import Entry, History
    from lobster_zarr.location import Location

MOST_COPIED_BYTES = 5 << 30
"""S3 copies no more in one request."""
AT_ONCE = 10


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback did, or would do.

    Parameters
    ----------
    uri
        The store or file.
    version, committed
        What it was rolled back to, and when that was written, as ISO text.
    replaced
        Id of the version that was current, and stays as a version; None where there was none.
    n_copied, n_bytes
        Objects that were copied, within S3.
    n_removed
        Objects of later versions that were deleted; they too stay as versions.
    is_done
        Whether it was done.
    """

    uri: str
    version: str
    committed: str
    replaced: str | None
    n_copied: int
    n_bytes: int
    n_removed: int
    is_done: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.n_copied + self.n_removed:
            return "\n".join([*titled("Nothing to do", self.uri), f"  it is as of version {self.version}"])
        did = ("Rolled back", "copied", "deleted") if self.is_done else ("Would roll back", "to copy", "to delete")
        lines = titled(did[0], self.uri)
        lines.append(f"  to version {self.version} of {self.committed}")
        lines.append(f"  {self.n_copied:,} objects ({human_bytes(self.n_bytes)}) {did[1]}, {self.n_removed:,} {did[2]}")
        if self.replaced:
            lines.append(f"  what was current stays: version {self.replaced}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Work:
    """What is to be done, by keys from the root of the store."""

    root: str
    state: Mapping[str, Entry]
    current: Mapping[str, Entry]

    @cached_property
    def removals(self) -> list[str]:
        """Keys that the version has not. The kept index of a file goes with it."""
        if self.root != ROOT and not self._differing:
            return []
        return [key for key in self.current if key not in self.state]

    @cached_property
    def copies(self) -> list[Entry]:
        """Versions to be copied: those that are not what is there, and with any of them the roots."""
        if not self._differing and not self.removals:
            return []
        return [entry for key, entry in self.state.items() if entry in self._differing or self.is_root(key)]

    @cached_property
    def _differing(self) -> set[Entry]:
        return {entry for key, entry in self.state.items() if not _is_same(entry, self.current.get(key))}

    def is_root(self, key: str) -> bool:
        """Whether an object makes a store, or a modality of it, open."""
        return self.root == ROOT and ROOTS.fullmatch(key) is not None


def rollback(
    uri: str | os.PathLike[str],
    version: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    dry_run: bool = False,
    progress: bool = True,
) -> RollbackReport:
    """Make a version of a store or file the current one again.

    Objects that are another by now are copied within S3, no byte comes here; objects that the version
    had not are deleted, which leaves them as versions. A store does not open from the
    beginning to the end; if it is broken off, the same call ends it. A file is replaced at once; its kept
    index, if it has one, is deleted. Nobody else may write there meanwhile.

    Parameters
    ----------
    uri
        ``s3://`` of a store, an .h5ad or .h5mu.
    version
        An id that :func:`lobster_zarr.versions` lists, or the beginning of it.
    storage_options
        As for :func:`lobster_zarr.open`; encryption and storage class as for what is written. Without
        a class, objects have that of their version.
    dry_run
        Change nothing, and tell what would be done.
    progress
        Show a bar when on a terminal.

    Returns
    -------
    RollbackReport
        Prints as text.

    Raises
    ------
    NotFoundError
        There is no such version, or objects of it are gone.
    InvalidArgumentError
        It is a modality of a MuData store.
    UnsupportedError, ConflictError, VerificationError
        The bucket keeps no versions; objects of the version cannot be told from those of another; or
        somebody else wrote at the same time.
    StorageError
        S3 refused or failed.
    """
    where, access = place(uri), Access.of(storage_options)
    if where.prefix.split("/")[-2:-1] == ["mod"]:
        msg = f"{where} is a modality of a MuData store, whose root tells of it too. Roll back the whole store."
        raise InvalidArgumentError(msg)
    history = history_of(where, access)
    commit = history.commit(version, str(where))
    state = {commit.key: commit}
    if history.root == ROOT:
        [document] = documents(where, access, [commit])
        state = dict(taken(where, history, commit, document).objects)
    work = _Work(history.root, state, _current(history))
    copies, current = work.copies, work.current.get(work.root)
    if not dry_run and copies + work.removals:
        _run(where, access, work, commit, Progress(enabled=progress))
    return RollbackReport(
        str(where),
        commit.version,
        commit.at.isoformat(),
        None if current is None or current is commit else current.version,
        len(copies),
        sum(entry.n_bytes for entry in copies),
        len(work.removals),
        is_done=not dry_run,
    )


def _current(history: History) -> dict[str, Entry]:
    """Return what is there of a store; of a file, it and its kept index."""
    now = history.current()
    return now if history.root == ROOT else {k: e for k, e in now.items() if k in {history.root, history.root + SUFFIX}}


def _is_same(wanted: Entry, current: Entry | None) -> bool:
    """Whether an object is what it was: by the id of its version; of a copy, by its sum."""
    if current is None:
        return False
    same = (wanted.etag, wanted.n_bytes) == (current.etag, current.n_bytes)
    return wanted.version == current.version or (same and bool(wanted.etag))


def _run(where: Location, access: Access, work: _Work, commit: Entry, bars: Progress) -> None:
    n_bytes = sum(entry.n_bytes for entry in work.copies)
    try:
        with (
            s3_client(where, access, ROLL_BACK) as client,
            bars.phase("Copy within S3", n_bytes, "B") as advance,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):
            bucket = _Bucket(client, where.root, base_of(where)[0], access, threads)
            if work.root == ROOT:
                _restore(where, bucket, work, commit, advance)
            else:
                bucket.copy(work.copies, advance)
                bucket.remove(work.removals)
    except BaseException as error:
        error.add_note(f"The rollback of {where} was broken off: it may not open until the same one is run again.")
        raise


def _restore(where: Location, bucket: _Bucket, work: _Work, commit: Entry, advance: Callable[[int], None]) -> None:
    bucket.put(MARKER, json.dumps({"writer": "lobster_zarr", "rollback": commit.version}).encode())
    bucket.remove(key for key in work.current if work.is_root(key))
    bucket.copy([e for e in work.copies if not work.is_root(e.key)], advance)
    bucket.remove(key for key in work.removals if not work.is_root(key) and key != MARKER)
    _check(where, bucket.access, work)
    # The root itself last: what it tells of is there by then, modalities that open by themselves too.
    bucket.copy([e for e in work.copies if work.is_root(e.key) and e is not commit], advance)
    bucket.copy([commit], advance)
    bucket.remove([MARKER])


def _check(where: Location, access: Access, work: _Work) -> None:
    """Look whether what is there is what the version had, all but roots: another may have written meanwhile."""
    sizes = [
        {key: entry.n_bytes for key, entry in of.items() if not work.is_root(key) and key != MARKER}
        for of in (work.state, history_of(where, access).current())
    ]
    if sizes[0] != sizes[1]:
        key = min(key for key in sizes[0].keys() | sizes[1].keys() if sizes[0].get(key) != sizes[1].get(key))
        msg = f"{where} was written to while it was rolled back ({key!r}). When nobody writes there, roll back again."
        raise ConflictError(msg)


@dataclass(frozen=True)
class _Bucket:
    """Changes objects below a prefix, several at once; each call ends when all of it is done."""

    client: Any
    name: str
    base: str
    access: Access
    threads: ThreadPoolExecutor

    def put(self, key: str, payload: bytes) -> None:
        target = {"Bucket": self.name, "Key": self.base + key}
        self.client.put_object(**target, Body=payload, **self.access.put_arguments(len(payload)))

    def remove(self, keys: Iterable[str]) -> None:
        def one(key: str) -> None:
            self.client.delete_object(Bucket=self.name, Key=self.base + key, **payer(self.access))

        list(self.threads.map(one, keys))

    def copy(self, entries: Iterable[Entry], advance: Callable[[int], None]) -> None:
        def one(entry: Entry) -> int:
            self._copy(entry)
            return entry.n_bytes

        for n_bytes in self.threads.map(one, entries):
            advance(n_bytes)

    def _copy(self, entry: Entry) -> None:
        source = {"Bucket": self.name, "Key": self.base + entry.key, "VersionId": entry.version}
        target = {"Bucket": self.name, "Key": source["Key"]}
        how = {"StorageClass": entry.storage_class} | self.access.put_arguments(entry.n_bytes)
        if entry.n_bytes <= MOST_COPIED_BYTES:
            self.client.copy_object(CopySource=source, **target, **how)
            return
        # In parts, which bring neither the object's metadata nor its type.
        head = self.client.head_object(**source, **payer(self.access))
        how |= {name: head[name] for name in ("Metadata", "ContentType") if name in head}
        self.client.copy(source, **target, ExtraArgs=how, Config=_in_parts())


def _in_parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    # No more than 10,000 parts of an object of at most 50 TB.
    return TransferConfig(multipart_threshold=1, multipart_chunksize=512 << 20, preferred_transfer_client="classic")
