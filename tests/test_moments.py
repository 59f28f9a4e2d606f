"""Moments of blocks, and of blocks put together, against NumPy over all values at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from lobster_zarr.moments import NEEDS, Kept, Moments

KEPT: tuple[Kept, ...] = ("sum", "count_nonzero", "squares")


def expected(values: np.ndarray, codes: np.ndarray, func: str) -> np.ndarray:
    """What NumPy gives for each group that is there, computed with more precision than is promised."""
    exact = values.astype(np.longdouble) if values.dtype.kind == "f" else values
    calls = {
        "sum": lambda part: part.sum(axis=0),
        "mean": lambda part: part.mean(axis=0),
        "count_nonzero": lambda part: np.count_nonzero(part, axis=0),
        "var": lambda part: part.var(axis=0, ddof=1) if len(part) > 1 else np.full(part.shape[1], np.nan),
    }
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array([calls[func](exact[codes == group]) for group in np.unique(codes[codes >= 0])])


def by_blocks(matrix: Any, codes: np.ndarray, cuts: list[int]) -> Moments:
    bounds = [0, *sorted(cuts), len(codes)]
    return Moments.merge(
        [Moments.of(matrix[a:b], codes[a:b], KEPT) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], type]:
    n_cells, n_genes, n_groups = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.poisson(1.0, (n_cells, n_genes)).astype(draw(st.sampled_from(["f4", "f8", "i4", "i8", "u1", "?"])))
    if values.dtype.kind == "f":
        values *= rng.normal(size=values.shape)
        values[rng.random(values.shape) < 0.1] = draw(st.sampled_from([np.nan, np.inf, 0.0, 1e6]))
    codes = rng.integers(draw(st.sampled_from([-1, 0])), n_groups, n_cells)
    codes = np.sort(codes) if draw(st.booleans()) else codes
    cuts = draw(st.lists(st.integers(0, n_cells), max_size=3))
    return (
        values,
        codes,
        cuts,
        draw(st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csr_array, sparse.csc_array])),
    )


@given(cases())
def test_blocks_put_together_are_the_whole(case: tuple[np.ndarray, np.ndarray, list[int], type]) -> None:
    values, codes, cuts, layout = case
    matrix: Any = layout(values)
    found = by_blocks(matrix.tocsr() if sparse.issparse(matrix) else matrix, codes, cuts)
    assert found.groups.tolist() == np.unique(codes[codes >= 0]).tolist()
    assert found.n_cells.tolist() == [int((codes == group).sum()) for group in found.groups]
    for func in NEEDS:
        wanted = expected(values, codes, func)
        if len(found.groups):
            np.testing.assert_allclose(found.result(func).astype(wanted.dtype), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_the_variance_of_values_far_from_zero_is_sound(layout: Any, offset: float) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 600)
    values = rng.normal(size=(600, 4)) + offset * (codes[:, None] + 1)
    found = by_blocks(layout(values), codes, [50, 51, 300])
    np.testing.assert_allclose(found.var, expected(values, codes, "var").astype(float), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "uint64", "bool"])
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_sums_of_integers_are_exact(layout: Any, dtype: str) -> None:
    most = 1 if dtype == "bool" else min(np.iinfo(dtype).max, 2**62)
    values = np.array([[most, 1], [most, 0], [1, 1]]).astype(dtype)
    found = Moments.of(layout(values), np.array([0, 1, 1]), ("sum",)).kept["sum"]
    assert found.tolist() == [[most, 1], [most + 1, 1]]
    assert found.dtype == (np.uint64 if dtype == "uint64" else np.int64)


def test_two_entries_of_one_place_are_one_value() -> None:
    twice = sparse.csr_matrix((np.array([2.0, -2.0, 3.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    found = Moments.of(twice, np.array([0, 0]), KEPT)
    assert found.kept["count_nonzero"].tolist() == [[1, 0]]
    assert found.var.tolist() == [[4.5, 0]]


def test_a_stored_zero_does_not_count() -> None:
    stored = sparse.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert Moments.of(stored, np.array([0]), ("count_nonzero",)).kept["count_nonzero"].tolist() == [[0, 1]]


def test_genes_beside_each_other() -> None:
    values, codes = np.arange(12.0).reshape(4, 3), np.array([1, 0, 1, -1])
    parts = [Moments.of(values[:, a:b], codes, KEPT) for a, b in ((0, 2), (2, 3))]
    whole = Moments.of(values, codes, KEPT)
    np.testing.assert_array_equal(Moments.beside(parts).var, whole.var)
