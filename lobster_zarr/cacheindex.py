"""The index of a cache: a database of what is kept, in SQLite, and the names of the files that hold it.

Whatever fails here disables the cache, with a warning, and never a query; an index that is damaged begins anew. Must
not know networks, nor what is kept.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import logging
import os
import sqlite3
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROW_BYTES = 512
"""Counted for each entry beside its bytes: its place in the index, about."""
OF_VERSION = "store = ? AND key = ? AND etag = ?"
COLUMNS = "store, key, etag, start, stop"
"""What names an entry."""
_BUSY_SECONDS = 10.0
_LEFTOVER_SECONDS = 3600.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entry (
    store TEXT, key TEXT, etag TEXT, start INTEGER, stop INTEGER,
    size INTEGER, modified REAL, digest BLOB, used REAL,
    PRIMARY KEY ({COLUMNS})
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON entry (used);
CREATE TABLE IF NOT EXISTS member (
    store TEXT, generation TEXT, key TEXT, etag TEXT, PRIMARY KEY (store, generation, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (n_bytes INTEGER);
INSERT INTO kept SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM kept);
CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON entry
BEGIN UPDATE kept SET n_bytes = n_bytes + new.stop - new.start + {ROW_BYTES}; END;
CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON entry
BEGIN UPDATE kept SET n_bytes = n_bytes - (old.stop - old.start + {ROW_BYTES}); END;
COMMIT;
"""
logger = logging.getLogger(__name__)


class Name(NamedTuple):
    """What an entry is: bytes `start` to `stop` of one version of an object of a store."""

    store: str
    key: str
    etag: str
    start: int
    stop: int

    def digest(self, body: bytes | memoryview = b"", n_bytes: int = 16) -> bytes:
        """Return a sum of bytes and of what they are said to be."""
        made = hashlib.blake2b("\0".join(map(str, (*self, ""))).encode(), digest_size=n_bytes)
        made.update(body)
        return made.digest()


class Index:
    """The database in a folder. Safe to share between threads, and the folder between processes.

    Parameters
    ----------
    path
        Of the folder; made, for this user alone, when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_off = path, False
        self._lock = threading.Lock()
        self._connections: dict[int, sqlite3.Connection] = {}  # by process id: none survives a fork

    def ask[T](self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do something with the database; where that fails, `otherwise`, and from here on always."""
        if self.is_off:
            return otherwise
        try:
            with self._lock:
                return work(self._connection())
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _DAMAGED:
                self._renew()
            elif code != sqlite3.SQLITE_BUSY:  # others write: one entry the less
                self.disable(error)
        return otherwise

    def change[T](self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """As `ask`, all or nothing."""

        def whole(database: sqlite3.Connection) -> T:
            with database:
                database.execute("BEGIN IMMEDIATE")
                return work(database)

        return self.ask(whole, otherwise)

    def disable(self, error: Exception) -> None:
        """Use the cache no more in this process, and say why, once."""
        with self._lock:
            was_off, self.is_off = self.is_off, True
        if was_off:
            return
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(
            f"The cache at {self.path.parent} is not used: {reason or type(error).__name__}. Everything is read from "
            "the storage. Make room there, or choose another folder.",
            stacklevel=2,
        )

    def file(self, name: Name) -> Path:
        """Return where the bytes of an entry lie: a name that nothing of the entry's shows in."""
        told = name.digest(n_bytes=20).hex()
        return self.path / "kept" / told[:2] / told

    def _connection(self) -> sqlite3.Connection:
        found = self._connections.get(os.getpid())
        if found is not None:
            return found
        _make(self.path)
        made = sqlite3.connect(
            self.path / "index.sqlite", timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            made.execute("PRAGMA synchronous = OFF")  # what a power failure damages, the sums tell
            made.executescript(_SCHEMA)
            self._sweep(made)
        except BaseException:
            made.close()
            raise
        self._connections[os.getpid()] = made
        atexit.register(made.close)
        return made

    def _sweep(self, database: sqlite3.Connection) -> None:
        """Remove, once an hour, what processes that died have left."""
        stamp, now = self.path / "swept", time.time()
        with suppress(FileNotFoundError):
            if now - stamp.stat().st_mtime < _LEFTOVER_SECONDS:
                return
        stamp.touch()
        known = {self.file(Name(*row)) for row in database.execute(f"SELECT {COLUMNS} FROM entry")}
        for path in (*self.path.glob("kept/*/*"), *self.path.glob("new/*")):
            with suppress(FileNotFoundError):
                if path not in known and now - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()
        database.execute(
            "DELETE FROM member WHERE NOT EXISTS (SELECT 1 FROM entry WHERE entry.store = member.store"
            " AND entry.key = member.key AND entry.etag = member.etag)"
        )

    def _renew(self) -> None:
        logger.warning("The index of the cache at %s is damaged: the cache begins anew.", self.path)
        with self._lock:
            damaged = self._connections.pop(os.getpid(), None)
            if damaged is not None:
                damaged.close()
            for name in ("index.sqlite", "index.sqlite-journal", "swept"):
                with suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)


def _make(path: Path) -> None:
    """Make the folder, or see that nobody else can have put something into it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("new", "kept"):
        (path / name).mkdir(exist_ok=True)
    told = path.stat()
    if hasattr(os, "getuid") and (told.st_uid != os.getuid() or told.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "it belongs to another user, or others may write to it")
    path.chmod(0o700)  # one that was copied, or made before, may let others read what they have no access to
