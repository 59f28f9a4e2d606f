"""Undoes the filters of a chunk of an HDF5 file.

Those of nearly all files (gzip, shuffle, fletcher32) here, on all cores at once; the
others (lzf, szip, scale-offset, plugins such as blosc and zstd) by libhdf5 itself, in a
file in memory: it does one thing at a time, so that other cores wait. Must not know files.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zlib
from typing import Any

import numpy as np
from numcodecs import Fletcher32, Shuffle

from lobster_zarr.errors import UnsupportedError

NAMES = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
NAMES |= {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}
"""HDF5's numbers of filters: https://github.com/HDFGroup/hdf5_plugins."""
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3

type Filter = tuple[int, int, tuple[int, ...]]
"""Number, flags and values of a filter, as libhdf5 tells them."""

_names = itertools.count()


def unfiltered(
    encoded: bytes | memoryview,
    mask: int,
    filters: tuple[Filter, ...],
    dtype: np.dtype[Any],
    chunk: tuple[int, ...],
    path: str,
) -> np.ndarray:
    """Decode one chunk.

    Parameters
    ----------
    encoded
        The chunk as it is stored.
    mask
        Bit i: filter i was left out.
    filters, dtype, chunk
        Of the dataset; the filters in the order in which they were applied.
    path
        Of the dataset, for messages.

    Raises
    ------
    UnsupportedError
        A filter is not installed.
    ValueError, RuntimeError, OSError, zlib.error
        Of damaged bytes, whatever the filter makes of them.
    """
    applied = [told for i, told in enumerate(filters) if not mask >> i & 1]
    if not {code for code, _, _ in applied} <= {_DEFLATE, _SHUFFLE, _FLETCHER32}:
        return _by_library(encoded, applied, dtype, chunk, path)
    expected = math.prod(chunk) * dtype.itemsize
    decoded: Any = encoded
    for code, _, _ in reversed(applied):
        decoded = _undone(code, decoded, dtype.itemsize, expected)
    if len(decoded) != expected:
        msg = f"it holds {len(decoded):,} bytes, expected {expected:,}"
        raise ValueError(msg)
    return np.frombuffer(decoded, dtype).reshape(chunk)


def _undone(code: int, encoded: Any, itemsize: int, expected: int) -> Any:
    """Undo one filter; `expected` bounds what may come of it, but for a checksum of 4 bytes."""
    if code == _SHUFFLE:
        return Shuffle(itemsize).decode(encoded) if itemsize > 1 else encoded
    if code == _FLETCHER32:
        return Fletcher32().decode(encoded)
    stream = zlib.decompressobj()
    decoded = stream.decompress(encoded, expected + 5)
    if not stream.eof:
        msg = "its compressed bytes are cut short, or hold more than a chunk"
        raise ValueError(msg)
    return decoded


def _by_library(
    encoded: bytes | memoryview, applied: list[Filter], dtype: np.dtype[Any], chunk: tuple[int, ...], path: str
) -> np.ndarray:
    import h5py

    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(chunk)
    for code, flags, values in applied:
        _check(code, path)
        plist.set_filter(code, flags, values)
    plain = dtype if dtype.names is None else np.dtype(f"V{dtype.itemsize}")
    out = np.empty(chunk, plain)
    with h5py.File(f"chunk{next(_names)}", "w", driver="core", backing_store=False) as file:
        kind, space = h5py.h5t.py_create(plain), h5py.h5s.create_simple(chunk)
        dataset = h5py.h5d.create(file.id, b"chunk", kind, space, plist)
        dataset.write_direct_chunk((0,) * len(chunk), bytes(encoded))
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
    return out.view(dtype)


def _check(code: int, path: str) -> None:
    """Refuse a filter that this installation does not have."""
    import h5py

    if h5py.h5z.filter_avail(code):
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 - importing it makes its filters known

    if not h5py.h5z.filter_avail(code):
        msg = (
            f"{path!r} is compressed by the HDF5 filter {NAMES.get(code, 'without a name')} ({code}), which is not "
            "installed here; `pip install hdf5plugin` brings most of them."
        )
        raise UnsupportedError(msg)
