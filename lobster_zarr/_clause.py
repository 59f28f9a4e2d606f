"""What a predicate is made of: its clauses, the columns that it may name, and the table it is evaluated on.

This module knows Polars and the kinds of columns. It must not know how a predicate is spelled in text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr.errors import InvalidPredicateError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

GROUPS: Final = (
    dict.fromkeys(("string", "category", "ordered category"), "text")
    | dict.fromkeys(("number", "computed"), "number")
    | {"boolean": "boolean", "mask": "boolean", "missing": "missing"}
)
_OBJECT_DTYPES: Final = {  # what pandas calls the values of an object array
    **dict.fromkeys(("string", "empty"), pl.String),
    **dict.fromkeys(("floating", "mixed-integer-float"), pl.Float64),
    "boolean": pl.Boolean,
    "integer": pl.Int64,
}


@dataclass(frozen=True)
class Clause:
    """One conjunct of a predicate: all clauses must hold for a row to be kept.

    Attributes
    ----------
    text
        The clause as it was written, or as Polars shows it.
    expression
        A boolean expression.
    columns
        The columns that it needs, in order of first use.
    """

    text: str
    expression: pl.Expr
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Predicate:
    """A condition on the rows of a table.

    Attributes
    ----------
    expression
        A boolean expression. It may be missing for a row (SQL, Polars): such a row is not kept.
    columns
        The columns that it needs, in order of first use; the index is among them under its own name.
    text
        The predicate as it was written, for messages.
    clauses
        Its top-level conjuncts, in order, so that an empty answer can say which of them emptied it.
    """

    expression: pl.Expr
    columns: tuple[str, ...]
    text: str
    clauses: tuple[Clause, ...]


def evaluate(predicate: Predicate | Clause, table: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell which rows of a table satisfy a predicate; O(rows).

    Parameters
    ----------
    predicate
        A predicate, or one of its clauses.
    table
        At least the columns that the predicate names, made by `to_polars`.

    Returns
    -------
    numpy.ndarray of bool, shape (n_rows,)
        True for the rows to keep; False where the predicate is missing.

    Raises
    ------
    InvalidPredicateError
        Polars cannot run it on these columns, or it does not give one truth value a row.
    """
    try:
        result = table.select(predicate.expression).to_series()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        used = ", ".join(f"{n!r} ({table.schema[n].base_type()})" for n in predicate.columns if n in table.schema)
        raise InvalidPredicateError(
            f"The predicate {short(predicate.text)} cannot be run on {used or 'nothing'}: {reason(error)}."
        ) from error
    if result.dtype not in (pl.Boolean, pl.Null) or len(result) not in (1, table.height):
        raise InvalidPredicateError(
            f"The predicate {short(predicate.text)} gives {len(result)} values of type {result.dtype}; "
            f"expected true or false for each of the {table.height} rows."
        )
    mask = result.cast(pl.Boolean).fill_null(value=False).to_numpy()
    # A predicate that names no row's value (`True`, a maximum) gives one value for all rows.
    return mask if len(mask) == table.height else np.full(table.height, mask[0], dtype=np.bool_)


def to_polars(name: str, values: pd.Categorical | pd.api.extensions.ExtensionArray | npt.NDArray[Any]) -> pl.Series:
    """Make one column of a table that predicates are evaluated on; O(rows).

    Parameters
    ----------
    name
        The column's name.
    values
        One-dimensional. An ordered categorical of strings becomes an Enum (it compares by category order),
        any other categorical a column of its categories' values. NaN, None and masked values become null.

    Returns
    -------
    polars.Series
        Of as many rows.

    Raises
    ------
    InvalidPredicateError
        The values are not all strings, all numbers or all booleans.
    """
    if isinstance(values, pd.Categorical):
        categories = to_polars(name, values.categories.array)
        categories = categories if len(categories) else pl.Series(name, [], dtype=pl.String)
        if values.ordered and categories.dtype == pl.String:
            categories = categories.cast(pl.Enum(categories))
        codes = pl.Series(np.asarray(values.codes), dtype=pl.Int64)
        return categories.gather(codes.set(codes < 0, None)).alias(name)
    if values.ndim != 1:
        raise InvalidPredicateError(f"The column {name!r} has {values.ndim} dimensions, expected one.")
    native = values.dtype if isinstance(values, np.ndarray) else getattr(values.dtype, "numpy_dtype", None)
    missing = np.asarray(pd.isna(values), dtype=np.bool_)
    if native is not None and native.kind in "biufU":
        if not isinstance(values, np.ndarray):
            values = values.to_numpy(dtype=native, na_value=native.type(0))
        # Files written on other machines may hold the other byte order, which Polars reads as it stands.
        column = pl.Series(name, np.asarray(values).astype(native.newbyteorder("="), copy=False), nan_to_null=True)
        return column.set(pl.Series(missing), None) if missing.any() else column
    listed = np.array(values, dtype=object)
    kind = pd.api.types.infer_dtype(listed[~missing], skipna=False)
    if kind not in _OBJECT_DTYPES:
        raise InvalidPredicateError(
            f"The column {name!r} holds {kind} values; a predicate needs strings, numbers or booleans."
        )
    listed[missing] = None
    return pl.Series(name, listed.tolist(), dtype=_OBJECT_DTYPES[kind])


