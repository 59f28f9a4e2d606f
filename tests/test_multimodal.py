"""Queries across the modalities of a MuData store, against mudata in memory."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata as ad
import dask.array as da
import mudata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from mudatas import assert_mudata_equal, citeseq, modality, pulled, rows_of, selected
from oracle import assert_equal

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

type Chosen = Callable[..., mudata.MuData]
SORTED: dict[str, Any] = {
    "stored": (),
    "sorted by a modality": ["rna:cell_type"],
    "sorted by the whole": ["batch", "prot:n_counts"],
    "each sorted by its own": {"rna": ["cell_type"], "prot": ["n_counts"]},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, mudata.MuData]:
    """A store of three modalities as mudata writes it, and what it reads again: not to be changed."""
    path = tmp_path_factory.mktemp("mudata") / "mudata.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        citeseq().write_zarr(path)
        return path, mudata.read_zarr(path)


@pytest.fixture(scope="module", params=["by mudata", *SORTED])
def opened(
    request: pytest.FixtureRequest, written: tuple[Path, mudata.MuData], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, mudata.MuData]:
    """A store of three modalities, and what mudata reads of one that it has written."""
    path, memory = written
    if request.param == "by mudata":
        return lz.open(path), memory
    own = tmp_path_factory.mktemp("own") / "own.zarr"
    lz.convert(memory, own, sort_by=SORTED[request.param], progress=False)
    return lz.open(own), memory


@pytest.fixture(scope="module")
def chosen(written: tuple[Path, mudata.MuData]) -> Chosen:
    """What `selected` gives of it: once, as it is the same for every layout of the store."""
    made: dict[bytes, mudata.MuData] = {}

    def once(*arguments: Any, **options: Any) -> mudata.MuData:
        asked = pickle.dumps((arguments, options))
        if asked not in made:
            made[asked] = selected(written[1], *arguments, **options)
        return made[asked]

    return once


ROWS: dict[str, tuple[Any, str]] = {
    "global": ("batch == 'x'", "batch == 'x'"),
    "modality": ("rna:cell_type == 'T cell'", "`rna:cell_type` == 'T cell'"),
    "backticks": ("`rna:cell_type` == 'T cell'", "`rna:cell_type` == 'T cell'"),
    "two": (
        "rna:cell_type == 'T cell' and prot:n_counts > 500",
        "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500",
    ),
    "all three": (
        "batch != 'z' and prot:is_doublet and 100 < atac:n_counts <= 900",
        "batch != 'z' and `prot:is_doublet` and 100 < `atac:n_counts` <= 900",
    ),
    "sql": (
        "rna.cell_type = 'T cell' AND prot.n_counts > 500",
        "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500",
    ),
    "sql colon": ("rna:cell_type IN ('NK') AND batch = 'y'", "`rna:cell_type` == 'NK' and batch == 'y'"),
    "mapping": (
        {"rna:cell_type": ["NK", "B cell"], "batch": "x"},
        "`rna:cell_type` != 'T cell' and batch == 'x' and `rna:n_counts` >= 0",
    ),
    "polars": (pl.col("atac:score") > 0.5, "`atac:score` > 0.5"),
    "nothing": ("rna:n_counts < 0", "`rna:n_counts` < 0"),
}


@pytest.mark.parametrize("name", ROWS)
def test_predicates_on_any_modality(opened: tuple[Any, mudata.MuData], chosen: Chosen, name: str) -> None:
    data, memory = opened
    asked, condition = ROWS[name]
    mask = rows_of(memory, condition)
    selection = data.query(asked)
    assert selection.count() == mask.sum()
    assert_mudata_equal(selection.to_memory(), chosen(mask))


@pytest.mark.parametrize("join", ["outer", "inner"])
@pytest.mark.parametrize("modalities", [["prot"], ["rna", "atac"], ["atac", "rna", "prot"]])
@pytest.mark.parametrize("obs", [None, "rna:cell_type == 'T cell'"])
def test_modalities_and_joins(
    opened: tuple[Any, mudata.MuData], chosen: Chosen, obs: Any, modalities: list[str], join: Any
) -> None:
    data, memory = opened
    mask = None if obs is None else rows_of(memory, "`rna:cell_type` == 'T cell'")
    selection = data.query(obs, modalities=modalities, join=join)
    expected = chosen(mask, modalities=modalities, join=join)
    assert_mudata_equal(selection.to_memory(), expected)
    assert data.query(obs, modalities=modalities, join=join).count() == expected.n_obs
    assert list(selection.to_pandas().index) == list(expected.obs_names)


def values_of(adata: ad.AnnData, layer: str, feature: str) -> np.ndarray:
    matrix = adata[:, feature].X if layer == "X" else adata[:, feature].layers[layer]
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix).ravel()


FEATURES: dict[str, tuple[Any, dict[str, tuple[str, str, str]], str]] = {
    "of X": ("prot:CD3 > 2", {"f": ("prot", "X", "CD3")}, "f > 2"),
    "with columns": (
        "prot:CD3 > 2 and rna:n_counts > 500 and batch != 'x'",
        {"f": ("prot", "X", "CD3")},
        "f > 2 and `rna:n_counts` > 500 and batch != 'x'",
    ),
    "two modalities": (
        "prot:CD3 + prot:CD4 > rna:GENE7",
        {"a": ("prot", "X", "CD3"), "b": ("prot", "X", "CD4"), "c": ("rna", "X", "GENE7")},
        "a + b > c",
    ),
    "of a layer": ("rna:layers['counts'].GENE3 >= 4", {"f": ("rna", "counts", "GENE3")}, "f >= 4"),
    "in brackets": ("rna:X['GENE3'] >= 4", {"f": ("rna", "X", "GENE3")}, "f >= 4"),
    "in backticks": ("atac:`chr5` == 0", {"f": ("atac", "X", "chr5")}, "f == 0"),
    "sql": ("prot.CD3 > 2 AND rna.n_counts > 500", {"f": ("prot", "X", "CD3")}, "f > 2 and `rna:n_counts` > 500"),
    "polars": (pl.col("prot:CD3") > 2, {"f": ("prot", "X", "CD3")}, "f > 2"),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("modalities", [None, ["atac"]])
def test_features_of_any_modality(
    opened: tuple[Any, mudata.MuData], chosen: Chosen, name: str, modalities: Any
) -> None:
    data, memory = opened
    asked, features, condition = FEATURES[name]
    table = pulled(memory)
    for column, (name_of, layer, feature) in features.items():
        values = values_of(memory.mod[name_of], layer, feature)
        table[column] = pd.Series(values, memory.mod[name_of].obs_names).astype("Float64").reindex(table.index)
    mask = table.eval(condition).fillna(value=False).to_numpy(bool)
    assert mask.any()
    selection = data.query(asked, modalities=modalities)
    assert_mudata_equal(selection.to_memory(), chosen(mask, modalities=modalities))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cell_type == 'T cell'", "write rna:cell_type or prot:cell_type"),
        ("rna:cell_typ == 'T cell'", "'cell_type'"),
        ("prot:CD33 > 1", "prot:obs has no column 'CD33' and X no feature of that name"),
        ("gex:n_counts > 1", "rna:…"),
        ("rna:layers['count'].GENE3 > 1", "'counts'"),
        ("nothing > 1", "rna:…"),
    ],
)
def test_what_is_named_and_not_there(opened: tuple[Any, mudata.MuData], asked: str, said: str) -> None:
    with pytest.raises(errors.NotFoundError, match="has no") as caught:
        opened[0].query(asked).count()
    assert said in str(caught.value)


GENES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "global names": (["GENE7", "CD3", "chr1", "GENE2"], ["GENE7", "CD3", "chr1", "GENE2"], {}),
    "global predicate": ("rna:highly_variable", "`rna:highly_variable`", {}),
    "by modality": ({"rna": ["GENE5", "GENE1"], "prot": "all"}, None, {"rna": ["GENE5", "GENE1"]}),
    "predicate of a modality": ({"rna": "highly_variable", "atac": []}, None, {"rna": "highly_variable", "atac": []}),
    "slice": ({"atac": slice(3, 9)}, None, {"atac": slice(3, 9)}),
}


@pytest.mark.parametrize("name", GENES)
@pytest.mark.parametrize("obs", [None, "rna:cell_type == 'T cell'"])
@pytest.mark.parametrize("modalities", [None, ["rna", "prot"]])
def test_genes(opened: tuple[Any, mudata.MuData], chosen: Chosen, name: str, obs: Any, modalities: Any) -> None:
    data, memory = opened
    asked, var, var_of = GENES[name]
    if isinstance(var, str):
        flag = memory.mod["rna"].var["highly_variable"].reindex(memory.var_names)
        var = (flag == True).to_numpy(bool)  # noqa: E712 - missing is false
    own = {m: memory.mod[m].var[s].to_numpy() if isinstance(s, str) else s for m, s in var_of.items()}
    mask = None if obs is None else rows_of(memory, "`rna:cell_type` == 'T cell'")
    expected = chosen(mask, var, var_of=own, modalities=modalities)
    assert_mudata_equal(data.query(obs, asked, modalities=modalities).to_memory(), expected)


@pytest.mark.parametrize("asked", [None, "rna:cell_type == 'T cell'", "prot:CD3 > 2"])
@pytest.mark.parametrize("var", [None, {"rna": ["GENE5", "GENE1"]}])
def test_explain_tells_what_is_read(opened: tuple[Any, mudata.MuData], asked: Any, var: Any) -> None:
    selection = opened[0].query(asked, var, modalities=["rna", "prot"])
    plan = selection.explain()
    spent = selection.stats.n_requests, selection.stats.n_bytes
    memory = selection.to_memory()
    read = selection.stats.n_requests - spent[0], selection.stats.n_bytes - spent[1]
    assert plan.n_requests == read[0]
    assert plan.n_bytes == read[1] or not plan.exact
    assert (plan.n_obs, plan.n_vars) == memory.shape
    assert {a.path.split("/")[1] for a in plan.arrays if a.path.startswith("mod/")} == {"rna", "prot"}


def test_a_budget_is_kept(opened: tuple[Any, mudata.MuData]) -> None:
    with pytest.raises(errors.BudgetError, match="max_bytes"):
        opened[0].query("rna:cell_type == 'T cell'", max_bytes=100).to_memory()


@pytest.mark.parametrize("asked", [None, "rna:cell_type == 'T cell'"])
def test_lazy_equals_memory(opened: tuple[Any, mudata.MuData], chosen: Chosen, asked: Any) -> None:
    data, memory = opened
    mask = None if asked is None else rows_of(memory, "`rna:cell_type` == 'T cell'")
    lazy = data.query(asked).to_lazy()
    expected = memory if mask is None else chosen(mask)
    assert isinstance(lazy, mudata.MuData)
    assert isinstance(lazy["rna"].X, da.Array)
    assert isinstance(lazy["rna"].layers["counts"], da.Array)
    assert lazy.shape == expected.shape
    assert_mudata_equal(lazy.to_memory(), expected)
    assert_mudata_equal(lazy.copy().to_memory(), expected)


def test_a_lazy_subset_stays_lazy_and_reads_only_what_is_left(
    opened: tuple[Any, mudata.MuData], chosen: Chosen
) -> None:
    data, memory = opened
    lazy = data.to_lazy()
    mask = rows_of(memory, "`rna:cell_type` == 'T cell'")
    genes = ["GENE7", "CD3", "chr1"]
    part = lazy[mask, genes]
    assert isinstance(part["rna"].X, da.Array)
    assert part.n_obs == mask.sum()
    assert part.obsmap["prot"].shape == (part.n_obs,)
    assert_mudata_equal(part.to_memory(), chosen(mask, genes))
    assert_mudata_equal(part[:10].to_memory(), selected(chosen(mask, genes), slice(0, 10)))


def test_one_modality_of_a_selection(opened: tuple[Any, mudata.MuData], chosen: Chosen) -> None:
    data, memory = opened
    mask = rows_of(memory, "`rna:cell_type` == 'T cell'")
    expected = chosen(mask).mod["prot"]
    selection = data.query("rna:cell_type == 'T cell'")["prot"]
    assert_equal(selection.to_memory(), expected)
    assert_equal(ad.concat(list(selection.batches(7))).X, expected.X)
    sums = selection.aggregate("cell_type")
    oracle = pd.DataFrame(expected.X).groupby(expected.obs["cell_type"].to_numpy(), observed=True).sum()
    np.testing.assert_allclose(sums.X, oracle.to_numpy(), rtol=1e-6)
    with pytest.raises(errors.NotFoundError, match="'prott'"):
        data.query(modalities=["rna", "prot"])["prott"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT rna.cell_type AS t, count(*) AS n FROM obs WHERE prot.n_counts > 500 GROUP BY t ORDER BY t",
        'SELECT rna:cell_type AS t, count(*) AS n FROM obs WHERE "prot:n_counts" > 500 GROUP BY t ORDER BY t',
    ],
)
def test_sql_across_modalities(opened: tuple[Any, mudata.MuData], query: str) -> None:
    data, memory = opened
    table = pulled(memory)
    counted = table[(table["prot:n_counts"] > 500).fillna(value=False)].groupby("rna:cell_type", observed=True).size()
    assert data.sql(query).rows() == sorted(counted.items())


def test_sql_tables_of_modalities(opened: tuple[Any, mudata.MuData]) -> None:
    data, memory = opened
    flagged = memory.mod["rna"].var["highly_variable"].sum()
    assert data.sql("SELECT count(*) AS n FROM rna_var WHERE highly_variable").item() == flagged
    joined = data.sql("SELECT count(*) AS n FROM rna JOIN prot ON rna.index = prot.index WHERE rna.cell_type = 'NK'")
    both = memory.mod["rna"].obs.loc[memory.mod["prot"].obs_names, "cell_type"]
    assert joined.item() == (both == "NK").sum()
    whole = data.sql("SELECT obs WHERE rna.cell_type = 'NK' AND batch = 'x'")
    assert whole.height == rows_of(memory, "`rna:cell_type` == 'NK' and batch == 'x'").sum()
    assert "prot:n_counts" in whole.columns


def test_the_table_of_a_selection(opened: tuple[Any, mudata.MuData]) -> None:
    data, memory = opened
    mask = rows_of(memory, "`rna:cell_type` == 'NK'")
    table = data.query("rna:cell_type == 'NK'", obs_columns=["batch", "prot:n_counts"]).to_pandas()
    assert list(table.columns) == ["batch", "prot:n_counts"]
    expected = pulled(memory).loc[mask, "prot:n_counts"]
    assert table["prot:n_counts"].astype("Int64").tolist() == expected.tolist()
    whole = data.query("rna:cell_type == 'NK'", modalities=["rna"]).to_pandas()
    assert [c for c in whole.columns if ":" in c] == [f"rna:{c}" for c in memory.mod["rna"].obs.columns]


def test_elements_by_name(opened: tuple[Any, mudata.MuData]) -> None:
    data, memory = opened
    found = data.query(layers=["rna:counts"], obsm=["X_joint"], uns=False, X={"atac": False}).to_memory()
    assert [k for k in found["rna"].layers if k] == ["counts"]
    assert [k for k in found["prot"].layers if k] == []
    assert "X_pca" not in found["rna"].obsm
    np.testing.assert_array_equal(found.obsm["X_joint"], memory.obsm["X_joint"])
    assert found["atac"].X is None
    assert found["rna"].X is not None
    assert not found.uns
    with pytest.raises(errors.NotFoundError, match="X_pca"):
        data.query(obsm=["X_pac"])
    with pytest.raises(errors.NotFoundError, match="'atac'"):
        data.query(layers={"attac": []})


def test_a_dataset_and_a_selection_travel(opened: tuple[Any, mudata.MuData], chosen: Chosen) -> None:
    data, memory = opened
    sent = pickle.dumps(data)
    assert len(sent) < 2_000
    again = pickle.loads(sent)  # noqa: S301 - made here
    mask = rows_of(memory, "`rna:cell_type` == 'NK'")
    assert_mudata_equal(again.query("rna:cell_type == 'NK'").to_memory(), chosen(mask))
    part = pickle.loads(pickle.dumps(data.query("rna:cell_type == 'NK'")["prot"]))  # noqa: S301 - made here
    assert_equal(part.to_memory(), chosen(mask).mod["prot"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"join": "left"}, "'outer' or 'inner'"),
        ({"order": "random"}, "'source' or 'storage'"),
        ({"modalities": "rna"}, "expected a list"),
        ({"modalities": []}, "expected a list"),
        ({"modalities": 5}, "expected a list"),
        ({"layers": [3]}, "expected a list"),
        ({"obsm": 3}, "expected a list"),
        ({"modalities": ["rnaa"]}, "Did you mean 'rna'"),
        ({"layer": []}, "Did you mean 'layers'"),
        ({"X": ["rna"]}, "true or false"),
        ({"var": {"rna": [], "port": []}}, "Did you mean 'prot'"),
    ],
)
def test_bad_options(opened: tuple[Any, mudata.MuData], options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.LobsterZarrError, match=said):
        opened[0].query(**options)


def test_it_shows_its_modalities(opened: tuple[Any, mudata.MuData]) -> None:
    data, _ = opened
    assert list(data.modalities) == ["rna", "prot", "atac"] == list(data)
    assert data["rna"].shape == (300, 60)
    assert data.shape == (305, 112)
    for text in (repr(data), data._repr_html_()):
        assert all(name in text for name in ("rna", "prot", "atac", "X_joint", "300"))
    assert data.info().to_dict()["modalities"]["prot"]["n_vars"] == 12
    with pytest.raises(errors.NotFoundError, match="Did you mean 'prot'"):
        data["port"]


def parts_of(*names: str) -> mudata.MuData:
    rng, cells = np.random.default_rng(0), np.asarray([f"cell{i}" for i in range(20)], object)
    return mudata.MuData({name: modality(rng, cells[i:], 4, f"{name}-G") for i, name in enumerate(names)})


def stored(data: mudata.MuData, path: Path) -> Any:
    lz.convert(data, path / "a.zarr", progress=False)
    return lz.open(path / "a.zarr")


def test_a_selection_travels(opened: tuple[Any, mudata.MuData]) -> None:
    data, _ = opened
    selection = data.query("rna:cell_type == 'NK' and prot:CD3 > 2", modalities=["prot"], join="inner")
    fresh = pickle.dumps(selection)
    found = selection.to_memory()
    for sent in (fresh, pickle.dumps(selection)):
        again = pickle.loads(sent)  # noqa: S301 - made here
        assert again.stats.n_requests == 0
        assert again.count() == found.n_obs
        assert_mudata_equal(again.to_memory(), found)


def test_the_budget_holds_for_one_modality(opened: tuple[Any, mudata.MuData]) -> None:
    with pytest.raises(errors.BudgetError, match="max_bytes"):
        opened[0].query("rna:cell_type == 'T cell'", max_bytes=100)["rna"].to_memory()


def test_one_selection_from_many_threads(opened: tuple[Any, mudata.MuData], chosen: Chosen) -> None:
    data, memory = opened
    selection = data.query("rna:cell_type == 'T cell'")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: selection.to_memory(), range(4)))
    expected = chosen(rows_of(memory, "`rna:cell_type` == 'T cell'"))
    for each in found:
        assert_mudata_equal(each, expected)


def test_modalities_of_any_name(tmp_path: Path) -> None:
    names = ("obs", "a", "a:b", "my rna", "X")
    data = stored(source := parts_of(*names), tmp_path)
    for name in names:
        assert data.query(f"`{name}:n_counts` > 500").count() == (source[name].obs["n_counts"] > 500).sum()
        feature = f"{name}:{name}-G1"
        more = values_of(source[name], "X", f"{name}-G1") > 0
        assert data.query(f"`{feature}` > 0").count() == data.query(pl.col(feature) > 0).count() == more.sum()
    assert data.sql('SELECT "obs:n_counts", "a:b:n_counts" FROM obs').height == source.n_obs
    assert data.sql("SELECT * FROM obs").width == 1 + sum(part.obs.shape[1] for part in source.mod.values())


def test_sql_of_several_tables(opened: tuple[Any, mudata.MuData]) -> None:
    data, memory = opened
    n_pairs = memory.n_obs * memory["prot"].n_obs
    assert data.sql("SELECT o.batch FROM obs o CROSS JOIN prot").height == n_pairs
    assert data.sql("SELECT 1 AS one FROM obs, prot").height == n_pairs
    query = "SELECT rna.n_counts, prot.n_counts AS n FROM rna, prot WHERE rna.index = prot.index"
    assert data.sql(query).height == memory["prot"].n_obs
    users = pl.DataFrame({"kind": ["x", "y"], "n": [1, 2]})
    joined = data.sql("SELECT rna.cell_type, n FROM obs o JOIN users ON o.batch = users.kind", users=users)
    assert joined.height == memory.obs["batch"].isin(["x", "y"]).sum()


def test_the_names_of_a_modality_are_no_column(opened: tuple[Any, mudata.MuData]) -> None:
    with pytest.raises(errors.NotFoundError, match="prot:obs has no column 'index'") as caught:
        opened[0].query("prot:index == 'cell1'").count()
    assert "mean 'index'" not in str(caught.value)


def test_what_is_shown_is_short(opened: tuple[Any, mudata.MuData]) -> None:
    names = [f"cell{i}" for i in range(300)]
    assert len(repr(opened[0].query(names, {"rna": names}))) < 1_000
    with pytest.raises(errors.NotFoundError) as caught:
        opened[0].query(obs_columns=["nothing"])
    assert len(str(caught.value)) < 400


def test_names_that_are_not_unique_are_lazy_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = parts_of("rna", "prot")
        source["prot"].var_names = source["rna"].var_names
        source = mudata.MuData(dict(source.mod))
    data = stored(source, tmp_path)
    assert_mudata_equal(data.to_lazy().copy().to_memory(), data.to_memory())
