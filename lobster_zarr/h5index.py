"""Keeps the index of an HDF5 file, so that the next one to open it needs one request."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.byterange import Network
from lobster_zarr.errors import InvalidArgumentError, UnsupportedError
from lobster_zarr.fetch import together
from lobster_zarr.h5array import FileArray
from lobster_zarr.h5fetch import FileFetcher, read_metadata
from lobster_zarr.h5image import FileImage, ImageFile
from lobster_zarr.h5legacy import is_legacy
from lobster_zarr.h5store import FileStore, is_file
from lobster_zarr.h5tree import Survey
from lobster_zarr.h5whole import stored_parts
from lobster_zarr.markup import body as body_of
from lobster_zarr.markup import box, facts, figures, heading, mono
from lobster_zarr.plan import ArrayRead
from lobster_zarr.report import Progress, human_bytes
from lobster_zarr.sidecar import SUFFIX, document
from lobster_zarr.store import display_uri, run
from lobster_zarr.traffic import Stats, observed
from lobster_zarr.typeset import printable
from lobster_zarr.wholefile import make_folder, whole_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from lobster_zarr.node import Tree

SMALL_BYTES = 64 << 10
"""Datasets of up to so many decoded bytes are kept whole: categories, scalars, colours."""
MOST_SMALL_BYTES = 4 << 20
_FEW_CHUNKS = 64  # those of one node of a B-tree, which libhdf5 reads as well


@dataclass(frozen=True)
class IndexReport:
    """What was kept of a file.

    Parameters
    ----------
    uri
        The file.
    index
        Where the index lies.
    n_arrays, n_chunks
        Datasets, and chunks of them whose places are known.
    n_bytes
        Size of the index.
    """

    uri: str
    index: str
    n_arrays: int
    n_chunks: int
    n_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        size = f"{human_bytes(self.n_bytes)} for {self.n_chunks:,} chunks of {self.n_arrays:,} datasets"
        return f"Kept {printable(self.index)}\n  {size}; the file opens in one request now"

    def _repr_html_(self) -> str:
        told = figures(
            (human_bytes(self.n_bytes), "index"),
            (f"{self.n_chunks:,}", "chunks"),
            (f"{self.n_arrays:,}", "datasets"),
        )
        head = heading("Indexed", "opens in one request now", self.uri)
        return box(str(self), head, told, body_of(facts(("kept at", mono(self.index)))))


def index(
    uri: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    local: bool = False,
    progress: bool = True,
) -> IndexReport:
    """Keep where the chunks of an .h5ad or .h5mu lie, so that it opens in one request.

    Parameters
    ----------
    uri
        Of the file.
    storage_options
        As of :func:`lobster_zarr.open`.
    local
        Write to this user's cache instead of beside the file: then only this user profits,
        and opening needs no request at all.
    progress
        Show what arrives when on a terminal, if it takes a second.

    Returns
    -------
    IndexReport
        Its text says where the index lies.

    Raises
    ------
    InvalidArgumentError
        It is not an HDF5 file.
    UnsupportedError
        It is from before anndata 0.7, which is read whole.
    NotFoundError, FormatError, StorageError
        As of :func:`lobster_zarr.open`, or nothing can be written there.
    """
    if not is_file(uri):
        msg = f"{display_uri(uri)} is no HDF5 file; expected an .h5ad or .h5mu. A Zarr store has its index in it."
        raise InvalidArgumentError(msg)
    store = FileStore(uri, storage_options)
    writer = None if local else FileStore(uri, storage_options, read_only=False)
    stats = Stats()
    with Progress(enabled=progress).watching("indexing", stats):
        tree, body = run(_index(store, stats))
    if writer is None:
        path = make_folder(store.cache_path)
        with whole_file(path) as part:
            part.write_bytes(body)
        where = str(path)
    else:
        run(writer.keep(body))
        where = f"{store}{SUFFIX}"
    arrays = [a for a in map(tree.array, tree.arrays_below("")) if isinstance(a, FileArray)]
    n_chunks = sum(a.grid.n_chunks for a in arrays if not a.index.pending)
    return IndexReport(str(store), where, len(arrays), n_chunks, len(body))


async def _index(store: FileStore, stats: Stats) -> tuple[Tree, bytes]:
    with observed(stats):
        return await _learnt(store)


async def _learnt(store: FileStore) -> tuple[Tree, bytes]:
    tree, image, base = await read_metadata(store)
    if is_legacy(tree):
        msg = f"{store} was written before anndata 0.7 and is read whole; convert it, or re-save it with a current one."
        raise UnsupportedError(msg)
    kept = _touched(image, str(store))
    fetcher = FileFetcher(store, network=Network(), image=image, base=base)
    arrays = [a for a in map(tree.array, tree.arrays_below("")) if isinstance(a, FileArray) and a.stored.chunk]
    await together(*(_learn(fetcher, array, kept) for array in arrays))
    room = MOST_SMALL_BYTES
    for read in (ArrayRead(tree.array(p)) for p in tree.arrays_below("")):
        if 0 < read.result_bytes <= min(SMALL_BYTES, room) and isinstance(read.node, FileArray):
            for start, body in await stored_parts(fetcher, read):
                kept.add(start, body)
                room -= len(body)
    return tree, document(store.etag, kept, tree)


async def _learn(fetcher: FileFetcher, array: FileArray, kept: FileImage) -> None:
    """Learn where all chunks lie; of a small index keep the bytes too, as libhdf5 will ask for them."""
    if len(array.index.pending) == 1 and array.grid.n_chunks <= _FEW_CHUNKS and array.index.pending[0].address >= 0:
        root = array.index.pending[0]
        stop = min(root.address + root.n_bytes, kept.n_bytes)
        kept.add(root.address, await fetcher.read(array.path, root.address, stop))
    await fetcher.learn(array, np.arange(array.grid.n_chunks))


def _touched(image: FileImage, name: str) -> FileImage:
    """Return the part of what is in memory that libhdf5 asks for."""
    import h5py

    view, survey = ImageFile(image), Survey(name)
    with h5py.File(view, "r") as file:
        survey.survey(file, view)
    kept = FileImage(image.n_bytes)
    for start, stop in view.touched:
        body = image.read(start, stop)
        if body is not None and kept.read(start, stop) is None:
            kept.add(start, bytes(body))
    return kept
