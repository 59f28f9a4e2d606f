"""Converts an AnnData, wherever it lies, to a store: streaming, in bounded memory, committed last.

Reading, regrouping, encoding and uploading overlap: the calling thread reads
and regroups one block while the codec pool encodes the blocks before it and
the commit uploads finished shards.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import psutil

from lobster_zarr.commit import Commit
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.layout import (
    ATTRIBUTE,
    CODEC_PROFILES,
    COMPANION,
    FORMAT_VERSION,
    GENE_MAJOR_CHUNK,
    ROW_MAJOR_CHUNK,
    SOURCE_ORDER,
    CodecProfile,
    dense_grid,
    new_array,
)
from lobster_zarr.report import ConversionReport, Progress, peak_memory_bytes
from lobster_zarr.scratch import Exchange, Scratch, Slices, balanced_bounds
from lobster_zarr.source import DenseStream, Source, SparseStream, open_source
from lobster_zarr.stage import is_plain_string, stage
from lobster_zarr.store import display_uri, is_local, local_path
from lobster_zarr.write import ArrayWriter, SparseWriter, write_array, write_staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import anndata as ad
    import zarr

MAX_BLOCK_VALUES = 4 << 20
MIN_BLOCK_VALUES = 1 << 16
BYTES_PER_BLOCK_VALUE = 320
"""Working memory that one value of a block costs at the worst moment of the pipeline (measured)."""
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


def convert(  # noqa: PLR0913 - the public contract
    source: str | os.PathLike[str] | ad.AnnData,
    dest: str | os.PathLike[str],
    *,
    sort_by: str | Sequence[str] = (),
    gene_major: Literal["auto"] | bool | Sequence[str] = "auto",
    codec: CodecProfile = "small",
    memory_limit: int | str = "2GB",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Convert an AnnData to a chunked Zarr store.

    Parameters
    ----------
    source
        Path or URI of an ``.h5ad`` or of an AnnData-Zarr store, or an AnnData
        in memory.
    dest
        Path or URI of the store to write.
    sort_by
        obs columns by which the rows are stored grouped. Results still come
        back in source order.
    gene_major
        Whether sparse matrices get a gene-major companion: ``"auto"``, X has
        one; True, the sparse layers too; False, none; or names of elements
        (``["X", "counts"]``).
    codec
        ``"small"``, ``"fast"`` or ``"compatible"``.
    memory_limit
        Bytes, or text such as ``"2GB"``, that the process should not exceed.
    overwrite
        Replace a store that `dest` holds already.
    storage_options
        s3fs's names: ``key``, ``secret``, ``token``, ``endpoint_url``, ``anon``,
        ``profile``, ``requester_pays``, ``client_kwargs``.
    progress
        Show progress bars when on a terminal.

    Returns
    -------
    ConversionReport
        Sizes, seconds, memory.

    Raises
    ------
    UnsupportedError
        An element cannot be kept; nothing was written.
    ConflictError
        `dest` holds something already.
    FormatError, NotFoundError
        The source is not there, or not AnnData.
    StorageError
        The storage or the scratch disk failed; what was written was removed.
    """
    started = time.perf_counter()
    limit = _parse_limit(memory_limit)
    if codec not in CODEC_PROFILES:
        msg = f"unknown codec {codec!r}; expected one of {', '.join(CODEC_PROFILES)}."
        raise InvalidArgumentError(msg)
    columns = (sort_by,) if isinstance(sort_by, str) else tuple(sort_by)
    _refuse_same(source, dest)
    with open_source(source, storage_options, memory_limit_bytes=limit) as opened, Scratch() as scratch:
        job = Conversion(opened, scratch, columns, codec, gene_major, limit, Progress(enabled=progress))
        staged = job.prepare()
        with Commit(os.fspath(dest), storage_options, overwrite=overwrite) as commit:
            job.write(commit, staged)
        return ConversionReport(
            source=opened.name,
            destination=display_uri(dest),
            n_obs=job.n_obs,
            n_vars=job.n_vars,
            source_bytes=opened.n_bytes,
            stored_bytes=commit.stored_bytes,
            n_objects=commit.n_objects - 1,  # the marker is gone
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
            codec=codec,
            sort_by=columns,
            gene_major=tuple(job.companions),
            replaced=commit.replaced,
            arrays=job.sizes,
        )


def _parse_limit(memory_limit: int | str) -> int:
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(memory_limit))
    except ValueError as error:
        msg = f"memory_limit {memory_limit!r} is not a size; expected bytes or text such as '2GB'."
        raise InvalidArgumentError(msg) from error


