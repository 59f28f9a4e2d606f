"""Reads the SQL spelling of a predicate, by Polars' parser; refuses all but an expression over columns.

This module knows SQL's words. It must not know Python's spelling.
"""

from __future__ import annotations

import operator
import re
from functools import reduce
from typing import TYPE_CHECKING, Final

import polars as pl

from lobster_zarr._clause import (
    GROUPS,
    Clause,
    Predicate,
    article,
    evaluate,
    parse_expression,
    reason,
    roots,
    short,
)
from lobster_zarr._source import EXAMPLE
from lobster_zarr.errors import InvalidPredicateError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lobster_zarr._clause import Names
    from lobster_zarr._source import Source

_MAX_SQL_WORDS: Final = 400  # 400 operators in a row overflow half a megabyte of stack inside Polars
_SQL_TOKENS: Final = re.compile(
    r"(?P<string>'(?:''|[^'])*')|\"(?:\"\"|[^\"])*\"|`[^`]*`|(?P<hidden>--|/\*|\$|#|\w+['\"])"
    r"|(?P<word>[^\W\d][\w.]*(?::[^\W\d][\w.]*)?)|[\d.]+|[^\s,]"
)
_BRACKETED: Final = frozenset({"X", "LAYERS", "OBS"})
_SQL_STATEMENTS: Final = frozenset({"SELECT", "WITH", "VALUES", "TABLE", "FROM"})


def parse_sql(source: Source, names: Names, failure: SyntaxError) -> Predicate:
    # Python gives no place, or 0, where the text ends too early.
    place = source.origin[min((failure.offset or len(source.origin)) - 1, len(source.origin) - 1)]

    def refuse(why: object) -> InvalidPredicateError:
        return InvalidPredicateError(
            f"The {names.axis} predicate cannot be read. As Python: {failure.msg} at character {place + 1}. "
            f"As SQL: {short(why)}.{source.pointer(place, place + 1)}\n{EXAMPLE}"
        )

    try:
        sql = _rewrite_sql(source.text, names)
        expression = pl.sql_expr(sql)
    except InvalidPredicateError as error:
        raise refuse(error) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise refuse(reason(error)) from error
    if not expression.meta.eq(expression.meta.undo_aliases()):
        raise refuse("expected an expression, got one with an alias")
    if not all(leaf.meta.is_column() or leaf.meta.is_literal() for leaf in _leaves(expression)):
        raise refuse("expected an expression over columns and constants")
    columns = parse_expression(expression, names).columns
    clauses = _split_sql(sql)
    if not reduce(operator.and_, (clause.expression for clause in clauses)).meta.eq(expression):
        clauses = [Clause(source.text, expression, columns)]
    predicate = Predicate(expression, columns, source.text, tuple(clauses))
    _check_types(predicate, names)
    return predicate


def _rewrite_sql(text: str, names: Names) -> str:
    """Quote the names that SQL would take apart (`orig.ident`, `obs.donor`); refuse all but an expression.

    A subquery must be refused here: Polars opens the files that it names while parsing it.
    """
    words, before, rewritten, end = 0, "", "", 0
    for match in _SQL_TOKENS.finditer(text):
        found = match.group()
        upper = found.upper()
        words += match["string"] is None and not found[0].isdigit()
        if match["hidden"]:
            raise InvalidPredicateError(f"comments, $ and prefixed strings are not allowed, got {found}")
        if upper in _SQL_STATEMENTS and (before, upper) != ("DISTINCT", "FROM"):
            raise InvalidPredicateError(f"expected an expression, got {found} (a column so named goes in quotes)")
        if found == "[" and before in _BRACKETED:
            raise InvalidPredicateError(
                "brackets are Python; in SQL a feature of X goes by its name, in double quotes where it is no word"
            )
        before = upper
        column = names.resolve(found) if match["word"] else None
        dotted = bool(match["word"]) and not {".", ":"}.isdisjoint(found)
        if dotted or (column is not None and column != found):
            quoted = (found if column is None else column).replace('"', '""')
            rewritten, end = f'{rewritten}{text[end : match.start()]}"{quoted}"', match.end()
    if words > _MAX_SQL_WORDS:
        raise InvalidPredicateError(f"expected at most {_MAX_SQL_WORDS} words and operators, got {words}")
    return rewritten + text[end:]


def _leaves(expression: pl.Expr) -> Iterable[pl.Expr]:
    rest = [expression]
    while rest:
        node = rest.pop()
        operands = node.meta.pop()
        rest += operands
        if not operands:
            yield node


def _split_sql(sql: str) -> list[Clause]:
    """Cut at every AND where both sides parse: one inside brackets, a string or BETWEEN does not."""
    clauses: list[Clause] = []
    start = 0
    for end, after in [
        *(m.span() for m in re.finditer(r"\bAND\b", sql, re.IGNORECASE)),
        (len(sql), len(sql)),
    ]:
        text = sql[start:end].strip()
        try:
            expression = pl.sql_expr(text)
        except pl.exceptions.PolarsError:
            continue
        clauses.append(Clause(text, expression, roots(expression)))
        start = after
    return clauses


def _check_types(predicate: Predicate, names: Names) -> None:
    """Run SQL on no rows, so that a wrong type is an error before anything is read."""
    kinds = {name: names.kind(name) for name in predicate.columns}
    groups = {name: GROUPS[kind] for name, kind in kinds.items() if kind in GROUPS}
    if len(groups) < len(kinds):
        return
    # A kind does not say whether a number is whole, which `&` or a function may ask for.
    failures = []
    for number in (pl.Float64(), pl.Int64()):
        dtypes = {"text": pl.String(), "boolean": pl.Boolean(), "number": number}
        try:
            evaluate(predicate, pl.DataFrame(schema={name: dtypes[group] for name, group in groups.items()}))
        except InvalidPredicateError as error:
            failures.append(error)
        else:
            return
    used = ", ".join(f"{names.label(name)} is {article(kind)}" for name, kind in kinds.items())
    raise InvalidPredicateError(f"{failures[0]} Here {used}.") from failures[0]
