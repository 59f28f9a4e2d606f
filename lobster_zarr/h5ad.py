"""Writes an AnnData of a store to a group of an HDF5 file: streaming, in bounded memory, in source order.

Knows how AnnData lies in HDF5. Must not know what else the file holds.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import anndata as ad
import h5py
import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.grid import Runs
from lobster_zarr.layout import follows_obs
from lobster_zarr.scratch import Exchange, Slices, balanced_bounds
from lobster_zarr.store import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.report import Progress
    from lobster_zarr.scratch import Scratch

BLOCK_VALUES = 4 << 20
Compression = Literal["gzip", "lzf", "none"]
GZIP_LEVELS = range(10)


def compression_options(compression: str | None, level: int | None = None) -> dict[str, Any]:
    """Return HDF5's options for the datasets of a file.

    Parameters
    ----------
    compression
        ``"gzip"``, ``"lzf"``, or ``"none"`` (or None).
    level
        Of gzip, 0 to 9; None for HDF5's own.

    Raises
    ------
    InvalidArgumentError
        They are not these.
    """
    if compression not in (*get_args(Compression), None):
        msg = f"compression is {compression!r}; expected one of {', '.join(get_args(Compression))}."
        raise InvalidArgumentError(msg)
    if level is not None and (compression != "gzip" or level not in GZIP_LEVELS):
        msg = f"compression_opts is {level!r} for {compression!r}; expected 0 to 9, for 'gzip' alone."
        raise InvalidArgumentError(msg)
    chosen = {} if compression in ("none", None) else {"compression": compression}
    return chosen if level is None else {**chosen, "compression_opts": level}


class Sink(io.FileIO):
    """A file that remembers its first failure and takes everything after it as written.

    libhdf5 crashes the process when it closes a file of which a write failed:
    it never hears of one, and :meth:`check` tells the caller instead.
    """

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")

    def write(self, data: Any) -> int:
        """Write all of `data`, or keep the reason why not."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Resize the file, or keep the reason why not."""
        try:
            return super().truncate(size) if self.failure is None else size or 0
        except OSError as error:
            self.failure = error
            return size or 0

    def check(self) -> None:
        """Raise the first failure."""
        if self.failure is not None:
            raise self.failure


