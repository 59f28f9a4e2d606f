"""The command line on MuData stores: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import mudata
import pandas as pd
import polars as pl
import pytest
from mudatas import citeseq, rows_of, selected
from oracle import assert_mudata_equal, stored_mudata
from test_cli import Done, run

import lobster_zarr as lz

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["run"]  # a fixture

ASKED = "rna:cell_type == 'T cell' and prot:CD3 > 2"


class Cells(NamedTuple):
    memory: mudata.MuData
    store: Path

    @property
    def wanted(self) -> mudata.MuData:
        """The cells of ASKED, by mudata."""
        values = pd.Series(self.memory["prot"][:, "CD3"].X.ravel(), self.memory["prot"].obs_names)
        few = (values > 2).reindex(self.memory.obs_names, fill_value=False).to_numpy()
        return selected(self.memory, rows_of(self.memory, "`rna:cell_type` == 'T cell'") & few)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    made, store = citeseq(), tmp_path_factory.mktemp("mucli") / "a.zarr"
    for part in made.mod.values():  # text, which mudata's own writer would make categorical
        part.obs["barcode"] = pd.array([f"{name}-1" for name in part.obs_names], dtype="str")
    lz.convert(made, store, sort_by="rna:cell_type", progress=False)
    return Cells(stored_mudata(made), store)


def test_info_shows_every_modality(run: Callable[..., Done], cells: Cells) -> None:
    done = run("info", cells.store)
    assert done.status == 0
    assert all(f"{name}: {n}" in done.out for name, n in (("rna", "300 × 60"), ("prot", "150 × 12")))
    assert json.loads(run("info", cells.store, "--json").out)["modalities"]["atac"]["n_vars"] == 40


def test_query_counts(run: Callable[..., Done], cells: Cells) -> None:
    told = json.loads(run("query", cells.store, ASKED, "--json").out)
    assert told["n_obs"] == cells.wanted.n_obs > 0
    prot = json.loads(run("query", cells.store, "batch == 'x'", "--modality", "prot", "--json").out)
    mask = rows_of(cells.memory, "batch == 'x'")
    assert prot["n_obs"] == selected(cells.memory, mask, modalities=["prot"]).n_obs


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_query_writes_a_mudata(run: Callable[..., Done], cells: Cells, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    assert run("query", cells.store, ASKED, "-o", out).status == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mudata.read_h5mu(out) if suffix == ".h5mu" else mudata.read_zarr(out)
    assert_mudata_equal(stored_mudata(found), stored_mudata(cells.wanted))


def test_genes_modalities_and_join(run: Callable[..., Done], cells: Cells, tmp_path: Path) -> None:
    out = tmp_path / "out.h5mu"
    options = ("--var", "rna:GENE3,rna:GENE1", "--modality", "rna", "--modality", "prot", "--join", "inner")
    assert run("query", cells.store, "batch == 'x'", *options, "-o", out).status == 0
    mask, genes = rows_of(cells.memory, "batch == 'x'"), {"rna": ["GENE3", "GENE1"]}
    expected = selected(cells.memory, mask, var_of=genes, modalities=["rna", "prot"], join="inner")
    assert_mudata_equal(stored_mudata(mudata.read_h5mu(out)), stored_mudata(expected))


def test_tables(run: Callable[..., Done], cells: Cells, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert run("query", cells.store, ASKED, "-o", out).status == 0
    table = pl.read_parquet(out)
    assert table["index"].to_list() == list(cells.wanted.obs_names)
    assert "prot:n_counts" in table.columns
    done = run("sql", cells.store, "SELECT count(*) AS n FROM obs WHERE rna.cell_type = 'NK' AND prot.n_counts >= 0")
    both = rows_of(cells.memory, "`rna:cell_type` == 'NK' and `prot:n_counts` >= 0").sum()
    assert str(both) in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "STORE", ASKED, "-o", "out.h5ad"], "ends in .h5mu"),
        (["query", "STORE/mod/rna", "n_counts > 1", "-o", "out.h5mu"], "ends in .h5ad"),
        (["query", "STORE/mod/rna", "n_counts > 1", "--modality", "rna"], "AnnData store"),
        (["query", "STORE", ASKED, "--modality", "port"], "Did you mean 'prot'"),
        (["query", "STORE", ASKED, "--var", "rna:GENE1,CD3", "--explain"], "with their modality and without"),
        (["query", "STORE", "cell_type == 'T cell'"], "rna:cell_type"),
        (["export", "STORE", "out.h5ad"], "h5mu"),
    ],
)
def test_a_refusal_is_one_line(
    run: Callable[..., Done], cells: Cells, tmp_path: Path, arguments: list[Any], said: str
) -> None:
    made = [a.replace("STORE", str(cells.store)) if "STORE" in a else a for a in arguments]
    done = run(*[tmp_path / a if a.startswith("out.") else a for a in made])
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
