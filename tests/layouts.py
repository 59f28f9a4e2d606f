"""Stores of a few cells that are laid out like stores of millions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from lobster_zarr import commit, layout, matrices, write

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def tiny_chunks(
    *, chunk: int = 16, shard_chunks: int = 8, noted_chunks: int = 512, noted_bytes: int = 0
) -> Iterator[None]:
    """Convert, inside, with chunks of a few values, and no copies of objects in the metadata unless allowed."""
    with (
        patch.object(commit, "NOTED_OBJECTS", noted_bytes),
        patch.object(write, "NOTED_CHUNKS", noted_chunks),
        patch.object(layout, "COLUMN_CHUNK", chunk),
        patch.object(layout, "COLUMN_SHARD", shard_chunks // 2 * chunk),
        patch.object(layout, "SPARSE_SHARD", shard_chunks * chunk),
        patch.object(layout, "DENSE_CHUNK", chunk),
        patch.object(layout, "DENSE_CHUNK_ROWS", 4),
        patch.object(layout, "DENSE_SHARD", shard_chunks * chunk),
        patch.object(matrices, "ROW_MAJOR_CHUNK", chunk),
        patch.object(matrices, "gene_major_chunk", lambda _: chunk),
    ):
        yield
