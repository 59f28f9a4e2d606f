"""Reads arrays: whole, by runs of rows, or by rows and columns.

One AnnData element of ring 5. Knows how decoded chunks land in a preallocated
result. Must not know what the array means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.grid import Runs
    from lobster_zarr.node import ArrayNode


async def read_array(
    fetcher: Fetcher,
    node: ArrayNode,
    rows: Runs | None = None,
    columns: Runs | None = None,
    place: np.ndarray | None = None,
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
    place : ndarray of int64, shape (n_rows,), or None
        Where each row goes in the result, of all of them; None to keep their order.

    Returns
    -------
    ndarray
        Of the node's dtype, rows and columns in storage order, or in that of `place`. Cost:
        O(touched chunks).
    """
    if not node.shape:
        return await _read_scalar(fetcher, node)
    read = ArrayRead(node, rows, columns)
    axes = read.axes
    out = np.empty([axis.total for axis in axes], node.dtype)
    if not out.size:
        return out
    chunk_ids = read.chunk_ids
    grid = node.grid

    def deliver(chunk_id: int, chunk: np.ndarray) -> None:
        pairs = [
            axis.within(at * c, min((at + 1) * c, n))
            for axis, at, c, n in zip(axes, grid.chunk_coords(chunk_id), grid.chunk, grid.shape, strict=True)
        ]
        target: tuple[slice | np.ndarray, ...] = tuple(pair[1] for pair in pairs)
        if place is not None:
            target = (place[target[0]], *target[1:])
        if sum(not isinstance(inside, slice) for inside, _ in pairs) < 2:
            out[target] = chunk[tuple(inside for inside, _ in pairs)]
        else:
            out[target] = chunk[np.ix_(*(_spread(inside) for inside, _ in pairs))]

    places = _whole_chunks(node, axes[0], chunk_ids) if len(axes) == 1 and place is None else {}
    length = grid.chunk[0]

    def in_place(chunk_id: int) -> np.ndarray | None:
        at = places.get(chunk_id)
        return None if at is None else out[at : at + length]

    await fetcher.chunks(node, chunk_ids, deliver, in_place)
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
