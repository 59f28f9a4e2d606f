"""Every row once an epoch, whatever the sizes, the ranks and the workers; near rows are read together, and mixed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.epoch import Epochs

weights = st.lists(st.integers(0, 50), max_size=60).map(lambda w: np.asarray(w, np.int64))
sizes = st.integers(1, 20)


def batches(epochs: Epochs, entropy: tuple[int, ...] = (0, 0), first: int = 0, step: int = 1) -> list[np.ndarray]:
    found = []
    for buffer in epochs.buffers(entropy, first, step):
        assert np.all(np.diff(buffer.rows) > 0)
        places = np.concatenate(buffer.batches)
        assert np.array_equal(np.sort(places), np.arange(len(buffer.rows)))
        found += [buffer.rows[places] for places in buffer.batches]
    return found


@given(weights, sizes, sizes, st.integers(1, 300), st.booleans(), st.integers(1, 4), st.integers(1, 4))
def test_every_row_once(rows, batch, run, buffer_bytes, shuffle, world, workers):
    seen = []
    for rank in range(world):
        epochs = Epochs(rows, batch, run, buffer_bytes, shuffle, rank=rank, world_size=world)
        whole = batches(epochs)
        assert len(whole) == epochs.n_batches
        assert all(len(b) == batch for b in whole[:-1])
        shares = [batches(epochs, first=w, step=workers) for w in range(workers)]
        assert sorted(b.tolist() for s in shares for b in s) == sorted(b.tolist() for b in whole)
        seen += whole
    assert sorted(np.concatenate([*seen, []]).tolist()) == list(range(len(rows)))
    if not shuffle:
        assert np.concatenate([*seen, []]).tolist() == list(range(len(rows)))


@given(weights, sizes, sizes, st.integers(1, 300), st.booleans(), st.integers(1, 4))
def test_dropping_the_last_batch_gives_every_rank_as_many(rows, batch, run, buffer_bytes, shuffle, world):
    ranks = [Epochs(rows, batch, run, buffer_bytes, shuffle, True, rank, world) for rank in range(world)]
    seen = [batches(epochs) for epochs in ranks]
    assert [len(s) for s in seen] == [len(rows) // world // batch] * world
    assert all(len(b) == batch for s in seen for b in s)
    flat = np.concatenate([*(b for s in seen for b in s), []])
    assert len(np.unique(flat)) == len(flat)


@given(weights, sizes, sizes, st.integers(1, 300), st.booleans())
def test_a_buffer_is_bounded(rows, batch, run, buffer_bytes, shuffle):
    epochs = Epochs(rows, batch, run, buffer_bytes, shuffle)
    # The bytes of a run are taken as spread evenly over its rows, of which a buffer may cut the first and the last.
    spread = batch * rows.max(initial=0) + 2 * run * rows.max(initial=0)
    assert all(rows[b.rows].sum() <= buffer_bytes + spread for b in epochs.buffers((0, 0)))


def test_buffers_are_filled():
    buffers = list(Epochs(np.full(10_000, 10), 100, 16, 20_000).buffers((0, 0)))
    assert [len(b.rows) for b in buffers] == [2_000] * 5


def test_the_same_seed_gives_the_same_epoch_and_another_epoch_another_order():
    epochs = Epochs(np.full(1_000, 10), 64, 16, 2_000)
    again, other, seeded = batches(epochs), batches(epochs, (0, 1)), batches(epochs, (1, 0))
    first = np.concatenate(batches(epochs))
    assert np.array_equal(first, np.concatenate(again))
    for order in map(np.concatenate, (other, seeded)):
        assert not np.array_equal(first, order)
        assert not np.array_equal(np.sort(first[:64]), np.sort(order[:64]))  # nor are the same rows together


def test_a_buffer_reads_few_runs_and_a_batch_mixes_them():
    epochs = Epochs(np.full(100_000, 10), 256, 50, 50_000)
    buffer = next(epochs.buffers((7, 0)))
    breaks = np.flatnonzero(np.diff(buffer.rows) > 1)
    assert 80 <= len(breaks) + 1 <= 104  # of 5,000 rows
    for places in buffer.batches[:-1]:
        runs = np.searchsorted(breaks, places, side="left")
        assert len(np.unique(runs)) > 65
        assert abs(np.mean(buffer.rows[places]) - 50_000) < 10_000


def test_the_cuts_between_runs_move():
    epochs, neighbours = Epochs(np.full(1_000, 1), 10, 10, 100), set()
    for epoch in range(30):
        for buffer in epochs.buffers((0, epoch)):
            neighbours |= {a for a, b in pairwise(buffer.rows.tolist()) if b == a + 1}
    assert len(neighbours) > 990  # no row is for ever the last of its run


@pytest.mark.parametrize("drop_last", [False, True])
def test_no_rows(drop_last):
    epochs = Epochs(np.empty(0, np.int64), 4, 4, 10, drop_last=drop_last)
    assert epochs.n_batches == 0
    assert batches(epochs) == []
