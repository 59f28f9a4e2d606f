"""Copies a store, a prefix or a file from bucket to bucket, so that a half-done copy never looks like a store.

What is there already is not copied again; every copy is compared with what it
is of. Knows which objects make a store open: they come last. Must not know
what objects hold.
"""

from __future__ import annotations

import posixpath
import tempfile
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lobster_zarr.checksum import agree
from lobster_zarr.errors import ConflictError, InvalidArgumentError, NotFoundError, UnsupportedError, VerificationError
from lobster_zarr.layout import MARKER
from lobster_zarr.listing import STORE_SUFFIX, named_objects
from lobster_zarr.location import Access, Location
from lobster_zarr.place import place, suffix
from lobster_zarr.placement import NOT_AT_ONCE
from lobster_zarr.refusal import DELETE, LIST, READ, WRITE
from lobster_zarr.report import Progress, human_bytes
from lobster_zarr.s3client import explained, payer
from lobster_zarr.transfer import Parts, download, upload
from lobster_zarr.tree import V2_FILES
from lobster_zarr.typeset import WIDTH, shortened, wrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

COPY_BYTES = 5 << 30
"""S3 copies no larger object in one request."""
MEMORY_BYTES = 16 << 20
"""A larger object goes through a file, where it goes through this machine."""
_LEAST_PART_BYTES, _PART_BYTES, _MOST_PARTS = 5 << 20, 64 << 20, 10_000
_MOST_NAMED = 5
_AT_ONCE = 10
_DOCUMENTS = {"zarr.json", ".zmetadata", *V2_FILES}
_KEPT = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Metadata")
_SAME_STORAGE = ("key", "secret", "token", "profile", "anon", "endpoint_url")


@dataclass(frozen=True)
class ReplicationReport:
    """What `replicate` copied, or would copy.

    Parameters
    ----------
    source, destination
        Where from and where to.
    server_side
        Whether S3 copied by itself, or the bytes went through this machine.
    n_objects, n_bytes
        Of the source.
    n_copied, copied_bytes
        Of them, those that were copied; the others were there already.
    n_by_size
        Copies of which S3 tells no sum to compare, so that their size alone was.
    dry_run
        Nothing was copied.
    """

    source: str
    destination: str
    server_side: bool
    n_objects: int
    n_bytes: int
    n_copied: int
    copied_bytes: int
    n_by_size: int = 0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        way = "by S3 itself" if self.server_side else "through this machine"
        verb = "to copy" if self.dry_run else "copied and compared"
        lines = [shortened(self.source, WIDTH), f"  → {shortened(self.destination, WIDTH - 4)}"]
        copied = f"  {self.n_copied:,} of {self.n_objects:,} objects {verb} {way}, {human_bytes(self.copied_bytes)}"
        lines += wrapped(f"{copied} of {human_bytes(self.n_bytes)}", 4)
        if self.n_by_size:
            lines += wrapped(f"  {self.n_by_size:,} of them by size alone: S3 tells no sums of theirs to compare", 4)
        return "\n".join([*lines, *["  dry run: nothing was copied"] * self.dry_run])


class _Entry(NamedTuple):
    size_bytes: int
    etag: str
    storage_class: str


@dataclass(frozen=True)
class _Side:
    """One end of the copy; objects are named by their key below it, the only one of a file by an empty text."""

    where: Location
    access: Access
    client: Any

    def key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.where.root, "Key": "/".join(filter(None, (self.where.prefix, name)))}

    def head(self, name: str) -> Any:
        with explained(self.where, self.access, READ):
            return self.client.head_object(**self.key(name), ChecksumMode="ENABLED", **payer(self.access))

    def listed(self) -> dict[str, _Entry]:
        """Return all that lies below; of a file, that alone."""
        base = f"{self.where.prefix}/".lstrip("/")
        with explained(self.where, self.access, LIST):
            return {
                entry["Key"].removeprefix(base) if entry["Key"] != self.where.prefix else "": _Entry(
                    entry["Size"], entry["ETag"], entry.get("StorageClass", "STANDARD")
                )
                for entry in named_objects(self.client, self.where, self.access)
            }

    def delete(self, names: Iterable[str]) -> None:
        with explained(self.where, self.access, DELETE):
            for name in names:
                self.client.delete_object(**self.key(name), **payer(self.access))


