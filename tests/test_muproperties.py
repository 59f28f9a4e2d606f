"""Any selection of any MuData store gives what mudata makes of the same selection in memory.

More examples, by hand: ``MUDATA_EXAMPLES=400 pytest tests/test_muproperties.py``.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import strategies as sts
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mudatas import selected
from oracle import assert_equal, assert_mudata_equal, stored_mudata
from test_convert import memory_uri
from test_muconvert import by_mudata, convert, quiet, read_zarr

import lobster_zarr as lz
from tests.thrift import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

GROUPS = ("obsm", "varm", "obsp", "varp")
EXAMPLES = int(os.environ.get("MUDATA_EXAMPLES", "0"))


def property_test(most: int) -> Callable[[Any], Any]:  # a store is made for every example
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=EXAMPLES or examples(most), suppress_health_check=slow)


@st.composite
def stores(draw: DrawFn) -> tuple[Any, mudata.MuData]:
    """An open store, sorted, unsorted or by mudata, and what mudata reads of it."""
    data = draw(sts.mudatas())
    if draw(st.sampled_from([False, False, True])):
        return at_random(of_mudata, data, None)
    own = [f"{name}:{column}" for name, part in data.mod.items() for column in part.obs]
    columns = [*data.obs.columns, *own]
    keys = draw(st.lists(st.sampled_from(columns), max_size=2, unique=True)) if columns else []
    if draw(st.sampled_from([False, False, True])):  # each modality by its own
        keys = {name: draw(sts.sort_keys(part.obs)) for name, part in data.mod.items()}
    return at_random(of_ours, data, keys)


def at_random(make: Callable[..., Any], data: mudata.MuData, sort_by: Any) -> Any:
    """Mudata draws random names, which a strategy must not let be seen."""
    state, made = random.getstate(), make(data, sort_by)
    random.setstate(state)
    return made


def of_ours(data: mudata.MuData, sort_by: Any) -> tuple[Any, mudata.MuData]:
    uri = memory_uri()
    convert(data, uri, sort_by=sort_by)
    return lz.open(uri), stored_mudata(data)


def of_mudata(data: mudata.MuData, _: None) -> tuple[Any, mudata.MuData]:
    folder = Path(tempfile.mkdtemp(prefix="muproperties"))
    with ad.settings.override(allow_write_nullable_strings=True):
        path = by_mudata(data, folder / "a.zarr", 3)
    opened = lz.open(path)
    weakref.finalize(opened, shutil.rmtree, folder)
    return opened, read_zarr(path)


def values_of(memory: mudata.MuData, modality: str, values: Any) -> list[Any]:
    """Bring values of a modality's rows to the global rows; None is a missing one."""
    at = memory.obsmap[modality].ravel().astype(int) - 1
    return [None if i < 0 or pd.isna(values[i]) else values[i] for i in at]


def joined(memory: mudata.MuData) -> dict[str, list[Any]]:
    """Every column of obs as a predicate names it."""
    found = {f"{m}:{c}": values_of(memory, m, part.obs[c].array) for m, part in memory.mod.items() for c in part.obs}
    return found | {c: [None if pd.isna(v) else v for v in memory.obs[c].array] for c in memory.obs}


def features(memory: mudata.MuData) -> dict[str, list[Any]]:
    """Every feature of X that has a name of its own, as a predicate spells it."""
    found = {}
    for modality, part in memory.mod.items():
        dense = None if part.X is None else part.X.toarray() if hasattr(part.X, "toarray") else np.asarray(part.X)
        for at, name in enumerate(() if dense is None else part.var_names):
            if (part.var_names == name).sum() == 1 and name not in part.obs:
                found[f"`{modality}:{name}`"] = values_of(memory, modality, dense[:, at])
    return found


