"""Runs asv with the packages of this environment: nothing is downloaded.

``python -m benchmarks.suite.run`` measures the tree as it is; ``python -m benchmarks.suite.run continuous
main HEAD`` compares two commits. Further words go to asv: ``--bench Query``, ``--quick``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run asv; its exit status."""
    words = sys.argv[1:]
    environment = os.environ | {"LOBSTER_ZARR_PACKAGES": sysconfig.get_paths()["purelib"]}
    if not words or words[0].startswith("-"):
        words = ["run", "--python=same", "--set-commit-hash", _head(), "--show-stderr", *words]
        environment["ASV_PYTHONPATH"] = str(ROOT)  # of other commits, `borrow` says where they are
    for command in (["machine", "--yes"], words):
        done = subprocess.run([sys.executable, "-m", "asv", *command], cwd=ROOT, env=environment, check=False)
    return done.returncode


def _head() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
