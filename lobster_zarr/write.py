"""Writes arrays, sparse matrices and staged elements into a commit.

The writing counterpart of :mod:`lobster_zarr.dense` and
:mod:`lobster_zarr.sparse`: values come in row order, chunk by chunk they are
encoded on all cores, and each finished shard goes to the store. Must not know
where the values come from.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from lobster_zarr.decode import decode_pool
from lobster_zarr.layout import (
    NOTED_CHUNKS,
    CodecProfile,
    dense_grid,
    new_array,
    sparse_grid,
)
from lobster_zarr.node import FIRST, INDEX
from lobster_zarr.noted import CHUNK_SIZES, pack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from lobster_zarr.commit import Target
    from lobster_zarr.node import ArrayNode

BATCH_BYTES = 1 << 20
PENDING_BYTES = 32 << 20
"""Decoded bytes that one array may have waiting for the codecs: enough to keep all cores
busy while the caller regroups its next block."""


@dataclass(frozen=True, eq=False)
class WrittenShard:
    """What is to be known of a shard that another process has written.

    Parameters
    ----------
    n_bytes
        Its size.
    chunk_sizes : ndarray of uint32
        Encoded bytes of its chunks.
    payload
        The shard itself, where it is the only one and small enough to be noted.
    """

    n_bytes: int
    chunk_sizes: np.ndarray
    payload: bytes | None


class ArrayWriter:
    """Writes one array from blocks of rows that come in order.

    Chunks are encoded in the codec pool while the caller produces the next
    block; memory is the encoded shard under construction and a few batches.

    Parameters
    ----------
    commit
        The store under construction.
    node
        The array; its shards span all columns.
    """

    def __init__(self, commit: Target, node: ArrayNode) -> None:
        self.commit, self.node = commit, node
        self.chunk_sizes: list[int] = []
        self.stored_bytes = 0
        self._rows_done = 0
        self._tail: list[np.ndarray] = []
        self._tail_rows = 0
        self._next_chunk = 0
        self._shard: dict[int, bytes] = {}
        self._pending: deque[Future[list[bytes]]] = deque()
        chunk_bytes = math.prod(node.grid.chunk) * max(node.dtype.itemsize, 1)
        self._batch = max(1, BATCH_BYTES // chunk_bytes)
        commit.array(node)

    def append(self, rows: np.ndarray) -> None:
        """Add the next rows, any number of them."""
        if self.node.shape and not len(rows):
            return
        self._tail.append(rows)
        self._tail_rows += len(rows)
        if self._tail_rows >= self._batch * self.node.grid.chunk[0]:
            self._cut(self._tail_rows - self._tail_rows % self.node.grid.chunk[0])

    def adopt(self, shard: WrittenShard) -> None:
        """Count the next shard, which another process has written: instead of `append`."""
        self.chunk_sizes += shard.chunk_sizes.tolist()
        self.stored_bytes += shard.n_bytes
        self.commit.adopt(shard.n_bytes)
        if shard.payload is not None:
            self.commit.note_object(self.node.path, shard.payload)

    def close(self) -> None:
        """Write what is left."""
        if not self.node.shape:
            self._submit([np.asarray(self._tail[0])])
        elif self._tail_rows and self.node.grid.n_chunks:
            self._cut(self._tail_rows)
        while self._pending:
            self._collect()
        if self.node.sharding is not None and self.node.grid.n_chunks <= NOTED_CHUNKS:
            self.commit.note(self.node.path, {CHUNK_SIZES: pack(np.asarray(self.chunk_sizes, np.uint32))})

    def _cut(self, n_rows: int) -> None:
        block = self._tail[0] if len(self._tail) == 1 else np.concatenate(self._tail)
        self._tail, self._tail_rows = [block[n_rows:]], len(block) - n_rows
        grid, chunks = self.node.grid, []
        per_band = math.prod(grid.chunks_per_axis[1:])
        for at in range(0, n_rows, grid.chunk[0]):
            band = block[at : min(at + grid.chunk[0], n_rows)]
            for i in range(per_band):
                columns = grid.chunk_slices(i)[1:]
                chunks.append(band[:, *columns] if columns else band)
                if len(chunks) == self._batch:
                    self._submit(chunks)
                    chunks = []
        if chunks:
            self._submit(chunks)

    def _submit(self, chunks: list[np.ndarray]) -> None:
        while len(self._pending) >= PENDING_BYTES // BATCH_BYTES:
            self._collect()
        self._pending.append(decode_pool().submit(lambda: [self.node.encode(c) for c in chunks]))

    def _collect(self) -> None:
        encoded = self._pending.popleft().result()
        ids = np.arange(self._next_chunk, self._next_chunk + len(encoded))
        shard_ids, slots = self.node.grid.locate(ids)
        self._next_chunk += len(encoded)
        for shard_id, slot, chunk in zip(shard_ids.tolist(), slots.tolist(), encoded, strict=True):
            self.chunk_sizes.append(len(chunk))
            if self.node.sharding is None:
                self._put(shard_id, chunk)
                continue
            self._shard[slot] = chunk
            if len(self._shard) == self.node.grid.chunks_in(shard_id):
                self._put(shard_id, self.node.build_shard(self._shard))
                self._shard = {}

    def _put(self, shard_id: int, payload: bytes) -> None:
        self.stored_bytes += len(payload)
        if self.node.has_one_object:
            self.commit.note_object(self.node.path, payload)
        self.commit.put(self.node.key(shard_id), payload)


def write_array(
    commit: Target,
    path: str,
    values: np.ndarray,
    *,
    profile: CodecProfile,
    attributes: Mapping[str, Any] | None = None,
    zdtype: Any = None,
    fill_value: object = None,
) -> int:
    """Write a whole array that is in memory. Returns its encoded bytes."""
    node = new_array(
        path,
        values.shape,
        values.dtype,
        grid=dense_grid(values.shape),
        profile=profile,
        attributes=attributes,
        zdtype=zdtype,
        fill_value=fill_value,
    )
    writer = ArrayWriter(commit, node)
    writer.append(values) if values.shape else writer._tail.append(values)  # noqa: SLF001
    writer.close()
    return writer.stored_bytes


class SparseWriter:
    """Writes a compressed sparse matrix from blocks of major slices in order.

    Parameters
    ----------
    commit
        The store under construction.
    path
        Of the group.
    shape
        Rows and columns of the matrix.
    row_major
        Whether ``indptr`` runs over the rows (``csr_matrix``) or the columns.
    nnz
        Stored values in all.
    dtype, index_dtype
        Of the values, and of ``indices`` and ``indptr``.
    chunk
        Values in a chunk.
    profile
        Codec profile.
    """

    def __init__(  # noqa: PLR0913 - the parts of one matrix
        self,
        commit: Target,
        path: str,
        shape: tuple[int, int],
        *,
        row_major: bool,
        nnz: int,
        dtype: np.dtype[Any],
        index_dtype: np.dtype[Any],
        chunk: int,
        profile: CodecProfile,
    ) -> None:
        self.commit, self.path, self.profile = commit, path, profile
        self.nnz, self.dtype, self.index_dtype = nnz, dtype, index_dtype
        attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
        self.grid = sparse_grid(nnz, chunk)

        def writer(name: str, kind: np.dtype[Any]) -> ArrayWriter:
            node = new_array(f"{path}/{name}", (nnz,), kind, grid=self.grid, profile=profile, attributes=attributes)
            return ArrayWriter(commit, node)

        encoding = "csr_matrix" if row_major else "csc_matrix"
        commit.group(path, {"encoding-type": encoding, "encoding-version": "0.1.0", "shape": list(shape)})
        self._values, self._indices = writer("data", dtype), writer("indices", index_dtype)
        self._lengths: list[np.ndarray] = []
        self._chunk, self._done, self._first = chunk, 0, [] if row_major else [np.empty(0, np.uint32)]

    def append(self, lengths: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
        """Add the next major slices: their lengths, and their indices and values one after another."""
        self._lengths.append(lengths.astype(np.int64))
        if self._first:
            self._first.append(indices[-self._done % self._chunk :: self._chunk].astype(np.uint32))
        self._done += len(indices)
        self._indices.append(indices.astype(self.index_dtype, copy=False))
        self._values.append(values)

    def adopt(self, values: WrittenShard, indices: WrittenShard, first: np.ndarray) -> None:
        """Count the next shard of both arrays, and the first index of each of its chunks."""
        self._values.adopt(values)
        self._indices.adopt(indices)
        if self._first:
            self._first.append(first)

    def close(self, tail: np.ndarray | None = None) -> dict[str, int]:
        """Write what is left, and `tail` at the end of ``INDEX``. Returns the encoded bytes by array path."""
        self._values.close()
        self._indices.close()
        lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, np.int64)
        indptr = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        indptr_dtype = self.index_dtype if self.nnz <= np.iinfo(self.index_dtype).max else np.dtype(np.int64)
        attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
        sizes = {
            f"{self.path}/data": self._values.stored_bytes,
            f"{self.path}/indices": self._indices.stored_bytes,
            f"{self.path}/indptr": write_array(
                self.commit,
                f"{self.path}/indptr",
                indptr.astype(indptr_dtype),
                profile=self.profile,
                attributes=attributes,
            ),
        }
        if len(self._values.chunk_sizes) > NOTED_CHUNKS:
            parts = [lengths, self._values.chunk_sizes, self._indices.chunk_sizes, *([] if tail is None else [tail])]
            ours = {INDEX: np.concatenate(parts).astype(np.uint32)}
            if self._first:
                ours[FIRST] = np.concatenate(self._first)
            for name, values in ours.items():
                path = f"{self.path}/{name}"
                sizes[path] = write_array(self.commit, path, values, profile=self.profile)
        return sizes


def write_staged(
    commit: Target, path: str, staged: zarr.Group | zarr.Array[Any], profile: CodecProfile
) -> dict[str, int]:
    """Write an element that AnnData encoded in memory, with our chunks and codecs.

    Parameters
    ----------
    commit
        The store under construction.
    path
        Where the element goes.
    staged
        What ``anndata.io.write_elem`` made of it in a memory store.
    profile
        Codec profile.

    Returns
    -------
    dict
        Encoded bytes by array path.
    """
    if isinstance(staged, zarr.Group):
        commit.group(path, staged.attrs.asdict())
        sizes: dict[str, int] = {}
        for name, member in sorted(staged.members(), key=itemgetter(0)):  # a memory store has no order of its own
            sizes |= write_staged(commit, f"{path}/{name}", member, profile)
        return sizes
    size = write_array(
        commit,
        path,
        np.asarray(staged[...]),
        profile=profile,
        attributes=staged.attrs.asdict(),
        zdtype=getattr(staged.metadata, "data_type", None),
        fill_value=staged.metadata.fill_value,
    )
    return {path: size}
