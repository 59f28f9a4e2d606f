"""Cells chosen by the values of features (genes): against AnnData in memory, and what that reads."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import tiny_chunks
from oracle import assert_equal, sliced
from oracle import stored as as_stored
from recording import RecordingStore
from scipy import sparse
from zarr.storage import LocalStore

import lobster_zarr as lz
from lobster_zarr._feature import Feature
from lobster_zarr.errors import InvalidPredicateError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_numbers = itertools.count()
N_OBS = 400
GENES = ["CD3D", "HLA-DRA", "AC004.1", "X.1", "class", "in", "donor", "it's", "é λ", "MS4A1", "None", "1"]
TYPES = ["B cell", "NK", "T cell"]


def cells(make: Callable[[np.ndarray], Any] = sparse.csr_matrix, dtype: str = "float32") -> ad.AnnData:
    """Cells of 40 genes, with NaN and stored zeros among them where the type has NaN; `make` makes X."""
    rng = np.random.default_rng(0)
    names = [*GENES, *(f"gene-{i}" for i in range(40 - len(GENES)))]
    counts = rng.poisson(0.8, (N_OBS, len(names)))
    values = (counts > 0 if dtype == "bool" else counts / 2 if dtype[0] == "f" else counts).astype(dtype)
    if values.dtype.kind == "f":
        values[rng.random(values.shape) < 0.05] = np.nan
    obs = {
        "cell_type": pd.Categorical(rng.choice(TYPES, N_OBS, p=[0.6, 0.3, 0.1])),
        "donor": pd.Categorical(rng.choice(["d1", "d2"], N_OBS)),
        "n_counts": rng.integers(0, 6, N_OBS),
        "cell cycle": pd.Categorical(rng.choice(["G1", "S"], N_OBS)),
    }
    return ad.AnnData(
        make(values),
        obs=pd.DataFrame(obs, index=[f"cell-{i}" for i in range(N_OBS)]),
        var=pd.DataFrame({"mean": rng.random(len(names))}, index=names),
        layers={"counts": sparse.csr_matrix(counts.astype("uint8")), "dense": counts.astype("int16") - 2},
    )


def converted(adata: ad.AnnData, **options: Any) -> lz.Dataset:
    uri = f"memory://features-{next(_numbers)}"
    with tiny_chunks(chunk=32, noted_bytes=1 << 16):
        lz.convert(adata, uri, progress=False, **options)
    dataset: lz.Dataset = lz.open(uri)
    return dataset


def values(adata: ad.AnnData, gene: str, layer: str | None = None) -> np.ndarray:
    """The oracle: one feature as AnnData holds it, dense."""
    matrix = adata.layers[layer] if layer else adata.X
    column = matrix[:, [adata.var_names.get_loc(gene)]]
    return (column.toarray() if sparse.issparse(column) else np.asarray(column)).ravel()


SORTED: dict[str, Any] = {"sort_by": ["cell_type"], "gene_major": True}
STORES: dict[str, tuple[ad.AnnData, dict[str, Any]]] = {
    "sorted, by gene": (cells(), SORTED),
    "sorted": (cells(), {"sort_by": ["cell_type"], "gene_major": False}),
    "unsorted, by gene": (cells(), {"gene_major": True}),
    "unsorted": (cells(), {"gene_major": False}),
    "CSC": (cells(sparse.csc_matrix), {}),
    "dense": (cells(np.asarray), {"sort_by": ["cell_type"]}),
    "int64": (cells(dtype="int64"), SORTED),
    "float16": (cells(np.asarray, dtype="float16"), {}),
    "bool": (cells(dtype="bool"), SORTED),
}


@pytest.fixture(scope="module")
def opened() -> dict[str, lz.Dataset]:
    return {name: converted(adata, **options) for name, (adata, options) in STORES.items()}


def conditions(adata: ad.AnnData) -> list[tuple[Any, np.ndarray]]:
    """Predicates in every spelling, and the rows that numpy keeps."""
    obs, is_t = adata.obs, (adata.obs["cell_type"] == "T cell").to_numpy()
    cd3d, hla = values(adata, "CD3D").astype(float), values(adata, "HLA-DRA").astype(float)
    counts = values(adata, "CD3D", "counts")
    return [
        ("CD3D > 0 and cell_type == 'T cell'", (cd3d > 0) & is_t),
        ("CD3D > 0 AND cell_type = 'T cell'", (cd3d > 0) & is_t),
        ("CD3D > 0 or cell_type == 'T cell'", (cd3d > 0) | is_t),
        ("not CD3D > 0", ~(cd3d > 0)),
        (pl.col("CD3D") > 0, cd3d > 0),
        (pl.col("layers['counts'].HLA-DRA") > 1, values(adata, "HLA-DRA", "counts") > 1),
        ({"CD3D": 0}, cd3d == 0),
        ({"X['CD3D']": [0, 1], "donor": "d1"}, np.isin(cd3d, [0, 1]) & (obs["donor"] == "d1").to_numpy()),
        ("`HLA-DRA` > 0", hla > 0),
        ("X['HLA-DRA'] > 0 and obs['cell cycle'] == 'S'", (hla > 0) & (obs["cell cycle"] == "S").to_numpy()),
        ("\"HLA-DRA\" > 0 AND donor = 'd2'", (hla > 0) & (obs["donor"] == "d2").to_numpy()),
        ("X.CD3D != 0", cd3d != 0),
        ("layers['counts'].CD3D > 2", counts > 2),
        ("layers[\"counts\"]['HLA-DRA'] > 2", values(adata, "HLA-DRA", "counts") > 2),
        ("layers['counts'].`HLA-DRA` > 2", values(adata, "HLA-DRA", "counts") > 2),
        ("layers['dense']['AC004.1'] < 0", values(adata, "AC004.1", "dense") < 0),
        ("layers['counts'].CD3D > layers['dense'].CD3D + 1.5", counts > values(adata, "CD3D", "dense") + 1.5),
        ("layers['counts'].CD3D - 3 < layers['counts'].MS4A1", counts - 3.0 < values(adata, "MS4A1", "counts")),
        ("layers['dense'].CD3D.abs() == 2", np.abs(values(adata, "CD3D", "dense")) == 2),
        ("layers['counts'].CD3D.between(1, 2)", (counts >= 1) & (counts <= 2)),
        ("layers['counts'].CD3D in [1, 3]", np.isin(counts, [1, 3])),
        ("0 < layers['counts'].CD3D <= n_counts", (counts > 0) & (counts <= obs["n_counts"].to_numpy())),
        ("`X.1` > 0 and `AC004.1` > 0", (values(adata, "X.1") > 0) & (values(adata, "AC004.1") > 0)),
        ("X['class'] > 0 and `in` > 0", (values(adata, "class") > 0) & (values(adata, "in") > 0)),
        ("X[\"it's\"] > 0 or X['None'] > 0", (values(adata, "it's") > 0) | (values(adata, "None") > 0)),
        ("`é λ` > 0 and X['1'] > 0", (values(adata, "é λ") > 0) & (values(adata, "1") > 0)),
        ("donor == 'd1' and X['donor'] > 0", (obs["donor"] == "d1").to_numpy() & (values(adata, "donor") > 0)),
        ("obs['donor'] == 'd1'", (obs["donor"] == "d1").to_numpy()),
        ("CD3D.isna() or index in ['cell-3']", np.isnan(cd3d) | (obs.index == "cell-3")),
        ("CD3D > 0 IS NULL", np.isnan(cd3d)),
        ("NOT (CD3D > 0 OR donor = 'd2')", ~(cd3d > 0) & ~np.isnan(cd3d) & (obs["donor"] == "d1").to_numpy()),
        (pl.col("CD3D") == pl.col("CD3D").max(), cd3d == np.nanmax(cd3d)),
    ]


@pytest.mark.parametrize("name", STORES)
def test_the_cells_are_those_that_anndata_keeps(opened: dict[str, lz.Dataset], name: str) -> None:
    adata = STORES[name][0]
    for condition, kept in conditions(adata):
        selection = opened[name].query(condition)
        assert selection.count() == kept.sum(), condition
        assert list(selection.to_pandas().index) == list(adata.obs_names[kept]), condition


def test_a_boolean_feature_is_true_or_false(opened: dict[str, lz.Dataset]) -> None:
    adata = STORES["bool"][0]
    kept = values(adata, "CD3D") & ~values(adata, "MS4A1")
    assert opened["bool"].query("CD3D and not MS4A1").count() == kept.sum()


@pytest.mark.parametrize("name", ["sorted, by gene", "unsorted"])
@pytest.mark.parametrize("genes", [None, ["MS4A1", "CD3D"], "mean > 2", "mean > 0.5"], ids=str)
def test_every_way_to_take_the_selection(opened: dict[str, lz.Dataset], name: str, genes: Any) -> None:
    adata = as_stored(STORES[name][0])
    kept = (values(adata, "CD3D") > 0) & (adata.obs["cell_type"] == "T cell").to_numpy()
    columns = slice(None) if genes is None else genes
    if isinstance(genes, str):
        columns = adata.var.eval(genes).to_numpy()
    expected = sliced(adata, kept, columns)
    dataset = lz.open(opened[name].uri)
    selection = dataset.query("CD3D > 0 and cell_type == 'T cell'", var=genes)
    assert_equal(selection.to_memory(), expected, sparse_layout="any")
    assert_equal(selection.to_lazy().to_memory(), expected, sparse_layout="any")
    assert_equal(ad.concat(list(selection.batches(7))).layers["dense"], expected.layers["dense"])
    sums = selection.aggregate(None, "sum", client=False, path="layers/dense")
    assert sums.X.ravel().tolist() == expected.layers["dense"].sum(axis=0).tolist()


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("genes", [None, ["CD3D", "gene-3"]], ids=str)
def test_what_is_told_is_what_is_fetched(opened: dict[str, lz.Dataset], name: str, genes: Any) -> None:
    selection = lz.open(opened[name].uri).query("CD3D > 0 and cell_type == 'T cell'", var=genes)
    plan = selection.explain()
    assert (selection.stats.n_requests, selection.stats.n_bytes) == (plan.spent_requests, plan.spent_bytes)
    assert plan.spent_requests > 0
    result = selection.to_memory()
    fetched = selection.stats.n_requests - plan.spent_requests, selection.stats.n_bytes - plan.spent_bytes
    assert fetched == (plan.n_requests, plan.n_bytes)
    assert (plan.n_obs, plan.n_vars) == result.shape


# ---- random conditions


@st.composite
def clauses(draw: st.DrawFn, adata: ad.AnnData) -> tuple[str, np.ndarray]:
    sign = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    compare |= {"==": np.equal, "!=": np.not_equal}
    bound = draw(st.sampled_from([0, 0.5, 1, 2, 7]))
    if draw(st.integers(0, 2)):
        gene = draw(st.sampled_from(GENES))
        layer = draw(st.sampled_from([None, "counts", "dense"]))
        column = values(adata, gene, layer)
        spelled = f"layers[{layer!r}][{gene!r}]" if layer else f"X[{gene!r}]"
    elif draw(st.booleans()):
        column, spelled = adata.obs["n_counts"].to_numpy(), "n_counts"
    else:
        kind = draw(st.sampled_from([*TYPES, "nobody"]))
        equal = (adata.obs["cell_type"] == kind).to_numpy()
        sign = "==" if "<" in sign or ">" in sign else sign
        return f"cell_type {sign} {kind!r}", equal if sign == "==" else ~equal
    return f"{spelled} {sign} {bound}", compare[sign](column.astype(float), bound)


@st.composite
def questions(draw: st.DrawFn, adata: ad.AnnData) -> tuple[str, np.ndarray]:
    text, kept = draw(clauses(adata))
    for _ in range(draw(st.integers(0, 3))):
        other, also = draw(clauses(adata))
        if draw(st.booleans()):
            other, also = f"not {other}", ~also
        text, kept = (
            (f"({text}) and {other}", kept & also) if draw(st.booleans()) else (f"({text}) or {other}", kept | also)
        )
    return text, kept


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["sorted, by gene", "sorted", "unsorted, by gene", "dense"]))
def test_any_condition(opened: dict[str, lz.Dataset], data: st.DataObject, name: str) -> None:
    adata = STORES[name][0]
    text, kept = data.draw(questions(adata))
    selection = opened[name].query(text)
    assert list(selection.to_pandas().index) == list(adata.obs_names[kept])
    assert bool(selection.notes) == (not kept.any())


@given(st.sampled_from(["X", "layers/counts", "layers/it's", "layers/a.b"]), st.text())
def test_a_spelling_stands_for_one_feature(path: str, name: str) -> None:
    feature = Feature(path, name)
    assert Feature.of(feature.spelled) == feature or not name


# ---- what is read


def recorded(adata: ad.AnnData, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Callable[[], Any]:
    with tiny_chunks(chunk=256, shard_chunks=2_048, noted_chunks=16, noted_bytes=256):
        lz.convert(adata, path, progress=False, **options)

    def cold() -> tuple[lz.Dataset, RecordingStore]:
        store = RecordingStore(LocalStore(path, read_only=True))
        monkeypatch.setattr("lobster_zarr.multimodal.open_readable", lambda *_: store)
        return lz.open(path), store

    return cold


def wide(n_obs: int = 4_000, n_vars: int = 600) -> ad.AnnData:
    rng = np.random.default_rng(1)
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(0.3, (n_obs, n_vars)).astype("float32")),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(rng.choice(TYPES, n_obs)), "n_counts": rng.integers(0, 9, n_obs)},
            index=[f"cell-{i}" for i in range(n_obs)],
        ),
        var=pd.DataFrame({"mean": rng.random(n_vars)}, index=[f"gene-{i}" for i in range(n_vars)]),
        obsm={"X_umap": rng.normal(size=(n_obs, 2))},
        layers={"X2": sparse.csr_matrix(rng.poisson(0.3, (n_obs, n_vars)))},
    )


def test_counting_by_a_gene_reads_that_gene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = wide()
    cold = recorded(adata, tmp_path / "a.zarr", monkeypatch, gene_major=True)
    dataset, store = cold()
    root_bytes = store.n_bytes
    selection = dataset.query("X['gene-7'] > 0")
    assert selection.count() == (values(adata, "gene-7") > 0).sum()
    assert len(store.calls) == 5, "the root, names and offsets at once, both halves of the gene"
    assert all(key == "zarr.json" or key.startswith(("var/_index/", "X/csc/")) for key in store.keys)
    assert (selection.stats.n_requests, selection.stats.n_bytes) == (len(store.calls) - 1, store.n_bytes - root_bytes)
    gene_bytes = sum(dataset.stats.by_array[f"X/csc/{half}"][1] for half in ("data", "indices"))
    whole_bytes = sum(dataset.fetcher.stored_bytes[f"X/csc/{half}"] for half in ("data", "indices"))
    assert gene_bytes < whole_bytes * 10 / adata.n_vars
    n_calls, n_bytes = len(store.calls), store.n_bytes - root_bytes

    selection.count()
    assert len(store.calls) == n_calls, "a selection reads a gene once"
    store.forget()
    assert dataset.query("X['gene-9'] > 0 and cell_type == 'NK'").count() > 0
    assert len(store.calls) == n_calls - 1
    assert store.n_bytes < n_bytes
    assert not [key for key in store.keys if "_lobster_zarr" in key], "the offsets of the genes are known"


@pytest.mark.parametrize("genes", [None, ["gene-5", "gene-7"], "mean > 0.5", slice("gene-3", "gene-9")], ids=str)
def test_the_names_of_the_genes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genes: Any) -> None:
    cold = recorded(wide(), tmp_path / "a.zarr", monkeypatch, sort_by=["cell_type"], gene_major=True)
    dataset, store = cold()
    selection = dataset.query("`gene-7` > 0 and layers['X2']['gene-1'] > 1 and cell_type == 'NK'", var=genes)
    selection.to_memory()
    names = [key for key in store.keys if key.startswith("var/_index/")]
    assert len(names) == 1


def test_only_columns_are_read_where_only_columns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = recorded(wide(), tmp_path / "a.zarr", monkeypatch, gene_major=True)
    dataset, store = cold()
    store.forget()
    dataset.query("n_counts > 3 and obs['cell_type'] == 'NK'").count()
    assert store.keys
    assert all(key.startswith("obs/") for key in store.keys)


def test_a_gene_is_read_for_the_cells_that_can_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = wide()
    cold = recorded(adata, tmp_path / "a.zarr", monkeypatch, sort_by=["cell_type"], gene_major=False)
    dataset, _ = cold()
    kept = (values(adata, "gene-7") > 1) & (adata.obs["cell_type"] == "NK").to_numpy()
    assert dataset.query("cell_type == 'NK' and `gene-7` > 1").count() == kept.sum()
    assert dataset.stats.by_array["X/data"][1] < dataset.fetcher.stored_bytes["X/data"] / 2


# ---- what is said


def test_an_empty_answer_says_which_clause_left_no_cell(opened: dict[str, lz.Dataset]) -> None:
    for name in ("sorted, by gene", "dense"):
        selection = opened[name].query("CD3D > 0 and layers['counts']['HLA-DRA'] > 99 and cell_type == 'T cell'")
        assert selection.count() == 0
        assert selection.notes == ("no row matches layers['counts']['HLA-DRA'] > 99.",)
        both = opened[name].query("cell_type == 'NKx' and CD3D > 50")
        assert both.count() == 0
        assert both.notes == ("no row matches cell_type == 'NKx'. Did you mean 'NK'?", "no row matches CD3D > 50.")


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("CD3Dx > 0", "obs has no column 'CD3Dx' and X no feature of that name. Did you mean 'CD3D'?"),
        ("CD3Dx > 0 AND donor = 'd1'", "obs has no column 'CD3Dx' and X no feature of that name. Did you mean 'CD3D'?"),
        (pl.col("n_count") > 0, "Did you mean 'n_counts'?"),
        ({"zzzzz": 0}, "obs has 'cell_type', 'donor'"),
        ("HLA-DRA > 1", "Did you mean 'HLA-DRA'?"),
        ("obs['CD3D'] > 0", "obs has no column 'obs.CD3D'. obs has 'cell_type'"),
        ("X['CD3'] > 0", "X has no feature 'CD3', which the predicate names. Did you mean 'CD3D'?"),
        ("layers['counts'].CD3 > 0", "layers['counts'] has no feature 'CD3', which"),
        ("layers['count'].CD3D > 0", "no layer 'count', which the predicate names. Did you mean 'counts'?"),
    ],
    ids=str,
)
def test_a_name_that_is_nowhere_is_not_found(opened: dict[str, lz.Dataset], condition: Any, told: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        opened["unsorted"].query(condition).count()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("CD3D", "expected true or false, got feature 'CD3D', a number"),
        ("X['CD3D'] == 'T cell'", "feature \"X['CD3D']\", a number, cannot be compared"),
        ("CD3D = 'a' AND donor = 'd1'", "feature 'CD3D' is a number"),
        ("X[0] > 1", "expected a name in quotes between brackets"),
        ("X['CD3D'].foo > 1", "brackets are not allowed here"),
        ("layers['counts'] > 1", "brackets are not allowed here"),
        ("layers.counts['CD3D'] > 1", "brackets are not allowed here"),
        ("donor['d1'] > 1", "brackets are not allowed here"),
        ("'CD3D'['a'] > 1", "an attribute is not allowed here"),
        ("X['CD3D'] > 1 AND donor = 'd1'", "brackets are Python"),
    ],
)
def test_what_a_feature_cannot_be_asked(opened: dict[str, lz.Dataset], condition: str, told: str) -> None:
    with pytest.raises(InvalidPredicateError) as caught:
        opened["unsorted"].query(condition).count()
    assert told in str(caught.value)


def test_features_that_share_a_name_are_refused() -> None:
    adata = cells()
    adata.var_names = ["CD3D", "CD3D", *adata.var_names[2:]]
    dataset = converted(adata)
    with pytest.raises(InvalidPredicateError, match="2 features are called that"):
        dataset.query("CD3D > 0").count()
    assert dataset.query("MS4A1 > 0").count() == (values(adata, "MS4A1") > 0).sum()


def test_a_store_without_x_says_so() -> None:
    adata = cells()
    del adata.X
    dataset = converted(adata)
    assert dataset.query("layers['counts'].CD3D > 1").count() == (values(adata, "CD3D", "counts") > 1).sum()
    with pytest.raises(NotFoundError, match=r"no column 'donr', and the store has no X .* Did you mean 'donor'"):
        dataset.query("donr == 'd1'").count()
    with pytest.raises(NotFoundError, match=r"no X\. Features of a layer are layers\['counts'\]"):
        dataset.query("X['CD3D'] > 1").count()


def test_a_matrix_of_other_than_real_numbers_is_refused() -> None:
    adata = cells()
    adata.layers["complex"] = np.ones(adata.shape, "complex64")
    dataset = converted(adata)
    with pytest.raises(UnsupportedError, match=r"layers\['complex'\] holds complex64"):
        dataset.query("layers['complex'].CD3D > 1").count()


def test_an_unknown_column_of_sql_stays_one(opened: dict[str, lz.Dataset]) -> None:
    with pytest.raises(NotFoundError, match="names a column that does not exist"):
        opened["unsorted"].sql("SELECT count(*) AS n FROM obs WHERE CD3D > 0")
