"""Predicates against boolean masks that pandas computes."""

from __future__ import annotations

import operator
import re
import threading

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobster_zarr.errors import InvalidPredicateError, NotFoundError
from lobster_zarr.predicate import evaluate, parse, to_polars

FRAME = pd.DataFrame(
    {
        "cell_type": pd.Categorical(["T cell", "B cell", None, "NK", "T cell", "B cell", None, "NK"]),
        "stage": pd.Categorical(["lo", "hi", None, "mid", "hi", "lo", "mid", None], ["lo", "mid", "hi"], ordered=True),
        "batch": pd.Categorical([3, 1, None, 3, 2, 1, 2, None]),
        "n": np.array([0, 1, 2, 3, -4, 5, 600, 7], dtype=np.int64),
        "m": np.array([0, 1, 2, 3, 4, 5, 60, 7], dtype=np.int8),
        "pct": [0.1, np.nan, 0.2, 0.0, -1.5, np.nan, 1.0, 2.5],
        "pct32": np.array([0.1, np.nan, 0.2, 0.0, -1.5, np.nan, 1.0, 2.5], dtype=np.float32),
        "count": pd.array([1, None, 3, 4, None, 6, 7, 600], dtype="Int64"),
        "flag": [True, False, True, False, True, True, False, False],
        "maybe": pd.array([True, False, None, True, None, False, True, False], dtype="boolean"),
        "name": pd.array(["a", "MT-1", None, "mt-2", "B", "", None, "T cell"], dtype="str"),
        "note": pd.array(["a", None, "x.y", "é", None, "x", "xzy", "(b"], dtype="string"),
        "n genes": [1, 2, 3, 4, 5, 6, 7, 8],
        "orig.ident": pd.array(list("abcdabcd"), dtype="str"),
    },
    index=[f"c{i}" for i in range(8)],
)
KINDS = {
    "cell_type": "category",
    "stage": "ordered category",
    "flag": "boolean",
    "maybe": "boolean",
    "name": "string",
    "note": "string",
    "orig.ident": "string",
} | dict.fromkeys(["batch", "n", "m", "pct", "pct32", "count", "n genes"], "number")


def to_table(frame):
    columns = [to_polars(name, frame[name].array) for name in frame.columns]
    return pl.DataFrame([*columns, to_polars("index", frame.index.array)])


TABLE = to_table(FRAME)


def rows(predicate, columns=KINDS):
    mask = evaluate(parse(predicate, columns), TABLE)
    assert mask.dtype == np.bool_
    assert mask.shape == (len(FRAME),)
    return mask


def as_mask(values, missing=False):
    return pd.Series(values).astype("boolean").fillna(missing).to_numpy(dtype=bool)


# ---- a small grammar: each draw is a text and the mask that pandas computes

OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBERS = ["n", "m", "pct", "pct32", "count", "batch"]
TEXTS = ["cell_type", "stage", "name", "note", "orig.ident"]
WORDS = ["T cell", "B cell", "lo", "hi", "a", "MT-1", "", "é", "nowhere"]


def values_of(name):
    """A column whose categories do not stand in the way of comparing values."""
    column = FRAME[name]
    return column.astype("Float64") if name == "batch" else column


def compared(column, sign, value):
    return as_mask(OPERATORS[sign](column, value), missing=sign == "!=")


