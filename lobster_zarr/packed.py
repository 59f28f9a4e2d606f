"""Recognises a file that is compressed as a whole, by its first bytes: no part of it can be read by itself.

Must not know what is packed in it.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.diagnosis import Finding
from lobster_zarr.errors import NotFoundError
from lobster_zarr.report import human_bytes
from lobster_zarr.store import UriStore, display_uri, is_local, local_path, open_store, run

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
UNPACK = {"gzip": "gunzip -k", "zip": "unzip", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd"}
SUFFIXES = {".gz": "gzip", ".zip": "zip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
FILES = {*SUFFIXES, ".h5ad", ".h5mu", ".h5", ".hdf5"}
"""Of names that a file, and no store, would have."""
ROOTS = {"zarr.json", ".zgroup", ".zmetadata"}


def packed_file(
    uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[str, int, Finding, str] | None:
    """Look whether a URI is a file that is compressed as a whole.

    At most two requests, none where the name is that of a store.

    Returns
    -------
    tuple or None
        The URI as fit to show, the size, what to say of it, and what the file is called once it is unpacked.
    """
    text = os.fspath(uri).rstrip("/")
    parent, slash, name = text.rpartition("/")
    suffix = Path(name).suffix.lower()
    if suffix not in FILES or "?" in text or _is_zipped_store(text, suffix):
        return None
    try:
        store = open_store(parent + slash if parent or slash else ".", storage_options)
        found = run(_looked_at(store, name)) if isinstance(store, UriStore) else None
    except NotFoundError:
        return None
    if found is None:
        return None
    kind, n_bytes = found
    shown = display_uri(uri)
    inner = shown.removesuffix(suffix) if suffix in SUFFIXES else shown
    unpacked = inner if Path(inner).suffix else f"{inner}.h5ad"
    finding = Finding(
        "packed",
        name,
        f"the file is compressed as a whole ({kind}).",
        f"nothing of it can be read in part: each query needs all {human_bytes(n_bytes)}, and unpacks them.",
        f"unpack it once ({UNPACK[kind]}), and convert that; compression inside .h5ad and .zarr is by chunk.",
    )
    return shown, n_bytes, finding, unpacked


def _is_zipped_store(uri: str, suffix: str) -> bool:
    if suffix != ".zip" or not is_local(uri):
        return False
    path = local_path(uri)
    if path.is_dir() or not zipfile.is_zipfile(path):
        return True  # opening it says what it is
    with zipfile.ZipFile(path) as file:
        return any(name in ROOTS for name in file.namelist())


async def _looked_at(store: UriStore, name: str) -> tuple[str, int] | None:
    head = await store.get(name, default_buffer_prototype(), RangeByteRequest(0, 8))
    start = b"" if head is None else head.to_bytes()
    kinds = [kind for magic, kind in MAGIC.items() if start.startswith(magic)]
    return (kinds[0], await store.getsize(name)) if kinds else None
