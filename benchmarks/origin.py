"""The files of a directory from an nginx of its own, for the shaped server to relay; where nginx is installed.

Knows nginx's configuration and how to ask it on a Unix socket, so that nobody else's port is in the way. Must not
know S3, or how answers are paced.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; default_type binary/octet-stream; types {{}}
    keepalive_requests 1000000; keepalive_timeout 1h; max_ranges 1;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen unix:{folder}/socket; root "{root}"; }}
}}
"""
FORWARDED = ("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range")
START_SECONDS = 10


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer, names in small letters."""

    status: int
    headers: dict[str, str]

    @property
    def body_bytes(self) -> int:
        """Length of the body."""
        return int(self.headers.get("content-length", 0))


class Connection:
    """One connection to nginx; its requests follow one another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, method: str, target: str, headers: dict[str, str]) -> Head:
        """Send a request and return the head of its answer; of a GET the body is to be read next."""
        lines = [f"{method} {target} HTTP/1.1", "Host: s3", *(f"{k}: {headers[k]}" for k in FORWARDED if k in headers)]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        status, *found = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in found if line)
        return Head(int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields})

    async def body(self, n_bytes: int, slice_bytes: int) -> AsyncIterator[bytes]:
        """Read a body, in slices."""
        while n_bytes:
            part = await self._reader.readexactly(min(n_bytes, slice_bytes))
            n_bytes -= len(part)
            yield part

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


class Nginx:
    """A running nginx.

    Parameters
    ----------
    root
        The directory that it serves.
    """

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nginx-")
        configuration = Path(self._folder.name, "nginx.conf")
        configuration.write_text(CONFIGURATION.format(folder=self._folder.name, root=root))
        self._process = subprocess.Popen(
            [self.found() or "nginx", "-p", self._folder.name, "-e", "stderr", "-c", str(configuration)]
        )

    @staticmethod
    def found() -> str | None:
        """Return where nginx is, None where there is none."""
        return shutil.which("nginx")

    async def connect(self) -> Connection:
        """Open a connection, as soon as nginx listens."""
        until = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                return Connection(*await asyncio.open_unix_connection(f"{self._folder.name}/socket"))
            except OSError:
                if self._process.poll() is not None or asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(0.01)

    def end(self) -> None:
        """End nginx."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(START_SECONDS)
        self._folder.cleanup()
