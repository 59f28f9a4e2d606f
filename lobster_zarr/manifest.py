"""What a migration did, file by file, or would do. Must not know how anything is brought anywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr.markup import body, box, figures, heading, name, notes, table
from lobster_zarr.report import human_bytes
from lobster_zarr.typeset import aligned, human_seconds, titled, wrapped

if TYPE_CHECKING:
    from lobster_zarr.folder import Kind

type Action = Literal["convert", "copy", "compare", "nothing", "leave"]
_DONE = {"convert": "converted", "copy": "copied", "compare": "was there", "nothing": "was there", "leave": "left"}


@dataclass(frozen=True)
class MigratedFile:
    """One file or store of the folder.

    Parameters
    ----------
    name
        Below the folder.
    kind
        ``"h5ad"``, ``"h5mu"``, ``"store"`` or ``"other"``.
    source_bytes
        Its size.
    destination
        Where it goes; None where it is left alone.
    action
        What was, or would be, done: ``"convert"``, ``"copy"``; ``"compare"``, where it is at the destination;
        ``"nothing"``, where it was compared before; ``"leave"``.
    done
        Whether that was done.
    stored_bytes
        What it has at the destination, where it was sent.
    seconds
        How long it took.
    verified
        Whether what the destination holds was read and compared, in this run or before.
    deleted
        Whether the local copy was deleted.
    error
        What failed; empty where nothing did.
    remark
        What else is to be said.
    """

    name: str
    kind: Kind
    source_bytes: int
    destination: str | None
    action: Action
    done: bool = False
    stored_bytes: int | None = None
    seconds: float = 0.0
    verified: bool = False
    deleted: bool = False
    error: str = ""
    remark: str = ""


@dataclass(frozen=True)
class MigrationReport:
    """What a migration did, or with `dry_run` would do.

    Parameters
    ----------
    source, destination
        The folder, and where its files go.
    files
        In the order of their names.
    seconds
        Wall time.
    dry_run
        Whether nothing was done.
    """

    source: str
    destination: str
    files: tuple[MigratedFile, ...]
    seconds: float
    dry_run: bool

    @property
    def failed(self) -> tuple[MigratedFile, ...]:
        """Those that failed, or would."""
        return tuple(file for file in self.files if file.error)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self) | {"n_failed": len(self.failed)}

    def __str__(self) -> str:
        heads = ("", "size", "", "becomes") if self.dry_run else ("", "size", "", "there", "time", "", "")
        told = [(file.name, f"failed: {file.error}" if file.error else file.remark) for file in self.files]
        return "\n".join(
            [
                *titled(self.source, f"→ {self.destination}"),
                *aligned([heads, *map(self._cells, self.files)], {1} if self.dry_run else {1, 3, 4}, [0, 3]),
                *(line for whose, text in told if text for line in wrapped(f"  {whose}: {text}", 4)),
                f"  {self._sum()}",
            ]
        )

    def _outcome(self, file: MigratedFile) -> str:
        if file.error:
            return "failed"
        if self.dry_run and file.action != "leave":
            return "is there" if file.action == "nothing" else file.action
        return _DONE[file.action] if file.done else "not yet"

    def _cells(self, file: MigratedFile) -> tuple[str, ...]:
        begun = file.name, human_bytes(file.source_bytes), self._outcome(file)
        if self.dry_run:
            return *begun, (file.destination or "").removeprefix(f"{self.destination.rstrip('/')}/")
        return (
            *begun,
            "" if file.stored_bytes is None else human_bytes(file.stored_bytes),
            human_seconds(file.seconds) if file.seconds else "",
            "verified" if file.verified else "",
            "deleted" if file.deleted else "",
        )

    def _sum(self) -> str:
        counts = Counter(map(self._outcome, self.files))
        kept = sum(file.stored_bytes or 0 for file in self.files)
        told = ", ".join(f"{n:,} {outcome}" for outcome, n in counts.items()) or "no files"
        told += f"; {human_bytes(sum(f.source_bytes for f in self.files if f.action != 'leave'))}"
        told += f" became {human_bytes(kept)}" if kept else ""
        return f"{told}; nothing was done" if self.dry_run else f"{told}; {human_seconds(self.seconds)}"

    def _repr_html_(self) -> str:
        there = [file for file in self.files if file.verified]
        told = figures(
            (f"{len(there):,}", "verified at the destination"),
            (human_bytes(sum(file.source_bytes for file in there)), "of local files"),
            (f"{len(self.failed):,}", "failed"),
            (human_seconds(self.seconds), "wall time"),
        )
        rows = [(name(file.name), *self._cells(file)[1:]) for file in self.files]
        heads, widths, right = ["file", "size", "", "there", "time", "", ""], [36, 12, 14, 12, 10, 10, 10], {1, 3, 4}
        if self.dry_run:
            heads, widths, right = ["file", "size", "", "becomes"], [36, 12, 14, 42], {1}
        made = table(heads, widths, rows, right)
        errors = notes(f"{file.name}: {file.error}" for file in self.failed)
        kind = "Would be moved" if self.dry_run else "Moved"
        return box(str(self), heading(kind, self.source, self.destination), told, body(made, errors))
