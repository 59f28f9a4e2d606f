"""Checks one AnnData of a store: every chunk, the shape of every matrix, and equality with its source.

Matrices are compared by a 64-bit fingerprint of each row, so that neither
side is ever in memory whole and the orders may differ; everything else is
compared as AnnData encodes it, bit by bit. Must not know whether the store
is a part of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from lobster_zarr.audit import differences
from lobster_zarr.dense import read_array
from lobster_zarr.errors import VerificationError
from lobster_zarr.fingerprint import checked_band, source_part, stored_band, stored_slices
from lobster_zarr.layout import COMPANION, SOURCE_ORDER, follows_obs, is_companion
from lobster_zarr.node import FIRST
from lobster_zarr.scratch import balanced_bounds
from lobster_zarr.stage import stage
from lobster_zarr.store import run
from lobster_zarr.stream import DenseStream
from lobster_zarr.tasks import on_source, on_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lobster_zarr.cluster import Crew
    from lobster_zarr.dataset import Dataset
    from lobster_zarr.fingerprint import Columns, Prints, Span
    from lobster_zarr.report import Progress
    from lobster_zarr.source import Source
    from lobster_zarr.stream import Stream

BLOCK_VALUES = 4 << 20
Staged = zarr.Group | zarr.Array[Any]


@dataclass(eq=False)
class Verification:
    """One verification under way."""

    data: Dataset
    progress: Progress
    crew: Crew | None = None
    n_bytes: int = 0
    """Read by the crew."""
    read: set[str] = field(default_factory=set)
    compared: list[str] = field(default_factory=list)
    prints: dict[str, np.ndarray] = field(default_factory=dict)
    first: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """The first position of each chunk of a matrix by gene."""

    def store(self) -> None:
        """Check the store alone."""
        tree, elements = self.data.tree, self.data.reader
        for path in tree.nodes:
            if path and elements.is_sparse(path) and not is_companion(path):
                self._sparse(path)
        for path in tree.nodes:
            if path and tree.is_array(path) and path not in self.read:
                self._array(path, self.data)
        self._tables()

    def notes(self, noted: Dataset) -> None:
        """Check what the store, as it is, notes of itself."""
        for path in noted.tree.arrays_below(""):
            if path not in self.read:
                self._array(path, noted)
            parent, _, name = path.rpartition("/")
            if name == FIRST:
                stored = run(read_array(self.data.fetcher, noted.tree.array(path)))
                if not np.array_equal(stored, np.concatenate(self.first[parent])):
                    self._fail(f"{path!r} differs from the chunks that it describes; convert again.")
        for wrong in differences(noted, self.data):
            self._fail(f"{wrong} differs from what the store holds; convert again.")

    def _fail(self, message: str) -> None:
        msg = f"{self.data.uri}: {message}"
        raise VerificationError(msg)

    def _array(self, path: str, of: Dataset) -> None:
        """Read every chunk, a band of rows at a time."""
        self.read.add(path)
        node = of.tree.array(path)
        if not node.shape or path not in self.data.tree:
            run(read_array(self.data.fetcher, node))
            return
        for _ in self._stored(checked_band, math.prod(node.shape), path, self._bands(node.shape, node.grid.chunk[0])):
            pass

    def _sparse(self, path: str) -> None:
        self.prints[path] = self._sparse_prints(path)
        companion = f"{path}/{COMPANION}"
        if companion in self.data.tree:
            rows = self._sparse_prints(companion)
            different = np.flatnonzero(rows != self.prints[path])
            if len(different):
                self._fail(f"{companion!r} differs from {path!r} in {len(different):,} rows, first {different[0]}.")

    def _sparse_prints(self, path: str) -> np.ndarray:
        """Check a sparse matrix and return the fingerprint of each of its rows."""
        reader = self.data.reader.sparse(path)
        indptr = run(reader.indptr())
        if reader.indices.shape != reader.values.shape:
            self._fail(f"'{path}/data' has {reader.nnz:,} values, '{path}/indices' {reader.indices.shape[0]:,}.")
        self.read |= {f"{path}/{n}" for n in ("data", "indices", "indptr")}
        spans = self._spans(np.diff(indptr))
        prints = np.zeros(reader.shape[0], np.uint64)
        with self.progress.phase(f"reading {path}", reader.nnz) as advance:
            for part in self._stored(stored_slices, reader.nnz, path, spans):
                part.add_to(prints)
                if part.first is not None:
                    self.first.setdefault(path, []).append(part.first)
                advance(part.n_values)
        return prints

    def _step(self, n_values: int) -> int:
        """Values that are read at once."""
        return BLOCK_VALUES if self.crew is None else min(self.crew.share(n_values), BLOCK_VALUES)

    def _spans(self, lengths: np.ndarray) -> list[Span]:
        return list(pairwise(balanced_bounds(lengths, self._step(int(lengths.sum()))).tolist()))

    def _bands(self, shape: tuple[int, ...], chunk_rows: int = 1) -> list[Span]:
        """Rows of a dense array, of whole chunks, about a step at a time."""
        width = max(math.prod(shape[1:]), 1)
        rows = max(self._step(math.prod(shape)) // width // chunk_rows, 1) * chunk_rows
        return [(at, min(at + rows, shape[0])) for at in range(0, shape[0], rows)]

    def _stored[T](
        self, read: Callable[..., T], n_values: int, path: str, spans: list[Span], *more: Any
    ) -> Iterator[T]:
        """Read parts of an array or matrix of the store, in order."""
        if self.crew is None or not self.crew.pays_for(n_values):
            yield from (read(self.data, path, span, *more) for span in spans)
            return
        futures = [self.crew.submit(on_store, read, path, span, *more) for span in spans]
        for _, (part, n_bytes) in self.crew.results(futures, ordered=True):
            self.n_bytes += n_bytes
            yield part

    def _source(self, path: str, stream: Stream) -> np.ndarray:
        """Fingerprints of the rows of a matrix of the source."""
        if isinstance(stream, DenseStream):
            n_values, spans = math.prod(stream.shape), self._bands(stream.shape)
        else:
            n_values, spans = stream.nnz, self._spans(np.diff(stream.indptr))
        prints = np.zeros(stream.shape[0], np.uint64)
        parts: Iterator[Prints] = (source_part(stream, span) for span in spans)
        if self.crew is not None and self.crew.job.source is not None and self.crew.pays_for(n_values):
            futures = [self.crew.submit(on_source, source_part, path, span) for span in spans]
            parts = (part for _, part in self.crew.results(futures, ordered=True))
        for part in parts:
            part.add_to(prints)
        return prints

    def _tables(self) -> None:
        for table, length in ((self.data.obs, self.data.n_obs), (self.data.var, self.data.n_vars)):
            for name in table.columns:
                if table.column_length(name) != length:
                    self._fail(f"'{table.path}/{name}' has {table.column_length(name):,} rows, expected {length:,}.")
                self._codes(f"{table.path}/{name}")
        if self.data.reader.is_sorted:
            order = run(self.data.reader.source_order())
            if not np.array_equal(np.sort(order), np.arange(self.data.n_obs)):
                self._fail(f"'obs/{SOURCE_ORDER}' is not a permutation of the rows.")

    def _codes(self, path: str) -> None:
        tree = self.data.tree
        if tree.encoding(path) == "categorical":
            n = tree.array(f"{path}/categories").shape[0]
            codes = run(read_array(self.data.fetcher, tree.array(f"{path}/codes")))
            if len(codes) and not (codes.min() >= -1 and codes.max() < n):
                self._fail(f"'{path}/codes' names categories outside [-1, {n}).")

    def source(self, source: Source) -> None:
        """Compare every element with the source."""
        self._members(source)
        order = run(self.data.reader.source_order()) if self.data.reader.is_sorted else None
        self._frame(source, "obs", order)
        self._frame(source, "var", None)
        if "raw/var" in source:
            self._frame(source, "raw/var", None)
        for path in self._paths(source):
            stream = source.stream(path) if follows_obs(path) else None
            if stream is not None:
                self._matrix(source, path, stream, order)
            else:
                self._whole(source, path, order)
            self.compared.append(path)

    def _paths(self, source: Source) -> list[str]:
        paths = [p for p in ("X", "raw/X", "uns") if p in source]
        for parent in ("layers", "obsm", "varm", "obsp", "varp", "raw/varm"):
            paths += [f"{parent}/{name}" for name in source.members(parent)]
        return paths

    def _members(self, source: Source) -> None:
        stored = [p for p in ("X", "raw/X") if p in self.data.tree]
        for parent in ("layers", "obsm", "varm", "obsp", "varp", "raw/varm"):
            stored += [f"{parent}/{n}" for n in self.data.tree.children(parent)]
        missing = [p for p in self._paths(source) if p not in self.data.tree and p != "uns"]
        extra = [p for p in stored if p not in source]
        if missing or extra:
            self._fail(f"elements of the source that are missing: {missing}; that the source lacks: {extra}.")

    def _frame(self, source: Source, path: str, order: np.ndarray | None) -> None:
        frame = source.frame(path)
        names, n_rows = list(frame.columns), {"obs": self.data.n_obs, "var": self.data.n_vars}.get(path)
        if n_rows is not None and n_rows != len(frame.index):
            self._fail(f"{path} has {n_rows:,} rows, the source {len(frame.index):,}.")
        stored = list(self.data.tree.attributes(path).get("column-order", ())) if path in self.data.tree else None
        if stored != names:
            self._fail(f"{path} has the columns {stored}, the source {names}.")
        for name, read in frame.stored().items():
            self._same(f"{path}/{name}", read() if order is None else read().take(order), order)
        self.compared.append(path)

    def _whole(self, source: Source, path: str, order: np.ndarray | None) -> None:
        value = source.value(path)
        if path.startswith("obsm/") and order is not None:
            value = value.iloc[order] if isinstance(value, pd.DataFrame) else value[order]
        if path in self.data.tree or value:
            self._same(path, value)

    def _same(self, path: str, expected: Any, order: np.ndarray | None = None) -> None:
        """Compare an element, as AnnData encodes it, with the nodes of the store; `order` names its rows."""
        difference = self._difference(stage(expected, path), path, order)
        if difference:
            self._fail(f"{difference} differs from the source.")

    def _difference(self, expected: Staged, path: str, order: np.ndarray | None) -> str | None:
        tree = self.data.tree
        if path not in tree:
            return f"{path!r} (missing)"
        if tree.attributes(path) != expected.attrs.asdict() or tree.is_array(path) == isinstance(expected, zarr.Group):
            return repr(path)
        if isinstance(expected, zarr.Group):
            members = dict(expected.members())
            extra = [n for n in tree.children(path) if n not in members]
            if extra:
                return f"'{path}/{extra[0]}' (not in the source)"
            found = (self._difference(member, f"{path}/{name}", order) for name, member in members.items())
            return next((f for f in found if f), None)
        stored, wanted = run(read_array(self.data.fetcher, tree.array(path))), np.asarray(expected[...])
        if wanted.dtype.kind == "U":  # zarr's scalar of a variable-length text
            wanted = wanted.astype(stored.dtype)
        if stored.dtype != wanted.dtype or stored.shape != wanted.shape:
            return f"{path!r} ({stored.dtype} {stored.shape} against {wanted.dtype} {wanted.shape})"
        unequal = np.flatnonzero(np.atleast_1d(_comparable(stored) != _comparable(wanted)))
        rows = unequal if order is None or path.endswith("/categories") else order[unequal]
        return f"{path!r} at position {int(rows[0])}" if len(rows) else None

    def _matrix(self, source: Source, path: str, stream: Stream, order: np.ndarray | None) -> None:
        tree = self.data.tree
        stored = tree.array(f"{path}/data" if self.data.reader.is_sparse(path) else path)
        dtype = stream.dtype if isinstance(stream, DenseStream) else np.dtype(stream.values.dtype).newbyteorder("=")
        shape = stored.shape if not self.data.reader.is_sparse(path) else self.data.reader.sparse(path).shape
        if shape != stream.shape or stored.dtype != dtype:
            self._fail(f"{path!r} is {stored.dtype} {shape}, in the source {dtype} {stream.shape}.")
        expected = self._source(path, stream)
        columns: Columns = "source" if path.startswith("obsp/") and order is not None else "stored"
        if isinstance(stream, DenseStream) or columns == "source":
            self.prints[path] = self._sums(path, stream.shape, columns)
        expected = expected if order is None else expected[order]
        different = np.flatnonzero(self.prints[path] != expected)
        if len(different):
            row = int(different[0] if order is None else order[different[0]])
            name = source.frame("obs").index[row]
            self._fail(f"{path!r} differs from the source in {len(different):,} rows, first in row {row} ({name!r}).")

    def _sums(self, path: str, shape: tuple[int, ...], columns: Columns) -> np.ndarray:
        """Fingerprints of the rows of a matrix of the store."""
        prints = np.zeros(shape[0], np.uint64)
        if self.data.reader.is_sparse(path):
            reader = self.data.reader.sparse(path)
            parts = self._stored(stored_slices, reader.nnz, path, self._spans(np.diff(run(reader.indptr()))), columns)
        else:
            parts = self._stored(
                stored_band,
                math.prod(shape),
                path,
                self._bands(shape, self.data.tree.array(path).grid.chunk[0]),
                columns,
            )
        for part in parts:
            part.add_to(prints)
        return prints


def _comparable(values: np.ndarray) -> np.ndarray:
    """Return text as it is and everything else as its bytes, so that NaN and -0.0 are told apart."""
    if values.dtype.kind in "OTU" or not values.dtype.itemsize:
        return values
    return np.ascontiguousarray(values).reshape(-1).view(f"V{values.dtype.itemsize}")
