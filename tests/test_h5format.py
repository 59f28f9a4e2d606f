"""Nodes and heaps of HDF5 against what libhdf5 says of the same file."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobster_zarr.errors import ChunkDecodeError, FormatError
from lobster_zarr.grid import Grid
from lobster_zarr.h5format import REFERENCE, Branch, ChunkIndex, heap_size, heaps, texts
from lobster_zarr.h5image import AHEAD_BYTES, FileImage, ImageFile
from lobster_zarr.plan import MISSING


def grid_of(dataset) -> Grid:
    chunk = dataset.chunks
    return Grid(dataset.shape, chunk, tuple(-(-n // c) * c for n, c in zip(dataset.shape, chunk, strict=True)))


def root_of(body: bytes, dataset: str) -> tuple[int, int]:
    """Return where the root of the B-tree of a dataset lies: libhdf5, asked for one chunk, reads it first."""
    view = ImageFile(FileImage(len(body)))
    view.image.add(0, body)
    with h5py.File(view, "r") as file:
        found = file[dataset]
        before = len(view.touched)
        found.id.get_chunk_info_by_coord((0,) * found.ndim)
        return view.touched[before]


def read_all(index: ChunkIndex, body: bytes, wanted: np.ndarray) -> int:
    n_read = 0
    while needed := index.needed(wanted):
        for branch in needed:
            index.take(branch, body[branch.address : branch.address + branch.n_bytes], 0, "x")
            n_read += 1
    return n_read


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """A dataset of 20,000 chunks (two levels of nodes above the leaves), and one in two dimensions that shrank."""
    path = tmp_path_factory.mktemp("tree") / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("long", data=np.arange(40_000, dtype="i2"), chunks=(2,), compression="gzip")
        flat = file.create_dataset("flat", (60, 41), "i4", chunks=(4, 5), maxshape=(None, None))
        flat[:50, :33] = np.arange(50 * 33).reshape(50, 33)
        flat.resize((37, 29))
    return path


def test_an_index_is_what_libhdf5_says(tall):
    body = tall.read_bytes()
    with h5py.File(tall) as file:
        for name in ("long", "flat"):
            dataset, told = file[name], []
            dataset.id.chunk_iter(told.append)
            grid = grid_of(dataset)
            start, stop = root_of(body, name)
            index = ChunkIndex(grid, ChunkIndex.empty(grid).places, {}, [Branch(0, grid.n_chunks, start, stop - start)])
            read_all(index, body, np.arange(grid.n_chunks))
            expected = np.full((grid.n_chunks, 2), MISSING, np.uint64)
            for chunk in told:
                coords = tuple(at // c for at, c in zip(chunk.chunk_offset, grid.chunk, strict=True))
                expected[np.ravel_multi_index(coords, grid.chunks_per_axis)] = chunk.byte_offset, chunk.size
            assert np.array_equal(index.places, expected)
            assert not index.pending


def test_of_a_large_index_only_the_nodes_of_the_wanted_chunks_are_read(tall):
    body = tall.read_bytes()
    start, stop = root_of(body, "long")
    grid = Grid((40_000,), (2,), (40_000,))
    index = ChunkIndex(grid, ChunkIndex.empty(grid).places, {}, [Branch(0, grid.n_chunks, start, stop - start)])
    n_read = read_all(index, body, np.arange(9_000, 9_100))
    assert n_read <= 6  # of some 350
    assert (index.places[9_000:9_100] != MISSING).all()
    assert index.needed(np.asarray([0]))
    assert not index.needed(np.asarray([9_050]))


@pytest.mark.parametrize("body", [b"", b"TREE", b"SNOD" + bytes(100), b"TREE\x01\x00\xff\xff" + bytes(100)])
def test_what_is_no_node_is_refused(body):
    grid = Grid((10,), (1,), (10,))
    branch = Branch(0, 10, 0, 100)
    with pytest.raises(FormatError, match="'X/data'"):
        ChunkIndex(grid, ChunkIndex.empty(grid).places, {}, [branch]).take(branch, body, 0, "X/data")


def test_a_tree_that_is_damaged_is_damaged_each_time(tall):
    """Chunks of a node that could not be read are not known; they were not left unwritten."""
    body = bytearray(tall.read_bytes())
    start, stop = root_of(bytes(body), "long")
    grid = Grid((40_000,), (2,), (40_000,))
    first_child = start + 24 + 8 + 16  # the header, and the key before it
    body[first_child : first_child + 8] = start.to_bytes(8, "little")  # the root is its own child
    index = ChunkIndex(grid, ChunkIndex.empty(grid).places, {}, [Branch(0, grid.n_chunks, start, stop - start)])
    for _ in range(2):
        with pytest.raises(FormatError, match="damaged"):
            read_all(index, bytes(body), np.arange(10))


def references_of(path) -> tuple[np.ndarray, bytes]:
    body = path.read_bytes()
    with h5py.File(path) as file:
        at, n_bytes = file["t"].id.get_offset(), file["t"].size * REFERENCE.itemsize
    return np.frombuffer(body[at : at + n_bytes], REFERENCE), body


@settings(max_examples=10)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), min_size=1, max_size=300),
    st.randoms(),
)
def test_texts_are_those_that_were_written(tmp_path_factory, values, random):
    path = tmp_path_factory.mktemp("heap") / "x.h5"
    values += ["x" * 5_000, "", "é" * 3_000]  # longer than a heap
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("t", data=np.asarray(values, object), dtype=h5py.string_dtype())
    references, body = references_of(path)
    wanted = np.asarray(sorted(random.sample(range(len(values)), random.randint(1, len(values)))))
    bodies = {}
    addresses, needed = heaps(references[wanted])
    for address, n_bytes in zip(addresses.tolist(), needed.tolist(), strict=True):
        assert n_bytes <= max(heap_size(body[address:], "t"), 4096)
        bodies[address] = memoryview(body)[address : address + heap_size(body[address:], "t")]
    assert texts(references[wanted], bodies, "t").tolist() == [values[i] for i in wanted]


def test_a_damaged_heap_is_an_error(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("t", data=np.asarray(["a", "b"], object), dtype=h5py.string_dtype())
    references, body = references_of(path)
    address = int(references["address"][0])
    heap = bytearray(body[address : address + 4096])
    wrong = references.copy()
    wrong["index"] = 77
    with pytest.raises(ChunkDecodeError, match="'obs/_index'"):
        texts(wrong, {address: memoryview(bytes(heap))}, "obs/_index")
    with pytest.raises(ChunkDecodeError):
        heap_size(bytes(heap[1:]), "t")
    heap[32] = 0xFF  # the first letter
    with pytest.raises(ChunkDecodeError, match="UTF-8"):
        texts(references, {address: memoryview(bytes(heap))}, "t")


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), max_size=12))
def test_an_image_holds_what_it_was_given(parts):
    whole = bytes(range(120))
    image, known = FileImage(120), np.zeros(120, bool)
    for start, length in parts:
        image.add(start, whole[start : start + length])
        known[start : start + length] = True
    for start in range(0, 120, 13):
        for stop in range(start + 1, 121, 11):
            found = image.read(start, stop)
            assert (found is not None) == known[start:stop].all()
            assert found is None or bytes(found) == whole[start:stop]
    ends = [(s, s + len(b)) for s, b in image.extents()]
    assert all(a[1] < b[0] for a, b in zip(ends, ends[1:], strict=False))


def test_what_is_missing_is_brought_in_few_wide_ranges():
    image = FileImage(50_000_000)
    image.add(0, bytes(100_000))
    ranges = image.to_fetch([(99_990, 100_010), (30_000_000, 30_000_008), (30_200_000, 30_200_100)])
    assert len(ranges) == 2
    assert ranges[0][0] == 99_990 or ranges[0][0] == 100_000
    assert ranges[1][0] == 30_000_000 - AHEAD_BYTES // 3
    assert ranges[1][1] >= 30_200_100
    assert all(stop <= image.n_bytes for _, stop in ranges)
