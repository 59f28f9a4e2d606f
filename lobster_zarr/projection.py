"""What a selection brings, and where its cells and genes lie in storage.

Pure: the elements that are wanted, and positions along an axis with the order
in which they come back. Must not read anything.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from lobster_zarr.grid import Runs
from lobster_zarr.selection import runs

Order = Literal["source", "storage"]
Names = Sequence[str] | None


@dataclass(frozen=True)
class Projection:
    """Which elements a selection brings, None meaning all.

    Parameters
    ----------
    X, uns, raw
        Whether to bring them.
    layers, obsm, varm, obsp, varp
        Names of members.
    obs_columns, var_columns
        Names of columns.
    """

    X: bool = True
    layers: Names = None
    obsm: Names = None
    varm: Names = None
    obsp: Names = None
    varp: Names = None
    uns: bool = True
    raw: bool = True
    obs_columns: Names = None
    var_columns: Names = None

    @classmethod
    def only(cls, path: str) -> Projection:
        """Bring one matrix and nothing else."""
        parent, _, name = path.partition("/")
        layers, obsm, obsp = ([name] if parent == p else [] for p in ("layers", "obsm", "obsp"))
        return cls(
            path == "X", layers, obsm, [], obsp, [], uns=False, raw=parent == "raw", obs_columns=[], var_columns=[]
        )


@dataclass(frozen=True, eq=False)
class Axis:
    """Positions wanted along one axis.

    Parameters
    ----------
    runs
        In storage order; None for the whole axis.
    take : ndarray of int64 or None
        Reorders what was read in storage order to the order of the result.
    pending
        Whether `take` is not known yet: the source order of the runs is to be read.
    """

    runs: Runs | None
    take: np.ndarray | None
    pending: bool = False

    @classmethod
    def of(cls, stored: np.ndarray) -> Axis:
        """Bring positions, in any order and repeated, to runs and a reordering."""
        if np.all(np.diff(stored) > 0):
            return cls(Runs(*runs(stored)), None)
        unique, take = np.unique(stored, return_inverse=True)
        return cls(Runs(*runs(unique)), take)

    def pack(self) -> bytes:
        """Encode the positions in little: equal positions to equal bytes."""
        runs = (None, None) if self.runs is None else (self.runs.starts, self.runs.stops - self.runs.starts)
        return zlib.compress(b"".join(map(_packed, (*runs, self.take))))

    @classmethod
    def unpack(cls, packed: bytes) -> Axis:
        """Decode what :meth:`pack` encoded."""
        starts, lengths, take = _unpacked(zlib.decompress(packed))
        return cls(None if starts is None or lengths is None else Runs(starts, starts + lengths), take)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Axis, (self.runs, None, True)) if self.pending else (Axis.unpack, (self.pack(),))

    def equals(self, other: Axis) -> bool:
        """Whether both are the same positions in the same order. O(positions), without encoding them."""
        mine, others = (
            (*((None, None) if a.runs is None else (a.runs.starts, a.runs.stops)), a.take) for a in (self, other)
        )
        return all(
            x is y or (x is not None and y is not None and np.array_equal(x, y))
            for x, y in zip(mine, others, strict=True)
        )

    def count(self, length: int) -> int:
        """The number of positions in the result."""
        if self.take is not None:
            return len(self.take)
        return length if self.runs is None else self.runs.total

    def stored(self, length: int) -> np.ndarray:
        """Positions in storage of the positions of the result: int64."""
        at = np.arange(length) if self.runs is None else self.runs.positions()
        return at if self.take is None else at[self.take]

    def pick(self, which: slice | np.ndarray, length: int) -> Axis:
        """Take positions of the result, in any order and repeated, as an axis of their own."""
        n = self.count(length)
        if isinstance(which, slice):
            start, stop, step = which.indices(n)
            if (start, stop, step) == (0, n, 1):
                return self
            if self.take is None and step == 1:
                runs = Runs.whole(length) if self.runs is None else self.runs
                return Axis(runs.between(start, max(start, stop)), None)
            which = np.arange(start, stop, step)
        at = np.flatnonzero(which) if which.dtype == bool else np.where(which < 0, which + n, which)
        at = at if self.take is None else self.take[at]
        return Axis.of(at if self.runs is None else self.runs.at(at))

    def arrange(self, value: Any) -> Any:
        """Bring rows that were read in storage order to the order of the result."""
        if self.take is None:
            return value
        return value.iloc[self.take] if isinstance(value, pd.DataFrame) else value[self.take]

    def slice_rows(self, value: Any) -> Any:
        """Take the positions from a value that was read whole."""
        if self.runs is None:
            return self.arrange(value)
        at = self.runs.positions() if self.take is None else self.runs.positions()[self.take]
        return value.iloc[at] if isinstance(value, pd.DataFrame) else value[at]


@dataclass(frozen=True, eq=False)
class Part:
    """One element that a selection brings.

    Parameters
    ----------
    path
        Of the element.
    rows, columns
        Along its first and second axis; None for all.
    whole
        Whether it can only be read whole, and is sliced in memory.
    """

    path: str
    rows: Axis | None = None
    columns: Axis | None = None
    whole: bool = False

    def as_stored(self) -> Part:
        """Return the part in the order in which it is stored."""
        rows, columns = (None if a is None else Axis(a.runs, None) for a in (self.rows, self.columns))
        return replace(self, rows=rows, columns=columns)

    def arranged(self, value: Any) -> Any:
        """Bring what was read :meth:`as_stored` to the order of the part."""
        value = value if self.rows is None else self.rows.arrange(value)
        return value if self.columns is None or self.columns.take is None else value[:, self.columns.take]

    def arrange(self, value: Any, rows: Axis, final: Axis) -> Any:
        """Bring a value that was read along pending `rows` to their final order."""
        value = final.arrange(value) if self.rows is rows else value
        return value[:, final.take] if self.columns is rows and final.take is not None else value


def _packed(values: np.ndarray | None) -> bytes:
    """Encode integers by their steps: a code of the width, how many bytes, and these."""
    if values is None:
        return b"-" + (0).to_bytes(8, "little")
    steps = np.diff(values, prepend=0)
    low, high = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
    width = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    payload = steps.astype(width).tobytes()
    return width.char.encode() + len(payload).to_bytes(8, "little") + payload


def _unpacked(payload: bytes) -> list[np.ndarray | None]:
    found: list[np.ndarray | None] = []
    while payload:
        kind, size = payload[:1].decode(), int.from_bytes(payload[1:9], "little")
        steps = None if kind == "-" else np.frombuffer(payload[9 : 9 + size], kind)
        found.append(None if steps is None else np.cumsum(steps, dtype=np.int64))
        payload = payload[9 + size :]
    return found
