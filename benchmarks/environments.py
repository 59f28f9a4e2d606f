"""Interpreters that have the packages to compare with, each in an environment of its own.

Knows what is installed in each, pinned where a newer release does not work with it. Must not know what is
measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = {
    # anndata 0.13 has layers[None], which tiledbsoma 2.3.0 takes for a layer and fails on
    "tiledbsoma": ("tiledbsoma==2.3.0", "anndata<0.13"),
    "slafdb": ("slafdb==0.5.2", "smart-open[s3]"),
    "annbatch": (
        "annbatch==0.3.1",
        "anndata==0.13.4",
        "zarr==3.4.2",
        "numcodecs[pcodec]==0.17.1",
        "obstore==0.12.1",
        "zarrs==0.2.3",
    ),
}


def commands(environment: Path, packages: tuple[str, ...]) -> list[list[str]]:
    """Return what makes an environment: by uv, where that is installed, else by venv and pip."""
    python = str(environment / "bin" / "python")
    if uv := shutil.which("uv"):
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(environment)]
        return [make, [uv, "pip", "install", "--quiet", "--python", python, *packages]]
    make = [sys.executable, "-m", "venv", str(environment)]
    return [make, [python, "-m", "pip", "install", "--quiet", *packages]]


def interpreter(folder: Path, name: str) -> Path | None:
    """Return the interpreter that has a package, its environment made where it is absent; None where it fails."""
    environment = folder / name
    python = environment / "bin" / "python"
    if python.exists():
        return python
    for command in commands(environment, PACKAGES[name]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: not installed: {done.stderr.strip()}", file=sys.stderr)
            shutil.rmtree(environment, ignore_errors=True)
            return None
    return python
