"""Which chunks of an array are touched, as pictures: characters, a strip of SVG, lanes of a matplotlib figure.

Pure: numbers of chunks in a grid. The first axis runs from left to right; further ones lie under one another. Must
not know what a query is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.markup import Markup, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

LINE_BINS = 32
STRIP_BINS = 240, 12
"""Of a strip of SVG, across and down: more are drawn by their share."""
LEVELS = 4
LANE_ROWS = 48
"""Rows of chunks that a lane of a figure draws at most."""


@dataclass(frozen=True, eq=False)
class Lane:
    """An array in a figure.

    Parameters
    ----------
    name, told
        On its left, and on its right.
    chunk_ids : ndarray of int64
        Chunks that are touched.
    chunks_per_axis
        Of its grid; empty of a scalar.
    """

    name: str
    told: str
    chunk_ids: np.ndarray
    chunks_per_axis: tuple[int, ...]


def _places(chunk_ids: np.ndarray, chunks_per_axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return the place of each chunk along the first axis and along all others, and how many there are of each."""
    across, down = (*chunks_per_axis[:1], 1)[0], math.prod(chunks_per_axis[1:])
    return chunk_ids // down, chunk_ids % down, across, down


def shares(chunk_ids: np.ndarray, chunks_per_axis: tuple[int, ...], bins: tuple[int, int]) -> np.ndarray:
    """Count which share of the chunks is touched, bin by bin: float64, (rows, columns). O(chunks touched + bins)."""
    x, y, across, down = _places(chunk_ids, chunks_per_axis)
    n_x, n_y = min(bins[0], across), min(bins[1], down)
    touched = np.zeros((n_y, n_x))
    np.add.at(touched, (y * n_y // max(down, 1), x * n_x // max(across, 1)), 1)
    sizes = [np.diff(-(-np.arange(n + 1) * whole // max(n, 1))) for n, whole in ((n_y, down), (n_x, across))]
    return touched / np.maximum(np.outer(*sizes), 1)


def line(chunk_ids: np.ndarray, chunks_per_axis: tuple[int, ...]) -> str:
    """Draw the chunks from first to last: ``█`` all touched, ``▒`` some, ``·`` none."""
    whole = (math.prod(chunks_per_axis),)
    (told,) = shares(chunk_ids, whole, (LINE_BINS, 1))
    return "".join("·" if s == 0 else "█" if s > 0.99 else "▒" for s in told) or "·"


def strip(chunk_ids: np.ndarray, chunks_per_axis: tuple[int, ...]) -> Markup:
    """Draw the chunks as an SVG image, stronger where more of them are touched."""
    told = shares(chunk_ids, chunks_per_axis, STRIP_BINS)
    # A share just above a level is that level: bins of 41 and of 42 chunks would flicker.
    levels = np.where(told > 0, np.maximum(np.ceil(told * LEVELS - 0.1), 1), 0)
    height, width = levels.shape
    paths = []
    for level in range(1, LEVELS + 1):
        drawn = "".join(
            f"M{start} {y}h{stop - start}v1h{start - stop}z"
            for y, row in enumerate(levels == level)
            for start, stop in _runs(np.flatnonzero(row))
        )
        paths += [tag("path", d=drawn, opacity=f"{0.4 + 0.6 * level / LEVELS:.2f}")] if drawn else []
    n_chunks = math.prod(chunks_per_axis)
    return tag(
        "svg",
        tag("title", f"{len(chunk_ids):,} of {n_chunks:,} chunks"),
        *paths,
        cls="strip",
        viewBox=f"0 0 {max(width, 1)} {max(height, 1)}",
        preserveAspectRatio="none",
        role="img",
        style=f"height:{12 if height == 1 else min(14 + 2 * height, 36)}px",
    )


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Return half-open ranges of ascending places."""
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [(int(p[0]), int(p[-1]) + 1) for p in parts if len(p)]


def draw(lanes: Sequence[Lane], ax: Axes | None) -> Axes:
    """Draw arrays under one another, each from its first chunk to its last.

    Parameters
    ----------
    lanes
        The arrays, the first on top; chunks of a second axis lie under those of the first.
    ax
        Where; None for a figure of its own.

    Returns
    -------
    Axes
        Each row of chunks of each lane is a collection, in order, a range of touched chunks a path of it: from 0
        to 1 across, the share of the axis.
    """
    heights = [1.0 if math.prod(lane.chunks_per_axis[1:]) == 1 else 2.2 for lane in lanes]
    ax = _axes(sum(heights)) if ax is None else ax
    top, ticks = 0.0, []
    for lane, height in zip(lanes, heights, strict=True):
        _draw_lane(ax, lane, top + 0.15, height - 0.3)
        ticks.append(top + height / 2)
        ax.text(1.015, ticks[-1], lane.told, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
        top += height
    ax.set_yticks(ticks, [lane.name for lane in lanes])
    ax.tick_params(axis="y", length=0)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlim=(0, 1), ylim=(max(top, 0.5), 0), xlabel="place in the array")
    ax.spines[:].set_visible(False)
    return ax


def _axes(height: float) -> Any:
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(9, 1.2 + 0.36 * max(height, 1)), layout="constrained")[1]


def _draw_lane(ax: Axes, lane: Lane, top: float, height: float) -> None:
    x, y, across, down = _places(lane.chunk_ids, lane.chunks_per_axis)
    n_rows = min(down, LANE_ROWS)
    y = y * n_rows // max(down, 1)
    step = height / max(n_rows, 1)
    ax.broken_barh([(0, 1)], (top, height), facecolor="0.5", alpha=0.15, linewidth=0)  # all of the array
    for row in range(n_rows):
        spans = [(a / across, (b - a) / across) for a, b in _runs(np.unique(x[y == row]))]
        ax.broken_barh(
            spans, (top + row * step, step * (1 if n_rows == 1 else 0.9)), facecolor="C0", linewidth=0.4, edgecolor="C0"
        )