@dataclass(frozen=True)
class Names:
    """The columns that a predicate may name, and the features of matrices that were found for it, by spelling."""

    kinds: Mapping[str, str | None]
    index: str
    axis: str
    features: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str | None:
        """Return the column that a spelling stands for, or None; a column comes before a feature of its name."""
        found = self._column(name)
        return name if found is None and name in self.features else found

    def _column(self, name: str) -> str | None:
        if name in self.kinds:
            return name
        if name in ("index", f"{self.axis}_names", self.index) and self.index not in self.kinds:
            return self.index
        prefix = f"{self.axis}."
        if name.startswith(prefix):
            return self._column(name[len(prefix) :])
        of_modality = name.replace(".", ":", 1)  # as SQL says it
        return of_modality if of_modality in self.kinds else None

    def kind(self, column: str) -> str | None:
        # Only the index is among neither.
        return self.kinds[column] if column in self.kinds else self.features.get(column, "string")

    def label(self, column: str) -> str:
        """What messages call a column or a feature."""
        is_feature = column in self.features and self._column(column) is None
        return f"feature {column!r}" if is_feature else f"{self.axis} column {column!r}"

    def unknown(self, name: str, elsewhere: str = "", features: Iterable[str] = ()) -> NotFoundError:
        """Make the error for a name that is no column; `elsewhere` says where else it is not, `features` what is."""
        known = [known for known in (*self.kinds, self.index) if known != name]
        shown = ", ".join(map(repr, known[:8])) + (", …" if len(known) > 8 else "")
        near = did_you_mean(name, known) or did_you_mean(name, features)
        error = NotFoundError(f"{self.axis} has no column {name!r}{elsewhere}.{near or f' {self.axis} has {shown}.'}")
        error.name = None if name.startswith(f"{self.axis}.") else name
        return error


def short(value: object) -> str:
    """A text on one line, cut to a length that a message can hold."""
    line = " ".join(str(value).split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def reason(error: BaseException) -> str:
    """What Polars says, without the expression that it adds in a paragraph of its own."""
    return short(str(error).partition("\n\n")[0]).rstrip(".")


def article(kind: str | None) -> str:
    return f"{'an' if kind == 'ordered category' else 'a'} {kind}"


def roots(expression: pl.Expr) -> tuple[str, ...]:
    return tuple(dict.fromkeys(expression.meta.root_names()))


def conjuncts(expression: pl.Expr) -> tuple[Clause, ...]:
    """Split at every top-level `&`; Polars tells the operands of a node but not its operator."""
    clauses = []
    rest = [expression]
    while rest:
        node = rest.pop()
        operands = node.meta.pop()  # the last one first
        if len(operands) == 2 and (operands[1] & operands[0]).meta.eq(node):
            rest += operands
        else:
            clauses.append(Clause(str(node), node, roots(node)))
    return tuple(clauses)


def parse_expression(expression: pl.Expr, names: Names) -> Predicate:
    if expression.meta.has_multiple_outputs():
        raise InvalidPredicateError(
            f"The {names.axis} predicate {short(expression)} selects columns by pattern, type or position; "
            "expected one boolean expression over named columns, such as pl.col('n_counts') > 500."
        )
    columns = roots(expression)
    for column in columns:
        found = names.resolve(column)
        if found is None:
            raise names.unknown(column)
        if found != column:
            raise NotFoundError(f"{names.axis} has no column {column!r}; write pl.col({found!r}).")
    return Predicate(expression, columns, str(expression), conjuncts(expression))


def all_of(clauses: Sequence[Clause], text: str) -> Predicate:
    columns = dict.fromkeys(name for clause in clauses for name in clause.columns)
    expressions = [clause.expression for clause in clauses] or [pl.lit(value=True)]
    whole = expressions[0] if len(expressions) == 1 else pl.all_horizontal(expressions)
    return Predicate(whole, tuple(columns), text, tuple(clauses))
