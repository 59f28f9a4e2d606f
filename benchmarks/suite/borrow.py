"""Lets an environment that asv made run a commit with the packages of the environment that runs asv.

Nothing is downloaded, so that `asv continuous` works offline; commits are compared with the same
dependencies. Imports the standard library only: it runs inside the new environment.

Usage: python borrow.py CHECKOUT, with the packages' folder in the variable LOBSTER_ZARR_PACKAGES
(`benchmarks.suite.run` sets it).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Write a .pth file: the checkout first, then the borrowed packages."""
    packages = os.environ["LOBSTER_ZARR_PACKAGES"]
    own = Path(sysconfig.get_paths()["purelib"])
    (own / "borrowed.pth").write_text(f"{Path(sys.argv[1]).resolve()}\n{packages}\n")


if __name__ == "__main__":
    main()
