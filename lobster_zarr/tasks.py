"""The tasks of a job on a cluster: what a worker does with a part of one matrix.

Each is a function of small arguments that reads its part, and writes objects or
gives encoded chunks to the task that puts a shard together. Done twice, it writes
the same once more: a lost worker costs its tasks, nothing else. Must not know
dask, nor which parts there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.errors import FormatError
from lobster_zarr.layout import NOTED_OBJECT, CodecProfile, new_array
from lobster_zarr.matrices import renamed, stored_rows
from lobster_zarr.scratch import Slices
from lobster_zarr.stream import SparseStream, native
from lobster_zarr.traffic import Stats, observed
from lobster_zarr.workplace import Job, Workplace, at_work
from lobster_zarr.write import WrittenShard

if TYPE_CHECKING:
    from collections.abc import Callable

    from lobster_zarr.grid import Grid
    from lobster_zarr.node import ArrayNode
    from lobster_zarr.pieces import Pieces


@dataclass(frozen=True)
class Matrix:
    """A sparse matrix that is written.

    Parameters
    ----------
    path, source
        Of its group in the store, and of what it is made of in the source.
    shape
        Rows and columns.
    row_major
        How it is written.
    grid
        Of its values, and of its indices.
    dtype, index_dtype
        Of values and indices.
    profile
        Codec profile.
    """

    path: str
    source: str
    shape: tuple[int, int]
    row_major: bool
    grid: Grid
    dtype: str
    index_dtype: str
    profile: CodecProfile

    @property
    def n_minor(self) -> int:
        """Length of the minor axis."""
        return self.shape[1 if self.row_major else 0]

    def array(self, name: str) -> ArrayNode:
        """Describe ``data`` or ``indices``."""
        dtype = np.dtype(self.dtype if name == "data" else self.index_dtype)
        return new_array(f"{self.path}/{name}", self.grid.shape, dtype, grid=self.grid, profile=self.profile)


@dataclass(frozen=True)
class Part:
    """A part of the values of a matrix, of whole chunks.

    Parameters
    ----------
    start, stop
        Which values.
    first_major, last_major
        The major slices [first_major, last_major) that hold them.
    skipped
        Values of the first of these that come before.
    """

    start: int
    stop: int
    first_major: int
    last_major: int
    skipped: int


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """The chunks of a part, encoded: values and indices, each as bytes and the size of each chunk."""

    values: tuple[bytes, np.ndarray]
    indices: tuple[bytes, np.ndarray]
    first: np.ndarray
    genes: np.ndarray


@dataclass(frozen=True, eq=False)
class SparseShard:
    """What the client is told of a shard of both arrays.

    Parameters
    ----------
    values, indices
        Of ``data`` and of ``indices``.
    first : ndarray of uint32
        The first index of each chunk.
    genes : ndarray of int64
        Values of each gene; empty where there is no companion.
    """

    values: WrittenShard
    indices: WrittenShard
    first: np.ndarray
    genes: np.ndarray


def split_rows(job: Job, matrix: Matrix, pieces: Pieces, number: int, span: tuple[int, int]) -> np.ndarray:
    """Read a span of major slices of the source, and write them as pieces of stored rows.

    Returns
    -------
    ndarray of uint32
        Values of each stored row; empty where the source is by rows: then they are known.
    """
    with at_work(job) as here:
        stream = _sparse(here, matrix)
        start, stop = (int(at) for at in stream.indptr[list(span)])
        block = Slices(np.diff(stream.indptr[span[0] : span[1] + 1]), *_read(stream, matrix, start, stop))
        rows, slices = stored_rows(stream, span[0], block, here.place)
        here.put(pieces.key(number), pieces.pack(rows, slices))
    if stream.row_major:
        return np.empty(0, np.uint32)
    lengths = np.zeros(matrix.shape[0], np.uint32)
    lengths[rows] = slices.lengths
    return lengths


def encode_part(
    job: Job, matrix: Matrix, part: Part, pieces: Pieces | None, genes: Pieces | None, number: int
) -> EncodedPart:
    """Put a part of a matrix in order and encode its chunks.

    Parameters
    ----------
    job, matrix, part
        What.
    pieces
        Where it was regrouped; None to take it from the source, which then has its order.
    genes
        Where the part is regrouped by gene, for the companion; None without one.
    number
        Of the part.
    """
    with at_work(job) as here:
        if pieces is None:
            slices = _from_source(here, matrix, part)
        else:
            slices = pieces.read(here.store, part.first_major, part.last_major)
            if matrix.path.startswith("obsp/") and here.place is not None:
                slices = renamed(slices, here.place)
            slices = _clipped(slices, part.skipped, part.stop - part.start)
        counts = np.empty(0, np.int64)
        if genes is not None:
            turned = slices.transpose(matrix.n_minor, part.first_major)
            here.put(genes.key(number), genes.pack(np.arange(matrix.n_minor), turned))
            counts = np.asarray(turned.lengths, np.int64)
        return EncodedPart(
            _encoded(here, matrix.array("data"), slices.values),
            _encoded(here, matrix.array("indices"), slices.indices),
            slices.indices[:: matrix.grid.chunk[0]].astype(np.uint32),
            counts,
        )


def write_shard(job: Job, matrix: Matrix, shard: int, parts: list[EncodedPart]) -> SparseShard:
    """Write a shard of both arrays from its parts."""
    with at_work(job) as here:
        return SparseShard(
            _put_shard(here, matrix.array("data"), shard, [p.values for p in parts]),
            _put_shard(here, matrix.array("indices"), shard, [p.indices for p in parts]),
            np.concatenate([p.first for p in parts]),
            np.sum([p.genes for p in parts], axis=0),
        )


def on_store[T](job: Job, read: Callable[..., T], path: str, span: tuple[int, int], *more: Any) -> tuple[T, int]:
    """Read a part of the store that is verified. Returns with what was asked for the bytes that were read."""
    stats = Stats()
    with at_work(job) as here, observed(stats):
        return read(here.dataset, path, span, *more), stats.n_bytes


def on_source[T](job: Job, read: Callable[..., T], path: str, span: tuple[int, int]) -> T:
    """Read a part of a matrix of the source."""
    with at_work(job) as here:
        return read(here.stream(path), span)


def _sparse(here: Workplace, matrix: Matrix) -> SparseStream:
    stream = here.stream(matrix.source)
    if not isinstance(stream, SparseStream) or (stream.shape, stream.nnz) != (matrix.shape, matrix.grid.shape[0]):
        msg = f"{matrix.source!r} of {here.source.name} was changed while it was converted; convert again."
        raise FormatError(msg)
    return stream


def _read(stream: SparseStream, matrix: Matrix, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    indices = stream.minors(start, stop).astype(matrix.index_dtype, copy=False)
    return indices, native(np.asarray(stream.values[start:stop]))


def _from_source(here: Workplace, matrix: Matrix, part: Part) -> Slices:
    stream = _sparse(here, matrix)
    bounds = np.clip(stream.indptr[part.first_major : part.last_major + 1], part.start, part.stop)
    return Slices(np.diff(bounds), *_read(stream, matrix, part.start, part.stop))


def _clipped(slices: Slices, skipped: int, n_values: int) -> Slices:
    """Take some values of major slices, one after another."""
    ends = np.cumsum(slices.lengths)
    bounds = np.clip(np.concatenate(([0], ends)), skipped, skipped + n_values)
    within = slice(skipped, skipped + n_values)
    return Slices(np.diff(bounds), slices.indices[within], slices.values[within])


def _encoded(here: Workplace, node: ArrayNode, values: np.ndarray) -> tuple[bytes, np.ndarray]:
    chunk, encoded = node.grid.chunk[0], []
    for at in range(0, len(values), chunk):
        here.check()
        encoded.append(node.encode(values[at : at + chunk]))
    return b"".join(encoded), np.asarray([len(e) for e in encoded], np.uint32)


def _put_shard(here: Workplace, node: ArrayNode, shard: int, parts: list[tuple[bytes, np.ndarray]]) -> WrittenShard:
    sizes, content = np.concatenate([s for _, s in parts]), b"".join(body for body, _ in parts)
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    chunks: dict[int, Any] = {
        slot: content[begin:end] for slot, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
    }
    payload = node.build_shard(chunks) if node.sharding else content
    here.put(node.key(shard), payload)
    small = node.has_one_object and len(payload) <= NOTED_OBJECT
    return WrittenShard(len(payload), sizes, payload if small else None)