@dataclass(frozen=True)
class _Copy:
    """A copy under way."""

    source: _Side
    target: _Side
    options: Mapping[str, Any] | None
    target_options: Mapping[str, Any] | None

    @property
    def server_side(self) -> bool:
        ours, theirs = self.source.access, self.target.access
        return all(getattr(ours, name) == getattr(theirs, name) for name in _SAME_STORAGE)

    def agree(self, name: str, ours: _Entry, theirs: _Entry | None) -> bool | None:
        if theirs is None or ours.size_bytes != theirs.size_bytes:
            return False
        return ours.etag == theirs.etag or agree(self.source.head(name), self.target.head(name))

    def compared(self, entries: Mapping[str, _Entry], there: Mapping[str, _Entry]) -> dict[str, bool | None]:
        """Say of each object whether its copy is the same; None where S3 tells too little."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            judged = pool.map(lambda name: self.agree(name, entries[name], there.get(name)), entries)
            return dict(zip(entries, judged, strict=True))

    def run(self, entries: Mapping[str, _Entry], advance: Callable[[int], None]) -> int:
        """Copy objects and compare them; return of how many the size alone could be compared."""
        small_bytes = COPY_BYTES if self.server_side else MEMORY_BYTES
        small = {name: entry for name, entry in entries.items() if entry.size_bytes <= small_bytes}
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            tasks = [pool.submit(self._small, name, entry, advance) for name, entry in small.items()]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
        for name in entries.keys() - small.keys():  # here, where an interrupt aborts what was uploaded in parts
            self._large(name, entries[name])
            advance(entries[name].size_bytes)
        judged = self.compared(entries, self.target.listed()) if entries else {}
        wrong = [self.target.key(name)["Key"] for name, same in judged.items() if same is False]
        if wrong:
            more = f" and {len(wrong) - _MOST_NAMED:,} more" if len(wrong) > _MOST_NAMED else ""
            raise VerificationError(
                f"{', '.join(wrong[:_MOST_NAMED])}{more} in s3://{self.target.where.root} differ from what they were "
                f"copied from ({self.source.where}), or are gone. Another writer came between, or they are damaged: "
                "run the same again, which copies these alone."
            )
        return sum(same is None for same in judged.values())

    def _small(self, name: str, entry: _Entry, advance: Callable[[int], None]) -> None:
        ours, theirs = self.source, self.target
        arguments = theirs.access.put_arguments(entry.size_bytes)
        if self.server_side:
            with explained(theirs.where, theirs.access, WRITE):
                theirs.client.copy_object(
                    **theirs.key(name), CopySource=ours.key(name), CopySourceIfMatch=entry.etag, **arguments
                )
        else:
            with explained(ours.where, ours.access, READ):
                answer = ours.client.get_object(
                    **ours.key(name), IfMatch=entry.etag, ChecksumMode="ENABLED", **payer(ours.access)
                )
                content = answer["Body"].read()
            kept = {field: answer[field] for field in _KEPT if answer.get(field)}
            with explained(theirs.where, theirs.access, WRITE):
                arguments |= {**kept, "Body": content, "ChecksumAlgorithm": "SHA256"}
                theirs.client.put_object(**theirs.key(name), **arguments)
        advance(entry.size_bytes)

    def _large(self, name: str, entry: _Entry) -> None:
        ours, theirs = ("s3://{Bucket}/{Key}".format(**side.key(name)) for side in (self.source, self.target))
        if self.server_side:
            self._in_parts(name, entry)
            return
        with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as folder:
            path = download(ours, Path(folder, "object"), self.options, progress=False)
            upload(path, theirs, self.target_options, progress=False)

    def _in_parts(self, name: str, entry: _Entry) -> None:
        """Have S3 copy an object part by part, cut as it came: its ETag is then the same."""
        from boto3.s3.transfer import create_transfer_manager

        ours, theirs, part_bytes = self.source, self.target, _PART_BYTES
        head = ours.head(name)
        if "-" in entry.etag:
            with explained(ours.where, ours.access, READ):
                first = ours.client.head_object(**ours.key(name), PartNumber=1, **payer(ours.access))
            part_bytes = first["ContentLength"]
        part_bytes = max(part_bytes, _LEAST_PART_BYTES, -(-entry.size_bytes // _MOST_PARTS))
        kept = {field: head[field] for field in _KEPT if head.get(field)}
        arguments = {**kept, **theirs.access.put_arguments(entry.size_bytes), "CopySourceIfMatch": entry.etag}
        cut = Parts(part_bytes=part_bytes, at_once=_AT_ONCE).config(threshold_bytes=_LEAST_PART_BYTES)
        to = theirs.key(name)
        with (
            explained(theirs.where, theirs.access, WRITE),
            create_transfer_manager(theirs.client, cut) as transfers,
        ):
            transfers.copy(ours.key(name), to["Bucket"], to["Key"], arguments, source_client=ours.client).result()


def _phases(names: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return what may come first, the metadata within stores, and what makes a store open, which comes last."""
    documents = [name for name in names if posixpath.basename(name) in _DOCUMENTS]
    folders = {posixpath.dirname(name) for name in documents}
    roots = [name for name in documents if not any(above in folders for above in _above(posixpath.dirname(name)))]
    known = set(documents)
    return [n for n in names if n not in known], [n for n in documents if n not in set(roots)], roots