class Export:
    """One export of an AnnData under way, to a group of a file."""

    def __init__(
        self,
        data: Dataset,
        file: h5py.Group,
        sink: Sink,
        scratch: Scratch,
        compression: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.data, self.file, self.sink, self.scratch, self.progress = data, file, sink, scratch, progress
        self.options = dict(compression)
        self.source_row: np.ndarray | None = None

    def write(self) -> None:
        """Write every element."""
        data, tree = self.data, self.data.tree
        if data.reader.is_sorted:
            self.source_row = run(data.reader.source_order())
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._frame("obs")
        self._frame("var")
        for path in self._elements():
            self.sink.check()
            if data.reader.is_sparse(path) and follows_obs(path):
                self._sparse(path)
            elif data.reader.is_matrix(path) and follows_obs(path):
                self._dense(path)
            else:
                value = run(data.reader.whole(path))
                if path.startswith("obsm/") and self.source_row is not None:
                    order = np.argsort(self.source_row)
                    value = value.iloc[order] if hasattr(value, "iloc") else value[order]
                self.put(path, value)
        if "raw" in tree and tree.encoding("raw") != "null":
            self.file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})

    def _elements(self) -> list[str]:
        tree = self.data.tree
        paths = [p for p in ("X", "raw/X", "raw/var", "uns") if p in tree]
        for parent in ("layers", "obsm", "varm", "obsp", "varp", "raw/varm"):
            if parent in tree:
                group = self.file.require_group(parent)
                group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
                paths += [f"{parent}/{name}" for name in tree.children(parent)]
        return paths

    def put(self, path: str, value: Any) -> None:
        """Write one element whole."""
        parent, _, name = path.rpartition("/")
        group = self.file.require_group(parent) if parent else self.file
        with warnings.catch_warnings(), ad.settings.override(allow_write_nullable_strings=True):
            warnings.simplefilter("ignore")
            ad.io.write_elem(group, name, value, dataset_kwargs=self.options)

    def _frame(self, path: str) -> None:
        table = self.data.obs if path == "obs" else self.data.var
        group = self.file.create_group(path)
        attributes = self.data.tree.attributes(path)
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
        group.attrs["_index"] = table.index_column
        group.attrs["column-order"] = np.array(attributes["column-order"], dtype=h5py.string_dtype())
        order = np.argsort(self.source_row) if path == "obs" and self.source_row is not None else None
        for name in dict.fromkeys((table.index_column, *table.columns)):
            values = run(table.column(name))
            self.put(f"{path}/{name}", values if order is None else values.take(order))

    def _sparse(self, path: str) -> None:
        reader = self.data.reader.sparse(path)
        group = self.file.require_group(path)
        row_major = reader.row_major
        group.attrs.update({"encoding-type": "csr_matrix" if row_major else "csc_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.asarray(reader.shape)
        nnz = reader.nnz
        chunked = {"chunks": (min(nnz, 1 << 16),), "maxshape": (None,), **self.options} if nnz else {}
        values = group.create_dataset("data", (nnz,), reader.values.dtype, **chunked)
        indices = group.create_dataset("indices", (nnz,), reader.indices.dtype, **chunked)
        lengths, at = [np.zeros(1, np.int64)], 0
        with self.progress.phase(path, nnz) as advance:
            for block in self._slices(path):
                stop = at + len(block.values)
                values[at:stop], indices[at:stop] = block.values, block.indices
                self.sink.check()
                lengths.append(block.lengths)
                at = stop
                advance(len(block.values))
        indptr = np.cumsum(np.concatenate(lengths)).astype(self.data.tree.array(f"{path}/indptr").dtype)
        group.create_dataset("indptr", data=indptr, **self.options)

    def _stored_slices(self, path: str) -> Iterator[tuple[int, Slices]]:
        """Blocks in storage order, read through the fetcher."""
        reader = self.data.reader.sparse(path)
        indptr = run(reader.indptr())
        bounds = balanced_bounds(np.diff(indptr), BLOCK_VALUES)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            part = run(reader.read(Runs(np.asarray([start]), np.asarray([stop]))))
            yield start, Slices(np.diff(part.indptr), part.indices, part.values)

    def _slices(self, path: str) -> Iterator[Slices]:
        """Blocks of rows in source order."""
        if self.source_row is None:
            yield from (block for _, block in self._stored_slices(path))
            return
        indptr = run(self.data.reader.sparse(path).indptr())
        lengths = np.empty(len(self.source_row), np.int64)
        lengths[self.source_row] = np.diff(indptr)
        exchange = Exchange(self.scratch, "rows", balanced_bounds(lengths, BLOCK_VALUES), 2 * BLOCK_VALUES)
        square = path.startswith("obsp/")
        for at, block in self._stored_slices(path):
            targets = self.source_row[at : at + len(block.lengths)]
            ascending = np.argsort(targets)
            exchange.put(targets[ascending], block.reorder(ascending))
        for rows in exchange.take():
            if square:
                moved = self.source_row[rows.indices].astype(rows.indices.dtype)
                yield Slices(rows.lengths, moved, rows.values).sort_indices()
            else:
                yield rows

    def _dense(self, path: str) -> None:
        node = self.data.tree.array(path)
        width = max(int(np.prod(node.shape[1:])), 1)
        step = max(BLOCK_VALUES // width // node.grid.chunk[0], 1) * node.grid.chunk[0]
        target = self.file.require_dataset(path, node.shape, node.dtype, **(self.options if all(node.shape) else {}))
        target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        order = None if self.source_row is None else np.argsort(self.source_row)
        with self.progress.phase(path, int(np.prod(node.shape))) as advance:
            for at in range(0, node.shape[0], step):
                stop = min(at + step, node.shape[0])
                if order is None:
                    rows = run(read_array(self.data.fetcher, node, Runs(np.asarray([at]), np.asarray([stop]))))
                else:
                    from lobster_zarr.projection import Axis

                    axis = Axis.of(order[at:stop])
                    rows = axis.arrange(run(read_array(self.data.fetcher, node, axis.runs)))
                    if path.startswith("obsp/"):
                        rows = rows[:, order]
                target[at:stop] = rows
                self.sink.check()
                advance(rows.size)
