"""A workspace of modalities: the guide's flows, local and S3 side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from mudatas import assert_mudata_equal, citeseq
from oracle import assert_equal, sliced, stored, stored_mudata
from test_convert import cells
from test_lazy import as_lazy

from lobster_zarr import errors
from lobster_zarr.backends import DataManager, H5ADBackend

if TYPE_CHECKING:
    from tests.s3 import S3Server

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]


def on_s3(s3: S3Server, bucket: str, **options: Any) -> H5ADBackend:
    s3.bucket(bucket)
    backend = H5ADBackend(progress=False, **options)
    backend.configure_s3(bucket, "us-east-1", s3.key, s3.secret, endpoint_url=s3.endpoint)
    return backend


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_backends_are_registered_and_chosen(work: Path) -> None:
    dm = DataManager(workspace_path="./workspace", default_backend="h5ad")
    local = H5ADBackend(base_path="./data")
    dm.register_backend("local", local)
    with pytest.raises(ValueError, match="'local' already"):
        dm.register_backend("local", H5ADBackend())
    assert dm.backends["local"] is local
    dm.register_backend("local", H5ADBackend(base_path="./other"), overwrite=True)
    dm.default_backend = "local"
    for kind in (ValueError, KeyError):
        with pytest.raises(kind, match=r"Did you mean 'local'.*'h5ad', 'mudata', 'local'"):
            dm.default_backend = "locale"
    assert dm.default_backend == "local"
    with pytest.raises(ValueError, match="no backend 's3'"):
        DataManager(default_backend="s3")
    with pytest.raises(ValueError, match="a str is no backend"):
        dm.register_backend("x", "text")


def test_modalities_are_kept_by_name(work: Path) -> None:
    dm = DataManager("./workspace")
    dm.modalities["rna_seq"] = cells()
    dm.save_modality("rna_seq", "a.h5ad")
    assert_equal(stored(dm.load_modality("a.h5ad", "again")), stored(cells()))
    assert dm.load_modality("a.h5ad") is dm.get_modality("a")
    assert dm.list_modalities() == ["rna_seq", "again", "a"]
    dm.remove_modality("again")
    assert dm.list_modalities() == ["rna_seq", "a"]
    for attempt in (dm.get_modality, dm.remove_modality, lambda name: dm.save_modality(name, "b.h5ad")):
        with pytest.raises(errors.NotFoundError, match="Did you mean 'rna_seq'"):
            attempt("rna_sec")
    assert "rna_seq" in repr(dm)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("k.h5ad", "workspace/data/k.h5ad"),
        (Path("./workspace/data/k.h5ad"), "workspace/data/k.h5ad"),
        ("./workspace/cache/k.h5ad", "workspace/cache/k.h5ad"),
        ("./data/k.h5ad", "workspace/data/k.h5ad"),
        ("runs/k.zarr", "workspace/data/runs/k.zarr"),
    ],
    ids=str,
)
def test_paths_of_the_guide_lie_in_the_workspace(work: Path, path: Any, written: str) -> None:
    dm = DataManager(workspace_path="./workspace")
    dm.modalities["rna_seq"] = cells()
    assert dm.save_modality("rna_seq", path) == str(work / written)
    assert (work / written).exists()
    assert_equal(stored(dm.load_modality(path, "shared_rna")), stored(cells()))
    with pytest.raises(ValueError, match="leaves"):
        dm.save_modality("rna_seq", "../k.h5ad")
    dm.save_modality("rna_seq", work / "notebook" / "k.h5ad")
    assert (work / "notebook" / "k.h5ad").is_file()


def test_local_and_s3_side_by_side(s3: S3Server, work: Path) -> None:
    dm = DataManager(workspace_path="./workspace")
    dm.register_backend("local", H5ADBackend(base_path="./data", progress=False))
    dm.register_backend("s3", on_s3(s3, "workspace-hybrid"))
    dm.modalities["rna_seq"] = cells()
    dm.default_backend = "local"
    assert dm.save_modality("rna_seq", "a.h5ad") == str(work / "data" / "a.h5ad")
    assert dm.save_modality("rna_seq", "s3://workspace-hybrid/p/a.h5ad") == "s3://workspace-hybrid/p/a.h5ad"
    dm.default_backend = "s3"
    assert dm.save_modality("rna_seq", "a.h5ad") == "s3://workspace-hybrid/a.h5ad"
    assert dm.save_modality("rna_seq", "./workspace/data/b.h5ad") == "s3://workspace-hybrid/b.h5ad"
    assert dm.save_modality("rna_seq", "c.h5ad", "local") == str(work / "data" / "c.h5ad")
    assert dm.save_modality("rna_seq", work / "d.h5ad") == str(work / "d.h5ad")
    for path in ("s3://workspace-hybrid/p/a.h5ad", Path("s3://workspace-hybrid/p/a.h5ad"), "a.h5ad", work / "d.h5ad"):
        assert_equal(stored(dm.load_modality(path, modality_name="back")), stored(cells()))
    assert_equal(stored(dm.load_modality("c.h5ad", backend="local")), stored(cells()))


def test_an_s3_path_goes_to_the_backend_of_its_bucket(s3: S3Server, work: Path) -> None:
    dm = DataManager("./workspace")
    dm.register_backend("first", on_s3(s3, "workspace-first"))
    dm.register_backend("second", on_s3(s3, "workspace-second"))
    taken = [dm._taker(f"s3://{bucket}/a.h5ad", None).bucket for bucket in ("workspace-second", "workspace-third")]
    assert taken == ["workspace-second", "workspace-first"]


def test_a_part_is_loaded_and_lazily(s3: S3Server, work: Path) -> None:
    dm = DataManager("./workspace")
    dm.register_backend("s3", on_s3(s3, "workspace-part"))
    dm.modalities["rna"] = adata = cells()
    dm.save_modality(modality_name="rna", path="s3://workspace-part/a.zarr", sort_by="cell_type")
    rows = np.flatnonzero(adata.obs["cell_type"] == "T cell")
    found = dm.load_modality("s3://workspace-part/a.zarr", "t", where="cell_type == 'T cell'", var=["gene1"])
    assert_equal(found, sliced(stored(adata), rows, ["gene1"]))
    lazy = dm.load_modality("s3://workspace-part/a.zarr", "lazy", lazy=True)
    assert not isinstance(lazy.obs, pd.DataFrame)
    dm.save_modality("lazy", "lazy.h5ad")
    assert_equal(stored(dm.load_modality("lazy.h5ad")), stored(as_lazy(stored(adata))))


def test_a_mudata_goes_and_comes_whatever_the_default_is(s3: S3Server, work: Path) -> None:
    dm = DataManager("./workspace")
    dm.register_backend("s3", on_s3(s3, "workspace-mu"))
    dm.modalities["cite"] = mdata = citeseq()
    for path in ("m.h5mu", "m.zarr", "s3://workspace-mu/m.h5mu", "s3://workspace-mu/m.zarr"):
        dm.save_modality("cite", path)
        assert_mudata_equal(stored_mudata(dm.load_modality(path, "back")), stored_mudata(mdata))
    rna = dm.load_modality("s3://workspace-mu/m.zarr", "rna", modalities=["rna"])
    assert list(rna.mod) == ["rna"]


def test_a_workspace_may_lie_on_s3(s3: S3Server, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": s3.key, "SECRET_ACCESS_KEY": s3.secret, "ENDPOINT_URL": s3.endpoint}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    dm = DataManager(f"{s3.bucket('workspace-remote')}/team")
    dm.modalities["rna"] = cells()
    assert dm.save_modality("rna", "a.zarr") == "s3://workspace-remote/team/data/a.zarr"
    assert_equal(stored(dm.load_modality(Path("a.zarr"))), stored(cells()))


class Custom:
    """A backend of the caller's own."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def save(self, data: Any, path: Any) -> None:
        self.kept[str(path)] = data

    def load(self, path: Any) -> Any:
        return self.kept[str(path)]


def test_any_object_that_loads_and_saves_is_a_backend(work: Path) -> None:
    dm = DataManager("./workspace", backends={"mine": Custom()}, default_backend="mine")
    dm.modalities["rna"] = cells()
    assert dm.save_modality("rna", "a") == "a"
    assert dm.load_modality("a") is dm.modalities["rna"]
