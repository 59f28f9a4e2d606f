"""Lends secrets to other processes of the same user on the same machine, as ssh-agent does.

What was passed to this process as `storage_options` must not travel in a
pickle or a task graph. A pickle holds a reference instead: a socket that only
this user can open, and a number; the process that loads it asks there.
Nothing is written to disk or sent over a network, and with the lending
process the loan ends. Must not know what the secrets are for.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANSWER_SECONDS = 60
"""The lender may be busy: its answers share its interpreter with its work."""
_WAITING_CALLERS = 1024
"""All workers of a machine may start at the same moment; the system may allow fewer."""
_IS_POSSIBLE = hasattr(socket, "AF_UNIX")


class _Agent:
    """Answers with a secret whoever knows its number and may open the socket."""

    def __init__(self, parent: str) -> None:
        self._lent: dict[str, str] = {}  # number to the secrets as JSON
        directory = tempfile.mkdtemp(prefix="lobster-zarr-agent-", dir=parent)  # mode 0700
        self._path = str(Path(directory, "socket"))
        lent = self._lent

        class Answer(socketserver.StreamRequestHandler):
            timeout = _ANSWER_SECONDS

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # who asked is gone, or says nothing
                    number = self.rfile.readline(100).strip().decode("ascii", "replace")
                    self.wfile.write(lent.get(number, "").encode())

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = _WAITING_CALLERS

        try:
            server = Server(self._path, Answer)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        threading.Thread(target=server.serve_forever, name="lobster-zarr-agent", daemon=True).start()
        atexit.register(_remove, directory, os.getpid())

    def lend(self, document: str) -> str:
        for number, lent in list(self._lent.items()):
            if lent == document:  # so that what is pickled twice is the same
                return f"{self._path}#{number}"
        number = secrets.token_hex(16)
        self._lent[number] = document
        return f"{self._path}#{number}"


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has the same exit handlers
        shutil.rmtree(directory, ignore_errors=True)


_starting = threading.Lock()


@cache
def _agent() -> _Agent | None:
    for parent in (tempfile.gettempdir, lambda: "/tmp"):  # noqa: S108 - a socket's path is 107 bytes at most
        with contextlib.suppress(OSError):
            return _Agent(parent())
    return None


if hasattr(os, "register_at_fork"):
    # Held while forking, so that no child finds the lock taken by a thread that it does not have.
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)
    os.register_at_fork(after_in_child=_agent.cache_clear)


def lend(what: Mapping[str, Any]) -> str:
    """Keep some secrets for who asks, and return the reference to ask with, that holds none of them.

    Parameters
    ----------
    what
        Names to texts, or None.

    Returns
    -------
    str
        Empty where the system has no sockets of its own for one user, or no place for one.
    """
    with _starting:
        agent = _agent() if _IS_POSSIBLE else None
        return agent.lend(json.dumps(dict(what), sort_keys=True)) if agent else ""


def _connect(line: socket.socket, path: str) -> None:
    until = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            return line.connect(path)
        except BlockingIOError:  # too many wait already: the system does not queue this one
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def borrow(reference: str) -> dict[str, Any]:
    """Ask for what was lent under a reference.

    Returns
    -------
    dict
        Empty where the lender is gone, or on another machine.
    """
    path, _, number = reference.rpartition("#")
    if not path or not _IS_POSSIBLE:
        return {}
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_ANSWER_SECONDS)
        _connect(line, path)
        line.sendall(number.encode() + b"\n")
        answer: dict[str, Any] = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
        return answer
    return {}
