"""Which objects were a store at one of its commits, by what a versioned bucket tells of each object's past.

A version of the root metadata is a commit. S3 dates versions by the second: a commit's state is that
at the end of its second, which is one that the store really had, unless its root was written or deleted
once more within that second. Then an object counts only where nothing else comes into question, and
anything else is refused. Pure. Must not know who lists, or what objects hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from lobster_zarr.errors import ConflictError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Sequence

LEAST_PREFIX = 4
"""Characters of an id that may stand for it, where no other begins so."""


@dataclass(frozen=True)
class Entry:
    """A version of an object, or that it was deleted."""

    key: str
    version: str
    at: dt.datetime
    n_bytes: int = 0
    etag: str = ""
    storage_class: str = "STANDARD"
    is_latest: bool = False
    is_deletion: bool = False


@dataclass(frozen=True)
class History:
    """All that a bucket tells of the objects of one store or file.

    Parameters
    ----------
    entries
        Those of one key as S3 gives them: versions newest first. Deletions, which S3 gives by
        themselves, come after all of them.
    root
        Key of the object whose versions are commits.
    """

    entries: tuple[Entry, ...]
    root: str

    @cached_property
    def by_key(self) -> dict[str, list[Entry]]:
        """The entries of each key, newest first; within a second, deletions after versions."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.key, []).append(entry)
        return {k: sorted(past, key=lambda e: (e.is_latest, e.at), reverse=True) for k, past in found.items()}

    @cached_property
    def commits(self) -> list[Entry]:
        """Versions of the root, newest first."""
        return [entry for entry in self.by_key.get(self.root, ()) if not entry.is_deletion]

    def current(self) -> dict[str, Entry]:
        """Return what is there now."""
        return {key: past[0] for key, past in self.by_key.items() if past[0].is_latest and not past[0].is_deletion}

    def end(self, commit: Entry) -> Entry | None:
        """Return what ended a commit: the next version of the root, or its deletion; None while it stands."""
        past = self.by_key[self.root]
        at = past.index(commit)
        return past[at - 1] if at else None

    def commit(self, version: str, where: str) -> Entry:
        """Return the commit of an id, or of the beginning of one that no other shares.

        Raises
        ------
        NotFoundError
            There is none, or several begin so.
        InvalidArgumentError
            It is no text.
        """
        if not isinstance(cast("object", version), str):
            raise InvalidArgumentError(f"The version is {version!r}, expected its id, as text: `.id` of a Version.")
        exact = [c for c in self.commits if c.version == version]
        meant = exact or [c for c in self.commits if len(version) >= LEAST_PREFIX and c.version.startswith(version)]
        if len(meant) == 1:
            return meant[0]
        what = f"{len(meant)} versions that begin with" if meant else "no version"
        msg = f"{where} has {what} {version!r}, of {len(self.commits):,}; `lobster-zarr versions {where}` lists them."
        raise NotFoundError(msg)

    def state(self, commit: Entry, named: Collection[str] | None = None) -> dict[str, Entry]:
        """Return the objects that were there at a commit.

        Parameters
        ----------
        commit
            A version of the root.
        named
            Keys that the root metadata says were there, of a store of which it names all, and whose writer
            deletes the root before it writes another; None of other stores.

        Raises
        ------
        ConflictError
            What belongs to it cannot be told by dates of one second.
        """
        is_contested = self._is_contested(commit, is_ours=named is not None)
        chosen = {self.root: commit}
        for key, past in self.by_key.items():
            if key == self.root:
                continue
            seconds = [list(group) for _, group in groupby(past, attrgetter("at"))]
            upto = [group for group in seconds if group[0].at <= commit.at]
            if not upto:
                continue
            if is_contested and upto[0][0].at == commit.at:
                if named is not None and key not in named:
                    continue  # scratch, or what lies beside the store
                entry = None if named is None else _undoubted(upto)
            else:
                entry = _ended_with(upto[0], None if named is None else key in named)
            if entry is None:
                raise self._unclear(commit, key)
            if not entry.is_deletion:
                chosen[key] = entry
        return chosen

    def _is_contested(self, commit: Entry, *, is_ours: bool) -> bool:
        """Whether the root may have been written or deleted again within the second of a commit."""
        within = [e for e in self.by_key[self.root] if e.at == commit.at]
        if next(e for e in within if not e.is_deletion) is not commit:
            return True
        has_deletion = any(e.is_deletion for e in within)
        return has_deletion and not commit.is_latest and not (is_ours and self._stood[commit.at])

    @cached_property
    def _stood(self) -> dict[dt.datetime, bool | None]:
        """Whether there was a root at the end of each second in which there was a change; None where S3 does not say.

        S3 does not order versions and deletions of one second. But where each version but a first one
        follows a deletion, their numbers tell which came last.
        """
        stood: bool | None = None  # of what came before, nothing may be left
        found: dict[dt.datetime, bool | None] = {}
        for at, group in groupby(reversed(self.by_key[self.root]), attrgetter("at")):
            kinds = [entry.is_deletion for entry in group]
            n_deleted, n_written = sum(kinds), len(kinds) - sum(kinds)
            if not n_deleted or not n_written:
                stood = not n_deleted
            elif stood is not None:
                left = n_deleted - (n_written - 1 + stood)
                stood = {0: True, 1: False}.get(left)
            found[at] = stood
        return found

    def _unclear(self, commit: Entry, key: str) -> ConflictError:
        msg = (
            f"version {commit.version} cannot be told from others of the same second ({commit.at:%Y-%m-%d %H:%M:%S}): "
            f"S3 does not say which {key!r} belongs to it. Choose another version."
        )
        return ConflictError(msg)


def _undoubted(upto: Sequence[Sequence[Entry]]) -> Entry | None:
    """Return the only object that can have been there at some time of the last second; None where several can."""
    written = [e for e in upto[0] if not e.is_deletion]
    before = _ended_with(upto[1], is_named=True) if len(upto) > 1 else None
    if before is not None and not before.is_deletion:
        written.append(before)
    return written[0] if len({(e.etag, e.n_bytes) for e in written}) == 1 else None


def _ended_with(second: Sequence[Entry], is_named: bool | None) -> Entry | None:  # noqa: FBT001 - three answers
    """Return what a second left of a key; None where S3 does not say."""
    versions = [e for e in second if not e.is_deletion]
    if is_named and versions:  # it was there: what deleted it came before it was written, or after the commit
        return versions[0]
    if second[0].is_latest or len(versions) in {0, len(second)}:
        return second[0]
    return None if is_named is None else next(e for e in second if e.is_deletion)
