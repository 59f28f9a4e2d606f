"""What a process keeps for a job, and that it keeps nothing going after its end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
from test_convert import cells

from lobster_zarr.address import Address
from lobster_zarr.errors import FormatError, NotFoundError, StorageError
from lobster_zarr.report import peak_memory_bytes
from lobster_zarr.workplace import Job, at_work, end


def job(path, number="1", source=None):
    return Job(number, Address.of(path), None if source is None else Address.of(source))


def announced(path, number):
    """What a client writes before the first task."""
    given = job(path, number)
    (path / given.place_key).parent.mkdir(parents=True)
    (path / given.place_key).touch()
    return given


@pytest.mark.parametrize("exists", [False, True])
def test_a_destination_that_is_another_here_is_refused_and_not_made(tmp_path, exists):
    dest = tmp_path / "a.zarr"
    if exists:
        dest.mkdir()
    with (
        pytest.raises(StorageError, match=rf"{socket.gethostname()} does not see.*a\.zarr"),
        at_work(job(dest)) as here,
    ):
        here.put("X/c/0", b"1")
    assert dest.exists() == exists
    assert not exists or not list(dest.iterdir())


def test_a_source_that_is_not_here_is_told_with_the_host(tmp_path):
    with (
        pytest.raises(NotFoundError, match=socket.gethostname()),
        at_work(job(tmp_path, "2", tmp_path / "a.h5ad")) as h,
    ):
        h.stream("X")


def test_what_was_opened_is_kept_for_the_next_task_and_closed_at_the_end(tmp_path):
    cells().write_h5ad(tmp_path / "a.h5ad")
    given = job(tmp_path, "3", tmp_path / "a.h5ad")
    with at_work(given) as here:
        stream = here.stream("X")
    with at_work(given) as again:
        assert again is here
        assert again.stream("X") is stream
        with pytest.raises(FormatError, match="not a matrix any more"):
            again.stream("layers/none")
    assert asyncio.run(end("3")) <= peak_memory_bytes()
    closed = []
    with at_work(job(tmp_path, "3b", tmp_path / "a.h5ad")) as here:
        here._open.callback(closed.append, True)
    asyncio.run(end("3b"))
    assert closed


def test_after_its_end_nothing_is_written(tmp_path):
    given, started, go_on, raised = announced(tmp_path, "4"), threading.Event(), threading.Event(), []

    def task():
        try:
            with at_work(given) as here:
                here.put("X/c/0", b"1")
                started.set()
                go_on.wait(10)
                here.put("X/c/1", b"2")
        except StorageError as error:
            raised.append(error)

    thread = threading.Thread(target=task)
    thread.start()
    assert started.wait(10)
    threading.Timer(0.3, go_on.set).start()
    began = time.monotonic()
    asyncio.run(end("4"))
    assert time.monotonic() - began > 0.2, "it waits for the task"
    thread.join(10)
    assert [p.name for p in (tmp_path / "X/c").iterdir()] == ["0"]
    assert len(raised) == 1
    with pytest.raises(StorageError, match="given up"), at_work(given):
        pass


def test_an_error_leaves_without_its_causes(tmp_path):
    def fail():
        try:
            raise RuntimeError("signature=SECRET")
        except RuntimeError as cause:
            raise FormatError("damaged") from cause

    with pytest.raises(FormatError, match="damaged") as raised, at_work(job(tmp_path, "5")):
        fail()
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
