"""Others read our stores, and we read theirs.

anndata's readers, eager, lazy and by matrix, on disk and on S3, open what was
converted; `lobster_zarr.open` queries what anndata wrote; and a store is asked
in every way that a query can be put.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
import zarr
from layouts import tiny_chunks
from oracle import assert_equal, reordered, sliced, stored
from test_convert import by_anndata, cells, convert
from zarr.storage import ObjectStore

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.layout import SOURCE_ORDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


# ---------------------------------------------------------------- others read ours


def duplicated() -> ad.AnnData:
    adata = cells()
    adata.obs_names = [f"cell{i // 2}" for i in range(adata.n_obs)]
    adata.var_names = ["gene"] * adata.n_vars
    return adata


def by_donor(adata: ad.AnnData) -> ad.AnnData:
    order = np.lexsort([adata.obs["donor"].cat.codes])
    return reordered(stored(adata), order)


Case = tuple["Callable[[], ad.AnnData]", dict[str, Any], "Callable[[ad.AnnData], ad.AnnData]"]
# What is converted, how, and what others find.
CASES: dict[str, Case] = {
    "plain": (cells, {"gene_major": False}, stored),
    "companions": (cells, {"gene_major": True}, stored),
    "sorted": (cells, {"sort_by": "donor"}, by_donor),
    "duplicate names": (duplicated, {"sort_by": "donor", "gene_major": True}, by_donor),
    "compatible": (cells, {"codec": "compatible"}, stored),
    "fast": (cells, {"codec": "fast"}, stored),
}
Opened = tuple[zarr.Group, ad.AnnData, dict[str, Any]]


@pytest.fixture(scope="module", params=[(case, where) for where in ("disk", "s3") for case in CASES], ids="-".join)
def opened(request: pytest.FixtureRequest, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A converted store as any Zarr user opens it, what is in it, and how it was converted."""
    case, where = request.param
    make, options, find = CASES[case]
    adata = make()
    expected = find(adata)
    if where == "disk":
        path = tmp_path_factory.mktemp("readers") / "a.zarr"
        convert(adata, path, **options)
        return zarr.open_group(path, mode="r"), expected, options
    from obstore.store import S3Store

    name = f"readers-{case.replace(' ', '-')}"
    convert(adata, f"{s3.bucket(name)}/a.zarr", storage_options=s3.storage_options, **options)
    store = S3Store(
        name,
        prefix="a.zarr",
        endpoint=s3.endpoint,
        access_key_id=s3.key,
        secret_access_key=s3.secret,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    return zarr.open_group(ObjectStore(store, read_only=True), mode="r"), expected, options


def test_read_zarr(opened: Opened) -> None:
    group, expected, _ = opened
    assert_equal(ad.read_zarr(group), expected)


def test_read_lazy(opened: Opened) -> None:
    group, expected, _ = opened
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = ad.experimental.read_lazy(group)
        picked = np.array([1, 4, 7])
        got = lazy[picked].to_memory()
    assert_equal(got.X, expected.X[picked])
    assert_equal(got.layers["scaled"], expected.layers["scaled"][picked])
    assert_equal(got.obsm["X_umap"], expected.obsm["X_umap"][picked])
    assert list(got.obs["cell_type"].astype(object).fillna("missing")) == list(
        expected.obs["cell_type"].iloc[picked].astype(object).fillna("missing")
    )
    assert list(got.obs) == list(expected.obs), "what we add beside obs does not show"
    assert list(got.obs_names) == list(expected.obs_names[picked])


def test_sparse_dataset(opened: Opened) -> None:
    group, expected, options = opened
    X = ad.io.sparse_dataset(group["X"])
    assert X.format == "csr"
    assert_equal(X[3:17], expected.X[3:17])
    assert_equal(X[np.array([5, 30, 31])], expected.X[[5, 30, 31]])
    if options.get("gene_major") is not False:
        companion = ad.io.sparse_dataset(group["X/csc"])
        assert companion.format == "csc"
        assert_equal(companion[:, 2:9], expected.X[:, 2:9].tocsc())


@pytest.mark.parametrize("options", [{}, {"sort_by": "donor"}], ids=["as-is", "sorted"])
def test_our_additions_are_where_the_format_has_room(tmp_path: Path, options: dict[str, Any]) -> None:
    convert(cells(), tmp_path / "a.zarr", **options)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=False)
    assert_equal(ad.read_zarr(root), by_donor(cells()) if options else stored(cells()))
    assert (SOURCE_ORDER in root["obs"]) == bool(options)
    assert SOURCE_ORDER not in root["obs"].attrs["column-order"]
    known = {"X", "layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns", "raw"}
    assert set(root.keys()) <= known


