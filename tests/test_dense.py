"""Arrays that zarr-python wrote, by rows and columns, against NumPy."""

from __future__ import annotations

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from lobster_zarr.dense import read_array
from lobster_zarr.grid import Grid, Runs
from lobster_zarr.layout import CODEC_PROFILES, new_array
from lobster_zarr.loop import run
from lobster_zarr.store import open_store
from tests.recording import (
    EAGER,
    EXACT,
    RecordingStore,
    fetcher,
    keys_of,
    read,
    tree_of,
    write_foreign,
    write_own,
)
from tests.strategies import masks

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
V3_COMPRESSORS = {
    "default": "auto", "none": None, "zstd": ZstdCodec(level=3, checksum=True), "gzip": GzipCodec(level=1),
    "blosc": BloscCodec(cname="lz4", shuffle="bitshuffle"), "two": [GzipCodec(level=1), ZstdCodec()],
}  # fmt: skip
V2_COMPRESSORS = {
    "default": "auto", "none": None, "blosc": numcodecs.Blosc(cname="zstd"), "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(level=1), "lz4": numcodecs.LZ4(),
}  # fmt: skip


def taken(values, rows, columns=None):
    values = values if rows is None else values[rows]
    return values if columns is None else values[:, columns]


@st.composite
def foreign(draw):
    """What zarr-python may be asked to write: values, a store with them, and what to read of it."""
    zarr_format = draw(st.sampled_from([2, 3, 3]))
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple))
    chunks = tuple(draw(st.integers(1, 4)) for _ in shape)
    dtype = draw(st.sampled_from(["int8", "uint16", "int32", "int64", "float32", "float64", ">i4", ">f8", "bool"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = rng.integers(0, 100, shape).astype(dtype)
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0  # whole chunks of zeros are left out
    options = {"chunks": chunks, "config": {"write_empty_chunks": draw(st.booleans())}}
    if zarr_format == 2:
        options["compressors"] = V2_COMPRESSORS[draw(st.sampled_from(sorted(V2_COMPRESSORS)))]
        options["chunk_key_encoding"] = {"name": "v2", "separator": draw(st.sampled_from("./"))}
    else:
        options["compressors"] = V3_COMPRESSORS[draw(st.sampled_from(sorted(V3_COMPRESSORS)))]
        if draw(st.booleans()):
            shard = tuple(c * draw(st.integers(1, 3)) for c in chunks)
            options["shards"] = {"shape": shard, "index_location": draw(st.sampled_from(["start", "end"]))}
    store = RecordingStore()
    write_foreign(store, values, zarr_format=zarr_format, **options)
    rows = draw(st.none() | masks(shape[0]))
    columns = draw(st.none() | masks(shape[1])) if len(shape) > 1 else None
    return store, values, rows, columns, draw(st.sampled_from([EXACT, EAGER]))


@given(foreign())
@settings(max_examples=200)
def test_whatever_zarr_wrote_is_read_as_numpy_would(drawn):
    store, values, rows, columns, network = drawn
    node = tree_of(store).array("a")
    store.forget()
    result = read(fetcher(store, network=network), node, rows, columns)
    expected = taken(values, rows, columns)
    assert result.shape == expected.shape
    assert result.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
    assert np.array_equal(result, expected)
    assert set(store.keys) <= set(keys_of(node))  # no key is asked for that cannot be there
    assert len([c for c in store.calls if c.byte_range is None]) == len(
        {c.key for c in store.calls if c.byte_range is None}
    )


@st.composite
def ours(draw):
    n_dimensions = draw(st.integers(1, 2))
    axes = [(draw(st.integers(1, 14)), draw(st.integers(1, 4)), draw(st.integers(1, 3))) for _ in range(n_dimensions)]
    grid = Grid(*(tuple(x) for x in zip(*((n, c, c * p) for n, c, p in axes), strict=True)))
    dtype = np.dtype(draw(st.sampled_from(["int8", "int32", "float32", "float64", "bool"])))
    node = new_array("X/data", grid.shape, dtype, grid=grid, profile=draw(st.sampled_from(CODEC_PROFILES)))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, grid.shape).astype(dtype)
    columns = draw(st.none() | masks(grid.shape[1])) if n_dimensions > 1 else None
    return node, values, draw(st.none() | masks(grid.shape[0])), columns


@given(ours())
@settings(max_examples=120)
def test_what_we_wrote_is_read_back(drawn):
    node, values, rows, columns = drawn
    store = RecordingStore()
    write_own(store, node, values)
    reader = fetcher(store, strict=True)
    for _ in range(2):  # the second time its indexes are known
        result = read(reader, node, rows, columns)
        assert result.dtype == values.dtype
        assert np.array_equal(result, taken(values, rows, columns))


@given(st.none() | masks(100), st.sampled_from(CODEC_PROFILES))
@settings(max_examples=60)
def test_no_byte_is_read_of_a_chunk_that_is_not_touched(rows, profile):
    values = np.arange(100, dtype="float32")
    node = new_array("a", (100,), values.dtype, grid=Grid((100,), (7,), (28,)), profile=profile)
    store = RecordingStore()
    write_own(store, node, values)
    store.forget()
    assert np.array_equal(read(fetcher(store, strict=True), node, rows), taken(values, rows))
    touched = np.unique((np.arange(100) if rows is None else np.flatnonzero(rows)) // 7)
    sizes = [len(node.encode(values[node.grid.chunk_slices(i)])) for i in range(node.grid.n_chunks)]
    shards = np.unique(node.grid.locate(touched)[0])
    assert store.n_bytes == sum(sizes[i] for i in touched) + node.index_bytes * len(shards)


# ---------------------------------------------------------------- what Zarr allows beside that


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("value", [3.5, True, -7, "naïve", ""])
def test_a_scalar(zarr_format, value):
    store = RecordingStore()
    values = np.array(value, np.dtypes.StringDType() if isinstance(value, str) else None)
    write_foreign(store, values, zarr_format=zarr_format)
    result = read(fetcher(store), tree_of(store).array("a"))
    assert result.shape == ()
    assert result.item() == value


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("rows", [None, np.arange(9) % 3 == 1])
def test_text(zarr_format, rows):
    texts = np.array(["", "a", "T cell", "λ₂", "b\n", "x" * 300, "1", "0", "nan"], np.dtypes.StringDType())
    store = RecordingStore()
    write_foreign(store, texts, zarr_format=zarr_format, chunks=(2,))
    result = read(fetcher(store), tree_of(store).array("a"), rows)
    assert result.tolist() == taken(texts, rows).tolist()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["U5", "S4", "M8[ns]", "m8[s]", [("a", "<i4"), ("b", "<f8")], "c16"])
def test_other_dtypes(zarr_format, dtype):
    values = np.array([(i, i + 1) for i in range(7)], dtype) if isinstance(dtype, list) else np.arange(7).astype(dtype)
    store = RecordingStore()
    write_foreign(store, values, zarr_format=zarr_format, chunks=(3,))
    rows = np.array([0, 1, 1, 0, 0, 1, 1], bool)
    for wanted in (None, rows):
        result = read(fetcher(store), tree_of(store).array("a"), wanted)
        assert result.dtype == values.dtype
        assert result.tolist() == taken(values, wanted).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2, "filters": [numcodecs.Delta(dtype="i8")]},
        {"zarr_format": 3, "filters": [TransposeCodec(order=(1, 0))]},
        {"zarr_format": 3, "filters": [TransposeCodec(order=(1, 0))], "shards": (4, 6)},
        {"zarr_format": 3, "serializer": BytesCodec(endian="big")},
        {"zarr_format": 2, "order": "F"},
        # Shards within shards, shards that are compressed, and an index without a checksum.
        {"zarr_format": 3, "chunks": (4, 6), "serializer": ShardingCodec(
            chunk_shape=(4, 3), codecs=[ShardingCodec(chunk_shape=(2, 3))]), "compressors": None},
        {"zarr_format": 3, "chunks": (4, 6), "serializer": ShardingCodec(chunk_shape=(2, 3)),
         "compressors": [ZstdCodec()]},
        {"zarr_format": 3, "chunks": (4, 6), "serializer": ShardingCodec(
                chunk_shape=(2, 3), index_codecs=[BytesCodec()]), "compressors": None},
    ],
    ids=["delta", "transpose", "transpose-shards", "big-endian", "F-order", "nested", "compressed", "no-crc"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_unusual_codecs(options):
    values = np.arange(70).reshape(7, 10) ** 2
    store = RecordingStore()
    write_foreign(store, values, **({"chunks": (2, 3)} | options))
    rows, columns = np.arange(7) % 3 == 0, np.arange(10) > 6
    for wanted in ((None, None), (rows, None), (None, columns), (rows, columns)):
        result = read(fetcher(store), tree_of(store).array("a"), *wanted)
        assert np.array_equal(result, taken(values, *wanted))


def test_any_store_serves(tmp_path):
    values = np.arange(60).reshape(12, 5)
    write_foreign(zarr.storage.LocalStore(tmp_path / "a.zarr"), values, chunks=(2, 5), shards=(6, 5))
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="w") as zipped:
        write_foreign(zipped, values, chunks=(2, 5), shards=(6, 5))
    rows = np.arange(12) % 4 == 0
    for store in (
        zarr.storage.LocalStore(tmp_path / "a.zarr", read_only=True),
        zarr.storage.ZipStore(tmp_path / "a.zip", mode="r"),
        open_store(tmp_path / "a.zarr"),
    ):
        node = tree_of(store).array("a")
        assert np.array_equal(read(fetcher(store), node, rows), values[rows])
        assert np.array_equal(read(fetcher(store), node), values)
        store.close()


def test_runs_that_touch_or_are_empty_are_read_as_well():
    values = np.arange(20, dtype="int32") * 3
    node = new_array("a", (20,), values.dtype, grid=Grid((20,), (4,), (8,)))
    store = RecordingStore()
    write_own(store, node, values)
    runs = Runs(np.array([0, 2, 5, 5, 9, 12, 20]), np.array([2, 5, 5, 9, 9, 17, 20]))
    assert run(read_array(fetcher(store, strict=True), node, runs)).tolist() == values[runs.positions()].tolist()
