"""Writes the matrices of a conversion: rows regrouped, companions made, out of core.

Takes matrices as streams and gives them to the writers in storage order, one
block at a time. Must not know where the streams come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.layout import (
    COMPANION,
    ROW_MAJOR_CHUNK,
    CodecProfile,
    dense_grid,
    gene_major_chunk,
    new_array,
)
from lobster_zarr.scratch import Exchange, Scratch, Slices, ahead, balanced_bounds
from lobster_zarr.stream import DenseStream, SparseStream, Stream
from lobster_zarr.write import ArrayWriter, SparseWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.commit import Target
    from lobster_zarr.report import Progress

ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


@dataclass(frozen=True, eq=False)
class MatrixConversion:
    """How the matrices of one conversion are written.

    Parameters
    ----------
    commit
        The store under construction.
    scratch
        Where pieces wait that do not fit in memory.
    progress
        Shows each matrix.
    codec
        Codec profile.
    block_values
        Values of a block in memory.
    order : ndarray of int64 or None
        Source row of each stored row, where rows are sorted.
    companions
        Paths of the sparse matrices that are stored by gene too.
    """

    commit: Target
    scratch: Scratch
    progress: Progress
    codec: CodecProfile
    block_values: int
    order: np.ndarray | None
    companions: tuple[str, ...]

    def write(self, path: str, stream: Stream) -> dict[str, int]:
        """Write one matrix. Returns the encoded bytes by array path."""
        if isinstance(stream, DenseStream):
            return self._write_dense(path, stream)
        return self._write_sparse(path, stream)

    @cached_property
    def place(self) -> np.ndarray | None:
        """The stored row of each source row."""
        if self.order is None:
            return None
        place = np.empty(len(self.order), np.int64)
        place[self.order] = np.arange(len(self.order))
        return place

    def _write_dense(self, path: str, stream: DenseStream) -> dict[str, int]:
        grid = dense_grid(stream.shape)
        node = new_array(path, stream.shape, stream.dtype, grid=grid, profile=self.codec, attributes=ARRAY)
        writer = ArrayWriter(self.commit, node)
        square = path.startswith("obsp/") and self.order is not None
        with self.progress.phase(path, math.prod(stream.shape)) as advance:
            for rows in self._dense_rows(path, stream):
                writer.append(rows[:, self.order] if square else rows)
                advance(rows.size)
        writer.close()
        return {path: writer.stored_bytes}

    def _dense_rows(self, path: str, stream: DenseStream) -> Iterator[np.ndarray]:
        """Blocks of rows in storage order; a sorted matrix passes through a scratch file."""
        if self.place is None:
            yield from (rows for _, rows in stream.blocks(self.block_values))
            return
        width = max(math.prod(stream.shape[1:]), 1)
        row_bytes = width * stream.dtype.itemsize
        with self.scratch.file(path.replace("/", "-")) as file:
            for at, rows in stream.blocks(self.block_values):
                for target, row in zip(self.place[at : at + len(rows)].tolist(), rows, strict=True):
                    file.write(np.ascontiguousarray(row).tobytes(), target * row_bytes)
            n_rows, step = stream.shape[0], max(self.block_values // width, 1)
            for at in range(0, n_rows, step):
                count = min(step, n_rows - at)
                raw = file.read(count * row_bytes, at * row_bytes)
                yield np.frombuffer(raw, stream.dtype, math.prod((count, *stream.shape[1:]))).reshape(
                    count, *stream.shape[1:]
                )

    def _write_sparse(self, path: str, stream: SparseStream) -> dict[str, int]:
        rows = self.rows_writer(path, stream)
        transposition = _Transposition(self, stream) if path in self.companions else None
        with self.progress.phase(path, stream.nnz) as advance:
            for block in self._sparse_rows(path, stream, rows.index_dtype):
                rows.append(block.lengths, block.indices, block.values)
                if transposition is not None:
                    transposition.put(block)
                advance(len(block.values))
        sizes = rows.close()
        if transposition is not None:
            genes = self.genes_writer(path, stream)
            with self.progress.phase(f"{path}/{COMPANION}", stream.nnz) as advance:
                for block in transposition.take():
                    genes.append(block.lengths, block.indices, block.values)
                    advance(len(block.values))
            sizes |= genes.close(tail=self.order)
        return sizes

    def rows_writer(self, path: str, stream: SparseStream) -> SparseWriter:
        """Begin to write a matrix by rows."""
        return self._sparse_writer(path, stream, row_major=True, chunk=ROW_MAJOR_CHUNK)

    def genes_writer(self, path: str, stream: SparseStream) -> SparseWriter:
        """Begin to write the companion of a matrix."""
        return self._sparse_writer(f"{path}/{COMPANION}", stream, row_major=False, chunk=gene_major_chunk(stream.nnz))

    def _sparse_writer(self, path: str, stream: SparseStream, *, row_major: bool, chunk: int) -> SparseWriter:
        index_dtype = np.dtype(stream.indices.dtype)
        if index_dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
            index_dtype = np.dtype(np.int32 if max(stream.shape) < np.iinfo(np.int32).max else np.int64)
        return SparseWriter(
            self.commit,
            path,
            shape=stream.shape,
            row_major=row_major,
            nnz=stream.nnz,
            dtype=np.dtype(stream.values.dtype).newbyteorder("="),
            index_dtype=index_dtype,
            chunk=chunk,
            profile=self.codec,
        )

    def _sparse_rows(self, path: str, stream: SparseStream, index_dtype: np.dtype[Any]) -> Iterator[Slices]:
        """Blocks of rows in storage order."""
        if stream.row_major and stream.is_in_memory and self.order is not None:
            yield from self._taken_rows(path, stream, self.order, index_dtype)
            return
        blocks = (
            (at, Slices(lengths, indices.astype(index_dtype, copy=False), values))
            for at, lengths, indices, values in ahead(stream.blocks(self.block_values))
        )
        if stream.row_major and self.order is None:
            yield from (block for _, block in blocks)
            return
        lengths = np.diff(stream.indptr) if stream.row_major else _count_rows(stream, self.block_values)
        stored_lengths = lengths if self.order is None else lengths[self.order]
        bounds = balanced_bounds(stored_lengths, self.block_values)
        exchange = Exchange(self.scratch, "rows", bounds, 2 * self.block_values)
        with self.progress.phase(f"{path}: regrouping rows", stream.nnz) as advance:
            for at, block in blocks:
                exchange.put(*stored_rows(stream, at, block, self.place))
                advance(len(block.values))
        place = self.place if path.startswith("obsp/") else None
        for rows in ahead(exchange.take()):
            yield rows if place is None else renamed(rows, place)

    def _taken_rows(
        self, path: str, stream: SparseStream, order: np.ndarray, index_dtype: np.dtype[Any]
    ) -> Iterator[Slices]:
        """Take rows in storage order from memory: nothing is regrouped before the first is written."""
        bounds = balanced_bounds(np.diff(stream.indptr)[order], self.block_values).tolist()
        place = self.place if path.startswith("obsp/") else None
        for lengths, indices, values in ahead(stream.take(order[lo:hi]) for lo, hi in pairwise(bounds)):
            rows = Slices(lengths, indices.astype(index_dtype, copy=False), values)
            yield rows if place is None else renamed(rows, place)


def stored_rows(stream: SparseStream, at: int, block: Slices, place: np.ndarray | None) -> tuple[np.ndarray, Slices]:
    """Take a block of a matrix as rows in storage order.

    Parameters
    ----------
    stream
        The matrix.
    at
        The first row of the block, or the first column where the matrix is stored by columns.
    block
        Its slices.
    place : ndarray of int64, shape (n_rows,), or None
        The stored row of each source row, where they differ.

    Returns
    -------
    tuple
        Stored rows, ascending, and a slice for each.
    """
    if stream.row_major:
        rows, part = np.arange(at, at + len(block.lengths)), block
    else:
        turned = block.transpose(stream.shape[0], at)
        rows = np.flatnonzero(turned.lengths)
        part = Slices(turned.lengths[rows], turned.indices, turned.values)
    if place is None:
        return rows, part
    targets = place[rows]
    ascending = np.argsort(targets)
    return targets[ascending], part.reorder(ascending)


def renamed(rows: Slices, place: np.ndarray) -> Slices:
    """Take whole rows of a square matrix, its columns renamed as its rows are and in order."""
    columns = place[rows.indices].astype(rows.indices.dtype)
    return Slices(rows.lengths, columns, rows.values).sort_indices()


class _Transposition:
    """Turns the rows of one matrix, block by block, to genes."""

    def __init__(self, conversion: MatrixConversion, stream: SparseStream) -> None:
        self.scratch, self.block_values = conversion.scratch, conversion.block_values
        self.n_genes, self.nnz, self.at = stream.shape[1], stream.nnz, 0
        self.exchange: Exchange | None = None

    def put(self, rows: Slices) -> None:
        """Add the next rows."""
        turned = rows.transpose(self.n_genes, self.at)
        if self.exchange is None:
            # The genes of the first rows tell how to cut: later rows may differ, take() copes.
            share = turned.lengths / max(turned.lengths.sum(), 1) + 1 / max(self.n_genes, 1)
            weights = np.ceil(share / 2 * self.nnz).astype(np.int64)
            bounds = balanced_bounds(weights, self.block_values)
            self.exchange = Exchange(self.scratch, "genes", bounds, 2 * self.block_values)
        self.exchange.put(np.arange(self.n_genes), turned)
        self.at += len(rows.lengths)

    def take(self) -> Iterator[Slices]:
        """Give the genes back in order."""
        if self.exchange is None:
            yield Slices(np.zeros(self.n_genes, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        else:
            yield from ahead(self.exchange.take())


def _count_rows(stream: SparseStream, block_values: int) -> np.ndarray:
    counts = np.zeros(stream.shape[0], np.int64)
    for at in range(0, stream.nnz, block_values):
        counts += np.bincount(stream.minors(at, min(at + block_values, stream.nnz)), minlength=len(counts))
    return counts
