"""How chunks become bytes: every dtype and profile there and back, zarr-python as the other reader."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from lobster_zarr.errors import ChunkDecodeError, FormatError, UnsupportedError
from lobster_zarr.grid import Grid
from lobster_zarr.layout import CODEC_PROFILES, CodecProfile, codecs_for, dense_grid, new_array, sparse_grid
from lobster_zarr.node import MAX_CHUNK_BYTES, ArrayNode, Tree
from tests.recording import RecordingStore, keys_of, shard_index, write_foreign, write_own
from tests.strategies import dense_arrays

NUMBERS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
RECORD = np.dtype([("names", "<f4"), ("pvals", "<i8")])
# zarr-python warns that the specification of these dtypes is not final.
unstable = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


def numbers(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 200, shape)
    if np.dtype(dtype).kind == "c":
        return (values + 1j * rng.normal(size=shape)).astype(dtype)
    return (values % 2 if dtype == "bool" else values).astype(dtype)


def vector(n, chunk, shard, dtype="float32", profile: CodecProfile = "small"):
    return new_array("X/data", (n,), np.dtype(dtype), grid=Grid((n,), (chunk,), (shard,)), profile=profile)


def read_by_zarr(node: ArrayNode, values: np.ndarray) -> np.ndarray:
    store = RecordingStore()
    write_own(store, node, values)
    array = zarr.open_array(store, path=node.path, mode="r", zarr_format=3)
    return np.asarray(array[...])


# ---------------------------------------------------------------- one chunk


@pytest.mark.parametrize("profile", CODEC_PROFILES)
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 2)])
def test_a_chunk_comes_back_as_it_was(profile, dtype, shape):
    node = new_array("a", shape, np.dtype(dtype), grid=Grid(shape, shape, shape), profile=profile)
    values = numbers(dtype, shape)
    decoded = node.decode(node.encode(values), 0)
    assert decoded.dtype == values.dtype == node.dtype
    assert np.array_equal(decoded, values)
    assert decoded.shape == shape


@given(st.sampled_from(CODEC_PROFILES), dense_arrays((11,)))
def test_extreme_values_come_back_to_the_bit(profile, values):
    node = new_array("a", (11,), values.dtype, grid=Grid((11,), (11,), (11,)), profile=profile)
    decoded = node.decode(node.encode(values), 0)
    assert decoded.tobytes() == np.ascontiguousarray(values).tobytes()  # -0.0 and the bits of NaN too


@pytest.mark.parametrize("profile", CODEC_PROFILES)
@pytest.mark.parametrize("dtype", ["int32", "float64", "bool"])
def test_a_partial_chunk_at_the_edge_is_padded(profile, dtype):
    shape = (5, 3)
    node = new_array("a", shape, np.dtype(dtype), grid=Grid(shape, (4, 2), (8, 4)), profile=profile)
    values = numbers(dtype, (1, 1)) + np.ones((1, 1), dtype)
    decoded = node.decode(node.encode(values), 3)
    assert decoded.shape == (4, 2)
    assert np.array_equal(decoded[:1, :1], values)
    assert not decoded[1:].any()
    assert not decoded[:, 1:].any()


@pytest.mark.parametrize("dtype", ["O", "U4", np.dtypes.StringDType()])
def test_text_comes_back_as_text(dtype):
    texts = ["", "T cell", "naïve", "λ₂", "a\x00b" if dtype != "U4" else "ab"]
    node = new_array("a", (5,), np.dtype(dtype), grid=Grid((5,), (5,), (5,)))
    decoded = node.decode(node.encode(np.array(texts, dtype=dtype).astype(np.dtypes.StringDType())), 0)
    assert decoded.tolist() == [t[:4] if dtype == "U4" else t for t in texts]
    assert decoded.dtype == node.dtype == np.dtypes.StringDType()


def test_a_partial_chunk_of_text_is_padded():
    node = new_array("a", (5,), np.dtype("O"), grid=Grid((5,), (4,), (8,)))
    texts = np.array(["z"], dtype=np.dtypes.StringDType())
    assert node.decode(node.encode(texts), 1)[:1].tolist() == ["z"]


@unstable
@pytest.mark.parametrize("profile", CODEC_PROFILES)
def test_structured_values_come_back(profile):
    values = np.array([(0.5, 1), (np.inf, -(2**60)), (-0.0, 3)], RECORD)
    node = new_array("uns/r", (3,), RECORD, grid=Grid((3,), (3,), (3,)), profile=profile)
    decoded = node.decode(node.encode(values), 0)
    assert decoded.dtype == RECORD
    assert decoded.tobytes() == values.tobytes()


@pytest.mark.parametrize("profile", CODEC_PROFILES)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "str"])
def test_no_changed_byte_goes_unnoticed(profile, dtype):
    if dtype == "str":
        node = new_array("a", (9,), np.dtype("O"), grid=Grid((9,), (9,), (9,)), profile=profile)
        encoded = node.encode(np.array([f"cell{i}" for i in range(9)], np.dtypes.StringDType()))
    else:
        node = vector(40, 40, 40, dtype, profile)
        encoded = node.encode(numbers(dtype, 40))
    for at in range(len(encoded)):
        for change in (0x01, 0x80, 0xFF):
            flipped = bytearray(encoded)
            flipped[at] ^= change
            with pytest.raises(ChunkDecodeError):
                node.decode(bytes(flipped), 0)


@pytest.mark.parametrize("profile", CODEC_PROFILES)
def test_no_truncated_or_longer_chunk_is_decoded(profile):
    node = vector(40, 40, 40, "float32", profile)
    encoded = node.encode(numbers("float32", 40))
    for wrong in (*(encoded[:n] for n in range(len(encoded))), encoded + b"\0", encoded * 2):
        with pytest.raises(ChunkDecodeError):
            node.decode(wrong, 0)


def test_a_chunk_of_another_length_is_refused():
    shorter, longer = vector(8, 8, 8, "int32", "fast"), vector(9, 9, 9, "int32", "fast")
    with pytest.raises(ChunkDecodeError):
        longer.decode(shorter.encode(numbers("int32", 8)), 0)
    with pytest.raises(ChunkDecodeError):
        shorter.decode(longer.encode(numbers("int32", 9)), 0)


@pytest.mark.parametrize("profile", CODEC_PROFILES)
def test_a_memoryview_is_decoded_as_well(profile):
    node = vector(6, 6, 6, "int64", profile)
    body = memoryview(b"??" + node.encode(numbers("int64", 6)) + b"?")
    assert np.array_equal(node.decode(body[2:-1], 0), numbers("int64", 6))


@unstable
def test_a_chunk_beyond_the_budget_is_refused_before_anything_is_allocated():
    n = MAX_CHUNK_BYTES // 8 + 1
    node = vector(n, n, n, "float64", "fast")
    with pytest.raises((UnsupportedError, ChunkDecodeError)):
        node.decode(b"\0" * 64, 0)


# ---------------------------------------------------------------- codecs and grids


@pytest.mark.parametrize("profile", CODEC_PROFILES)
@pytest.mark.parametrize("dtype", [*NUMBERS, "O", "U7", RECORD])
def test_every_chunk_ends_in_a_checksum(profile, dtype):
    _, compressors = codecs_for(np.dtype(dtype), profile)
    assert isinstance(compressors[-1], Crc32cCodec)
    assert sum(isinstance(c, Crc32cCodec) for c in compressors) == 1


@pytest.mark.parametrize(("profile", "names"), [("small", {"pcodec"}), ("fast", {"blosc"}), ("compatible", {"blosc"})])
def test_profiles_are_what_they_promise(profile, names):
    node = vector(40, 4, 8, "float32", profile)
    told = {str(d["name"]).removeprefix("numcodecs.") for d in node.codec_documents()}
    assert told - {"bytes", "crc32c"} == names


def is_valid(grid: Grid):
    assert all(c >= 1 for c in grid.chunk)
    assert all(s % c == 0 for s, c in zip(grid.shard, grid.chunk, strict=True))
    # Nothing but the end of an axis is padding: no shard is a chunk longer than the array.
    chunked = zip(grid.shape, grid.chunk, grid.shard, strict=True)
    assert all(s <= max(-(-n // c), 1) * c for n, c, s in chunked)


@given(st.integers(0, 1 << 36), st.integers(0, 17))
def test_sparse_grids_are_valid(nnz, power):
    chunk = 1 << power
    grid = sparse_grid(nnz, chunk)
    assert grid.shape == (nnz,)
    is_valid(grid)
    assert grid.chunk[0] <= chunk


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 1 << 22)), max_size=4).map(tuple))
def test_dense_grids_are_valid(shape):
    grid = dense_grid(shape)
    assert grid.shape == shape
    is_valid(grid)


@pytest.mark.parametrize("n_rows", [10, 1000, 100_000, 5_000_000])
@pytest.mark.parametrize("width", [1, 2, 50, 2000, 30_000])
def test_a_matrix_is_stored_in_tiles_of_bounded_size(n_rows, width):
    grid = dense_grid((n_rows, width))
    assert math.prod(grid.chunk) <= 1 << 17
    assert math.prod(grid.shard) <= 1 << 25
    assert grid.shards_per_axis[1] == 1  # the writer gets whole rows: a shard spans them


def test_a_short_column_is_one_chunk():
    grid = dense_grid((8_000,))
    assert grid.n_chunks == 1
    assert grid.shard == grid.chunk == (8_000,)


def test_a_long_column_has_few_chunks_in_few_objects():
    for n in (8_193, 100_000, 3_000_000, 10_000_000, 1_000_000_000):
        grid = dense_grid((n,))
        assert 2 <= grid.n_chunks <= 256
        assert grid.chunk[0] >= 8_192
        assert grid.shard[0] % grid.chunk[0] == 0


def test_a_new_array_says_of_itself_what_it_was_told():
    node = new_array(
        "obs/n_counts", (10,), np.dtype("int32"), grid=Grid((10,), (2,), (4,)),
        attributes={"encoding-type": "array"},
    )  # fmt: skip
    tree = Tree({"": {"node_type": "group"}, "obs/n_counts": node.to_json()})
    again = tree.array("obs/n_counts")
    assert (again.shape, again.dtype, again.grid) == ((10,), np.dtype("int32"), Grid((10,), (2,), (4,)))
    assert again.attributes == {"encoding-type": "array"}
    assert keys_of(again) == ["obs/n_counts/c/0", "obs/n_counts/c/1", "obs/n_counts/c/2"]
    assert again.decode(node.encode(np.array([1, 2], "int32")), 0).tolist() == [1, 2]


# ---------------------------------------------------------------- shards, and zarr-python as the judge


@given(
    n=st.integers(1, 40), chunk=st.integers(1, 6), per_shard=st.integers(2, 5),
    dtype=st.sampled_from(["bool", "int32", "uint64", "float16", "float64"]),
    profile=st.sampled_from(CODEC_PROFILES),
)  # fmt: skip
@settings(max_examples=30)
def test_zarr_reads_the_vectors_that_we_write(n, chunk, per_shard, dtype, profile):
    node = vector(n, chunk, chunk * per_shard, dtype, profile)
    values = numbers(dtype, n, seed=n)
    read = read_by_zarr(node, values)
    assert read.dtype == values.dtype
    assert np.array_equal(read, values)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunk=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    per=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    profile=st.sampled_from(CODEC_PROFILES),
)
@settings(max_examples=30)
def test_zarr_reads_the_matrices_that_we_write(shape, chunk, per, profile):
    grid = Grid(shape, chunk, (chunk[0] * per[0], chunk[1] * per[1]))
    node = new_array("layers/a", shape, np.dtype("float32"), grid=grid, profile=profile)
    values = numbers("float32", shape)
    assert np.array_equal(read_by_zarr(node, values), values)


def test_zarr_reads_the_text_and_the_scalars_that_we_write():
    texts = np.array([f"cell {i}" for i in range(11)], np.dtypes.StringDType())
    node = new_array("obs/_index", (11,), np.dtype("O"), grid=Grid((11,), (2,), (6,)))
    assert read_by_zarr(node, texts).tolist() == texts.tolist()
    scalar = new_array("uns/pi", (), np.dtype("float64"), grid=dense_grid(()))
    assert read_by_zarr(scalar, np.array(3.25)) == 3.25


@given(
    n=st.integers(1, 30), chunk=st.integers(1, 4), per_shard=st.integers(1, 4),
    location=st.sampled_from(["start", "end"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40)
def test_the_index_of_a_shard_that_zarr_wrote_places_every_chunk(n, chunk, per_shard, location, seed):
    store = RecordingStore()
    values = numbers("int32", n, seed)
    values[np.random.default_rng(seed).random(n) < 0.5] = 0  # chunks of nothing but zeros are left out
    array = write_foreign(
        store, values, chunks=(chunk,), shards={"shape": (chunk * per_shard,), "index_location": location}
    )
    node = ArrayNode("a", array.metadata)
    written = {k for k in keys_of(node) if zarr.core.sync.sync(store._store.exists(k))}
    for chunk_id in range(node.grid.n_chunks):
        expected = values[node.grid.chunk_slices(chunk_id)]
        (shard,), (slot,) = node.grid.locate(np.array([chunk_id]))
        if node.key(int(shard)) not in written:
            assert not expected.any()
            continue
        body = store.body(node.key(int(shard)))
        raw = body[: node.index_bytes] if node.index_at_start else body[-node.index_bytes :]
        index = node.decode_index(raw, int(shard))
        assert np.array_equal(index.astype(object), shard_index(body, per_shard, location))
        offset, size = (int(v) for v in index[slot])
        if offset == 2**64 - 1:
            assert not expected.any()
        else:
            assert np.array_equal(node.decode(body[offset : offset + size], 0)[: len(expected)], expected)


def test_no_changed_or_missing_byte_of_an_index_goes_unnoticed():
    node = vector(8, 2, 8)
    body = node.build_shard({i: node.encode(numbers("float32", 2, i)) for i in range(4)})
    index = body[-node.index_bytes :]
    node.decode_index(index, 0)
    for at in range(len(index)):
        flipped = bytearray(index)
        flipped[at] ^= 0x10
        with pytest.raises(ChunkDecodeError):
            node.decode_index(bytes(flipped), 0)
    for wrong in (b"", index[:-1], index[1:], index + b"\0"):
        with pytest.raises(ChunkDecodeError):
            node.decode_index(wrong, 0)


def test_a_shard_may_leave_slots_out():
    node = vector(8, 2, 8)
    body = node.build_shard({1: b"abc", 3: b"de"})
    entries = node.decode_index(body[-node.index_bytes :], 0)
    missing = 2**64 - 1
    assert entries.tolist() == [[missing, missing], [0, 3], [missing, missing], [3, 2]]
    assert body[:5] == b"abcde"


# ---------------------------------------------------------------- foreign metadata


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("shape", [(), (5,), (5, 4)])
def test_keys_are_those_that_zarr_writes(zarr_format, shape):
    store = RecordingStore()
    chunks = tuple(2 for _ in shape)
    array = write_foreign(store, np.ones(shape), zarr_format=zarr_format, chunks=chunks)
    node = ArrayNode("a", array.metadata)

    async def listed():
        names = ("zarr.json", ".zarray", ".zattrs")
        return [k async for k in store.list_prefix("a/") if not k.endswith(names)]

    assert sorted(keys_of(node)) == sorted(zarr.core.sync.sync(listed()))


def test_a_version_2_array_may_separate_its_keys_with_slashes():
    store = RecordingStore()
    array = write_foreign(
        store, np.ones((4, 4)), zarr_format=2, chunks=(2, 2),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )  # fmt: skip
    assert keys_of(ArrayNode("a", array.metadata)) == ["a/0/0", "a/0/1", "a/1/0", "a/1/1"]


def test_a_version_2_array_is_read_without_a_warning():
    array = write_foreign(MemoryStore(), np.ones(4), zarr_format=2, chunks=(2,))
    with warnings.catch_warnings(action="error"):
        assert ArrayNode("a", array.metadata).grid == Grid((4,), (2,), (2,))


# ---------------------------------------------------------------- the tree of nodes


def test_a_tree_knows_its_members_and_leaves_ours_out():
    node = vector(4, 2, 4)
    tree = Tree(
        {
            "": {"node_type": "group", "attributes": {"encoding-type": "anndata"}},
            "obs": {"node_type": "group", "attributes": None},
            "obs/a": node.to_json(),
            "obs/_lobster_zarr_source_order": node.to_json(),
            "obsm": {"node_type": "group"},
        }
    )
    assert tree.children("") == ["obs", "obsm"]
    assert tree.children("obs") == ["a"]
    assert tree.children("obsm") == tree.children("nowhere") == []
    assert tree.encoding("") == "anndata"
    assert tree.encoding("obs") == tree.encoding("nowhere") == ""
    assert tree.attributes("obs") == {}
    assert "obs/a" in tree
    assert "obs/b" not in tree
    assert tree.is_array("obs/a")
    assert not tree.is_array("obs")
    assert tree.arrays_below("obs/a") == ["obs/a"]
    assert tree.arrays_below("obs") == ["obs/a", "obs/_lobster_zarr_source_order"]
    assert tree.array("obs/a") is tree.array("obs/a")  # parsed once


@pytest.mark.parametrize("path", ["obs", "nowhere"])
def test_asking_for_an_array_that_is_none_is_damage(path):
    with pytest.raises(FormatError):
        Tree({"": {}, "obs": {"node_type": "group"}}).array(path)
