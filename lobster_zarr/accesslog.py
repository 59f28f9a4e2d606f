"""Who read what, by S3's server access logs: requests, bytes and errors by operation, requester, store and day.

Knows the documented form of a line, with its quoted fields, its bracketed time
and its keys that are encoded twice. Reads line by line and keeps sums alone.
Must not know what objects hold.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.location import Access
from lobster_zarr.place import place
from lobster_zarr.refusal import LIST, READ, refused_by_system
from lobster_zarr.report import Progress, human_bytes
from lobster_zarr.s3client import explained, payer, s3_client
from lobster_zarr.typeset import WIDTH, aligned, printable, shortened, titled, wrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from lobster_zarr.location import Location

MOST_NAMES = 10_000
"""Of requesters and of stores; what comes later counts as OTHERS, so that the memory stays bounded."""
OTHERS = "(others)"
MOST_SHOWN = 10
_MOST_MALFORMED = 10
_LINE_BYTES = 32 << 10
_BLOCK_BYTES = 1 << 16
_AT_ONCE = 10

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/LogFormat.html
# Quotes within a user agent are not escaped: what counts are those before and behind blanks. S3 adds fields at the end.
# Atomic groups, since a line that fails would else be tried at each three of its quotes.
_LINE = re.compile(
    r"(?P<owner>\S+) (?P<bucket>\S+) "
    r"\[(?P<day>\d\d)/(?P<month>[A-Z][a-z]{2})/(?P<year>\d{4}):\d\d:\d\d:\d\d [+-]\d{4}\] "
    r"(?P<ip>\S+) (?P<requester>\S+) (?P<request_id>\S+) (?P<operation>[A-Za-z0-9_.]+) (?P<key>\S+) "
    r'(?>(?:"(?P<request>.*?)"|-) (?P<status>\d{3}|-) (?P<error>[\w.]+|-) (?P<sent>\d+|-) (?P<size>\d+|-) '
    r'(?:\d+|-) (?:\d+|-) (?=["-]))(?:".*?"|-) (?:(?>"(?P<agent>.*)")|-)(?: [^"]*)?'
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ENCODED_ONCE = {"BATCH.DELETE.OBJECT", "S3.EXPIRE.OBJECT"}
"""Keys of all other operations are encoded twice."""


@dataclass(frozen=True)
class Requests:
    """Sums of some requests."""

    name: str
    n_requests: int
    n_bytes: int
    """That S3 sent."""
    n_errors: int
    """Answered with a status of 400 or more."""


@dataclass(frozen=True)
class Malformed:
    """A line that is none of S3's."""

    file: str
    line: int
    text: str