@st.composite
def leaves(draw):  # noqa: C901, PLR0911 - one case for each form of a comparison
    number = draw(st.sampled_from(NUMBERS))
    text = draw(st.sampled_from(TEXTS))
    sign = draw(st.sampled_from(sorted(OPERATORS)))
    value = draw(st.sampled_from([-4, 0, 1, 3, 0.1, 2.5, -1.5, 600]))
    other = draw(st.sampled_from(NUMBERS))
    word = draw(st.sampled_from(WORDS))
    words = draw(st.lists(st.sampled_from(WORDS), max_size=3))
    wanted = draw(st.lists(st.sampled_from([0, 1, 3, 600, 2.5]), max_size=3))
    match draw(st.integers(0, 11)):
        case 0 | 1:
            fits = number != "m" or value != 600  # pandas refuses a constant that int8 cannot hold
            value = value if fits else 60
            return f"{number} {sign} {value}", compared(values_of(number), sign, value)
        case 2:
            return f"{value} {sign} n", compared(value, sign, FRAME["n"])
        case 3:
            same = draw(st.sampled_from(["==", "!="]))
            return f"{text} {same} {word!r}", compared(FRAME[text], same, word)
        case 4:
            word = draw(st.sampled_from(["lo", "mid", "hi"]))
            return f"stage {sign} {word!r}", compared(FRAME["stage"], sign, word)
        case 5:
            return f"name {sign} {word!r}", compared(FRAME["name"], sign, word)
        case 6:
            inside = as_mask(FRAME[text].isin(words))
            return (f"{text} in {words!r}", inside) if sign < "=" else (f"{text} not in {words!r}", ~inside)
        case 7:
            return f"{number}.isin({wanted!r})", as_mask(values_of(number).isin(wanted))
        case 8:
            flag = draw(st.sampled_from(["flag", "maybe", "flag == True", "maybe == False", "maybe != True"]))
            return flag, {
                "flag": as_mask(FRAME["flag"]),
                "maybe": as_mask(FRAME["maybe"]),
                "flag == True": as_mask(FRAME["flag"]),
                "maybe == False": compared(FRAME["maybe"], "==", False),
                "maybe != True": compared(FRAME["maybe"], "!=", True),
            }[flag]
        case 9:
            column = draw(st.sampled_from(sorted(KINDS.keys() - {"n genes"})))
            missing = FRAME[column].isna().to_numpy()
            form = draw(st.sampled_from(["{}.isna()", "{} is None", "{}.notna()", "{} is not None"]))
            return form.format(column), ~missing if "not" in form else missing
        case 10:
            word = draw(st.sampled_from(["a", "T", ".", "(", "x.y", "é", ""]))
            method = draw(st.sampled_from(["contains", "startswith", "endswith"]))
            options = {"regex": False} if method == "contains" else {}
            found = getattr(FRAME[text].astype("string").str, method)(word, **options)
            keywords = ", regex=False" if options else ""
            return f"{text}.str.{method}({word!r}{keywords})", as_mask(found)
        case _:
            left, right = values_of(number).astype("Float64"), values_of(other).astype("Float64")
            symbol = draw(st.sampled_from("+-*"))
            worked = {"+": left + right, "-": left - right, "*": left * right}[symbol]
            threshold = draw(st.sampled_from([0.5, 3.25, -2.75]))
            return f"{number} {symbol} {other} {sign} {threshold}", compared(worked, sign, threshold)


@st.composite
def joined(draw, inner):
    (left, left_mask), (right, right_mask) = draw(inner), draw(inner)
    match draw(st.sampled_from(["and", "or", "not", "&", "|", "~"])):
        case "and" | "&" as sign:
            return f"({left}) {sign} ({right})", left_mask & right_mask
        case "or" | "|" as sign:
            return f"({left}) {sign} ({right})", left_mask | right_mask
        case "~":
            return f"~({left})", ~left_mask
        case _:
            return f"not ({left})", ~left_mask


EXPRESSIONS = st.recursive(leaves(), joined, max_leaves=6)


