"""The documented S3 backend: what its guide shows is done, with the exceptions that it names."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from mudatas import assert_mudata_equal, citeseq, rows_of, selected
from oracle import assert_equal, sliced, stored, stored_mudata
from test_convert import cells
from test_lazy import as_lazy

import lobster_zarr as lz
from lobster_zarr import errors, transfer
from lobster_zarr.backends import H5ADBackend, MuDataBackend, Parts, StorageBackend
from tests.gates import gate

if TYPE_CHECKING:
    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column; mudata's notes on names are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
SECRETS = {"access_key": "CANARYKEY0001", "secret_key": "CANARYSECRET0002", "session_token": "CANARYTOKEN0003"}
T_CELLS = "cell_type == 'T cell'"


def configured(s3: S3Server, bucket: str, kind: type[StorageBackend] = H5ADBackend, **options: Any) -> Any:
    s3.bucket(bucket)
    backend = kind(progress=False, **options)
    backend.configure_s3(bucket, "us-east-1", s3.key, s3.secret, endpoint_url=s3.endpoint)
    return backend


def t_cells(adata: ad.AnnData) -> ad.AnnData:
    return sliced(adata, np.flatnonzero(adata.obs["cell_type"] == "T cell"), slice(None))


# ---------------------------------------------------------------- configuration


def test_paths_are_recognised_as_the_guide_shows() -> None:
    backend = H5ADBackend(base_path="./data")
    assert backend._is_s3_path("s3://my-bucket/data/file.h5ad") is True
    assert backend._is_s3_path("./local/path.h5ad") is False
    assert (backend.compression, backend.compression_opts) == ("gzip", 6)
    assert backend.s3_config == dict.fromkeys(("bucket", "region", "access_key", "secret_key", "session_token"))
    assert backend.get_storage_info()["backend_type"] == "local"


def test_the_configuration_is_kept_and_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    backend = H5ADBackend()
    with caplog.at_level(logging.DEBUG):
        backend.configure_s3("my-lobster-data", "us-east-1", **SECRETS, requester_pays=True)
    assert backend.s3_config["bucket"] == "my-lobster-data"
    assert backend.s3_config["region"] == "us-east-1"
    assert backend.s3_config["requester_pays"] is True
    assert {backend.s3_config[name] for name in SECRETS} == {"***"}
    again = pickle.loads(pickle.dumps(backend))  # noqa: S301 - written one line before
    assert again.s3_config == backend.s3_config
    assert again._options.given()["secret"] == SECRETS["secret_key"]  # borrowed from this process
    shown = [repr(backend), str(backend.s3_config), str(backend.get_storage_info()), caplog.text]
    for secret in SECRETS.values():
        assert all(secret not in text for text in shown)
        assert secret.encode() not in pickle.dumps(backend)
    assert backend.get_storage_info()["backend_type"] == "s3"


def test_what_cannot_be_configured_is_said() -> None:
    backend = H5ADBackend()
    with pytest.raises(ValueError, match="its name alone"):
        backend.configure_s3("bucket/prefix")
    with pytest.raises(ValueError, match="not whole"):
        backend.configure_s3("")
    with pytest.raises(ValueError, match="expected both"):
        backend.configure_s3("bucket", access_key="only")
    with pytest.raises(ValueError, match="Did you mean 'requester_pays'"):
        backend.configure_s3("bucket", requester_pay=True)
    with pytest.raises(ValueError, match="unencrypted"):
        backend.configure_s3("bucket", endpoint_url="http://example.com")
    with pytest.raises(ValueError, match="compression is 'zip'"):
        H5ADBackend(compression="zip")
    with pytest.raises(ValueError, match="expected 0 to 9"):
        H5ADBackend(compression_opts=10)
    assert backend.bucket is None


def test_a_secret_is_in_no_error_and_no_log(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    backend = H5ADBackend(progress=False)
    s3.bucket("backend-canary")
    backend.configure_s3("backend-canary", "us-east-1", **SECRETS, endpoint_url=s3.endpoint)
    with caplog.at_level(logging.DEBUG):
        backend.save(cells(), "a.h5ad")
        backend.save(cells(), "a.zarr")
        for path in ("none.h5ad", "none.zarr"):
            with pytest.raises(FileNotFoundError) as caught:
                backend.load(path)
            assert not [
                secret for secret in SECRETS.values() if secret in f"{caught.value!r} {caught.value.__cause__!r}"
            ]
    assert caplog.records
    assert not [secret for secret in SECRETS.values() if secret in caplog.text]


# ---------------------------------------------------------------- load and save


@pytest.mark.parametrize("name", ["a.h5ad", "deep/er/a.h5ad", "a.zarr", "deep/er/a.zarr"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
def test_an_anndata_comes_back(s3: S3Server, tmp_path: Path, remote: bool, name: str) -> None:
    backend = configured(s3, "backend-round") if remote else H5ADBackend(tmp_path, progress=False)
    adata, before = cells(), stored(cells())
    backend.save(adata, name)
    assert_equal(stored(adata), before)  # what is saved is left as it was
    assert_equal(stored(backend.load(name)), stored(adata))
    assert backend.exists(name)
    backend.save(adata[:10], name)  # a save replaces
    assert backend.load(name).n_obs == 10
    with pytest.raises(FileExistsError):
        backend.save(adata, name, overwrite=False)
    backend.delete(name)
    assert not backend.exists(name)
    for gone in (backend.load, backend.delete, backend.get_metadata):
        with pytest.raises(FileNotFoundError) as caught:
            gone(name)
        assert isinstance(caught.value, errors.NotFoundError)
    if remote:
        assert "Contents" not in s3.client().list_objects_v2(Bucket="backend-round")
    else:
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["m.h5mu", "m.zarr"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
def test_a_mudata_comes_back_and_a_part_of_it(s3: S3Server, tmp_path: Path, remote: bool, name: str) -> None:
    backend = configured(s3, "backend-mu", MuDataBackend) if remote else MuDataBackend(tmp_path, progress=False)
    mdata = citeseq()
    backend.save(mdata, name)
    assert_mudata_equal(stored_mudata(backend.load(name)), stored_mudata(mdata))
    part = backend.load(name, where="rna:n_counts > 500", modalities=["rna", "prot"])
    whole = stored_mudata(mdata) if name == "m.zarr" else backend.load(name)
    expected = selected(whole, rows_of(mdata, "`rna:n_counts` > 500"), modalities=["rna", "prot"])
    assert_mudata_equal(part, expected)
    facts = backend.get_metadata(name)
    assert facts["format"] == name.rpartition(".")[2]
    if name == "m.zarr":
        assert (facts["n_obs"], list(facts["modalities"])) == (mdata.n_obs, list(mdata.mod))
        assert facts["modalities"]["prot"] == {"n_obs": 150, "n_vars": 12}
    assert list(backend.query(name, "SELECT count(*) AS n FROM obs", "polars")["n"]) == [mdata.n_obs]
    assert isinstance(backend.query(name, "SELECT obs WHERE batch = 'x'", "anndata"), mudata.MuData)


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
@pytest.mark.parametrize("where", [T_CELLS, {"cell_type": "T cell"}, "cell_type = 'T cell'"], ids=str)
def test_a_part_of_the_cells_and_genes_is_loaded(s3: S3Server, name: str, where: Any) -> None:
    backend, adata = configured(s3, "backend-part"), cells()
    backend.save(adata, name)
    genes = ["gene3", "gene1"]
    whole = stored(adata) if name == "a.zarr" else backend.load(name)  # a file keeps its own spelling of text in uns
    expected = sliced(whole, adata.obs["cell_type"] == "T cell", genes)
    assert_equal(backend.load(name, where=where, var=genes), expected)


def test_of_a_store_only_the_part_is_read(s3: S3Server) -> None:
    rng = np.random.default_rng(0)
    groups = pd.Categorical(np.repeat([f"type {i}" for i in range(20)], 500))
    obs = pd.DataFrame({"cell_type": groups}, index=[f"c{i}" for i in range(10_000)])
    adata = ad.AnnData(rng.random((10_000, 200), np.float32), obs=obs)
    a = configured(s3, "backend-share")
    a.save(adata, "s3://backend-share/team/atlas.zarr", sort_by="cell_type")
    with gate(s3.endpoint) as between:
        b = H5ADBackend(progress=False)
        b.configure_s3("backend-share", access_key="b-key", secret_key="b-secret", endpoint_url=between.endpoint)
        found = b.load("s3://backend-share/team/atlas.zarr", where="cell_type == 'type 7'")
        assert_equal(stored(found), stored(sliced(adata, slice(3500, 4000), slice(None))))
        assert len(between.asked) <= 6
        listed = s3.client().list_objects_v2(Bucket="backend-share", Prefix="team/atlas.zarr/")["Contents"]
        total = sum(entry["Size"] for entry in listed)
        assert total > 5_000_000
        opened = lz.open("s3://backend-share/team/atlas.zarr", b._options.given())
        opened.query("cell_type == 'type 7'").to_memory()
        assert opened.stats.n_bytes < total / 10


def test_a_store_is_loaded_lazily_and_what_is_lazy_is_saved(s3: S3Server) -> None:
    backend, adata = configured(s3, "backend-lazy"), cells()
    backend.save(adata, "a.zarr")
    lazy = backend.load("a.zarr", where=T_CELLS, lazy=True)
    assert not isinstance(lazy.obs, pd.DataFrame)
    backend.save(lazy, "b.h5ad")
    assert_equal(stored(backend.load("b.h5ad")), stored(as_lazy(t_cells(stored(adata)))))


def test_a_local_file_stays_where_it_is_when_backed(tmp_path: Path) -> None:
    backend = H5ADBackend(tmp_path)
    backend.save(cells(), "a.h5ad")
    backed = backend.load("a.h5ad", backed=True)
    assert backed.isbacked
    backed.file.close()


def test_text_stays_text_in_the_file_itself(tmp_path: Path) -> None:
    H5ADBackend(tmp_path, compression_opts=9).save(cells(), "a.h5ad")
    H5ADBackend(tmp_path).save(cells(), "b.h5ad", compression="lzf")
    MuDataBackend(tmp_path, compression_opts=1).save(citeseq(), "m.h5mu")
    with h5py.File(tmp_path / "a.h5ad") as a, h5py.File(tmp_path / "b.h5ad") as b, h5py.File(tmp_path / "m.h5mu") as m:
        assert a["obs/note"].attrs["encoding-type"] in {"string-array", "nullable-string-array"}
        assert (a["X/data"].compression, a["X/data"].compression_opts) == ("gzip", 9)
        assert b["X/data"].compression == "lzf"
        assert m["mod/rna/X/data"].compression_opts == 1


def test_a_file_goes_up_in_parts_and_tells_how_far(s3: S3Server) -> None:
    backend = configured(s3, "backend-parts", compression="none", parts=Parts(5 << 20, 5 << 20, 2))
    adata = ad.AnnData(np.random.default_rng(0).random((3000, 1000), np.float32))
    seen: list[tuple[int, int]] = []
    backend.save(adata, "big.h5ad", callback=lambda *n: seen.append(n))
    assert seen[-1][0] == seen[-1][1] == backend.get_metadata("big.h5ad")["size"]
    assert s3.client().head_object(Bucket="backend-parts", Key="big.h5ad", PartNumber=1)["PartsCount"] == 3
    assert_equal(backend.load("big.h5ad").X, adata.X)


# ---------------------------------------------------------------- what is refused


def test_kinds_and_endings_are_not_mixed(tmp_path: Path) -> None:
    h5ad, h5mu = H5ADBackend(tmp_path, progress=False), MuDataBackend(tmp_path, progress=False)
    both = h5ad.of_any_kind()
    both.save(citeseq(), "m.zarr")
    both.save(citeseq(), "m.h5mu")
    both.save(cells(), "a.zarr")
    assert isinstance(both.load("m.zarr"), mudata.MuData)
    for attempt in (
        lambda: h5ad.load("m.zarr"),
        lambda: h5mu.load("a.zarr"),
        lambda: h5ad.load("m.h5mu"),
        lambda: h5ad.save(citeseq(), "m2.zarr"),
        lambda: h5mu.save(cells(), "m2.h5mu"),
        lambda: both.save(cells(), "a.h5mu"),
        lambda: both.save(citeseq(), "m.h5ad"),
        lambda: h5ad.load("table.csv"),
        lambda: h5ad.save(cells(), "no_ending"),
        lambda: h5ad.save({"no": "data"}, "a.h5ad"),
        lambda: h5ad.load("a.zarr", backed=True),
        lambda: h5ad.save(cells(), "a.h5ad", sort_by="cell_type"),
    ):
        with pytest.raises(ValueError, match=r"expected|does|is for") as caught:
            attempt()
        assert isinstance(caught.value, errors.LobsterZarrError)
    assert [h5ad.supports_format(name) for name in ("h5ad", "ZARR", ".h5ad", "h5mu")] == [True, True, True, False]
    assert [h5mu.supports_format(name) for name in ("h5mu", "zarr", "h5ad")] == [True, True, False]


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_what_cannot_be_written_is_a_value_error_and_leaves_nothing(tmp_path: Path, ending: str) -> None:
    adata = cells()
    adata.uns["function"] = print
    with pytest.raises(ValueError, match="function") as caught:
        H5ADBackend(tmp_path, progress=False).save(adata, f"a.{ending}")
    assert isinstance(caught.value, errors.UnsupportedError)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_file_is_a_value_error(s3: S3Server, tmp_path: Path) -> None:
    backend = configured(s3, "backend-damaged")
    backend.save(cells(), tmp_path / "a.h5ad")
    content = (tmp_path / "a.h5ad").read_bytes()
    for name, body in {"no.h5ad": b"no HDF5", "cut.h5ad": content[: len(content) // 2]}.items():
        (tmp_path / name).write_bytes(body)
        s3.client().put_object(Bucket="backend-damaged", Key=name, Body=body)
        for path in (tmp_path / name, name):
            with pytest.raises(ValueError, match=name) as caught:
                backend.load(path)
            assert isinstance(caught.value, errors.FormatError)
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = 1
    with pytest.raises(errors.FormatError):
        backend.query(tmp_path / "other.h5ad", "SELECT obs")


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file/a.h5ad", "file/a.zarr"):
        with pytest.raises(OSError, match="file") as caught:
            H5ADBackend(tmp_path, progress=False).save(cells(), name)
        assert isinstance(caught.value, errors.StorageError)


def test_what_is_denied_is_a_permission_error(s3: S3Server, tmp_path: Path) -> None:
    configured(s3, "backend-denied").save(cells(), "a.h5ad")
    configured(s3, "backend-denied").save(cells(), "a.zarr")
    who = s3.user("backend-nobody")
    nobody = H5ADBackend(progress=False)
    nobody.configure_s3("backend-denied", "us-east-1", who["key"], who["secret"], endpoint_url=s3.endpoint)
    with s3.enforced_access():
        for name in ("a.h5ad", "a.zarr"):
            for attempt in (
                nobody.load,
                nobody.exists,
                nobody.get_metadata,
                nobody.delete,
                lambda path: nobody.save(cells(), path),
            ):
                with pytest.raises(PermissionError) as caught:
                    attempt(name)
                assert isinstance(caught.value, errors.AccessDeniedError)
        with pytest.raises(PermissionError):
            nobody.list_files()


def test_a_bucket_that_is_not_there_is_a_file_not_found_error(s3: S3Server) -> None:
    backend = H5ADBackend(progress=False)
    backend.configure_s3("backend-no-such", "us-east-1", s3.key, s3.secret, endpoint_url=s3.endpoint)
    assert not backend.exists("a.h5ad")
    assert not backend.exists("a.zarr")
    for attempt in (
        lambda: backend.load("a.h5ad"),
        lambda: backend.load("a.zarr"),
        lambda: backend.save(cells(), "a.h5ad"),
        backend.list_files,
        lambda: backend.delete("a.h5ad"),
    ):
        with pytest.raises(FileNotFoundError, match="backend-no-such") as caught:
            attempt()
        assert isinstance(caught.value, errors.BucketNotFoundError)


# ---------------------------------------------------------------- find and describe


@pytest.mark.parametrize("name", ["a.h5ad", "p/a.zarr"])
def test_metadata_is_one_request(s3: S3Server, name: str) -> None:
    backend = configured(s3, "backend-facts")
    backend.save(cells(), name, **({"sort_by": "donor"} if name.endswith("zarr") else {}))
    local = {"path": f"s3://backend-facts/{name}", "name": Path(name).name}
    with gate(s3.endpoint) as between:
        backend.configure_s3("backend-facts", "us-east-1", s3.key, s3.secret, endpoint_url=between.endpoint)
        facts = backend.get_metadata(name)
        assert len(between.asked) == 1
    assert {key: facts[key] for key in local} == local
    assert facts["format"] == name.rpartition(".")[2]
    listed = s3.client().list_objects_v2(Bucket="backend-facts", Prefix=name)["Contents"]
    newest = max(entry["LastModified"].timestamp() for entry in listed)
    assert facts["modified"] == pytest.approx(newest, abs=2)
    assert len(facts["checksum"]) == 64
    if name == "a.h5ad":
        assert facts["size"] == listed[0]["Size"]
    else:
        assert (facts["n_obs"], facts["n_vars"], facts["sort_by"]) == (60, 20, ["donor"])
        assert 0 < facts["size"] <= sum(entry["Size"] for entry in listed)


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_metadata_of_what_is_here(tmp_path: Path, name: str) -> None:
    backend = H5ADBackend(tmp_path, progress=False)
    backend.save(cells(), name)
    facts = backend.get_metadata(tmp_path / name)
    assert facts["path"] == str(tmp_path / name)
    assert len(facts["checksum"]) == 64
    assert facts["size"] > 0
    assert facts["modified"] == pytest.approx((tmp_path / name).stat().st_mtime, abs=5)


def test_metadata_of_stores_that_others_wrote(tmp_path: Path) -> None:
    import zarr

    cells().write_zarr(tmp_path / "a.zarr", convert_strings_to_categoricals=False)
    backend = H5ADBackend(tmp_path)
    facts = backend.get_metadata("a.zarr")
    assert (facts["n_obs"], facts["n_vars"]) == (60, 20)
    zarr.open_group(tmp_path / "no.zarr", mode="w", zarr_format=3)
    assert backend.exists("no.zarr")
    with pytest.raises(ValueError, match="obs"):
        backend.get_metadata("no.zarr")
    with pytest.raises(ValueError, match="obs"):
        backend.load("no.zarr")


def test_names_are_listed(s3: S3Server) -> None:
    backend = configured(s3, "backend-list")
    for name in ("a.h5ad", "runs/b.zarr", "runs/c.h5ad"):
        backend.save(cells(8, 3), name)
    assert backend.list_files() == ["s3://backend-list/a.h5ad"]
    assert backend.list_files("runs", "*.zarr") == ["s3://backend-list/runs/b.zarr"]
    assert len(backend.list_files(".", "**")) == 3
    with pytest.raises(FileNotFoundError):
        backend.list_files("none")


def test_versions_by_name_as_the_guide_has_them(s3: S3Server) -> None:
    backend = configured(s3, "backend-stamps")
    stamps = ["20250116_143000", "20250117_090000"]
    for n, stamp in enumerate(stamps):
        backend.save(cells(8 + n, 3), f"experiments/gse180759_{stamp}.h5ad")
    found = backend.list_files("experiments", "gse180759_*.h5ad")
    assert [Path(uri).stem.removeprefix("gse180759_") for uri in found] == stamps
    assert backend.load(found[0]).n_obs == 8


@pytest.mark.parametrize(
    ("base_path", "path", "expected"),
    [
        (None, "k.h5ad", "s3://backend-paths/k.h5ad"),
        (None, Path("s3://backend-paths/p/k.h5ad"), "s3://backend-paths/p/k.h5ad"),
        ("s3://backend-paths/base", "k.h5ad", "s3://backend-paths/base/k.h5ad"),
        (Path("s3://backend-paths/base"), Path("k.h5ad"), "s3://backend-paths/base/k.h5ad"),
    ],
)
def test_what_is_saved_at_a_mangled_path_is_there(s3: S3Server, base_path: Any, path: Any, expected: str) -> None:
    backend = configured(s3, "backend-paths", base_path=base_path)
    backend.save(cells(8, 3), path)
    assert backend.validate_path(path) == expected
    key = expected.removeprefix("s3://backend-paths/")
    assert s3.client().head_object(Bucket="backend-paths", Key=key)["ContentLength"] > 0
    backend.delete(path)


def test_a_local_base_is_not_left_while_an_absolute_path_stays(s3: S3Server, tmp_path: Path) -> None:
    backend = configured(s3, "backend-base", base_path=tmp_path / "base")
    with pytest.raises(ValueError, match="leaves"):
        backend.save(cells(8, 3), "../a.h5ad")
    backend.save(cells(8, 3), tmp_path / "elsewhere" / "a.h5ad")
    backend.save(cells(8, 3), "in/a.h5ad")
    assert (tmp_path / "elsewhere" / "a.h5ad").is_file()
    assert backend.validate_path("in/a.h5ad") == tmp_path / "base" / "in" / "a.h5ad"
    assert "Contents" not in s3.client().list_objects_v2(Bucket="backend-base")


# ---------------------------------------------------------------- query


@pytest.fixture(scope="module")
def asked(s3: S3Server) -> Any:
    backend = configured(s3, "backend-query")
    for name in ("a.h5ad", "a.zarr"):
        backend.save(cells(), name)
    return backend


WHOLE = "SELECT obs WHERE obs.cell_type = 'T cell'"


def names_of(output_format: str, found: Any) -> list[str]:
    match output_format:
        case "parquet":
            return pq.read_table(io.BytesIO(found)).column("index").to_pylist()
        case "csv":
            return pd.read_csv(io.BytesIO(found))["index"].to_list()
        case "json":
            return [row["index"] for row in json.loads(found)]
        case "anndata":
            return list(found.obs_names)
        case "arrow":
            return found.column("index").to_pylist()
    return list(found["index"])


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
@pytest.mark.parametrize("output_format", ["parquet", "csv", "json", "anndata", "pandas", "arrow", "polars"])
def test_a_query_gives_every_format(asked: Any, name: str, output_format: str) -> None:
    found = asked.query(f"s3://backend-query/{name}", query=WHOLE, output_format=output_format)
    expected = t_cells(cells())
    assert names_of(output_format, found) == list(expected.obs_names)
    if output_format == "anndata":
        assert_equal(found, t_cells(stored(cells()) if name == "a.zarr" else asked.load(name)))
    if output_format == "pandas":
        np.testing.assert_array_equal(found["n_counts"], expected.obs["n_counts"])
        assert list(found.columns) == ["index", *expected.obs.columns]


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_a_query_counts_and_groups(asked: Any, name: str) -> None:
    text = "SELECT donor, count(*) AS n FROM obs WHERE cell_type = 'T cell' GROUP BY donor ORDER BY donor"
    found = asked.query(name, text, "pandas")
    expected = t_cells(cells()).obs["donor"].value_counts().sort_index()
    assert found["n"].to_list() == expected.to_list()


@pytest.mark.parametrize("output_format", ["parquet", "csv", "json", "anndata"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
def test_an_answer_is_written_where_it_is_wanted(asked: Any, tmp_path: Path, remote: bool, output_format: str) -> None:
    ending = "zarr" if output_format == "anndata" else output_format
    out = f"s3://backend-query/out/t.{ending}" if remote else tmp_path / "new" / f"t.{ending}"
    assert asked.query("a.zarr", WHOLE, output_format, output=out) == str(out)
    if output_format == "anndata":
        assert_equal(asked.load(out), t_cells(stored(cells())))
    else:
        local = transfer.download(out, tmp_path / "t", asked._options.given()) if remote else out
        assert local.read_bytes() == asked.query("a.zarr", WHOLE, output_format)


def test_a_query_on_a_store_reads_no_matrix(s3: S3Server, asked: Any) -> None:
    with gate(s3.endpoint) as between:
        backend = H5ADBackend()
        backend.configure_s3("backend-query", "us-east-1", s3.key, s3.secret, endpoint_url=between.endpoint)
        assert len(backend.query("a.zarr", "SELECT donor FROM obs WHERE n_genes > 50", "polars")) > 0
        touched = {part.path.partition("a.zarr/")[2].partition("?")[0] for part in between.asked}
    assert not [path for path in touched if path.startswith(("X/", "layers/", "obsm/"))]


@pytest.mark.parametrize(
    "query", ["hello", "", None, "DROP TABLE obs", "SELECT", "SELECT obs WHERE", "SELECT nothing FROM"]
)
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_what_is_no_query_is_said(asked: Any, name: str, query: Any) -> None:
    with pytest.raises(errors.InvalidPredicateError, match="SELECT"):
        asked.query(name, query)


def test_what_cannot_be_answered_is_said(asked: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="Did you mean 'parquet'"):
        asked.query("a.zarr", WHOLE, "parkett")
    with pytest.raises(errors.InvalidPredicateError, match="not cells"):
        asked.query("a.zarr", "SELECT donor FROM obs", "anndata")
    with pytest.raises(errors.InvalidArgumentError, match="is no file"):
        asked.query("a.zarr", WHOLE, "polars", output=tmp_path / "t")
    with pytest.raises(errors.NotFoundError, match="cell_type"):
        asked.query("a.zarr", "SELECT obs WHERE cel_type = 'T cell'")
    for name in ("none.zarr", "none.h5ad"):
        with pytest.raises(FileNotFoundError):
            asked.query(name, WHOLE)


def test_a_frame_of_polars_has_the_types_of_the_store(asked: Any) -> None:
    assert asked.query("a.zarr", "SELECT obs", "polars").schema["n_counts"] == pl.Float32


# ---------------------------------------------------------------- what a user's mistake must not cost


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_that_is_no_store_is_not_deleted(s3: S3Server, tmp_path: Path, remote: bool) -> None:
    s3.bucket("backend-keep")
    if remote:
        backend = configured(s3, "backend-keep")
        s3.client().put_object(Bucket="backend-keep", Key="notes.zarr/mine.txt", Body=b"x")
    else:
        backend = H5ADBackend(tmp_path, progress=False)
        (tmp_path / "notes.zarr").mkdir()
        (tmp_path / "notes.zarr" / "mine.txt").write_text("x")
    with pytest.raises(errors.ConflictError, match=r"holds no store \(found mine.txt"):
        backend.delete("notes.zarr")
    assert len(backend.list_files("notes.zarr")) == 1
    backend.save(cells(20), "a.zarr")
    backend.save(cells(20), "a.zarr2.zarr")
    backend.delete("a.zarr")
    assert (backend.exists("a.zarr"), backend.exists("a.zarr2.zarr")) == (False, True)


def test_of_a_link_the_link_is_deleted(tmp_path: Path) -> None:
    backend = H5ADBackend(tmp_path, progress=False)
    backend.save(cells(20), "real.zarr")
    (tmp_path / "link.zarr").symlink_to("real.zarr")
    backend.delete("link.zarr")
    assert not (tmp_path / "link.zarr").is_symlink()
    assert backend.load("real.zarr").n_obs == 20


@pytest.mark.parametrize("name", ["a.h5ad", "b.h5ad", "b.zarr"])
def test_what_is_backed_is_saved_also_over_itself_and_stays_of_use(tmp_path: Path, name: str) -> None:
    adata, backend = cells(20), H5ADBackend(tmp_path, progress=False)
    del adata.uns["cell_type_colors"]  # a list comes back as an array
    backend.save(adata, "a.h5ad")
    backed = backend.load("a.h5ad", backed=True)
    backend.save(backed, name)
    assert_equal(backend.load(name), adata)
    assert backed.filename == tmp_path / "a.h5ad"
    assert_equal(backed.to_memory(), adata)
    backed.file.close()


@pytest.mark.parametrize("name", ["a.zarr", "b.h5ad"])
def test_a_lazy_matrix_beside_tables_in_memory_is_saved(tmp_path: Path, name: str) -> None:
    adata, backend = cells(20), H5ADBackend(tmp_path, progress=False)
    backend.save(adata, "a.zarr")
    lazy = backend.load("a.zarr", lazy=True)
    backend.save(ad.AnnData(lazy.X, obs=adata.obs.copy(), var=adata.var.copy()), name)
    assert (backend.load(name).X != adata.X).nnz == 0


def test_a_lazy_mudata_is_saved_also_over_itself(tmp_path: Path) -> None:
    backend, data = MuDataBackend(tmp_path, progress=False), stored_mudata(citeseq())
    backend.save(data, "m.zarr")
    backend.save(backend.load("m.zarr", lazy=True), "m.zarr")
    assert_mudata_equal(backend.load("m.zarr"), data)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    adata = cells(20)
    adata.uns["steps"] = [{"name": "a"}]
    with pytest.raises(ValueError, match="steps"):
        H5ADBackend(tmp_path, progress=False).save(adata, "a.h5ad")


def test_an_option_that_there_is_not_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"compress is for no store; expected an option of"):
        H5ADBackend(tmp_path, progress=False).save(cells(20), "a.zarr", compress=True)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").mkdir()
    backend = H5ADBackend(tmp_path, progress=False)
    assert backend.exists("a.h5ad") is False
    with pytest.raises(errors.InvalidArgumentError, match="it is a folder"):
        backend.save(cells(20), "a.h5ad")


def test_two_threads_save_under_one_name(tmp_path: Path) -> None:
    backend, data = H5ADBackend(tmp_path, progress=False), [cells(20 + n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda adata: backend.save(adata, "a.h5ad"), data))
    assert backend.load("a.h5ad").n_obs in range(20, 24)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_variables_and_copies_of_a_backend_show_no_secret() -> None:
    backend = H5ADBackend()
    backend.configure_s3("my-lobster-data", **SECRETS)
    twin = copy.deepcopy(backend)
    assert (twin.s3_config, twin._options.given()["secret"]) == (backend.s3_config, SECRETS["secret_key"])
    assert not [secret for secret in SECRETS.values() if secret in f"{vars(backend)} {vars(twin)}"]


def test_keys_without_a_name_between_slashes_end_no_listing(s3: S3Server) -> None:
    backend = configured(s3, "backend-slashes")
    for key in ("/a.h5ad", "runs//b.h5ad", "runs/c.h5ad"):
        s3.client().put_object(Bucket="backend-slashes", Key=key, Body=b"x")
    assert backend.list_files(".", "**/*.h5ad") == ["s3://backend-slashes/runs/c.h5ad"]
