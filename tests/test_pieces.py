"""Regrouping through scratch objects, against the matrix in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from test_scratch import NUMBERS, pairs, same, slices
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from lobster_zarr.errors import StorageError
from lobster_zarr.pieces import Pieces
from lobster_zarr.scratch import Slices
from lobster_zarr.store import run


def written(store, pieces, parts):
    for number, (majors, part) in enumerate(parts):
        packed = default_buffer_prototype().buffer.from_bytes(pieces.pack(majors, part))
        run(store.set(pieces.key(number), packed))


@given(st.data(), st.sampled_from(NUMBERS), st.integers(1, 12), st.integers(1, 9))
def test_what_is_put_comes_back_in_order_whatever_span_is_read(data, dtype, n_major, n_stripes):
    blocks = data.draw(st.lists(slices(dtype=dtype, max_slices=n_major), max_size=4))
    parts, expected = [], [[] for _ in range(n_major)]
    for block in blocks:
        n = len(block.lengths)
        majors = np.sort(np.array(data.draw(st.permutations(range(n_major)))[:n], np.int64))
        narrow = Slices(block.lengths.astype(np.int32), block.indices.astype(np.int32), block.values)
        parts.append((majors, narrow))
        for major, entries in zip(majors, pairs(block), strict=True):
            expected[major] += entries
    pieces = Pieces("scratch/1", len(parts), n_major, -(-n_major // n_stripes), ("<i4", np.dtype(dtype).str))
    store = MemoryStore()
    written(store, pieces, parts)
    start = data.draw(st.integers(0, n_major - 1))
    stop = data.draw(st.integers(start + 1, n_major))
    found = pieces.read(store, start, stop)
    assert same(pairs(found), expected[start:stop])
    assert (found.indices.dtype, found.values.dtype) == (np.dtype("i4"), np.dtype(dtype))


def test_a_span_is_read_without_the_rest():
    matrix = sparse.random(1_000, 50, 0.5, "csr", rng=np.random.default_rng(0))
    pieces = Pieces.of("scratch/1", 1, 1_000, 4, 16_384, (np.int32, np.float64))
    store = _Counting()
    written(store, pieces, [(np.arange(1_000), Slices(np.diff(matrix.indptr), matrix.indices, matrix.data))])
    found = pieces.read(store, 500, 600)
    assert np.array_equal(found.values, matrix[500:600].data)
    assert store.requests == 2
    whole = sum(len(v) for v in store._store_dict.values())
    assert store.n_bytes < whole * 0.2  # its tenth, and the rest of a stripe at either end


class _Counting(MemoryStore):
    requests = n_bytes = 0

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        self.requests, self.n_bytes = self.requests + 1, self.n_bytes + len(found)
        return found


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_scratch_object_that_was_taken_away_is_an_error(damage):
    pieces, store = Pieces("scratch/1", 1, 3, 1, ("<i4", "<f4")), MemoryStore()
    block = Slices(np.array([1, 1, 1]), np.array([0, 1, 2], np.int32), np.ones(3, np.float32))
    written(store, pieces, [(np.arange(3), block)])
    if damage == "gone":
        run(store.delete(pieces.key(0)))
    else:
        cut = pieces.pack(np.arange(3), block)[:-1]
        run(store.set(pieces.key(0), default_buffer_prototype().buffer.from_bytes(cut)))
    with pytest.raises(StorageError, match="scratch/1/0"):
        pieces.read(store, 0, 3)


@pytest.mark.parametrize(
    ("n_major", "n_parts", "part_values", "n_stripes"),
    [
        (20_000, 44, 4 << 20, 16 * 44),  # fine against a part
        (20_000, 17, 64 * 1024, 64),  # but not too fine to compress
        (20_000, 800, 1 << 18, 800),  # at least one a part
        (30, 44, 4 << 20, 30),  # nor finer than a position
        (0, 1, 1, 0),
    ],
)
def test_how_an_axis_is_cut(n_major, n_parts, part_values, n_stripes):
    pieces = Pieces.of("scratch/1", 1, n_major, n_parts, part_values, (np.int32, np.float32))
    assert n_stripes * 0.9 <= pieces.n_stripes <= n_stripes