@st.composite
def conditions(draw: DrawFn, memory: mudata.MuData) -> tuple[Any, np.ndarray]:
    """A predicate on a column or feature, and the rows for which it is true: two-valued, as documented."""
    columns = {n: v for n, v in joined(memory).items() if "`" not in n}  # which no backtick can quote
    assume(columns)
    if draw(st.booleans()) and (of_x := features(memory)):
        spelled, values = draw(st.sampled_from(list(of_x.items())))
        truth = np.asarray([v is not None and bool(v > 0) for v in values], bool)
        assume(any(v is not None for v in values))
        text = spelled if any(isinstance(v, bool | np.bool_) for v in values) else f"({spelled} > 0)"
        return draw(st.sampled_from([(text, truth), (f"not {text}", ~truth)]))
    name, values = draw(st.sampled_from(list(columns.items())))
    present = [v for v in values if v is not None]
    kind = draw(st.sampled_from(["missing", "there", "one", "several", "not"] if present else ["missing", "there"]))
    missing = np.asarray([v is None for v in values], bool)
    if kind in ("missing", "there"):
        return (f"`{name}`.isna()", missing) if kind == "missing" else (f"not `{name}`.isna()", ~missing)
    native = [v.item() if isinstance(v, np.generic) else v for v in (present[0], present[-1])]
    native = native if kind == "several" else native[:1]
    equal = np.asarray([v in native for v in values], bool)
    if kind == "not":
        assume(not isinstance(native[0], float) or np.isfinite(native[0]))  # Python has no literal of it
        return f"not `{name}` == {native[0]!r}", ~equal
    return {name: native if kind == "several" else native[0]}, equal


@dataclass
class Case:
    data: Any
    memory: mudata.MuData
    asked: dict[str, Any]
    rows: np.ndarray | None
    genes: np.ndarray | None
    own: dict[str, np.ndarray]

    def selection(self) -> Any:
        return self.data.query(**self.asked)

    def expected(self) -> mudata.MuData:
        chosen = self.asked["modalities"] or list(self.memory.mod)
        if not self.own and len(chosen) == len(self.memory.mod) and self.asked["join"] == "outer":
            return selected(self.memory, self.rows, self.genes)
        return self.piecewise([name for name in self.memory.mod if name in chosen])

    def piecewise(self, chosen: list[str]) -> mudata.MuData:
        """Slice with mudata, and leave out what that has no word for: modalities, cells of some, genes of one."""
        memory, join, narrowed = self.memory, self.asked["join"], len(chosen) < len(self.memory.mod)
        every = np.arange(memory.n_obs) if self.rows is None else self.rows
        there = np.asarray([memory.obsmap[m].ravel()[every] > 0 for m in chosen])
        if join == "inner" or narrowed:
            every = every[there.all(axis=0) if join == "inner" else there.any(axis=0)]
        sliced = self.rows is not None or self.genes is not None or join == "inner"
        columns = np.arange(memory.n_vars) if self.genes is None else self.genes
        maps: dict[str, dict[str, np.ndarray]] = {"obs": {}, "var": {}}
        parts, axis = {}, int(memory.axis)
        for m in chosen:
            at, of_var = (getattr(memory, f"{t}map")[m].ravel().astype(int) - 1 for t in ("obs", "var"))
            taken_rows = at[every][at[every] >= 0] if sliced else np.arange(memory[m].n_obs)
            taken_genes = of_var[columns][of_var[columns] >= 0] if sliced else np.arange(memory[m].n_vars)
            taken_genes = self.own.get(m, taken_genes)  # of its own var, in its own order
            parts[m] = memory[m][taken_rows, taken_genes].copy() if sliced or m in self.own else memory[m].copy()
            inverse = {gene: i + 1 for i, gene in enumerate(taken_genes)}
            maps["var"][m] = np.asarray([inverse.get(v, 0) for v in of_var[columns]], np.uint32)
            counted = at[every] >= 0
            maps["obs"][m] = (np.where(counted, np.cumsum(counted), 0) if sliced else at[every] + 1).astype(np.uint32)
        if self.own or narrowed:
            kept = np.any([at > 0 for at in maps["var"].values()], axis=0)
            columns, maps["var"] = columns[kept], {m: at[kept] for m, at in maps["var"].items()}
        with quiet():
            whole = memory[every, columns].copy() if sliced or narrowed or self.own else memory
            groups = {g: {n: v for n, v in getattr(whole, g).items() if n not in memory.mod} for g in GROUPS}
            for table, found in maps.items():
                groups[f"{table}m"] |= {m: (at > 0).reshape(-1, 1) for m, at in found.items()}
            groups |= {f"{table}map": found for table, found in maps.items()}
            return mudata.MuData(parts, obs=whole.obs, var=whole.var, uns=whole.uns, axis=axis, **groups)


