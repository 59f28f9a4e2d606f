"""Reads arrays: whole, by runs of rows, or by rows and columns.

One AnnData element of ring 5. Knows how decoded chunks land in a preallocated
result. Must not know what the array means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.grid import chunks_of_runs, expand_runs

if TYPE_CHECKING:
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import ArrayNode


@dataclass(frozen=True, eq=False)
class Runs:
    """Sorted half-open runs of positions along one axis.

    Parameters
    ----------
    starts, stops : ndarray of int64, shape (n,)
        Ascending and non-overlapping.
    """

    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def whole(cls, length: int) -> Runs:
        """Return the run of everything."""
        return cls(np.asarray([0], np.int64), np.asarray([length], np.int64))

    @cached_property
    def ends(self) -> np.ndarray:
        """Positions in the result where each run ends."""
        return np.cumsum(self.stops - self.starts)

    @property
    def total(self) -> int:
        """The number of positions."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def positions(self) -> np.ndarray:
        """Every position, one by one."""
        return expand_runs(self.starts, self.stops)

    def within(self, start: int, stop: int) -> tuple[slice | np.ndarray, slice]:
        """Positions that lie in ``[start, stop)``, and where they land in the result.

        Returns
        -------
        slice or ndarray of int64
            Relative to `start`, ascending; a slice where they are contiguous.
        slice
            Their places among all positions of the runs, always contiguous.
        """
        a = int(self.stops.searchsorted(start, side="right"))
        b = int(self.starts.searchsorted(stop, side="left"))
        if a >= b:
            return slice(0, 0), slice(0, 0)
        first = int(self.starts[a])
        lo = max(first, start)
        at = int(self.ends[a]) - int(self.stops[a]) + lo
        if b - a == 1:
            hi = min(int(self.stops[a]), stop)
            return slice(lo - start, hi - start), slice(at, at + hi - lo)
        inside = expand_runs(np.maximum(self.starts[a:b], start) - start, np.minimum(self.stops[a:b], stop) - start)
        return inside, slice(at, at + len(inside))


async def read_array(
    fetcher: Fetcher, node: ArrayNode, rows: Runs | None = None, columns: Runs | None = None
) -> np.ndarray:
    """Read an array, or the chunks of it that hold some rows and columns.

    Parameters
    ----------
    fetcher
        Of the store.
    node
        The array.
    rows, columns
        Positions along the first and second axis; None for all.

    Returns
    -------
    ndarray
        Of the node's dtype, rows and columns in storage order. Cost:
        O(touched chunks).
    """
    if not node.shape:
        return await _read_scalar(fetcher, node)
    axes = [rows or Runs.whole(node.shape[0])]
    axes += [columns or Runs.whole(n) for n in node.shape[1:2]]
    axes += [Runs.whole(n) for n in node.shape[2:]]
    out = np.empty([axis.total for axis in axes], node.dtype)
    if not out.size:
        return out
    per_axis = [chunks_of_runs(r.starts, r.stops, c) for r, c in zip(axes, node.grid.chunk, strict=True)]
    mesh = np.meshgrid(*per_axis, indexing="ij")
    chunk_ids = np.ravel_multi_index(mesh, node.grid.chunks_per_axis).ravel()

    grid = node.grid

    def deliver(chunk_id: int, chunk: np.ndarray) -> None:
        pairs = [
            axis.within(at * c, min((at + 1) * c, n))
            for axis, at, c, n in zip(axes, grid.chunk_coords(chunk_id), grid.chunk, grid.shape, strict=True)
        ]
        target = tuple(pair[1] for pair in pairs)
        if sum(not isinstance(inside, slice) for inside, _ in pairs) < 2:
            out[target] = chunk[tuple(inside for inside, _ in pairs)]
        else:
            out[target] = chunk[np.ix_(*(_spread(inside) for inside, _ in pairs))]

    places = _whole_chunks(node, axes[0], chunk_ids) if len(axes) == 1 else {}
    length = grid.chunk[0]

    def place(chunk_id: int) -> np.ndarray | None:
        at = places.get(chunk_id)
        return None if at is None else out[at : at + length]

    await fetcher.chunks(node, chunk_ids, deliver, place)
    return out


def _whole_chunks(node: ArrayNode, runs: Runs, chunk_ids: np.ndarray) -> dict[int, int]:
    """Places in the result of the chunks of a vector that are wanted whole."""
    length = node.grid.chunk[0]
    starts = chunk_ids * length
    run = runs.stops.searchsorted(starts, side="right")
    whole = (runs.starts[run] <= starts) & (runs.stops[run] >= starts + length)
    places = runs.ends[run] - runs.stops[run] + starts
    return dict(zip(chunk_ids[whole].tolist(), places[whole].tolist(), strict=True))


async def _read_scalar(fetcher: Fetcher, node: ArrayNode) -> np.ndarray:
    out: list[np.ndarray] = []
    await fetcher.chunks(node, np.zeros(1, np.int64), lambda _, chunk: out.append(chunk))
    return out[0]


def _spread(inside: slice | np.ndarray) -> np.ndarray:
    return np.arange(inside.start, inside.stop) if isinstance(inside, slice) else inside
