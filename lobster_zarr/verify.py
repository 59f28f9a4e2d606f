"""Checks a store: every chunk, the shape of every matrix, and equality with its source.

Matrices are compared by a 64-bit fingerprint of each row, so that neither
side is ever in memory whole and the orders may differ; everything else is
compared as AnnData encodes it, bit by bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from lobster_zarr.audit import differences
from lobster_zarr.dataset import Dataset
from lobster_zarr.dataset import open as open_dataset
from lobster_zarr.dense import read_array
from lobster_zarr.errors import VerificationError
from lobster_zarr.grid import Runs
from lobster_zarr.layout import COMPANION, SOURCE_ORDER, follows_obs
from lobster_zarr.node import FIRST
from lobster_zarr.report import Progress
from lobster_zarr.scratch import Slices, balanced_bounds
from lobster_zarr.source import Source, open_source
from lobster_zarr.stage import stage
from lobster_zarr.store import run
from lobster_zarr.stream import DenseStream, SparseStream

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import anndata as ad

    from lobster_zarr.node import ArrayNode

BLOCK_VALUES = 4 << 20
Staged = zarr.Group | zarr.Array[Any]
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX2 = np.uint64(0xBF58476D1CE4E5B9)
_MIX3 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class VerificationReport:
    """What a verification read and found to be right.

    Parameters
    ----------
    uri
        The store.
    n_arrays, n_bytes
        Arrays and encoded bytes that were read.
    compared
        Elements found equal to the source; empty without one.
    seconds
        Wall time.
    """

    uri: str
    n_arrays: int
    n_bytes: int
    compared: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        against = f", {len(self.compared)} elements equal to the source" if self.compared else ""
        return (
            f"{self.uri} is sound: {self.n_arrays} arrays, {self.n_bytes:,} bytes read{against} ({self.seconds:.1f} s)"
        )


def verify(
    uri: str | os.PathLike[str] | Dataset,
    against: str | os.PathLike[str] | ad.AnnData | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> VerificationReport:
    """Read every chunk of a store and check it, and compare it with its source.

    Parameters
    ----------
    uri
        Of the store, or an open Dataset.
    against
        The source: path or URI of an ``.h5ad`` or AnnData-Zarr store, or an
        AnnData. None checks the store alone.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show progress bars when on a terminal.

    Raises
    ------
    VerificationError
        Something does not fit, or differs: the message names the element and the row.
    ChunkDecodeError
        A chunk is damaged or missing.
    """
    started = time.perf_counter()
    noted = uri if isinstance(uri, Dataset) else open_dataset(uri, storage_options)
    data = noted.without_notes()
    check = Verification(data, Progress(enabled=progress))
    check.store()
    check.notes(noted)
    if against is not None:
        with open_source(against, storage_options, memory_limit_bytes=1 << 62) as source:
            check.source(source)
    return VerificationReport(
        data.uri, len(check.read), data.stats.n_bytes, tuple(check.compared), time.perf_counter() - started
    )


@dataclass(eq=False)
class Verification:
    """One verification under way."""

    data: Dataset
    progress: Progress
    read: set[str] = field(default_factory=set)
    compared: list[str] = field(default_factory=list)
    prints: dict[str, np.ndarray] = field(default_factory=dict)
    first: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """The first position of each chunk of a matrix by gene."""

    def store(self) -> None:
        """Check the store alone."""
        tree, elements = self.data.tree, self.data.reader
        for path in tree.nodes:
            if path and elements.is_sparse(path) and path.rpartition("/")[2] != COMPANION:
                self._sparse(path)
        for path in tree.nodes:
            if path and tree.is_array(path) and path not in self.read:
                self._array(tree.array(path))
        self._tables()

    def notes(self, noted: Dataset) -> None:
        """Check what the store, as it is, notes of itself."""
        for path in noted.tree.arrays_below(""):
            if path not in self.read:
                self._array(noted.tree.array(path))
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

    def _array(self, node: ArrayNode) -> None:
        """Read every chunk, a band of rows at a time."""
        self.read.add(node.path)
        if not node.shape:
            run(read_array(self.data.fetcher, node))
            return
        width = max(int(np.prod(node.shape[1:])), 1)
        step = max(BLOCK_VALUES // width, node.grid.chunk[0])
        for at in range(0, node.shape[0], step):
            stop = min(at + step, node.shape[0])
            run(read_array(self.data.fetcher, node, Runs(np.asarray([at]), np.asarray([stop]))))

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
        n_minor = reader.shape[1] if reader.row_major else reader.shape[0]
        prints = np.zeros(reader.shape[0], np.uint64)
        bounds = balanced_bounds(np.diff(indptr), BLOCK_VALUES)
        with self.progress.phase(f"reading {path}", reader.nnz) as advance:
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                part = run(reader.read(Runs(np.asarray([start]), np.asarray([stop]))))
                if len(part.indices) and not (part.indices.min() >= 0 and part.indices.max() < n_minor):
                    self._fail(
                        f"'{path}/indices' holds positions outside [0, {n_minor:,}) in slices {start:,} to {stop:,}."
                    )
                if not reader.row_major:
                    chunk = reader.indices.grid.chunk[0]
                    self.first.setdefault(path, []).append(part.indices[-int(indptr[start]) % chunk :: chunk])
                _add_prints(
                    prints, start, Slices(np.diff(part.indptr), part.indices, part.values), row_major=reader.row_major
                )
                advance(len(part.values))
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

    def _matrix(self, source: Source, path: str, stream: SparseStream | DenseStream, order: np.ndarray | None) -> None:
        tree = self.data.tree
        stored = tree.array(f"{path}/data" if self.data.reader.is_sparse(path) else path)
        dtype = stream.dtype if isinstance(stream, DenseStream) else np.dtype(stream.values.dtype).newbyteorder("=")
        shape = stored.shape if not self.data.reader.is_sparse(path) else self.data.reader.sparse(path).shape
        if shape != stream.shape or stored.dtype != dtype:
            self._fail(f"{path!r} is {stored.dtype} {shape}, in the source {dtype} {stream.shape}.")
        columns = order if path.startswith("obsp/") else None
        expected = _source_prints(stream)
        if isinstance(stream, DenseStream):
            self.prints[path] = _dense_prints(self._bands(stored), stored.shape[0], columns)
        elif columns is not None:
            self.prints[path] = self._relabelled(path, columns)
        expected = expected if order is None else expected[order]
        different = np.flatnonzero(self.prints[path] != expected)
        if len(different):
            row = int(different[0] if order is None else order[different[0]])
            name = source.frame("obs").index[row]
            self._fail(f"{path!r} differs from the source in {len(different):,} rows, first in row {row} ({name!r}).")

    def _bands(self, node: ArrayNode) -> Iterator[np.ndarray]:
        width = max(int(np.prod(node.shape[1:])), 1)
        step = max(BLOCK_VALUES // width, node.grid.chunk[0])
        for at in range(0, node.shape[0], step):
            stop = min(at + step, node.shape[0])
            yield run(read_array(self.data.fetcher, node, Runs(np.asarray([at]), np.asarray([stop]))))

    def _relabelled(self, path: str, order: np.ndarray) -> np.ndarray:
        """Fingerprints of a square matrix with its columns named as in the source."""
        reader = self.data.reader.sparse(path)
        part = run(reader.read())
        prints = np.zeros(reader.shape[0], np.uint64)
        _add_prints(prints, 0, Slices(np.diff(part.indptr), order[part.indices], part.values), row_major=True)
        return prints


def _bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of each value as uint64; a complex value's halves are folded."""
    if values.dtype.kind == "c":
        halves = np.ascontiguousarray(values).view(f"f{values.dtype.itemsize // 2}").reshape(*values.shape, 2)
        folded: np.ndarray = _bits(halves[..., 0]) * _MIX2 + _bits(halves[..., 1])
        return folded
    bits: np.ndarray = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    return bits


