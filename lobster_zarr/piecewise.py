"""Reads a selection piece by piece, in its order: batches of cells, blocks of one matrix.

The next piece is read while one is used. Must not know who asks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.assemble import release
from lobster_zarr.blocks import Block
from lobster_zarr.scratch import ahead

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

    from lobster_zarr.reading import Reading


def batches(reading: Reading, n_rows: int, block_bytes: int) -> Iterator[ad.AnnData]:
    """Read so many rows at a time; as many batches as fit in `block_bytes` at once."""
    for block in ahead(map(partial(_rows, reading), *_pairs(reading, block_bytes, None, n_rows))):
        if 0 < block.n_obs <= n_rows:
            yield block
            continue
        for at in range(0, block.n_obs, n_rows):
            yield block[at : at + n_rows].copy()
        release(block)


def blocks(reading: Reading, path: str, block_bytes: int) -> Iterator[Block]:
    """Read one matrix, blocks of about `block_bytes` at a time."""
    yield from ahead(map(partial(_block, reading, path), *_pairs(reading, block_bytes, path, 1)))


def _pairs(reading: Reading, block_bytes: int, path: str | None, multiple: int) -> tuple[list[int], list[int]]:
    bounds = reading.run(reading.bounds(block_bytes, path, multiple))
    return bounds[:-1].tolist(), bounds[1:].tolist()


def _part(reading: Reading, start: int, stop: int) -> Reading:
    rows, columns = reading.run(reading.settled_axes())
    return reading.part(rows.pick(slice(start, stop), reading.reader.obs.n_rows), columns)


def _rows(reading: Reading, start: int, stop: int) -> ad.AnnData:
    part = _part(reading, start, stop)
    return part.run(part.read())


def _block(reading: Reading, path: str, start: int, stop: int) -> Block:
    part = _part(reading, start, stop)
    matrix = part.run(part.matrix(path))
    return Block(np.arange(start, stop), matrix.tocsr() if hasattr(matrix, "tocsr") else matrix)
