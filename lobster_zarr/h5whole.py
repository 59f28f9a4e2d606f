"""Reads elements of an HDF5 file whole, as AnnData's own reader gives them, over ranges that were fetched at once."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from lobster_zarr.errors import ChunkDecodeError, FormatError
from lobster_zarr.fetch import together
from lobster_zarr.h5array import FileArray
from lobster_zarr.h5fetch import FileFetcher, replay
from lobster_zarr.h5image import FileImage
from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    import h5py

    from lobster_zarr.h5image import ImageFile
    from lobster_zarr.node import Tree


def file_reads(tree: Tree, path: str) -> list[ArrayRead]:
    """Return what `read_from_file` reads."""
    return [ArrayRead(tree.array(p)) for p in tree.arrays_below(path)]


async def read_from_file(fetcher: FileFetcher, tree: Tree, path: str) -> Any:
    """Read an element whole: its chunks and texts at once, then AnnData's reader by way of libhdf5.

    Raises
    ------
    ChunkDecodeError
        Its bytes are damaged.
    """
    reads, full = file_reads(tree, path), tree.root + path
    image = FileImage(fetcher.image.n_bytes, fetcher.image)
    await fetcher.prepare(reads)
    for parts in await together(*(stored_parts(fetcher, read) for read in reads)):
        for start, body in parts:
            image.add(start, body)

    def work(file: h5py.File, _: ImageFile) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return native(ad.io.read_elem(file[full]))

    async def read(start: int, stop: int) -> bytes:
        return await fetcher.read(full, start, stop)

    try:
        return await replay(image, read, str(fetcher.file), work)
    except FormatError as error:
        kind = ChunkDecodeError if isinstance(error.__cause__, OSError) else FormatError  # libhdf5's, or AnnData's
        msg = f"{full!r} cannot be read: {error.__cause__ or error}. Restore {fetcher.file} from a copy, or re-save it."
        raise kind(msg) from error


def native(value: Any) -> Any:
    """Return an element with its numbers in this machine's byte order, as all others come."""
    if isinstance(value, dict):
        return {key: native(member) for key, member in value.items()}
    if isinstance(value, pd.DataFrame):
        swapped = {c: v for c, v in value.items() if isinstance(v.dtype, np.dtype) and not v.dtype.isnative}
        return (
            value.assign(**{c: v.astype(v.dtype.newbyteorder("=")) for c, v in swapped.items()}) if swapped else value
        )
    if isinstance(value, np.ndarray) and not value.dtype.isnative and value.dtype.names is None:
        return value.astype(value.dtype.newbyteorder("="))
    if sparse.issparse(value) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value


async def stored_parts(fetcher: FileFetcher, read: ArrayRead) -> list[tuple[int, bytes]]:
    """Read the chunks of an array as they are stored, and the heaps of its texts; and where they lie."""
    node = read.node
    requests = fetcher.plan(read).requests
    bodies = await together(*(fetcher.read(node.path, r.start or 0, r.stop or 0) for r in requests))
    found = [(r.start or 0, body) for r, body in zip(requests, bodies, strict=True)]
    if isinstance(node, FileArray) and node.is_text:
        decoded = [
            node.decode(body[offset : offset + size], int(chunk_id))
            for request, body in zip(requests, bodies, strict=True)
            for chunk_id, offset, size in zip(request.chunk_ids, request.offsets, request.sizes, strict=True)
        ]
        if decoded:
            references = np.concatenate([d.ravel() for d in decoded])
            heaps = await fetcher.heaps(node.path, references)
            found += [(address + fetcher.base, bytes(body)) for address, body in heaps.items()]
    return found