@given(EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_python_text_agrees_with_pandas(case):
    text, expected = case
    parsed = parse(text, KINDS)
    assert evaluate(parsed, TABLE).tolist() == expected.tolist(), text
    needed = TABLE.select(parsed.columns)
    assert evaluate(parsed, needed).tolist() == expected.tolist(), "the columns named are all that is needed"
    together = np.logical_and.reduce([evaluate(clause, TABLE) for clause in parsed.clauses])
    assert together.tolist() == expected.tolist()


@given(EXPRESSIONS)
@settings(max_examples=100, deadline=None)
def test_the_negation_keeps_exactly_the_other_rows(case):
    text, _ = case
    assert rows(f"not ({text})").tolist() == (~rows(text)).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "n == 1 & m == 1",
        "n == 1 | m > 4 & flag",
        "n == 1 and m == 1 or flag",
        "not flag & n > 1",
        "`n genes` > 5 | `n genes` in [1, 2]",
        "-4 < n < 5 <= `n genes`",
        "n % 3 == 1",
        "n / 2 > 1.5",
        "name == 'a&b' | name == '`'",
    ],
)
def test_precedence_is_that_of_pandas_query(text):
    assert rows(text).tolist() == FRAME.index.isin(FRAME.query(text, engine="python").index).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.05 < pct < 0.3", "c0 c2"),
        ("pct32 == 0.1", "c0"),
        ("pct32 in [0.1]", "c0"),
        ("obs.n == 1", "c1"),
        ("obs.orig.ident == 'a'", "c0 c4"),
        ("orig.ident.str.upper() == 'A'", "c0 c4"),
        ("index == 'c1' or obs_names == 'c2'", "c1 c2"),
        ("obs_names.str.endswith('3')", "c3"),
        ("cell_type in 'NK'", "c3 c7"),
        ("cell_type in ('NK')", "c3 c7"),
        ("cell_type in {'NK', None}", "c2 c3 c6 c7"),
        ("cell_type is null", "c2 c6"),
        ("name.str.contains('^mt-', case=False)", "c1 c3"),
        (r"name.str.contains('\d$')", "c1 c3"),
        ("note.str.contains('x.y')", "c2 c6"),
        ("note.str.contains('X.Y', case=False, regex=False)", "c2"),
        ("n.between(1, 3)", "c1 c2 c3"),
        ("n.abs() == 4 or -n == -5", "c4 c5"),
        ("m * 100 > 5000", "c6"),
        ("pct / pct == 1", "c0 c2 c4 c6 c7"),
        ("stage < 'hi'", "c0 c3 c5 c6"),
        ("stage == 'nowhere'", ""),
        ("cell_type < 'NK'", "c1 c5"),
        ("maybe == 1", "c0 c3 c6"),
        ("n == True", "c1"),
        ("n > -9999999999999999999999 and n < 1e400", "c0 c1 c2 c3 c4 c5 c6 c7"),
        ("n >\n  5", "c6 c7"),
        ("True", "c0 c1 c2 c3 c4 c5 c6 c7"),
        # SQL
        ("cell_type = 'T cell' AND `orig.ident` IN ('a','b')", "c0 c4"),
        ("orig.ident = 'a' or obs.n = 1 or obs_names = 'c2'", "c0 c1 c2 c4"),
        ("cell_type LIKE '%cell' AND n BETWEEN 0 AND 2", "c0 c1"),
        ("cell_type IS NULL", "c2 c6"),
        ("NOT (cell_type = 'NK')", "c0 c1 c4 c5"),
        ("cell_type <> 'NK'", "c0 c1 c4 c5"),
        ("name ~ '^[a-z]'", "c0 c3"),
        ("\"n genes\" > 5 AND name = 'SELECT''s' OR n = 7", "c7"),
        ("stage = 'hi' AND stage > 'lo'", "c1 c4"),
        ("(n IS DISTINCT FROM 1) AND n < 3", "c0 c2 c4"),
        ("NOT (n == 1) AND `orig.ident` = 'b'", "c5"),
        ("pct32 = 0.1", "c0"),
    ],
)
def test_rows_kept(text, expected):
    assert FRAME.index[rows(text)].tolist() == expected.split()
    assert rows(text, list(KINDS)).tolist() == rows(text).tolist() or "stage" in text, "without kinds, the same"


@pytest.mark.parametrize("sign", ["==", "<", ">=", "!="])
def test_missing_values_in_python_and_in_sql(sign):
    missing = FRAME["pct"].isna().to_numpy()
    assert (rows(f"pct {sign} 0.1")[missing] == (sign == "!=")).all()
    assert (rows(f"not (pct {sign} 0.1)")[missing] == (sign != "!=")).all()
    sql = sign.replace("==", "=").replace("!=", "<>")
    assert not rows(f"pct {sql} 0.1 AND TRUE")[missing].any()
    assert not rows(f"NOT (pct {sql} 0.1)")[missing].any()


def test_unsigned_columns_do_not_wrap():
    table = pl.DataFrame(
        [to_polars("a", np.array([1, 600], dtype=np.uint16)), to_polars("b", np.array([2, 2], np.uint8))]
    )
    for text in ("a - 500 > 0", "a - b > 0", "-a < -5", "a * 1000 == 600000"):
        assert evaluate(parse(text, {"a": "number", "b": "number"}), table).tolist() == [False, True], text


