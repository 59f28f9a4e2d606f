"""Regrouping out of core against NumPy and SciPy in memory, with buckets as small as they can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lobster_zarr.errors import StorageError
from lobster_zarr.scratch import Exchange, Scratch, Slices, balanced_bounds
from tests.strategies import dense_arrays

NUMBERS = ("bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64")


def pairs(slices):
    """Each slice as a list of (minor position, value)."""
    entries = list(zip(slices.indices.tolist(), slices.values.tolist(), strict=True))
    ends = np.cumsum(slices.lengths)
    assert int(slices.lengths.sum()) == len(entries)
    return [entries[e - n : e] for e, n in zip(ends.tolist(), slices.lengths.tolist(), strict=True)]


def same(found, expected):
    return repr(found) == repr(expected)  # so that NaN is NaN and -0.0 is not 0.0


@st.composite
def slices(draw, *, max_slices=10, n_minor=8, dtype=None, unique=False):
    """Slices with empty ones among them; minor positions repeat and are unsorted unless `unique`."""
    lengths = np.array(draw(st.lists(st.integers(0, 5), max_size=max_slices)), np.int64)
    n = int(lengths.sum())
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    index_dtype = draw(st.sampled_from([np.int32, np.int64]))
    if unique:
        parts = [rng.permutation(n_minor)[:length] for length in lengths]
        indices = np.concatenate(parts) if parts else np.empty(0)
    else:
        indices = rng.integers(0, n_minor, n)
    values = np.ascontiguousarray(draw(dense_arrays((n,), (dtype,) if dtype else NUMBERS[:-1])))
    return Slices(lengths, indices.astype(index_dtype), values)


# ---------------------------------------------------------------- slices


@given(slices(), st.data())
def test_reordering_moves_whole_slices(given_slices, data):
    n = len(given_slices.lengths)
    order = np.array(data.draw(st.permutations(range(n))), np.int64)
    result = given_slices.reorder(order)
    before = pairs(given_slices)
    assert same(pairs(result), [before[i] for i in order])
    assert result.values.dtype == given_slices.values.dtype


@given(slices(unique=True))
def test_transposing_is_that_of_a_matrix_and_keeps_the_order_within(given_slices):
    result = given_slices.transpose(8)
    expected = [[] for _ in range(8)]
    for major, row in enumerate(pairs(given_slices)):
        for minor, value in row:
            expected[minor].append((major, value))
    assert same(pairs(result), expected)
    assert result.values.dtype == given_slices.values.dtype
    assert result.indices.dtype == given_slices.indices.dtype


@given(slices(unique=True))
def test_sorting_the_indices_changes_their_order_alone(given_slices):
    before = pairs(given_slices)
    result = given_slices.sort_indices()
    assert same(pairs(result), [sorted(row, key=lambda entry: entry[0]) for row in before])
    assert same(pairs(given_slices), before)  # what was given is as it was


# ---------------------------------------------------------------- exchange


def exchanged(puts, bounds, max_values, room_bytes=0):
    with Scratch() as scratch:
        scratch.room_bytes = room_bytes
        exchange = Exchange(scratch, "rows", np.asarray(bounds, np.int64), max_values)
        for majors, part in puts:
            exchange.put(np.asarray(majors, np.int64), part)
        taken = [(s.lengths.copy(), pairs(s), s.values.dtype) for s in exchange.take()]
        assert list(scratch.path.iterdir()) == []  # the file is gone once all was taken
        assert scratch.hold(room_bytes)  # as is all that was in memory
    return taken


@st.composite
def puts(draw):
    """A number of positions, bounds of buckets over them, and slices that come in several blocks."""
    n_major = draw(st.integers(1, 12))
    inner = draw(st.lists(st.integers(1, n_major), max_size=4))
    bounds = np.unique([0, *inner, n_major])
    dtype = draw(st.sampled_from(NUMBERS[:-1]))
    blocks = []
    for _ in range(draw(st.integers(0, 5))):
        part = draw(slices(dtype=dtype))
        majors = sorted(
            draw(st.lists(st.integers(0, n_major - 1), min_size=len(part.lengths), max_size=len(part.lengths)))
        )
        part = Slices(part.lengths, part.indices.astype(np.int32), part.values)
        blocks.append((majors, part))
    return n_major, bounds, blocks


@given(puts(), st.sampled_from([1, 3, 1000]), st.sampled_from([0, 300, 1 << 20]))
@settings(max_examples=80)
def test_everything_comes_back_once_in_the_order_it_came(drawn, max_values, room_bytes):
    n_major, bounds, blocks = drawn
    expected = [[] for _ in range(n_major)]
    for majors, part in blocks:
        for major, entries in zip(majors, pairs(part), strict=True):
            expected[major] += entries
    taken = exchanged(blocks, bounds, max_values, room_bytes)
    assert same([row for _, rows, _ in taken for row in rows], expected)
    assert {d for _, rows, d in taken if any(rows)} <= {part.values.dtype for _, part in blocks}


@given(puts())
@settings(max_examples=40)
def test_a_full_bucket_comes_back_in_parts_of_whole_positions(drawn):
    n_major, bounds, blocks = drawn
    parts = [len(lengths) for lengths, _, _ in exchanged(blocks, bounds, 1)]
    assert sum(parts) == n_major
    edges = np.cumsum([0, *parts])
    assert set(bounds.tolist()) <= set(edges.tolist())  # no part reaches over two buckets


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("block_rows", [1, 7, 40])
def test_rows_are_sorted_and_matrices_transposed_as_scipy_would(dtype, block_rows):
    rng = np.random.default_rng(4)
    dense = (rng.integers(0, 200, (40, 25)) * (rng.random((40, 25)) < 0.4)).astype("float64")
    matrix = sparse.csr_matrix(dense)
    order = rng.permutation(40)
    place = np.argsort(order)
    with Scratch() as scratch:
        by_row = Exchange(scratch, "rows", balanced_bounds(np.diff(matrix.indptr)[order], 30), 60)
        by_gene = Exchange(scratch, "genes", balanced_bounds(np.bincount(matrix.indices, minlength=25), 30), 60)
        for at in range(0, 40, block_rows):
            rows = matrix[at : at + block_rows]
            part = Slices(np.diff(rows.indptr).astype(np.int64), rows.indices, rows.data.astype(dtype))
            targets = place[at : at + block_rows]
            ascending = np.argsort(targets)
            by_row.put(targets[ascending], part.reorder(ascending))
            by_gene.put(np.arange(25), part.transpose(25, at))
        sorted_rows = [row for block in by_row.take() for row in pairs(block)]
        genes = [gene for block in by_gene.take() for gene in pairs(block)]
    expected = Slices(np.diff(matrix.indptr), matrix.indices, matrix.data.astype(dtype))
    assert sorted_rows == [pairs(expected)[i] for i in order]
    turned = matrix.tocsc()
    assert genes == pairs(Slices(np.diff(turned.indptr), turned.indices, turned.data.astype(dtype)))


def test_nothing_put_is_nothing_but_empty_slices():
    taken = exchanged([], [0, 3, 5], 10)
    assert [lengths.tolist() for lengths, _, _ in taken] == [[0, 0, 0], [0, 0]]
    taken = exchanged([([1, 3], Slices(np.zeros(2, np.int64), np.empty(0, np.int32), np.empty(0)))], [0, 5], 10)
    assert [lengths.tolist() for lengths, _, _ in taken] == [[0] * 5]


# ---------------------------------------------------------------- the directory


def test_the_directory_goes_with_all_it_holds_also_when_the_work_fails(tmp_path):
    seen: list[Path] = []

    def work():
        with Scratch(str(tmp_path)) as scratch:
            seen.append(scratch.path)
            exchange = Exchange(scratch, "rows", np.array([0, 2]), 10)
            exchange.put(np.array([0, 1]), Slices(np.ones(2, np.int64), np.zeros(2, np.int32), np.ones(2)))
            assert seen[0].exists()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not seen[0].exists()
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_meet(tmp_path):
    with Scratch(str(tmp_path)) as one, Scratch(str(tmp_path)) as other:
        assert one.path != other.path


def test_nobody_else_can_read_what_waits_on_disk(tmp_path):
    with Scratch(str(tmp_path)) as scratch:
        Exchange(scratch, "rows", np.array([0, 2]), 10)
        assert scratch.path.stat().st_mode & 0o077 == 0
        assert all(file.stat().st_mode & 0o077 == 0 for file in scratch.path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux'")
def test_a_full_disk_is_an_error_that_names_the_remedy(tmp_path):
    with Scratch(str(tmp_path)) as scratch:
        (scratch.path / "rows").symlink_to("/dev/full")
        exchange = Exchange(scratch, "rows", np.array([0, 2]), 10)
        exchange.put(np.array([0]), Slices(np.ones(1, np.int64), np.zeros(1, np.int32), np.ones(1)))
        with pytest.raises(StorageError) as failure:
            list(exchange.take())
    assert "TMPDIR" in str(failure.value)


def test_what_there_is_room_for_stays_in_memory_and_the_rest_goes_to_disk(tmp_path):
    with Scratch(str(tmp_path)) as scratch:
        part = Slices(np.ones(2, np.int64), np.zeros(2, np.int32), np.ones(2))
        for room_bytes, is_written in ((1 << 20, False), (0, True)):
            scratch.room_bytes = room_bytes
            exchange = Exchange(scratch, "rows", np.array([0, 2]), 10)
            exchange.put(np.array([0, 1]), part)
            taking = exchange.take()
            assert pairs(next(taking)) == pairs(part)
            assert ((scratch.path / "rows").stat().st_size > 0) is is_written
            assert list(taking) == []


def test_no_file_stays_open(tmp_path):
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("counts open files as Linux lists them")
    before = len(list(folder.iterdir()))
    for _ in range(5):
        exchanged([([0], Slices(np.ones(1, np.int64), np.zeros(1, np.int32), np.ones(1)))], [0, 1], 5)
    assert len(list(folder.iterdir())) <= before


# ---------------------------------------------------------------- bounds


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 300))
def test_bounds_cut_everything_into_buckets_of_about_the_target(weights, target):
    weights = np.array(weights, np.int64)
    bounds = balanced_bounds(weights, target)
    assert bounds.dtype == np.int64
    assert bounds[0] == 0
    assert bounds[-1] == len(weights)
    assert np.all(np.diff(bounds) > 0)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        # One position cannot be cut: beyond the first, a bucket stays within the target.
        assert weights[start + 1 : stop].sum() <= target
    # And there are not more of them than twice what is needed.
    assert len(bounds) - 1 <= 2 * (weights.sum() // target + 1)


def test_one_position_that_is_heavier_than_the_target_is_a_bucket():
    bounds = balanced_bounds(np.array([1, 1, 1000, 1, 1]), 10)
    assert len(bounds) <= 4
    assert bounds.tolist()[0] == 0
    assert bounds.tolist()[-1] == 5
