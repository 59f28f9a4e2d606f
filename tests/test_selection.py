"""Positions, slices, masks and names against what AnnData itself selects."""

from __future__ import annotations

import time

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobster_zarr.errors import InvalidSelectionError, NotFoundError
from lobster_zarr.selection import positions, runs

NAMES = pd.Index(["AAAC", "AAAG", "CD3D", "MS4A1", "NKG7"])


def selected(selector, names=NAMES):
    result = positions(selector, names, len(names), axis="obs")
    if isinstance(result, slice):
        assert result.start >= 0
        assert result.stop is None or result.stop >= 0
        assert result.step != 0
    else:
        assert result.dtype == np.int64
    return np.arange(len(names))[result].tolist()


def by_anndata(selector, names=NAMES):
    adata = ad.AnnData(obs=pd.DataFrame({"at": np.arange(len(names))}, index=names))
    return adata[selector].obs["at"].tolist()


@st.composite
def axes_and_selectors(draw):
    names = pd.Index([f"cell{i}" for i in range(draw(st.integers(1, 9)))])
    n = len(names)
    ints = st.lists(st.integers(-n, n - 1))
    masks = st.lists(st.booleans(), min_size=n, max_size=n)
    chosen = st.lists(st.sampled_from(list(names)))
    bounds = st.none() | st.integers(-2 * n, 2 * n)
    signed = st.sampled_from([np.int8, np.int32, np.int64])
    selector = draw(
        st.one_of(
            st.integers(-n, n - 1),
            ints,
            st.builds(np.array, ints, dtype=signed),
            st.builds(lambda v: pd.Series(v, dtype="int64"), ints),
            masks,
            masks.map(np.array),
            masks.map(lambda m: pd.Series(m, index=names)),
            st.builds(slice, bounds, bounds, st.none() | st.integers(-3, 3).filter(bool)),
            st.sampled_from(list(names)),
            chosen,
            chosen.map(lambda v: np.array(v, dtype=object)),
            chosen.map(lambda v: pd.Index(v, dtype="str")),
            st.builds(slice, st.none() | st.sampled_from(list(names)), st.none() | st.sampled_from(list(names))),
        )
    )
    return names, selector


@given(axes_and_selectors())
@settings(deadline=None)  # AnnData takes its time
def test_selects_what_anndata_selects(case):
    names, selector = case
    assert selected(selector, names) == by_anndata(selector, names)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ([], []),
        ((), []),
        (np.array([], dtype=np.int32), []),
        (range(1, 3), [1, 2]),
        (np.array([4, 0], dtype=np.uint64), [4, 0]),
        (np.int64(-1), [4]),
        (np.str_("CD3D"), [2]),
        (["NKG7", "AAAC", "NKG7"], [4, 0, 4]),
        (np.array(["NKG7"], dtype=np.dtypes.StringDType()), [4]),
        (pd.Categorical(["CD3D", "AAAC"]), [2, 0]),
        (pd.array([1, 2], dtype="Int64"), [1, 2]),
        (pd.array([True, False, False, False, True], dtype="boolean"), [0, 4]),
        (pl.Series([True, False, False, False, True]), [0, 4]),
        (pl.Series([3, -1]), [3, 4]),
        (pl.Series(["MS4A1"]), [3]),
        (slice("AAAG", "MS4A1"), [1, 2, 3]),
        (slice(-99, None, -1), []),
    ],
)
def test_other_spellings(selector, expected):
    assert selected(selector) == expected


@pytest.mark.parametrize(
    "selector",
    [
        *([5], -6, np.array([0, 2**63], dtype=np.uint64), [2**70], [-(2**70)]),
        *([True, False], np.zeros(6, dtype=bool), np.array([], dtype=bool), pl.Series([True])),
        *(1.0, [1.0, 2.0], [1.5], np.array([]), True, np.True_),
        *([0, "CD3D"], [True, 1], [None], ["CD3D", None], {"CD3D"}, b"CD3D", {"a": 1}, 1j),
        *(np.array([[0, 1]]), np.array(1), [[0], [1]], slice(1.5, 2), slice(0, 5, 0)),
        *(pd.array([True, None, False, False, True], dtype="boolean"), pd.array([1, None], dtype="Int64")),
        pl.Series([True, None, False, False, True]),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused(selector):
    with pytest.raises(InvalidSelectionError) as caught:
        selected(selector)
    assert "obs" in str(caught.value)


@pytest.mark.parametrize("length", [0, 3])
def test_out_of_bounds_says_axis_value_and_length(length):
    with pytest.raises(InvalidSelectionError) as caught:
        positions([0, 0, -7, 9][-2:], None, length, axis="var")
    message = str(caught.value)
    assert "var" in message
    assert "-7" in message
    assert f"length {length}" in message


def test_a_wrong_mask_says_both_lengths():
    with pytest.raises(InvalidSelectionError, match=r"7 values.*length 5"):
        selected(np.ones(7, dtype=bool))


def test_unknown_names_are_named_at_most_five_with_what_is_near():
    with pytest.raises(NotFoundError) as caught:
        selected(["cd3d", "AAAC", *(f"no{i}" for i in range(8))])
    message = str(caught.value)
    assert "Did you mean 'CD3D'" in message
    assert "9 of the names" in message
    assert "'no3'" in message
    assert "'no4'" not in message
    assert "AAAC" not in message


def test_a_name_that_is_not_unique_is_refused_as_anndata_does():
    names = pd.Index(["x", "twice", "y", "twice"])
    adata = ad.AnnData(obs=pd.DataFrame(index=names))
    with pytest.raises(pd.errors.InvalidIndexError):
        adata[["twice"]]
    for selector in (["twice"], "twice", ["x", "twice"], slice("twice", None)):
        with pytest.raises(InvalidSelectionError, match="'twice' is not unique"):
            selected(selector, names)
    assert selected(["y", "x", "y"], names) == [2, 0, 2]
    with pytest.raises(NotFoundError):
        selected(["twice", "z"], names)


def test_names_are_read_only_for_names():
    def read():
        read.calls += 1
        return NAMES

    read.calls = 0
    for selector in (None, 1, [0, -1], slice(1, 3), np.ones(5, dtype=bool), []):
        positions(selector, read, 5, axis="obs")
    assert read.calls == 0
    assert positions(["CD3D"], read, 5, axis="obs").tolist() == [2]
    assert read.calls == 1
    with pytest.raises(InvalidSelectionError, match="no names"):
        positions(["CD3D"], None, 5, axis="obs")


@given(st.lists(st.integers(0, 30)).map(sorted))
def test_runs_cover_the_positions_and_nothing_else(sorted_positions):
    starts, stops = runs(np.array(sorted_positions, dtype=np.int32))
    assert starts.dtype == stops.dtype == np.int64
    covered = [p for start, stop in zip(starts, stops, strict=True) for p in range(start, stop)]
    assert covered == sorted(set(sorted_positions))
    assert (starts[1:] > stops[:-1]).all()


def test_runs_refuses_what_is_not_sorted():
    with pytest.raises(InvalidSelectionError):
        runs(np.array([3, 2]))


def test_runs_of_millions_take_no_loop():
    every_other = np.arange(0, 4_000_000, 2)
    start = time.perf_counter()
    starts, stops = runs(every_other)
    assert time.perf_counter() - start < 1  # 20 ms; a loop takes seconds
    assert len(starts) == len(every_other)
    assert (stops - starts == 1).all()