def test_large_integers_are_compared_exactly():
    table = pl.DataFrame(
        [to_polars("i", np.array([2**53, 2**53 + 1])), to_polars("u", np.array([0, 2**64 - 1], np.uint64))]
    )
    kinds = {"i": "number", "u": "number"}
    for text in (f"i == {2**53 + 1}", f"i in [{2**53 + 1}]", f"u == {2**64 - 1}", f"u in [{2**64 - 1}, -1]"):
        assert evaluate(parse(text, kinds), table).tolist() == [False, True], text


# ---- what is needed, and the clauses


def test_columns_come_in_order_of_first_use():
    assert parse("n > 1 and name == 'a' or n < m", KINDS).columns == ("n", "name", "m")
    assert parse("m = 1 OR n = 2 OR m = 3", KINDS).columns == ("m", "n")
    assert parse({"name": "a", "n": [1]}, KINDS).columns == ("name", "n")
    assert parse("obs_names == 'a' and n > 1", KINDS, index="barcode").columns == ("barcode", "n")
    assert parse("index == 'a'", {"index": "string"}, index="_index").columns == ("index",)
    assert parse("var_names == 'a'", {}, axis="var").columns == ("index",)


@pytest.mark.parametrize(
    ("predicate", "texts"),
    [
        (
            "n > 1 & `n genes` in [1, 2] and (m > 2 or flag)",
            ["n > 1", "`n genes` in [1, 2]", "m > 2 or flag"],
        ),
        ("1 < n < 5", ["1 < n < 5"]),
        ("n > 1 or m > 1", ["n > 1 or m > 1"]),
        ("name == 'é' and note == 'é'", ["name == 'é'", "note == 'é'"]),
        (
            "n BETWEEN 1 AND 5 AND name = 'x AND y' and flag",
            ["n BETWEEN 1 AND 5", "name = 'x AND y'", "flag"],
        ),
        ("n = 1 OR m = 1 AND flag", ["n = 1 OR m = 1 AND flag"]),
        ({"name": "a", "n": 1}, ["name == 'a'", "n == 1"]),
    ],
)
def test_clauses(predicate, texts):
    parsed = parse(predicate, KINDS)
    assert [clause.text for clause in parsed.clauses] == texts
    assert tuple(dict.fromkeys(c for clause in parsed.clauses for c in clause.columns)) == parsed.columns
    together = np.logical_and.reduce([evaluate(clause, TABLE) for clause in parsed.clauses])
    assert together.tolist() == evaluate(parsed, TABLE).tolist()


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"cell_type": "NK"}, "cell_type == 'NK'"),
        ({"cell_type": ["NK", "B cell"], "n": 3}, "cell_type in ['NK', 'B cell'] and n == 3"),
        ({"cell_type": ("NK", None)}, "cell_type in ['NK', None]"),
        ({"cell_type": None}, "cell_type.isna()"),
        ({"pct": np.nan}, "pct.isna()"),
        ({"note": ["é"]}, "note == 'é'"),
        ({"n": np.array([1, 3])}, "n in [1, 3]"),
        ({"n": np.int8(1), "flag": False}, "n == 1 and not flag"),
        ({"n": [10**40, 1]}, "n == 1"),
        ({"stage": pd.Index(["lo"]), "obs_names": {"c0"}}, "index == 'c0'"),
        ({"n": []}, "n in []"),
        ({}, "True"),
    ],
    ids=str,
)
def test_a_mapping_is_equality_by_column(mapping, text):
    assert rows(mapping).tolist() == rows(text).tolist()


def test_a_polars_expression_is_taken_as_it_is():
    parsed = parse((pl.col("n") > 1) & (pl.col("name") == "T cell") & pl.col("flag").not_(), KINDS)
    assert parsed.columns == ("n", "name", "flag")
    assert [clause.columns for clause in parsed.clauses] == [("n",), ("name",), ("flag",)]
    assert FRAME.index[evaluate(parsed, TABLE)].tolist() == ["c7"]
    assert not rows(pl.col("pct") != 0)[FRAME["pct"].isna()].any()


def test_a_long_conjunction_of_polars_expressions_is_split():
    whole = pl.col("n") > 0
    for i in range(1, 2000):
        whole = whole & (pl.col("n") > i)
    assert len(parse(whole, KINDS).clauses) == 2000


