"""What is kept of an HDF5 file so that it opens in one request: its metadata, and where its chunks lie.

A JSON document of its own, beside the file or in this user's cache. It says of which
version of the file it tells (ETag and size); every read of the file is conditional on
that, so that a file that was replaced is never read by it. Must not know AnnData.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lobster_zarr.cache import user_folder
from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.h5array import FileArray
from lobster_zarr.h5image import FileImage
from lobster_zarr.noted import MAX_BYTES, Note, pack

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np

    from lobster_zarr.node import Tree

SUFFIX = ".lobster_zarr.json"
"""Of the document beside a file."""
VERSION = 1


@dataclass(frozen=True, eq=False)
class Sidecar:
    """What was kept of a file.

    Parameters
    ----------
    where
        Of the document, for messages.
    etag, n_bytes
        The version of the file.
    entries
        The document.
    """

    where: str
    etag: str
    n_bytes: int
    entries: dict[str, Any]

    @classmethod
    def parse(cls, body: bytes, where: str) -> Sidecar:
        """Take a document.

        Raises
        ------
        FormatError
            It is damaged, or of a later version.
        """
        try:
            entries: Any = json.loads(body)
            version, etag, n_bytes = entries["lobster_zarr_index"], entries["etag"], entries["n_bytes"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(where) from error
        if version != VERSION or not isinstance(etag, str) or type(n_bytes) is not int:
            raise _damaged(where)
        return cls(where, etag, n_bytes, entries)

    def image(self) -> FileImage:
        """Return what is in memory of the file."""
        image, extents = FileImage(self.n_bytes), self.entries.get("extents")
        if not isinstance(extents, list) or not all(_is_extent(e, self.n_bytes) for e in extents):
            raise _damaged(self.where)
        body = self._array(self.entries, "bytes", "u1", (sum(length for _, length in extents),)).tobytes()
        at = 0
        for start, length in extents:
            image.add(start, body[at : at + length])
            at += length
        return image

    def fill(self, tree: Tree) -> None:
        """Tell the arrays of the file where their chunks lie."""
        kept = self.entries.get("chunks")
        if not isinstance(kept, dict):
            raise _damaged(self.where)
        for array in _chunked(tree):
            if array.path in kept:
                index, shape = array.index, (array.grid.n_chunks,)
                for column, name in enumerate(("offsets", "sizes")):
                    index.places[:, column] = self._array(kept[array.path], name, "u8", shape)
                index.masks |= {int(k): int(v) for k, v in kept[array.path].get("masks", {}).items()}
                index.pending.clear()

    def _array(self, entries: Any, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            found = Note(self.where, entries).array(name, dtype, shape) if isinstance(entries, dict) else None
        except FormatError as error:
            raise _damaged(self.where) from error
        if found is None:
            raise _damaged(self.where)
        return found


def document(etag: str, image: FileImage, tree: Tree) -> bytes:
    """Make the document of a file of which all that `image` and `tree` say is to be kept.

    Raises
    ------
    UnsupportedError
        That is more than a document can hold.
    """
    extents = image.extents()
    n_kept = sum(len(body) for _, body in extents)
    if n_kept > MAX_BYTES:
        msg = (
            f"the metadata of the file takes {n_kept:,} bytes; an index holds {MAX_BYTES:,}. Convert the file instead."
        )
        raise UnsupportedError(msg)
    chunks: dict[str, Any] = {}
    for array in _chunked(tree):
        index = array.index
        if index.pending or index.places.nbytes > 2 * MAX_BYTES:  # of very many chunks it is read when it is needed
            continue
        chunks[array.path] = {"offsets": pack(index.places[:, 0]), "sizes": pack(index.places[:, 1])}
        chunks[array.path] |= {"masks": index.masks} if index.masks else {}
    told = {
        "lobster_zarr_index": VERSION,
        "etag": etag,
        "n_bytes": image.n_bytes,
        "extents": [[start, len(body)] for start, body in extents],
        "bytes": pack(b"".join(body for _, body in extents)),
        "chunks": chunks,
    }
    return json.dumps(told).encode()


def cached_path(uri: str) -> Path:
    """Return where the document of a file lies in this user's cache."""
    return user_folder() / "index" / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json"


def _chunked(tree: Tree) -> Iterable[FileArray]:
    arrays = {id(a): a for a in map(tree.array, tree.arrays_below("")) if isinstance(a, FileArray)}
    return [a for a in arrays.values() if a.stored.chunk is not None]


def _is_extent(extent: Any, n_bytes: int) -> bool:
    sound = isinstance(extent, list) and len(extent) == 2 and all(type(n) is int and n >= 0 for n in extent)
    return sound and sum(extent) <= n_bytes


def _damaged(where: str) -> FormatError:
    msg = f"the kept index {where} is damaged, or of another version of this package; run `lobster-zarr index` again."
    return FormatError(msg)