@st.composite
def cases(draw: DrawFn) -> Case:
    data, memory = draw(stores())
    some = st.lists(st.sampled_from(list(memory.mod)), min_size=1, max_size=2, unique=True)
    join = st.sampled_from(["outer", "outer", "inner"])
    asked: dict[str, Any] = {"modalities": draw(st.none() | some), "join": draw(join)}
    rows, genes, own = None, None, {}
    match draw(st.sampled_from(["all", "axis", "condition", "condition"])):
        case "axis":
            asked["obs"] = draw(sts.selections(memory.obs_names))
            names = isinstance(asked["obs"], list) and any(isinstance(v, str) for v in asked["obs"])
            at = memory.obs_names.get_indexer(asked["obs"]) if names else asked["obs"]
            rows = np.arange(memory.n_obs)[np.asarray(at, int) if isinstance(at, list) else at]
        case "condition":
            asked["obs"], mask = draw(conditions(memory))
            rows = np.flatnonzero(mask)
    match draw(st.sampled_from(["all", "all", "mask", "own"])):
        case "mask":
            genes = np.flatnonzero(asked.setdefault("var", draw(sts.masks(memory.n_vars))))
        case "own":
            name = draw(st.sampled_from(asked["modalities"] or list(memory.mod)))
            mask = draw(sts.masks(memory[name].n_vars))
            asked["var"], own = {name: mask}, {name: np.flatnonzero(mask)}
    return Case(data, memory, asked, rows, genes, own)


@given(case=cases())
@property_test(20)
def test_it_is_what_mudata_gives(case: Case) -> None:
    expected, selection = case.expected(), case.selection()
    again = pickle.loads(pickle.dumps(selection))  # noqa: S301 - made here
    assert case.selection().count() == expected.n_obs
    table = case.selection().to_pandas()
    assert list(table.index) == list(expected.obs_names)
    for name in expected.obs:
        assert_equal(pd.DataFrame({"x": table[name]}).isna(), pd.DataFrame({"x": expected.obs[name]}).isna())
    plan = selection.explain()
    spent = selection.stats.n_requests, selection.stats.n_bytes
    assert_mudata_equal(selection.to_memory(), expected, sparse_layout="any")
    assert plan.n_requests == selection.stats.n_requests - spent[0]
    assert plan.n_bytes == selection.stats.n_bytes - spent[1] or not plan.exact
    assert (plan.n_obs, plan.n_vars) == expected.shape
    for name in expected.mod:
        assert_equal(selection[name].to_memory(), expected[name], sparse_layout="any")
    assert_mudata_equal(again.to_memory(), expected, sparse_layout="any")


@given(case=cases(), draw=st.data())
@property_test(12)
def test_lazily_too(case: Case, draw: st.DataObject) -> None:
    lazy, expected = case.selection().to_lazy(), case.expected()
    assert_mudata_equal(lazy.to_memory(), expected, sparse_layout="any")
    mask = draw.draw(sts.masks(expected.n_obs))
    assert_mudata_equal(lazy[mask].to_memory(), selected(expected, mask), sparse_layout="any")


@given(case=cases())
@property_test(12)
def test_in_the_order_of_storage(case: Case) -> None:
    assume(case.rows is not None)
    order = case.data.reader.orders(next(iter(case.data)))[0]
    order = np.arange(case.memory.n_obs) if order is None else order
    case.rows = order[np.sort(np.argsort(order)[case.rows])]  # what is asked for twice is given twice
    case.asked["order"] = "storage"
    assert_mudata_equal(case.selection().to_memory(), case.expected(), sparse_layout="any")
