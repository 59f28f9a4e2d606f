"""A read-only S3 of one directory over HTTP/1.1, with one shared, shaped line to all its clients.

`benchmarks.writable` is one that can be written to, `benchmarks.relay` one before an nginx.

Knows HTTP, the part of S3 that readers use (GET and HEAD of ``/bucket/key`` with ranges, ListObjectsV2,
HEAD of a bucket) and how to pace bytes. Must not know the client, and imports the standard library only:
it runs in a process of its own (see `benchmarks.network`), so that it shares no interpreter
with its clients. Signatures are ignored; anything but reading is refused with S3's XML.

Standard input is the control line and the lifeline: one command a line (``reset``, ``counters``),
one JSON document back on standard output for each; the end of input ends the server, so it cannot
outlive the process that holds the other end, however that one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REASONS = {200: "OK", 206: "Partial Content", 403: "Forbidden", 404: "Not Found",
           405: "Method Not Allowed", 416: "Range Not Satisfiable"}  # fmt: skip
RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")
MIN_SLICE_BYTES, MAX_SLICE_BYTES = 16 * 1024, 64 * 1024
SLICE_SECONDS = 0.002
MAX_KEYS = 1000
# How far the line may lag behind its rate and still catch up: late timers are repaid, idleness is not.
MAX_LAG_SECONDS = 0.02
# The event loop's timer ticks in milliseconds: shorter waits are cheaper to skip than to sleep.
MIN_SLEEP_SECONDS = 0.0005


class Line:
    """A line of fixed bandwidth that all responses share, slice by slice, first come first served."""

    def __init__(self, bandwidth_bits: float) -> None:
        """Make a line of so many bits a second; infinite means unshaped."""
        self._bytes_per_second = bandwidth_bits / 8
        self._free_at = 0.0
        self._in_use = 0
        wanted = min(self._bytes_per_second * SLICE_SECONDS, MAX_SLICE_BYTES)
        self.slice_bytes = max(int(wanted), MIN_SLICE_BYTES)

    def __enter__(self) -> None:
        """Start a response; a line that was idle has no credit."""
        if not self._in_use:
            self._free_at = max(self._free_at, time.monotonic())
        self._in_use += 1

    def __exit__(self, *_: object) -> None:
        """End a response."""
        self._in_use -= 1

    async def carry(self, n_bytes: int) -> None:
        """Return once the line has carried these bytes after all that were asked for before."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now - MAX_LAG_SECONDS) + n_bytes / self._bytes_per_second
        if (wait := self._free_at - now) > MIN_SLEEP_SECONDS:
            await asyncio.sleep(wait)


@dataclass
class Counters:
    """What the server saw since the last reset; `log` holds (method, key, range header or None)."""

    n_requests: int = 0
    body_bytes: int = 0
    received_bytes: int = 0
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    cpu_start_seconds: float = field(default_factory=time.process_time)

    def to_json(self) -> str:
        """Return the counters as one line of JSON."""
        cpu = time.process_time() - self.cpu_start_seconds
        seen = {"n_requests": self.n_requests, "body_bytes": self.body_bytes, "received_bytes": self.received_bytes}
        return json.dumps(seen | {"cpu_seconds": cpu, "log": self.log})


@dataclass(frozen=True)
class Request:
    """What is asked, without its body."""

    method: str
    key: str
    query: str
    headers: dict[str, str]

    @property
    def n_bytes(self) -> int:
        """Length of the body."""
        return int(self.headers.get("content-length", 0))


class Body(Protocol):
    """What an answer brings, read while it is sent."""

    @property
    def n_bytes(self) -> int:
        """Its length."""
        ...

    def pieces(self, slice_bytes: int) -> AsyncIterator[bytes]:
        """Read it, slice by slice."""
        ...


@dataclass(frozen=True)
class FilePart:
    """The half-open range of a file."""

    path: Path
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """Its length."""
        return self.stop - self.start

    async def pieces(self, slice_bytes: int) -> AsyncIterator[bytes]:
        """Read it, slice by slice."""
        file, at = os.open(self.path, os.O_RDONLY), self.start
        try:
            while at < self.stop:
                part = os.pread(file, min(slice_bytes, self.stop - at), at)
                if not part:
                    raise ConnectionAbortedError(f"{self.path} became shorter while it was sent")
                yield part
                at += len(part)
        finally:
            os.close(file)


@dataclass(frozen=True)
class Response:
    """A status, its headers, and a body."""

    status: int
    headers: dict[str, str]
    body: bytes | Body = b""

    @property
    def body_bytes(self) -> int:
        """Length of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.n_bytes

    def head(self) -> bytes:
        """Return the status line and headers."""
        headers = {"Server": "benchmark", "Content-Length": str(self.body_bytes)} | self.headers
        lines = [f"HTTP/1.1 {self.status} {REASONS[self.status]}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def refusal(status: int, code: str, key: str) -> Response:
    """Return an error as S3 words it."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Key>{key}</Key></Error>'
    return Response(status, {"Content-Type": "application/xml"}, text.encode())


def parse_range(match: re.Match[str], size_bytes: int) -> tuple[int, int] | None:
    """Half-open range of the object that a `RANGE` asks for; None where no byte of it exists."""
    first, last, suffix_bytes = match.groups()
    if suffix_bytes:
        start, stop = max(0, size_bytes - int(suffix_bytes)), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    return (start, stop) if start < stop else None


