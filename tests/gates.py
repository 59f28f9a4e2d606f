"""A gate before an S3 server: counts requests, and answers some of them itself as AWS or a bad network would.

Knows HTTP, signature headers and how to pass a request on. Must not know of lobster_zarr.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, override
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Answer:
    """What the gate says in place of the server; `seconds` before it, or between the bytes of `trickle`."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    trickle: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """The access key it is signed with."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return found[1] if found else ""

    @property
    def region(self) -> str:
        """The region it is signed for."""
        found = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers.get("authorization", ""))
        return found[1] if found else ""


@dataclass
class Gate:
    """A running gate; `rule` says which requests it answers itself, and may be changed."""

    endpoint: str
    rule: Callable[[Asked], Answer | None] = lambda _: None
    asked: list[Asked] = field(default_factory=list)


def xml(code: str, more: str = "") -> bytes:
    """An error document as S3 writes it."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>".encode()


def in_region(region: str, *, bucket: str) -> Callable[[Asked], Answer | None]:
    """Answer as S3 does what is signed for another region than the bucket's."""
    elsewhere = {"x-amz-bucket-region": region, "Content-Type": "application/xml"}

    def rule(asked: Asked) -> Answer | None:
        if not asked.path.startswith(f"/{bucket}") or asked.region == region:
            return None
        if asked.region:
            return Answer(400, xml("AuthorizationHeaderMalformed", f"<Region>{region}</Region>"), elsewhere)
        return None

    return rule


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        names = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, names, body)
        self.server.gate.asked.append(asked)
        answer = self.server.gate.rule(asked)
        with contextlib.suppress(OSError):  # the client gave up
            if answer is None:
                self._forward(asked)
            else:
                self._say(answer)

    def _forward(self, asked: Asked) -> None:
        line = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=60)
        line.request(asked.method, asked.path, asked.body, dict(self.headers.items()))
        told = line.getresponse()
        content = told.read()
        drop = {"connection", "transfer-encoding", "content-length"}
        headers = {name: value for name, value in told.getheaders() if name.lower() not in drop}
        length = told.getheader("Content-Length") if asked.method == "HEAD" else str(len(content))
        line.close()
        self.send_response(told.status)
        for name, value in headers.items() | {("Content-Length", length or "0")}:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _say(self, answer: Answer) -> None:
        if not answer.trickle:
            time.sleep(answer.seconds)
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(len(answer.body) if answer.trickle else 0):
            time.sleep(answer.seconds)
            self.wfile.write(answer.body[at : at + 1])
            self.wfile.flush()
        if not answer.trickle:
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_CONNECT = _pass  # noqa: N815 - http.server's names

    @override
    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    gate: Gate
    upstream: str
    daemon_threads = True
    block_on_close = False  # a client may keep its connection
    address_family = socket.AF_INET

    @override
    def handle_error(self, *_: object) -> None:
        pass  # a client that broke off


@contextlib.contextmanager
def gate(upstream: str = "") -> Iterator[Gate]:
    """Stand before a server on a free port of 127.0.0.1."""
    server = _Server(("127.0.0.1", 0), _Handler)
    running = Gate(f"http://127.0.0.1:{server.server_address[1]}")
    server.gate, server.upstream = running, upstream
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds a shutdown waits
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