# ---------------------------------------------------------------- we read others'


def _unconsolidated(path: Path) -> None:
    (path / ".zmetadata").unlink(missing_ok=True)
    if (path / "zarr.json").exists():
        root = json.loads((path / "zarr.json").read_text())
        del root["consolidated_metadata"]
        (path / "zarr.json").write_text(json.dumps(root))


def _csc(adata: ad.AnnData) -> None:
    adata.X = adata.X.tocsc()


def _dense(adata: ad.AnnData) -> None:
    adata.X = adata.X.toarray()


def _no_x(adata: ad.AnnData) -> None:
    adata.X = None


KINDS = {"csr": None, "csc": _csc, "dense": _dense, "no X": _no_x}


@pytest.mark.parametrize(
    ("zarr_format", "consolidated", "kind"),
    [(n, True, kind) for n in (2, 3) for kind in KINDS] + [(n, False, "csr") for n in (2, 3)],
)
def test_a_store_that_anndata_wrote(tmp_path: Path, zarr_format: int, consolidated: bool, kind: str) -> None:
    adata, change = cells(), KINDS[kind]
    if change is not None:
        change(adata)
    by_anndata(adata, tmp_path / "a.zarr", zarr_format)
    if not consolidated:
        _unconsolidated(tmp_path / "a.zarr")
    whole = ad.read_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=consolidated))
    dataset = lz.open(tmp_path / "a.zarr")

    assert dataset.shape == (60, 20)
    assert dataset.layers == ["counts", "scaled"]
    assert dataset.sort_by == ()
    told = dataset.info()
    assert (told.n_obs, told.n_vars, list(told.obs)) == (60, 20, list(adata.obs))
    assert ("X" in [e.path for e in told.elements]) == (change is not _no_x)
    for text in (str(told), told.to_html(), repr(dataset)):
        assert "cell_type" in text
    json.dumps(told.to_dict())

    assert_equal(dataset.to_memory(), whole)
    mask, genes = np.arange(60) % 3 == 1, ["gene7", "gene2"]
    assert_equal(dataset.query(mask, genes).to_memory(), sliced(whole, mask, genes), sparse_layout="any")
    missing = np.asarray(adata.obs["cell_type"].isna())
    assert 0 < dataset.query("cell_type.isna()").count() == missing.sum()
    assert_equal(dataset.query("cell_type.isna()").to_memory(), sliced(whole, missing, slice(None)))
    lz.verify(tmp_path / "a.zarr", progress=False)


