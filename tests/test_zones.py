"""Zones: a chunk that can match is never passed over, and one that cannot is."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import tiny_chunks

import lobster_zarr as lz
from lobster_zarr import predicate as predicates
from lobster_zarr.errors import FormatError
from lobster_zarr.grid import cdiv
from lobster_zarr.noted import Note
from lobster_zarr.predicate import to_polars
from lobster_zarr.zones import Zones, candidates, measure

KINDS = {"cell_type": "category", "stage": "ordered category", "plate": "number", "n": "number", "mito": "number"}
KINDS |= {"score": "number", "name": "string", "kept": "boolean"}
CHUNK = 8

numbers = st.integers(-5, 5)
floats = st.sampled_from([0.1, 0.2, -1.5, 0.0, -0.0, 1e30, -1e300, float("nan"), float("inf"), 3.0])
texts = st.sampled_from(["", "a", "ab", "b", "x" * 40, "x" * 40 + "y", "\U0010ffff" * 30, "z\0"])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Columns of every kind, of the same length, sorted or not: what obs and var can hold."""
    n = draw(st.integers(1, 40))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        drawn = draw(st.lists(values, min_size=n, max_size=n))
        return sorted(drawn, key=repr) if draw(st.booleans()) else drawn

    stages = pd.CategoricalDtype(["early", "mid", "late"], ordered=True)
    return {
        "cell_type": pd.Categorical(column(st.sampled_from(["T", "B", "NK", None])), ["T", "B", "NK", "unused"]),
        "stage": pd.Categorical(column(st.sampled_from(["early", "late", None])), dtype=stages),
        "plate": pd.Categorical(column(st.sampled_from([1, 2, 3]))),
        "n": np.asarray(column(numbers), draw(st.sampled_from(["int8", "int64"]))),
        "mito": np.asarray(column(floats), "float64"),
        "score": np.asarray([v if abs(v) < 1e38 else np.inf for v in column(floats)], "float32"),
        "name": np.asarray(column(texts), object),
        "kept": pd.array(column(st.sampled_from([True, False, None])), dtype="boolean"),
    }


def clauses() -> st.SearchStrategy[str]:
    number = st.one_of(numbers, st.sampled_from([0.1, 0.2, 2.5, -1e300, 2**70]))
    sign = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    column = st.sampled_from(["n", "mito", "score", "plate"])
    quoted = st.sampled_from(["a", "ab", "b", "x" * 40, "xx"]).map(repr)
    one = st.one_of(
        st.builds("{} {} {}".format, column, sign, number),
        st.builds("{} < {} <= {}".format, number, column, number),
        st.builds("{} in [{}, {}]".format, column, numbers, numbers),
        st.builds("{} % 2 == {}".format, st.sampled_from(["n", "mito"]), st.integers(0, 1)),
        st.builds("name {} {}".format, sign, quoted),
        st.builds("name.str.startswith({})".format, quoted),
        st.builds("cell_type in [{!r}, 'B']".format, st.sampled_from(["T", "NK", "unused"])),
        st.builds("stage {} 'mid'".format, sign),
        st.builds("{}.isna()".format, st.sampled_from(sorted(KINDS))),
        st.builds("{} IS NOT NULL".format, st.sampled_from(sorted(KINDS))),
        st.sampled_from(["kept", "not kept", "cell_type LIKE 'N%'", "n BETWEEN -1 AND 2", "mito IN (0.1, 3)"]),
    )
    joined = st.recursive(
        one, lambda inner: st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner)
    )
    return joined | joined.map("not ({})".format)


def zones_of(table: dict[str, Any]) -> dict[str, Zones]:
    found = {}
    for name, values in table.items():
        note = Note(name, measure(values, CHUNK))
        if isinstance(values, pd.Categorical):
            every = pd.Categorical.from_codes([*range(len(values.categories)), -1], dtype=values.dtype)
            domain = to_polars(name, every)
        else:
            whole = to_polars(name, values)
            domain = pl.Series(name, [False, True, None] if whole.dtype == pl.Boolean else [], dtype=whole.dtype)
        zones = Zones.of(note, cdiv(len(values), CHUNK), domain)
        found |= {} if zones is None else {name: zones}
    return found


