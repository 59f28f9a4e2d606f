"""Keeps byte ranges of objects on a disk of this machine: bounded, shared by processes, the least used goes first.

An entry belongs to one version of one object (its ETag), so that it can fall out of use but never become wrong. Its
bytes are a file, written aside and renamed, with a sum that is checked whenever it is read; an index tells which there
are. A process may die at any point: what it leaves is not referred to, and goes later. Of libraries, diskcache comes
nearest; it unpickles what lies on the disk, and has had no release since 2023. Must not know networks, nor what
objects hold.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from lobster_zarr.cacheindex import COLUMNS, OF_VERSION, ROW_BYTES, Index, Name

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    type _Row = tuple[int, int, bytes, float]

DEFAULT_BYTES = 10_000_000_000
PIECE_BYTES = 1 << 20
"""A longer range is kept in pieces: all of an entry is read to check it."""
_FOLDER = "ranges-1"
"""Within the folder of the user's choosing; the number is that of the form in which entries lie there."""
_TOUCH_SECONDS = 60.0
"""How exact the time of the last use is: most uses then write nothing."""
logger = logging.getLogger(__name__)


class Version(NamedTuple):
    """One version of an object: its strong ETag, its size, and when it was written, in seconds since 1970."""

    etag: str
    n_bytes: int
    modified: float


class Held(NamedTuple):
    """What is kept of a store, of all its versions; `used` is the time of the last use, in seconds since 1970."""

    store: str
    n_bytes: int
    n_entries: int
    used: float


