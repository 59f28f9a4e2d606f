"""Cuts the rows of a selection into blocks of bounded size.

Knows how much memory the rows of a matrix take, and where shards end. Must
not know what is done with a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lobster_zarr.element import StoreReader
    from lobster_zarr.projection import Axis

BLOCK_BYTES = 64 << 20
"""Decoded bytes of a block, of its heaviest matrix; what fits in two is not cut. scanpy's steps hold several copies
of a block for each core."""


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one matrix of a selection.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Their positions in the selection: those of its :meth:`~lobster_zarr.Selection.to_pandas`.
    matrix : csr_matrix, or ndarray where it is stored dense, shape (n, n_vars)
        Their values.
    """

    rows: np.ndarray
    matrix: Any


@dataclass(frozen=True)
class Weights:
    """Decoded bytes of the rows of a matrix, in the order of a selection.

    Parameters
    ----------
    row_bytes : ndarray of int64, shape (n_rows,)
        Of each row.
    shard_bytes
        Of what one stored object decodes to; 0 where rows do not follow objects.
    phase_bytes
        Of what lies before the first row in its object.
    """

    row_bytes: np.ndarray
    shard_bytes: int = 0
    phase_bytes: int = 0

    def bounds(self, target_bytes: int) -> np.ndarray:
        """Cut the rows into blocks of about `target_bytes`, at the ends of objects where blocks follow them.

        What fits in two is one block.

        Returns
        -------
        ndarray of int64
            Bounds of the blocks, from 0 to the number of rows; of no rows, one empty block.
        """
        ends = np.cumsum(self.row_bytes) + self.phase_bytes
        if not len(ends) or ends[-1] - self.phase_bytes <= 2 * target_bytes:
            return np.asarray([0, len(ends)])
        step = max(target_bytes, 1)
        if self.shard_bytes:  # equal parts of an object, or whole objects
            whole = step // self.shard_bytes * self.shard_bytes
            step = whole or self.shard_bytes // math.ceil(self.shard_bytes / step)
        cuts = np.searchsorted(ends, np.arange(1, ends[-1] // step + 1) * step, side="left") + 1
        cuts = cuts[(cuts < len(ends)) & (ends[np.minimum(cuts, len(ends)) - 1] - self.phase_bytes > step // 4)]
        return np.unique(np.concatenate(([0], cuts, [len(ends)])))


async def weigh(reader: StoreReader, path: str, rows: Axis, share: float) -> Weights:
    """Weigh the rows of a matrix. Reads its offsets, where it is sparse.

    Parameters
    ----------
    reader
        Of the store.
    path
        Of the matrix.
    rows
        Settled rows of the selection.
    share
        About which share of a row's values is wanted.
    """
    n_rows = rows.count(reader.obs.n_rows)
    if not reader.is_sparse(path):
        node = reader.dense(path)
        width = math.prod(node.shape[1:]) * max(node.dtype.itemsize, 1)
        return Weights(np.full(n_rows, max(int(width * share), 1)))
    matrix = reader.sparse(path)
    value_bytes = (matrix.values.dtype.itemsize + matrix.indices.dtype.itemsize) * share
    if not matrix.row_major:
        return Weights(np.full(n_rows, max(int(matrix.nnz * value_bytes / max(matrix.shape[0], 1)), 1)))
    indptr = await matrix.indptr()
    stored = rows.stored(reader.obs.n_rows)
    row_bytes = np.ceil((indptr[stored + 1] - indptr[stored]) * value_bytes).astype(np.int64)
    contiguous = len(stored) and rows.take is None and (rows.runs is None or len(rows.runs.starts) == 1)
    if not contiguous or share != 1:
        return Weights(row_bytes)
    shard, first = matrix.values.grid.shard[0], int(indptr[stored[0]])
    return Weights(row_bytes, int(shard * value_bytes), int(first % shard * value_bytes))
