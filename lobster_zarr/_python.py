"""Reads the Python spelling of a predicate, node by node, as Polars expressions; refuses every other node.

This module knows `ast` and what may be compared with what. It must not know SQL, and runs no text as code.
Missing values and numbers are as `predicate` says.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from lobster_zarr._clause import GROUPS, article, reason, short
from lobster_zarr._feature import Feature
from lobster_zarr._source import EXAMPLE
from lobster_zarr.errors import InvalidPredicateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lobster_zarr._clause import Names
    from lobster_zarr._source import Source

_MAX_DEPTH: Final = 100
_CONSTANT_KINDS: Final = {
    str: "string",
    bool: "boolean",
    **dict.fromkeys((int, float), "number"),
    type(None): "missing",
}
_COMPARISONS: Final[dict[type, tuple[str, Callable[[pl.Expr, pl.Expr], pl.Expr]]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_ARITHMETIC: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_BRACKETS: Final = "obs['cell type'], X['HLA-DRA'], layers['counts']['HLA-DRA']"
_METHODS: Final = {"isna": 0, "isnull": 0, "notna": 0, "notnull": 0, "isin": 1, "between": 2, "abs": 0}
_TEXT_METHODS: Final = {"contains": 1, "startswith": 1, "endswith": 1, "lower": 0, "upper": 0}


@dataclass(frozen=True)
class Term:
    """A part of a Python expression: an expression of some kind, or a constant."""

    expression: pl.Expr
    kind: str | None  # None: a column of unknown kind; "mask": booleans, none missing; "computed": perhaps NaN
    label: str  # for messages
    value: Any = None
    constant: Any = None  # the type of a constant's value

    @property
    def group(self) -> str | None:
        return GROUPS.get(self.kind or "")

    @property
    def tested(self) -> pl.Expr:
        """What a comparison sees. NaN is replaced here, once: every `fill_nan` doubles what is below it."""
        return self.expression.fill_nan(None) if self.kind == "computed" else self.expression


class Reader:
    """Translates one Python expression; refuses every node that is not named here."""

    def __init__(self, names: Names, source: Source) -> None:
        self.names = names
        self.source = source
        self.used: dict[str, None] = {}
        self.depth = 0

    def refuse(self, node: ast.expr | None, why: str) -> InvalidPredicateError:
        start, stop = self.source.span(node) if node is not None else (0, len(self.source.text))
        return InvalidPredicateError(f"{self.names.axis} predicate: {why}{self.source.pointer(start, stop)}")

    def truth(self, node: ast.expr) -> pl.Expr:
        """Translate a node that must be true or false, never missing."""
        term = self.term(node)
        if term.kind == "mask":
            return term.expression
        if term.kind is None:
            # `&` with a boolean, unlike a cast, fails on anything but booleans.
            return (term.expression & pl.lit(value=True)).fill_null(value=False)
        if term.group != "boolean":
            known = self.names.resolve(str(term.value)) if term.constant is str else None
            hint = f"write `{known}` to name the column" if known else "compare it with something"
            raise self.refuse(node, f"expected true or false, got {term.label}; {hint}.")
        return term.expression.fill_null(value=False)

    def term(self, node: ast.expr) -> Term:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.refuse(node, f"nested deeper than {_MAX_DEPTH} levels.")
        found = self._term(node)
        self.depth -= 1
        return found

    def _term(self, node: ast.expr) -> Term:
        found: Term
        match node:
            case ast.Constant(value=value):
                found = self.constant(value, node)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                found = self.column(self.dotted(node), node)
            case ast.BoolOp(op=op, values=values):
                join = pl.all_horizontal if isinstance(op, ast.And) else pl.any_horizontal
                found = _mask(join([self.truth(value) for value in values]))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                found = _mask(self.truth(operand).not_())
            case ast.UnaryOp(op=op, operand=operand):
                sign = self.constant(-1 if isinstance(op, ast.USub) else 1, node)
                found = self.arithmetic(sign, ast.Mult(), self.term(operand), node)
            case ast.BinOp(left=left, op=op, right=right):
                found = self.arithmetic(self.term(left), op, self.term(right), node)
            case ast.Compare():
                found = _mask(self.comparison(node))
            case ast.Call():
                found = self.call(node)
            case _:
                raise self.refuse(node, f"{type(node).__name__} is not allowed here. {EXAMPLE}.")
        return found

    def dotted(self, node: ast.expr) -> str:
        """Return the name that a chain of attributes spells: columns such as `orig.ident` have dots.

        Of names in brackets, return the column of ``obs['cell type']``, and how a :class:`Feature` is spelled.
        """
        parts: list[str] = []
        brackets, inner = "", node  # for each part, whether it stood in brackets
        while isinstance(inner, ast.Attribute | ast.Subscript):
            if isinstance(inner, ast.Attribute):
                parts.append(self.source.quoted.get(inner.attr, inner.attr))
            elif isinstance(inner.slice, ast.Constant) and isinstance(inner.slice.value, str):
                parts.append(inner.slice.value)
            else:
                raise self.refuse(inner.slice, f"expected a name in quotes between brackets: {_BRACKETS}.")
            brackets += "." if isinstance(inner, ast.Attribute) else "["
            inner = inner.value
        if not isinstance(inner, ast.Name):
            raise self.refuse(inner, "an attribute is not allowed here.")
        root = self.source.quoted.get(inner.id, inner.id)
        if "[" not in brackets:
            return ".".join([root, *reversed(parts)])
        modality, colon, element = root.rpartition(":")
        owner = modality + colon
        match element, parts[::-1]:
            case "X", [name]:
                return owner + Feature("X", name).spelled
            case "layers", [layer, *names] if names and brackets[-1] == "[":
                return owner + Feature(f"layers/{layer}", ".".join(names)).spelled
            case self.names.axis, [name]:
                return owner + name if owner + name in self.names.kinds else f"{root}.{name}"
        raise self.refuse(node, f"brackets are not allowed here; they name a column or a feature: {_BRACKETS}.")

    def column(self, name: str, node: ast.expr | None) -> Term:
        column = self.names.resolve(name)
        if column is None:
            owner, _, attribute = name.rpartition(".")
            chained = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute)
            if chained and (attribute.startswith("__") or self.names.resolve(owner) is not None):
                raise self.refuse(node, f"{attribute!r} is not allowed; {_METHOD_LIST} are.")
            raise self.names.unknown(name)
        self.used[column] = None
        kind = self.names.kind(column)
        if kind not in GROUPS:
            return Term(pl.col(column), None, self.names.label(column))
        return Term(pl.col(column), kind, f"{self.names.label(column)}, {article(kind)}")

    def constant(self, value: Any, node: ast.expr | None) -> Term:
        kind = _CONSTANT_KINDS.get(type(value))
        if kind is None:
            raise self.refuse(node, f"a constant of type {type(value).__name__} is not allowed.")
        try:
            if isinstance(value, str):
                value.encode()
            elif type(value) is int and not -(2**63) <= value < 2**64:
                value = float(value)
            return Term(pl.lit(value), kind, f"the {kind} {short(repr(value))}", value, type(value))
        except (OverflowError, UnicodeEncodeError) as error:
            raise self.refuse(node, f"no column can hold the constant {short(repr(value))}.") from error

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isascii():
            return node.value  # a list may hold 100,000 of them
        term = self.term(node)
        if term.constant is None:
            raise self.refuse(node, f"expected a constant, got {term.label}.")
        return term.value

    def values(self, node: ast.expr) -> list[Any]:
        # SQL's one-element list `('a')` is plain 'a' to Python.
        nodes = node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else [node]
        return [self.value(element) for element in nodes]

    def arithmetic(self, left: Term, op: ast.operator, right: Term, node: ast.expr) -> Term:
        operate = _ARITHMETIC.get(type(op))
        if operate is None:
            raise self.refuse(node, f"the operator {type(op).__name__} is not allowed; + - * / % are.")
        for term in (left, right):
            if term.group not in ("number", None):
                raise self.refuse(node, f"expected a number, got {term.label}.")
        if left.constant and right.constant:
            try:
                return self.constant(operate(left.value, right.value), node)
            except ArithmeticError as error:
                raise self.refuse(node, f"this cannot be worked out: {error}.") from error
        operands = [t.expression if t.constant else _floating(t) for t in (left, right)]
        return Term(operate(*operands), "computed", "the result of arithmetic, a number")

    def comparison(self, node: ast.Compare) -> pl.Expr:
        masks = []
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            if isinstance(op, (ast.In, ast.NotIn)):
                mask = self.membership(self.term(left), self.values(right), node)
                masks.append(mask.not_() if isinstance(op, ast.NotIn) else mask)
            elif isinstance(op, (ast.Is, ast.IsNot)):
                null = isinstance(right, ast.Name) and right.id.lower() == "null"  # SQL in lower case
                if not null and self.value(right) is not None:
                    raise self.refuse(node, "`is` only goes with None; write == to compare.")
                column = self.term(left).tested
                masks.append(column.is_null() if isinstance(op, ast.Is) else column.is_not_null())
            else:
                masks.append(self.compare(self.term(left), type(op), self.term(right), node))
        return masks[0] if len(masks) == 1 else pl.all_horizontal(masks)

    def compare(self, left: Term, op: type[ast.cmpop], right: Term, node: ast.expr | None) -> pl.Expr:
        sign, operate = _COMPARISONS[op]
        self.check_comparable(left, sign, right, node)
        mixed = {left.group, right.group} == {"number", "boolean"}
        operands = []
        for term in (left, right):
            expression = term.tested
            if mixed and term.group == "boolean":
                expression = expression.cast(pl.Int8)
            elif term.kind == "ordered category" and op in (ast.Eq, ast.NotEq):
                expression = expression.cast(pl.String)  # so that any text may be asked for
            operands.append(expression)
        return operate(*operands).fill_null(value=op is ast.NotEq)

    def check_comparable(self, left: Term, sign: str, right: Term, node: ast.expr | None) -> None:
        if left.constant and right.constant:
            text = left if left.constant is str else right
            hint = "; to name a column with blanks write it in backticks" if text.constant is str else ""
            raise self.refuse(node, f"this compares {left.label} with {right.label}, and no column{hint}.")
        groups = {left.group, right.group} - {None}
        if "missing" in groups:
            raise self.refuse(node, f"{sign} None is never true; write `is None` or `is not None`.")
        if len(groups) > 1 and "text" in groups:
            hint = ""
            for column, constant in ((left, right), (right, left)):
                if column.group == "text" and constant.constant:
                    hint = f" Its values are text: write {str(constant.value)!r}."
                elif column.group == "number" and constant.constant:
                    hint = " Its values are numbers: write one without quotes."
            raise self.refuse(node, f"{left.label}, cannot be compared ({sign}) with {right.label}.{hint}")

    def membership(self, term: Term, values: Iterable[Any], node: ast.expr | None) -> pl.Expr:
        """Tell whether a term is one of some constants; None and NaN among them mean missing."""
        given = list(values)
        known = [v for v in given if v is not None and not (isinstance(v, float) and math.isnan(v))]
        present: list[Any] = [v if isinstance(v, str) and v.isascii() else self.constant(v, node).value for v in known]
        samples = {type(v): self.constant(v, node) for v in present}
        for sample in samples.values():
            self.check_comparable(term, "in", sample, node)
        if str in samples and len(samples) > 1:
            raise self.refuse(node, "expected values of one type, got text and others.")
        if not samples:
            mask = pl.lit(value=False)
        elif str in samples:
            text = term.expression.cast(pl.String) if term.kind == "ordered category" else term.expression
            mask = text.is_in(present).fill_null(value=False)
        else:
            number = term.expression.cast(pl.Int8) if term.group == "boolean" else term.tested
            mask = _one_of_numbers(number, present).fill_null(value=False)
        return mask if len(present) == len(given) else mask | term.tested.is_null()

    def call(self, node: ast.Call) -> Term:
        if not isinstance(node.func, ast.Attribute):
            raise self.refuse(node, f"only methods can be called: {_METHOD_LIST}.")
        method, owner = node.func.attr, node.func.value
        table = _METHODS
        if isinstance(owner, ast.Attribute) and owner.attr == "str":
            owner, table = owner.value, _TEXT_METHODS
        keywords = {k.arg: self.value(k.value) for k in node.keywords} if method == "contains" else {}
        if table.get(method) != len(node.args) or len(keywords) != len(node.keywords):
            raise self.refuse(node, f".{method} with these arguments is not allowed; {_METHOD_LIST} are.")
        term = self.term(owner)
        if table is _TEXT_METHODS:
            return self.text_method(term, method, node, keywords)
        if method == "isin":
            return _mask(self.membership(term, self.values(node.args[0]), node))
        if method == "between":
            low, high = (self.term(argument) for argument in node.args)
            return _mask(self.compare(term, ast.GtE, low, node) & self.compare(term, ast.LtE, high, node))
        if method == "abs":
            if term.group not in ("number", None):
                raise self.refuse(node, f"expected a number, got {term.label}.")
            return Term(_floating(term).abs(), "computed", "an absolute value, a number")
        missing = term.tested.is_null()
        return _mask(missing if method in ("isna", "isnull") else missing.not_())

    def text_method(self, term: Term, method: str, node: ast.Call, keywords: dict[str | None, Any]) -> Term:
        if term.group not in ("text", None):
            raise self.refuse(node, f"expected text, got {term.label}; .str.{method} is for text.")
        text = term.expression.cast(pl.String) if term.kind == "ordered category" else term.expression
        if method in ("lower", "upper"):
            text = text.str.to_lowercase() if method == "lower" else text.str.to_uppercase()
            return Term(text, "string", "the result of .str, a string")
        sought = self.value(node.args[0])
        if not isinstance(sought, str):
            raise self.refuse(node, f"expected text, got {sought!r}; .str.{method} looks for text.")
        if method != "contains":
            mask = text.str.starts_with(sought) if method == "startswith" else text.str.ends_with(sought)
            return _mask(mask.fill_null(value=False))
        options = {"case": True, "regex": True} | keywords
        if options.keys() != {"case", "regex"} or not all(isinstance(v, bool) for v in options.values()):
            raise self.refuse(node, ".str.contains takes case=True or False and regex=True or False.")
        # Not `re.escape`: it escapes more than Polars' regular expressions take.
        pattern = sought if options["regex"] else re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", sought)
        pattern = pattern if options["case"] else f"(?i){pattern}"
        try:
            pl.select(pl.lit("").str.contains(pattern))
        except pl.exceptions.PolarsError as error:
            raise self.refuse(node, f"{sought!r} is not a usable pattern: {reason(error)}.") from error
        return _mask(text.str.contains(pattern).fill_null(value=False))


_METHOD_LIST: Final = ", ".join([*(f".{m}" for m in _METHODS), *(f".str.{m}" for m in _TEXT_METHODS)])


def _mask(expression: pl.Expr) -> Term:
    return Term(expression, "mask", "true or false")


def _floating(term: Term) -> pl.Expr:
    """Integers as floats, while float32 stays float32, without knowing which of them a column is."""
    return term.expression if term.kind == "computed" else term.expression * pl.lit(1.0, dtype=pl.Float32)


def _one_of_numbers(number: pl.Expr, values: Sequence[float]) -> pl.Expr:
    """Membership that agrees with `==` for integer and float columns; Polars' own wants the column's type."""
    whole = [int(v) for v in values if abs(v) < 2**100 and v == int(v)]
    masks = [number == v for v in values if abs(v) >= 2**100 or v != int(v)]
    if whole:
        integer = number.cast(pl.Int128, strict=False)
        masks.append(integer.is_in(pl.Series(whole, dtype=pl.Int128).implode()) & (number == integer))
    return pl.any_horizontal(masks)
