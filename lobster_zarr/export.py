"""Writes a store back to H5AD: streaming, in bounded memory, in source order.

The file appears under its name only when it is whole.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import h5py
import numpy as np

from lobster_zarr.dataset import Dataset
from lobster_zarr.dense import read_array
from lobster_zarr.errors import ConflictError, StorageError, UnsupportedError
from lobster_zarr.grid import Runs
from lobster_zarr.layout import follows_obs
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.report import Progress
from lobster_zarr.scratch import Exchange, Scratch, Slices, balanced_bounds
from lobster_zarr.store import display_uri, is_local, local_path, run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BLOCK_VALUES = 4 << 20
Compression = Literal["gzip", "lzf", "none"]


def export(
    uri: str | os.PathLike[str] | Dataset,
    dest: str | os.PathLike[str],
    *,
    compression: Compression = "gzip",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Write a whole store to an ``.h5ad`` file, rows in source order.

    Memory is a few blocks of rows, whatever the store's size; a sorted store
    is regrouped through a scratch file.

    Parameters
    ----------
    uri
        Of the store, or an open Dataset.
    dest
        Local path of the file.
    compression
        Of the datasets: ``"gzip"``, ``"lzf"`` or ``"none"``.
    overwrite
        Replace a file that is there.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show progress bars when on a terminal.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ConflictError
        The file exists.
    ChunkDecodeError
        A chunk of the store is damaged.
    """
    if not is_local(dest):
        msg = f"cannot export to {display_uri(dest)}; export to a local path and upload the file."
        raise UnsupportedError(msg)
    path = local_path(dest)
    if path.exists() and not overwrite:
        msg = f"{path} exists; pass overwrite=True (--overwrite) to replace it."
        raise ConflictError(msg)
    data = uri if isinstance(uri, Dataset) else open_dataset(uri, storage_options)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Sink(part) as sink, Scratch() as scratch:
            with h5py.File(sink, "w") as file:
                Export(data, file, sink, scratch, compression, Progress(enabled=progress)).write()
            sink.check()
        part.replace(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        msg = f"cannot write {path}: {error}. Free space on the disk, or choose another destination."
        raise StorageError(msg) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # of the second the caller is being told
            part.unlink()
    return path


class _Sink(io.FileIO):
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
    """One export under way."""

    def __init__(
        self,
        data: Dataset,
        file: h5py.File,
        sink: _Sink,
        scratch: Scratch,
        compression: Compression,
        progress: Progress,
    ) -> None:
        self.data, self.file, self.sink, self.scratch, self.progress = data, file, sink, scratch, progress
        self.options: dict[str, Any] = {} if compression == "none" else {"compression": compression}
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
                self._put(path, value)
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

    def _put(self, path: str, value: Any) -> None:
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
            self._put(f"{path}/{name}", values if order is None else values.take(order))

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