def entity_tag(stat: os.stat_result) -> str:
    """Return what tells this version of an object from others."""
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'


def entries(bucket: Path, prefix: str, delimiter: str) -> list[str]:
    """Keys under a prefix in S3's order; those that go on behind the delimiter end with it, once."""
    folder = bucket / prefix.rpartition("/")[0]
    if ".." in folder.parts:
        return []
    walked = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    keys = (path.relative_to(bucket).as_posix() for path in walked)
    found = {key for key in keys if key.startswith(prefix)}
    if delimiter:
        found = {prefix + "".join(key[len(prefix) :].partition(delimiter)[:2]) for key in found}
    return sorted(found, key=str.encode)


def listing(root: Path, bucket: str, query: dict[str, str]) -> Response:
    """Answer ListObjectsV2; a page goes on after the key that its continuation token is."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    n_keys = min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS)
    found = [e for e in entries(root / bucket, prefix, delimiter) if e.encode() > after.encode()]
    page, more = found[:n_keys], len(found) > n_keys
    parts = [f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"]
    parts += [f"<MaxKeys>{n_keys}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"]
    parts += [f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"] if more and page else []
    for entry in page:
        if delimiter and entry.endswith(delimiter):
            parts.append(f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>")
            continue
        stat = (root / bucket / entry).stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
        parts.append(
            f"<Contents><Key>{escape(entry)}</Key><LastModified>{modified}</LastModified>"
            f"<ETag>{escape(entity_tag(stat))}</ETag><Size>{stat.st_size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    name = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{name}{"".join(parts)}</ListBucketResult>'
    return Response(200, {"Content-Type": "application/xml"}, text.encode())


def respond_for_bucket(root: Path, method: str, bucket: str, query: dict[str, str]) -> Response:
    """Answer one request for a bucket itself: whether it is there, and what is in it."""
    if ".." in bucket or not bucket or not (root / bucket).is_dir():
        return refusal(404, "NoSuchBucket", bucket) if bucket else refusal(403, "AccessDenied", bucket)
    if method == "HEAD":
        return Response(200, {"x-amz-bucket-region": "us-east-1"})
    if query.get("list-type") == "2":
        return listing(root, bucket, query)
    return refusal(403, "AccessDenied", bucket)


def respond(root: Path, method: str, key: str, range_header: str | None, query: str = "") -> Response:
    """Answer one request for ``bucket/key`` or ``bucket``; touches the files' metadata only."""
    if method not in ("GET", "HEAD"):
        return refusal(405, "MethodNotAllowed", key)
    if "/" not in key.rstrip("/"):
        asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        return respond_for_bucket(root, method, key.rstrip("/"), asked)
    path = root / key
    if ".." in path.parts or not path.is_file():
        return refusal(404, "NoSuchKey", key)
    stat = path.stat()
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
        "ETag": entity_tag(stat),
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
    }
    match = RANGE.fullmatch(range_header or "")
    if match is None:  # as HTTP has it, a range that is not understood is not there
        return Response(200, headers, FilePart(path, 0, stat.st_size))
    wanted = parse_range(match, stat.st_size)
    if wanted is None:
        refused = refusal(416, "InvalidRange", key)
        return Response(416, refused.headers | {"Content-Range": f"bytes */{stat.st_size}"}, refused.body)
    start, stop = wanted
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stat.st_size}"
    return Response(206, headers, FilePart(path, start, stop))


class Server:
    """Serves the files under a root; one instance a process."""

    def __init__(self, root: Path, latency_seconds: float, line: Line) -> None:
        """Make a server that starts each answer after a latency and sends it over the line."""
        self.root, self._latency_seconds, self._line = root, latency_seconds, line
        self.counters = Counters()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the client closes it."""
        writer.transport.set_write_buffer_limits(high=self._line.slice_bytes)
        # Cancelled is what is open when the server ends.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._answer(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        request = Request(method, unquote(path).lstrip("/"), query, headers)
        self.counters.n_requests += 1
        self.counters.log.append((method, request.key, headers.get("range")))
        response = await self.respond(request, reader, writer)
        writer.write(response.head())
        if method != "HEAD":
            await self._send(response.body, writer)
        await writer.drain()

    async def respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
        """Read the rest of a request, and make its answer after the latency."""
        del writer
        await reader.readexactly(request.n_bytes)
        await self.travel()
        return respond(self.root, request.method, request.key, request.headers.get("range"), request.query)

    async def travel(self) -> None:
        """Wait as long as an answer takes to begin."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)

    async def _send(self, body: bytes | Body, writer: asyncio.StreamWriter) -> None:
        if isinstance(body, bytes):
            writer.write(body)
            self.counters.body_bytes += len(body)
            return
        with self._line:
            async for part in body.pieces(self._line.slice_bytes):
                await self._line.carry(len(part))
                writer.write(part)
                await writer.drain()
                self.counters.body_bytes += len(part)


async def serve(server: Server) -> None:
    """Serve on a free loopback port, printing ``{"port": n}``, until standard input ends."""
    listener = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).decode().strip():
        if command == "reset":
            server.counters = Counters()
        print(server.counters.to_json(), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Server(Path(sys.argv[1]), float(sys.argv[2]), Line(float(sys.argv[3])))))
