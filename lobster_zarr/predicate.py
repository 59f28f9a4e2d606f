"""What a user writes about the rows of a table, as one Polars expression and the columns it needs.

This module knows three spellings: text (a Python expression, else SQL), a mapping of column to value,
and a Polars expression. It must not know stores or arrays, reads nothing, and evaluates no code: Python text
is parsed with `ast` and translated node by node, and a node that is not known here is refused.

Missing values. In Python text and in a mapping, a comparison is two-valued, as on a numpy mask: a missing
value is unequal to everything, so ``x == 'a'``, ``x < 5`` and ``x in [...]`` drop the rows where x is
missing, ``x != 'a'`` and ``not (x == 'a')`` keep them; ``not p`` always keeps exactly the rows that ``p``
drops, and a boolean column counts as false where it is missing. In SQL text and in a Polars expression
three-valued logic holds: a comparison with a missing value is missing, so is its negation, and such a row
is dropped.

Numbers. ``+ - * / %`` and `abs` are worked in floating point (float32 where every column fits it), so that
unsigned and narrow integers do not wrap; a result that is not a number (0 / 0) is a missing value.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr._clause import (
    Clause,
    Names,
    Predicate,
    all_of,
    evaluate,
    parse_expression,
    short,
    to_polars,
)
from lobster_zarr._python import Reader
from lobster_zarr._source import EXAMPLE, Source
from lobster_zarr._sql import parse_sql
from lobster_zarr.errors import InvalidPredicateError

__all__ = ["Clause", "Predicate", "evaluate", "parse", "to_polars"]


def parse(
    predicate: str | Mapping[str, Any] | pl.Expr,
    columns: Mapping[str, str] | Sequence[str],
    *,
    index: str = "index",
    axis: str = "obs",
    features: Mapping[str, str] | None = None,
) -> Predicate:
    """Translate a condition into one Polars expression.

    Parameters
    ----------
    predicate
        Text that parses as a Python expression is read as Python, other text as SQL. A mapping asks for
        equality by column; a list of values means one of them, None means missing. A Polars expression is
        taken as it is.
    columns
        The columns that exist: a mapping of name to kind ("string", "category" or "ordered category" (both of
        strings), "number", "boolean"), or the names alone, and then types are only checked by `evaluate`.
    index
        The name under which the names of the rows are a column of the table. Text and mappings may also say
        ``index``, ``obs_names`` or ``var_names``, unless a column has that name.
    axis
        "obs" or "var": the optional prefix of a column (``obs.donor``, ``obs['cell type']``), and what messages say.
    features
        Further names that it may use, each with its kind: features of matrices, as they are spelled. A column
        of the same name comes first.

    Returns
    -------
    Predicate
        What to evaluate, and the columns to read for it.

    Raises
    ------
    InvalidPredicateError
        It cannot be read, does more than compare columns, or compares a column with the wrong type.
    NotFoundError
        It names a column that does not exist; the error's `name` is how it was spelled, where it could be that
        of a feature.
    """
    kinds: dict[str, str | None] = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns)
    names = Names(kinds, index, axis, features or {})
    if isinstance(predicate, str):
        return _parse_text(predicate.strip(), names)
    if isinstance(predicate, pl.Expr):
        return parse_expression(predicate, names)
    if isinstance(predicate, Mapping):
        return _parse_mapping(predicate, names)
    raise InvalidPredicateError(
        f"The {axis} predicate is a {type(predicate).__name__}; expected text, a dict or a Polars expression."
    )


def _parse_mapping(mapping: Mapping[str, Any], names: Names) -> Predicate:
    clauses = []
    for name, wanted in mapping.items():
        wanted = wanted.item() if isinstance(wanted, np.ndarray) and not wanted.ndim else wanted  # noqa: PLW2901
        listed = isinstance(wanted, (list, tuple, set, frozenset, np.ndarray, pd.Index, pd.Series, pl.Series))
        values = [v.item() if isinstance(v, np.generic) else v for v in (wanted if listed else [wanted])]
        values = [None if v is pd.NA else v for v in values]
        text = f"{name} in {values!r}" if listed else f"{name} == {values[0]!r}"
        reader = Reader(names, Source.of(text))
        expression = reader.membership(reader.column(str(name), None), values, None)
        clauses.append(Clause(text, expression, tuple(reader.used)))
    return all_of(clauses, " and ".join(c.text for c in clauses))


def _parse_text(text: str, names: Names) -> Predicate:
    if not text:
        raise InvalidPredicateError(f"The {names.axis} predicate is empty. {EXAMPLE}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPredicateError(f"The {names.axis} predicate {short(ascii(text))} is no Unicode.") from error
    source = Source.of(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of '\d', which a pattern may well hold
            body = ast.parse(source.python, mode="eval").body
        for node in ast.walk(body):
            # `NOT (a = 'x')` is a call to Python.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NOT":
                raise SyntaxError(
                    "NOT is SQL", (None, 1, len(source.python.encode()[: node.col_offset].decode()) + 1, None)
                )
    except (RecursionError, MemoryError) as error:
        raise InvalidPredicateError(f"The {names.axis} predicate {short(text)} is nested too deep.") from error
    except SyntaxError as error:
        return parse_sql(source, names, error)
    clauses = []
    for node in _operands(body):
        reader = Reader(names, source)
        expression = reader.truth(node)
        start, stop = source.span(node)
        clauses.append(Clause(text[start:stop], expression, tuple(reader.used)))
    return all_of(clauses, text)


def _operands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [operand for value in node.values for operand in _operands(value)]
    return [node]
