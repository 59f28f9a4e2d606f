"""Sums, counts and squared deviations of the values of groups of cells, by gene.

Pure: partial results of blocks, and how they are put together. Sums are kept
as float64, of integers as exact integers; deviations from the mean are put
together as Chan, Golub and LeVeque do (https://doi.org/10.1080/00031305.1983.10483115),
so that no square of a mean is taken from a mean of squares. Must not know stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

Func = Literal["sum", "mean", "count_nonzero", "var"]
Kept = Literal["sum", "count_nonzero", "squares"]
NEEDS: dict[Func, tuple[Kept, ...]] = {
    "sum": ("sum",),
    "mean": ("sum",),
    "count_nonzero": ("count_nonzero",),
    "var": ("sum", "squares"),
}


def summed_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return in what values are summed: float64, int64, or uint64 where int64 does not hold them."""
    if dtype.kind == "f":
        return np.dtype(np.float64)
    return np.dtype(np.uint64 if dtype == np.uint64 else np.int64)


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of some groups of cells.

    Parameters
    ----------
    groups : ndarray of int64, shape (n_groups,)
        Their numbers, ascending.
    n_cells : ndarray of int64, shape (n_groups,)
        Cells that were counted.
    kept : dict of ndarray, shape (n_groups, n_genes)
        ``sum``, ``count_nonzero`` (int64) and ``squares``, the sum of the squared deviations from the mean.
    """

    groups: np.ndarray
    n_cells: np.ndarray
    kept: dict[Kept, np.ndarray]

    @classmethod
    def zeros(cls, groups: np.ndarray, like: dict[Kept, np.dtype[Any]], n_genes: int) -> Moments:
        """Return the moments of no cells."""
        shape = len(groups), n_genes
        return cls(groups, np.zeros(len(groups), np.int64), {name: np.zeros(shape, like[name]) for name in like})

    @classmethod
    def of(cls, matrix: Any, codes: np.ndarray, wanted: Sequence[Kept]) -> Moments:
        """Compute the moments of a block. O(its stored values).

        Parameters
        ----------
        matrix : sparse matrix or ndarray, shape (n_cells, n_genes)
            Real or boolean values.
        codes : ndarray of int, shape (n_cells,)
            The group of each cell, -1 for none.
        wanted
            What to keep.
        """
        cells = np.flatnonzero(codes >= 0)
        groups, n_cells = np.unique(codes[cells], return_counts=True)
        if np.any(np.diff(codes[cells]) < 0):
            cells = cells[np.argsort(codes[cells], kind="stable")]
        if len(cells) < len(codes) or np.any(np.diff(cells) < 0):
            matrix = matrix[cells]
        found = cls(groups.astype(np.int64), n_cells.astype(np.int64), {})
        values = _Sparse(matrix, n_cells, wanted) if sparse.issparse(matrix) else _Dense(matrix, n_cells)
        with np.errstate(invalid="ignore", over="ignore"):
            if "sum" in wanted:
                found.kept["sum"] = values.sum()
            if "count_nonzero" in wanted:
                found.kept["count_nonzero"] = values.count_nonzero()
            if "squares" in wanted:
                found.kept["squares"] = values.squares(found.mean)
        return found

    @property
    def mean(self) -> np.ndarray:
        """Mean of each group and gene: float64, NaN of no cells."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: np.ndarray = self.kept["sum"] / self.n_cells[:, None]
        return mean

    @property
    def var(self) -> np.ndarray:
        """Variance of each group and gene, with one degree of freedom less than cells: NaN of less than two."""
        freedom = np.where(self.n_cells > 1, self.n_cells - 1.0, np.nan)
        var: np.ndarray = self.kept["squares"] / freedom[:, None]
        return var

    def result(self, func: Func) -> np.ndarray:
        """Return what was asked for: shape (n_groups, n_genes)."""
        return self.mean if func == "mean" else self.var if func == "var" else self.kept[func]

    def add(self, other: Moments) -> None:
        """Add, in place, the moments of other cells, whose groups are among these."""
        at = np.searchsorted(self.groups, other.groups)
        mine, theirs = self.n_cells[at][:, None], other.n_cells[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            if "squares" in self.kept:
                apart = other.mean - np.where(mine > 0, self.kept["sum"][at] / np.maximum(mine, 1), 0)
                shift = np.where(mine > 0, apart * apart * (mine * theirs / (mine + theirs)), 0)
                self.kept["squares"][at] += other.kept["squares"] + shift
            for name in self.kept:
                if name != "squares":
                    self.kept[name][at] += other.kept[name]
        self.n_cells[at] += other.n_cells

    @classmethod
    def merge(cls, parts: Sequence[Moments]) -> Moments:
        """Put together the moments of different cells and the same genes."""
        groups = np.unique(np.concatenate([part.groups for part in parts]))
        like = {name: values.dtype for name, values in parts[0].kept.items()}
        total = cls.zeros(groups, like, next(iter(parts[0].kept.values())).shape[1])
        for part in parts:
            total.add(part)
        return total

    @classmethod
    def beside(cls, parts: Sequence[Moments]) -> Moments:
        """Put together the moments of the same cells and different genes."""
        names = parts[0].kept
        return cls(parts[0].groups, parts[0].n_cells, {n: np.hstack([part.kept[n] for part in parts]) for n in names})


class _Sparse:
    """The stored values of cells that lie group by group; all others are zero."""

    def __init__(self, matrix: Any, n_cells: np.ndarray, wanted: Sequence[Kept]) -> None:
        rows = matrix.tocsr()
        if set(wanted) != {"sum"} and not rows.has_canonical_format:
            rows.sum_duplicates()  # two entries of one place are one value
        self.values, self.indices, self.n_cells = rows.data, rows.indices, n_cells
        self.shape = len(n_cells), rows.shape[1]
        self.indptr = rows.indptr[np.concatenate(([0], np.cumsum(n_cells)))]

    def _summed(self, values: np.ndarray) -> np.ndarray:
        # A row that holds all entries of a group: made dense, those of one gene are added up.
        merged = sparse.csr_array((values, self.indices, self.indptr), shape=self.shape)
        summed: np.ndarray = merged.toarray()
        return summed

    def sum(self) -> np.ndarray:
        return self._summed(self.values.astype(summed_dtype(self.values.dtype)))

    def count_nonzero(self) -> np.ndarray:
        return self._summed((self.values != 0).astype(np.int32)).astype(np.int64)

    def squares(self, mean: np.ndarray) -> np.ndarray:
        n_groups, n_genes = self.shape
        at = np.repeat(np.arange(n_groups) * n_genes, np.diff(self.indptr))
        at += self.indices
        apart = self.values.astype(np.float64)
        apart -= mean.ravel().take(at)
        apart *= apart
        zeros = self.n_cells[:, None] - np.bincount(at, minlength=mean.size).reshape(self.shape)
        return self._summed(apart) + np.where(zeros > 0, zeros * (mean * mean), 0)


class _Dense:
    """All values of cells that lie group by group."""

    def __init__(self, matrix: np.ndarray, n_cells: np.ndarray) -> None:
        self.matrix, self.n_cells = matrix, n_cells

    def _summed(self, values: np.ndarray, dtype: Any) -> np.ndarray:
        summed, stops = np.empty((len(self.n_cells), values.shape[1]), dtype), np.cumsum(self.n_cells)
        for group, start, stop in zip(summed, (stops - self.n_cells).tolist(), stops.tolist(), strict=True):
            values[start:stop].sum(axis=0, dtype=dtype, out=group)
        return summed

    def sum(self) -> np.ndarray:
        return self._summed(self.matrix, summed_dtype(self.matrix.dtype))

    def count_nonzero(self) -> np.ndarray:
        return self._summed(self.matrix != 0, np.int64)

    def squares(self, mean: np.ndarray) -> np.ndarray:
        apart = self.matrix - np.repeat(mean, self.n_cells, axis=0)
        apart *= apart
        return self._summed(apart, np.float64)
