"""Undoes HDF5's rarer filters (lzf, szip, scale-offset, plugins such as blosc and zstd) by libhdf5 itself.

One chunk at a time, in a file in memory: libhdf5 does one thing at a time, so other
cores wait. Must not know files.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.errors import UnsupportedError

if TYPE_CHECKING:
    from lobster_zarr.h5array import Filter

_names = itertools.count()


def check_filter(code: int, name: str, path: str) -> None:
    """Refuse a filter that this installation does not have.

    Raises
    ------
    UnsupportedError
        Names the filter and the array.
    """
    import h5py

    if h5py.h5z.filter_avail(code):
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 - importing it makes its filters known

    if not h5py.h5z.filter_avail(code):
        msg = (
            f"{path!r} is compressed by the HDF5 filter {name} ({code}), which is not installed here; "
            "`pip install hdf5plugin` brings most of them."
        )
        raise UnsupportedError(msg)


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
        Of the dataset.
    path
        For messages.
    """
    import h5py

    from lobster_zarr.h5array import NAMES

    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(chunk)
    for code, flags, values in filters:
        check_filter(code, NAMES.get(code, "without a name"), path)
        plist.set_filter(code, flags, values)
    opaque = dtype if dtype.names is None else np.dtype(f"V{dtype.itemsize}")
    out = np.empty(chunk, opaque)
    with h5py.File(f"chunk{next(_names)}", "w", driver="core", backing_store=False) as file:
        kind, space = h5py.h5t.py_create(opaque), h5py.h5s.create_simple(chunk)
        dataset = h5py.h5d.create(file.id, b"chunk", kind, space, plist)
        dataset.write_direct_chunk((0,) * len(chunk), bytes(encoded), mask)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
    return out.view(dtype)