@dataclass(frozen=True)
class AccessReport:
    """What access logs tell.

    Parameters
    ----------
    source
        Where they lie.
    n_files
        Of logs.
    total
        Of all requests.
    operations, requesters, stores, days
        Sums by ``REST.GET.OBJECT`` and so on, by who asked (``-`` for nobody who was known), by ``bucket/path`` of a
        store or of a file, by ``2026-11-23`` in UTC; the most requests first, days in order.
    errors
        Requests by S3's code of an error.
    n_malformed
        Lines that could not be read.
    malformed
        The first of them.
    """

    source: str
    n_files: int
    total: Requests
    operations: tuple[Requests, ...]
    requesters: tuple[Requests, ...]
    stores: tuple[Requests, ...]
    days: tuple[Requests, ...]
    errors: dict[str, int]
    n_malformed: int
    malformed: tuple[Malformed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        told = f"{self.total.n_requests:,} requests, {human_bytes(self.total.n_bytes)}, {self.total.n_errors:,} errors"
        lines = [*titled("Access", self.source), *wrapped(f"  {told}, in {self.n_files:,} files", 2)]
        for label in ("operations", "requesters", "stores", "days"):
            lines += _table(label, getattr(self, label))
        codes = ", ".join(f"{code} {n:,}" for code, n in self.errors.items())
        lines += wrapped(codes, 10, "errors") if codes else []
        if self.n_malformed:
            lines.append(f"{self.n_malformed:,} lines are none of S3's:")
            lines += [shortened(f"  {m.file}:{m.line}: {m.text}", WIDTH) for m in self.malformed]
        return "\n".join(lines)


def _table(label: str, sums: tuple[Requests, ...]) -> list[str]:
    if not sums:
        return []
    rows = [(label, "requests", "sent", "errors")]
    rows += [(s.name, f"{s.n_requests:,}", human_bytes(s.n_bytes), f"{s.n_errors:,}") for s in sums[:MOST_SHOWN]]
    more = [f"  ({len(sums) - MOST_SHOWN:,} more)"] if len(sums) > MOST_SHOWN else []
    return [*aligned(rows, {1, 2, 3}, (0,), indent=0), *more]


class _Sums:
    """Requests, bytes and errors by name; of too many names, together."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[int]] = {}

    def add(self, name: str, n_requests: int, n_bytes: int, n_errors: int) -> None:
        if name not in self._by_name and len(self._by_name) >= MOST_NAMES:
            name = OTHERS
        sums = self._by_name.setdefault(name, [0, 0, 0])
        for at, n in enumerate((n_requests, n_bytes, n_errors)):
            sums[at] += n

    def update(self, other: _Sums) -> None:
        for name, sums in other._by_name.items():
            self.add(name, *sums)

    def told(self) -> tuple[Requests, ...]:
        return tuple(sorted((Requests(name, *sums) for name, sums in self._by_name.items()), key=_most_first))


def _most_first(sums: Requests) -> tuple[int, str]:
    return -sums.n_requests, sums.name


@dataclass
class _Tally:
    """What some files tell; those of several threads are added up by one."""

    groups: dict[str, _Sums] = field(
        default_factory=lambda: {name: _Sums() for name in ("total", "operations", "requesters", "stores", "days")}
    )
    errors: Counter[str] = field(default_factory=Counter)
    n_malformed: int = 0
    malformed: list[Malformed] = field(default_factory=list)

    def add(self, line: re.Match[str]) -> None:
        sent = 0 if line["sent"] == "-" else int(line["sent"])
        failed = line["status"].isdigit() and int(line["status"]) >= 400
        day = f"{line['year']}-{_MONTHS.index(line['month']) + 1:02}-{line['day']}"
        store = f"{line['bucket']}/{_store(_key(line['key'], line['operation']))}" if line["key"] != "-" else None
        named = {"total": "", "operations": line["operation"], "requesters": line["requester"], "days": day}
        for group, name in {**named, **({"stores": store} if store else {})}.items():
            self.groups[group].add(name, 1, sent, int(failed))
        if line["error"] != "-":
            self.errors[line["error"]] += 1

    def read(self, name: str, blocks: Iterable[bytes]) -> None:
        for number, raw in enumerate(_lines(blocks), 1):
            text = raw.decode(errors="replace").rstrip("\r")
            line = _LINE.fullmatch(text) if len(raw) < _LINE_BYTES else None
            if line and line["month"] in _MONTHS:
                self.add(line)
            elif text.strip():
                self.n_malformed += 1
                if len(self.malformed) < _MOST_MALFORMED:
                    self.malformed.append(Malformed(name, number, shortened(printable(text[:1000]), 200)))

    def update(self, other: _Tally) -> None:
        for name, sums in self.groups.items():
            sums.update(other.groups[name])
        self.errors.update(other.errors)
        self.n_malformed += other.n_malformed
        self.malformed += other.malformed[: _MOST_MALFORMED - len(self.malformed)]


def _key(encoded: str, operation: str) -> str:
    key = unquote(encoded)
    return key if operation in _ENCODED_ONCE else unquote(key)


def _store(key: str) -> str:
    """Return the store that an object is of, else its own key."""
    parts = key.split("/")
    ends = [at for at, part in enumerate(parts, 1) if part.endswith(STORE_SUFFIX)]
    return "/".join(parts[: ends[0]] if ends else parts)


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines; of one that is longer than any of S3's, its beginning."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
        rest = rest[:_LINE_BYTES]
    if rest:
        yield rest


def analyze_logs(
    source: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
) -> AccessReport:
    """Add up S3's server access logs.

    Parameters
    ----------
    source
        ``s3://bucket/prefix``, a local folder (with all that is below it) or a file; also compressed (``.gz``).
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show a bar when on a terminal.

    Returns
    -------
    AccessReport
        Each file is read once, as a stream; memory does not grow with the number of lines.

    Raises
    ------
    NotFoundError
        There are no logs.
    StorageError
        The storage refused.
    """
    where = place(source)
    if where.scheme == "s3" and str(source).endswith("/"):
        where = replace(where, prefix=f"{where.prefix}/".lstrip("/"))  # logs-1 is not below logs/
    tally, n_files = _Tally(), 0
    if where.scheme not in {"file", "s3"}:
        raise UnsupportedError(f"Cannot read logs at {where}, expected s3://bucket/prefix or a local folder.")
    files = _local(where) if where.scheme == "file" else _remote(where, Access.of(storage_options), progress=progress)
    for part in files:
        tally.update(part)
        n_files += 1
    if not n_files:
        raise NotFoundError(f"There are no logs at {where}. Check the path; S3 delivers them some hours late.")
    told = {name: sums.told() for name, sums in tally.groups.items()}
    total = told.pop("total") or (Requests("", 0, 0, 0),)
    days = tuple(sorted(told.pop("days"), key=lambda day: day.name))
    errors = dict(tally.errors.most_common())
    return AccessReport(
        str(where),
        n_files,
        total[0],
        days=days,
        errors=errors,
        n_malformed=tally.n_malformed,
        malformed=tuple(tally.malformed),
        **told,
    )


def _tallied(name: str, file: Any) -> _Tally:
    tally = _Tally()
    try:
        tally.read(name, iter(lambda: file.read(_BLOCK_BYTES), b""))
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InvalidArgumentError(f"{name} is no compressed file, whatever its name says: {error}.") from error
    return tally


def _local(where: Location) -> Iterator[_Tally]:
    root = Path(where.root)
    try:
        paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for path in paths:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield _tallied(str(path), file)
    except OSError as error:
        raise refused_by_system(error, READ, root.name, where) from error


def _remote(where: Location, access: Access, *, progress: bool) -> Iterator[_Tally]:
    bars = Progress(enabled=progress)
    with s3_client(where, access, LIST) as client:

        def one(key: str) -> _Tally:
            file = replace(where, prefix=key)
            with explained(file, access, READ):
                body = client.get_object(Bucket=where.root, Key=key, **payer(access))["Body"]
                stream = gzip.GzipFile(fileobj=body) if key.endswith(".gz") else body
                return _tallied(str(file), stream)

        def keys() -> Iterator[str]:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=where.root, Prefix=where.prefix, **payer(access)
            )
            entries = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
            return (key for key in entries if not key.endswith("/"))  # a console's folder

        n_files = sum(1 for _ in keys()) if bars.enabled else 0
        with bars.phase("Read logs", n_files, "files") as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
            for some in batched(keys(), 4 * _AT_ONCE):  # no more tallies at once than these
                for tally in pool.map(one, some):
                    advance(1)
                    yield tally
