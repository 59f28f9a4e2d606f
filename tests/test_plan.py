"""Plans by their promise: every wanted chunk comes exactly once, from where the index says it lies."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.byterange import Network
from lobster_zarr.grid import Grid
from lobster_zarr.layout import new_array
from lobster_zarr.plan import MISSING, index_needed, plan_chunks
from tests.recording import EXACT


def node_of(shape, chunk, shard):
    return new_array("X/data", shape, np.dtype("float32"), grid=Grid(shape, chunk, shard))


@st.composite
def sharded(draw):
    """A sharded array, made-up indexes of its shards (chunks in any order, with holes), wanted chunks."""
    n_dimensions = draw(st.integers(1, 2))
    axes = [(draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(2, 4))) for _ in range(n_dimensions)]
    node = node_of(tuple(a[0] for a in axes), tuple(a[1] for a in axes), tuple(a[1] * a[2] for a in axes))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    slots = int(np.prod(node.grid.chunks_per_shard))
    indexes = {}
    for shard in range(int(np.prod(node.grid.shards_per_axis))):
        sizes, gaps = rng.integers(1, 50, slots), rng.integers(0, 40, slots)
        order = rng.permutation(slots)
        index = np.full((slots, 2), MISSING, np.uint64)
        index[order, 0] = np.cumsum(sizes[order] + gaps[order]) - sizes[order]
        index[order, 1] = sizes[order]
        index[rng.random(slots) < draw(st.sampled_from([0.0, 0.3]))] = MISSING
        indexes[shard] = index
    wanted = np.flatnonzero(rng.random(node.grid.n_chunks) < draw(st.sampled_from([0.2, 0.7, 1.0])))
    return node, indexes, wanted


@given(sharded(), st.integers(0, 60), st.integers(1, 300))
def test_every_wanted_chunk_comes_once_from_its_place(drawn, gap_bytes, max_request_bytes):
    node, indexes, wanted = drawn
    network = Network(1.0, float(gap_bytes), 1, max_request_bytes)
    assert network.gap_bytes == gap_bytes
    plan = plan_chunks(node, wanted, indexes, network)
    planned = Counter(plan.absent.tolist())
    for request in plan.requests:
        assert request.start is not None
        assert request.stop is not None
        assert request.n_bytes == request.stop - request.start
        assert request.key == node.key(request.shard_id)
        assert len(request.chunk_ids) == 1 or request.n_bytes <= max_request_bytes
        planned.update(request.chunk_ids.tolist())
        shards, slots = node.grid.locate(request.chunk_ids)
        assert set(shards.tolist()) == {request.shard_id}
        assert slots.tolist() == request.slots.tolist()
        entries = indexes[request.shard_id][request.slots].astype(np.int64)
        assert (request.offsets + request.start).tolist() == entries[:, 0].tolist()
        assert request.sizes.tolist() == entries[:, 1].tolist()
        assert request.start == entries[:, 0].min()
        assert request.stop == entries.sum(axis=1).max()
    assert planned == Counter(wanted.tolist())
    shard_ids, slots = node.grid.locate(wanted)
    lost = [indexes[int(s)][i, 0] == MISSING for s, i in zip(shard_ids, slots, strict=True)]
    assert sorted(plan.absent.tolist()) == wanted[np.array(lost, bool)].tolist()


@given(sharded())
def test_without_gaps_no_byte_is_read_in_vain(drawn):
    node, indexes, wanted = drawn
    plan = plan_chunks(node, wanted, indexes, EXACT)
    assert sum(r.n_bytes or 0 for r in plan.requests) == sum(int(r.sizes.sum()) for r in plan.requests)


@given(sharded())
def test_requests_of_one_object_do_not_overlap(drawn):
    node, indexes, wanted = drawn
    plan = plan_chunks(node, wanted, indexes, Network(1.0, 20.0, 1, 100))
    by_object: dict[str, list[tuple[int, int]]] = {}
    for request in plan.requests:
        by_object.setdefault(request.key, []).append((request.start or 0, request.stop or 0))
    for spans in by_object.values():
        ordered = sorted(spans)
        assert all(a[1] <= b[0] for a, b in zip(ordered[:-1], ordered[1:], strict=True))


@given(sharded())
def test_a_shard_without_an_index_is_read_whole(drawn):
    node, _, wanted = drawn
    plan = plan_chunks(node, wanted, {}, EXACT)
    assert len(plan.absent) == 0
    assert sorted(c for r in plan.requests for c in r.chunk_ids.tolist()) == wanted.tolist()
    assert len({r.key for r in plan.requests}) == len(plan.requests)
    assert all(r.n_bytes is r.start is r.stop is None for r in plan.requests)


def test_an_array_without_shards_is_one_request_a_chunk():
    node = node_of((10, 4), (5, 2), (5, 2))
    wanted = np.array([0, 3])
    assert index_needed(node, wanted).tolist() == []
    plan = plan_chunks(node, wanted, {}, EXACT)
    assert [r.key for r in plan.requests] == ["X/data/c/0/0", "X/data/c/1/1"]
    assert [r.chunk_ids.tolist() for r in plan.requests] == [[0], [3]]


def test_no_chunks_need_no_index_and_no_request():
    for node in (node_of((10,), (2,), (4,)), node_of((10,), (2,), (2,))):
        none = np.empty(0, np.int64)
        assert len(index_needed(node, none)) == 0
        plan = plan_chunks(node, none, {}, EXACT)
        assert plan.requests == ()
        assert len(plan.absent) == 0


def test_what_is_wanted_whole_needs_no_index():
    assert index_needed(node_of((10,), (2,), (4,)), np.arange(5)).tolist() == []


def test_parts_of_shards_need_the_indexes_of_those_shards_only():
    node = node_of((40,), (2,), (8,))  # 20 chunks, 4 a shard
    assert index_needed(node, np.array([5, 6, 13])).tolist() == [1, 3]


def test_a_shard_wanted_whole_needs_no_index_beside_one_that_is_not():
    node = node_of((40,), (2,), (8,))
    assert index_needed(node, np.array([1, 4, 5, 6, 7])).tolist() == [0]


def test_chunks_of_a_matrix_are_grouped_by_shard_however_they_interleave():
    node = node_of((4, 8), (2, 2), (4, 4))  # chunk rows alternate between two shards
    index = np.array([[0, 10], [10, 10], [20, 10], [30, 10]], np.uint64)
    plan = plan_chunks(node, np.arange(8), {0: index, 1: index}, EXACT)
    assert [(r.shard_id, r.start, r.stop) for r in plan.requests] == [(0, 0, 40), (1, 0, 40)]
    assert [r.chunk_ids.tolist() for r in plan.requests] == [[0, 1, 4, 5], [2, 3, 6, 7]]
