"""A folder goes to S3: what arrives is what was there, what breaks off goes on, and no local copy goes unverified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import cli, errors
from lobster_zarr.layout import MARKER, VERIFIED
from tests.gates import Answer, Asked, gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column; mudata's notes on names are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
ROOT = Path(__file__).parents[1]


def h5ad(path: Path, seed: int = 0, column: str = "cell_type") -> Path:
    """Write a small file; genes have names of their own."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {column: pd.Categorical(rng.choice(["B cell", "T cell"], 80))}, index=[f"cell{i}" for i in range(80)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    var = pd.DataFrame(index=[f"gene{seed}-{i}" for i in range(30)])
    ad.AnnData(sparse.random(80, 30, 0.3, "csr", "float32", rng), obs=obs, var=var).write_h5ad(path)
    return path


def objects(s3: S3Server, uri: str) -> dict[str, tuple[str, Any]]:
    """What lies below a prefix, by key: ETag and date."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {o["Key"]: (o["ETag"], o["LastModified"]) for page in pages for o in page.get("Contents", ())}


def actions(report: lz.MigrationReport) -> dict[str, str]:
    return {file.name: file.action for file in report.files}


def migrated(s3: S3Server, folder: Path, dest: str, **options: Any) -> lz.MigrationReport:
    return lz.migrate(folder, dest, storage_options=s3.storage_options, progress=False, **options)


def through(s3: S3Server, endpoint: str) -> dict[str, Any]:
    return {**s3.storage_options, "endpoint_url": endpoint}


def test_everything_arrives_and_is_verified_and_a_second_run_sends_nothing(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-all')}/atlas", tmp_path / "data"
    h5ad(data / "heart.h5ad")
    h5ad(data / "2024" / "lung.h5ad", 1, "kind")
    parts = {"rna": ad.read_h5ad(data / "heart.h5ad"), "prot": ad.read_h5ad(data / "2024" / "lung.h5ad")}
    mudata.MuData(parts).write_h5mu(data / "cite.h5mu")
    ad.read_h5ad(data / "heart.h5ad").write_zarr(data / "plain.zarr")
    lz.convert(data / "heart.h5ad", data / "ours.zarr", progress=False)
    (data / "notes.txt").write_text("mine")

    told = migrated(s3, data, dest, dry_run=True)
    assert objects(s3, dest) == {}
    assert "nothing was done" in str(told)
    assert [file.destination for file in told.files if file.kind == "h5mu"] == [f"{dest}/cite.zarr"]

    done = migrated(s3, data, dest, sort_by=["cell_type", "rna:cell_type"])
    expected = dict.fromkeys(["2024/lung.h5ad", "cite.h5mu", "heart.h5ad", "plain.zarr"], "convert")
    expected |= {"ours.zarr": "copy", "notes.txt": "leave"}
    assert actions(done) == actions(told) == expected
    assert done.failed == ()
    assert {file.name for file in done.files if not file.verified} == {"notes.txt"}
    for name, source in (("cite", "cite.h5mu"), ("2024/lung", "2024/lung.h5ad"), ("plain", "heart.h5ad")):
        lz.verify(f"{dest}/{name}.zarr", data / source, storage_options=s3.storage_options, progress=False)
    sorts = {
        name: lz.open(f"{dest}/{name}.zarr", s3.storage_options).sort_by for name in ("heart", "cite", "2024/lung")
    }
    assert sorts == {"heart": ("cell_type",), "cite": ("rna:cell_type",), "2024/lung": ()}
    assert "not sorted: it has no column cell_type or rna:cell_type" in " ".join(str(done).split())
    local = {p.relative_to(data / "ours.zarr").as_posix() for p in (data / "ours.zarr").rglob("*") if p.is_file()}
    assert set(objects(s3, f"{dest}/ours.zarr/")) == {f"atlas/ours.zarr/{key}" for key in {*local, VERIFIED}}

    before = objects(s3, dest)
    again = migrated(s3, data, dest, sort_by="cell_type", overwrite=True)
    assert actions(again) == {**dict.fromkeys(expected, "nothing"), "notes.txt": "leave"}
    assert all(file.verified for file in again.files if file.kind != "other")
    assert objects(s3, dest) == before
    told_again = json.loads(json.dumps(again.to_dict()))
    assert (told_again["n_failed"], len(told_again["files"])) == (0, 6)
    assert "atlas" in again._repr_html_()
    assert max(map(len, str(again).splitlines())) <= 80


def test_files_are_copied_as_they_are_where_that_is_asked_for(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-copy')}/raw", tmp_path / "data"
    files = [h5ad(data / "a.h5ad"), h5ad(data / "odd näme #1 100% [x]+(y)&'z'.h5ad", 1)]
    (data / "notes.txt").write_text("mine")
    done = migrated(s3, data, dest, convert=False, others=True)
    assert done.failed == ()
    assert actions(done) == dict.fromkeys([*(f.name for f in files), "notes.txt"], "copy")
    for path in (*files, data / "notes.txt"):
        body = s3.client().get_object(Bucket="migrate-copy", Key=f"raw/{path.name}")["Body"].read()
        assert body == path.read_bytes()
    before = objects(s3, dest)
    with gate(s3.endpoint) as between:
        again = lz.migrate(data, dest, convert=False, others=True, storage_options=through(s3, between.endpoint))
        assert {asked.method for asked in between.asked} == {"HEAD"}  # by the sums that S3 keeps
    assert set(actions(again).values()) == {"nothing"}
    assert objects(s3, dest) == before
    odd = migrated(s3, data, f"{dest}/stores")
    assert odd.failed == ()
    assert any("odd näme #1 100% [x]+(y)&'z'.zarr/zarr.json" in key for key in objects(s3, f"{dest}/stores"))


def test_killed_half_way_the_next_run_does_the_rest_alone(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-killed')}/a", tmp_path / "data"
    for at, name in enumerate("abc"):
        h5ad(data / f"{name}.h5ad", at)
    with gate(s3.endpoint) as between:
        options = through(s3, between.endpoint)
        code = f"""
            import lobster_zarr as lz
            lz.migrate({str(data)!r}, {dest!r}, storage_options={options!r})
        """
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], cwd=ROOT)

        def rule(asked: Asked) -> Answer | None:
            if asked.method == "PUT" and "/a/b." in asked.path and MARKER not in asked.path:
                process.kill()
                return Answer(500)
            return None

        between.rule = rule
        assert process.wait(60) == -signal.SIGKILL
        first = objects(s3, dest)
        assert any(key.startswith("a/a.") for key in first)
        between.rule, between.asked[:] = lambda _: None, []
        report = lz.migrate(data, dest, storage_options=options, progress=False)
        sent = {asked.path.partition("?")[0].split("/")[3] for asked in between.asked if asked.method == "PUT"}
    assert sent == {"b.zarr", "c.zarr"}
    assert report.failed == ()
    assert actions(report) == {"a.h5ad": "nothing", "b.h5ad": "convert", "c.h5ad": "convert"}
    now = objects(s3, dest)
    assert {key: now[key] for key in first if key.startswith("a/a.")} == {
        key: value for key, value in first.items() if key.startswith("a/a.")
    }
    assert not any(MARKER in key for key in now)


def flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def damage(s3: S3Server, bucket: str, key: str, change: Callable[[bytes], bytes]) -> None:
    """Replace an object's bytes, and leave what is noted with it."""
    held = s3.client().get_object(Bucket=bucket, Key=key)
    body = change(held["Body"].read())
    s3.client().put_object(Bucket=bucket, Key=key, Body=body, Metadata=held["Metadata"])


