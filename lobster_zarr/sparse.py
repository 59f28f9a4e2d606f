"""Reads compressed sparse matrices (CSR, or CSC as its transpose) by plan.

One AnnData element of ring 5. "Major" is the axis that ``indptr`` runs over:
cells in a ``csr_matrix``, genes in a ``csc_matrix``. Must not know which of
the two it reads, nor what the matrix means.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.errors import FormatError
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs, chunks_of_runs, expand_runs
from lobster_zarr.node import FIRST, INDEX
from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import ArrayNode, Tree

Half = Literal["values", "indices"]
FEW_SLICES = 64
"""So many slices of a chunk are copied one by one, more of them value by value."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """The three arrays of a compressed sparse matrix, in memory.

    Parameters
    ----------
    values : ndarray, shape (nnz,)
        Stored values.
    indices : ndarray of int, shape (nnz,)
        Position of each value along the minor axis.
    indptr : ndarray of int64, shape (n_major + 1,)
        Where each major slice begins.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray


class SparseReader:
    """Reads one sparse group of a store.

    Parameters
    ----------
    fetcher
        Of the store.
    tree
        The store's nodes.
    path
        Of the group, for example ``X`` or ``X/csc``.
    """

    def __init__(self, fetcher: Fetcher, tree: Tree, path: str) -> None:
        self.fetcher = fetcher
        self.path = path
        shape = tree.attributes(path).get("shape")
        if not (
            isinstance(shape, list | tuple) and len(shape) == 2 and all(isinstance(n, int) and n >= 0 for n in shape)
        ):
            msg = f"sparse group {path!r} has no valid 'shape' attribute, got {shape!r}; the store is damaged."
            raise FormatError(msg)
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.row_major = tree.encoding(path).startswith("csr")
        self.values = tree.array(f"{path}/data")
        self.indices = tree.array(f"{path}/indices")
        self._indptr_node = tree.array(f"{path}/indptr")
        if self.values.shape != self.indices.shape:
            msg = (
                f"'{path}/data' has {self.values.shape} values, '{path}/indices' {self.indices.shape}; "
                "the store is damaged."
            )
            raise FormatError(msg)
        self._index_node, self._first_node = (
            tree.array(p) if tree.is_array(p) else None for p in (f"{path}/{INDEX}", f"{path}/{FIRST}")
        )
        self._indptr: np.ndarray | None = None
        self._first: np.ndarray | None = None
        self.tail: np.ndarray | None = None
        """What follows the sizes in ``INDEX``, int64, once it was asked for: the source order of a sorted store."""
        self._lock, self._first_lock = asyncio.Lock(), asyncio.Lock()

    @property
    def n_major(self) -> int:
        """Length of the major axis."""
        return self.shape[0] if self.row_major else self.shape[1]

    @property
    def n_minor(self) -> int:
        """Length of the minor axis."""
        return self.shape[1] if self.row_major else self.shape[0]

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return self.values.shape[0]

    @property
    def is_prepared(self) -> bool:
        """Whether the offsets of the major slices are known, without a request."""
        return self._indptr is not None

    async def indptr(self, *, with_tail: bool = False) -> np.ndarray:
        """Read ``indptr``, and where the chunks lie, once. Returns int64, shape (n_major + 1,)."""
        async with self._lock:
            if self._indptr is None:
                found = await read_array(self.fetcher, self._offsets_node, self._offsets(with_tail=with_tail))
                indptr = found.astype(np.int64) if self._index_node is None else self._take_index(found)
                bounded = len(indptr) == self.n_major + 1 and indptr[0] == 0 and indptr[-1] == self.nnz
                if not bounded or np.any(np.diff(indptr) < 0):
                    msg = (
                        f"{self._offsets_node.path!r} is damaged: expected {self.n_major + 1:,} ascending offsets "
                        f"from 0 to {self.nnz:,}."
                    )
                    raise FormatError(msg)
                self._indptr = indptr
        return self._indptr

    def suppose(self, indptr: np.ndarray, first: np.ndarray | None = None) -> None:
        """Take the offsets, and the first position of each chunk, as given: for a plan over what is not read."""
        self._indptr, self._first = indptr, first

    @property
    def _offsets_node(self) -> ArrayNode:
        return self._indptr_node if self._index_node is None else self._index_node

    def _take_index(self, index: np.ndarray) -> np.ndarray:
        """Take the offsets, and the sizes of all chunks, from an ``INDEX`` array."""
        n_chunks, end = self.values.grid.n_chunks, self._index_end
        if self.indices.grid.n_chunks != n_chunks or len(index) not in (end, end + self.n_minor):
            msg = f"'{self.path}/{INDEX}' has {len(index):,} values, expected {end:,}; the store is damaged."
            raise FormatError(msg)
        lengths, sizes = index[: self.n_major], index[self.n_major : end]
        self.tail = index[end:].astype(np.int64) if len(index) > end else None
        if not self.fetcher.knows(self.values):
            self.fetcher.remember_sizes((self.values, self.indices), sizes.reshape(2, n_chunks))
        return _cumulated(lengths)

    @property
    def _index_end(self) -> int:
        return self.n_major + 2 * self.values.grid.n_chunks

    def _offsets(self, *, with_tail: bool = False) -> Runs | None:
        """Which part of the offsets' array is read."""
        has_tail = self._index_node is not None and self._index_node.shape[0] > self._index_end
        return Runs(np.asarray([0]), np.asarray([self._index_end])) if has_tail and not with_tail else None

    async def prepare(self, minor: Runs | None = None, *, with_tail: bool = False) -> None:
        """Read what a plan over some major slices needs, and for some minor positions of them.

        Parameters
        ----------
        minor
            The minor positions that will be wanted; None for all.
        with_tail
            Read :attr:`tail` as well, where it is there.
        """
        wanted = [self.indptr(with_tail=with_tail)]
        if minor is not None and self._first_node is not None:
            wanted.append(self._read_first(self._first_node))
        await together(*wanted)

    async def _read_first(self, node: ArrayNode) -> np.ndarray:
        async with self._first_lock:
            if self._first is None:
                first = (await read_array(self.fetcher, node)).astype(np.int64)
                if first.shape != (self.indices.grid.n_chunks,):
                    msg = f"{node.path!r} has the shape {first.shape}; the store is damaged."
                    raise FormatError(msg)
                self._first = first
        return self._first

    async def read(self, major: Runs | None = None, place: np.ndarray | None = None) -> Compressed:
        """Read whole major slices. O(their chunks); memory: the result.

        Parameters
        ----------
        major
            Runs of major positions; None for all.
        place : ndarray of int64, shape (n_major,), or None
            Where each slice goes in the result, of all of them; None to keep their order.
        """
        if place is not None:
            return await self._read_placed(place)
        spans = Runs.whole(self.nnz) if major is None else (await self._spans(major, None))[0]
        values, indices, indptr = await together(
            read_array(self.fetcher, self.values, spans),
            read_array(self.fetcher, self.indices, spans),
            self.indptr(),
        )
        self._check_range(indices)
        if major is not None:
            _, indptr = await self._spans(major, None)
        return Compressed(values, indices, indptr)

    async def _read_placed(self, place: np.ndarray) -> Compressed:
        """Read everything, each major slice straight to its place in another order."""
        indptr = await self.indptr()
        lengths = np.empty(self.n_major, np.int64)
        lengths[place] = np.diff(indptr)
        offsets = _cumulated(lengths)
        targets = offsets[place]

        async def read(node: ArrayNode) -> np.ndarray:
            out, chunk = np.empty(self.nnz, node.dtype), node.grid.chunk[0]

            def deliver(chunk_id: int, decoded: np.ndarray) -> None:
                begin, end = chunk_id * chunk, min((chunk_id + 1) * chunk, self.nnz)
                first, last = np.searchsorted(indptr, begin, "right") - 1, np.searchsorted(indptr, end, "left")
                starts, stops = np.maximum(indptr[first:last], begin), np.minimum(indptr[first + 1 : last + 1], end)
                at = targets[first:last] + starts - indptr[first:last]
                if len(at) > FEW_SLICES:
                    out[expand_runs(at, at + stops - starts)] = decoded[: end - begin]
                    return
                for to, start, stop in zip(
                    at.tolist(), (starts - begin).tolist(), (stops - begin).tolist(), strict=True
                ):
                    out[to : to + stop - start] = decoded[start:stop]

            await self.fetcher.chunks(node, np.arange(node.grid.n_chunks), deliver)
            return out

        values, indices = await together(read(self.values), read(self.indices))
        self._check_range(indices)
        return Compressed(values, indices, offsets)

    def _check_range(self, indices: np.ndarray) -> None:
        """Refuse positions off the axis; a store of this package was verified by its checksums."""
        if not self.fetcher.strict and len(indices) and not (indices.min() >= 0 and indices.max() < self.n_minor):
            msg = f"'{self.path}/indices' holds positions outside [0, {self.n_minor:,}); the store is damaged."
            raise FormatError(msg)

    async def read_projected(self, major: Runs | None, minor: Runs) -> Compressed:
        """Read major slices and keep some minor positions of each.

        Memory is bounded by the result and the chunks under way: each chunk
        is filtered as soon as both its halves are decoded.

        Parameters
        ----------
        major
            Runs of major positions; None for all.
        minor
            Minor positions to keep; indices of the result count among them.
        """
        await self.prepare(minor)
        spans, indptr = await self._spans(major, minor)
        signed = np.int32 if self.indices.dtype.itemsize < 4 else np.dtype(f"i{self.indices.dtype.itemsize}")
        lookup = np.full(self.n_minor, -1, signed)
        lookup[minor.positions()] = np.arange(minor.total)
        chunk = self.values.grid.chunk[0]
        if self.indices.grid.chunk[0] != chunk:
            return _project(await self.read(major), lookup)
        pieces: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        pairs = _Pairs()

        def deliver(half: Half, chunk_id: int, decoded: np.ndarray) -> None:
            pair = pairs.put(half, chunk_id, decoded)
            if pair is not None:
                values, indices = pair
                inside, place = spans.within(chunk_id * chunk, min((chunk_id + 1) * chunk, self.nnz))
                self._check_range(indices[inside])
                kept = lookup[indices[inside]]
                hit = np.flatnonzero(kept >= 0)
                pieces[chunk_id] = (place.start + hit, kept[hit], values[inside][hit])

        chunk_ids = chunks_of_runs(spans.starts, spans.stops, chunk)
        delivers = partial(deliver, "values"), partial(deliver, "indices")
        await self.fetcher.pairs((self.values, self.indices), chunk_ids, delivers)
        ordered = [pieces[int(i)] for i in chunk_ids]
        if not ordered:
            return Compressed(np.empty(0, self.values.dtype), np.empty(0, self.indices.dtype), np.zeros_like(indptr))
        at, kept, values = (np.concatenate(part) for part in zip(*ordered, strict=True))
        return Compressed(values, kept, np.searchsorted(at, indptr).astype(np.int64))

    async def reads(self, major: Runs | None, minor: Runs | None = None) -> list[ArrayRead]:
        """Return what reading major slices reads: chunks and, where it is not prepared and all are wanted, offsets."""
        if major is None and not self.is_prepared:
            spans, extra = Runs.whole(self.nnz), [ArrayRead(self._offsets_node, self._offsets())]
        else:
            spans, extra = (await self._spans(major, minor))[0], []
        kept = 1.0 if minor is None else minor.total / max(self.n_minor, 1)
        return [ArrayRead(self.values, spans, kept=kept), ArrayRead(self.indices, spans, kept=kept), *extra]

    async def _spans(self, major: Runs | None, minor: Runs | None) -> tuple[Runs, np.ndarray]:
        """Value spans of the wanted major slices, merged, and the result's indptr."""
        indptr = await self.indptr()
        if major is None and (minor is None or self._first is None):
            return Runs.whole(self.nnz), indptr
        if minor is not None and self._first is not None:
            return self._narrowed(indptr, major or Runs.whole(self.n_major), minor, self._first)
        assert major is not None  # noqa: S101 - one of the three holds
        positions = major.positions()
        return _merged(indptr[major.starts], indptr[major.stops]), _cumulated(indptr[positions + 1] - indptr[positions])

    def _narrowed(self, indptr: np.ndarray, major: Runs, minor: Runs, first: np.ndarray) -> tuple[Runs, np.ndarray]:
        """As :meth:`_spans`, without the chunks that lie, by the first minor position of each, between the wanted ones.

        Positions ascend within a major slice: a chunk holds those from its own
        first to that of the next chunk of the same slice.
        """
        chunk, positions = self.values.grid.chunk[0], major.positions()
        if not minor.total:
            return _merged(positions[:0], positions[:0]), np.zeros(len(positions) + 1, np.int64)
        starts, stops = indptr[positions], indptr[positions + 1]
        n_pieces = np.where(stops > starts, (stops - 1) // chunk - starts // chunk + 1, 0)
        of = np.repeat(np.arange(len(positions)), n_pieces)
        chunk_ids = expand_runs(starts // chunk, starts // chunk + n_pieces)
        begins = chunk_ids * chunk >= starts[of]
        continues = (chunk_ids + 1) * chunk < stops[of]
        low = np.where(begins, first[chunk_ids], 0)
        high = np.where(continues, first[np.minimum(chunk_ids + 1, len(first) - 1)] + 1, self.n_minor)
        run = np.minimum(np.searchsorted(minor.stops, low, side="right"), len(minor.stops) - 1)
        wanted = (minor.stops[run] > low) & (minor.starts[run] < high)
        starts, stops = np.maximum(chunk_ids * chunk, starts[of]), np.minimum((chunk_ids + 1) * chunk, stops[of])
        lengths = np.bincount(of[wanted], (stops - starts)[wanted], len(positions)).astype(np.int64)
        return _merged(starts[wanted], stops[wanted]), _cumulated(lengths)


def _merged(starts: np.ndarray, stops: np.ndarray) -> Runs:
    """Runs from ascending spans: empty ones go, adjoining ones become one."""
    keep = stops > starts
    starts, stops = starts[keep], stops[keep]
    if len(starts):
        joins = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        starts, stops = starts[np.r_[0, joins]], stops[np.r_[joins - 1, len(stops) - 1]]
    return Runs(starts, stops)


def _cumulated(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class _Pairs:
    """Brings the two halves of a chunk together, whichever is decoded first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, np.ndarray] = {}

    def put(self, half: Half, chunk_id: int, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return ``(values, indices)`` once both are there."""
        with self._lock:
            other = self._waiting.pop(chunk_id, None)
            if other is None:
                self._waiting[chunk_id] = decoded
                return None
        return (decoded, other) if half == "values" else (other, decoded)


def _project(whole: Compressed, lookup: np.ndarray) -> Compressed:
    kept = lookup[whole.indices]
    hit = np.flatnonzero(kept >= 0)
    return Compressed(whole.values[hit], kept[hit], np.searchsorted(hit, whole.indptr).astype(np.int64))