def test_a_chunk_that_another_writer_left_out_is_the_fill_value(tmp_path: Path) -> None:
    adata = cells()
    adata.X = np.zeros((60, 20), "float32")
    adata.X[40:] = 1
    with zarr.config.set({"array.write_empty_chunks": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "a.zarr", chunks=(10, 20))
    assert not (tmp_path / "a.zarr/X/c/0/0").exists()
    assert_equal(lz.open(tmp_path / "a.zarr").query([0, 59]).to_memory().X, adata.X[[0, 59]])


# ---------------------------------------------------------------- every way to ask


@cache
def whole() -> ad.AnnData:
    return stored(cells())


@cache
def sorted_store() -> str:
    convert(cells(), "memory://readers-sorted", gene_major=True, sort_by="cell_type")
    return "memory://readers-sorted"


@pytest.fixture(scope="module", params=["as-is", "sorted"])
def dataset(request: pytest.FixtureRequest) -> lz.Dataset:
    if request.param == "sorted":
        return lz.open(sorted_store())
    convert(cells(), "memory://readers-as-is", gene_major=True)
    return lz.open("memory://readers-as-is")


OBS = cells().obs
T_CELL, NK, D1 = OBS["cell_type"] == "T cell", OBS["cell_type"] == "NK", OBS["donor"] == "d1"
COUNTS, GENES = OBS["n_counts"], OBS["n_genes"]
ASKED: dict[str, tuple[Any, Any]] = {
    "Python": ("cell_type == 'T cell' and n_counts > 300", T_CELL & (COUNTS > 300)),
    "Python, chained": ("100 < n_counts <= 500", (COUNTS > 100) & (COUNTS <= 500)),
    "Python, not": ("not (cell_type in ['T cell', 'NK'])", ~(T_CELL | NK)),
    "Python, a flag": ("doublet | (donor == 'd2')", OBS["doublet"] | ~D1),
    "Python, names": ("obs_names in ['cell3', 'cell50']", OBS.index.isin(["cell3", "cell50"])),
    "Python, missing": ("cell_type.isna()", OBS["cell_type"].isna()),
    "SQL": ("cell_type = 'T cell' AND n_counts > 300", T_CELL & (COUNTS > 300)),
    "SQL, IN and LIKE": ("cell_type IN ('NK') OR note LIKE '%6'", NK | OBS["note"].str.endswith("6")),
    "SQL, BETWEEN": (
        "n_genes BETWEEN 10 AND 20 AND cell_type IS NOT NULL",
        GENES.between(10, 20) & OBS["cell_type"].notna(),
    ),
    "a dict": ({"cell_type": ["T cell", "NK"], "donor": "d1"}, (T_CELL | NK) & D1),
    "Polars": (pl.col("n_genes") % 2 == 0, GENES % 2 == 0),
    "names": (["cell9", "cell2"], [9, 2]),
    "an Index": (pd.Index(["cell9", "cell2"]), [9, 2]),
    "positions": ([7, -1, 7], [7, 59, 7]),
    "one position": (5, [5]),
    "a slice": (slice(50, None, -7), slice(50, None, -7)),
    "a slice of names": (slice("cell3", "cell6"), [3, 4, 5, 6]),
    "a mask": (T_CELL.to_numpy(), T_CELL),
    "a Series": (GENES > 50, GENES > 50),
    "nobody": ("n_counts > 1e9", np.zeros(60, bool)),
    "everybody": (None, slice(None)),
}


@pytest.mark.parametrize("kind", ASKED)
def test_rows_asked_for_in_every_way(dataset: lz.Dataset, kind: str) -> None:
    asked, rows = ASKED[kind]
    rows = np.asarray(rows) if not isinstance(rows, slice) else rows
    expected = sliced(whole(), rows, slice(None)) if kind != "everybody" else whole()
    selection = dataset.query(asked)
    assert selection.count() == expected.n_obs
    assert_equal(selection.to_memory(), expected)
    obs = selection.to_pandas()
    assert list(obs.index) == list(expected.obs_names)
    assert obs["n_genes"].tolist() == expected.obs["n_genes"].tolist()


@pytest.mark.parametrize(
    ("asked", "genes"),
    [
        ("variable", np.asarray(cells().var["variable"])),
        ("symbol in ['G3', 'G11']", [3, 11]),
        ({"symbol": ["G3", "G11"]}, [3, 11]),
        (pl.col("symbol") == "G4", [4]),
        ("gene7", [7]),
        (["gene7", "gene3"], [7, 3]),
        ([7, 3, 7], [7, 3, 7]),
        (slice(3, 12, 4), slice(3, 12, 4)),
        (np.arange(20) < 4, np.arange(20) < 4),
        ([], []),
    ],
)
def test_genes_asked_for_in_every_way(dataset: lz.Dataset, asked: Any, genes: Any) -> None:
    genes = genes if isinstance(genes, slice) else np.asarray(genes, None if len(genes) else int)
    got = dataset.query("n_counts > 300", var=asked).to_memory()
    assert_equal(got, sliced(whole(), np.asarray(COUNTS > 300), genes))


def test_storage_order_is_of_the_rows(dataset: lz.Dataset) -> None:
    codes = OBS["cell_type"].cat.codes.to_numpy().astype(int)
    order = np.argsort(np.where(codes < 0, 99, codes), kind="stable") if dataset.sort_by else np.arange(60)
    order = order[COUNTS.to_numpy()[order] > 300]
    selection = dataset.query("n_counts > 300", order="storage")
    assert_equal(selection.to_memory(), sliced(whole(), order, slice(None)))
    assert list(selection.to_pandas().index) == [f"cell{i}" for i in order]
    assert selection.count() == len(order)


def test_storage_order_is_not_of_the_genes(dataset: lz.Dataset) -> None:
    got = dataset.query("n_counts > 300", ["gene7", "gene2"], order="storage").to_memory()
    assert list(got.var_names) == ["gene7", "gene2"]


def test_a_query_brings_what_it_names(dataset: lz.Dataset, tmp_path: Path) -> None:
    asked = dataset.query("donor == 'd1'", layers=[], obsm=["X_umap"], obsp=[], varm=[], X=False, uns=False, raw=False)
    got = asked.to_memory()
    rows = np.asarray(D1)
    assert got.X is None
    assert got.raw is None
    assert not [key for key in got.layers if key is not None]
    assert (list(got.obsm), list(got.obsp), list(got.varm), dict(got.uns)) == (["X_umap"], [], [], {})
    assert_equal(got.obsm["X_umap"], whole().obsm["X_umap"][rows])

    narrow = dataset.query("n_counts > 300", ["gene1"], obs_columns=["donor", "n_genes"], var_columns=[])
    got = narrow.to_memory()
    assert (list(got.obs), list(got.var)) == (["donor", "n_genes"], [])
    assert list(narrow.to_pandas()) == ["donor", "n_genes"]
    assert narrow.write_parquet(tmp_path / "obs.parquet") == tmp_path / "obs.parquet"
    table = pd.read_parquet(tmp_path / "obs.parquet")
    assert list(table) == ["index", "donor", "n_genes"]
    assert table["index"].tolist() == list(got.obs_names)
    assert table["n_genes"].tolist() == got.obs["n_genes"].tolist()
    assert table["donor"].astype(str).tolist() == got.obs["donor"].astype(str).tolist()


def test_counting_reads_the_columns_of_the_predicate_alone(dataset: lz.Dataset) -> None:
    with tiny_chunks():
        convert(cells(), "memory://readers-count", overwrite=True, sort_by=["cell_type"] if dataset.sort_by else [])
    fresh = lz.open("memory://readers-count")
    assert fresh.stats.n_requests == 0
    fresh.query("n_genes > 50", ["gene1"]).count()
    assert set(fresh.stats.by_array) == {"obs/n_genes"}
    fresh = lz.open("memory://readers-count")
    fresh.query("n_genes > 50", X=False, layers=[], obsm=[], obsp=[], varm=[], uns=False, raw=False).to_memory()
    assert not [path for path in fresh.stats.by_array if not path.startswith(("obs/", "var/"))]


@pytest.mark.parametrize(
    ("options", "error", "near"),
    [
        ({"obs": "cel_type == 'NK'"}, errors.NotFoundError, "'cell_type'"),
        ({"obs": "Donor = 'd1' AND n_genes > 3"}, errors.NotFoundError, "'donor'"),
        ({"obs": {"donr": "d1"}}, errors.NotFoundError, "'donor'"),
        ({"obs": pl.col("n_count") > 3}, errors.NotFoundError, "'n_counts'"),
        ({"obs": ["cell3", "cel4"]}, errors.NotFoundError, "'cell4'"),
        ({"var": ["gen3"]}, errors.NotFoundError, "'gene3'"),
        ({"var": "variabel == True"}, errors.NotFoundError, "'variable'"),
        ({"layers": ["count"]}, errors.NotFoundError, "'counts'"),
        ({"obsm": ["umap"]}, errors.NotFoundError, "'X_umap'"),
        ({"obs_columns": ["cell_typ"]}, errors.NotFoundError, "'cell_type'"),
        ({"var_columns": ["simbol"]}, errors.NotFoundError, "'symbol'"),
        ({"layers": "counts"}, errors.InvalidArgumentError, "['counts']"),
        ({"layer": ["counts"]}, errors.InvalidArgumentError, "'layers'"),
        ({"order": "random"}, errors.InvalidArgumentError, "'storage'"),
        ({"obs": "n_counts > 'a'"}, errors.InvalidPredicateError, "n_counts"),
        ({"obs": "cell_type.map(len)"}, errors.InvalidPredicateError, "map"),
        ({"obs": "cell_type ="}, errors.InvalidPredicateError, "cell_type"),
        ({"obs": ""}, errors.InvalidPredicateError, "empty"),
        ({"obs": [60]}, errors.InvalidSelectionError, "60"),
        ({"obs": np.ones(59, bool)}, errors.InvalidSelectionError, "59"),
        ({"var": [0.5]}, errors.InvalidSelectionError, "var"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(
    options: dict[str, Any], error: type[Exception], near: str
) -> None:
    dataset = lz.open(sorted_store())
    with pytest.raises(error) as raised:
        dataset.query(**options).to_memory()
    assert near in str(raised.value)