def user_folder() -> Path:
    """Return where this user's caches lie, as the system has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lobster-zarr"


class Folder:
    """The entries in a folder. Safe to share between threads, and the folder between processes.

    Parameters
    ----------
    path
        Of the folder; ``~`` is this user's home.
    max_bytes
        What entries may take in all.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES) -> None:
        self.path, self.max_bytes = Path(path).expanduser() / _FOLDER, max_bytes
        self._index = Index(self.path)

    @property
    def is_off(self) -> bool:
        """Whether it failed, and nothing is kept or read any more."""
        return self._index.is_off

    def read(self, store: str, key: str, etag: str, part: slice) -> bytes | None:
        """Read a part of an object, as of a sequence of its size; None where not all of it is kept, and sound."""
        of = store, key, etag
        found = self._index.ask(lambda database: _covering(database, of, part), None)
        if found is None:
            return None
        start, stop, rows = found
        parts, at = [], start
        for first, last, digest, _ in rows:
            body = self._body(Name(*of, first, last), digest)
            if body is None:
                return None
            parts.append(memoryview(body)[at - first : stop - first])
            at = last
        if any(time.time() - used > _TOUCH_SECONDS for *_, used in rows):
            self.touch(*of, start, stop)
        return b"".join(parts)

    def holds(self, store: str, key: str, etag: str, part: slice) -> bool:
        """Whether a part of an object is kept; its sums are not checked."""
        return self._index.ask(lambda database: _covering(database, (store, key, etag), part), None) is not None

    def keep(self, store: str, key: str, version: Version, start: int, body: bytes | memoryview) -> None:
        """Keep bytes of an object from `start` on; what was used least recently makes room."""
        n_pieces = -(-len(body) // PIECE_BYTES)
        if not n_pieces or len(body) + n_pieces * ROW_BYTES > self.max_bytes:
            return
        if not self._index.ask(lambda _: True, otherwise=False):
            return
        pieces: dict[Name, tuple[memoryview, Path]] = {}
        for at in range(0, len(body), PIECE_BYTES):
            piece = memoryview(body)[at : at + PIECE_BYTES]
            name = Name(store, key, version.etag, start + at, start + at + len(piece))
            pieces[name] = piece, self.path / "new" / uuid4().hex
        try:
            for piece, path in pieces.values():
                path.write_bytes(piece)
            self._index.change(lambda database: self._place(database, version, pieces), None)
        except OSError as error:
            self._index.disable(error)
        finally:
            for _, path in pieces.values():
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _place(
        self, database: sqlite3.Connection, version: Version, pieces: Mapping[Name, tuple[memoryview, Path]]
    ) -> None:
        within = f"SELECT {COLUMNS} FROM entry WHERE {OF_VERSION} AND start >= ? AND stop <= ?"
        for name, (piece, staged) in pieces.items():
            self._drop(database, database.execute(within, name).fetchall())
            self._make_room(database, len(piece) + ROW_BYTES)
            row = *name, version.n_bytes, version.modified, name.digest(piece), time.time()
            database.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            path = self._index.file(name)
            path.parent.mkdir(exist_ok=True)
            staged.replace(path)

    def _make_room(self, database: sqlite3.Connection, n_bytes: int) -> None:
        (held,) = database.execute("SELECT n_bytes FROM kept").fetchone()
        too_much, gone = held + n_bytes - self.max_bytes, []
        if too_much <= 0:
            return
        for row in database.execute(f"SELECT {COLUMNS} FROM entry ORDER BY used"):
            gone.append(row)
            too_much -= row[4] - row[3] + ROW_BYTES
            if too_much <= 0:
                break
        self._drop(database, gone)

    def _drop(self, database: sqlite3.Connection, rows: Iterable[tuple[str, str, str, int, int]]) -> None:
        for row in rows:
            self._index.file(Name(*row)).unlink(missing_ok=True)
            database.execute(f"DELETE FROM entry WHERE {OF_VERSION} AND start = ? AND stop = ?", row)

    def _body(self, name: Name, digest: bytes) -> bytes | None:
        """Read a piece and check its sum; one that is damaged, or gone, is dropped."""
        with suppress(OSError):
            body = self._index.file(name).read_bytes()
            if name.digest(body) == digest:
                return body
        logger.warning("A damaged entry of the cache at %s is dropped.", self.path)
        self._index.change(lambda database: self._drop(database, [name]), None)
        return None

    def latest(self, store: str, key: str) -> tuple[Version, float] | None:
        """Return the version of an object that was met last, and when that was."""
        text = "SELECT etag, size, modified, used FROM entry WHERE store = ? AND key = ? ORDER BY used DESC LIMIT 1"
        found = self._index.ask(lambda database: database.execute(text, (store, key)).fetchone(), None)
        return None if found is None else (Version(*found[:3]), found[3])

    def touch(self, store: str, key: str, etag: str, start: int = 0, stop: int = 1 << 62) -> None:
        """Note that a part of an object was used just now."""
        text = f"UPDATE entry SET used = ? WHERE {OF_VERSION} AND start < ? AND stop > ?"
        self._index.ask(lambda database: database.execute(text, (time.time(), store, key, etag, stop, start)), None)

    def member(self, store: str, generation: str, key: str) -> str | None:
        """Return the ETag that an object was seen to have in a generation of a store."""
        text = "SELECT etag FROM member WHERE store = ? AND generation = ? AND key = ?"
        found = self._index.ask(lambda database: database.execute(text, (store, generation, key)).fetchone(), None)
        return None if found is None else str(found[0])

    def remember(self, store: str, generation: str, key: str, etag: str) -> None:
        """Note the ETag of an object in a generation of a store."""
        row = store, generation, key, etag
        text = "INSERT OR IGNORE INTO member VALUES (?, ?, ?, ?)"
        self._index.ask(lambda database: database.execute(text, row), None)

    def forget(self, store: str, *, but: str = "") -> None:
        """Drop what was noted of all generations of a store, but for one."""
        text = "DELETE FROM member WHERE store = ? AND generation != ?"
        self._index.ask(lambda database: database.execute(text, (store, but)), None)

    def held(self) -> list[Held]:
        """Return what is kept, by store, the last used first."""
        text = "SELECT store, sum(stop - start), count(*), max(used) FROM entry GROUP BY store ORDER BY max(used) DESC"
        return self._index.ask(lambda database: [Held(*row) for row in database.execute(text)], [])

    def clear(self, stores: Iterable[str]) -> None:
        """Drop all that is kept of some stores."""
        gone = list(stores)

        def drop(database: sqlite3.Connection) -> None:
            for store in gone:
                rows = database.execute(f"SELECT {COLUMNS} FROM entry WHERE store = ?", (store,)).fetchall()
                self._drop(database, rows)
                database.execute("DELETE FROM member WHERE store = ?", (store,))

        self._index.change(drop, None)


@functools.cache
def folder_of(path: str, max_bytes: int) -> Folder:
    """Return the folder at a path: one for all of the process."""
    return Folder(path, max_bytes)


def _covering(
    database: sqlite3.Connection, of: tuple[str, str, str], part: slice
) -> tuple[int, int, list[_Row]] | None:
    """Find entries that together hold a part of an object, and where it starts and stops."""
    found = database.execute(f"SELECT size FROM entry WHERE {OF_VERSION} LIMIT 1", of).fetchone()
    if found is None or (part.stop is not None and part.stop > found[0]):
        return None
    start, stop, _ = part.indices(found[0])
    near = database.execute(
        f"SELECT start, stop, digest, used FROM entry WHERE {OF_VERSION} AND start > ? AND start < ? AND stop > ?"
        " ORDER BY start, stop DESC",
        (*of, start - PIECE_BYTES, stop, start),
    )
    chosen, at = [], start
    for row in near:
        if row[0] > at or at >= stop:
            break
        if row[1] > at:
            chosen.append(row)
            at = row[1]
    return (start, stop, chosen) if at >= stop else None
