"""Secrets are lent to this user's processes on this machine, and to nobody else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from lobster_zarr.agent import borrow, lend

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
