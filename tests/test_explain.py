"""What explain() tells is what is then fetched; budgets refuse before anything of X is read."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lobster_zarr.dataset import Dataset

_numbers = itertools.count()
N_OBS, N_VARS = 3_000, 400


@pytest.fixture(scope="module")
def atlas() -> ad.AnnData:
    rng = np.random.default_rng(0)
    types = np.array(["B cell", "NK", "T cell", "monocyte"])
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(1.2, (N_OBS, N_VARS)).astype(np.float32)),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(rng.choice(types, N_OBS, p=[0.3, 0.2, 0.1, 0.4])),
                "n_counts": rng.integers(0, 1_000, N_OBS),
            },
            index=[f"cell-{i}" for i in range(N_OBS)],
        ),
        var=pd.DataFrame(index=[f"gene-{i}" for i in range(N_VARS)]),
        obsm={"X_umap": rng.normal(size=(N_OBS, 2)).astype(np.float32)},
        uns={"title": "atlas"},
    )


@pytest.fixture(scope="module", params=["sorted", "unsorted"])
def uri(request: pytest.FixtureRequest, atlas: ad.AnnData) -> Iterator[str]:
    where = f"memory://explain-{next(_numbers)}"
    lz.convert(atlas, where, sort_by=["cell_type"] if request.param == "sorted" else [], progress=False)
    return where


QUERIES: dict[str, dict[str, Any]] = {
    "a cell type": {"obs": "cell_type == 'T cell'"},
    "scattered": {"obs": "n_counts < 50"},
    "one gene": {"var": ["gene-7"]},
    "genes of a cell type": {"obs": {"cell_type": "NK"}, "var": ["gene-3", "gene-1"]},
    "nothing": {"obs": "n_counts > 5000"},
    "everything": {},
    "X alone": {"obs": "cell_type == 'T cell'", "obsm": [], "uns": False, "obs_columns": [], "var_columns": []},
}


@pytest.mark.parametrize("name", QUERIES)
def test_what_is_told_is_what_is_fetched(uri: str, name: str) -> None:
    selection = lz.open(uri).query(**QUERIES[name])
    plan = selection.explain()
    assert plan.exact
    assert (selection.stats.n_requests, selection.stats.n_bytes) == (plan.spent_requests, plan.spent_bytes)
    result = selection.to_memory()
    fetched = selection.stats.n_requests - plan.spent_requests, selection.stats.n_bytes - plan.spent_bytes
    assert fetched == (plan.n_requests, plan.n_bytes)
    assert (plan.n_obs, plan.n_vars) == result.shape
    assert sum(a.n_bytes for a in plan.arrays) == plan.n_bytes


def test_explaining_reads_nothing_of_x(uri: str) -> None:
    data = lz.open(uri)
    data.query("cell_type == 'T cell'", ["gene-7"]).explain()
    values = {p for p in data.stats.by_array if p.endswith(("/data", "/indices"))}
    for path in values:  # at most a shard's index
        assert data.stats.by_array[path][1] <= data.tree.array(path).index_bytes * data.stats.by_array[path][0]


def test_the_cheaper_layout_is_taken(uri: str) -> None:
    def chosen(**query: Any) -> str:
        return next(iter(lz.open(uri).query(**query).explain().layouts["X"]))

    assert chosen(var=["gene-7"]) == "gene-major"
    assert chosen(obs=[5], var=slice(0, N_VARS - 1)) == "row-major"


def test_a_second_query_costs_only_its_chunks(uri: str) -> None:
    data = lz.open(uri)
    data.query("cell_type == 'NK'").to_memory()
    again = data.query("cell_type == 'T cell'")
    again.to_memory()
    assert not {p for p in again.stats.by_array if p.endswith(("/indptr", "_chunk_sizes"))}


@pytest.mark.parametrize(
    ("predicate", "note"),
    [
        (
            "cell_type == 'T cel' and n_counts > 5",
            "no row matches cell_type == 'T cel'. Did you mean 'T cell' or 'B cell'?",
        ),
        ("cell_type == 'NK' and n_counts > 9999", "no row matches n_counts > 9999."),
        ("cell_type == 'NK' and cell_type == 'T cell'", "each clause matches rows, but no row matches all of them."),
        ("cell_type = 'monocytes'", "no row matches cell_type = 'monocytes'. Did you mean 'monocyte'?"),
    ],
)
def test_an_empty_answer_says_why(uri: str, predicate: str, note: str) -> None:
    selection = lz.open(uri).query(predicate)
    assert selection.count() == 0
    assert selection.notes == (note,)
    assert selection.explain().notes == (note,)


@pytest.mark.parametrize("limit", ["max_bytes", "memory_limit"])
def test_a_query_over_budget_is_refused(uri: str, limit: str) -> None:
    data: Dataset = lz.open(uri)
    options: dict[str, Any] = {limit: 10_000}
    with pytest.raises(BudgetError, match=limit):
        data.query(None, **options).to_memory()
    assert data.query([3], **{limit: 50_000_000}).to_memory().n_obs == 1


def test_the_plan_shows_itself(uri: str) -> None:
    plan = lz.open(uri).query("cell_type == 'T cell'", ["gene-7"]).explain()
    told = json.loads(json.dumps(plan.to_dict()))
    assert told["n_bytes"] == plan.n_bytes
    assert [a["path"] for a in told["arrays"]] == [a.path for a in plan.arrays]
    assert f"{plan.n_requests} requests" in str(plan)
    assert "gene-major" in str(plan)
    assert "<table" in plan._repr_html_()
    assert plan.seconds > 0
    assert plan.dollars > 0
    assert plan.memory_bytes >= plan.n_bytes


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.data(), adata=strategies.anndatas())
def test_told_is_fetched_for_whatever_is_stored(drawn: st.DataObject, adata: ad.AnnData) -> None:
    where = f"memory://explain-{next(_numbers)}"
    lz.convert(adata, where, sort_by=drawn.draw(strategies.sort_keys(adata.obs)), progress=False)
    rows = drawn.draw(strategies.masks(adata.n_obs))
    genes = drawn.draw(strategies.masks(adata.n_vars))
    selection = lz.open(where).query(rows, genes)
    plan = selection.explain()
    selection.to_memory()
    fetched = selection.stats.n_requests - plan.spent_requests, selection.stats.n_bytes - plan.spent_bytes
    assert plan.exact
    assert fetched == (plan.n_requests, plan.n_bytes)


@pytest.mark.parametrize("query", [{"obs": "n_counts < 20"}, {"var": ["gene-7"]}], ids=["cells", "gene"])
def test_a_store_of_anndatas_own_is_told_what_it_lacks(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, Any]
) -> None:
    monkeypatch.setattr("lobster_zarr.explain.EXCESS_BYTES", 10_000)
    atlas.write_zarr(tmp_path / "plain.zarr")
    lz.convert(atlas, tmp_path / "ours.zarr", progress=False)
    plain, ours = (lz.open(tmp_path / f"{name}.zarr").query(**query).explain() for name in ("plain", "ours"))
    notes = [n for n in plain.notes if n.startswith("X: ")]
    assert len(notes) == 1
    assert ("by gene" in notes[0]) == ("var" in query)
    assert ("places" in notes[0]) == ("obs" in query)
    assert notes[0] in " ".join(str(plain).split()), "it may be wrapped"
    assert not [n for n in ours.notes if "by gene" in n]


def test_a_result_that_is_reordered_is_in_memory_twice(atlas: ad.AnnData) -> None:
    lz.convert(atlas, "memory://explain-reordered", sort_by=["cell_type"], progress=False)
    data = lz.open("memory://explain-reordered")

    def needed(obs: str | None, order: Any) -> int:
        return data.query(obs, order=order).explain().memory_bytes

    assert 1.5 * needed("n_counts < 500", "storage") < needed("n_counts < 500", "source")
    assert needed(None, "storage") == needed(None, "source"), "all rows go straight to their places"
    assert needed("cell_type == 'NK'", "storage") == needed("cell_type == 'NK'", "source")
