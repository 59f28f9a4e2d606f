"""The loopback S3 of `benchmarks.server` before an nginx: objects, ranges and conditions are nginx's answers.

Knows which requests are passed on, and what of the answers; listings, buckets and the shaping stay the server's. Runs
in a process of its own; imports the standard library only.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, override
from urllib.parse import quote

from benchmarks.origin import Connection, Nginx
from benchmarks.server import REASONS, Line, Request, Response, Server, refusal, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REASONS |= {304: "Not Modified", 412: "Precondition Failed"}
FOUND = (200, 206, 304)
CODES = {412: "PreconditionFailed", 416: "InvalidRange"}
PASSED = ("accept-ranges", "content-range", "content-type", "etag", "last-modified")


@dataclass(frozen=True)
class Relayed:
    """A body that nginx is sending."""

    n_bytes: int
    origin: Connection

    def pieces(self, slice_bytes: int) -> AsyncIterator[bytes]:
        """Read it, slice by slice."""
        return self.origin.body(self.n_bytes, slice_bytes)


class RelayServer(Server):
    """Serves what an nginx serves; to each client's connection belongs one to nginx."""

    def __init__(self, root: Path, latency_seconds: float, line: Line, nginx: Nginx) -> None:
        super().__init__(root, latency_seconds, line)
        self._nginx = nginx
        self._origins: dict[asyncio.StreamWriter, Connection] = {}

    @override
    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._origins[writer] = await self._nginx.connect()
        try:
            await super().connection(reader, writer)
        finally:
            self._origins.pop(writer).close()

    @override
    async def respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
        is_object = request.method in ("GET", "HEAD") and "/" in request.key.rstrip("/")
        if not is_object or ".." in Path(request.key).parts:
            return await super().respond(request, reader, writer)
        origin = self._origins[writer]
        asked = origin.ask(request.method, f"/{quote(request.key)}", request.headers)
        head, _ = await asyncio.gather(asked, self.travel())
        headers = {name.title(): head.headers[name] for name in PASSED if name in head.headers}
        if head.status in FOUND:
            return Response(head.status, headers, Relayed(head.body_bytes, origin))
        if request.method == "GET":
            async for _ in origin.body(head.body_bytes, 1 << 16):
                pass
        code, status = CODES.get(head.status), head.status
        refused = refusal(status if code else 404, code or "NoSuchKey", request.key)
        return Response(refused.status, headers | refused.headers, refused.body)


def main() -> None:
    """Serve ``root latency_seconds bandwidth_bits`` until standard input ends."""
    nginx = Nginx(Path(sys.argv[1]))
    try:
        line = Line(float(sys.argv[3]))
        asyncio.run(serve(RelayServer(Path(sys.argv[1]), float(sys.argv[2]), line, nginx)))
    finally:
        nginx.end()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
