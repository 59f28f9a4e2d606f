"""Writes the sparse matrices of a conversion on a cluster: which task does which part.

A matrix is cut along its values, at the bounds of chunks and shards, so that the
objects are those that one process would write. Where rows are not written as they
lie in the source, a first stage regroups them through scratch objects; its blocks
are spans of the source. The gene-major companion is regrouped by the tasks that
write the rows. Must not know what a task does, nor dask.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.grid import cdiv
from lobster_zarr.matrices import MatrixConversion
from lobster_zarr.pieces import Pieces
from lobster_zarr.scratch import balanced_bounds
from lobster_zarr.tasks import Matrix, Part, SparseShard, encode_part, split_rows, write_shard

if TYPE_CHECKING:
    from distributed import Future

    from lobster_zarr.cluster import Crew
    from lobster_zarr.stream import SparseStream
    from lobster_zarr.write import SparseWriter


@dataclass(frozen=True, eq=False)
class ClusterMatrices(MatrixConversion):
    """How the matrices of one conversion are written, the sparse ones by a crew.

    Parameters
    ----------
    crew
        Runs the tasks.
    """

    crew: Crew

    def _write_sparse(self, path: str, stream: SparseStream) -> dict[str, int]:
        if not self.crew.pays_for(stream.nnz):
            return super()._write_sparse(path, stream)
        self._announce()
        return _Partition(self, path, stream, min(self.crew.share(stream.nnz), self.block_values)).write()

    def _announce(self) -> None:
        """Write, once, what all tasks need: the order of the rows."""
        if not self.crew.is_announced:
            place = b"" if self.place is None else self.place.astype("<i8").tobytes()
            self.commit.put_scratch(self.crew.job.place_key, place)
            self.crew.is_announced = True


@dataclass(frozen=True, eq=False)
class _Partition:
    """The tasks of one matrix; each has about `part_values` values."""

    whole: ClusterMatrices
    path: str
    stream: SparseStream
    part_values: int

    def write(self) -> dict[str, int]:
        """Write the matrix and its companion. Returns the encoded bytes by array path."""
        whole, stream = self.whole, self.stream
        writer = whole.rows_writer(self.path, stream)
        matrix = self._matrix(writer, row_major=True)
        lengths, regrouped, genes = np.diff(stream.indptr), None, None
        if whole.place is not None or not stream.row_major:
            regrouped, counted = self._regroup(matrix)
            lengths = lengths[whole.order] if stream.row_major else counted
        if self.path in whole.companions:
            genes = self._pieces(matrix, "genes", len(self._parts(matrix, lengths)), stream.shape[1])
        per_gene = self._write_shards(writer, matrix, lengths, regrouped, genes)
        sizes = writer.close()
        if genes is not None:
            writer = whole.genes_writer(self.path, stream)
            self._write_shards(writer, self._matrix(writer, row_major=False), per_gene, genes, None)
            sizes |= writer.close(tail=whole.order)
        return sizes

    def _matrix(self, writer: SparseWriter, *, row_major: bool) -> Matrix:
        dtypes = writer.dtype.str, writer.index_dtype.str
        shape, profile = self.stream.shape, self.whole.codec
        return Matrix(writer.path, self.path, shape, row_major, writer.grid, *dtypes, profile)

    def _pieces(self, matrix: Matrix, name: str, n_objects: int, n_major: int) -> Pieces:
        n_parts = cdiv(self.stream.nnz, self.part_values)
        prefix = f"{self.whole.crew.job.scratch}/{matrix.path}/{name}"
        pieces = Pieces.of(prefix, n_objects, n_major, n_parts, self.part_values, (matrix.index_dtype, matrix.dtype))
        self.whole.commit.expect_scratch(pieces.keys)
        return pieces

    def _regroup(self, matrix: Matrix) -> tuple[Pieces, np.ndarray]:
        """Write the source as pieces of stored rows. Returns with them, of a source by columns, the rows' lengths."""
        weights, n_rows = np.diff(self.stream.indptr), self.stream.shape[0]
        bounds = balanced_bounds(weights, self.part_values).tolist()
        spans = list(pairwise(bounds))
        pieces = self._pieces(matrix, "rows", len(spans), n_rows)
        futures = [
            self.whole.crew.submit(split_rows, matrix, pieces, i, span, priority=-i) for i, span in enumerate(spans)
        ]
        lengths = np.zeros(n_rows, np.int64)
        with self.whole.progress.phase(f"{self.path}: regrouping rows", self.stream.nnz) as advance:
            for number, counted in self.whole.crew.results(futures):
                if len(counted):
                    lengths += counted
                first, last = spans[number]
                advance(int(self.stream.indptr[last] - self.stream.indptr[first]))
        return pieces, lengths

    def _parts(self, matrix: Matrix, lengths: np.ndarray) -> list[tuple[int, Part]]:
        """Cut the values at the bounds of shards, and within them at those of chunks; each with its shard."""
        indptr = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        n, chunk, shard = matrix.grid.shape[0], matrix.grid.chunk[0], matrix.grid.shard[0]
        step = cdiv(self.part_values, chunk) * chunk
        parts = []
        for begin in range(0, n, shard):
            end = min(begin + shard, n)
            for start in range(begin, end, step):
                stop = min(start + step, end)
                first = int(np.searchsorted(indptr, start, "right")) - 1
                last = int(np.searchsorted(indptr, stop, "left"))
                parts.append((begin // shard, Part(start, stop, first, last, start - int(indptr[first]))))
        return parts

    def _write_shards(
        self,
        writer: SparseWriter,
        matrix: Matrix,
        lengths: np.ndarray,
        regrouped: Pieces | None,
        genes: Pieces | None,
    ) -> np.ndarray:
        """Write all shards of both arrays. Returns the values of each gene, where there are pieces of genes."""
        whole, crew = self.whole, self.whole.crew
        for name in ("data", "indices"):
            whole.commit.expect(matrix.array(name).object_keys())
        encoding: list[list[Future[Any]]] = [[] for _ in matrix.array("data").object_keys()]
        for number, (shard, part) in enumerate(self._parts(matrix, lengths)):
            arguments = (matrix, part, regrouped, genes, number)
            encoding[shard].append(crew.submit(encode_part, *arguments, priority=-shard))
        # A shard is put together before the parts of the next are encoded, so that few of them wait in memory.
        writing = [crew.submit(write_shard, matrix, i, parts, priority=1 - i) for i, parts in enumerate(encoding)]
        for parts in encoding:
            crew.let_go(parts)
        encoding.clear()
        done: list[SparseShard | None] = [None] * len(writing)
        with whole.progress.phase(matrix.path, self.stream.nnz) as advance:
            for number, written in crew.results(writing):
                done[number] = written
                advance(min(matrix.grid.shard[0], self.stream.nnz - number * matrix.grid.shard[0]))
        shards = [written for written in done if written is not None]
        for written in shards:
            writer.adopt(written.values, written.indices, written.first)
        writer.append(lengths, np.empty(0, writer.index_dtype), np.empty(0, writer.dtype))
        if regrouped is not None:
            whole.commit.drop_scratch(regrouped.keys)
        return np.sum([written.genes for written in shards], axis=0)
