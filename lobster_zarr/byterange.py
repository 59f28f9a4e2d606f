"""Coalescing of byte ranges: when reading through a gap beats another request.

Pure arithmetic on sorted ranges of one object. Must not know keys, stores
or what the bytes mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Network:
    """What the planner assumes of the way to the storage.

    Parameters
    ----------
    latency_seconds
        Time to the first byte of a request.
    bandwidth_bytes
        Bytes a second that all requests share.
    concurrency
        Requests under way at once.
    max_request_bytes
        A longer coalesced range is cut, so that its parts travel at once.
    request_seconds
        What a request costs the client, which sends one after another.
    """

    latency_seconds: float = 0.02
    bandwidth_bytes: float = 12.5e6
    concurrency: int = 64
    max_request_bytes: int = 16 << 20
    request_seconds: float = 0.0003

    @property
    def gap_bytes(self) -> int:
        """Bytes that may be read in vain instead of sending another request."""
        return int(max(self.latency_seconds / self.concurrency, self.request_seconds) * self.bandwidth_bytes)

    def seconds(self, n_requests: int, n_bytes: int, round_trips: int = 1) -> float:
        """Predict the time for requests that run at once in `round_trips` waves."""
        waves = max(round_trips, -(-n_requests // self.concurrency))
        sending_seconds = max(waves * self.latency_seconds, n_requests * self.request_seconds)
        return sending_seconds + n_bytes / self.bandwidth_bytes


def coalesce(starts: np.ndarray, stops: np.ndarray, *, gap_bytes: int, max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Group sorted byte ranges into requests.

    Parameters
    ----------
    starts, stops : ndarray of int64, shape (n,)
        Ascending, non-overlapping, half-open ranges of one object.
    gap_bytes
        Ranges with at most this many bytes between them share a request.
    max_bytes
        A request does not grow past this, unless a single range is longer.

    Returns
    -------
    first, last : ndarray of int64
        Request ``i`` covers the ranges ``[first[i], last[i])``, that is the
        bytes ``[starts[first[i]], stops[last[i] - 1])``.
    """
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap_bytes) + 1
    edges = np.concatenate(([0], breaks, [len(starts)]))
    first: list[int] = []
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        at = int(lo)
        while at < hi:
            first.append(at)
            within = int(np.searchsorted(stops[at:hi], starts[at] + max_bytes, side="right"))
            at += max(within, 1)
    firsts = np.asarray(first, np.int64)
    return firsts, np.append(firsts[1:], len(starts))
