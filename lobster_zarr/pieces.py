"""Regroups compressed slices between processes, through scratch objects of a store.

What :class:`lobster_zarr.scratch.Exchange` does in one process: each task of the
first stage cuts its slices into stripes of major positions and writes them as one
object, compressed; each task of the second reads its stripes of all objects. Must
not know the source or what the matrix is.

An object is the offsets of its stripes (uint64, one more than stripes), then the
stripes; a stripe is the sizes of four arrays (uint32), then the arrays: major
positions, lengths, indices, values.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.errors import StorageError
from lobster_zarr.fetch import together
from lobster_zarr.grid import cdiv
from lobster_zarr.scratch import BLOSC, Slices, assemble
from lobster_zarr.store import run

if TYPE_CHECKING:
    from zarr.abc.store import Store

STRIPES_PER_PART = 16
"""A part of the result begins and ends within a stripe: it reads a sixteenth more than it needs."""
STRIPE_VALUES = 1024
"""Stripes of fewer values would hardly compress."""
READS = 32


@dataclass(frozen=True)
class Pieces:
    """The scratch objects of one regrouping.

    Parameters
    ----------
    prefix
        Of their keys.
    n_objects
        Tasks of the first stage.
    n_major
        Length of the axis that they regroup by.
    width
        Major positions of a stripe.
    dtypes
        Of indices and of values.
    """

    prefix: str
    n_objects: int
    n_major: int
    width: int
    dtypes: tuple[str, str]

    @classmethod
    def of(
        cls, prefix: str, n_objects: int, n_major: int, n_parts: int, part_values: int, dtypes: tuple[Any, Any]
    ) -> Pieces:
        """Cut an axis into stripes that are fine against a part of the result, but not too fine to compress."""
        n_stripes = max(n_parts, min(STRIPES_PER_PART * n_parts, part_values // STRIPE_VALUES), 1)
        width = max(cdiv(n_major, n_stripes), 1)
        return cls(prefix, n_objects, n_major, width, (np.dtype(dtypes[0]).str, np.dtype(dtypes[1]).str))

    @property
    def keys(self) -> list[str]:
        """Of all objects."""
        return [self.key(i) for i in range(self.n_objects)]

    def key(self, number: int) -> str:
        """Of one object."""
        return f"{self.prefix}/{number}"

    @property
    def n_stripes(self) -> int:
        """Stripes of an object."""
        return cdiv(self.n_major, self.width)

    def pack(self, majors: np.ndarray, slices: Slices) -> bytes:
        """Make an object of slices whose major positions ascend."""
        edges = np.searchsorted(majors, np.arange(self.n_stripes + 1) * self.width).tolist()
        ends = np.zeros(len(majors) + 1, np.int64)
        np.cumsum(slices.lengths, out=ends[1:])
        stripes = []
        for lo, hi in pairwise(edges):
            span = slice(int(ends[lo]), int(ends[hi]))
            arrays = (majors[lo:hi], slices.lengths[lo:hi], slices.indices[span], slices.values[span])
            pairs = zip(arrays, self._kinds, strict=True) if span.stop > span.start else ()
            encoded = [BLOSC.encode(np.ascontiguousarray(array, kind)) for array, kind in pairs]
            stripes.append(np.asarray([len(e) for e in encoded], "<u4").tobytes() + b"".join(encoded))
        offsets = np.cumsum([8 * (self.n_stripes + 1), *map(len, stripes)]).astype("<u8")
        return b"".join([offsets.tobytes(), *stripes])

    def read(self, store: Store, start: int, stop: int) -> Slices:
        """Read the slices of [start, stop) of all objects: two requests an object.

        Memory: those slices, twice, and what the stripes at either end hold besides.
        """
        pieces = [self._within(stripe, start, stop) for stripe in run(self._stripes(store, start, stop))]
        if not pieces:
            empty = (np.empty(0, np.dtype(kind)) for kind in self.dtypes)
            return Slices(np.zeros(stop - start, np.int64), *empty)
        return assemble(pieces, start, stop)

    async def _stripes(self, store: Store, start: int, stop: int) -> list[bytes]:
        """The stripes that hold [start, stop), those of one object after another."""
        first, last = start // self.width, cdiv(stop, self.width)
        gate = asyncio.Semaphore(READS)

        async def get(key: str, begin: int, end: int) -> bytes:
            async with gate:
                found = await store.get(key, default_buffer_prototype(), RangeByteRequest(begin, end))
            if found is None or len(found) != end - begin:
                msg = f"the scratch object {key!r} in {store} is gone; something removed it while it was needed."
                raise StorageError(msg)
            return found.to_bytes()

        async def of_object(key: str) -> list[bytes]:
            offsets = np.frombuffer(await get(key, 8 * first, 8 * (last + 1)), "<u8").astype(np.int64)
            if offsets[0] == offsets[-1]:
                return []
            content = await get(key, int(offsets[0]), int(offsets[-1]))
            return [content[a:b] for a, b in pairwise((offsets - offsets[0]).tolist()) if b > a]

        found = await together(*(of_object(key) for key in self.keys))
        return [stripe for stripes in found for stripe in stripes]

    def _within(self, stripe: bytes, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Decode a stripe, and take of it the slices of some major positions."""
        ends = 16 + np.cumsum(np.frombuffer(stripe[:16], "<u4"), dtype=np.int64)
        bounds = pairwise([16, *ends.tolist()])
        majors, lengths, indices, values = (
            np.frombuffer(BLOSC.decode(stripe[a:b]), kind) for (a, b), kind in zip(bounds, self._kinds, strict=True)
        )
        lo, hi = np.searchsorted(majors, (start, stop))
        at, end = int(lengths[:lo].sum()), int(lengths[:hi].sum())
        return majors[lo:hi], lengths[lo:hi], indices[at:end], values[at:end]

    @property
    def _kinds(self) -> tuple[Any, ...]:
        return np.int64, np.int64, *self.dtypes
