"""Which values the chunks of a column hold, so that a predicate reads only the chunks that can match.

A categorical column notes the categories that are present in each chunk, any
other its minimum, maximum and number of missing values. Pure: knows columns in
memory and expressions. Must not know where either comes from.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr._clause import Clause, evaluate, to_polars
from lobster_zarr.errors import InvalidPredicateError
from lobster_zarr.grid import cdiv
from lobster_zarr.noted import pack

if TYPE_CHECKING:
    from lobster_zarr.noted import Note

PRESENT, MINIMUM, MAXIMUM, NULLS = "present", "minimum", "maximum", "nulls"
MAX_CATEGORIES = 1_024
MAX_CONSTANTS = 10_000
LAST = "\U0010ffff"
PREFIX = 24
"""Characters of a text that its bounds keep."""

type Make = Callable[..., pl.Expr]
_ONE: Final[tuple[Make, ...]] = (
    pl.Expr.not_,
    pl.Expr.is_null,
    pl.Expr.is_not_null,
    lambda a: a.cast(pl.Boolean, strict=True),
)
_COMPARE: Final[tuple[Make, ...]] = (
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(pl.Expr.fill_null, pl.Expr.is_in),
)
_BETWEEN: Final[tuple[Make, ...]] = tuple(
    partial(pl.Expr.is_between, closed=closed) for closed in ("both", "left", "right", "none")
)
_BOTH: Final[tuple[Make, ...]] = (operator.and_, lambda *operands: pl.all_horizontal(operands))
_LOGIC: Final[tuple[Make, ...]] = (pl.Expr.not_, operator.and_, operator.or_)
_EITHER: Final[tuple[Make, ...]] = (operator.or_, lambda *operands: pl.any_horizontal(operands))


def measure(values: Any, chunk_rows: int) -> dict[str, Any]:
    """Note what the chunks of a column hold: O(rows).

    Parameters
    ----------
    values
        A column: numpy array, Categorical or pandas extension array.
    chunk_rows
        Rows of a chunk.

    Returns
    -------
    dict
        Entries of the note of the column's first array; empty where a
        predicate could not use any.
    """
    n_chunks = cdiv(len(values), chunk_rows)
    if isinstance(values, pd.Categorical):
        if len(values.categories) > MAX_CATEGORIES:
            return {}
        present = np.zeros((n_chunks, len(values.categories) + 1), np.bool_)
        present[np.arange(len(values)) // chunk_rows, values.codes] = True  # the last one: missing
        return {PRESENT: pack(np.packbits(present, axis=1))}
    try:
        column = to_polars("", values)
    except InvalidPredicateError:  # a predicate cannot name it either
        return {}
    if column.dtype == pl.Boolean:
        present = np.zeros((n_chunks, 3), np.bool_)
        present[np.arange(len(column)) // chunk_rows, column.cast(pl.Int8).fill_null(2).to_numpy()] = True
        return {PRESENT: pack(np.packbits(present, axis=1))}
    parts = [column.slice(i * chunk_rows, chunk_rows) for i in range(n_chunks)]
    nulls = {NULLS: pack(np.asarray([p.null_count() for p in parts], np.uint32))}
    low, high = [p.min() for p in parts], [p.max() for p in parts]
    if column.dtype == pl.String:
        return nulls | {MINIMUM: [_shorten(v, "") for v in low], MAXIMUM: [_shorten(v, LAST) for v in high]}
    return nulls | {
        MINIMUM: pack(np.asarray([_outward(v, -np.inf) for v in low], np.float32)),
        MAXIMUM: pack(np.asarray([_outward(v, np.inf) for v in high], np.float32)),
    }


def _shorten(value: Any, end: str) -> Any:
    # Nothing is greater than the last character but itself and more.
    if value is None or len(value) <= PREFIX or value[PREFIX] == LAST:
        return value
    return value[:PREFIX] + end


def _outward(value: Any, side: float) -> np.float32:
    """Round to float32 in the direction of `side`; a chunk without values has NaN for bounds."""
    if value is None:
        return np.float32(np.nan)
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
        # As Python compares: numpy would round `value` first.
        beyond = float(rounded) > value if side < 0 else float(rounded) < value
        return np.nextafter(rounded, np.float32(side)) if beyond else rounded


@dataclass(frozen=True, eq=False)
class Zones:
    """What the chunks of one column hold.

    Parameters
    ----------
    domain : polars.Series
        Of a categorical or boolean column every value that it can have, the
        missing one last; of another column empty, with its dtype.
    present : ndarray of bool, shape (n_chunks, len(domain)), or None
        Which values of the domain occur.
    bounds : tuple of two arrays, shape (n_chunks,), or None
        Minimum and maximum; NaN or None where a chunk has no value.
    nulls : ndarray of bool, shape (n_chunks,), or None
        Which chunks have a missing value.
    """

    domain: pl.Series
    present: np.ndarray | None = None
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    nulls: np.ndarray | None = None

    @classmethod
    def of(cls, note: Note, n_chunks: int, domain: pl.Series) -> Zones | None:
        """Read what :func:`measure` noted, None where it noted nothing."""
        width = -(-len(domain) // 8)
        bits = note.array(PRESENT, "u1", (n_chunks, width)) if PRESENT in note.entries else None
        if bits is not None:
            return cls(domain, present=np.unpackbits(bits, axis=1, count=len(domain)).astype(np.bool_))
        nulls = note.array(NULLS, "u4", (n_chunks,))
        if nulls is None:
            return None
        if domain.dtype == pl.String:
            texts = note.texts(MINIMUM, n_chunks), note.texts(MAXIMUM, n_chunks)
            return cls(domain, bounds=texts, nulls=nulls > 0)
        low, high = note.array(MINIMUM, "f4", (n_chunks,)), note.array(MAXIMUM, "f4", (n_chunks,))
        return None if low is None or high is None else cls(domain, bounds=(low, high), nulls=nulls > 0)

    def candidates(self, clause: Clause) -> np.ndarray | None:
        """Tell in which chunks a condition on this column alone can hold; None: it cannot be told."""
        name = clause.columns[0]
        if self.present is not None:
            return (self.present & evaluate(clause, self.domain.alias(name).to_frame())).any(axis=1)
        constants = _constants(clause.expression)
        if self.bounds is None or self.nulls is None or constants is None or len(constants) > MAX_CONSTANTS:
            return None
        samples = self._samples(constants)
        true = evaluate(clause, pl.Series(name, [*samples, None], dtype=self.domain.dtype).to_frame())
        held = sorted(samples.filter(pl.Series(true[:-1])).to_list())
        # Not by numpy, which takes the zero bytes at the end of a text for padding.
        bounds = zip(*(b.tolist() for b in self.bounds), strict=True)
        with_value = [_is_value(a) and (at := bisect_left(held, a)) < len(held) and held[at] <= b for a, b in bounds]
        return np.asarray(with_value, np.bool_) | (self.nulls & bool(true[-1]))

    def _samples(self, constants: list[Any]) -> pl.Series:
        """Values among which, in any interval, is one for each answer that a comparison with constants can give.

        Such a condition changes at its constants only: they, their neighbours
        and the bounds of the chunks stand for all values.
        """
        low, high = self.bounds or ((), ())
        dtype = self.domain.dtype
        if dtype == pl.String:
            texts = [c for c in constants if isinstance(c, str)]
            values: list[Any] = ["", *texts, *(t + "\0" for t in texts), *(v for v in (*low, *high) if v is not None)]
            return pl.Series(values, dtype=pl.String).unique()
        numbers = [float(c) for c in (0, *constants) if isinstance(c, int | float)]
        kind = self.domain.to_numpy().dtype
        marks = np.asarray([*numbers, *(v for v in (*low, *high) if v == v)], np.float64)  # noqa: PLR0124 - not NaN
        if kind.kind == "f":
            with np.errstate(over="ignore"):
                near = marks.astype(kind)
            near = np.concatenate([near, np.nextafter(near, kind.type(-np.inf)), np.nextafter(near, kind.type(np.inf))])
            return pl.Series(np.unique(near[~np.isnan(near)]))
        limits = np.iinfo(kind)
        # A whole number beyond 2^53 is compared with a float as the next float to it.
        next_to = [marks, np.nextafter(marks, -np.inf), np.nextafter(marks, np.inf)]
        near_marks = {int(w) for m in np.concatenate(next_to) if np.isfinite(m) for w in (np.floor(m), np.ceil(m))}
        exact = {c for c in constants if isinstance(c, int)}  # which a float may round
        low_end, high_end = int(limits.min), int(limits.max)
        whole = {min(max(int(m) + d, low_end), high_end) for m in near_marks | exact for d in (-1, 0, 1)}
        return pl.Series(sorted(whole | {low_end, high_end}), dtype=dtype)


def _is_value(bound: Any) -> bool:
    return bound is not None and bound == bound  # noqa: PLR0124 - NaN is not


def candidates(expression: pl.Expr, zones: Mapping[str, Zones], n_chunks: int) -> np.ndarray:
    """Tell in which chunks of a table a condition can hold.

    Parameters
    ----------
    expression
        The condition.
    zones
        By column; a column that is not there can have any value anywhere.
    n_chunks
        Of every column.

    Returns
    -------
    ndarray of bool, shape (n_chunks,)
        False where no row can satisfy it.
    """
    everywhere = np.ones(n_chunks, np.bool_)
    if not _is_elementwise(expression):  # it looks at other rows: all of them are needed
        return everywhere
    names = tuple(dict.fromkeys(expression.meta.root_names()))
    if len(names) == 1 and names[0] in zones:
        try:
            found = zones[names[0]].candidates(Clause(str(expression), expression, names))
        except InvalidPredicateError:  # which evaluating it on the rows will raise as well
            found = None
        if found is not None:
            return found
    operands = expression.meta.pop()[::-1]
    if len(operands) > 1 and _made_by((*_BOTH, *_EITHER), operands, expression):
        join = np.all if _made_by(_BOTH, operands, expression) else np.any
        joined: np.ndarray = join([candidates(o, zones, n_chunks) for o in operands], axis=0)
        return joined
    return everywhere


def _is_elementwise(expression: pl.Expr) -> bool:
    """Whether each row's answer depends on that row alone."""
    if expression.meta.is_column():
        return True
    if expression.meta.is_literal():
        return pl.select(expression).height == 1
    operands = expression.meta.pop()[::-1]
    try:
        separable = expression.meta.is_row_separable()  # of the node alone
    except pl.exceptions.ColumnNotFoundError:  # Polars resolves the node with a schema at hand
        separable = _is_known(expression, operands)
    return separable and all(map(_is_elementwise, operands))


