"""Columns of obs and var, one at a time and by runs of rows, against pandas as AnnData reads them."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError
from lobster_zarr.loop import run
from lobster_zarr.table import TableReader
from tests.oracle import assert_equal
from tests.recording import RecordingStore, as_runs, fetcher, tree_of, write_foreign
from tests.strategies import frames, indexes, masks

FRAME = pd.DataFrame(
    {
        "cell_type": pd.Categorical(["T", "B", None, "T", "NK"], categories=["T", "B", "NK", "unused"]),
        "stage": pd.Categorical(["late", "early", "early", None, "late"], ["early", "late"], ordered=True),
        "cluster": pd.Categorical([3, 1, 1, 2, 3]),
        "flag": pd.Categorical([True, False, None, True, True]),
        "n_counts": np.array([1, 2, 3, 4, 5], "int32"),
        "score": np.array([0.5, np.nan, -0.0, np.inf, 1e-300]),
        "half": np.array([1, 2, 3, 4, 5], "float16"),
        "is_doublet": [True, False, True, False, False],
        "n_genes": pd.array([1, None, 3, 4, None], dtype="Int64"),
        "passed": pd.array([True, None, False, True, None], dtype="boolean"),
        "donor": pd.array(["d1", "d2", "", "é", "d1"], dtype="str"),
        "site": pd.array(["a", None, "b", "c", None], dtype="str"),
        "note": pd.array(["a", None, "b", "c", None], dtype="string"),
    },
    index=pd.Index([f"cell{i}" for i in range(5)], name="barcode"),
)
KINDS = {
    "cell_type": "category", "stage": "ordered category", "cluster": "number", "flag": "boolean",
    "n_counts": "number", "score": "number", "half": "number", "is_doublet": "boolean", "n_genes": "number",
    "passed": "boolean", "donor": "string", "site": "string", "note": "string",
}  # fmt: skip


def written(frame, *, zarr_format=3, **dataset):
    store = RecordingStore()
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(group, "obs", frame, dataset_kwargs=dataset)
        expected = ad.io.read_elem(group["obs"])
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    store.forget()
    return store, reader, expected


@st.composite
def drawn_frames(draw):
    index = draw(indexes(draw(st.integers(0, 9)), "cell"))
    return draw(frames(index)), draw(st.none() | masks(len(index)))


@given(drawn_frames(), st.sampled_from([2, 3]))
@settings(max_examples=70)
def test_any_frame_that_anndata_keeps(drawn, zarr_format):
    frame, rows = drawn
    _, reader, expected = written(frame, zarr_format=zarr_format)
    if rows is not None:
        expected = expected[rows]
    assert reader.n_rows == len(frame)
    assert list(reader.columns) == list(frame.columns)
    assert_equal(run(reader.frame(rows=as_runs(rows))), expected)
    for name in frame:
        assert reader.column_length(name) == len(frame)
        found = run(reader.column(name, as_runs(rows)))
        assert_equal(pd.Series(found).array, pd.Series(expected[name].array).array)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [(5,), (2,)])
@pytest.mark.parametrize("rows", [None, [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_every_encoding(zarr_format, chunks, rows):
    _, reader, expected = written(FRAME, zarr_format=zarr_format, chunks=chunks)
    if rows is not None:
        expected = expected[np.array(rows, bool)]
    result = run(reader.frame(rows=None if rows is None else as_runs(np.array(rows, bool))))
    assert_equal(result, expected)
    assert result.index.name == "barcode"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical(["", "", None]),
        np.array(["", "", ""], dtype=object),
        pd.array(["", None, ""], dtype="str"),
    ],
)
def test_text_that_was_left_out_is_empty(zarr_format, column):
    frame = pd.DataFrame({"note": column}, index=["a", "b", "c"])
    _, reader, expected = written(frame, zarr_format=zarr_format)
    assert_equal(run(reader.frame()), expected)


def test_kinds_are_what_a_predicate_may_do():
    _, reader, _ = written(FRAME)
    assert {name: reader.kind(name) for name in reader.columns} == KINDS


def test_columns_are_given_in_the_order_asked_and_no_other_is_read():
    store, reader, expected = written(FRAME)
    result = run(reader.frame(["score", "cell_type"]))
    assert_equal(result, expected[["score", "cell_type"]])
    assert {"/".join(k.split("/")[:2]) for k in store.keys} == {"obs/barcode", "obs/score", "obs/cell_type"}


def test_rows_that_are_not_wanted_are_not_read():
    store, reader, expected = written(FRAME, chunks=(2,))
    rows = np.array([False, False, False, False, True])
    assert_equal(run(reader.frame(["n_counts"], as_runs(rows))), expected.loc[rows, ["n_counts"]])
    assert {"/".join(k.split("/")[:2]) for k in store.keys} == {"obs/barcode", "obs/n_counts"}
    assert [k for k in store.keys if k.endswith("/c/0")] == []  # where the first rows are


def test_lengths_and_kinds_cost_no_request():
    store, reader, _ = written(FRAME)
    assert reader.n_rows == 5
    for name in reader.columns:
        assert reader.column_length(name) == 5
        reader.kind(name)
    assert store.calls == []


def test_a_frame_of_no_columns_is_its_names():
    _, reader, expected = written(FRAME[[]])
    assert_equal(run(reader.frame()), expected)
    assert_equal(run(reader.frame([])), expected)
    assert reader.columns == ()


@pytest.mark.parametrize("name", [None, "barcode", "_index", "cell id"])
def test_the_name_of_the_index(name):
    frame = FRAME[["n_counts"]].rename_axis(name)
    _, reader, expected = written(frame)
    index = run(reader.index())
    assert_equal(index, expected.index)
    assert index.name == expected.index.name


def test_an_index_of_no_rows_is_of_the_dtype_of_the_whole():
    _, reader, expected = written(FRAME)
    none = run(reader.index(as_runs(np.zeros(5, bool))))
    assert none.dtype == expected.index.dtype
    assert len(none) == 0


def test_a_column_that_does_not_exist_is_named_with_its_neighbours():
    _, reader, _ = written(FRAME)
    with pytest.raises(NotFoundError) as failure:
        run(reader.column("cel_type"))
    assert "'cell_type'" in str(failure.value)
    with pytest.raises(NotFoundError):
        run(reader.frame(["n_counts", "nothing"]))


def test_a_group_that_is_no_dataframe_is_refused():
    store = RecordingStore()
    zarr.open_group(store, mode="w").create_group("obs")
    for path in ("obs", "var"):
        with pytest.raises(FormatError):
            TableReader(fetcher(store), tree_of(store), path)


def test_a_column_that_is_listed_but_not_stored_is_damage():
    store, _, _ = written(FRAME)
    store.lose("obs/n_counts/zarr.json")
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    with pytest.raises(FormatError):
        reader.column_length("n_counts")


def test_a_half_of_a_column_that_is_not_stored_is_damage():
    store, _, _ = written(FRAME)
    for member in ("cell_type/categories", "n_genes/mask"):
        store.lose(f"obs/{member}/zarr.json")
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    for name in ("cell_type", "n_genes"):
        with pytest.raises(FormatError):
            run(reader.column(name))


def test_an_encoding_of_another_package_is_refused():
    store, _, _ = written(FRAME)
    zarr.open_group(store, path="obs/cell_type").attrs["encoding-type"] = "interval-array"
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    with pytest.raises(UnsupportedError) as failure:
        run(reader.column("cell_type"))
    assert "interval-array" in str(failure.value)
    assert run(reader.column("n_counts")).tolist() == [1, 2, 3, 4, 5]  # the others are as good as before


def test_a_column_of_a_plain_array_without_an_encoding_is_read():
    store, _, _ = written(FRAME[["n_counts"]])
    write_foreign(store, np.arange(5), path="obs/plain", chunks=(2,))
    zarr.open_group(store, path="obs").attrs["column-order"] = ["n_counts", "plain"]
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    assert run(reader.frame())["plain"].tolist() == [0, 1, 2, 3, 4]
    assert reader.kind("plain") == "number"


def test_codes_beyond_the_categories_are_damage():
    store, _, _ = written(FRAME)
    zarr.open_array(store, path="obs/cell_type/codes")[0] = 77
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    with pytest.raises(FormatError):
        run(reader.column("cell_type"))


def test_a_column_of_another_length_is_damage():
    store, _, _ = written(FRAME)
    zarr.open_array(store, path="obs/n_counts").resize((4,))
    reader = TableReader(fetcher(store), tree_of(store), "obs")
    with pytest.raises(FormatError):
        run(reader.frame())
