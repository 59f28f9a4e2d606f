"""Compressed matrices by slices and projection, against SciPy; with hostile groups refused."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lobster_zarr.errors import FormatError
from lobster_zarr.grid import Grid, Runs
from lobster_zarr.layout import new_array
from lobster_zarr.loop import run
from lobster_zarr.node import INDEX
from lobster_zarr.sparse import SparseReader
from tests.recording import (
    EAGER,
    EXACT,
    RecordingStore,
    as_runs,
    fetcher,
    keys_of,
    shard_index,
    tree_of,
    write_foreign,
    write_nodes,
    write_own,
)
from tests.strategies import masks, sparse_matrices


def write_sparse(store, matrix, *, path="X", zarr_format=3, chunks=(4, 4), shards=None):
    """Let zarr-python write the three arrays, values and indices in chunks of their own."""
    group = zarr.open_group(store, mode="a", zarr_format=zarr_format).create_group(path)
    group.attrs.update(
        {"encoding-type": f"{matrix.format}_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}
    )
    for name, values, chunk in (
        ("data", matrix.data, chunks[0]), ("indices", matrix.indices, chunks[1]), ("indptr", matrix.indptr, 5),
    ):  # fmt: skip
        options = {"shards": (chunk * shards,)} if shards and name != "indptr" else {}
        write_foreign(store, values, path=f"{path}/{name}", zarr_format=zarr_format, chunks=(chunk,), **options)


def reader_of(store, *, path="X", strict=False, network=EXACT):
    return SparseReader(fetcher(store, strict=strict, network=network), tree_of(store), path)


def built(parts, n_major, n_minor, kind):
    """Put together what a reader gave, as CSR or CSC."""
    assert parts.indptr.dtype == np.int64
    assert parts.indptr.shape == (n_major + 1,)
    shape = (n_major, n_minor) if kind == "csr" else (n_minor, n_major)
    cls = sparse.csr_matrix if kind == "csr" else sparse.csc_matrix
    matrix = cls(shape, dtype=parts.values.dtype)
    matrix.indptr, matrix.indices, matrix.data = parts.indptr, parts.indices, parts.values
    return matrix


def entries(matrix):
    """Major slices as lists of (minor position, value), in stored order: explicit zeros are entries."""
    pairs = list(zip(matrix.indices.tolist(), matrix.data.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]


def expected_entries(matrix, major, minor):
    slices = entries(matrix)
    if major is not None:
        slices = [s for s, wanted in zip(slices, major, strict=True) if wanted]
    if minor is None:
        return slices
    places = {int(p): i for i, p in enumerate(np.flatnonzero(minor))}
    return [[(places[at], value) for at, value in s if at in places] for s in slices]


def same(found, expected):
    return repr(found) == repr(expected)  # so that NaN is NaN and -0.0 is not 0.0


@st.composite
def stored_matrices(draw):
    shape = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    matrix = draw(sparse_matrices(shape, (sparse.csr_matrix, sparse.csc_matrix)))
    zarr_format = draw(st.sampled_from([2, 3]))
    chunk = draw(st.integers(1, 8))
    store = RecordingStore()
    write_sparse(
        store, matrix, zarr_format=zarr_format,
        chunks=(chunk, draw(st.sampled_from([chunk, chunk, 3]))),
        shards=draw(st.sampled_from([None, 1, 3])) if zarr_format == 3 else None,
    )  # fmt: skip
    return store, matrix


@given(stored_matrices(), st.data(), st.sampled_from([EXACT, EAGER]))
@settings(max_examples=150)
def test_any_slices_and_projection_are_those_of_scipy(drawn, data, network):
    store, matrix = drawn
    n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    major, minor = (data.draw(st.none() | masks(n)) for n in (n_major, n_minor))
    reader = reader_of(store, network=network)
    assert reader.shape == matrix.shape
    assert reader.row_major == (matrix.format == "csr")
    assert reader.nnz == matrix.nnz
    n_taken = n_major if major is None else int(major.sum())

    whole = run(reader.read(as_runs(major)))
    assert same(entries(built(whole, n_taken, n_minor, matrix.format)), expected_entries(matrix, major, None))
    assert whole.values.dtype == matrix.dtype
    assert whole.indices.dtype == matrix.indices.dtype

    chosen = np.ones(n_minor, bool) if minor is None else minor
    positions = np.flatnonzero(chosen)
    part = run(reader.read_projected(as_runs(major), as_runs(chosen)))
    projected = built(part, n_taken, len(positions), matrix.format)
    assert same(entries(projected), expected_entries(matrix, major, minor))
    assert part.values.dtype == matrix.dtype


@given(sparse_matrices((7, 6), (sparse.csr_matrix,)), st.data())
@settings(max_examples=40)
def test_what_comes_back_is_a_matrix_that_scipy_can_work_with(matrix, data):
    store = RecordingStore()
    write_sparse(store, matrix)
    rows, columns = (data.draw(masks(n)) for n in matrix.shape)
    parts = run(reader_of(store).read_projected(as_runs(rows), as_runs(columns)))
    result = built(parts, int(rows.sum()), int(columns.sum()), "csr")
    result.check_format(full_check=True)
    assert np.array_equal(result.toarray(), matrix.toarray()[rows][:, columns], equal_nan=True)


def test_rows_that_come_in_runs_that_touch_are_one_span():
    matrix = sparse.random(40, 30, 0.4, "csr", random_state=1)
    store = RecordingStore()
    write_sparse(store, matrix, chunks=(8, 8), shards=100)
    reader = reader_of(store)
    run(reader.prepare())
    store.forget()
    runs = Runs(np.array([2, 5, 6, 9]), np.array([5, 6, 6, 12]))
    parts = run(reader.read(runs))
    rows = runs.positions()
    assert same(entries(built(parts, len(rows), 30, "csr")), entries(matrix[rows]))
    ranged = [c for c in store.calls if c.key == "X/data/c/0"]
    assert len(ranged) == 3  # the index, and two spans: rows 2 to 6, and 9 to 12


def test_indptr_is_read_once_and_chunks_that_are_not_touched_never():
    matrix = sparse.random(50, 40, 0.5, "csr", random_state=2)
    store = RecordingStore()
    write_sparse(store, matrix, chunks=(10, 10), shards=20)
    reader = reader_of(store)
    rows = np.zeros(50, bool)
    rows[[3, 4]] = True
    store.forget()
    run(reader.read(as_runs(rows)))
    assert any(k.startswith("X/indptr") for k in store.keys)
    store.forget()
    run(reader.read_projected(as_runs(rows), Runs.whole(5)))
    span = matrix.indptr[3] // 10, (matrix.indptr[5] - 1) // 10 + 1
    expected = 0
    for name in ("data", "indices"):
        assert span[1] <= 20  # all in the first shard
        expected += int(shard_index(store.body(f"X/{name}/c/0"), 20)[span[0] : span[1], 1].sum())
    assert not any(k.startswith("X/indptr") for k in store.keys)
    assert store.n_bytes == expected


def own_matrix(store, matrix, *, chunk=4, per_shard=3):
    """The three arrays as this package writes them, with the sizes of the chunks noted."""
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}
    sizes = []
    for name in ("data", "indices"):
        values = getattr(matrix, name)
        grid = Grid(values.shape, (chunk,), (chunk * per_shard,))
        node = new_array(f"X/{name}", values.shape, values.dtype, grid=grid)
        write_own(store, node, values)
        sizes.append([len(node.encode(values[grid.chunk_slices(i)])) for i in range(grid.n_chunks)])
    index = np.concatenate([np.diff(matrix.indptr), *sizes]).astype("uint32")
    for name, values in (("indptr", matrix.indptr.astype("int64")), (INDEX, index)):
        grid = Grid(values.shape, values.shape, values.shape)
        write_own(store, new_array(f"X/{name}", values.shape, values.dtype, grid=grid), values)
    write_nodes(store, {"X/zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": attributes}})
    store.forget()
    return np.array(sizes)


def test_noted_sizes_spare_every_index():
    matrix = sparse.random(30, 20, 0.5, "csr", random_state=3)
    store = RecordingStore()
    sizes = own_matrix(store, matrix)
    reader = reader_of(store, strict=True)
    rows = np.zeros(30, bool)
    rows[[7, 8, 21]] = True
    store.forget()
    parts = run(reader.read(as_runs(rows)))
    assert same(entries(built(parts, 3, 20, "csr")), entries(matrix[np.flatnonzero(rows)]))
    touched = [
        i for i in range(sizes.shape[1])
        if any(matrix.indptr[r] < (i + 1) * 4 and matrix.indptr[r + 1] > i * 4 for r in np.flatnonzero(rows))
    ]  # fmt: skip
    of_matrix = [c for c in store.calls if c.key.startswith(("X/data", "X/indices"))]
    assert sum(c.n_bytes for c in of_matrix) == sizes[:, touched].sum()
    assert len([c for c in store.calls if INDEX in c.key]) == 1
    assert not any(k.startswith("X/indptr") for k in store.keys)


def test_an_empty_matrix_needs_its_indptr_alone():
    store = RecordingStore()
    write_sparse(store, sparse.csr_matrix((4, 3)))
    reader = reader_of(store)
    store.forget()
    for parts in (run(reader.read()), run(reader.read_projected(None, Runs(np.array([1]), np.array([2]))))):
        assert parts.indptr.tolist() == [0] * 5
        assert len(parts.values) == len(parts.indices) == 0
    assert {k.split("/")[1] for k in store.keys} <= {"indptr"}


# ---------------------------------------------------------------- damaged and foreign groups

MATRIX = sparse.csr_matrix(np.arange(12).reshape(4, 3) % 5)


@pytest.mark.parametrize("shape", [None, [4], [4, 3, 1], "4x3", 7, ["a", 3], [None, 3]])
def test_a_group_without_a_valid_shape_is_damaged(shape):
    store = RecordingStore()
    write_sparse(store, MATRIX)
    zarr.open_group(store, path="X").attrs["shape"] = shape
    with pytest.raises(FormatError):
        reader_of(store)


@pytest.mark.parametrize("missing", ["data", "indices", "indptr"])
def test_a_group_without_one_of_its_arrays_is_damaged(missing):
    store = RecordingStore()
    write_sparse(store, MATRIX)
    store.lose(f"X/{missing}/zarr.json")
    with pytest.raises(FormatError):
        reader_of(store)


@pytest.mark.parametrize(
    "indptr",
    [
        [0, 2, 4, 7],  # too short
        [0, 2, 4, 7, 9, 9],  # too long
        [1, 2, 4, 7, 9],
        [0, 2, 4, 7, 8],
        [0, 2, 4, 7, 10],
        [0, 4, 2, 7, 9],
        [0, -1, 2, 7, 9],
        [],
    ],
)
def test_an_indptr_that_cannot_be_is_damage(indptr):
    assert MATRIX.indptr.tolist() == [0, 2, 4, 7, 9]
    store = RecordingStore()
    matrix = MATRIX.copy()
    matrix.indptr = np.array(indptr, "int32")
    write_sparse(store, matrix)
    rows = np.array([False, True, False, False])
    for read in (lambda r: r.read(), lambda r: r.read(as_runs(rows)), lambda r: r.read_projected(None, Runs.whole(2))):
        with pytest.raises(FormatError):
            run(read(reader_of(store)))


def test_indices_of_another_length_are_damage():
    store = RecordingStore()
    matrix = MATRIX.copy()
    matrix.indices = matrix.indices[:3]
    write_sparse(store, matrix)
    with pytest.raises(FormatError):
        run(reader_of(store).read())


@pytest.mark.parametrize("wrong", [-1, 3, 99])
def test_indices_beyond_the_matrix_are_damage_and_never_another_gene(wrong):
    store = RecordingStore()
    matrix = MATRIX.copy()
    matrix.indices[4] = wrong
    write_sparse(store, matrix)
    with pytest.raises(FormatError):
        run(reader_of(store).read_projected(None, Runs.whole(3)))


@pytest.mark.parametrize(
    "dtype",
    [
        "int8", "int16", "int32", "int64", ">i4", "uint8", "uint16", "uint32", "uint64",
    ],
)  # fmt: skip
def test_indices_of_any_integer_type(dtype):
    store = RecordingStore()
    matrix = MATRIX.copy()
    matrix.indices = matrix.indices.astype(dtype)
    write_sparse(store, matrix)
    reader = reader_of(store)
    whole = run(reader.read())
    assert whole.indices.tolist() == MATRIX.indices.tolist()
    part = run(reader.read_projected(None, Runs(np.array([0, 2]), np.array([1, 3]))))
    minor = np.array([True, False, True])
    assert same(entries(built(part, 4, 2, "csr")), expected_entries(MATRIX, None, minor))


def test_keys_of_the_three_arrays_are_all_that_is_asked_for():
    matrix = sparse.random(20, 9, 0.5, "csc", random_state=5)
    store = RecordingStore()
    write_sparse(store, matrix, path="layers/a/csc", chunks=(7, 7), shards=2)
    reader = reader_of(store, path="layers/a/csc")
    store.forget()
    parts = run(reader.read_projected(None, Runs(np.array([0, 19]), np.array([1, 20]))))
    assert same(entries(built(parts, 9, 2, "csc")), entries(matrix[[0, 19]].tocsc()))
    tree = tree_of(store)
    every = [k for name in ("data", "indices", "indptr") for k in keys_of(tree.array(f"layers/a/csc/{name}"))]
    assert sorted(k for k in store.keys if "zarr.json" not in k and k) == sorted(every)
