"""Chunk and shard arithmetic against NumPy's own, position by position."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.grid import Grid, Runs, cdiv, chunks_of_runs, expand_runs
from tests.recording import as_runs
from tests.strategies import masks


@st.composite
def grids(draw, *, min_length=0, max_dimensions=3):
    axes = draw(
        st.lists(
            st.tuples(st.integers(min_length, 9), st.integers(1, 4), st.integers(1, 3)),
            max_size=max_dimensions,
        )
    )
    shape, chunk = tuple(a[0] for a in axes), tuple(a[1] for a in axes)
    return Grid(shape, chunk, tuple(a[1] * a[2] for a in axes))


@st.composite
def sorted_runs(draw, upper=60):
    cuts = sorted(draw(st.lists(st.integers(0, upper), max_size=16)))
    cuts = cuts[: len(cuts) // 2 * 2]
    return np.array(cuts[::2], np.int64), np.array(cuts[1::2], np.int64)


@given(st.integers(0, 10**15), st.integers(1, 10**6))
def test_cdiv_is_the_ceiling(a, b):
    assert cdiv(a, b) * b - b < a <= cdiv(a, b) * b


@given(grids())
def test_chunks_cut_the_array_into_pieces_that_do_not_overlap(grid):
    times_covered = np.zeros(grid.shape, int)
    for chunk_id in range(grid.n_chunks):
        place = grid.chunk_slices(chunk_id)
        times_covered[place] += 1
        assert all(s.stop <= n for s, n in zip(place, grid.shape, strict=True))
        assert all(0 < s.stop - s.start <= c for s, c in zip(place, grid.chunk, strict=True))
        assert all(s.start % c == 0 for s, c in zip(place, grid.chunk, strict=True))
    assert np.all(times_covered == 1)


@given(grids())
def test_counts_are_those_of_the_axes(grid):
    for n, c, s, chunks, shards, slots in zip(
        grid.shape, grid.chunk, grid.shard, grid.chunks_per_axis, grid.shards_per_axis,
        grid.chunks_per_shard, strict=True,
    ):  # fmt: skip
        assert chunks == len(range(0, n, c))
        assert shards == len(range(0, n, s))
        assert slots * c == s
    assert grid.n_chunks == math.prod(grid.chunks_per_axis)


@given(grids(min_length=1))
def test_locate_agrees_with_the_position_of_each_chunk_in_its_shard(grid):
    shard_ids, slots = grid.locate(np.arange(grid.n_chunks))
    assert shard_ids.dtype == slots.dtype == np.int64
    every = itertools.product(*(range(n) for n in grid.chunks_per_axis))
    for chunk_id, coords in enumerate(every):
        assert grid.chunk_coords(chunk_id) == coords
        outer = tuple(c // p for c, p in zip(coords, grid.chunks_per_shard, strict=True))
        inner = tuple(c % p for c, p in zip(coords, grid.chunks_per_shard, strict=True))
        assert grid.shard_coords(int(shard_ids[chunk_id])) == outer
        expected = int(np.ravel_multi_index(inner, grid.chunks_per_shard)) if inner else 0
        assert slots[chunk_id] == expected
    assert len(set(zip(shard_ids.tolist(), slots.tolist(), strict=True))) == grid.n_chunks


def test_a_scalar_is_one_chunk_in_one_shard():
    grid = Grid((), (), ())
    assert grid.n_chunks == 1
    assert [a.tolist() for a in grid.locate(np.zeros(1, np.int64))] == [[0], [0]]
    assert grid.chunk_slices(0) == grid.shard_coords(0) == ()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_an_empty_array_has_no_chunks(shape):
    grid = Grid(shape, (2,) * len(shape), (4,) * len(shape))
    assert grid.n_chunks == 0


def test_positions_past_32_bits_stay_exact():
    grid = Grid((1 << 40,), (1 << 13,), (1 << 24,))
    shard_ids, slots = grid.locate(np.array([grid.n_chunks - 1]))
    assert (int(shard_ids[0]), int(slots[0])) == ((1 << 16) - 1, (1 << 11) - 1)
    assert grid.chunk_slices(grid.n_chunks - 1) == (slice((1 << 40) - (1 << 13), 1 << 40),)
    starts, stops = np.array([1 << 39]), np.array([(1 << 39) + 1])
    assert chunks_of_runs(starts, stops, 1 << 13).tolist() == [1 << 26]


@given(sorted_runs())
def test_expanded_runs_are_their_positions(runs):
    starts, stops = runs
    expected = [p for a, b in zip(starts, stops, strict=True) for p in range(a, b)]
    result = expand_runs(starts, stops)
    assert result.tolist() == expected
    assert result.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_runs_need_not_ascend_to_be_expanded(pairs):
    starts, stops = np.array(pairs, np.int64).reshape(-1, 2).T
    assert expand_runs(starts, stops).tolist() == [p for a, b in pairs for p in range(a, b)]


@given(sorted_runs(), st.integers(1, 20))
def test_touched_chunks_are_those_of_the_positions(runs, chunk):
    starts, stops = runs
    before = starts.copy(), stops.copy()
    touched = chunks_of_runs(starts, stops, chunk)
    assert touched.tolist() == np.unique(expand_runs(starts, stops) // chunk).tolist()
    assert touched.dtype == np.int64
    assert np.array_equal(starts, before[0])
    assert np.array_equal(stops, before[1])


# ---------------------------------------------------------------- runs


@given(masks(40), st.integers(0, 40), st.integers(0, 40))
def test_runs_know_what_lies_within_and_where_it_lands(mask, a, b):
    start, stop = min(a, b), max(a, b)
    runs = as_runs(mask)
    positions = np.flatnonzero(mask)
    assert runs.positions().tolist() == positions.tolist()
    assert runs.total == len(positions)
    inside, place = runs.within(start, stop)
    expected = (positions >= start) & (positions < stop)
    assert np.arange(stop - start)[inside].tolist() == (positions[expected] - start).tolist()
    if expected.any():
        assert np.arange(len(positions))[place].tolist() == np.flatnonzero(expected).tolist()
    else:
        assert place.start == place.stop


def test_the_run_of_everything():
    assert Runs.whole(5).positions().tolist() == [0, 1, 2, 3, 4]
    assert Runs.whole(0).total == 0
    assert Runs(np.empty(0, np.int64), np.empty(0, np.int64)).total == 0


@given(masks(40), st.integers(0, 45), st.integers(0, 45))
def test_runs_are_picked_by_place(mask, first, last):
    runs = as_runs(mask)
    whole, last = np.flatnonzero(mask), max(first, last)
    assert runs.between(first, last).positions().tolist() == whole[first:last].tolist()
    places = np.arange(len(whole))[::-2]
    assert runs.at(places).tolist() == whole[places].tolist()
