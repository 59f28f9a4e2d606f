"""What it costs to begin."""

from __future__ import annotations

import subprocess
import sys


class Import:
    """A new process that imports the package; `open` brings what reading needs."""

    timeout = 60
    params = ["import lobster_zarr", "from lobster_zarr import open"]  # noqa: RUF012 - as asv wants it
    param_names = ("statement",)
    number, repeat = 1, (2, 5, 20.0)

    def time_statement(self, statement: str) -> None:
        subprocess.run([sys.executable, "-c", statement], check=True)
