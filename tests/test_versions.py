"""Versions of stores and files in a bucket that keeps them: what was written at each time comes back."""

from __future__ import annotations

import json
import pickle
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from clusters import two_workers
from layouts import tiny_chunks
from mudatas import assert_mudata_equal
from oracle import assert_equal, sliced, stored, stored_mudata
from scipy import sparse
from test_convert import by_anndata

import lobster_zarr as lz
from lobster_zarr import cli, errors
from lobster_zarr.backends import H5ADBackend
from lobster_zarr.layout import MARKER
from tests.gates import Answer, gate, xml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column; mudata's notes on names are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # distributed's own sockets, at its end
]
T_CELLS = "cell_type == 'T cell'"


def cells(n_obs: int = 60, n_vars: int = 20, seed: int = 0) -> ad.AnnData:
    """Few elements: each is two requests."""
    rng = np.random.default_rng(seed)
    kinds = pd.Categorical(rng.choice(["T cell", "B cell"], n_obs))
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(0.4, (n_obs, n_vars)).astype("float32")),
        obs=pd.DataFrame({"cell_type": kinds}, index=[f"cell{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)]),
    )


def both(seed: int) -> mudata.MuData:
    return mudata.MuData({"rna": cells(30, 8, seed), "prot": cells(25, 4, seed)})


def convert(data: Any, uri: str, **options: Any) -> None:
    """No object is small enough to be in the metadata: all have to be read from the right version."""
    with tiny_chunks(chunk=256):
        lz.convert(data, uri, progress=False, **options)


def next_second() -> None:
    """S3, and the server, date by the second."""
    time.sleep(1.02 - time.time() % 1)


def versioned(s3: S3Server, name: str) -> str:
    uri = s3.bucket(name)
    s3.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return uri


def live(s3: S3Server, uri: str) -> dict[str, int]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    listed = s3.client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", ())
    return {o["Key"].removeprefix(f"{prefix}/"): o["Size"] for o in listed}


class Past(NamedTuple):
    uri: str
    options: dict[str, Any]
    datas: list[ad.AnnData]
    """What was written, newest first."""


@pytest.fixture(scope="module")
def past(s3: S3Server) -> Past:
    """A store written three times: overwritten, deleted, and by now half overwritten by who was killed."""
    uri, options = f"{versioned(s3, 'versions-store')}/runs/atlas.zarr", s3.storage_options
    datas = [cells(60, seed=1), cells(90, 24, seed=2), cells(40, seed=3)]
    datas[1].obs["only here"] = np.arange(90)
    convert(datas[0], uri, sort_by="cell_type", storage_options=options)
    next_second()
    convert(datas[1], uri, overwrite=True, storage_options=options)
    next_second()
    backend = H5ADBackend(progress=False)
    backend.configure_s3("versions-store", "us-east-1", s3.key, s3.secret, endpoint_url=s3.endpoint)
    backend.delete(uri)
    next_second()
    convert(datas[2], uri, storage_options=options)
    next_second()
    client, place = s3.client(), {"Bucket": "versions-store"}
    client.put_object(**place, Key=f"runs/atlas.zarr/{MARKER}", Body=b"{}")
    client.delete_object(**place, Key="runs/atlas.zarr/zarr.json")
    for key in list(live(s3, uri))[:5]:
        client.delete_object(**place, Key=f"runs/atlas.zarr/{key}")
    client.put_object(**place, Key="runs/atlas.zarr/X/data/c/0", Body=b"half")
    client.put_object(**place, Key="runs/atlas.zarr/new/zarr.json", Body=b"half")
    return Past(uri, options, [stored(adata) for adata in reversed(datas)])


def test_each_commit_is_a_version(past: Past) -> None:
    found = lz.versions(past.uri, past.options)
    assert [(v.n_obs, v.n_vars) for v in found] == [a.shape for a in past.datas]
    assert [v.state for v in found] == ["replaced", "deleted", "replaced"]
    assert not any(v.problem or v.is_current for v in found)
    assert all(v.ended is not None and v.committed < v.ended for v in found)
    assert sorted(found, key=lambda v: v.committed, reverse=True) == list(found)
    text = str(found)
    assert past.uri in text
    assert "40 × 20" in text
    assert max(map(len, text.splitlines())) <= 80
    assert found[0].id[:12] in text
    assert "lz-repr" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["versions"][1]["state"] == "deleted"


def test_a_version_is_read_as_it_was(past: Past) -> None:
    for version, expected in zip(lz.versions(past.uri, past.options), past.datas, strict=True):
        data = lz.open(past.uri, past.options, version=version.id)
        assert_equal(data.to_memory(progress=False), expected)
        assert version.n_bytes == sum(e.n_bytes for e in data.reader.fetcher.store.snapshot.objects.values())
        rows = np.flatnonzero(expected.obs["cell_type"] == "T cell")
        part = data.query(T_CELLS, ["gene3", "gene1"])
        n_bytes = part.explain().n_bytes
        assert_equal(part.to_memory(progress=False), sliced(expected, rows, ["gene3", "gene1"]))
        assert n_bytes > 0
        assert version.id in repr(data)
        assert data.sql("SELECT count(*) AS n FROM obs")["n"][0] == len(expected)
    with pytest.raises(errors.NotFoundError, match="unfinished"):
        lz.open(past.uri, past.options)


def test_a_version_is_read_by_other_processes(past: Past) -> None:
    version = lz.versions(past.uri, past.options)[1].id
    data, expected = lz.open(past.uri, past.options, version=version[:10]), past.datas[1]
    sent = pickle.dumps(data)
    assert past.options["secret"].encode() not in sent
    assert len(sent) < 5_000
    lazy = data.to_lazy()
    with two_workers():
        np.testing.assert_array_equal(lazy.X.compute().toarray(), expected.X.toarray())
    assert_equal(pickle.loads(sent).to_memory(progress=False), expected)  # noqa: S301 - made above


def test_two_versions_are_never_one_array(past: Past) -> None:
    """Names of dask's tasks tell them apart, as they do stores."""
    found = lz.versions(past.uri, past.options)
    names = {lz.open(past.uri, past.options, version=v.id).to_lazy().X.name for v in found}
    assert len(names) == len(found)


def test_what_is_no_version_is_refused(past: Past, s3: S3Server) -> None:
    with pytest.raises(errors.NotFoundError, match="lobster-zarr versions"):
        lz.open(past.uri, past.options, version="absent")
    with pytest.raises(errors.InvalidArgumentError, match="expected its id"):
        lz.open(past.uri, past.options, version=lz.versions(past.uri, past.options)[0])  # type: ignore[arg-type]
    with pytest.raises(errors.NotFoundError, match="nor was there"):
        lz.versions(f"{past.uri}x", past.options)
    with pytest.raises(errors.NotFoundError, match="lobster-zarr ls"):
        lz.versions(past.uri.rpartition("/")[0], past.options)
    plain = s3.bucket("versions-none")
    convert(cells(), f"{plain}/a.zarr", storage_options=past.options)
    for call in (lambda u: lz.versions(u, past.options), lambda u: lz.rollback(u, "null", past.options)):
        with pytest.raises(errors.UnsupportedError, match="put-bucket-versioning --bucket versions-none"):
            call(f"{plain}/a.zarr")
    with pytest.raises(errors.UnsupportedError, match="s3://"):
        lz.open("/tmp/a.zarr", version="x")  # noqa: S108 - nothing is there
    with pytest.raises(errors.InvalidArgumentError, match="version"):
        H5ADBackend().load("/tmp/a.h5ad", version="x")  # noqa: S108 - as above


def test_objects_that_expired_are_missed_before_anything_is_read(s3: S3Server) -> None:
    uri, options = f"{versioned(s3, 'versions-expired')}/a.zarr", s3.storage_options
    convert(cells(seed=1), uri, storage_options=options)
    next_second()
    convert(cells(seed=2), uri, overwrite=True, storage_options=options)
    old = lz.versions(uri, options)[1]
    assert not old.problem
    opened = lz.open(uri, options, version=old.id)
    told = s3.client().list_object_versions(Bucket="versions-expired", Prefix="a.zarr/X/data/c/0")["Versions"]
    for one in told:
        if not one["IsLatest"]:
            s3.client().delete_object(Bucket="versions-expired", Key=one["Key"], VersionId=one["VersionId"])
    found = lz.versions(uri, options)
    assert "lifecycle" in found[1].problem
    assert "cannot be read" in str(found)
    assert found[0].is_current
    for call in (lambda: lz.open(uri, options, version=old.id), lambda: lz.rollback(uri, old.id, options)):
        with pytest.raises(errors.NotFoundError, match="X/data/c/0"):
            call()
    with pytest.raises(errors.ConflictError, match="since it was opened"):
        opened.to_memory(progress=False)


def test_commits_of_one_second_are_read_right_or_refused(s3: S3Server) -> None:
    uri, options = f"{versioned(s3, 'versions-hurry')}/a.zarr", s3.storage_options
    datas = [cells(20, 5, seed=seed) for seed in range(3)]
    for data in datas:
        convert(data, uri, overwrite=True, storage_options=options)
    found = lz.versions(uri, options)
    assert len(found) == 3
    assert not found[0].problem
    for version, data in zip(found, reversed(datas), strict=True):
        if not version.problem:
            assert_equal(lz.open(uri, options, version=version.id).to_memory(progress=False), stored(data))


def test_a_store_of_anndatas_own(s3: S3Server, tmp_path: Path) -> None:
    uri, options = f"{versioned(s3, 'versions-foreign')}/theirs.zarr", s3.storage_options
    datas = [cells(30, seed=1), cells(35, seed=2)]
    for at, data in enumerate(datas):
        by_anndata(data, tmp_path / f"{at}.zarr")
        paths = sorted(p for p in (tmp_path / f"{at}.zarr").rglob("*") if p.is_file())
        for path in sorted(paths, key=lambda p: p.parent.name == f"{at}.zarr"):  # the root last
            key = path.relative_to(tmp_path / f"{at}.zarr").as_posix()
            s3.client().upload_file(str(path), "versions-foreign", f"theirs.zarr/{key}")
        next_second()
    found = lz.versions(uri, options)
    assert [v.n_obs for v in found] == [35, 30]
    for version, data in zip(found, reversed(datas), strict=True):
        assert_equal(lz.open(uri, options, version=version.id).to_memory(progress=False), stored(data))


def test_a_mudata_and_its_modalities(s3: S3Server) -> None:
    uri, options = f"{versioned(s3, 'versions-mudata')}/m.zarr", s3.storage_options
    first, second = both(1), both(2)
    convert(first, uri, storage_options=options)
    next_second()
    convert(second, uri, overwrite=True, storage_options=options)
    now, before = lz.versions(uri, options)
    assert not now.problem + before.problem
    assert_mudata_equal(lz.open(uri, options, version=before.id).to_memory(progress=False), stored_mudata(first))
    part = lz.versions(f"{uri}/mod/rna", options)
    modality = lz.open(f"{uri}/mod/rna", options, version=part[1].id).to_memory(progress=False)
    assert modality.shape == first["rna"].shape
    with pytest.raises(errors.InvalidArgumentError, match="whole store"):
        lz.rollback(f"{uri}/mod/rna", part[1].id, options)
    lz.rollback(uri, before.id, options, progress=False)
    assert_mudata_equal(lz.open(uri, options).to_memory(progress=False), stored_mudata(first))


# ---------------------------------------------------------------- rollback


def test_a_rollback_brings_back_all_of_a_version_and_nothing_else(past: Past, s3: S3Server) -> None:
    newest, middle, oldest = lz.versions(past.uri, past.options)
    before = live(s3, past.uri)
    would = lz.rollback(past.uri, middle.id, past.options, dry_run=True)
    assert live(s3, past.uri) == before
    assert not would.is_done
    assert "Would roll back" in str(would)
    assert would.n_copied
    assert would.n_removed
    assert would.replaced is None
    next_second()
    report = lz.rollback(past.uri, middle.id[:12], past.options, progress=False)
    assert report.to_dict() == would.to_dict() | {"is_done": True}
    assert_equal(lz.open(past.uri, past.options).to_memory(progress=False), past.datas[1])
    kept = lz.open(past.uri, past.options, version=middle.id).reader.fetcher.store.snapshot.objects
    assert live(s3, past.uri) == {key: entry.n_bytes for key, entry in kept.items()}

    again = lz.rollback(past.uri, middle.id, past.options, progress=False)
    assert (again.n_copied, again.n_removed) == (0, 0)
    assert "Nothing to do" in str(again)
    next_second()
    lz.rollback(past.uri, oldest.id, past.options, progress=False)
    found = lz.versions(past.uri, past.options)
    assert [v.n_obs for v in found] == [60, 90, 40, 90, 60]
    assert not any(v.problem for v in found)
    assert [v.id for v in found[2:]] == [newest.id, middle.id, oldest.id]
    lz.verify(past.uri, storage_options=past.options, progress=False)
    for version, at in zip(found, (2, 1, 0, 1, 2), strict=True):
        data = lz.open(past.uri, past.options, version=version.id)
        assert_equal(data.to_memory(progress=False), past.datas[at])


def test_a_rollback_that_is_broken_off_does_not_open_and_can_be_ended(s3: S3Server) -> None:
    uri, options = f"{versioned(s3, 'versions-broken')}/a.zarr", s3.storage_options
    convert(cells(seed=1), uri, storage_options=options)
    next_second()
    convert(cells(80, seed=2), uri, overwrite=True, storage_options=options)
    now, before = lz.versions(uri, options)
    next_second()
    with gate(s3.endpoint) as broken:
        refusal = Answer(500, xml("InternalError"), {"Content-Type": "application/xml"})
        broken.rule = lambda asked: refusal if asked.method == "PUT" and asked.path.endswith("zarr/zarr.json") else None
        through = options | {"endpoint_url": broken.endpoint, "max_attempts": 1}
        with pytest.raises(errors.StorageError) as failed:
            lz.rollback(uri, before.id, through, progress=False)
    assert any("run again" in note for note in failed.value.__notes__)
    with pytest.raises(errors.NotFoundError, match="unfinished rollback"):
        lz.open(uri, options)
    assert_equal(lz.open(uri, options, version=now.id).to_memory(progress=False), stored(cells(80, seed=2)))
    rest = lz.rollback(uri, before.id, options, progress=False)
    assert rest.n_copied < before.n_objects  # what was copied is not copied again
    assert_equal(lz.open(uri, options).to_memory(progress=False), stored(cells(seed=1)))
    assert MARKER not in live(s3, uri)


def test_who_writes_meanwhile_is_noticed(s3: S3Server) -> None:
    uri, options = f"{versioned(s3, 'versions-race')}/a.zarr", s3.storage_options
    convert(cells(seed=1), uri, storage_options=options)
    next_second()
    convert(cells(80, seed=2), uri, overwrite=True, storage_options=options)
    before = lz.versions(uri, options)[1]
    with gate(s3.endpoint) as slow:

        def meddle(asked: Any) -> None:
            if asked.method == "PUT" and asked.path.endswith("/X/zarr.json"):
                s3.client().put_object(Bucket="versions-race", Key="a.zarr/X/more", Body=b"theirs")

        slow.rule = meddle
        with pytest.raises(errors.ConflictError, match="X/more"):
            lz.rollback(uri, before.id, options | {"endpoint_url": slow.endpoint}, progress=False)
    with pytest.raises(errors.NotFoundError, match="unfinished rollback"):
        lz.open(uri, options)


def test_the_permission_that_is_missing_is_named(past: Past, s3: S3Server) -> None:
    may_list = s3.user("versions-lister", "s3:ListBucket", "s3:GetObject")
    may_read = s3.user("versions-reader", "s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject")
    with s3.enforced_access():
        for user, permission in ((may_list, "s3:ListBucketVersions"), (may_read, "s3:GetObjectVersion")):
            with pytest.raises(errors.AccessDeniedError, match=permission):
                lz.versions(past.uri, past.options | user)


# ---------------------------------------------------------------- commands


@pytest.fixture
def run(past: Past, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", past.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", past.options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", past.options["endpoint_url"])

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_commands(past: Past, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run("versions", past.uri, "--json")
    told = json.loads(out)["versions"]
    chosen = next(v["id"] for v in told if v["n_obs"] == 40)
    expected = past.datas[0]
    assert status == 0
    assert run("versions", past.uri)[1].count("\n") == len(told) + 2
    assert json.loads(run("info", past.uri, "--version-id", chosen, "--json")[1])["n_obs"] == 40
    assert "40" in run("sql", past.uri, "SELECT count(*) AS n FROM obs", "--version-id", chosen)[1]
    n = int((expected.obs["cell_type"] == "T cell").sum())
    assert run("query", past.uri, T_CELLS, "--version-id", chosen)[1].startswith(f"{n} cells")
    assert run("export", past.uri, str(tmp_path / "a.h5ad"), "--version-id", chosen)[0] == 0
    exported = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(exported.X.toarray(), expected.X.toarray())

    status, _, err = run("rollback", past.uri, chosen)
    assert status == 2
    assert "--yes" in err
    status, out, _ = run("rollback", past.uri, chosen, "--dry-run", "--json")
    assert status == 0
    assert not json.loads(out)["is_done"]
    next_second()
    status, out, _ = run("rollback", past.uri, chosen, "--yes")
    assert status == 0
    assert "Rolled back" in out
    assert max(map(len, out.splitlines())) <= 80
    assert lz.open(past.uri, past.options).n_obs == 40