def _above(folder: str) -> list[str]:
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:n]) for n in range(len(parts))]


def replicate(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    destination_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> ReplicationReport:
    """Copy a store, all below a prefix, or a file to another place on S3, also in another region.

    Of a store its metadata comes last and its root at the very end, when all else has been compared: until then there
    is nothing that opens. Broken off, the same call goes on where it ended.

    Parameters
    ----------
    source, destination
        ``s3://bucket/key``; the destination is the name that the copy gets.
    storage_options
        As for :func:`lobster_zarr.open`, of both ends. What they say of a write (``sse``, ``storage_class``) holds for
        the copy.
    destination_options
        Those of the destination, where they are others.
    overwrite
        Replace a store or file that is there and differs. Its root goes first; where there is none, nothing is deleted.
    dry_run
        Only tell what would be copied.
    progress
        Show a bar when on a terminal.

    Returns
    -------
    ReplicationReport
        Where both ends have one endpoint and the same credentials, S3 copies by itself: a request an object, in parts
        above 5 GiB. Else the bytes go through this machine.

    Raises
    ------
    NotFoundError
        There is nothing at the source.
    ConflictError
        The destination holds something else; the source was changed meanwhile, or is a store that is not whole.
    VerificationError
        A copy differs from what it is of; it is named, and the store does not open.
    UnsupportedError
        An object lies in an archive and has to be restored first.
    StorageError
        S3 refused or failed.
    """
    where, to = _ends(source, destination)
    target_options = storage_options if destination_options is None else destination_options
    with ExitStack() as stack:
        sides = []
        for end, options in ((where, storage_options), (to, target_options)):
            access = Access.of(options)
            access.check_endpoint()
            with explained(end, access, LIST):
                sides.append(_Side(end, access, stack.enter_context(closing(access.client()))))
        if sides[0].access.endpoint_url == sides[1].access.endpoint_url:
            _check_apart(where, to)
        copy = _Copy(sides[0], sides[1], storage_options, target_options)
        return _replicated(copy, overwrite=overwrite, dry_run=dry_run, progress=progress)


def _ends(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> tuple[Location, Location]:
    where, to = place(source), place(destination)
    for end in (where, to):
        if end.scheme != "s3":
            raise InvalidArgumentError(f"{end} is not on S3, expected s3://bucket/key. `upload` goes there.")
    return where, to


def _check_apart(where: Location, to: Location) -> None:
    if f"{to}/".startswith(f"{where}/") or f"{where}/".startswith(f"{to}/"):
        raise InvalidArgumentError(f"{where} and {to} are the same or one lies in the other, expected two places.")


def _check(copy: _Copy, entries: Mapping[str, _Entry], there: Mapping[str, _Entry]) -> None:
    """Refuse a source that is not whole or cannot be read, and a destination that is no place for it."""
    where, to = copy.source.where, copy.target.where
    if not entries:
        raise NotFoundError(f"There is nothing at {where}. Check the path.")
    if "" in entries and (not to.prefix or there.keys() - {""}):
        kind = "holds other objects" if to.prefix else "is a bucket"
        raise InvalidArgumentError(f"{to} {kind}, expected the name of the copy of one file in it.")
    if not _DOCUMENTS & entries.keys():
        if MARKER in entries or ("" not in entries and suffix(where) == STORE_SUFFIX):
            told = "it is being written, or its conversion, rollback or deletion was broken off"
            raise ConflictError(f"{where} is no whole store: {told}. Copy it when that is done.")
        if _DOCUMENTS & there.keys():
            raise ConflictError(f"{to} is a store, where what lies below {where} would get lost. Name another place.")
    for name, entry in entries.items():
        if entry.storage_class in NOT_AT_ONCE:
            raise UnsupportedError(
                f"{copy.source.key(name)['Key']} in {where} lies in {entry.storage_class} and cannot be read. "
                "Restore it (`aws s3api restore-object`), then try again."
            )


def _replicated(copy: _Copy, *, overwrite: bool, dry_run: bool, progress: bool) -> ReplicationReport:
    entries, there = copy.source.listed(), copy.target.listed()
    _check(copy, entries, there)
    copy.source.head(next(iter(entries)))  # whether it may be read: a refused copy does not tell which end refuses
    present = {name: entry for name, entry in entries.items() if name in there}
    judged = copy.compared(present, there)
    missing = {name: entry for name, entry in entries.items() if not judged.get(name)}
    stale, foreign = _stale(entries, there, [name for name, same in judged.items() if same is False])
    if stale and (foreign or not overwrite):
        remedy = "Name another place" + (", or delete it yourself" if foreign else ", or pass overwrite=True")
        raise ConflictError(
            f"{copy.target.where} holds something else: {len(stale):,} objects that {copy.source.where} does not have, "
            f"or not so, such as {copy.target.key(stale[0])['Key']}. {remedy}."
        )
    n_by_size = 0
    copied_bytes = sum(entry.size_bytes for entry in missing.values())
    if not dry_run:
        copy.target.delete(sorted(stale, key=lambda name: name.count("/")))
        bars = Progress(enabled=progress)
        with bars.phase(f"Copy {copy.source.where}", copied_bytes, "B") as advance:
            for names in _phases(list(entries)):
                n_by_size += copy.run({name: missing[name] for name in names if name in missing}, advance)
    return ReplicationReport(
        source=str(copy.source.where),
        destination=str(copy.target.where),
        server_side=copy.server_side,
        n_objects=len(entries),
        n_bytes=sum(entry.size_bytes for entry in entries.values()),
        n_copied=len(missing),
        copied_bytes=copied_bytes,
        n_by_size=n_by_size,
        dry_run=dry_run,
    )


def _stale(
    entries: Mapping[str, _Entry], there: Mapping[str, _Entry], differing: Iterable[str]
) -> tuple[list[str], bool]:
    """Return what has to go from the destination first, and whether some of it is of no store, so that it may not.

    That is metadata and files that differ, and what a store has more. Chunks that differ are of a copy that broke off
    or was damaged: they are replaced.
    """
    _, documents, roots = _phases(list(entries))
    metadata, folders = {*documents, *roots}, {posixpath.dirname(name) for name in roots}
    opens = {posixpath.dirname(name) for name in roots if name in there}

    def lies_in(name: str, stores: Iterable[str]) -> bool:
        return any(not folder or name.startswith(f"{folder}/") for folder in stores)

    other = [name for name in differing if name in metadata or not lies_in(name, folders)]
    more = [name for name in there if name not in entries and lies_in(name, folders)]
    return other + more, not all(lies_in(name, opens) for name in more)
