"""Which rows an epoch of training brings, in which order: pure arithmetic.

Cuts rows into short runs that lie together in storage, shuffles the runs, and
shuffles again the rows of as many runs as are read at once. Whoever knows the
seed and the number of the epoch comes to the same batches, so that processes
share an epoch without talking to each other. Must not know what a row is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.grid import expand_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, eq=False)
class Buffer:
    """Rows that are read at once.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Ascending.
    batches : list of ndarray of int64
        For each batch the places of its rows in `rows`.
    """

    rows: np.ndarray
    batches: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Epochs:
    """The batches of every epoch over some rows.

    Parameters
    ----------
    weights : ndarray of int64, shape (n_rows,)
        Bytes of each row, in the order in which rows lie together.
    batch_rows
        Rows of a batch.
    run_rows
        Rows that stay together until their buffer is shuffled.
    buffer_bytes
        Of the rows of a buffer: as many batches as fit, at least one.
    shuffle
        Whether to shuffle at all.
    drop_last
        Whether a last batch of fewer rows is left out.
    rank, world_size
        Which of how many equal shares of the rows, cut after the runs are shuffled.
    """

    weights: np.ndarray
    batch_rows: int
    run_rows: int
    buffer_bytes: int
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    @cached_property
    def edges(self) -> np.ndarray:
        """Bounds of the batches among the shuffled rows: int64, shape (n_batches + 1,)."""
        n_rows, batch = len(self.weights), self.batch_rows
        if self.drop_last:  # the same for each rank: a step of training waits for all of them
            share = n_rows // self.world_size
            return self.rank * share + batch * np.arange(share // batch + 1)
        start, stop = ((self.rank + i) * n_rows // self.world_size for i in (0, 1))
        return np.append(np.arange(start, stop, batch), stop)

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, of this rank."""
        return len(self.edges) - 1

    def buffers(self, entropy: Sequence[int], first: int = 0, step: int = 1) -> Iterator[Buffer]:
        """Give the rows of one epoch. O(rows / run_rows + batches), and O(rows) for each buffer that is given.

        Parameters
        ----------
        entropy
            The seed and what tells this epoch from the others: numbers that are not negative.
        first, step
            Gives this buffer and every so manieth after it: the share of one of `step` workers.
        """
        n_rows, random = len(self.weights), np.random.default_rng([*entropy, 0])
        phase = int(random.integers(1, self.run_rows + 1)) if self.shuffle else self.run_rows
        bounds = np.concatenate(([0], np.arange(phase, n_rows, self.run_rows), [n_rows]))
        runs = random.permutation(len(bounds) - 1) if self.shuffle else np.arange(len(bounds) - 1)
        starts, stops = bounds[runs], bounds[runs + 1]
        ends = np.cumsum(stops - starts)
        run_bytes = np.diff(self._bytes_before[bounds])[runs]
        read = np.interp(self.edges, np.append(0, ends), np.append(0, np.cumsum(run_bytes)))
        of = np.ceil((read[1:] - read[0]) / self.buffer_bytes)
        cuts = np.concatenate(([0], np.flatnonzero(np.diff(of)) + 1, [len(of)])) if len(of) else np.empty(0, np.int64)
        for begin, end in list(pairwise(cuts.tolist()))[first::step]:
            edges = self.edges[begin : end + 1]
            a, b = np.searchsorted(ends, (edges[0], edges[-1] - 1), side="right").tolist()
            lows, highs = starts[a : b + 1].copy(), stops[a : b + 1].copy()
            highs[-1] -= ends[b] - edges[-1]
            lows[0] += edges[0] - (ends[a] - stops[a] + starts[a])
            ascending = np.argsort(lows)
            rows = expand_runs(lows[ascending], highs[ascending])
            places = np.arange(len(rows))
            if self.shuffle:
                places = np.random.default_rng([*entropy, 1 + begin]).permutation(len(rows))
            yield Buffer(rows, np.split(places, edges[1:-1] - edges[0]))

    @cached_property
    def _bytes_before(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.weights))