@pytest.mark.parametrize(
    ("how", "change"),
    [("convert", flip), ("copy", lambda body: body[:99])],
    ids=["store", "cut"],
)
def test_what_arrived_damaged_is_named_and_its_local_copy_stays(
    s3: S3Server, tmp_path: Path, how: str, change: Callable[[bytes], bytes]
) -> None:
    bucket, data = f"migrate-damaged-{how}", tmp_path / "data"
    dest = f"{s3.bucket(bucket)}/{'bit' if change is flip else 'cut'}"
    key = f"{dest.rpartition('/')[2]}/a." + {"convert": "zarr/X/data/c/0", "copy": "h5ad"}[how]
    good, other = h5ad(data / "a.h5ad"), h5ad(data / "b.h5ad", 1)
    before, damaged = good.read_bytes(), []

    def rule(asked: Asked) -> None:
        if asked.method == "GET" and "/a." in asked.path and not damaged and key in objects(s3, dest):
            damaged.append(key)
            damage(s3, bucket, key, change)

    with gate(s3.endpoint) as between:
        between.rule = rule
        options: dict[str, Any] = {"storage_options": through(s3, between.endpoint), "delete_local": True}
        options |= {"convert": how == "convert", "progress": False}
        report = lz.migrate(data, dest, **options)
        assert damaged
        assert [file.name for file in report.failed] == ["a.h5ad"]
        assert "a.h5ad: failed:" in " ".join(str(report).split())
        assert [(file.verified, file.deleted) for file in report.files] == [(False, False), (True, True)]
        assert good.read_bytes() == before
        assert not other.exists()
        assert [file.name for file in lz.migrate(data, dest, **options).failed] == ["a.h5ad"]
        assert good.exists()
        mended = lz.migrate(data, dest, overwrite=True, **options)
    assert mended.failed == ()
    assert not good.exists()


