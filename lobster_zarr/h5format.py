"""What of HDF5's own bytes has to be understood to read chunks without libhdf5.

Nodes of version 1 B-trees, which say where the chunks of a dataset lie, and
global heaps, which hold the text of variable length; after the HDF5 file format
specification (https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html),
III.A.1 and III.E. All else of a file is left to libhdf5. Pure: must not know where
bytes come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.errors import ChunkDecodeError, FormatError
from lobster_zarr.plan import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.grid import Grid

SIGNATURE = b"\x89HDF\r\n\x1a\n"
TREE = b"TREE"
NODE_HEADER_BYTES = 24
REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What a dataset stores of a text of variable length: its bytes, and where in which heap it lies."""
HEAP_BYTES = 4096
"""The least size of a global heap, and nearly always its size."""
_HEAP_HEADER_BYTES = 16
_OBJECT_HEADER_BYTES = 16


@dataclass(frozen=True)
class Branch:
    """A node of a B-tree that is not read yet, and the chunks that it tells of: ``[first, last)``; -1, not known."""

    first: int
    last: int
    address: int
    n_bytes: int
    level: int = -1


@dataclass(eq=False)
class ChunkIndex:
    """Where the chunks of a dataset lie, as far as it is known.

    Parameters
    ----------
    grid
        Of the dataset.
    places : ndarray of uint64, shape (n_chunks, 2)
        Offset in the file and stored size of each chunk; `MISSING` where it was never written.
    masks
        Of the chunks for which filters were left out, which: bit i for the filter i.
    pending
        Nodes that are still to be read, ascending.
    """

    grid: Grid
    places: np.ndarray
    masks: dict[int, int] = field(default_factory=dict)
    pending: list[Branch] = field(default_factory=list)

    @classmethod
    def empty(cls, grid: Grid) -> ChunkIndex:
        """Return the index of a dataset of which nothing was written."""
        return cls(grid, np.full((grid.n_chunks, 2), MISSING, np.uint64))

    def needed(self, chunk_ids: np.ndarray) -> list[Branch]:
        """Return the nodes that have to be read before these chunks (ascending) can be."""
        if not self.pending or not len(chunk_ids):
            return []
        first, last = (np.asarray([getattr(b, end) for b in self.pending]) for end in ("first", "last"))
        held = np.searchsorted(chunk_ids, last) > np.searchsorted(chunk_ids, first)
        return [b for b, is_held in zip(self.pending, held.tolist(), strict=True) if is_held]

    def add(self, at: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, masks: np.ndarray) -> None:
        """Take the places of chunks, by the position of the first element of each: int, shape (n, n_dims)."""
        inside = (at < np.asarray(self.grid.shape, np.uint64)).all(axis=1)  # a shrunk dataset may keep others
        coords = (at[inside] // np.asarray(self.grid.chunk, np.uint64)).astype(np.int64)
        ids = np.ravel_multi_index(tuple(coords.T), self.grid.chunks_per_axis) if inside.any() else np.empty(0, int)
        self.places[ids, 0], self.places[ids, 1] = offsets[inside], sizes[inside]
        for which in np.flatnonzero(masks[inside]).tolist():
            self.masks[int(ids[which])] = int(masks[inside][which])

    def take(self, branch: Branch, body: bytes, base: int, path: str) -> None:
        """Take a node that was read: of a leaf the places of its chunks, else its children.

        Parameters
        ----------
        branch
            One of `pending`.
        body
            The node's bytes.
        base
            The address that addresses in the file count from.
        path
            Of the dataset, for messages.

        Raises
        ------
        FormatError
            It is no node of such a tree.
        """
        level, entries = _entries(body, len(self.grid.shape), path)
        if branch.level not in {-1, level}:  # a circle would have no end
            raise _damaged(path)
        if level == 0:
            at = entries["at"][:, :-1]
            self.add(at, entries["child"] + np.uint64(base), entries["n_bytes"], entries["mask"])
            self.pending.remove(branch)
            return
        firsts = [branch.first, *(self._flat(at[:-1]) for at in entries["at"][1:])]
        children = [
            Branch(first, last, int(child) + base, branch.n_bytes, level - 1)
            for first, last, child in zip(firsts, [*firsts[1:], branch.last], entries["child"].tolist(), strict=True)
        ]
        if not all(branch.first <= c.first <= c.last <= branch.last for c in children):
            raise _damaged(path)  # the branch stays: what it tells of is not known, never taken for not written
        self.pending.remove(branch)
        self.pending = sorted([*self.pending, *children], key=lambda b: (b.first, b.last))

    def _flat(self, at: np.ndarray) -> int:
        """Return the number of the first chunk that does not lie before a position, in C order."""
        number, counts = 0, self.grid.chunks_per_axis
        for axis, (position, chunk) in enumerate(zip(at.tolist(), self.grid.chunk, strict=True)):
            if position // chunk >= counts[axis]:  # a shrunk dataset: it lies beyond the edge
                return min((number + 1) * math.prod(counts[axis:]), self.grid.n_chunks)
            number = number * counts[axis] + position // chunk
        return number


def _entries(body: bytes, n_dims: int, path: str) -> tuple[int, np.ndarray]:
    if len(body) < NODE_HEADER_BYTES or body[:4] != TREE or body[4] != 1:
        raise _damaged(path)
    level, n_entries = body[5], int.from_bytes(body[6:8], "little")
    kind = np.dtype([("n_bytes", "<u4"), ("mask", "<u4"), ("at", "<u8", (n_dims + 1,)), ("child", "<u8")])
    if NODE_HEADER_BYTES + n_entries * kind.itemsize > len(body):
        raise _damaged(path)
    return level, np.frombuffer(body, kind, n_entries, NODE_HEADER_BYTES)


def _damaged(path: str) -> FormatError:
    msg = f"the index of the chunks of {path!r} is damaged; restore the file from a copy."
    return FormatError(msg)


def heaps(references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which heaps hold texts, and about how much of each is needed.

    Parameters
    ----------
    references : ndarray of `REFERENCE`

    Returns
    -------
    addresses : ndarray of uint64, ascending
    n_bytes : ndarray of int64
        Never more than the heap has.
    """
    held = references[references["length"] > 0]
    addresses, which = np.unique(held["address"], return_inverse=True)
    padded = _OBJECT_HEADER_BYTES + (held["length"].astype(np.int64) + 7) // 8 * 8
    n_bytes = _HEAP_HEADER_BYTES + np.bincount(which, padded, len(addresses)).astype(np.int64)
    return addresses, np.maximum(n_bytes, HEAP_BYTES)


def heap_size(body: bytes | memoryview, path: str) -> int:
    """Return the whole size of a heap by its first bytes; arguments as of `texts`."""
    if len(body) < _HEAP_HEADER_BYTES or bytes(body[:4]) != b"GCOL":
        raise _damaged_text(path)
    return int.from_bytes(body[8:16], "little")


def texts(references: np.ndarray, bodies: Mapping[int, memoryview], path: str) -> np.ndarray:
    """Return the texts that references name.

    Parameters
    ----------
    references : ndarray of `REFERENCE`
        Of any shape.
    bodies
        Address to the bytes of a heap.
    path
        Of the dataset, for messages.

    Returns
    -------
    ndarray of object
        Of the same shape; empty where nothing was written.

    Raises
    ------
    ChunkDecodeError
        A heap is damaged, or holds no such text, or it is not UTF-8.
    """
    flat = references.ravel()
    found = np.full(flat.shape, "", object)
    held = np.flatnonzero(flat["length"])
    order = held[np.argsort(flat["address"][held], kind="stable")]
    edges = np.flatnonzero(np.diff(flat["address"][order])) + 1
    for part in np.split(order, edges) if len(order) else ():
        own = flat[part]
        body = bodies[int(own["address"][0])]
        starts = _starts(body, own, path)
        try:
            found[part] = [
                _text(body, start, n) for start, n in zip(starts.tolist(), own["length"].tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            msg = f"{path!r} holds a text that is not UTF-8: {error}."
            raise ChunkDecodeError(msg) from error
    return found.reshape(references.shape)


def _text(body: memoryview, start: int, n_bytes: int) -> str:
    return str(body[start : start + n_bytes], "utf-8").partition("\0")[0]


def _starts(body: memoryview, references: np.ndarray, path: str) -> np.ndarray:
    """Return where in a heap the text of each reference begins."""
    index, lengths = references["index"].astype(np.int64), references["length"].astype(np.int64)
    padded = _OBJECT_HEADER_BYTES + (lengths + 7) // 8 * 8
    starts = _HEAP_HEADER_BYTES + _OBJECT_HEADER_BYTES + np.cumsum(padded) - padded
    if not (np.array_equal(index, np.arange(1, len(index) + 1)) and _are_at(body, starts, index, lengths)):
        at = _walk(body, path)
        starts = np.asarray([at.get(i, -1) for i in index.tolist()], np.int64)
        if (starts < 0).any() or not _are_at(body, starts, index, lengths):
            raise _damaged_text(path)
    return starts


def _are_at(body: memoryview, starts: np.ndarray, index: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether objects of a heap, by number and size, begin at some places (multiples of 8)."""
    if (starts + lengths > len(body)).any():
        return False
    whole = body[: len(body) // 8 * 8]
    numbers = np.frombuffer(whole, "<u2")[(starts - _OBJECT_HEADER_BYTES) // 2]
    sizes = np.frombuffer(whole, "<u8")[(starts - 8) // 8]
    return bool(np.array_equal(numbers, index) and (sizes.astype(np.int64) >= lengths).all())


def _walk(body: memoryview, path: str) -> dict[int, int]:
    """Return where each object of a heap begins, by its number."""
    found: dict[int, int] = {}
    at, end = _HEAP_HEADER_BYTES, min(heap_size(body, path), len(body))
    while at + _OBJECT_HEADER_BYTES <= end:
        number, n_bytes = int.from_bytes(body[at : at + 2], "little"), int.from_bytes(body[at + 8 : at + 16], "little")
        if number == 0:  # what is left is free
            break
        found[number] = at + _OBJECT_HEADER_BYTES
        at += _OBJECT_HEADER_BYTES + (n_bytes + 7) // 8 * 8
    return found


def _damaged_text(path: str) -> ChunkDecodeError:
    msg = f"the text of {path!r} is damaged; restore the file from a copy."
    return ChunkDecodeError(msg)
