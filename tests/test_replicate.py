"""Copies from bucket to bucket: whole, compared, resumable, and never a store before they are one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gates import Answer, Asked, gate, xml

import lobster_zarr as lz
from lobster_zarr import errors, replicate
from lobster_zarr.backends import Parts, upload
from lobster_zarr.bucket import replicate as copied

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")
_numbers = itertools.count()


def cells() -> ad.AnnData:
    obs = pd.DataFrame({"cell_type": pd.Categorical(["a", "b"] * 20)}, index=[f"c{i}" for i in range(40)])
    return ad.AnnData(np.eye(40, 7, dtype=np.float32), obs=obs)


@pytest.fixture(scope="module")
def store(s3: S3Server) -> str:
    """A store that tests copy, and leave as it is."""
    uri = s3.bucket("copy-from") + "/team/a.zarr"
    lz.convert(cells(), uri, storage_options=s3.storage_options, progress=False)
    return uri


@pytest.fixture
def target(s3: S3Server) -> str:
    return s3.bucket(f"copy-to-{next(_numbers)}")


def objects(s3: S3Server, uri: str) -> dict[str, bytes]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client, found = s3.client(), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            body = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            found[entry["Key"].removeprefix(prefix)] = body
    return found


def put(s3: S3Server, uri: str, content: bytes) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3.client().put_object(Bucket=bucket, Key=key, Body=content)


@pytest.mark.parametrize("other", [False, True])
def test_a_store_is_copied_once(s3: S3Server, store: str, target: str, other: bool) -> None:
    options = {"destination_options": {**s3.storage_options, "key": "another-key"}} if other else {}
    planned = copied(store, f"{target}/b.zarr", s3.storage_options, dry_run=True, **options)
    assert objects(s3, target) == {}
    done = copied(store, f"{target}/b.zarr", s3.storage_options, **options)
    assert objects(s3, f"{target}/b.zarr") == objects(s3, store)
    assert done.server_side is not other
    assert done.n_copied == done.n_objects == planned.n_copied == len(objects(s3, store))
    assert done.copied_bytes == sum(map(len, objects(s3, store).values()))
    assert copied(store, f"{target}/b.zarr", s3.storage_options, **options).n_copied == 0
    assert lz.open(f"{target}/b.zarr", s3.storage_options).query("cell_type == 'b'").to_memory().n_obs == 20
    assert max(map(len, str(done).splitlines())) <= 80


def test_the_root_comes_last(s3: S3Server, store: str, target: str) -> None:
    with gate(s3.endpoint) as line:
        copied(store, f"{target}/b.zarr", {**s3.storage_options, "endpoint_url": line.endpoint})
    puts = [asked.path.partition("/b.zarr/")[2] for asked in line.asked if asked.method == "PUT"]
    documents = [key.endswith("zarr.json") for key in puts]
    assert puts[-1] == "zarr.json"
    assert documents == sorted(documents)


def test_broken_off_it_is_no_store_and_goes_on(s3: S3Server, store: str, target: str) -> None:
    def rule(asked: Asked) -> Answer | None:
        refused = asked.method == "PUT" and asked.path.endswith("/b.zarr/zarr.json")
        return Answer(403, xml("AccessDenied"), {"Content-Type": "application/xml"}) if refused else None

    with gate(s3.endpoint) as line:
        line.rule = rule
        with pytest.raises(errors.AccessDeniedError, match=f"s3:PutObject on arn:aws:s3:::{target[5:]}/b.zarr"):
            copied(store, f"{target}/b.zarr", {**s3.storage_options, "endpoint_url": line.endpoint})
    assert "/zarr.json" not in objects(s3, f"{target}/b.zarr")
    with pytest.raises(errors.LobsterZarrError):
        lz.open(f"{target}/b.zarr", s3.storage_options)
    assert copied(store, f"{target}/b.zarr", s3.storage_options).n_copied == 1
    lz.verify(f"{target}/b.zarr", storage_options=s3.storage_options)


def test_a_damaged_copy_is_named_and_repaired(s3: S3Server, store: str, target: str) -> None:
    chunk = next(key for key in objects(s3, store) if "/c/" in key)
    damaged = bytes(len(objects(s3, store)[chunk]))
    listings = []

    def rule(asked: Asked) -> Answer | None:
        if asked.method == "GET" and asked.path.startswith(f"/{target[5:]}?") and "list-type" in asked.path:
            listings.append(asked)
            if len(listings) == 2:  # after the chunks
                put(s3, f"{target}/b.zarr{chunk}", damaged)
        return None

    with gate(s3.endpoint) as line:
        line.rule = rule
        with pytest.raises(errors.VerificationError, match=f"b.zarr{chunk} in {target} differ"):
            copied(store, f"{target}/b.zarr", {**s3.storage_options, "endpoint_url": line.endpoint})
    assert not any(key.endswith("zarr.json") for key in objects(s3, f"{target}/b.zarr"))
    copied(store, f"{target}/b.zarr", s3.storage_options)
    assert objects(s3, f"{target}/b.zarr") == objects(s3, store)
    put(s3, f"{target}/b.zarr{chunk}", damaged)  # in a whole store
    assert copied(store, f"{target}/b.zarr", s3.storage_options).n_copied == 1
    assert objects(s3, f"{target}/b.zarr") == objects(s3, store)


def test_what_is_something_else_stays_unless_told_so(s3: S3Server, store: str, target: str) -> None:
    other = ad.AnnData(np.ones((5, 4), np.float32), layers={"more": np.ones((5, 4), np.float32)})
    lz.convert(other, f"{target}/b.zarr", storage_options=s3.storage_options, progress=False)
    before = objects(s3, target)
    with pytest.raises(errors.ConflictError, match="overwrite"):
        copied(store, f"{target}/b.zarr", s3.storage_options)
    assert objects(s3, target) == before
    with pytest.raises(errors.ConflictError, match="delete it yourself"):
        copied(store, target, s3.storage_options, overwrite=True)  # which is no store
    assert objects(s3, target) == before
    copied(store, f"{target}/b.zarr", s3.storage_options, overwrite=True)
    assert objects(s3, f"{target}/b.zarr") == objects(s3, store)


def test_a_prefix_and_what_lies_beside_it(s3: S3Server, store: str, target: str) -> None:
    put(s3, "s3://copy-from/team/notes.txt", b"notes")
    put(s3, "s3://copy-from/teams/no.txt", b"no")
    put(s3, f"{target}/team/mine.txt", b"mine")
    copied("s3://copy-from/team", f"{target}/team", s3.storage_options)
    there = objects(s3, target)
    assert there.pop("team/mine.txt") == b"mine"
    assert there == {f"team{key}": body for key, body in objects(s3, "s3://copy-from/team").items() if key[0] == "/"}
    put(s3, f"{target}/team/notes.txt", b"other")
    with pytest.raises(errors.ConflictError, match=r"notes\.txt"):
        copied("s3://copy-from/team", f"{target}/team", s3.storage_options)


@pytest.mark.parametrize("other", [False, True])
def test_a_file_in_parts_keeps_what_is_known_of_it(
    s3: S3Server, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    monkeypatch.setattr(replicate, "COPY_BYTES", 6 << 20)
    monkeypatch.setattr(replicate, "MEMORY_BYTES", 6 << 20)
    content = np.random.default_rng(0).bytes(11 << 20)
    (tmp_path / "a.h5ad").write_bytes(content)
    source = s3.bucket(f"copy-big-{other}".lower()) + "/a.h5ad"
    stored = upload(tmp_path / "a.h5ad", source, s3.storage_options, parts=Parts(1, 5 << 20))
    options = {"destination_options": {**s3.storage_options, "key": "another-key"}} if other else {}
    done = copied(source, f"{target}/b.h5ad", s3.storage_options, **options)
    assert (done.n_objects, done.copied_bytes) == (1, len(content))
    assert objects(s3, f"{target}/b.h5ad") == {"": content}
    head = s3.client().head_object(Bucket=target[5:], Key="b.h5ad")
    assert head["Metadata"]["lobster-zarr-sha256"] == stored.checksum
    assert other or head["ETag"] == s3.client().head_object(Bucket=source[5:].split("/")[0], Key="a.h5ad")["ETag"]


def test_the_copy_lies_as_its_options_say(s3: S3Server, store: str, target: str) -> None:
    options = {**s3.storage_options, "sse": "AES256", "storage_class": "INTELLIGENT_TIERING"}
    copied(store, f"{target}/b.zarr", s3.storage_options, destination_options=options)
    head = s3.client().head_object(Bucket=target[5:], Key="b.zarr/zarr.json")
    assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "INTELLIGENT_TIERING")


def test_what_cannot_be_copied(s3: S3Server, store: str, target: str) -> None:
    options: dict[str, Any] = s3.storage_options
    for source, to in (
        (store, "a.zarr"),
        ("a.zarr", store),
        (store, store),
        (store, f"{store}/b.zarr"),
        (store, "s3://copy-from"),
    ):
        with pytest.raises(errors.InvalidArgumentError):
            copied(source, to, options)
    with pytest.raises(errors.NotFoundError, match="nothing at"):
        copied(f"{store}x", f"{target}/b.zarr", options)
    with pytest.raises(errors.BucketNotFoundError):
        copied(store, "s3://never-made/b.zarr", options)
    s3.client().put_object(Bucket=target[5:], Key="cold", Body=b"x", StorageClass="GLACIER")
    with pytest.raises(errors.UnsupportedError, match="Restore"):
        copied(f"{target}/cold", f"{target}/warm", options)
    put(s3, f"{target}/file", b"x")
    with pytest.raises(errors.InvalidArgumentError, match="name of the copy"):
        copied(f"{target}/file", "s3://copy-from", options)
    put(s3, f"{target}/folder/a", b"x")
    with pytest.raises(errors.InvalidArgumentError, match="holds other objects"):
        copied(f"{target}/file", f"{target}/folder", options)
    assert objects(s3, f"{target}/folder") == {"/a": b"x"}


def test_what_is_no_whole_store_is_not_copied_as_one(s3: S3Server, store: str, target: str) -> None:
    copied(store, f"{target}/b.zarr", s3.storage_options)
    s3.client().delete_object(Bucket=target[5:], Key="b.zarr/zarr.json")
    with pytest.raises(errors.ConflictError, match="no whole store"):
        copied(f"{target}/b.zarr", f"{target}/c.zarr", s3.storage_options)
    assert not objects(s3, f"{target}/c.zarr")


def test_nothing_is_copied_into_a_store_that_is_there(s3: S3Server, store: str, target: str) -> None:
    copied(store, f"{target}/b.zarr", s3.storage_options)
    put(s3, f"{target}/more/notes.txt", b"notes")
    with pytest.raises(errors.ConflictError, match="is a store"):
        copied(f"{target}/more", f"{target}/b.zarr", s3.storage_options, overwrite=True)
    assert objects(s3, f"{target}/b.zarr") == objects(s3, store)


def test_a_whole_bucket_with_odd_keys(s3: S3Server, target: str) -> None:
    source = s3.bucket("copy-odd")
    odd = {"/first": b"1", "b//c": b"2", "d e/%25+\u00fc": b"3", "folder/": b""}
    for key, content in odd.items():
        put(s3, f"{source}/{key}", content)
    copied(source, f"{target}/all", s3.storage_options)
    there = {key.removeprefix("all/"): body for key, body in objects(s3, target).items()}
    assert there == {key: body for key, body in odd.items() if body}


def test_one_name_at_two_endpoints_is_two_places(s3: S3Server, store: str) -> None:
    with gate(s3.endpoint) as line:
        options = {**s3.storage_options, "endpoint_url": line.endpoint}
        assert copied(store, store, s3.storage_options, destination_options=options).n_copied == 0
