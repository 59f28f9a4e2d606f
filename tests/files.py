"""Reads one file of a storage, by the way that files are opened in place."""

from __future__ import annotations

from lobster_zarr.h5store import FileStore
from lobster_zarr.store import run


def content_of(uri, options=None) -> bytes:
    """Return all of a small file."""
    return run(FileStore(uri, options).meet(1 << 20))
