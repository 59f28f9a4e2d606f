"""Coalescing by its rules: everything covered once, gaps and lengths bounded, no request too many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.byterange import Network, coalesce


@st.composite
def ranges(draw):
    steps = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=20))
    edges = np.cumsum(np.array(steps, np.int64).reshape(-1, 2).ravel())
    return edges[::2].astype(np.int64), edges[1::2].astype(np.int64)


@given(ranges(), st.integers(0, 30), st.integers(1, 120))
def test_requests_follow_the_rules(found, gap_bytes, max_bytes):
    starts, stops = found
    first, last = coalesce(starts, stops, gap_bytes=gap_bytes, max_bytes=max_bytes)
    covered = [i for a, b in zip(first, last, strict=True) for i in range(a, b)]
    assert covered == list(range(len(starts)))
    for a, b in zip(first, last, strict=True):
        assert all(starts[i + 1] - stops[i] <= gap_bytes for i in range(a, b - 1))
        assert b - a == 1 or stops[b - 1] - starts[a] <= max_bytes
    for a, b in zip(first[:-1], last[:-1], strict=True):
        # Greedy: the next range did not fit into the request before it.
        assert starts[b] - stops[b - 1] > gap_bytes or stops[b] - starts[a] > max_bytes


def test_no_ranges_make_no_requests():
    empty = np.empty(0, np.int64)
    first, last = coalesce(empty, empty, gap_bytes=10, max_bytes=10)
    assert len(first) == len(last) == 0


@pytest.mark.parametrize(
    ("gap_bytes", "max_bytes", "requests"),
    [
        (0, 1000, [(0, 2), (2, 3), (3, 4)]),  # touching ranges always share
        (9, 1000, [(0, 2), (2, 3), (3, 4)]),
        (10, 1000, [(0, 3), (3, 4)]),  # a gap of exactly the limit is read through
        (70, 1000, [(0, 4)]),
        (70, 30, [(0, 3), (3, 4)]),  # 30 bytes fit in 30
        (70, 29, [(0, 2), (2, 3), (3, 4)]),
        (70, 5, [(0, 1), (1, 2), (2, 3), (3, 4)]),  # a range longer than the limit stays whole
    ],
)
def test_the_limits_are_inclusive(gap_bytes, max_bytes, requests):
    starts, stops = np.array([100, 110, 125, 200]), np.array([110, 115, 130, 207])
    first, last = coalesce(starts, stops, gap_bytes=gap_bytes, max_bytes=max_bytes)
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == requests


def test_a_gap_is_worth_reading_while_it_costs_less_than_a_request():
    slow = Network(latency_seconds=0.02, bandwidth_bytes=12.5e6, concurrency=64)
    fast = Network(latency_seconds=0.02, bandwidth_bytes=1.25e9, concurrency=64)
    assert slow.gap_bytes == 3906
    assert fast.gap_bytes == 390_625


def test_predicted_seconds_are_round_trips_and_bytes():
    network = Network(latency_seconds=0.1, bandwidth_bytes=1e6, concurrency=4)
    assert network.seconds(1, 0) == pytest.approx(0.1)
    assert network.seconds(4, 500_000) == pytest.approx(0.6)
    assert network.seconds(5, 0) == pytest.approx(0.2)  # the fifth waits for its turn
    assert network.seconds(1, 0, round_trips=3) == pytest.approx(0.3)
