"""Secrets are lent to this user's processes on this machine, and to nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lobster_zarr.agent import borrow, lend

if TYPE_CHECKING:
    import pytest

SECRETS = {"key": "k", "secret": "with \n and #", "token": None}


def test_what_is_lent_comes_back_and_the_reference_holds_none_of_it() -> None:
    reference = lend(SECRETS)
    assert borrow(reference) == SECRETS
    assert lend(dict(reversed(SECRETS.items()))) == reference  # the same secrets, the same reference
    assert "with" not in reference
    assert borrow(lend({"key": "other"})) == {"key": "other"}


def test_only_this_user_can_open_the_socket() -> None:
    directory = Path(lend(SECRETS).rpartition("#")[0]).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_reference_that_nobody_answers_borrows_nothing(tmp_path: Path) -> None:
    known = lend(SECRETS)
    for reference in ("", "#", f"{tmp_path}/none#1", known.rpartition("#")[0] + "#0", known[:-1], f"{known}\n{known}"):
        assert borrow(reference) == {}, reference


def test_as_many_as_ask_at_once_are_answered() -> None:
    program = """
import sys, threading
from lobster_zarr.agent import borrow
together, answers = threading.Barrier(48), []
def ask():
    together.wait()
    answers.append(borrow(sys.argv[1]))
threads = [threading.Thread(target=ask) for _ in range(48)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert all(answer["key"] == "k" for answer in answers), answers
"""
    process = subprocess.Popen([sys.executable, "-c", program, lend(SECRETS)])
    while process.poll() is None:  # the lender has other work, too
        sum(range(10_000))
        time.sleep(0.001)
    assert process.returncode == 0


def test_who_asks_and_goes_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    reference = lend(SECRETS)
    path = reference.rpartition("#")[0]
    for said in (b"", b"half a number", b"x" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
            line.connect(path)
            line.sendall(said)
    assert borrow(reference) == SECRETS
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_a_temporary_directory_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    program = "from lobster_zarr.agent import borrow, lend; assert borrow(lend({'a': '1'})) == {'a': '1'}"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"TMPDIR": str(deep)})
    assert not list(deep.iterdir())


def test_with_the_lender_the_loan_ends() -> None:
    program = "from lobster_zarr.agent import borrow, lend; r = lend({'a': '1'}); print(r, borrow(r))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reference, _, borrowed = done.stdout.strip().partition(" ")
    assert borrowed == "{'a': '1'}"
    assert borrow(reference) == {}
    assert not Path(reference.rpartition("#")[0]).parent.exists()


def test_a_forked_child_borrows_from_its_parent_and_leaves_the_parent_its_socket() -> None:
    program = """
import os
from lobster_zarr.agent import borrow, lend
reference = lend({"a": "1"})
child = os.fork()
if not child:
    assert borrow(reference) == {"a": "1"}
    assert lend({"b": "2"}).partition("#")[0] != reference.partition("#")[0]
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
assert borrow(reference) == {"a": "1"}
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, env=dict(os.environ))


def test_threads_that_lend_at_once_share_one_agent() -> None:
    program = """
from concurrent.futures import ThreadPoolExecutor
from lobster_zarr.agent import lend
with ThreadPoolExecutor(32) as pool:
    print(len(set(pool.map(lambda _: lend({"a": "1"}), range(32)))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