def frame_of(table: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([to_polars(name, values) for name, values in table.items()])


@given(tables(), clauses())
def test_no_chunk_that_can_match_is_passed_over(table: dict[str, Any], text: str) -> None:
    try:
        parsed = predicates.parse(text, KINDS)
        mask = predicates.evaluate(parsed, frame_of(table))
    except predicates.InvalidPredicateError:
        return  # the two spellings do not mix
    n_chunks = cdiv(len(mask), CHUNK)
    matching = np.asarray([mask[i * CHUNK : (i + 1) * CHUNK].any() for i in range(n_chunks)])
    found = candidates(parsed.expression, zones_of(table), n_chunks)
    assert not (matching & ~found).any()


SORTED: dict[str, Any] = {
    "cell_type": pd.Categorical(np.repeat(["B", "NK", "T"], 16)),
    "n": np.arange(48),
    "mito": np.linspace(0, 1, 48, dtype="float32"),
    "name": np.asarray([f"cell-{i:02}" for i in range(48)], object),
    "kept": pd.array([False] * 40 + [None] * 8, dtype="boolean"),
}


@pytest.mark.parametrize(
    ("condition", "chunks"),
    [
        ("cell_type == 'NK'", [2, 3]),
        ("cell_type != 'NK'", [0, 1, 4, 5]),
        ("cell_type == 'nobody'", []),
        ("cell_type IN ('B', 'T')", [0, 1, 4, 5]),
        ("cell_type LIKE 'N%'", [2, 3]),
        ("n == 17", [2]),
        ("n in [1, 40]", [0, 5]),
        ("6 < n <= 8", [0, 1]),
        ("NOT n > 7", [0]),
        ("mito < 0.1 or n > 41", [0, 5]),
        ("cell_type == 'T' and n < 35", [4]),
        ("name = 'cell-20'", [2]),
        ("name > 'cell-41'", [5]),
        ("kept.isna()", [5]),
        ("kept", []),
        ("n % 2 == 0", [0, 1, 2, 3, 4, 5]),
        (pl.col("n").is_between(8, 15) & (pl.col("cell_type") == "B"), [1]),
        (pl.col("n") == pl.col("n").max(), [0, 1, 2, 3, 4, 5]),
        (pl.col("cell_type") == pl.col("cell_type").shift(1), [0, 1, 2, 3, 4, 5]),
        (pl.col("n").cum_sum() > 3, [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_chunks_that_cannot_match_are_passed_over(condition: Any, chunks: list[int]) -> None:
    kinds = {n: k for n, k in KINDS.items() if n in SORTED}
    parsed = predicates.parse(condition, kinds)
    assert np.flatnonzero(candidates(parsed.expression, zones_of(SORTED), 6)).tolist() == chunks


@pytest.mark.parametrize("entry", ["not base64", "AAAA", 7, None, "eJwDAAAAAAE="])
def test_a_damaged_note_is_an_error(entry: Any) -> None:
    note = Note("obs/n", {**measure(SORTED["n"], CHUNK), "nulls": entry})
    with pytest.raises(FormatError, match="obs/n"):
        Zones.of(note, 6, to_polars("n", SORTED["n"][:0]))


def test_a_note_that_inflates_to_more_than_it_may_is_not_inflated() -> None:
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    with pytest.raises(FormatError, match="chunk_sizes"):
        Note("obs/n", {"chunk_sizes": bomb}).array("chunk_sizes", "u4", (6,))


N = 48
ODD: dict[str, Any] = {
    "id": 2**60 + np.arange(N) * 1_000 + 100,
    "unsigned": (np.uint64(2**63) + np.arange(N, dtype="uint64")),
    "flag": np.asarray([10, 12, 18] * 16),
    "pos": np.arange(N),
    "odd": np.asarray(["a"] * 40 + ["\U0010ffff" * 30] * 8, object),
    "empty": pd.Categorical.from_codes([-1] * N, pd.Index([], dtype=object)),
}


@pytest.mark.parametrize(
    "condition",
    [
        f"id == {2**60 + 12_100}",
        f"id in [{2**60 + 12_100}, 3]",
        f"id = {2**60 + 12_100} AND pos > 2",
        f"unsigned == {2**63 + 7}",
        f"unsigned IN ({2**63 + 7}, {2**63 + 30})",
        f"id IN ({2**60 + 12_100}, 0.5)",
        f"id > {float(2**60 + 20_000)!r} AND id < {float(2**60 + 24_000)!r}",
        "pos < 16 AND pos > AVG(pos)",
        (pl.col("pos") < 16) & (pl.col("pos") > pl.col("pos").mean()),
        (pl.col("pos") >= 40) & pl.Series(np.arange(N) % 2 == 0),
        (pl.col("flag") & 4) == 4,
        (pl.col("flag") | 1) == 11,
        ~pl.col("pos") == -13,
        "flag & 4 = 4",
        "(flag & 4) <> 0 AND flag > 0",
        {"odd": "\U0010ffff" * 30},
        "empty.isna()",
        "empty == 'a'",
        "empty IS NULL AND pos = 3",
    ],
    ids=str,
)
def test_a_query_finds_what_pandas_and_polars_find(condition: Any) -> None:
    adata = ad.AnnData(obs=pd.DataFrame(ODD, index=[f"cell-{i}" for i in range(N)]))
    with tiny_chunks(chunk=CHUNK, noted_bytes=1 << 16):
        lz.convert(adata, "memory://zones-odd", overwrite=True, progress=False)
    kinds = dict.fromkeys(("id", "unsigned", "flag", "pos"), "number") | {"odd": "string", "empty": "category"}
    parsed = predicates.parse(condition, kinds)
    expected = np.flatnonzero(predicates.evaluate(parsed, frame_of(ODD)))
    dataset = lz.open("memory://zones-odd")
    assert list(dataset.query(condition).to_pandas().index) == [f"cell-{i}" for i in expected]
    if isinstance(condition, str) and "==" not in condition and "isna" not in condition and " in " not in condition:
        assert len(dataset.sql(f"SELECT obs WHERE {condition}")) == len(expected)
