"""Changes the lists in a bucket's configuration, lifecycle rules and statements of a policy, by the name of each entry.

What is there under other names stays. Must not know what an entry does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lobster_zarr.s3bucket import POLICY
from lobster_zarr.typeset import WIDTH, printable, shortened, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lobster_zarr.s3bucket import Aspect, Bucket

type Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """What a call changed in the configuration of a bucket, or would change.

    Parameters
    ----------
    bucket, what
        ``s3://name``, and which part of its configuration.
    added, replaced, unchanged, kept
        Names of entries that are new, that differ from those of the same name, that were there already, and that
        the call did not name.
    configuration
        As S3 has it afterwards; with `dry_run`, as it would be put.
    warnings
        What a reader should know of it.
    dry_run
        Nothing was changed.
    """

    bucket: str
    what: str
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    configuration: dict[str, Any]
    warnings: tuple[str, ...] = ()
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [shortened(f"{self.bucket}  {self.what}", WIDTH)]
        for label in ("added", "replaced", "unchanged", "kept"):
            names = getattr(self, label)
            lines += wrapped(", ".join(map(printable, names)), 13, f"  {label}") if names else []
        lines += [line for warning in self.warnings for line in wrapped(f"  note: {warning}", 4)]
        return "\n".join([*lines, *["  dry run: nothing was changed"] * self.dry_run])


def entries(configuration: Mapping[str, Any], member: str) -> list[dict[str, Any]]:
    """Return the list in a configuration; S3 takes a single statement for one."""
    found = configuration.get(member, [])
    return [found] if isinstance(found, dict) else list(found)


def change(
    bucket: Bucket,
    what: Aspect,
    new: Sequence[Entry],
    *,
    empty: Mapping[str, Any],
    warnings: Sequence[str] = (),
    dry_run: bool = False,
) -> Change:
    """Put entries into a configuration, in the place of those of the same name, and read it back.

    Parameters
    ----------
    bucket
        Whose configuration it is.
    what
        Which part of it.
    new
        The entries, each with a name of its own.
    empty
        The configuration where there is none yet; its members stand in for those that are missing.
    warnings
        Are handed on.
    dry_run
        Only tell.
    """
    member, key = ("Statement", "Sid") if what is POLICY else ("Rules", "ID")
    before = {**empty, **bucket.get(what)}
    there = entries(before, member)
    old = {entry[key]: entry for entry in there if key in entry}
    named = {entry[key]: dict(entry) for entry in new}
    merged = [named.get(entry.get(key), entry) for entry in there]
    merged += [entry for name, entry in named.items() if name not in old]
    after = {**before, member: merged}
    if merged != there and not dry_run:
        bucket.put(what, after)
        after = bucket.get(what)
    return Change(
        bucket=str(bucket),
        what=what.name,
        added=tuple(name for name in named if name not in old),
        replaced=tuple(name for name in named if name in old and old[name] != named[name]),
        unchanged=tuple(name for name in named if old.get(name) == named[name]),
        kept=tuple(entry.get(key, "(no name)") for entry in there if entry.get(key) not in named),
        configuration=after,
        warnings=tuple(warnings),
        dry_run=dry_run,
    )
