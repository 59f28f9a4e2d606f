"""SQL over obs and var equals Polars over the tables in memory, and reads only what it names."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
from layouts import tiny_chunks
from polars.testing import assert_frame_equal
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import InvalidPredicateError, NotFoundError

if TYPE_CHECKING:
    from lobster_zarr.dataset import Dataset

_numbers = itertools.count()
N_OBS = 500
RNG = np.random.default_rng(0)
OBS = pd.DataFrame(
    {
        "cell_type": pd.Categorical(RNG.choice(["T cell", "B cell", None], N_OBS)),
        "donor": pd.Categorical(RNG.choice(["d1", "d2", "d3"], N_OBS)),
        "n_counts": RNG.integers(0, 2_000, N_OBS),
        "pct_mito": np.where(RNG.random(N_OBS) < 0.1, np.nan, RNG.random(N_OBS)),
        "doublet": pd.array(RNG.choice([True, False, None], N_OBS), dtype="boolean"),
        "batch": pd.Categorical(RNG.integers(0, 3, N_OBS)),
    },
    index=[f"cell-{i}" for i in range(N_OBS)],
)
VAR = pd.DataFrame({"mean": RNG.random(20)}, index=[f"gene-{i}" for i in range(20)])
SITES = pd.DataFrame({"donor": ["d1", "d2", "d3"], "site": ["A", "A", "B"]})


@pytest.fixture(scope="module", params=[(), ("cell_type",)], ids=["as-is", "sorted"])
def data(request: pytest.FixtureRequest) -> Dataset:
    adata = ad.AnnData(sparse.csr_matrix(RNG.poisson(0.5, (N_OBS, 20)).astype("float32")), obs=OBS, var=VAR)
    uri = f"memory://sql-{next(_numbers)}"
    with tiny_chunks():
        lz.convert(adata, uri, sort_by=request.param, progress=False)
    return lz.open(uri)


def oracle(query: str) -> pl.DataFrame:
    def frame(table: pd.DataFrame) -> pl.DataFrame:
        plain = table.reset_index(names="index")
        text = {c: plain[c].astype(object) for c in plain if plain[c].dtype == "category"}
        return pl.from_pandas(plain.assign(**text), nan_to_null=True)

    return pl.SQLContext(obs=frame(OBS), var=frame(VAR), sites=pl.from_pandas(SITES)).execute(query).collect()


QUERIES = [
    "SELECT donor, count(*) AS n FROM obs WHERE cell_type = 'T cell' GROUP BY donor ORDER BY donor",
    "SELECT * FROM obs WHERE n_counts BETWEEN 100 AND 200 ORDER BY index",
    "SELECT index, pct_mito FROM obs WHERE pct_mito > 0.5 AND cell_type IS NULL ORDER BY pct_mito LIMIT 7",
    "SELECT obs.donor, obs.n_counts * 2 AS twice FROM obs WHERE obs.index LIKE '%9' ORDER BY obs.index",
    "SELECT site, sum(n_counts) AS total FROM obs JOIN sites ON obs.donor = sites.donor GROUP BY site ORDER BY site",
    "SELECT batch, avg(pct_mito) AS mito FROM obs GROUP BY batch ORDER BY batch",
    "SELECT doublet, count(*) AS n FROM obs GROUP BY doublet ORDER BY n",
    "SELECT count(*) AS n FROM var WHERE mean < 0.5",
    "SELECT index FROM obs WHERE n_counts > 99999",
    "SELECT count(*) AS n FROM obs WHERE 1 = 1",
    "SELECT donor, count(*) AS n FROM obs WHERE true GROUP BY donor ORDER BY donor",
    "SELECT count(*) AS n FROM obs WHERE 1 = 0",
]


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_a_query_equals_polars_in_memory(data: Dataset, query: str) -> None:
    got, expected = data.sql(query, sites=SITES), oracle(query)
    assert_frame_equal(got, expected, check_dtypes=False)


def test_rows_without_from(data: Dataset) -> None:
    got = data.sql("SELECT obs WHERE obs.cell_type = 'T cell'")
    assert set(got["index"]) == set(OBS.index[OBS["cell_type"] == "T cell"])
    assert got.columns == ["index", *OBS.columns]
    assert data.sql("select var order by index limit 2")["index"].to_list() == ["gene-0", "gene-1"]


def test_only_what_is_named_is_read(data: Dataset) -> None:
    before = dict(data.stats.by_array)
    data.sql("SELECT n_counts FROM obs WHERE donor = 'd1'")
    read = {p for p, cost in data.stats.by_array.items() if before.get(p) != cost}
    assert read == {"obs/n_counts", "obs/donor/codes", "obs/donor/categories"}


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("SELECT cel_type FROM obs", NotFoundError, "cell_type"),
        ("SELEC 1", InvalidPredicateError, "SELEC"),
        ("SELECT * FROM cells", InvalidPredicateError, "cells"),
        ("SELECT * FROM read_csv('/etc/hostname')", InvalidPredicateError, "reads files"),
    ],
)
def test_what_cannot_be_run_is_told(data: Dataset, query: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.sql(query)


@pytest.mark.parametrize("query", [None, 5, "\ud800"], ids=["None", "5", "surrogate"])
def test_what_is_no_text_is_refused(data: Dataset, query: str) -> None:
    with pytest.raises(InvalidPredicateError):
        data.sql(query)