def _mix(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mix a position and a value to 64 bits (the finaliser of splitmix64)."""
    z: np.ndarray = (columns.astype(np.uint64) + np.uint64(1)) * _MIX + _bits(values) * _MIX2
    for shift, factor in ((30, _MIX2), (27, _MIX3)):
        z = np.bitwise_xor(z, np.right_shift(z, np.uint64(shift))) * factor
    mixed: np.ndarray = np.bitwise_xor(z, np.right_shift(z, np.uint64(31)))
    return mixed


def _add_prints(prints: np.ndarray, start: int, slices: Slices, *, row_major: bool) -> None:
    """Add what a block of major slices, from `start` on, says of its rows."""
    majors = np.repeat(np.arange(start, start + len(slices.lengths)), slices.lengths)
    rows, columns = (majors, slices.indices) if row_major else (slices.indices, majors)
    np.add.at(prints, rows, _mix(columns, slices.values))


def _source_prints(stream: SparseStream | DenseStream) -> np.ndarray:
    if isinstance(stream, DenseStream):
        return _dense_prints((rows for _, rows in stream.blocks(BLOCK_VALUES)), stream.shape[0], None)
    prints = np.zeros(stream.shape[0], np.uint64)
    for at, lengths, indices, values in stream.blocks(BLOCK_VALUES):
        _add_prints(prints, at, Slices(lengths, indices, values), row_major=stream.row_major)
    return prints


def _dense_prints(blocks: Iterator[np.ndarray], n_rows: int, columns: np.ndarray | None) -> np.ndarray:
    prints, at = np.zeros(n_rows, np.uint64), 0
    for block in blocks:
        flat = block.reshape(len(block), -1)
        names = np.arange(flat.shape[1]) if columns is None else columns
        prints[at : at + len(flat)] = _mix(np.broadcast_to(names, flat.shape), flat).sum(axis=1, dtype=np.uint64)
        at += len(flat)
    return prints


def _comparable(values: np.ndarray) -> np.ndarray:
    """Return text as it is and everything else as its bytes, so that NaN and -0.0 are told apart."""
    if values.dtype.kind in "OTU" or not values.dtype.itemsize:
        return values
    return np.ascontiguousarray(values).reshape(-1).view(f"V{values.dtype.itemsize}")
