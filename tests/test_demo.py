"""The demo runs as users run it, ends in time and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from lobster_zarr import cli

ROOT = Path(__file__).parents[1]
needs_extra = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("scanpy") is None, reason="the demo extra is not installed"
)


@needs_extra
def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", "from lobster_zarr.cli import main; main()", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as demo:
        servers: set[psutil.Process] = set()
        while demo.poll() is None and time.monotonic() < started + 60:
            with contextlib.suppress(psutil.Error):  # it may end at any moment
                servers.update(psutil.Process(demo.pid).children())
            time.sleep(0.1)
        if demo.poll() is None:
            demo.terminate()
        out, err = demo.communicate()
    assert (demo.returncode, err) == (0, ""), f"after {time.monotonic() - started:.0f} s"
    for word in (
        "50,000 cells × 765 genes",
        "lobster-zarr convert pbmc.h5ad s3://demo/pbmc.zarr --sort-by bulk_labels",
        "lobster-zarr query s3://demo/pbmc.zarr",
        "download the H5AD and slice",
        "this cell type, three genes",
        "equals slicing the downloaded file in memory",
    ):
        assert word in out, out
    shapes = re.findall(r"([\d,]+) × (3|765)\b", out)
    assert len({n for n, _ in shapes if n != "50,000"}) == 1, "the same cells in each row of the table"
    assert servers, "there was a server"
    assert not [s for s in servers if s.is_running() and s.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "moto", None)  # as Python itself marks what cannot be imported
    monkeypatch.setattr(sys, "argv", ["lobster-zarr", "demo"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "lobster-zarr[demo]" in err


@needs_extra
def test_the_enlarged_data_set_is_the_same_every_time_and_of_counts() -> None:
    from lobster_zarr.demo import CELL_TYPE, GENES, enlarged_pbmc

    first, second = enlarged_pbmc(500), enlarged_pbmc(500)
    assert (first.X != second.X).nnz == 0
    assert first.obs.equals(second.obs)
    assert (first.X.data == np.rint(first.X.data)).all()
    assert first.X.data.min() >= 1
    assert (first.obs["bulk_labels"] == CELL_TYPE).any()
    assert set(GENES) <= set(first.var_names)
