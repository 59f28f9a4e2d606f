"""The parts of an HDF5 file that are in memory, as a file that libhdf5 reads.

A read of what is not there is noted and fails; whoever drives libhdf5 brings what
was noted and begins anew. So libhdf5 never waits for a network while it holds its
lock, and one pass tells of all that is missing at once. Must not know where bytes
come from.
"""

from __future__ import annotations

import bisect
import io
from typing import TYPE_CHECKING, override

import numpy as np

from lobster_zarr.byterange import coalesce

if TYPE_CHECKING:
    from collections.abc import Buffer, Iterable

AHEAD_BYTES = 192 << 10
"""What is read around a missing place: metadata lie in clusters, and a request costs as long as 250 kB."""
GAP_BYTES = 512 << 10


class FileImage:
    """What is known of a file of `n_bytes`, by ascending extents.

    Parameters
    ----------
    n_bytes
        Size of the file.
    below
        Another image of the same file, that is asked first and not changed.
    ahead_bytes
        What is read beyond a missing place; a third of it before it.
    """

    def __init__(self, n_bytes: int, below: FileImage | None = None, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.n_bytes, self.below, self.ahead_bytes = n_bytes, below, ahead_bytes
        self._starts: list[int] = []
        self._bodies: list[bytes] = []

    def add(self, start: int, body: bytes) -> None:
        """Take bytes of the file; what overlaps or touches becomes one extent."""
        stop = start + len(body)
        first = bisect.bisect_left([s + len(b) for s, b in zip(self._starts, self._bodies, strict=True)], start)
        last = bisect.bisect_right(self._starts, stop)
        joined = list(zip(self._starts[first:last], self._bodies[first:last], strict=True))
        low, high = min([start, *(s for s, _ in joined)]), max([stop, *(s + len(b) for s, b in joined)])
        whole = bytearray(high - low)
        for at, part in (*joined, (start, body)):
            whole[at - low : at - low + len(part)] = part
        self._starts[first:last], self._bodies[first:last] = [low], [bytes(whole)]

    def read(self, start: int, stop: int) -> memoryview | None:
        """Return a range, or None where not all of it is known."""
        which = bisect.bisect_right(self._starts, start) - 1
        if which >= 0 and stop <= self._starts[which] + len(self._bodies[which]):
            at = start - self._starts[which]
            return memoryview(self._bodies[which])[at : at + stop - start]
        return None if self.below is None else self.below.read(start, stop)

    def extents(self) -> list[tuple[int, bytes]]:
        """Return what is known, ascending."""
        return list(zip(self._starts, self._bodies, strict=True))

    def to_fetch(self, missing: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the ranges ``[start, stop)`` to read for missing ones: wider, and joined where they lie close."""
        wanted = sorted(self._widened(start, stop) for start, stop in missing)
        low, high = (np.asarray(ends, np.int64) for ends in zip(*wanted, strict=True))
        high = np.maximum.accumulate(high)
        gap_bytes = self.ahead_bytes * GAP_BYTES // AHEAD_BYTES
        first, last = coalesce(low, high, gap_bytes=gap_bytes, max_bytes=1 << 62)
        return [(int(low[a]), int(high[b - 1])) for a, b in zip(first, last, strict=True)]

    def _widened(self, start: int, stop: int) -> tuple[int, int]:
        """Return a wider range without what is known at its ends."""
        low, high = max(start - self.ahead_bytes // 3, 0), min(max(stop, start + self.ahead_bytes), self.n_bytes)
        for at, body in self.extents():
            if at <= low < at + len(body) <= stop:
                low = at + len(body)
            if start <= at < high <= at + len(body):
                high = at
        return min(low, start), max(high, stop)


class ImageFile(io.RawIOBase):
    """An image as a file. `missing` notes what was asked for in vain; `touched`, what was read."""

    def __init__(self, image: FileImage) -> None:
        self.image, self._at = image, 0
        self.missing: list[tuple[int, int]] = []
        self.touched: list[tuple[int, int]] = []

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.image.n_bytes}[whence]
        return self._at

    @override
    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer from where the file stands; what lies beyond the end stays out."""
        out = memoryview(buffer).cast("B")
        start, stop = self._at, min(self._at + len(out), self.image.n_bytes)
        if stop <= start:
            return 0
        known = self.image.read(start, stop)
        if known is None:
            self.missing.append((start, stop))
            raise OSError(f"bytes {start} to {stop} are not in memory")
        out[: stop - start] = known
        self.touched.append((start, stop))
        self._at = stop
        return stop - start
