"""Runs one reader on one question and counts what that took: seconds, requests, bytes, memory.

Knows how `benchmarks.readers` is started, asked and ended. Must not know what is asked of whom, or judge it.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.questions import QUESTIONS, Line, opened, stored_at
from benchmarks.steps import REPEATS, Figures, Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.network import ShapedS3

type Run = tuple[str, str, str]  # question, reader, store
CAP_SECONDS, SLOW_SECONDS = 180, 10  # a run past the first is ended, one past the second not repeated
QUICK_SECONDS, QUICK_REPEATS = 1, 7  # a run below the first is mostly noise in three
SORTED = ("sorted", "soma_sorted")


class Child:
    """A process of `benchmarks.readers` under some interpreter."""

    def __init__(self, python: str | Path, request: Figures, environment: dict[str, str] | None = None) -> None:
        root = str(Path(__file__).parents[1])
        env = {**os.environ, **(environment or {}), "PYTHONPATH": root}
        command = [str(python), "-m", "benchmarks.readers", json.dumps(request)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=env, bufsize=0
        )  # unbuffered: `select` must see what was not read yet
        if process.stdin is None or process.stdout is None:
            raise ConnectionError
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout

    def go(self) -> None:
        """Start a run."""
        self._stdin.write(b"go\n")

    def line(self, cap_seconds: float | None = None) -> Figures:
        """Return the next line; TimeoutError where none comes in time, EOFError where none will."""
        if not select.select([self._stdout], [], [], cap_seconds)[0]:
            raise TimeoutError
        line = self._stdout.readline()
        if not line:
            raise EOFError(self.last_words())
        answer: Figures = json.loads(line)
        return answer

    def last_words(self) -> str:
        """Return the last line that the process wrote on standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.wait()}"

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@contextmanager
def child(python: str | Path, request: Figures, environment: dict[str, str] | None = None) -> Iterator[Child]:
    """Run a process while the block lasts."""
    running = Child(python, request, environment)
    try:
        yield running
    finally:
        running.end()


def known(job: Job, run: Run, path: Path) -> list[str] | None:
    """Write what the question says of the store's rows, and the names of those; return the genes."""
    question, (_, order, columns) = QUESTIONS[run[0]], opened(job, "sorted")
    types, names = columns["obs/cell_type"], columns["obs/_index"]
    if run[2] not in SORTED:  # the rows of every other store are as in the source
        types, names, order = types[np.argsort(order)], names[np.argsort(order)], np.arange(len(order))
    mask = question.mask(types) if question.cells == "T" else question.mask(types)[order]
    handed = question.mask(types) if run[1] == "lobster_zarr" else mask
    np.savez(path, mask=handed, names=names[mask].astype(str))
    return question.genes(columns["var/_index"])


def measure(server: ShapedS3, job: Job, run: Run, line: Line, python: str | Path = sys.executable) -> Figures:
    """Return the figures of one run; ``{"error": ...}`` where it failed or took too long.

    The median of three runs, each on a store opened anew; of one where a run takes over ten seconds, of seven where
    none takes one.
    """
    question = QUESTIONS[run[0]]
    seconds: list[float] = []
    figures: Figures = {"all_seconds": seconds, "load": os.getloadavg()[0]}
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        asked: dict[str, Any] = {"endpoint": server.endpoint, "bucket": "queries", "name": stored_at(job, run[2]).name}
        asked |= {"line": line, "genes": known(job, run, Path(file.name)), "verb": question.verb}
        asked |= {"cells": question.cells, "options": question.options}
        request = {"reader": run[1], "known": file.name, "asked": asked}
        with child(python, request, aws_environment(server)) as process:
            try:
                figures |= process.line(CAP_SECONDS)
                while len(seconds) < repeats(seconds):
                    server.reset()
                    process.go()
                    taken, counted = process.line(CAP_SECONDS), server.counters()
                    seconds.append(taken.pop("seconds"))
                    figures |= taken | {"n_requests": counted.n_requests, "n_bytes": counted.body_bytes}
                    figures["digests"] = process.line()
            except TimeoutError:
                return figures | {"error": f"> {CAP_SECONDS}"}
            except EOFError as ended:
                return figures | {"error": "failed", "why": str(ended)}
    return figures | {"seconds": statistics.median(seconds)}


def repeats(seconds: list[float]) -> int:
    """Return how many runs there are to be, by those that there were."""
    slowest = max(seconds, default=0)
    return 1 if slowest >= SLOW_SECONDS else REPEATS if slowest >= QUICK_SECONDS else QUICK_REPEATS


def convert(job: Job, store: str, python: str | Path = sys.executable) -> Figures:
    """Make a store with its own package, where it is absent; what it took, or took when it was made."""
    dest = stored_at(job, store)
    note = dest.with_name(f"{dest.name}.figures.json")
    if dest.exists() and note.exists():
        figures: Figures = json.loads(note.read_text())
        return figures
    shutil.rmtree(dest, ignore_errors=True)
    part = dest.with_name(f"part.{dest.name}")
    shutil.rmtree(part, ignore_errors=True)
    with child(python, {"convert": store, "source": str(job.source), "dest": str(part)}) as process:
        try:
            figures = process.line() | {"load": os.getloadavg()[0]}
        except EOFError as ended:
            return {"error": str(ended)}
    part.rename(dest)
    note.write_text(json.dumps(figures))
    return figures


def aws_environment(server: ShapedS3) -> dict[str, str]:
    """Return the environment of a package that takes its S3 from there alone."""
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ALLOW_HTTP": "true"}
    regions = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    return keys | regions | {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ENDPOINT": server.endpoint}


def in_process(work: Any, *args: Any, reset: Any = lambda: None) -> Figures:
    """Run something in a process of its own; `reset` whenever it is ready."""
    pipe, theirs = mp.Pipe()
    process = mp.get_context("spawn").Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        while (answer := pipe.recv()) is None:
            reset()
            pipe.send("go")
        figures: Figures = answer
        return figures
    finally:
        process.kill()
        process.join()