# ---- refusals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cell_type > 5", ["cell_type", "a category", "number 5", "'5'"]),
        ("cell_type == 5", ["cell_type", "a category", "number 5"]),
        ("5 == stage", ["stage", "an ordered category", "number 5"]),
        ("name == True", ["name", "a string", "boolean True"]),
        ("n == 'abc'", ["'n'", "a number", "string 'abc'"]),
        ("flag == 'yes'", ["flag", "a boolean", "string 'yes'"]),
        ("n in [1, 'a']", ["'n'", "a number", "string 'a'"]),
        ("name.isin([1])", ["name", "a string", "number 1"]),
        ("n == name", ["'n'", "a number", "'name'", "a string"]),
        ("n.str.contains('a')", ["'n'", "a number"]),
        ("name + 1 > 2", ["name", "a string"]),
        ("n and flag", ["'n'", "a number", "true or false"]),
        ("~n == 1", ["'n'", "a number", "true or false"]),
        ("n = 'abc' AND flag", ["'n'", "a number", "string"]),
        ("name > 5 AND n = 1", ["name", "a string", "numeric"]),
        ("n == None", ["is None"]),
        ("'n genes' > 5", ["backticks"]),
        ("'name'", ["`name`"]),
        ("stage.isna", ["isna"]),
        ("name.str.contains('(?=a)')", ["pattern"]),
        ("name.str.contains('a', na=False)", ["case"]),
        ("", ["empty"]),
    ],
)
def test_a_wrong_type_is_refused_before_anything_is_read(text, said):
    with pytest.raises(InvalidPredicateError) as caught:
        parse(text, KINDS)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "name > 5",
        "n == 'abc'",
        "cell_type + 1 > 2",
        "name",
        "n",
        "not n",
        "stage < 'nowhere'",
        "n = 'abc'",
        "n + 1 = 2 AND name",
        "stage LIKE 'l%'",
    ],
)
def test_without_kinds_evaluation_refuses(text):
    with pytest.raises(InvalidPredicateError) as caught:
        evaluate(parse(text, list(KINDS)), TABLE)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "open('x')",
        "eval('1')",
        "n.__class__",
        "n.__class__.__bases__",
        "().__class__.__mro__[1].__subclasses__()",
        "n.str.__class__ == 1",
        "n.sum() > 1",
        "n.apply(print)",
        "name.str.contains(name)",
        "name.str.contains(*['a'])",
        "name.str.contains('a', **{'case': True})",
        "lambda: n",
        "(lambda: n)()",
        "[x for x in name]",
        "{x: 1 for x in name}",
        "f'{n}' == 'a'",
        "name == f'{n}'",
        "n ** 2 > 1",
        "9**9**9 > n",
        "n // 2 > 1",
        "n << 5 > 1",
        "n @ n",
        "(n := 1)",
        "n if flag else m",
        "n[0] > 1",
        "name == b'a'",
        "n == 1j",
        "n == ...",
        "n > 1 / 0",
        "n in m",
        "n in range(3)",
        "n is 1",
        "1 < 2",
        "name == '\\ud800'",
        "name == '\ud800'",
        "n\0 > 1",
        "n > " + "9" * 400,
        "n > " + "9" * 5000,
        "DROP TABLE x",
        "SELECT 1",
        "SELECT * FROM obs",
        "n IN (SELECT 1)",
        "(SELECT 1) = 1 AND TRUE",
        "EXISTS (FROM read_csv('/etc/passwd'))",
        "n IN (FROM read_csv('/etc/passwd'))",
        "n IN (VALUES (1))",
        "n = 1; DROP TABLE x",
        "n = 1, m = 2",
        "n = 1 AS x",
        "n = 1 x",
        "n = 1 -- x",
        "n = 1 /* ' */ AND m IN (SELECT 1) -- '",
        "name = $$'$$ OR n IN (SELECT 1) OR name = $$'$$",
        "name = E'\\'' OR n IN (SELECT 1) OR name = ''",
        "COUNT(*) = 1 AND TRUE",
        "COLUMNS('n') = 1",
        "* = 1",
        "n =",
        "n = = 1",
        "name = 'a",
        "n >",
        "(n > 1",
    ],
)
def test_refused(text):
    with pytest.raises(InvalidPredicateError):
        parse(text, KINDS)


