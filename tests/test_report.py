"""The report of a conversion and its progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lobster_zarr.report import ConversionReport, Progress, human_bytes, peak_memory_bytes

ROOT = Path(__file__).parents[1]
REPORT = ConversionReport(
    source="atlas.h5ad",
    destination="s3://lab/atlas.zarr",
    n_obs=100_000,
    n_vars=20_000,
    source_bytes=436_000_000,
    stored_bytes=171_000_000,
    n_objects=46,
    seconds=12.34,
    peak_memory_bytes=1_500_000_000,
    codec="small",
    sort_by=("cell_type", "donor"),
    gene_major=("X",),
    arrays={"X/data": 60, "X/indices": 40},
)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (12_600, "12.6 kB"), (12_600_000, "12.6 MB"),
        (999_900_000, "999.9 MB"), (2.5e9, "2.5 GB"), (7e12, "7.0 TB"), (7e15, "7000.0 TB"), (-1500, "-1.5 kB"),
    ],
)  # fmt: skip
def test_sizes_have_decimal_units(n_bytes, text):
    assert human_bytes(n_bytes) == text


def test_the_report_says_what_was_done():
    lines = str(REPORT).splitlines()
    assert lines == [
        "atlas.h5ad → s3://lab/atlas.zarr",
        "  100,000 cells × 20,000 genes, codec small, sorted by cell_type, donor,",
        "    gene-major X",
        "  171.0 MB in 46 objects, 0.39× of 436.0 MB",
        "  12.3 s, peak memory 1.5 GB",
    ]


def test_what_does_not_apply_is_not_said():
    plain = replace(REPORT, source_bytes=None, sort_by=(), gene_major=(), replaced="")
    text = str(plain)
    assert plain.ratio is None
    for absent in ("sorted", "gene-major", "× of", "replaced", "None"):
        assert absent not in text


def test_what_was_replaced_is_said():
    assert "replaced a Zarr group" in str(replace(REPORT, replaced="a Zarr group"))


def test_an_empty_source_has_no_ratio():
    assert replace(REPORT, source_bytes=0).ratio is None


def test_plain_values_go_through_json():
    again = json.loads(json.dumps(REPORT.to_dict()))
    assert again["ratio"] == pytest.approx(171 / 436)
    assert again["sort_by"] == ["cell_type", "donor"]
    assert again["arrays"] == {"X/data": 60, "X/indices": 40}
    assert set(again) == {*REPORT.__dataclass_fields__, "ratio"}


def test_peak_memory_is_in_bytes_and_grows():
    before = peak_memory_bytes()
    assert 1e7 < before < 1e12
    held = bytearray(60_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory_bytes() >= before


# ---------------------------------------------------------------- progress

PHASE = """
from lobster_zarr.report import Progress
with Progress(enabled={enabled}).phase("X", {total}) as advance:
    for _ in range(4):
        advance({total} // 4)
"""
NESTED = """
from lobster_zarr.report import Progress
progress = Progress(enabled=True)
with progress.phase("rows", 10) as outer, progress.phase("genes", 10) as inner:
    outer(10)
    inner(10)
"""

WATCHED = """
import time
from lobster_zarr import report
from lobster_zarr.traffic import Stats
report.PATIENCE_SECONDS = {patience}
stats = Stats(n_bytes=7_000_000, begun_bytes=7_000_000)
with report.Progress(enabled={enabled}).watching("reading [/] now", stats):
    stats.begun_bytes += 4_000_000
    stats.add("X/data", 2_000_000)
    time.sleep(0.5)
"""


def environment():
    """The environment of a plain terminal of 100 columns."""
    switches = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    inherited = {name: value for name, value in os.environ.items() if name not in switches}
    return inherited | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}


def on_a_terminal(program):
    """What a program writes to standard error where that is a terminal."""
    pty = pytest.importorskip("pty", reason="terminals of Unix")
    ours, theirs = pty.openpty()
    seen = b""
    with subprocess.Popen([sys.executable, "-c", program], env=environment(), stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # so Linux says that the other end is closed
            while part := os.read(ours, 4096):
                seen += part
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


def test_a_terminal_shows_a_bar_to_the_end():
    seen = on_a_terminal(PHASE.format(enabled=True, total=400))
    assert "X" in seen
    assert "100%" in seen
    assert "━" in seen


def test_elsewhere_nothing_is_written():
    program = PHASE.format(enabled=True, total=400)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""


@pytest.mark.parametrize(("enabled", "total"), [(False, 400), (True, 0)])
def test_a_terminal_stays_silent_when_asked_to_and_when_there_is_nothing_to_do(enabled, total):
    assert on_a_terminal(PHASE.format(enabled=enabled, total=total)) == ""


def test_what_arrives_is_shown_once_it_takes_long():
    seen = on_a_terminal(WATCHED.format(enabled=True, patience=0))
    for told in ("reading [/] now", "50%", "2.0 MB"):
        assert told in seen
    assert on_a_terminal(WATCHED.format(enabled=True, patience=9)) == ""
    assert on_a_terminal(WATCHED.format(enabled=False, patience=0)) == ""


def test_phases_nest_on_a_terminal():
    seen = on_a_terminal(NESTED)
    assert "rows" in seen
    assert "genes" in seen


def test_phases_nest_elsewhere_and_let_errors_through():
    progress = Progress(enabled=True)

    def work():
        with progress.phase("rows", 10) as outer, progress.phase("genes", 10) as inner:
            outer(3)
            inner(4)
            raise KeyError

    with pytest.raises(KeyError):
        work()
