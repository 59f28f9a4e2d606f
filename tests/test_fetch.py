"""What is asked of a store, counted by the store itself, and what damage does to an answer."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.storage import LocalStore

from lobster_zarr.byterange import Network
from lobster_zarr.errors import ChunkDecodeError
from lobster_zarr.fetch import together
from lobster_zarr.grid import Grid
from lobster_zarr.layout import CODEC_PROFILES, new_array
from lobster_zarr.loop import run
from lobster_zarr.plan import index_needed, plan_chunks
from lobster_zarr.store import open_store
from tests.recording import (
    EAGER,
    EXACT,
    RecordingStore,
    fetcher,
    keys_of,
    read,
    shard_index,
    tree_of,
    write_foreign,
    write_own,
)

N, CHUNK, PER_SHARD = 100, 5, 4  # 20 chunks in 5 shards
SHARD = CHUNK * PER_SHARD
INDEX_BYTES = 16 * PER_SHARD + 4
VALUES = np.random.default_rng(3).integers(1, 1000, N).astype("int32")


def own(store=None, *, shard=SHARD, profile="small", values=VALUES):
    """An array as this package writes it, and its recording store."""
    store = store or RecordingStore()
    node = new_array("a", (len(values),), values.dtype, grid=Grid((len(values),), (CHUNK,), (shard,)), profile=profile)
    write_own(store, node, values)
    store.forget()
    return store, node


def mask(*spans, n=N):
    wanted = np.zeros(n, bool)
    for start, stop in spans:
        wanted[start:stop] = True
    return wanted


def entries(store, key):
    return shard_index(store.body(key), PER_SHARD)


# ---------------------------------------------------------------- requests and bytes


def test_all_of_an_array_is_one_request_an_object_and_no_index():
    store, node = own()
    reader = fetcher(store)
    assert np.array_equal(read(reader, node), VALUES)
    assert sorted(store.keys) == sorted(keys_of(node))
    assert [c.byte_range for c in store.calls] == [None] * 5
    assert store.n_bytes == sum(len(store.body(k)) for k in keys_of(node))


def test_a_part_of_a_shard_is_its_index_and_those_bytes():
    store, node = own()
    rows = mask((27, 33))  # chunks 5 and 6: the second and third of shard 1
    assert np.array_equal(read(fetcher(store), node, rows), VALUES[rows])
    sizes = entries(store, "a/c/1")[:, 1]
    assert [(c.key, c.n_bytes) for c in store.calls] == [
        ("a/c/1", INDEX_BYTES),
        ("a/c/1", int(sizes[1] + sizes[2])),
    ]


def test_chunks_that_are_not_touched_are_not_read():
    store, node = own()
    rows = mask((0, 1), (42, 43), (58, 59))  # chunk 0 of shard 0; chunks 0 and 3 of shard 2
    assert np.array_equal(read(fetcher(store, network=EXACT), node, rows), VALUES[rows])
    assert set(store.keys) == {"a/c/0", "a/c/2"}
    assert len(store.calls) == 5  # two indexes, three chunks
    expected = entries(store, "a/c/0")[0, 1] + entries(store, "a/c/2")[[0, 3], 1].sum()
    assert store.n_bytes == 2 * INDEX_BYTES + expected


def test_a_cheap_gap_is_read_through():
    store, node = own()
    rows = mask((42, 43), (58, 59))
    assert np.array_equal(read(fetcher(store, network=EAGER), node, rows), VALUES[rows])
    assert [c.n_bytes for c in store.calls] == [INDEX_BYTES, int(entries(store, "a/c/2")[:, 1].sum())]


def test_a_long_range_is_cut_so_that_its_parts_travel_at_once():
    store, node = own()
    sizes = entries(store, "a/c/2")[:, 1]
    network = Network(latency_seconds=0.0, request_seconds=0.0, max_request_bytes=int(sizes[0] + sizes[1]))
    rows = mask((40, 60))
    assert np.array_equal(read(fetcher(store, network=network), node, rows), VALUES[rows])
    assert all((c.n_bytes or 0) <= max(INDEX_BYTES, sizes[0] + sizes[1]) for c in store.calls[1:])
    assert store.n_bytes == INDEX_BYTES + sizes.sum()


def test_indexes_are_read_once():
    store, node = own()
    reader = fetcher(store)
    read(reader, node, mask((27, 33), (41, 42)))
    store.forget()
    rows = mask((22, 23), (41, 42))
    assert np.array_equal(read(reader, node, rows), VALUES[rows])
    assert len(store.calls) == 2
    assert store.n_bytes == entries(store, "a/c/1")[0, 1] + entries(store, "a/c/2")[0, 1]


def test_an_array_without_shards_has_no_index():
    store, node = own(shard=CHUNK)
    rows = mask((3, 12), (99, 100))
    assert np.array_equal(read(fetcher(store), node, rows), VALUES[rows])
    assert sorted(store.keys) == ["a/c/0", "a/c/1", "a/c/19", "a/c/2"]
    assert all(c.byte_range is None for c in store.calls)


def test_nothing_wanted_is_nothing_asked():
    store, node = own()
    result = read(fetcher(store), node, mask())
    assert result.shape == (0,)
    assert result.dtype == VALUES.dtype
    assert store.calls == []


def test_the_statistics_are_those_of_the_store():
    store, node = own()
    reader = fetcher(store)
    read(reader, node, mask((27, 33), (60, 91)))
    assert reader.stats.n_requests == len(store.calls)
    assert reader.stats.n_bytes == store.n_bytes
    assert reader.stats.by_array == {"a": (len(store.calls), store.n_bytes)}


@pytest.mark.parametrize("network", [EXACT, EAGER, Network()])
@pytest.mark.parametrize("spans", [[(0, 100)], [(27, 33)], [(0, 1), (12, 13), (99, 100)], [(20, 60)]])
def test_what_was_planned_is_what_is_sent(network, spans):
    store, node = own()
    rows = mask(*spans)
    chunk_ids = np.unique(np.flatnonzero(rows) // CHUNK)
    needed = [int(s) for s in index_needed(node, chunk_ids)]
    bodies = {s: store.body(node.key(s)) for s in needed}
    indexes = {s: node.decode_index(body[-node.index_bytes :], s) for s, body in bodies.items()}
    plan = plan_chunks(node, chunk_ids, indexes, network)
    planned = [(node.key(s), INDEX_BYTES) for s in needed]
    planned += [(r.key, len(store.body(r.key)) if r.n_bytes is None else r.n_bytes) for r in plan.requests]
    read(fetcher(store, network=network), node, rows)
    assert sorted((c.key, c.n_bytes) for c in store.calls) == sorted(planned)


def test_no_more_requests_are_under_way_than_allowed():
    class Counting(RecordingStore):
        now = most = 0

        async def get(self, key, prototype, byte_range=None):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return await super().get(key, prototype, byte_range)

    store, node = own(Counting(), shard=CHUNK)
    store.most = 0
    reader = fetcher(store, network=Network(concurrency=3))
    assert np.array_equal(read(reader, node), VALUES)
    assert store.most == 3


def test_sizes_noted_by_the_writer_stand_in_for_the_indexes():
    store, node = own()
    sizes = np.concatenate([entries(store, k)[:, 1] for k in keys_of(node)]).astype(np.uint32)
    reader = fetcher(store)
    assert not reader.knows(node)
    reader.remember_sizes((node,), sizes[None])
    assert reader.knows(node)
    rows = mask((27, 33), (99, 100))
    assert np.array_equal(read(reader, node, rows), VALUES[rows])
    assert store.n_bytes == sizes[[5, 6, 19]].sum()
    assert len(store.calls) == 2


def test_sizes_that_are_wrong_are_an_error_and_never_a_value():
    store, node = own()
    sizes = np.concatenate([entries(store, k)[:, 1] for k in keys_of(node)]).astype(np.uint32)
    sizes[4] += 1
    reader = fetcher(store, strict=True)
    reader.remember_sizes((node,), sizes[None])
    with pytest.raises(ChunkDecodeError):
        read(reader, node, mask((27, 33)))


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize("shard", [CHUNK, SHARD])
@pytest.mark.parametrize("rows", [None, mask((27, 33))])
def test_a_lost_object_of_a_store_that_leaves_none_out_is_an_error(shard, rows):
    store, node = own(shard=shard)
    store.lose("a/c/1" if shard == SHARD else "a/c/5")
    with pytest.raises(ChunkDecodeError) as failure:
        read(fetcher(store, strict=True), node, rows)
    assert "'a'" in str(failure.value)


@pytest.mark.parametrize("rows", [None, mask((27, 33))])
def test_a_slot_left_empty_in_a_store_that_leaves_none_out_is_an_error(rows):
    store, node = own()
    encoded = {i: node.encode(VALUES[20 + 5 * i : 25 + 5 * i]) for i in (0, 1, 3)}
    store.replace("a/c/1", node.build_shard(encoded))
    with pytest.raises(ChunkDecodeError):
        read(fetcher(store, strict=True), node, rows)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("int16", -3), ("float32", np.nan), ("float32", 1.5), ("bool", True), ("complex64", 1 + 2j),
        ("int32", None), ("float64", None), ("bool", None), ("U4", "ab"), ("StringDType", "ab"),
        ("U4", None), ("StringDType", None),
        ("float32", -0.0),
        ("M8[ns]", np.datetime64("2020-01-01", "ns")),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("rows", [None, mask((1, 4), (6, 7), n=11)])
def test_elsewhere_a_missing_chunk_is_the_fill_value(zarr_format, dtype, fill, rows):
    store = RecordingStore()
    text = dtype == "StringDType"
    values = np.zeros(11, np.dtypes.StringDType() if text else dtype)
    array = write_foreign(store, values, zarr_format=zarr_format, chunks=(4,), fill_value=fill)
    node = tree_of(store).array("a")
    for key in keys_of(node):
        store.lose(key)
    expected = array[...][slice(None) if rows is None else rows]
    result = read(fetcher(store), node, rows)
    assert result.dtype == expected.dtype
    assert result.tolist() == expected.tolist() or result.tobytes() == expected.tobytes()
    if not text and result.dtype.kind == "f":
        assert np.array_equal(np.signbit(result), np.signbit(expected))


def test_a_missing_chunk_of_times_is_not_a_time():
    store = RecordingStore()
    array = write_foreign(store, np.zeros(0, "M8[ns]"), zarr_format=2, chunks=(4,), fill_value=None)
    array.resize((5,))
    assert np.array_equal(read(fetcher(store), tree_of(store).array("a")), array[...], equal_nan=True)


# ---------------------------------------------------------------- what is damaged


@pytest.mark.parametrize("profile", CODEC_PROFILES)
@pytest.mark.parametrize("shard", [CHUNK, SHARD])
def test_a_truncated_object_is_an_error(profile, shard):
    whole, rows = None, mask((22, 33))
    store, node = own(shard=shard, profile=profile)
    for key in (k for k in keys_of(node) if k in {"a/c/1", "a/c/5"}):
        body = store.body(key)
        for n in {0, 1, len(body) // 2, len(body) - 5, len(body) - 1}:
            store.replace(key, body[:n])
            with pytest.raises(ChunkDecodeError):
                read(fetcher(store, strict=True), node, whole)
            if key == node.key(1) or shard == CHUNK:
                wanted = rows if shard == SHARD else mask((5, 30))
                with pytest.raises(ChunkDecodeError):
                    read(fetcher(store, strict=True), node, wanted)
        store.replace(key, body)
    assert np.array_equal(read(fetcher(store, strict=True), node), VALUES)


def test_an_object_that_shrank_after_its_index_was_read_is_an_error():
    store, node = own()
    reader = fetcher(store, strict=True)
    read(reader, node, mask((35, 36)))
    body = store.body("a/c/1")
    store.replace("a/c/1", body[: int(entries(store, "a/c/1")[3, 0]) + 2])
    with pytest.raises(ChunkDecodeError):
        read(reader, node, mask((35, 36)))
    store.replace("a/c/1", b"")
    with pytest.raises(ChunkDecodeError):
        read(reader, node, mask((35, 36)))
    store.lose("a/c/1")
    with pytest.raises(ChunkDecodeError):
        read(reader, node, mask((35, 36)))


@pytest.mark.parametrize("kind", ["local", "uri"])
def test_stores_on_disk_answer_a_truncated_object_the_same_way(kind, tmp_path):
    store, node = own(RecordingStore(LocalStore(tmp_path)))
    reading = store if kind == "local" else open_store(tmp_path)
    reader = fetcher(reading, strict=True)
    rows = mask((35, 36))
    assert np.array_equal(read(reader, node, rows), VALUES[rows])
    body = store.body("a/c/1")
    for n in (len(body) - 1, int(entries(store, "a/c/1")[3, 0]) + 2, 3, 0):
        store.replace("a/c/1", body[:n])
        with pytest.raises(ChunkDecodeError):
            read(fetcher(reading, strict=True), node, rows)
        if n < len(body) - 1:
            with pytest.raises(ChunkDecodeError):
                read(reader, node, rows)


@pytest.mark.parametrize("profile", CODEC_PROFILES)
def test_a_flipped_byte_anywhere_in_a_shard_is_an_error_or_not_read(profile):
    store, node = own(profile=profile)
    body = store.body("a/c/1")
    rows = mask((27, 28))
    for at in range(len(body)):
        flipped = bytearray(body)
        flipped[at] ^= 0x04
        store.replace("a/c/1", bytes(flipped))
        with pytest.raises(ChunkDecodeError):
            read(fetcher(store, strict=True), node)
        try:
            part = read(fetcher(store, strict=True), node, rows)
        except ChunkDecodeError:
            continue
        assert np.array_equal(part, VALUES[rows])


def test_a_valid_index_that_points_elsewhere_is_an_error():
    store, node = own()
    body = store.body("a/c/1")
    encoded = {i: node.encode(VALUES[20 + 5 * i : 25 + 5 * i]) for i in range(4)}
    shifted = node.build_shard({i: b"?" + c for i, c in encoded.items()})
    store.replace("a/c/1", body[: -node.index_bytes] + shifted[-node.index_bytes :])
    for rows in (None, mask((27, 28)), mask((35, 36))):
        with pytest.raises(ChunkDecodeError):
            read(fetcher(store, strict=True), node, rows)


@pytest.mark.parametrize("offset", [2**40, 2**62, 2**63, 2**64 - 2])
def test_an_index_with_an_impossible_offset_is_an_error_and_never_a_fill_value(offset):
    values = VALUES[:SHARD]
    store = RecordingStore()
    uncounted = {"serializer": ShardingCodec(chunk_shape=(CHUNK,), index_codecs=[BytesCodec()]), "compressors": None}
    write_foreign(store, values, chunks=(SHARD,), **uncounted)  # no checksum over its index
    body = bytearray(store.body("a/c/0"))
    at = len(body) - 16 * PER_SHARD + 16
    body[at : at + 8] = offset.to_bytes(8, "little")
    store.replace("a/c/0", bytes(body))
    for rows in (mask((7, 8), n=SHARD), None):
        with pytest.raises(ChunkDecodeError):
            read(fetcher(store), tree_of(store).array("a"), rows)


def test_a_failure_of_the_store_is_raised_as_itself():
    class RefusedError(OSError):
        pass

    class Refusing(RecordingStore):
        refuse = False

        async def get(self, key, prototype, byte_range=None):
            if self.refuse and key == "a/c/3":
                raise RefusedError
            return await super().get(key, prototype, byte_range)

    store, node = own(Refusing())
    store.refuse = True
    for rows in (None, mask((61, 62)), mask((0, 99))):
        with pytest.raises(RefusedError):
            read(fetcher(store), node, rows)  # never a fill value


# ---------------------------------------------------------------- single objects, and work at once


def test_one_object_or_a_range_of_it():
    store, _ = own()
    reader = fetcher(store)
    body = store.body("a/c/1")
    assert bytes(run(reader.get("a", "a/c/1"))) == body
    assert bytes(run(reader.get("a", "a/c/1", RangeByteRequest(3, 9)))) == body[3:9]
    assert run(reader.get("a", "a/c/99")) is None
    assert reader.stats.n_requests == 3
    assert reader.stats.n_bytes == len(body) + 6


def test_together_keeps_the_order_and_raises_the_first_failure():
    cancelled = []

    async def give(value):
        await asyncio.sleep(0.001 * (3 - value))
        return value

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("first")

    async def hang():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def nested():
        await together(hang(), fail())

    async def work():
        assert await together(give(1), give(2), give(3)) == [1, 2, 3]
        assert await together() == []
        with pytest.raises(KeyError):
            await together(hang(), nested())

    run(work())
    assert cancelled == [True, True]


def test_a_failure_of_several_at_once_can_be_pickled_with_its_cause() -> None:
    import pickle

    import tblib.pickling_support

    async def fail() -> None:
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise ChunkDecodeError("damaged") from cause

    tblib.pickling_support.install()  # as distributed does
    with pytest.raises(ChunkDecodeError, match="damaged") as failed:
        run(together(fail(), fail()))
    again = pickle.loads(pickle.dumps(failed.value))  # noqa: S301 - made here
    assert isinstance(again, ChunkDecodeError)
    assert str(again.__cause__) == "the cause"
