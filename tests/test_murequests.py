"""What queries across modalities cost, as the store sees it; nothing is read of a modality that was not asked for."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import pytest
from mudatas import assert_mudata_equal, modality, rows_of, selected
from recording import Waves
from zarr.storage import LocalStore

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

N_CELLS = 3_000
LAYOUTS: dict[str, Any] = {"as it is": (), "sorted": ["rna:cell_type"]}


@pytest.fixture(scope="module")
def source() -> mudata.MuData:
    rng = np.random.default_rng(3)
    cells = np.asarray([f"cell{i:05d}-1" for i in range(N_CELLS)], object)
    made = mudata.MuData(
        {
            "rna": modality(rng, cells, 1_000, "GENE"),
            "prot": modality(rng, cells, 40, "CD", dense=True, plain=True),
            "atac": modality(rng, rng.permutation(cells)[:2_500], 3_000, "chr", plain=True),
        }
    )
    made.obs["batch"] = pd.Categorical(rng.choice(["x", "y"], made.n_obs))
    return made


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request: pytest.FixtureRequest, source: mudata.MuData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("murequests") / "m.zarr"
    report = lz.convert(source, path, sort_by=LAYOUTS[request.param], progress=False)
    assert report.n_objects <= 150
    return path


def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Waves]:
    store = Waves(LocalStore(path, read_only=True))
    monkeypatch.setattr("lobster_zarr.multimodal.open_readable", lambda *_: store)
    return lz.open(path), store


@pytest.mark.parametrize(
    ("asked", "options", "named", "most"),
    [
        ("rna:cell_type == 'T cell'", {"modalities": ["prot"]}, {"mod/rna/obs/cell_type"}, 12),
        ("rna:cell_type == 'T cell' and rna:n_counts > 500", {"modalities": ["prot"]}, {"mod/rna/obs"}, 12),
        ("prot:n_counts > 500", {"modalities": ["rna"], "layers": []}, {"mod/prot/obs/n_counts"}, 12),
        ("batch == 'x'", {"modalities": ["atac"], "layers": []}, set(), 12),
        ("prot:CD3 > 2", {"modalities": ["atac"], "layers": []}, {"mod/prot/X", "mod/prot/var/_index"}, 14),
    ],
)
def test_one_modality_by_the_column_of_another(
    stored: Path,
    source: mudata.MuData,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    options: Any,
    named: Any,
    most: int,
) -> None:
    data, store = opened(stored, monkeypatch)
    assert store.keys == ["zarr.json"]
    selection = data.query(asked, **options)
    selection.to_memory()
    assert len(store.calls) <= most
    assert store.n_waves <= 3 + ("CD" in asked)
    wanted = {f"mod/{name}/" for name in options["modalities"]}
    of_others = [k for k in store.keys if k.startswith("mod/") and not k.startswith(tuple(wanted))]
    assert [k for k in of_others if not k.startswith(tuple(named))] == []
    assert (len(store.calls) - 1, store.n_bytes - (store.calls[0].n_bytes or 0)) == (
        selection.stats.n_requests,
        selection.stats.n_bytes,
    )


def test_explain_is_exact(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = opened(stored, monkeypatch)
    selection = data.query("rna:cell_type == 'T cell'", {"rna": ["GENE1", "GENE7"]})
    plan = selection.explain()
    store.forget()
    selection.to_memory()
    assert plan.exact
    assert (plan.n_requests, plan.n_bytes) == (len(store.calls), store.n_bytes)


def test_count_reads_the_columns_alone(stored: Path, source: mudata.MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = opened(stored, monkeypatch)
    store.forget()
    both = "rna:cell_type == 'T cell' and prot:n_counts > 500"
    expected = rows_of(source, "`rna:cell_type` == 'T cell' and `prot:n_counts` > 500").sum()
    assert data.query(both).count() == expected
    assert {k.rpartition("/c")[0] for k in store.keys} <= {"mod/rna/obs/cell_type/codes", "mod/prot/obs/n_counts"}


def test_what_a_lazy_subset_reads(stored: Path, source: mudata.MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = opened(stored, monkeypatch)
    lazy, memory = data.to_lazy(), data.to_memory()
    store.forget()
    mask = rows_of(source, "`rna:cell_type` == 'T cell'")
    part = lazy[mask, ["GENE1", "GENE7"]]
    assert store.calls == []
    found = part.to_memory()
    assert_mudata_equal(found, selected(memory, mask, ["GENE1", "GENE7"]))
    of_x = sum(c.n_bytes or 0 for c in store.calls if c.key.startswith("mod/rna/X"))
    assert 0 < of_x < 0.25 * sum(data["rna"].fetcher.stored_bytes[f"mod/rna/X/{a}"] for a in ("data", "indices"))


def test_chunks_that_cannot_match_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, n = np.random.default_rng(0), 40_000
    cells = np.asarray([f"cell{i}" for i in range(n)], object)
    made = mudata.MuData({name: modality(rng, cells, 4, name, plain=True) for name in ("rna", "prot")})
    asked = "rna:cell_type == 'NK' and prot:n_counts > 500"
    n_bytes = {}
    for name, sort_by in (("sorted", ["rna:cell_type"]), ("unsorted", [])):
        lz.convert(made, tmp_path / name, sort_by=sort_by, progress=False)
        data, store = opened(tmp_path / name, monkeypatch)
        store.forget()
        assert data.query(asked).count() == rows_of(made, "`rna:cell_type` == 'NK' and `prot:n_counts` > 500").sum()
        assert {k.split("/c/")[0] for k in store.keys} <= {"mod/rna/obs/cell_type/codes", "mod/prot/obs/n_counts"}
        n_bytes[name] = store.n_bytes
    assert n_bytes["sorted"] < 0.7 * n_bytes["unsorted"]


def test_over_s3(source: mudata.MuData, s3: S3Server) -> None:
    uri = f"{s3.bucket('multimodal')}/m.zarr"
    report = lz.convert(source, uri, sort_by=["rna:cell_type"], storage_options=s3.storage_options, progress=False)
    listed = s3.client().list_objects_v2(Bucket="multimodal")
    assert report.n_objects == listed["KeyCount"] <= 150
    data = lz.open(uri, s3.storage_options)
    selection = data.query("rna:cell_type == 'T cell'", modalities=["prot"])
    mask = rows_of(source, "`rna:cell_type` == 'T cell'")
    assert_mudata_equal(selection.to_memory(), selected(source, mask, modalities=["prot"]))
    assert selection.stats.n_requests + 1 <= 12


@pytest.mark.parametrize(
    ("note", "failure"), [({"format_version": 99}, errors.UnsupportedError), ({"sort_by": 3}, errors.FormatError)]
)
def test_a_note_that_cannot_be_read_is_refused(stored: Path, tmp_path: Path, note: Any, failure: Any) -> None:
    copy = shutil.copytree(stored, tmp_path / "m.zarr")
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["lobster_zarr"] |= note
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(failure, match=r"m\.zarr"):
        lz.open(copy)
