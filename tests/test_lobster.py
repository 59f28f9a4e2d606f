"""The plug-in inside the real Lobster AI, over the real S3 server: its own data manager calls, nothing stands in."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import time
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from oracle import assert_equal, sliced, stored
from test_convert import counted
from test_docs import read_blocks, reader, run_blocks  # noqa: F401 - reader is a fixture
from test_packing import PROVENANCE, same

import lobster_zarr as lz
from lobster_zarr.errors import InvalidArgumentError, InvalidPredicateError, NotFoundError, UnsupportedError
from lobster_zarr.layout import MARKER
from lobster_zarr.packing import PACKED

pytest.importorskip("lobster", reason="the extra 'lobster' is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports uses what pydantic deprecates
    from lobster.core.adapters.factory import load_with_adapter
    from lobster.core.backends.modality_backend import ModalityRecord, ModalitySpec
    from lobster.core.interfaces.backend import IDataBackend
    from lobster.core.runtime.data_manager import DataManagerV2

    from lobster_zarr.lobster import ZarrModalityBackend, attach

if TYPE_CHECKING:
    from tests.s3 import S3Server

CANARY = "canary-SECRET-7f3a"
# Lobster AI's own, and those of what it imports; ours are errors still.
pytestmark = pytest.mark.filterwarnings(r"ignore:::(lobster|pydantic|mudata)\.")


def cells(n_obs: int = 400, seed: int = 0) -> ad.AnnData:
    random = np.random.default_rng(seed)
    kinds = pd.Categorical(random.choice(["T cell", "B cell", "NK cell"], n_obs, p=[0.2, 0.5, 0.3]))
    obs = pd.DataFrame({"cell_type": kinds, "n_counts": random.integers(0, 1000, n_obs)})
    obs.index = [f"cell{i}" for i in range(n_obs)]
    counts = sp.random(n_obs, 50, 0.3, "csr", dtype="float32", random_state=seed)
    var = pd.DataFrame({"chromosome": ["1", "2"] * 25}, index=[f"gene{i}" for i in range(50)])
    umap = random.random((n_obs, 2))
    return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()}, obsm={"X_umap": umap})


def traced(n_obs: int = 400) -> ad.AnnData:
    adata = cells(n_obs)
    adata.uns["provenance"] = copy.deepcopy(PROVENANCE)
    return adata


@pytest.fixture
def options(s3: S3Server) -> dict:
    """Any key will do at this server: this one must not be seen anywhere."""
    return s3.storage_options | {"secret": CANARY}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket(f"lobster-{uuid.uuid4().hex}")


@pytest.fixture
def dm(tmp_path: Path) -> DataManagerV2:
    return DataManagerV2(workspace_path=tmp_path / "workspace", auto_scan=False)


# ---------------------------------------------------------------- the adapter


def test_the_entry_point_registers_the_adapter(dm):
    assert type(dm.adapters["s3_zarr"]).__name__ == "ZarrAdapter"
    assert dm.get_adapter_info()["s3_zarr"]["supported_formats"] == ["zarr", "h5ad"]


def test_load_modality_reads_only_the_subset(dm, bucket, options):
    source, answers = cells(20_000), []
    uri = f"{bucket}/atlas.zarr"
    lz.convert(source, uri, sort_by="cell_type", storage_options=options, progress=False)
    stored_bytes = sum(lz.open(uri, options).attributes["stored_bytes"].values())
    with counted(options["endpoint_url"], answers) as (endpoint, log):
        attach(dm, storage_options=options | {"endpoint_url": endpoint})
        adata = dm.load_modality("t", uri, adapter="s3_zarr", obs_filter={"cell_type": "T cell"}, layers=[])
    expected = sliced(source, source.obs["cell_type"] == "T cell", slice(None))
    assert adata.uns.pop("provenance")["activities"]  # the data manager writes its own
    del expected.layers["counts"]
    assert_equal(adata, expected)
    assert dm.modalities["t"] is adata
    metadata_bytes = answers[0]
    assert log[0] == ("GET", "/" + uri.removeprefix("s3://") + "/zarr.json")
    assert {method for method, _ in log} == {"GET"}
    assert sum(answers) - metadata_bytes < 0.2 * stored_bytes  # a fifth of the cells, and one of two matrices


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"obs_filter": {"cell_type": ["T cell", "B cell"]}}, "cell_type in ['T cell', 'B cell']"),
        ({"obs_filter": {"cell_type": "T cell", "n_counts": 5}}, "cell_type == 'T cell' and n_counts == 5"),
        ({"where": "n_counts > 500 and cell_type == 'T cell'"}, "n_counts > 500 and cell_type == 'T cell'"),
        ({"where": "n_counts BETWEEN 100 AND 200"}, "100 <= n_counts <= 200"),
        (
            {"where": "n_counts > 500", "obs_filter": {"cell_type": "B cell"}},
            "n_counts > 500 and cell_type == 'B cell'",
        ),
        ({"where": "", "obs_filter": {}, "features": []}, "n_counts >= 0"),
    ],
)
@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_a_subset_is_what_slicing_in_memory_gives(dm, tmp_path, given, rows, ending):
    source = cells()
    path = tmp_path / f"a{ending}"
    if ending == ".zarr":
        lz.convert(source, path, progress=False)
    else:
        source.write_h5ad(path)
    adata = dm.adapters["s3_zarr"].from_source(str(path), **given)
    assert_equal(
        adata, sliced(ad.read_h5ad(path) if ending == ".h5ad" else stored(source), source.obs.eval(rows), slice(None))
    )


def test_features_come_in_the_order_that_is_asked_for(dm, tmp_path):
    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    for source in (str(tmp_path / "a.zarr"), cells()):
        load = dm.adapters["s3_zarr"].from_source
        assert list(load(source, features=["gene3", "gene1"]).var_names) == ["gene3", "gene1"]
        assert load(source, features="chromosome == '2'").n_vars == 25
        with pytest.raises(NotFoundError, match="gene3"):
            load(source, features=["gene_3"])


def test_an_h5ad_on_s3_is_read_whole(s3, dm, bucket, options, tmp_path):
    source = cells()
    source.write_h5ad(tmp_path / "a.h5ad")
    s3.client().upload_file(str(tmp_path / "a.h5ad"), bucket.removeprefix("s3://"), "a.h5ad")
    attach(dm, storage_options=options)
    adata = dm.load_modality("a", f"{bucket}/a.h5ad", adapter="s3_zarr")
    assert_equal(adata.X, source.X)
    part = dm.load_modality("b", f"{bucket}/a.h5ad", adapter="s3_zarr", obs_filter={"cell_type": "T cell"})
    assert set(part.obs["cell_type"]) == {"T cell"}


def test_one_modality_of_a_mudata(dm, tmp_path):
    rna, prot = cells(), cells(seed=1)
    prot.var_names = [f"p{i}" for i in range(50)]
    lz.convert({"rna": rna, "prot": prot}, tmp_path / "m.zarr", progress=False)
    load = dm.adapters["s3_zarr"].from_source
    adata = load(str(tmp_path / "m.zarr"), modality="prot", obs_filter={"cell_type": "T cell"})
    assert_equal(adata.X, prot[prot.obs["cell_type"] == "T cell"].X)
    with pytest.raises(InvalidArgumentError, match="rna"):
        load(str(tmp_path / "m.zarr"))
    with pytest.raises(NotFoundError, match="prot"):
        load(str(tmp_path / "m.zarr"), modality="protein")


def test_nothing_that_matches_says_why(dm, tmp_path, caplog):
    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="No observations"):
        dm.load_modality("t", str(tmp_path / "a.zarr"), adapter="s3_zarr", obs_filter={"cell_type": "T cells"})
    assert "Did you mean 'T cell'" in caplog.text


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"obs_filter": {"celltype": "T"}}, NotFoundError, "cell_type"),
        ({"where": "n_counts >"}, InvalidPredicateError, "n_counts"),
        ({"where": 3}, InvalidArgumentError, "expected text"),
        ({"obs_filter": "cell_type"}, InvalidArgumentError, "expected a dict"),
        ({"obsfilter": {}}, InvalidArgumentError, "obs_filter"),
        ({"storage_options": {"secret": CANARY}}, InvalidArgumentError, "attach"),
        ({"secret": CANARY}, InvalidArgumentError, "attach"),
        ({"modality": "rna"}, InvalidArgumentError, "AnnData"),
    ],
)
def test_bad_options_are_refused(dm, tmp_path, given, error, told):
    lz.convert(cells(), tmp_path / "a.zarr", progress=False)
    with pytest.raises(error, match=told) as caught:
        dm.load_modality("t", str(tmp_path / "a.zarr"), adapter="s3_zarr", **given)
    assert CANARY not in str(caught.value)
    assert "t" not in dm.modalities
    assert CANARY not in repr(dm.provenance.activities)


def test_a_signed_uri_is_refused_before_it_is_recorded(dm):
    with pytest.raises(InvalidArgumentError, match="signature"):
        dm.load_modality("t", f"https://host/a.zarr?X-Amz-Signature={CANARY}", adapter="s3_zarr")
    assert CANARY not in repr(dm.provenance.activities)


def test_a_recorded_load_can_be_replayed(dm, bucket, options, monkeypatch):
    lz.convert(cells(), f"{bucket}/a.zarr", storage_options=options, progress=False)
    attach(dm, storage_options=options)
    given = {"obs_filter": {"cell_type": ["T cell"]}, "features": ["gene1"]}
    adata = dm.load_modality("t", f"{bucket}/a.zarr", adapter="s3_zarr", **given)
    record = json.dumps(dm.provenance.activities, default=str)
    assert CANARY not in record
    code = [a["ir"]["code_template"] for a in dm.provenance.activities if a.get("ir")]
    assert any("load_with_adapter" in template for template in code)
    assert not any("cannot be written as Python literals" in template for template in code)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    again = load_with_adapter("s3_zarr", f"{bucket}/a.zarr", **given)
    assert_equal(again.X, adata.X)


# ---------------------------------------------------------------- the workspace


@pytest.fixture(params=["s3", "local"])
def workspace(request, tmp_path, bucket, options) -> ZarrModalityBackend:
    if request.param == "local":
        return ZarrModalityBackend(tmp_path / "stores")
    return ZarrModalityBackend(f"{bucket}/lab/stores", options)


def test_a_modality_round_trips(workspace):
    source = traced()
    assert workspace.list_modalities() == []
    assert not workspace.exists("a")
    workspace.ingest_anndata("a", source, ModalitySpec(omics_type="transcriptomics"))
    assert workspace.exists("a")
    assert_equal(workspace.materialize_anndata("a").X, source.X)
    back = workspace.materialize_anndata("a")
    assert same(back.uns["provenance"], PROVENANCE)
    del back.uns["provenance"], source.uns["provenance"]
    assert_equal(back, stored(source))
    workspace.ingest_anndata("a", source[:7].copy())  # replaces
    assert workspace.materialize_anndata("a").n_obs == 7
    workspace.remove("a")
    assert not workspace.exists("a")
    assert workspace.list_modalities() == []


def test_a_part_is_what_slicing_gives(workspace):
    source = cells()
    workspace.ingest_anndata("a", source)
    part = workspace.materialize_anndata("a", {"cell_type": "T cell"}, ["gene4", "gene2"])
    expected = sliced(source, source.obs["cell_type"] == "T cell", ["gene4", "gene2"])
    assert_equal(part, expected)


@pytest.mark.parametrize("filters", [None, {"cell_type": "T cell"}, {"cell_type": ["T cell", "B cell"], "n_counts": 7}])
@pytest.mark.parametrize(("limit", "offset"), [(None, 0), (3, 0), (3, 2), (0, 0), (None, 395), (10, 1000)])
def test_query_obs_is_what_pandas_gives(tmp_path, filters, limit, offset):
    workspace, source = ZarrModalityBackend(tmp_path), cells()
    workspace.ingest_anndata("a", source)
    kept = source.obs
    for name, wanted in (filters or {}).items():
        kept = kept[kept[name].isin(wanted if isinstance(wanted, list) else [wanted])]
    kept = kept.iloc[offset:] if limit is None else kept.iloc[offset : offset + limit]
    pd.testing.assert_frame_equal(workspace.query_obs("a", None, filters, limit, offset), kept)
    part = workspace.query_obs("a", ["n_counts"], filters, limit, offset)
    pd.testing.assert_frame_equal(part, kept[["n_counts"]])


def test_metadata_is_read_without_the_data(bucket, options):
    workspace, source = ZarrModalityBackend(bucket, options), traced()
    source.obs["flag"] = pd.array([True, None] * 200, dtype="boolean")
    source.uns["lineage"] = {"parent_modality": "raw", "processing_step": "filtered", "version": 2}
    workspace.ingest_anndata("a", source, ModalitySpec(omics_type="transcriptomics"))
    with counted(options["endpoint_url"]) as (endpoint, log):
        described = ZarrModalityBackend(bucket, options | {"endpoint_url": endpoint}).get_metadata("a")
    assert len(log) == 1
    assert (described.n_obs, described.n_vars, described.omics_type) == (400, 50, "transcriptomics")
    assert described.obs_columns == {"cell_type": "category", "n_counts": "int64", "flag": "boolean"}
    assert (described.layers, described.obsm_keys) == (["counts"], ["X_umap"])
    assert described.uns_keys == ["lineage", "provenance"]
    record = workspace.list_modalities()[0]
    assert (record.parent_modality, record.processing_step) == ("raw", "filtered")
    assert record.storage_size_bytes > 1000
    assert record.created_at.year > 2000


def test_listing_fifty_modalities_is_one_request(s3, bucket, options):
    ZarrModalityBackend(f"{bucket}/lab", options).ingest_anndata("m00", cells(5))
    where, client = bucket.removeprefix("s3://"), s3.client()
    for i in range(1, 50):  # what a listing looks at
        client.copy_object(
            Bucket=where, Key=f"lab/m{i:02}.zarr/zarr.json", CopySource=f"{where}/lab/m00.zarr/zarr.json"
        )
    with counted(options["endpoint_url"]) as (endpoint, log):
        listing = ZarrModalityBackend(f"{bucket}/lab", options | {"endpoint_url": endpoint})
        listing.list_modalities()
        seconds = []
        for _ in range(5):  # the quickest: a shared machine has its pauses
            del log[:]
            started = time.perf_counter()
            records = listing.list_modalities()
            seconds.append(time.perf_counter() - started)
            assert len(log) == 1
        assert [r.name for r in records] == [f"m{i:02}" for i in range(50)]
        assert len(log) == 1
        assert records[7].n_obs == 5
        assert {r.n_vars for r in records} == {50}
        assert len(log) == 51  # all roots, once
    assert min(seconds) < 0.1
    assert all(isinstance(r, ModalityRecord) for r in records)
    assert pickle.loads(pickle.dumps(records[0])).n_obs == 5  # noqa: S301


def test_an_ingestion_that_was_broken_off_is_told(s3, bucket, options):
    workspace = ZarrModalityBackend(bucket, options)
    workspace.ingest_anndata("a", cells(5))
    where, client = {"Bucket": bucket.removeprefix("s3://")}, s3.client()
    client.put_object(**where, Key=f"a.zarr/{MARKER}", Body=b"{}")
    client.delete_object(**where, Key="a.zarr/zarr.json")
    assert [(r.n_obs, r.processing_step) for r in workspace.list_modalities()] == [(0, "unfinished")]
    assert not workspace.exists("a")
    workspace.ingest_anndata("a", cells(6))
    assert workspace.list_modalities()[0].n_obs == 6


def test_what_is_not_there_is_a_key_error_with_near_names(workspace, tmp_path):
    workspace.ingest_anndata("liver", cells(5))
    for call in (
        lambda: workspace.get_metadata("livre"),
        lambda: workspace.query_obs("livre"),
        lambda: workspace.materialize_anndata("livre"),
        lambda: workspace.export_h5ad("livre", tmp_path / "x.h5ad"),
        lambda: workspace.remove("livre"),
    ):
        with pytest.raises(KeyError, match="liver"):
            call()
    assert not (tmp_path / "x.h5ad").exists()
    with pytest.raises(NotFoundError, match="cell_type"):
        workspace.query_obs("liver", ["celltype"])


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "a\\b", None])
def test_names_cannot_leave_the_workspace(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match=r"name|key"):
        ZarrModalityBackend(tmp_path).ingest_anndata(name, cells(5))


def test_what_cannot_be_kept_leaves_the_old_one(workspace):
    workspace.ingest_anndata("a", cells(5))
    bad = cells(6)
    bad.uns["x"] = [object()]
    with pytest.raises(UnsupportedError, match="object"):
        workspace.ingest_anndata("a", bad)
    assert workspace.materialize_anndata("a").n_obs == 5


def test_export_is_a_file_as_lobster_reads_it(workspace, tmp_path):
    source = traced()
    workspace.ingest_anndata("a", source)
    path = workspace.export_h5ad("a", tmp_path / "deep" / "a.h5ad")
    back = ad.read_h5ad(path)
    assert PACKED not in back.uns
    assert "'id': 'a1'" in back.uns["provenance"]["activities"][0]  # as Lobster AI's own files have it
    assert_equal(back.X, source.X)
    assert_equal(back.layers["counts"], source.layers["counts"])
    assert [p.name for p in path.parent.iterdir()] == ["a.h5ad"]


# ---------------------------------------------------------------- the data manager over the workspace


def test_the_data_manager_lists_faults_in_and_evicts(dm, workspace):
    for i in range(4):
        workspace.ingest_anndata(f"m{i}", cells(10 + i))
    dm.set_modality_backend(workspace, cache_cap=2)
    assert dm.list_modalities() == ["m0", "m1", "m2", "m3"]
    assert {r["name"]: r["n_obs"] for r in dm.list_modality_records()} == {f"m{i}": 10 + i for i in range(4)}
    for i in range(4):
        assert dm.get_modality(f"m{i}").n_obs == 10 + i
    assert list(dm.modalities) == ["m2", "m3"]
    changed = dm.ensure_in_memory("m3")
    changed.obs["score"] = 1.5
    dm.get_modality("m0"), dm.get_modality("m1")  # evicts m3, which is written first
    assert "m3" not in dm.modalities
    assert list(dm.get_modality("m3").obs["score"]) == [1.5] * 13
    dm.remove_modality("m0")
    assert dm.list_modalities() == ["m1", "m2", "m3"]
    with pytest.raises(ValueError, match="not found"):
        dm.get_modality("m0")


def test_store_modality_keeps_lineage_and_provenance(dm, workspace):
    dm.set_modality_backend(workspace)
    dm.load_modality("a", cells(), adapter="s3_zarr")
    dm.store_modality("a_filtered", cells(30), parent_name="a", step_summary="as a test")
    assert not dm._modality_dirty - {"a"}
    record = {r.name: r for r in workspace.list_modalities()}["a_filtered"]
    assert (record.parent_modality, record.processing_step) == ("a", "filtered")
    dm.auto_save_state()
    assert not dm._modality_dirty
    back = workspace.materialize_anndata("a")
    assert same(back.uns["provenance"], dm.get_modality("a").uns["provenance"])
    assert same(
        workspace.materialize_anndata("a_filtered").uns["lineage"], dm.get_modality("a_filtered").uns["lineage"]
    )
    saved = dm.save_modality("a", "a.h5ad")
    assert ad.read_h5ad(saved).n_obs == 400


# ---------------------------------------------------------------- the data backend


def test_save_modality_to_s3_and_a_part_of_it_back(s3, dm, bucket, options):
    backend = attach(dm, f"{bucket}/lab", options)
    assert isinstance(backend, IDataBackend)
    source = traced()
    dm.load_modality("rna", source, adapter="s3_zarr")
    provenance = copy.deepcopy(dm.modalities["rna"].uns["provenance"])
    dm.save_modality("rna", f"{bucket}/elsewhere/rna.zarr", backend="s3")  # reaches it as s3:/…
    dm.save_modality("rna", "rna.zarr", backend="s3", sort_by="cell_type")
    dm.save_modality("rna", "rna.h5ad", backend="s3")
    listed = s3.client().list_objects_v2(Bucket=bucket.removeprefix("s3://"), Delimiter="/", Prefix="lab/")
    assert [p["Prefix"] for p in listed["CommonPrefixes"]] == ["lab/rna.zarr/"]
    assert [p["Key"] for p in listed["Contents"]] == ["lab/rna.h5ad"]
    for uri in ("lab/rna.zarr", "elsewhere/rna.zarr", "lab/rna.h5ad"):
        whole = dm.adapters["s3_zarr"].from_source(f"{bucket}/{uri}")
        assert same(whole.uns["provenance"], provenance), uri
        assert_equal(whole.X, source.X)
        part = dm.load_modality("t", f"{bucket}/{uri}", adapter="s3_zarr", obs_filter={"cell_type": "T cell"})
        assert_equal(part.X, source[source.obs["cell_type"] == "T cell"].X)
    assert PACKED not in dm.modalities["rna"].uns  # what is in memory was not changed
    assert backend.exists("rna.zarr")
    assert same(backend.load("rna.zarr").uns["provenance"], provenance)
    assert sorted(Path(name).name for name in backend.list_files(".")) == ["rna.h5ad", "rna.zarr"]
    assert dm.get_backend_info()["s3"]["backend_type"] == "s3"
    backend.delete("rna.zarr")
    with pytest.raises(FileNotFoundError):
        backend.load("rna.zarr")


def test_save_mudata(dm, bucket, options):
    backend = attach(dm, bucket, options)
    rna, prot = traced(), cells(seed=1)
    prot.var_names = [f"p{i}" for i in range(50)]
    dm.load_modality("rna", rna, adapter="s3_zarr")
    dm.load_modality("prot", prot, adapter="s3_zarr")
    dm.save_mudata("both.zarr")
    dm.save_mudata(f"{bucket}/deep/both.h5mu", modalities=["rna", "prot"])
    for path in ("both.zarr", "deep/both.h5mu"):
        back = backend.load(path)
        assert_equal(back["prot"].X, prot.X)
        assert same(back.uns["provenance"]["activities"], dm.provenance.activities)
    loaded = dm.load_modality("p", f"{bucket}/both.zarr", adapter="s3_zarr", modality="prot", features=["p3"])
    assert_equal(loaded.X, prot[:, ["p3"]].X)


def test_local_paths_stay_local(dm, tmp_path):
    attach(dm)
    dm.default_backend = "s3"
    dm.load_modality("a", traced(), adapter="s3_zarr")
    dm.save_modality("a", "a.zarr")
    dm.save_modality("a", tmp_path / "elsewhere" / "a.h5ad")
    assert lz.open(dm.data_dir / "a.zarr").n_obs == 400
    assert ad.read_h5ad(tmp_path / "elsewhere" / "a.h5ad").n_obs == 400


def test_a_data_package_is_made(dm, bucket, options, tmp_path):
    attach(dm, bucket, options)
    dm.default_backend = "s3"
    dm.load_modality("a", cells(), adapter="s3_zarr")
    del dm.modalities["a"].layers["counts"]
    package = dm.create_data_package(str(tmp_path / "packages"), include_png=False)
    with zipfile.ZipFile(package) as archive:
        assert any(name.endswith("a.h5ad") for name in archive.namelist())


def test_an_s3_uri_is_saved_with_the_workspace_attached(dm, bucket, options):
    attach(dm, f"{bucket}/lab", options, workspace=True)
    dm.load_modality("a", traced(), adapter="s3_zarr")
    dm.save_modality("a", f"{bucket}/elsewhere/a.zarr")
    assert lz.open(f"{bucket}/lab/a.zarr", options).n_obs == 400
    assert lz.open(f"{bucket}/elsewhere/a.zarr", options).n_obs == 400


def test_what_cannot_be_saved_is_a_value_error(dm, bucket, options):
    backend = attach(dm, bucket, options)
    bad = cells(5)
    bad.uns["x"] = [object()]
    with pytest.raises(ValueError, match="object"):
        backend.save(bad, "a.zarr")
    assert not backend.exists("a.zarr")


# ---------------------------------------------------------------- no secret leaves


def test_no_secret_is_told(dm, bucket, options, caplog, tmp_path):
    told = []
    with caplog.at_level(logging.DEBUG):
        backend = attach(dm, bucket, options, workspace=True)
        workspace = dm._modality_backend
        dm.load_modality("a", cells(20), adapter="s3_zarr")
        dm.auto_save_state()
        dm.load_modality("b", f"{bucket}/a.zarr", adapter="s3_zarr", obs_filter={"cell_type": "T cell"})
        for call in (
            lambda: dm.load_modality("c", f"{bucket}/none.zarr", adapter="s3_zarr"),
            lambda: dm.load_modality("c", "s3://no-such-bucket-here/a.zarr", adapter="s3_zarr"),
            lambda: workspace.get_metadata("none"),
        ):
            with pytest.raises((KeyError, OSError)) as caught:
                call()
            told += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    adapter = dm.adapters["s3_zarr"]
    told += [caplog.text, repr(dm.provenance.activities), repr(dm.provenance.entities), repr(dm.get_backend_info())]
    told += [repr(backend), repr(workspace), str(vars(workspace)), repr(adapter), str(vars(adapter))]
    told += [repr(dm.get_adapter_info()), repr(workspace.list_modalities()), repr(workspace.get_metadata("a"))]
    assert not [text for text in told if CANARY in text]
    for thing in (workspace, adapter, backend, workspace.list_modalities()):
        assert CANARY.encode() not in pickle.dumps(thing)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    again = pickle.loads(pickle.dumps(workspace))  # noqa: S301
    assert again.exists("a")  # borrowed from this process


@pytest.mark.usefixtures("reader")
def test_the_examples_of_the_page_run():
    page = Path(__file__).parents[1] / "docs" / "lobster.md"
    blocks = read_blocks(page.read_text(encoding="utf-8").replace("<!-- no-run: needs lobster-ai -->", ""))
    assert run_blocks(blocks, page) == 3