def test_a_subquery_opens_no_file(tmp_path):
    # Polars would open it while parsing: a missing file would be another error than ours.
    with pytest.raises(InvalidPredicateError, match="got SELECT"):
        parse(f"n IN (SELECT * FROM read_parquet('{tmp_path}/no.parquet'))", KINDS)  # noqa: S608 - refused


DEEP = {
    "parentheses": "(" * 5000 + "n > 1" + ")" * 5000,
    "not": "not " * 5000 + "flag",
    "minus": "-" * 50_000 + "1 < n",
    "sum": "+".join(["n"] * 50_000) + " > 1",
    "a sum of some": "+".join(["n"] * 300) + " > 1",
    "attributes": "n" + ".n" * 50_000,
    "calls": "n" + ".abs()" * 5000 + " > 1",
    "brackets": "n in " + "[" * 150 + "]" * 150,
    "SQL parentheses": "(" * 5000 + "n = 1" + ")" * 5000,
    "SQL sum": "+".join(["n"] * 50_000) + " = 1",
    "SQL or": " OR ".join(["n = 1"] * 50_000),
    "SQL not": "NOT " * 50_000 + "n = 1",
    "SQL hidden in quotes": "name = $$'$$ OR n" + "+n" * 50_000 + " = 1 OR name = $$'$$",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_nesting_is_refused(text):
    with pytest.raises((InvalidPredicateError, NotFoundError)) as caught:
        parse(text, KINDS)
    assert len(str(caught.value)) < 2000 or isinstance(caught.value, NotFoundError)


def test_what_is_long_but_flat_is_read():
    assert rows(" or ".join(f"n == {i}" for i in range(3000))).tolist() == (FRAME["n"] >= 0).tolist()
    many = ", ".join(repr(f"c{i}") for i in range(5, 20_000))
    assert FRAME.index[rows(f"index in [{many}]")].tolist() == ["c5", "c6", "c7"]
    assert FRAME.index[rows(f"obs_names = 'c1' OR index IN ({many})")].tolist() == ["c1", "c5", "c6", "c7"]


@pytest.mark.parametrize(
    "text",
    [
        "+".join(["n"] * 190) + " = 190",
        " OR ".join(["n = 1"] * 130),
        "n = 1" + " IS NOT FALSE" * 130,
        "+".join(["n"] * 95) + " == 95",
        "(" * 90 + "n" + " + 0)" * 90 + " == 1",
        "not (flag and " * 40 + "n != 1" + ")" * 40 + " and n == 1",
        "n == 1 and (flag or " + "(not flag or flag and " * 30 + "True" + ")" * 31,
    ],
    ids=lambda text: text[:20],
)
def test_the_deepest_text_fits_a_thread_with_a_small_stack(text):
    kept = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: kept.extend(rows(text)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert kept == (FRAME["n"] == 1).tolist()


@pytest.mark.parametrize(
    ("predicate", "near"),
    [
        ("cell_tpye == 'NK'", "cell_type"),
        ("Cell_Type = 'NK'", "cell_type"),
        ("obs.stagee == 'lo'", "stage"),
        ("orig.idnt == 'a'", "orig.ident"),
        ({"cell_tpye": "NK"}, "cell_type"),
        (pl.col("cell_tpye") == "NK", "cell_type"),
        ("`n gens` > 1", "n genes"),
        ("var.n == 1", ""),
        (pl.col("obs_names") == "c1", "index"),
    ],
    ids=str,
)
def test_an_unknown_column_is_not_found(predicate, near):
    with pytest.raises(NotFoundError) as caught:
        parse(predicate, KINDS)
    assert near in str(caught.value)
    assert str(caught.value).startswith("obs has no column")


@pytest.mark.parametrize(
    "predicate",
    [
        *(5, None, b"n > 1", ["n > 1"], np.array([True])),
        *(
            {"n": slice(1, 2)},
            {"n": {"a": 1}},
            {"n": "a"},
            {"name": ["a", 1]},
            {"name": ["a", "\ud800"]},
            {"n": 10**400},
        ),
        *(pl.all() > 1, pl.col("^n.*$") > 1, pl.col("n", "m") > 1, pl.nth(0) > 1),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, pl.Expr) else ascii(p),
)
def test_other_things_are_refused(predicate):
    with pytest.raises(InvalidPredicateError):
        parse(predicate, KINDS)


@pytest.mark.parametrize(
    "expression", [pl.col("n"), pl.col("name"), pl.col("n").head(3) > 1, pl.col("name") > 5], ids=str
)
def test_an_expression_that_gives_no_mask_is_refused(expression):
    with pytest.raises(InvalidPredicateError):
        rows(expression)


@pytest.mark.parametrize(
    ("text", "caret"),
    [
        ("cell_type == = 'T'", "="),
        ("flag & cell_type > 5", "cell_type > 5"),
        ("name == 'é' & (`n genes` > 'x' | flag)", "`n genes` > 'x'"),
        ("flag & foo(n)", "foo(n)"),
        (f"{'flag & ' * 50} n == 'x'", "n == 'x'"),
    ],
)
def test_the_place_is_shown(text, caret):
    with pytest.raises(InvalidPredicateError) as caught:
        parse(text, KINDS)
    shown, marks = str(caught.value).splitlines()[1:3]
    found = re.search(r"\^+", marks)
    assert found is not None
    assert shown[found.start() : found.end()] == caret


def test_bad_syntax_says_what_python_and_what_sql_made_of_it():
    with pytest.raises(InvalidPredicateError, match=r"(?s)Python: .* character 6.*SQL: .*\n    n == = 1\n") as caught:
        parse("n == = 1", KINDS)
    assert "Write for example" in str(caught.value)


# ---- to_polars


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.array([1, 2], dtype=">i4"), pl.Int32, [1, 2]),
        (np.array([1.5, np.nan], dtype=">f8"), pl.Float64, [1.5, None]),
        (np.array([1, 255], dtype=np.uint8), pl.UInt8, [1, 255]),
        (np.array([True, False]), pl.Boolean, [True, False]),
        (np.array(["a", "é"]), pl.String, ["a", "é"]),
        (np.array(["a", None, np.nan, pd.NA], dtype=object), pl.String, ["a", None, None, None]),
        (np.array([True, None], dtype=object), pl.Boolean, [True, None]),
        (np.array([1, None], dtype=object), pl.Int64, [1, None]),
        (np.array([1, 2.5], dtype=object), pl.Float64, [1.0, 2.5]),
        (np.array([None, None], dtype=object), pl.String, [None, None]),
        (np.array(["a", "b"], dtype=np.dtypes.StringDType()), pl.String, ["a", "b"]),
        (pd.array([1, None], dtype="UInt8"), pl.UInt8, [1, None]),
        (pd.array([1.5, None], dtype="Float32"), pl.Float32, [1.5, None]),
        (pd.array([True, None], dtype="boolean"), pl.Boolean, [True, None]),
        (pd.array(["a", None], dtype="string"), pl.String, ["a", None]),
        (pd.array(["a", None], dtype="str"), pl.String, ["a", None]),
        (pd.Categorical(["b", None, "a"]), pl.String, ["b", None, "a"]),
        (pd.Categorical([2, None, 1]), pl.Int64, [2, None, 1]),
        (pd.Categorical([2.5, None]), pl.Float64, [2.5, None]),
        (pd.Categorical([True, None]), pl.Boolean, [True, None]),
        (pd.Categorical([3, 1], categories=[3, 1], ordered=True), pl.Int64, [3, 1]),
        (pd.Categorical(["b", None], categories=["b", "a"], ordered=True), pl.Enum(["b", "a"]), ["b", None]),
        (pd.Categorical([None, None]), pl.String, [None, None]),
        (pd.Categorical([], categories=["a"]), pl.String, []),
        (np.array([], dtype=np.float32), pl.Float32, []),
    ],
    ids=repr,
)
def test_to_polars(values, dtype, expected):
    column = to_polars("x", values)
    assert column.name == "x"
    assert column.dtype == dtype
    assert column.to_list() == expected


@pytest.mark.parametrize(
    "values",
    [np.array(["a", 1], dtype=object), np.array([1j]), np.array([[1]], dtype=object), np.array([b"a"])],
    ids=repr,
)
def test_to_polars_refuses_what_cannot_be_compared(values):
    with pytest.raises(InvalidPredicateError, match="'x'"):
        to_polars("x", values)


def test_evaluate_on_no_rows():
    none = TABLE.clear()
    for text in ("n > 1", "True", "n in []", "n = 1 OR flag"):
        assert evaluate(parse(text, KINDS), none).tolist() == []
