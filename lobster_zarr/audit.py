"""Checks what a store notes of itself against what it holds: sizes, zones, offsets, copies of small objects.

A note that is wrong would lead a query to the wrong bytes, or past rows that
match. Must not compare with a source: that is :mod:`lobster_zarr.verify`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.layout import DESCENTS, SOURCE_ORDER, VALUES_OF
from lobster_zarr.node import INDEX
from lobster_zarr.noted import CHUNK_SIZES, OBJECT
from lobster_zarr.store import run
from lobster_zarr.zones import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.node import ArrayNode
    from lobster_zarr.table import TableReader


def differences(noted: Dataset, bare: Dataset) -> Iterator[str]:
    """Name, one by one, the notes that differ from what the store holds.

    Parameters
    ----------
    noted
        The store as it is.
    bare
        The same store, read without its notes.
    """
    for path in noted.tree.arrays_below(""):
        node = noted.tree.array(path)
        if OBJECT in node.note.entries and node.note.object() != _object(bare, node):
            yield f"the copy of {node.key(0)!r} in the metadata"
        if CHUNK_SIZES in node.note.entries and not np.array_equal(np.asarray(node.chunk_sizes), _sizes(bare, node)):
            yield f"the chunk sizes in the metadata of {path!r}"
        if path.endswith(f"/{INDEX}") and not np.array_equal(run(read_array(bare.fetcher, node)), _index(bare, path)):
            yield repr(path)
    for frame in (bare.obs, bare.var):
        yield from _frame(noted, frame)
    if bare.reader.is_sorted:
        descents = noted.tree.array(f"obs/{SOURCE_ORDER}").note.entries.get(DESCENTS)
        if descents not in (None, (np.flatnonzero(np.diff(run(bare.reader.source_order())) < 0) + 1).tolist()):
            yield f"the descents in the metadata of 'obs/{SOURCE_ORDER}'"


def _object(bare: Dataset, node: ArrayNode) -> bytes:
    return bytes(run(bare.fetcher.get(node.path, node.key(0))) or b"")


def _sizes(bare: Dataset, node: ArrayNode) -> np.ndarray:
    """Encoded bytes of each chunk by the shard indexes; zeros where chunks do not lie one after another."""
    grid = node.grid
    shard_ids, slots = grid.locate(np.arange(grid.n_chunks))
    sizes = np.zeros(grid.n_chunks, np.uint64)
    for shard in np.unique(shard_ids).tolist():
        own = np.flatnonzero(shard_ids == shard)
        offsets, found = run(bare.fetcher.index(node, shard))[slots[own]].T
        if np.array_equal(offsets, np.cumsum(found) - found):
            sizes[own] = found
    return sizes


def _index(bare: Dataset, path: str) -> np.ndarray:
    """What an ``INDEX`` should hold."""
    parent = path.rpartition("/")[0]
    indptr = run(bare.reader.sparse(parent).indptr())
    parts = [np.diff(indptr), *(_sizes(bare, bare.tree.array(f"{parent}/{n}")) for n in ("data", "indices"))]
    if bare.reader.is_sorted and not bare.reader.sparse(parent).row_major:
        parts.append(run(bare.reader.source_order()))
    return np.concatenate(parts)


def _frame(noted: Dataset, frame: TableReader) -> Iterator[str]:
    for name in frame.frame_columns(None):
        path = f"{frame.path}/{name}"
        node = noted.tree.array(f"{path}{VALUES_OF.get(noted.tree.encoding(path), '')}")
        zones: dict[str, Any] = {k: v for k, v in node.note.entries.items() if k not in (CHUNK_SIZES, OBJECT)}
        if zones and zones != measure(run(frame.column(name)), node.grid.chunk[0]):
            yield f"what the metadata of {node.path!r} says of its chunks"