def _is_known(expression: pl.Expr, operands: list[pl.Expr]) -> bool:
    """Whether a node compares, or joins comparisons, and nothing else."""
    known = {1: _ONE, 2: _COMPARE, 3: _BETWEEN}.get(len(operands), ())
    return bool(operands) and (_is_sql_in(expression) or _made_by((*known, *_BOTH, *_EITHER), operands, expression))


def _is_sql_in(expression: pl.Expr) -> bool:
    """Whether a node is SQL's IN, which Python cannot make and compare with."""
    operands = expression.meta.pop()[::-1]
    return len(operands) == 2 and str(expression) == f"{operands[0]}.sql_is_in([{operands[1]}])"


def _made_by(makes: tuple[Make, ...], operands: list[pl.Expr], expression: pl.Expr) -> bool:
    """Whether one of some operators made an expression: Polars tells the operands but not the operator."""
    return any(_made(make, operands).meta.eq(expression) for make in makes)


def _made(make: Make, operands: list[pl.Expr]) -> pl.Expr:
    try:
        return make(*operands)
    except (TypeError, ValueError, pl.exceptions.PolarsError):  # an operator of fewer operands
        return pl.lit(None)


def _constants(expression: pl.Expr) -> list[Any] | None:
    """Return the constants that a condition compares its column with; None where it does anything else."""
    if expression.meta.is_column():
        return []
    if expression.meta.is_literal():
        values = pl.select(expression).to_series()
        values = values.explode() if isinstance(values.dtype, pl.List | pl.Array) else values
        given = [_plain(v) if isinstance(v, Decimal) else v for v in values.to_list()]
        return given if all(isinstance(v, bool | int | float | str | None) for v in given) else None
    operands = expression.meta.pop()[::-1]
    if len(operands) == 2 and _is_whole(operands[1]):  # one of some integers, and an integer
        return _constants(operands[0].meta.pop()[0])
    bitwise = _made_by(_LOGIC, operands, expression) and not all(map(_is_truth, operands))
    if bitwise or not _is_known(expression, operands):
        return None
    parts = [_constants(operand) for operand in operands]
    return None if None in parts else [c for part in parts if part is not None for c in part]


def _plain(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _is_truth(expression: pl.Expr) -> bool:
    """Whether an expression is true, false or missing; `&`, `|` and `~` work on the bits of anything else."""
    if expression.meta.is_literal():
        return pl.select(expression).to_series().dtype == pl.Boolean
    operands = expression.meta.pop()[::-1]
    if not _is_known(expression, operands):
        return False
    keeps_type = _made_by((*_LOGIC, pl.Expr.fill_null), operands, expression)
    return all(map(_is_truth, operands)) if keeps_type else True


def _is_whole(expression: pl.Expr) -> bool:
    """Whether a condition is that of :func:`lobster_zarr._python._one_of_numbers`: the column is a whole number."""
    operands = expression.meta.pop()[::-1]
    if len(operands) != 2 or not operands[0].meta.is_column():
        return False
    return (operands[0] == operands[0].cast(pl.Int128, strict=False)).meta.eq(expression)
