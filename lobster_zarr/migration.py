"""Moves a folder of files to S3, or wherever stores can be: plans all, then brings one after another, and reports.

Knows which cargo becomes what, and that a local copy goes only when the other was compared with it. Must not
know how anything is brought: that is :mod:`lobster_zarr.passage`.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

from lobster_zarr.errors import ConflictError, InvalidArgumentError, LobsterZarrError, StorageError, UnsupportedError
from lobster_zarr.folder import cargoes
from lobster_zarr.layout import check_codec
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.location import Location
from lobster_zarr.manifest import MigratedFile, MigrationReport
from lobster_zarr.passage import Converted, CopiedFile, CopiedStore, Passage
from lobster_zarr.place import place
from lobster_zarr.refusal import READ, refused_by_system
from lobster_zarr.report import Progress, human_bytes, parse_size
from lobster_zarr.typeset import LEAST, WIDTH, shortened

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from lobster_zarr.conversion import GeneMajor
    from lobster_zarr.folder import Cargo
    from lobster_zarr.layout import CodecProfile


def migrate(  # noqa: PLR0913 - options of a conversion, and what is done besides
    folder: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    convert: bool = True,
    others: bool = False,
    sort_by: str | Sequence[str] = (),
    gene_major: GeneMajor = "auto",
    codec: CodecProfile = "small",
    memory_limit: int | str = "2GB",
    overwrite: bool = False,
    delete_local: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> MigrationReport:
    """Move a folder of H5AD, H5MU and Zarr stores to S3; each is compared with what arrived.

    Run again after an interruption, it does the rest: the destination tells what is there. A file that fails
    is named in the report, and the others go on.

    Parameters
    ----------
    folder
        A local folder, looked through with all folders below it.
    dest
        ``s3://bucket/prefix``, or any other place that `lobster_zarr.convert` takes. Names stay what they are,
        but that a converted ``a/b.h5ad`` becomes ``a/b.zarr``.
    convert
        Make stores of .h5ad and .h5mu files, and of Zarr stores that this package did not write (the others
        are copied); False copies everything as it is.
    others
        Copy all other files too, which are else left alone.
    sort_by
        As of `lobster_zarr.convert`, in each file that has the column; of a MuData also ``"rna:cell_type"``.
    gene_major, codec, memory_limit
        As of `lobster_zarr.convert`.
    overwrite
        Replace what is there and is something else, or an earlier state of the file.
    delete_local
        Delete each local copy, once what arrived was read and compared, in this run or an earlier one, if
        nobody wrote to it meanwhile. Links are kept.
    dry_run
        Tell what would be done; nothing is written.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show bars, and which file of how many it is, when on a terminal.

    Returns
    -------
    MigrationReport
        Prints as a table; ``failed`` has those that failed. What is raised while files are on their way (Ctrl-C)
        has it as a note.

    Raises
    ------
    ConflictError
        Two files would get one name; nothing was begun.
    NotFoundError, InvalidArgumentError
        There is no such folder, the destination lies in it, or `delete_local` with one in memory.
    StorageError
        The destination cannot be looked at; nothing was begun.
    """
    started = time.perf_counter()
    where, wanted = place(dest), [sort_by] if isinstance(sort_by, str) else list(sort_by)
    check_codec(codec)
    parse_size(memory_limit, "memory_limit")
    _check_apart(folder, where)
    if delete_local and where.scheme == "memory":
        raise InvalidArgumentError(f"{where} ends with this process, expected a lasting destination for delete_local.")
    settings = {"sort_by": wanted, "gene_major": gene_major, "codec": codec, "memory_limit": memory_limit}
    job = _Migration(folder, where, convert, others, overwrite, delete_local, storage_options, settings, progress)
    entries = [job.planned(cargo) for cargo in cargoes(folder)]
    entries = _without_collisions(entries, fatal=not dry_run)
    report = MigrationReport(str(folder), str(where), (), 0.0, dry_run)

    def so_far() -> MigrationReport:
        files = tuple(entry.file for entry in entries)
        return replace(report, files=files, seconds=time.perf_counter() - started)

    if not dry_run:
        try:
            job.run(entries)
        except BaseException as stopped:
            stopped.add_note(str(so_far()))
            raise
    return so_far()


def _check_apart(folder: str | os.PathLike[str], dest: Location) -> None:
    source = place(folder)
    if source.scheme == "file" and dest.scheme == "file":
        a, b = Path(source.root).resolve(), Path(dest.root).resolve()
        if a == b or a in b.parents:
            raise InvalidArgumentError(f"The destination {dest} lies in {source}, expected one outside of it.")


@dataclass
class _Entry:
    """One cargo, what is told of it, and how it goes; None where it does not."""

    file: MigratedFile
    passage: Passage | None = None


def _without_collisions(entries: list[_Entry], *, fatal: bool) -> list[_Entry]:
    counts = Counter(entry.file.destination for entry in entries)
    twice = [entry for entry in entries if entry.file.destination and counts[entry.file.destination] > 1]
    for entry in twice:
        rivals = [e.file.name for e in twice if e.file.destination == entry.file.destination]
        msg = f"{' and '.join(rivals)} would both be {entry.file.destination}; rename one, or copy with convert=False."
        if fatal:
            raise ConflictError(msg)
        entry.file, entry.passage = replace(entry.file, error=msg), None
    return entries


@dataclass
class _Migration:
    """What is to be done with each cargo."""

    folder: str | os.PathLike[str]
    dest: Location
    convert: bool
    others: bool
    overwrite: bool
    delete_local: bool
    options: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    progress: bool
    bars: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.bars = Progress(enabled=self.progress)

    def planned(self, cargo: Cargo) -> _Entry:
        """Choose how a cargo goes, and look at its place."""
        file = MigratedFile(cargo.name, cargo.kind, cargo.n_bytes, None, "leave", remark=cargo.remark)
        if cargo.error:
            return _Entry(replace(file, error=cargo.error))
        if cargo.kind == "other" and (not self.others or cargo.remark):
            return _Entry(file)
        try:
            passage = self._passage(cargo)
            file = replace(file, destination=str(passage.dest), action=passage.action)
            found = passage.found()
        except StorageError:  # of the destination: the others will fare no better
            raise
        except (LobsterZarrError, OSError) as error:
            return _Entry(replace(file, error=_told(error, cargo)))
        if found == "verified" or (found == "same" and not self.overwrite):
            return _Entry(replace(file, action="nothing" if found == "verified" else "compare"), passage)
        if found == "other" and not self.overwrite:
            msg = (
                f"{passage.dest} holds something else, or an earlier state of it; pass overwrite=True (--overwrite) "
                "to replace it, or choose another destination."
            )
            return _Entry(replace(file, error=msg))
        return _Entry(file, passage)

    def _passage(self, cargo: Cargo) -> Passage:
        kind: type[Passage] = CopiedStore if cargo.kind == "store" else CopiedFile
        if self.convert and cargo.kind != "other" and not cargo.is_ours:
            kind = Converted
        where = place(f"{str(self.dest).rstrip('/')}/{_name(cargo, self.dest, is_file=kind is CopiedFile)}")
        _check_apart(self.folder, where)  # by a link it may be the very file, or another that is yet to go
        if kind is CopiedFile and where.scheme not in {"file", "s3"}:
            raise UnsupportedError(f"Files cannot be copied to {where}, expected s3:// or a local folder.")
        return kind(cargo, where, self.options, self.settings, self.progress)

    def run(self, entries: list[_Entry]) -> None:
        """Bring all that can go; what is told of each changes as it is done."""
        going = [(entry, entry.passage) for entry in entries if entry.passage]
        going.sort(key=lambda one: not one[1].cargo.path.is_symlink())  # before what they lead to is deleted
        total, gone = sum(entry.file.source_bytes for entry, _ in going), 0
        for entry in entries:
            entry.file = replace(entry.file, done=entry.file.action == "leave" and not entry.file.error)
        for at, (entry, passage) in enumerate(going, 1):
            told = f"file {at:,} of {len(going):,}, after {human_bytes(gone)} of {human_bytes(total)}: "
            self.bars.tell(told + shortened(entry.file.name, max(WIDTH - len(told), LEAST)))
            started = time.perf_counter()
            try:
                self._bring(entry, passage)
            except (LobsterZarrError, OSError) as error:
                entry.file = replace(entry.file, error=_told(error, passage.cargo))
            entry.file = replace(entry.file, seconds=time.perf_counter() - started)
            gone += entry.file.source_bytes

    def _bring(self, entry: _Entry, passage: Passage) -> None:
        action = entry.file.action
        if action in {"convert", "copy"}:
            stored_bytes = passage.send(overwrite=self.overwrite)
            entry.file = replace(entry.file, stored_bytes=stored_bytes, remark=passage.remark)
        passage.check_unchanged()
        if action != "nothing":
            passage.check()
            passage.check_unchanged()
            passage.record()
        entry.file = replace(entry.file, done=True, verified=True)
        if self.delete_local:
            passage.check_unchanged()
            kept = passage.delete()
            entry.file = replace(entry.file, deleted=not kept, remark=kept or entry.file.remark)


def _name(cargo: Cargo, dest: Location, *, is_file: bool) -> str:
    """Return the name of a cargo at the destination."""
    if any(category(letter) in {"Cc", "Cs"} for letter in cargo.name) or (dest.scheme != "file" and "?" in cargo.name):
        raise InvalidArgumentError("its name has a letter that no URI can carry; rename it.")
    if is_file or cargo.name.endswith(STORE_SUFFIX):
        return cargo.name
    return (cargo.name if cargo.kind == "store" else cargo.name.rpartition(".")[0]) + STORE_SUFFIX


def _told(error: LobsterZarrError | OSError, cargo: Cargo) -> str:
    if isinstance(error, LobsterZarrError):
        return str(error)
    path = Path(error.filename) if isinstance(error.filename, str) else cargo.path  # scratch space may be at fault
    return str(refused_by_system(error, READ, path.name, Location("file", str(path.parent))))
