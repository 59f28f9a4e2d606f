"""What a selection refuses, keeps and survives; that its answers are right is tested in test_roundtrip."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import FormatError, InvalidArgumentError, LobsterZarrError

if TYPE_CHECKING:
    from pathlib import Path


def cells(n_obs: int = 60, n_vars: int = 20) -> ad.AnnData:
    rng = np.random.default_rng(0)
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(0.5, (n_obs, n_vars)).astype("float32")),
        obs=pd.DataFrame({"a": np.arange(n_obs)}, index=[f"cell-{i}" for i in range(n_obs)]),
        varm={"loadings": rng.normal(size=(n_vars, 2))},
    )


def test_a_selection_reads_a_column_once() -> None:
    with tiny_chunks():
        lz.convert(cells(), "memory://query-once", progress=False)
    selection = lz.open("memory://query-once").query("a > 3")
    selection.count()
    selection.to_pandas()
    selection.to_memory()
    assert selection.stats.by_array["obs/a"][0] == 1


@pytest.mark.parametrize("size", [-1, 0, "much", "1 furlong", 2.5j])
def test_a_budget_that_is_no_size_is_refused(size: Any) -> None:
    lz.convert(cells(), f"memory://query-{size}", progress=False)
    data = lz.open(f"memory://query-{size}")
    with pytest.raises(InvalidArgumentError, match="max_bytes"):
        data.query(None, max_bytes=size)
    assert data.query(None, max_bytes="1GB").to_memory().n_obs == 60


MISFITS = {
    "X": lambda f: f["X"].attrs.__setitem__("shape", [60, 25]),
    "layers/U": lambda f: f.create_dataset("layers/U", data=np.ones((60, 10))),
    "obsp/U": lambda f: f.create_dataset("obsp/U", data=np.ones((60, 10))),
    "varm/U": lambda f: f.create_dataset("varm/U", data=np.ones((10, 2))),
    "uns": lambda f: (f.__delitem__("uns"), f.create_dataset("uns", data=3)),
}


@pytest.mark.parametrize("path", MISFITS)
def test_elements_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path, path: str) -> None:
    cells().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        MISFITS[path](file)
    with pytest.raises(LobsterZarrError, match=path):
        lz.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", progress=False)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("note", [{"format_version": "x"}, {"sort_by": 7}, {"stored_bytes": 3}])
def test_a_damaged_note_of_the_writer_is_told(tmp_path: Path, note: dict[str, Any]) -> None:
    import json

    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    root = tmp_path / "a.zarr" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["lobster_zarr"] |= note
    root.write_text(json.dumps(document))
    with pytest.raises(FormatError, match="damaged"):
        lz.open(tmp_path / "a.zarr")


def test_looking_for_one_of_many_names_in_vain_takes_no_search_for_near_ones() -> None:
    lz.convert(cells(3_000), "memory://query-names", progress=False)
    selection = lz.open("memory://query-names").query("index == 'cell-30000'")
    assert selection.count() == 0
    assert selection.notes == ("no row matches index == 'cell-30000'.",)


FORK = """
import os, sys, zipfile, lobster_zarr as lz
data = lz.open(sys.argv[1])
before = data.query(slice(5, 50)).to_memory()
child = os.fork()
if child == 0:
    os._exit(0 if lz.open(sys.argv[1]).query(slice(5, 50)).to_memory().n_obs == before.n_obs else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_decodes_on_threads_of_its_own(tmp_path: Path) -> None:
    import shutil

    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    archive = shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "a.zarr")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, archive], timeout=60, check=False)
    assert done.returncode == 0


LONG = 9_000
WIDE: dict[str, Any] = {
    "plate": pd.Categorical(np.random.default_rng(0).permutation(np.arange(LONG))),
    "none": pd.Categorical.from_codes([-1] * LONG, pd.Index([], dtype=object)),
}


def test_columns_of_many_and_of_no_categories() -> None:
    adata = ad.AnnData(obs=pd.DataFrame(WIDE, index=[f"cell-{i}" for i in range(LONG)]))
    lz.convert(adata, "memory://query-wide", progress=False)
    data = lz.open("memory://query-wide")
    assert data.query("plate == 7").count() == 1
    assert data.query("none.isna()").count() == LONG
    assert data.query({"n" + "one": "a"}).count() == 0
    assert len(data.sql("SELECT index FROM obs WHERE plate = 7")) == 1
    with pytest.raises(LobsterZarrError):
        data.query({"plate": np.array("x")}).count()


def test_a_matrix_of_no_columns_can_be_explained() -> None:
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"cell-{i}" for i in range(60)]), obsm={"E": np.zeros((60, 0))})
    with tiny_chunks():
        lz.convert(adata, "memory://query-none", progress=False)
    selection = lz.open("memory://query-none").query([1, 2], max_bytes="1GB", memory_limit="1GB")
    assert selection.explain().n_obs == 2
    assert selection.to_memory().obsm["E"].shape == (2, 0)


@pytest.mark.parametrize("codec_sizes", [None, "a", [1], 1.5, -1])
def test_damaged_sizes_in_the_root_are_an_error(codec_sizes: Any, tmp_path: Path) -> None:
    import json

    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    root = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    root["attributes"]["lobster_zarr"]["stored_bytes"]["X/data"] = codec_sizes
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(root))
    with pytest.raises(FormatError, match="lobster_zarr"):
        lz.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("order", [5, None, [["a"]], [1]])
def test_a_column_order_that_is_none_is_an_error(order: Any, tmp_path: Path) -> None:
    import json

    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    root = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["obs"]["attributes"]["column-order"] = order
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(root))
    with pytest.raises(FormatError, match="column-order"):
        lz.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("path", ["obs/_index", "obs/_lobster_zarr_source_order", "X/csc/_lobster_zarr_first"])
def test_an_array_of_another_length_is_an_error(path: str, tmp_path: Path) -> None:
    import json

    with tiny_chunks(noted_chunks=1):
        lz.convert(cells(), tmp_path / "a.zarr", sort_by=["a"], progress=False)
    root = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    root["consolidated_metadata"]["metadata"][path]["shape"] = [7]
    root["consolidated_metadata"]["metadata"][path]["attributes"] = {}
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(root))
    with pytest.raises(LobsterZarrError):
        lz.open(tmp_path / "a.zarr").query("a > 3", var=["1", "3"]).to_memory()