def _refuse_same(source: Any, dest: str | os.PathLike[str]) -> None:  # noqa: ANN401
    if not isinstance(source, str | os.PathLike):
        return
    same = display_uri(source) == display_uri(dest)
    if is_local(source) and is_local(dest):
        a, b = local_path(source).resolve(), local_path(dest).resolve()
        same = a == b or a in b.parents or b in a.parents
    if same:
        msg = f"source and destination are the same ({display_uri(dest)}); choose another destination."
        raise InvalidArgumentError(msg)


@dataclass(eq=False)
class Conversion:
    """One conversion under way: the source, the row order, and what was written."""

    source: Source
    scratch: Scratch
    sort_by: tuple[str, ...]
    codec: CodecProfile
    gene_major: Literal["auto"] | bool | Sequence[str]
    limit_bytes: int
    progress: Progress

    def __post_init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.companions: list[str] = []
        self.order: np.ndarray | None = None
        self.n_obs = len(self.source.frame("obs")[0])
        self.n_vars = len(self.source.frame("var")[0])
        spare = max(self.limit_bytes - psutil.Process().memory_info().rss, 0)
        self.block_values = min(max(spare // BYTES_PER_BLOCK_VALUE, MIN_BLOCK_VALUES), MAX_BLOCK_VALUES)

    def prepare(self) -> dict[str, zarr.Group | zarr.Array[Any]]:
        """Read and encode, in memory, all that is neither a matrix nor obs.

        Whatever AnnData cannot write is refused here, before the destination
        is touched.
        """
        self.order = self._sort_order()
        self._check_shapes()
        self._check_gene_major()
        staged = {path: stage(self.source.value(path), path) for path in self._whole_elements()}
        for path in ("obs", "var", "raw/var"):
            if path in self.source:
                index, _, columns = self.source.frame(path)
                self._check_frame(path, index, columns)
        return staged

    def _whole_elements(self) -> list[str]:
        paths = ["uns"] if "uns" in self.source else []
        for parent in ("varm", "varp", "raw/varm", "layers", "obsm", "obsp"):
            for name in self.source.members(parent):
                path = f"{parent}/{name}"
                streamed = parent in {"layers", "obsm", "obsp"} and self.source.stream(path) is not None
                if not streamed and parent == "layers":
                    msg = f"{path!r} of {self.source.name} is not a CSR, CSC or dense matrix; it cannot be kept."
                    raise UnsupportedError(msg)
                if not streamed:
                    paths.append(path)
        return paths

    def _check_shapes(self) -> None:
        for path in self._matrices():
            stream = self.source.stream(path)
            if stream is None:
                msg = f"{path!r} of {self.source.name} is not a CSR, CSC or dense matrix; it cannot be kept."
                raise UnsupportedError(msg)
            if stream.shape[0] != self.n_obs:
                msg = f"{path!r} of {self.source.name} has {stream.shape[0]:,} rows, obs has {self.n_obs:,}."
                raise UnsupportedError(msg)
            if "/" in path.removeprefix("raw/").partition("/")[2]:
                msg = f"{path!r} of {self.source.name} has '/' in its name, which Zarr does not allow; rename it."
                raise UnsupportedError(msg)

    def _matrices(self) -> list[str]:
        paths = [p for p in ("X", "raw/X") if p in self.source]
        for parent in ("layers", "obsm", "obsp"):
            for name in self.source.members(parent):
                path = f"{parent}/{name}"
                if self.source.stream(path) is not None:
                    paths.append(path)
        return paths

    def _check_gene_major(self) -> None:
        sparse = [p for p in self._matrices() if isinstance(self.source.stream(p), SparseStream)]
        eligible = [p for p in sparse if p == "X" or p.startswith("layers/")]
        if self.gene_major is True:
            self.companions = eligible
        elif self.gene_major == "auto":
            self.companions = [p for p in eligible if p == "X"]
        elif self.gene_major is not False:
            names = {p.removeprefix("layers/"): p for p in eligible}
            for name in (self.gene_major,) if isinstance(self.gene_major, str) else self.gene_major:
                key = name.removeprefix("layers/")
                if key not in names:
                    msg = f"gene_major names {name!r}, which is not a sparse X or layer.{did_you_mean(key, names)}"
                    raise NotFoundError(msg)
                self.companions.append(names[key])

    def _check_frame(self, path: str, index: Any, columns: list[tuple[str, Callable[[], Any]]]) -> None:  # noqa: ANN401
        names = [name for name, _ in columns]
        repeated = sorted({n for n in names if names.count(n) > 1})
        bad = [n for n in names if "/" in n or n == "_index"]
        if repeated or bad:
            msg = f"{path} of {self.source.name} has columns that AnnData cannot store: {repeated or bad}; rename them."
            raise UnsupportedError(msg)
        if isinstance(self.source.root, dict):
            for name, read in [("index", lambda: index), *columns]:
                values = read()
                if getattr(values, "dtype", None) == object:
                    stage(values, f"{path}/{name}")

    def _sort_order(self) -> np.ndarray | None:
        """Return the source row of each stored row, or None where the order is kept."""
        if not self.sort_by:
            return None
        columns = dict(self.source.frame("obs")[2])
        keys = []
        for name in self.sort_by:
            if name not in columns:
                msg = f"cannot sort by {name!r}: obs has no such column.{did_you_mean(name, columns)}"
                raise NotFoundError(msg)
            values = columns[name]()
            codes = values.codes if isinstance(values, pd.Categorical) else pd.factorize(values, sort=True)[0]
            codes = np.asarray(codes, np.int64)
            keys.append(np.where(codes < 0, np.iinfo(np.int64).max, codes))
        return np.lexsort(keys[::-1])

    def write(self, commit: Commit, staged: dict[str, zarr.Group | zarr.Array[Any]]) -> None:
        """Write every element, then the root."""
        self._write_frame(commit, "obs", self.order)
        self._write_frame(commit, "var", None)
        if "raw" in self.source:
            commit.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
            self._write_frame(commit, "raw/var", None)
        groups = {p.rpartition("/")[0] for p in (*staged, *self._matrices())} - {"", "raw"}
        for parent in sorted(groups):
            commit.group(parent, DICT)
        for path, element in staged.items():
            if path.startswith("obsm/") and self.order is not None:
                element = stage(_reordered(self.source.value(path), self.order), path)  # noqa: PLW2901
            self.sizes |= write_staged(commit, path, element, self.codec)
        for path in self._matrices():
            self._write_matrix(commit, path)
        if self.order is not None:
            path = f"obs/{SOURCE_ORDER}"
            self.sizes[path] = write_array(commit, path, self.order.astype(np.int64), profile=self.codec)
        ours = {
            "format_version": FORMAT_VERSION,
            "writer": f"lobster_zarr {version('lobster_zarr')}",
            "codec": self.codec,
            "sort_by": list(self.sort_by),
            "source": {"name": self.source.name.rpartition("/")[2], "bytes": self.source.n_bytes},
            "stored_bytes": self.sizes,
        }
        commit.finish({"encoding-type": "anndata", "encoding-version": "0.1.0", ATTRIBUTE: ours})

    def _write_frame(self, commit: Commit, path: str, order: np.ndarray | None) -> None:
        index, index_name, columns = self.source.frame(path)
        attributes = {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": index_name or "_index",
            "column-order": [name for name, _ in columns],
        }
        commit.group(path, attributes)
        with self.progress.phase(path, len(columns) + 1, "columns") as advance:
            if index_name not in dict(columns):  # else the column is the index
                plain = np.asarray(index, object) if is_plain_string(index) else index
                columns = [(str(index_name or "_index"), lambda: plain), *columns]
            for name, read in columns:
                values = read()
                values = values if order is None else values.take(order)
                column = f"{path}/{name}"
                self.sizes |= write_staged(commit, column, stage(values, column), self.codec)
                advance(1)

    def _write_matrix(self, commit: Commit, path: str) -> None:
        stream = self.source.stream(path)
        if isinstance(stream, DenseStream):
            self._write_dense(commit, path, stream)
        elif isinstance(stream, SparseStream):
            self._write_sparse(commit, path, stream)

    def _write_dense(self, commit: Commit, path: str, stream: DenseStream) -> None:
        grid = dense_grid(stream.shape)
        node = new_array(path, stream.shape, stream.dtype, grid=grid, profile=self.codec, attributes=ARRAY)
        writer = ArrayWriter(commit, node)
        square = path.startswith("obsp/") and self.order is not None
        with self.progress.phase(path, int(np.prod(stream.shape))) as advance:
            for rows in self._dense_rows(path, stream):
                writer.append(rows[:, self.order] if square else rows)
                advance(rows.size)
        writer.close()
        self.sizes[path] = sum(writer.chunk_sizes)

    def _dense_rows(self, path: str, stream: DenseStream) -> Iterator[np.ndarray]:
        """Blocks of rows in storage order; a sorted matrix passes through a scratch file."""
        if self.order is None:
            yield from (rows for _, rows in stream.blocks(self.block_values))
            return
        place = np.empty(self.n_obs, np.int64)
        place[self.order] = np.arange(self.n_obs)
        file = self.scratch.path / path.replace("/", "-")
        shape = (self.n_obs, *stream.shape[1:])
        row_bytes = int(np.prod(shape[1:])) * stream.dtype.itemsize
        with file.open("w+b", buffering=0) as handle:
            for at, rows in stream.blocks(self.block_values):
                for target, row in zip(place[at : at + len(rows)].tolist(), rows, strict=True):
                    os.pwrite(handle.fileno(), np.ascontiguousarray(row).tobytes(), target * row_bytes)
            step = max(self.block_values // max(int(np.prod(shape[1:])), 1), 1)
            for at in range(0, self.n_obs, step):
                n_rows = min(step, self.n_obs - at)
                raw = os.pread(handle.fileno(), n_rows * row_bytes, at * row_bytes)
                yield np.frombuffer(raw, stream.dtype).reshape(n_rows, *shape[1:])
        file.unlink()

    def _write_sparse(self, commit: Commit, path: str, stream: SparseStream) -> None:
        index_dtype = np.dtype(stream.indices.dtype)
        if index_dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
            index_dtype = np.dtype(np.int32 if max(stream.shape) < np.iinfo(np.int32).max else np.int64)
        dtype = np.dtype(stream.values.dtype).newbyteorder("=")
        new_writer = partial(
            SparseWriter, commit, nnz=stream.nnz, dtype=dtype, index_dtype=index_dtype, profile=self.codec
        )
        rows = new_writer(path, stream.shape, row_major=True, chunk=ROW_MAJOR_CHUNK)
        companion = path in self.companions
        exchange: Exchange | None = None
        n_rows, n_cols = stream.shape
        at = 0
        with self.progress.phase(path, stream.nnz) as advance:
            for block in self._sparse_rows(path, stream, index_dtype):
                rows.append(block.lengths, block.indices, block.values)
                if companion:
                    turned = block.transpose(n_cols)
                    if exchange is None:
                        exchange = Exchange(
                            self.scratch, "genes", _gene_bounds(turned.lengths, stream.nnz, self.block_values)
                        )
                    shifted = Slices(turned.lengths, turned.indices + index_dtype.type(at), turned.values)
                    exchange.put(np.arange(n_cols), shifted)
                at += len(block.lengths)
                advance(len(block.values))
        self.sizes |= rows.close()
        if companion:
            genes = new_writer(f"{path}/{COMPANION}", stream.shape, row_major=False, chunk=GENE_MAJOR_CHUNK)
            with self.progress.phase(f"{path}/{COMPANION}", stream.nnz) as advance:
                for block in (
                    exchange.take()
                    if exchange
                    else [Slices(np.zeros(n_cols, np.int64), np.empty(0, index_dtype), np.empty(0, dtype))]
                ):
                    genes.append(block.lengths, block.indices, block.values)
                    advance(len(block.values))
            self.sizes |= genes.close()

    def _sparse_rows(self, path: str, stream: SparseStream, index_dtype: np.dtype[Any]) -> Iterator[Slices]:
        """Blocks of rows in storage order."""
        blocks = (
            (at, Slices(lengths, indices.astype(index_dtype, copy=False), values))
            for at, lengths, indices, values in stream.blocks(self.block_values)
        )
        order = self.order if self.order is not None else np.arange(self.n_obs)
        place = np.empty(self.n_obs, np.int64)
        place[order] = np.arange(self.n_obs)
        square = path.startswith("obsp/") and self.order is not None
        if stream.row_major and self.order is None:
            yield from (block for _, block in blocks)
            return
        row_values = np.diff(stream.indptr) if stream.row_major else _count_rows(stream, self.block_values)
        exchange = Exchange(self.scratch, "rows", balanced_bounds(row_values[order], self.block_values))
        with self.progress.phase(f"{path}: regrouping rows", stream.nnz) as advance:
            for at, block in blocks:
                if stream.row_major:
                    targets, part = place[at : at + len(block.lengths)], block
                else:
                    turned = block.transpose(self.n_obs)
                    targets, part = (
                        place,
                        Slices(turned.lengths, turned.indices + index_dtype.type(at), turned.values),
                    )
                ascending = np.argsort(targets)
                exchange.put(targets[ascending], part.reorder(ascending))
                advance(len(block.values))
        for rows in exchange.take():
            if square:
                moved = Slices(rows.lengths, place[rows.indices].astype(index_dtype), rows.values)
                yield moved.sort_indices()
            else:
                yield rows


def _reordered(value: Any, order: np.ndarray) -> Any:  # noqa: ANN401 - an obsm element
    return value.iloc[order] if isinstance(value, pd.DataFrame) else value[order]


def _count_rows(stream: SparseStream, block_values: int) -> np.ndarray:
    counts = np.zeros(stream.shape[0], np.int64)
    for at in range(0, stream.nnz, block_values):
        counts += np.bincount(stream.indices[at : min(at + block_values, stream.nnz)], minlength=len(counts))
    return counts


def _gene_bounds(first: np.ndarray, nnz: int, block_values: int) -> np.ndarray:
    """Cut the genes into buckets by the counts of the first block, smoothed: later blocks may differ."""
    share = first / max(first.sum(), 1) + 1 / max(len(first), 1)
    weights = np.ceil(share / 2 * nnz).astype(np.int64)
    return balanced_bounds(weights, block_values // 2)