@pytest.mark.parametrize("how", ["convert", "copy"])
def test_a_file_that_changes_meanwhile_is_not_deleted(s3: S3Server, tmp_path: Path, how: str) -> None:
    dest, data = f"{s3.bucket(f'migrate-changed-{how}')}/x", tmp_path / "data"
    path = h5ad(data / "a.h5ad")
    sent = "x/a." + {"convert": "zarr/zarr.json", "copy": "h5ad"}[how]

    def rule(asked: Asked) -> None:
        if asked.method == "GET" and asked.path.endswith(sent) and sent in objects(s3, dest):
            path.touch()  # while what arrived is compared

    with gate(s3.endpoint) as between:
        between.rule = rule
        options: dict[str, Any] = {"storage_options": through(s3, between.endpoint), "convert": how == "convert"}
        report = lz.migrate(data, dest, delete_local=True, progress=False, **options)
    assert [file.name for file in report.failed] == ["a.h5ad"]
    assert "was changed while it was on its way" in report.failed[0].error
    assert path.exists()
    assert migrated(s3, data, dest, convert=how == "convert", delete_local=True).failed == ()  # its bytes are the same
    assert not path.exists()


def test_an_earlier_run_may_have_verified_but_not_what_was_written_since(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-later')}/x", tmp_path / "data"
    same, new = h5ad(data / "a.h5ad"), h5ad(data / "b.h5ad", 1)
    assert migrated(s3, data, dest).failed == ()
    h5ad(new, 2)
    with gate(s3.endpoint) as between:
        report = lz.migrate(
            data, dest, delete_local=True, storage_options=through(s3, between.endpoint), progress=False
        )
        assert not [asked for asked in between.asked if "/X/" in asked.path or asked.method == "PUT"]
    assert (same.exists(), new.exists()) == (False, True)
    assert [file.name for file in report.failed] == ["b.h5ad"]
    assert "an earlier state of it" in report.failed[0].error
    assert migrated(s3, data, dest, delete_local=True, overwrite=True).failed == ()
    assert list(data.iterdir()) == []


def test_a_conversion_by_itself_is_taken_for_what_it_is(s3: S3Server, tmp_path: Path) -> None:
    dest, path = f"{s3.bucket('migrate-taken')}/x", h5ad(tmp_path / "data" / "a.h5ad")
    lz.convert(path, f"{dest}/a.zarr", sort_by="cell_type", storage_options=s3.storage_options, progress=False)
    before = objects(s3, dest)
    report = migrated(s3, path.parent, dest)
    assert (actions(report), report.files[0].verified) == ({"a.h5ad": "compare"}, True)
    assert objects(s3, dest).keys() - before.keys() == {f"x/a.zarr/{VERIFIED}"}


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_file_is_not_taken_for_its_own_copy(tmp_path: Path, linked: str) -> None:
    path, dest = h5ad(tmp_path / "data" / "2024" / "a.h5ad"), tmp_path / "copies"
    link = dest / "2024" / "a.h5ad" if linked == "file" else dest / "2024"
    link.parent.mkdir(parents=True)
    link.symlink_to(path if linked == "file" else path.parent)
    report = lz.migrate(path.parents[1], dest, convert=False, overwrite=True, delete_local=True, progress=False)
    assert [file.error.partition(", expected")[0] for file in report.failed] == [
        f"The destination {dest / '2024' / 'a.h5ad'} lies in {path.parents[1]}"
    ]
    assert path.exists()


def test_a_copy_does_not_replace_a_file_that_is_yet_to_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = {h5ad(data / "a.h5ad"), h5ad(data / "data" / "a.h5ad", 1)}
    sums = {sha256(path.read_bytes()).digest() for path in files}
    report = lz.migrate(data, tmp_path, convert=False, overwrite=True, delete_local=True, progress=False)
    assert [file.name for file in report.failed] == ["data/a.h5ad"]
    assert {sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*.h5ad")} == sums


def test_a_link_goes_before_what_it_leads_to_is_deleted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "z.h5ad").parent.mkdir()
    (data / "z.h5ad").symlink_to(h5ad(data / "a.h5ad"))
    report = lz.migrate(data, tmp_path / "copies", convert=False, delete_local=True, progress=False)
    assert report.failed == ()
    assert [(file.name, file.deleted) for file in report.files] == [("a.h5ad", True), ("z.h5ad", False)]
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["a.h5ad", "z.h5ad"]


def test_a_store_that_is_not_all_there_is_not_copied(tmp_path: Path) -> None:
    store = tmp_path / "data" / "s.zarr"
    lz.convert(h5ad(tmp_path / "a.h5ad"), store, progress=False)
    (store / "X").rename(tmp_path / "X")
    (store / "X").symlink_to(tmp_path / "X")
    report = lz.migrate(store.parent, tmp_path / "copies", delete_local=True, progress=False)
    assert ["a link to a folder" in file.error for file in report.failed] == [True]
    assert store.exists()


def test_nothing_is_deleted_for_a_place_that_ends_with_the_process(tmp_path: Path) -> None:
    path = h5ad(tmp_path / "data" / "a.h5ad")
    with pytest.raises(errors.InvalidArgumentError, match="expected a lasting destination"):
        lz.migrate(path.parent, "memory://migrated", delete_local=True, progress=False)
    assert path.exists()


def test_two_files_of_one_name_are_told_before_anything_is_sent(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-twice')}/x", tmp_path / "data"
    h5ad(data / "a.h5ad")
    h5ad(data / "a.h5mu", 1)
    with pytest.raises(errors.ConflictError, match=r"a\.h5ad and a\.h5mu would both be s3://migrate-twice/x/a\.zarr"):
        migrated(s3, data, dest)
    assert objects(s3, dest) == {}
    told = migrated(s3, data, dest, dry_run=True)
    assert len(told.failed) == 2
    assert migrated(s3, data, dest, convert=False).failed == ()


def test_what_is_there_and_is_something_else_stays(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-else')}/x", tmp_path / "data"
    for at, name in enumerate("abc"):
        h5ad(data / f"{name}.h5ad", at)
    s3.client().put_object(Bucket="migrate-else", Key="x/a.zarr/notes.txt", Body=b"theirs")
    migrated(s3, h5ad(tmp_path / "other" / "b.h5ad", 7).parent, dest)
    before = objects(s3, dest)
    report = migrated(s3, data, dest)
    assert [file.name for file in report.failed] == ["a.h5ad", "b.h5ad"]
    assert {key: v for key, v in objects(s3, dest).items() if not key.startswith("x/c.")} == before
    report = migrated(s3, data, dest, overwrite=True)
    assert [file.name for file in report.failed] == ["a.h5ad"]  # nothing of anybody's is deleted for a store
    lz.verify(f"{dest}/b.zarr", data / "b.h5ad", storage_options=s3.storage_options, progress=False)


def test_links_pipes_and_what_is_broken(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-odd')}/x", tmp_path / "data"
    elsewhere = h5ad(tmp_path / "elsewhere" / "real.h5ad")
    h5ad(data / "good.h5ad", 1)
    (data / "linked.h5ad").symlink_to(elsewhere)
    (data / "nowhere.h5ad").symlink_to(tmp_path / "absent")
    (data / "folder").symlink_to(elsewhere.parent)
    (data / "circle").symlink_to(data)
    os.mkfifo(data / "pipe.h5ad")
    (data / "broken.h5ad").write_bytes(b"no HDF5")
    (data / "what?.h5ad").write_bytes(good := (data / "good.h5ad").read_bytes())
    (data / "half.zarr" / "X").mkdir(parents=True)
    os.write(fd := os.open(os.fsencode(data) + b"/\xff.h5ad", os.O_CREAT | os.O_WRONLY), good)
    os.close(fd)
    report = migrated(s3, data, dest, delete_local=True)
    assert sorted(file.name for file in report.failed) == ["broken.h5ad", "what?.h5ad", "\udcff.h5ad"]
    assert "rename it" in " ".join(str(report).split())
    assert {file.name for file in report.files if file.verified} == {"good.h5ad", "linked.h5ad"}
    assert {file.name for file in report.files if file.deleted} == {"good.h5ad"}
    assert (data / "linked.h5ad").exists()
    left = {"circle", "folder", "half.zarr", "nowhere.h5ad", "pipe.h5ad"}
    assert {file.name for file in report.files if file.action == "leave" and not file.error} == left
    json.dumps(report.to_dict())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_does_not_end_the_rest(s3: S3Server, tmp_path: Path) -> None:
    data = tmp_path / "data"
    h5ad(data / "a.h5ad").chmod(0)
    h5ad(data / "b.h5ad")
    (data / "closed").mkdir(mode=0)
    report = migrated(s3, data, f"{s3.bucket('migrate-closed')}/x")
    assert [file.name for file in report.failed] == ["a.h5ad", "closed"]


def test_local_and_other_destinations(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = h5ad(data / "a.h5ad")
    assert lz.migrate(data, tmp_path / "new", dry_run=True).failed == ()
    assert not (tmp_path / "new").exists()
    for dest in (tmp_path / "new", "memory://migrate"):
        assert lz.migrate(data, dest, progress=False).failed == ()
        assert actions(lz.migrate(data, dest, progress=False)) == {"a.h5ad": "nothing"}
    assert lz.migrate(data, tmp_path / "raw", convert=False, progress=False).failed == ()
    assert sha256((tmp_path / "raw" / "a.h5ad").read_bytes()).digest() == sha256(path.read_bytes()).digest()
    (tmp_path / "raw" / "a.h5ad").write_bytes(b"else")
    assert "something else" in lz.migrate(data, tmp_path / "raw", convert=False).failed[0].error
    assert "cannot be copied" in lz.migrate(data, "memory://migrate", convert=False).failed[0].error
    with pytest.raises(errors.InvalidArgumentError, match="lies in"):
        lz.migrate(data, data / "stores")
    with pytest.raises(errors.InvalidArgumentError, match="is a file"):
        lz.migrate(path, tmp_path / "new")
    with pytest.raises(errors.NotFoundError, match="no folder"):
        lz.migrate(tmp_path / "absent", tmp_path / "new")


def test_a_bucket_that_is_not_there_is_told_once(s3: S3Server, tmp_path: Path) -> None:
    data = h5ad(tmp_path / "data" / "a.h5ad").parent
    with pytest.raises(errors.BucketNotFoundError):
        migrated(s3, data, "s3://migrate-no-such-bucket/x")


def test_interrupted_it_tells_what_was_done_and_leaves_nothing_half(s3: S3Server, tmp_path: Path) -> None:
    dest, data = f"{s3.bucket('migrate-ctrl-c')}/x", tmp_path / "data"
    for at, name in enumerate("ab"):
        h5ad(data / f"{name}.h5ad", at)

    begun: list[str] = []

    def rule(asked: Asked) -> None:
        if asked.method == "PUT" and "/b.zarr/X/" in asked.path and not begun:
            begun.append(asked.path)
            os.kill(os.getpid(), signal.SIGINT)

    with gate(s3.endpoint) as between:
        between.rule, options = rule, through(s3, between.endpoint)
        with pytest.raises(KeyboardInterrupt) as stopped:
            lz.migrate(data, dest, storage_options=options, progress=False)
    told = "\n".join(stopped.value.__notes__)
    assert "a.h5ad" in told
    assert "1 converted, 1 not yet" in told
    assert {key.split("/")[1] for key in objects(s3, dest)} == {"a.zarr"}


def test_the_command_ends_with_2_where_a_file_failed(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dest, data = f"{s3.bucket('migrate-cli')}/x", tmp_path / "data"
    h5ad(data / "a.h5ad")
    (data / "b.h5ad").write_bytes(b"no HDF5")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)

    def run(*options: str) -> tuple[int, str, str]:
        arguments = ["migrate", str(data), dest, "--endpoint-url", s3.endpoint, *options]
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    status, out, err = run("--sort-by", "cell_type", "--json")
    assert (status, json.loads(out)["n_failed"]) == (2, 1)
    assert err.splitlines() == ["lobster-zarr: 1 of 2 failed: b.h5ad."]
    (data / "b.h5ad").unlink()
    status, out, err = run("--delete-local")
    assert (status, err) == (0, "")
    assert "was there" in out
    assert list(data.iterdir()) == []
