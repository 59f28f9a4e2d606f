"""Stores by URI: equal answers from S3, a directory and memory; refusals as our errors; no secrets."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import ZipStore

from lobster_zarr import errors
from lobster_zarr.h5store import FileStore
from lobster_zarr.store import (
    display_uri,
    explain_missing,
    is_local,
    local_path,
    open_store,
    run,
)
from tests.files import content_of
from tests.s3 import s3_server

PROTOTYPE = default_buffer_prototype()
CONTENT = bytes(range(256)) * 40
CANARY = "CANARY-7f3a"


def put(store, key, content=CONTENT):
    run(store.set(key, PROTOTYPE.buffer.from_bytes(content)))


def get(store, key, byte_range=None):
    buffer = run(store.get(key, PROTOTYPE, byte_range))
    return None if buffer is None else buffer.to_bytes()


def unpickle(content):
    return pickle.loads(content)  # noqa: S301  made by the test


def listed(listing):
    async def collect():
        return sorted([item async for item in listing])

    return run(collect())


@pytest.fixture
def bucket(s3, request):
    """A new bucket's URI."""
    return s3.bucket("t-" + hashlib.md5(request.node.nodeid.encode(), usedforsecurity=False).hexdigest())


@pytest.fixture(scope="module")
def guarded():
    """A server of its own that checks keys and policies, with the URI of a bucket that holds one object."""
    with s3_server() as server:
        uri = server.bucket("guarded")
        put(open_store(uri, server.storage_options, read_only=False), "a/zarr.json")
        server.client().put_object(Bucket="guarded", Key="raw.h5ad", Body=CONTENT)
        users = {
            "nobody": server.user("nobody"),
            "reader": server.user("reader", "s3:GetObject", "s3:ListBucket"),
        }
        with server.enforced_access():
            yield server, uri, users


class StoreContract:
    """What every writable store does alike."""

    @pytest.fixture
    def store(self):
        raise NotImplementedError

    def test_round_trip(self, store):
        put(store, "a/b c/é%2F#1/zarr.json")
        put(store, "a/b c/é%2F#1/zarr.json", b"new")
        put(store, "empty", b"")
        assert get(store, "a/b c/é%2F#1/zarr.json") == b"new"
        assert get(store, "empty") == b""

    def test_missing_is_none(self, store):
        put(store, "a/b")
        for key in ("nope", "a", "a/b/c", "a/nope"):
            assert get(store, key) is None
            assert get(store, key, SuffixByteRequest(4)) is None
            assert get(store, key, RangeByteRequest(1, 1)) is None
            assert run(store.exists(key)) is False
        with pytest.raises(FileNotFoundError):
            run(store.getsize("nope"))
        run(store.delete("nope"))

    @pytest.mark.parametrize(
        ("byte_range", "expected"),
        [
            (RangeByteRequest(3, 700), CONTENT[3:700]),
            (RangeByteRequest(7, 7), b""),
            (RangeByteRequest(len(CONTENT) - 2, len(CONTENT) + 50), CONTENT[-2:]),
            (RangeByteRequest(len(CONTENT), len(CONTENT) + 1), b""),
            (RangeByteRequest(len(CONTENT) + 9, len(CONTENT) + 99), b""),
            (OffsetByteRequest(10_000), CONTENT[10_000:]),
            (OffsetByteRequest(len(CONTENT) + 9), b""),
            (SuffixByteRequest(5), CONTENT[-5:]),
            (SuffixByteRequest(10 * len(CONTENT)), CONTENT),
            (SuffixByteRequest(0), b""),
        ],
    )
    def test_ranges_are_slices(self, store, byte_range, expected):
        put(store, "k")
        assert get(store, "k", byte_range) == expected

    def test_suffix_of_an_empty_object(self, store):
        put(store, "k", b"")
        assert get(store, "k", SuffixByteRequest(16)) == b""

    def test_many_ranges(self, store):
        put(store, "k")
        ranges = [RangeByteRequest(9000, 9009), None, RangeByteRequest(0, 4), SuffixByteRequest(3)]

        async def collect():
            found = {}
            async for batch in store.get_ranges("k", ranges, prototype=PROTOTYPE, max_gap_bytes=10):
                found |= {index: buffer.to_bytes() for index, buffer in batch}
            return found

        expected = {0: CONTENT[9000:9009], 1: CONTENT, 2: CONTENT[:4], 3: CONTENT[-3:]}
        assert run(collect()) == expected
        pairs = [("k", byte_range) for byte_range in ranges] + [("nope", None)]
        values = run(store.get_partial_values(PROTOTYPE, pairs))
        assert [v and v.to_bytes() for v in values] == [*(expected[i] for i in range(4)), None]

    def test_listing_and_deleting(self, store):
        for key in ("g/zarr.json", "g/c/0/1", "g/c/1/1", "gg/zarr.json", "zarr.json"):
            put(store, key)
        assert listed(store.list()) == ["g/c/0/1", "g/c/1/1", "g/zarr.json", "gg/zarr.json", "zarr.json"]
        assert listed(store.list_prefix("g/c/")) == ["g/c/0/1", "g/c/1/1"]
        assert listed(store.list_dir("")) == ["g", "gg", "zarr.json"]
        assert listed(store.list_dir("g")) == ["c", "zarr.json"]
        assert run(store.getsize("g/c/0/1")) == len(CONTENT)
        run(store.delete("g/zarr.json"))
        run(store.delete_dir("g"))
        assert listed(store.list()) == ["gg/zarr.json", "zarr.json"]
        run(store.delete_dir("absent"))
        run(store.clear())
        assert listed(store.list()) == []

    def test_set_if_not_exists_keeps_the_first(self, store):
        for content in (b"first", b"second"):
            run(store.set_if_not_exists("k", PROTOTYPE.buffer.from_bytes(content)))
        assert get(store, "k") == b"first"

    @pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a//b", "./a", "a/..", ""])
    def test_no_key_leaves_the_store(self, store, key):
        buffer = PROTOTYPE.buffer.from_bytes(b"x")
        for attempt in (
            lambda: get(store, key),
            lambda: get(store, key, SuffixByteRequest(1)),
            lambda: run(store.set(key, buffer)),
            lambda: run(store.set_if_not_exists(key, buffer)),
            lambda: run(store.delete(key)),
            lambda: run(store.exists(key)),
            lambda: run(store.getsize(key)),
        ):
            with pytest.raises(errors.InvalidArgumentError, match="key"):
                attempt()
        if key:
            for listing in (store.list_prefix, store.list_dir):
                with pytest.raises(errors.InvalidArgumentError):
                    listed(listing(key))

    def test_a_zarr_array_survives(self, store):
        values = np.arange(10_000, dtype="f4").reshape(100, 100)
        zarr.create_array(store, name="x", data=values, chunks=(10, 10), shards=(50, 100))
        again = unpickle(pickle.dumps(store)).with_read_only(True)
        array = zarr.open_array(again, path="x", mode="r", zarr_format=3)
        np.testing.assert_array_equal(array[13:77, 5:50], values[13:77, 5:50])

    def test_read_only_refuses_writes(self, store):
        put(store, "k")
        reader = store.with_read_only(True)
        assert reader != store
        assert reader == store.with_read_only(True)
        for attempt in (
            lambda: put(reader, "k"),
            lambda: run(reader.delete("k")),
            lambda: run(reader.clear()),
        ):
            with pytest.raises(ValueError, match="read-only"):
                attempt()
        assert get(reader, "k") == CONTENT

    def test_pickles_and_copies_are_the_same_store(self, store):
        put(store, "k")
        for twin in (
            unpickle(pickle.dumps(store)),
            cloudpickle.loads(cloudpickle.dumps(store)),
            copy.copy(store),
        ):
            assert twin.read_only is False
            assert str(twin) == str(store)


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3, bucket, monkeypatch):
        # A pickle takes its keys from the environment.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
        return open_store(f"{bucket}/some dir/x.zarr/", s3.storage_options, read_only=False)

    def test_prefix_is_the_root(self, s3, store, bucket):
        put(store, "a/b")
        found = s3.client().list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
        assert [item["Key"] for item in found] == ["some dir/x.zarr/a/b"]
        assert str(store) == f"{bucket}/some dir/x.zarr"

    def test_twenty_megabytes_are_one_put(self, s3, store, bucket):
        put(store, "k", bytes(20 << 20))
        head = s3.client().head_object(Bucket=bucket.removeprefix("s3://"), Key="some dir/x.zarr/k")
        assert head["ContentLength"] == 20 << 20
        assert "-" not in head["ETag"]  # a multipart ETag ends in -N

    def test_beyond_the_limit_an_upload_has_parts(self, s3, store, bucket, monkeypatch):
        monkeypatch.setattr("lobster_zarr.store.SINGLE_PUT_BYTES", 1 << 20)
        put(store, "k", bytes(2 << 20))
        head = s3.client().head_object(Bucket=bucket.removeprefix("s3://"), Key="some dir/x.zarr/k")
        assert (head["ContentLength"], head["ETag"][-3:]) == (2 << 20, '-1"')


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "new" / "x.zarr", read_only=False)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, request):
        return open_store(f"memory://{request.node.nodeid}".replace("?", ""), read_only=False)

    def test_names_are_stores(self):
        put(open_store("memory://one.zarr", read_only=False), "k")
        assert get(open_store("memory://one.zarr/"), "k") == CONTENT
        assert get(open_store("memory://other.zarr"), "k") is None


# URIs


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a/b.zarr/", "s3://bucket/a/b.zarr"),
        (Path("s3://bucket/a/b.zarr"), "s3://bucket/a/b.zarr"),
        ("S3A://bucket", "s3://bucket"),
        ("s3://id:secret@bucket/k", "s3://bucket/k"),
        ("s3://bucket/k?X-Amz-Signature=secret", "s3://bucket/k"),
        ("https://user:secret@host:8443/p/x.zarr?sig=secret", "https://host:8443/p/x.zarr"),
        ("https://host?sig=secret", "https://host"),
        (Path("https://host/x"), "https://host/x"),
        ("gcs://bucket/x", "gs://bucket/x"),
        ("memory://x/y", "memory://x/y"),
        ("a dir/what?#1@2.zarr", "a dir/what?#1@2.zarr"),
        ("file:///data/a%20b.zarr", "/data/a b.zarr"),
        ("file://localhost/data/x", "/data/x"),
        ("ftp://user:secret@host/x", "ftp://host/x"),
    ],
)
def test_display_uri(uri, shown):
    assert display_uri(uri) == shown
    assert display_uri(shown) == shown


def test_local_paths():
    assert local_path("~/x.zarr") == Path.home() / "x.zarr"
    assert local_path("file:///a%20b") == Path("/a b")
    assert local_path(Path("rel/x")) == Path("rel/x")
    assert is_local("rel/x")
    assert is_local("a:b/c")
    assert not is_local(Path("s3://bucket/k"))
    assert not is_local("memory://x")
    with pytest.raises(errors.InvalidArgumentError, match="s3://bucket/k"):
        local_path("s3://user:pw@bucket/k")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///key",
        "ftp://host/x",
        "s3://b/a/../x",
        "s3://k:s@b/x",
        "s3://b/x?sig=s",
        "memory://",
    ],
)
def test_a_uri_that_opens_nothing(uri):
    for opener in (open_store, FileStore):
        with pytest.raises(errors.InvalidArgumentError):
            opener(uri)


def test_local_openings(tmp_path):
    with pytest.raises(errors.NotFoundError, match="absent"):
        open_store(tmp_path / "absent.zarr")
    assert not (tmp_path / "absent.zarr").exists()
    file = tmp_path / "x.h5ad"
    file.write_bytes(b"x")
    for read_only in (True, False):
        with pytest.raises(errors.FormatError, match="is a file"):
            open_store(file, read_only=read_only)
    with pytest.raises(errors.StorageError, match=r"below\.zarr"):
        open_store(file / "below.zarr", read_only=False)


def test_zip(tmp_path):
    path = tmp_path / "x.zarr.zip"
    with pytest.raises(errors.NotFoundError):
        open_store(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(errors.FormatError):
        open_store(path)
    with pytest.raises(errors.UnsupportedError):
        open_store(path, read_only=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", CONTENT)
    store = open_store(str(path))
    assert isinstance(store, ZipStore)
    assert get(store, "zarr.json") == CONTENT
    assert get(store, "nope") is None
    store.close()


# Options and environment


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"endpoint": "http://127.0.0.1:1"}, "endpoint_url"),
        ({"annon": True}, "anon"),
        ({"client_kwargs": {"region": "x"}}, "region_name"),
        ({"key": "only"}, "secret"),
        ({"endpoint_url": "http://example.org"}, "allow_http"),
        ({"endpoint_url": f"https://user:{CANARY}@example.org"}, "https"),
        ({"endpoint_url": "127.0.0.1:9000"}, "https"),
    ],
)
def test_options_out_of_their_domain(options, hint):
    for opener in (open_store, FileStore):
        with pytest.raises(errors.InvalidArgumentError, match=hint) as caught:
            opener("s3://bucket/x", {"anon": True} | options)
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.2:1", "http://[::1]:1", "http://localhost:1", "https://h.org"])
def test_endpoints_that_are_safe(endpoint):
    open_store("s3://bucket/x", {"anon": True, "endpoint_url": endpoint})


def test_unencrypted_endpoint_on_request():
    open_store("s3://bucket/x", {"anon": True, "endpoint_url": "http://minio.lab:9000", "allow_http": True})


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_environment(s3, bucket, monkeypatch, name):
    monkeypatch.setenv(name, s3.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    put(open_store(bucket, read_only=False), "k")
    assert get(open_store(bucket, {}), "k") == CONTENT
    assert content_of(f"{bucket}/k") == CONTENT


def test_options_go_before_the_environment(guarded, monkeypatch):
    server, uri, users = guarded
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "wrong")
    options = {**users["reader"], "endpoint_url": server.endpoint, "region": "us-east-1"}
    assert get(open_store(uri, options), "a/zarr.json") == CONTENT
    assert content_of(f"{uri}/raw.h5ad", options) == CONTENT


def test_profiles(guarded, monkeypatch, tmp_path):
    server, uri, users = guarded
    config = tmp_path / "credentials"
    reader = users["reader"]
    config.write_text(
        f"[reader]\naws_access_key_id={reader['key']}\naws_secret_access_key={reader['secret']}\n"
        "[wrong]\naws_access_key_id=wrong\naws_secret_access_key=wrong\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert get(open_store(uri, {"profile": "reader"}), "a/zarr.json") == CONTENT
    assert content_of(f"{uri}/raw.h5ad", {"profile": "reader"}) == CONTENT
    monkeypatch.setenv("AWS_PROFILE", "reader")
    assert get(open_store(uri), "a/zarr.json") == CONTENT
    monkeypatch.setenv("AWS_PROFILE", "wrong")
    with pytest.raises(errors.CredentialsError):
        get(open_store(uri), "a/zarr.json")
    for options in ({"profile": "absent"}, {}):
        monkeypatch.setenv("AWS_PROFILE", "absent")
        with pytest.raises(errors.CredentialsError, match="'absent'"):
            open_store(uri, options)


def test_no_credentials_is_said_at_once():
    start = time.monotonic()
    for opener in (open_store, FileStore):
        with pytest.raises(errors.CredentialsError, match="anon=True"):
            opener("s3://bucket/x")
    assert time.monotonic() - start < 10


def test_anonymous(s3, bucket):
    put(open_store(bucket, s3.storage_options, read_only=False), "k")
    anonymous = {"anon": True, "endpoint_url": s3.endpoint}
    with pytest.raises(errors.AccessDeniedError):
        get(open_store(bucket, anonymous), "k")
    s3.client().put_bucket_acl(Bucket=bucket.removeprefix("s3://"), ACL="public-read")
    s3.client().put_object_acl(Bucket=bucket.removeprefix("s3://"), Key="k", ACL="public-read")
    assert get(open_store(bucket, anonymous), "k") == CONTENT


# Refusals


def attempts(store):
    """Every operation that a store has, by the permission that it needs."""
    return {
        "s3:GetObject": [
            lambda: get(store, "a/zarr.json"),
            lambda: get(store, "a/zarr.json", RangeByteRequest(0, 4)),
            lambda: get(store, "a/zarr.json", SuffixByteRequest(4)),
            lambda: run(store.exists("a/zarr.json")),
            lambda: run(store.getsize("a/zarr.json")),
        ],
        "s3:PutObject": [
            lambda: put(store, "a/zarr.json"),
            lambda: run(store.set_if_not_exists("a/new", PROTOTYPE.buffer.from_bytes(b"x"))),
        ],
        "s3:DeleteObject": [lambda: run(store.delete("a/zarr.json"))],
        "s3:ListBucket": [lambda: listed(store.list()), lambda: listed(store.list_dir("a"))],
    }


@pytest.mark.parametrize("permission", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"])
def test_denied_names_the_permission(guarded, permission):
    server, uri, users = guarded
    store = open_store(uri, {**server.storage_options, **users["nobody"]}, read_only=False)
    for attempt in attempts(store)[permission]:
        with pytest.raises(errors.AccessDeniedError, match=rf"{permission} on arn:aws:s3:::guarded") as caught:
            attempt()
        assert uri in str(caught.value)


@pytest.mark.parametrize("permission", ["s3:PutObject", "s3:DeleteObject"])
def test_a_reader_may_not_write(guarded, permission):
    server, uri, users = guarded
    store = open_store(uri, {**server.storage_options, **users["reader"]}, read_only=False)
    for attempt in attempts(store)[permission]:
        with pytest.raises(errors.AccessDeniedError, match=permission):
            attempt()
    assert get(store, "a/zarr.json") == CONTENT
    assert get(store, "a/absent") is None


@pytest.mark.parametrize("secret", ["unknown key", "wrong secret"])
def test_keys_that_are_not_accepted(guarded, secret):
    server, uri, users = guarded
    wrong = {"key": "AKIAUNKNOWN" if secret == "unknown key" else users["reader"]["key"], "secret": CANARY}
    store = open_store(uri, {**server.storage_options, **wrong}, read_only=False)
    for attempt in [attempt for group in attempts(store).values() for attempt in group]:
        with pytest.raises(errors.CredentialsError) as caught:
            attempt()
        assert CANARY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(errors.CredentialsError):
        content_of(f"{uri}/raw.h5ad", {**server.storage_options, **wrong})


def test_missing_bucket(s3):
    store = open_store("s3://no-such-bucket/x", s3.storage_options, read_only=False)
    assert get(store, "zarr.json") is None
    failure = run(explain_missing(store))
    assert isinstance(failure, errors.BucketNotFoundError)
    assert "no-such-bucket" in str(failure)
    tried = attempts(store)
    for attempt in tried["s3:PutObject"] + tried["s3:ListBucket"]:
        with pytest.raises(errors.BucketNotFoundError):
            attempt()
    with pytest.raises(errors.BucketNotFoundError):
        content_of("s3://no-such-bucket/x.h5ad", s3.storage_options)


def test_nothing_to_explain(s3, bucket, guarded, tmp_path):
    server, uri, users = guarded
    for store in (
        open_store(f"{bucket}/absent", s3.storage_options),
        open_store(tmp_path),
        open_store("memory://explain"),
        open_store(uri, {**server.storage_options, **users["nobody"]}),
    ):
        assert run(explain_missing(store)) is None


def test_refused_connection():
    with socket.socket() as taken:  # bound but not listening: refused, and nobody else's
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = open_store("s3://bucket/x", {"key": "k", "secret": "s", "endpoint_url": endpoint}, read_only=False)
        start = time.monotonic()
        with pytest.raises(errors.NetworkError, match=endpoint):
            get(store, "zarr.json", SuffixByteRequest(3))
        with pytest.raises(errors.NetworkError):
            put(store, "zarr.json")
        with pytest.raises(errors.NetworkError):
            get(open_store(f"{endpoint}/x.zarr"), "zarr.json")
        with pytest.raises(errors.NetworkError):
            content_of(f"{endpoint}/x.h5ad")
        assert time.monotonic() - start < 25
        start = time.monotonic()
        options = {"key": "k", "secret": "s", "endpoint_url": endpoint}
        with pytest.raises(errors.NetworkError):
            content_of("s3://bucket/x.h5ad", options)
        assert time.monotonic() - start < 25


def test_errors_of_the_file_system(tmp_path):
    store = open_store(tmp_path / "x.zarr", read_only=False)
    put(store, "a")
    with pytest.raises(errors.StorageError, match=r"'a/b'.*x\.zarr"):
        put(store, "a/b")


TOO_SMALL = """
import resource, sys
from lobster_zarr import errors
from lobster_zarr.store import open_store, run
from zarr.core.buffer import default_buffer_prototype as prototype

store = open_store(sys.argv[1], read_only=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    run(store.set("k", prototype().buffer.from_bytes(bytes(5000))))
except errors.StorageError as error:
    print(type(error).__name__, error)
assert run(store.get("k", prototype())) is None
"""


def python(code, *arguments):
    """Run code in an interpreter of its own."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=60)


def test_a_write_that_does_not_fit(tmp_path):
    done = python(TOO_SMALL, str(tmp_path))
    assert done.stdout.startswith("StorageError Cannot write 'k'"), done
    assert "too large" in done.stdout


# HTTP


def test_http_reads(s3, bucket):
    name = bucket.removeprefix("s3://")
    put(open_store(f"{bucket}/x.zarr", s3.storage_options, read_only=False), "zarr.json")
    s3.client().put_bucket_acl(Bucket=name, ACL="public-read")
    s3.client().put_object_acl(Bucket=name, Key="x.zarr/zarr.json", ACL="public-read")
    signed = f"{s3.endpoint}/{name}/x.zarr?X-Amz-Signature={CANARY}"
    store = open_store(signed)
    assert get(store, "zarr.json") == CONTENT
    assert get(store, "zarr.json", SuffixByteRequest(3)) == CONTENT[-3:]
    assert get(store, "nope") is None
    assert not store.supports_listing
    assert content_of(f"{s3.endpoint}/{name}/x.zarr/zarr.json") == CONTENT
    with pytest.raises(errors.UnsupportedError):
        open_store(signed, read_only=False)
    with pytest.raises(errors.NotFoundError) as caught:
        content_of(f"{s3.endpoint}/{name}/no.h5ad?sig={CANARY}")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_http_denied_hides_the_signature(s3, bucket):
    put(open_store(bucket, s3.storage_options, read_only=False), "a/zarr.json")
    private = f"{s3.endpoint}/{bucket.removeprefix('s3://')}/a"
    store = open_store(f"{private}?X-Amz-Meta={CANARY}")
    with pytest.raises(errors.AccessDeniedError) as caught:
        get(store, "zarr.json")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(errors.AccessDeniedError) as caught:
        content_of(f"{private}/zarr.json?X-Amz-Meta={CANARY}")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


# Secrets


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        (
            "s3://bucket/x",
            {"key": CANARY, "secret": CANARY, "token": CANARY, "endpoint_url": "http://127.0.0.1:9"},
        ),
        (f"https://user:{CANARY}@example.org/x?sig={CANARY}", {}),
    ],
)
def test_no_text_and_no_pickle_holds_a_secret(uri, options, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    store = open_store(uri, options)
    shown = [repr(store), str(store), f"{store!r:>20}", repr(store.__getstate__())]
    shown += [repr(item) for name, item in vars(store).items() if name != "store"]
    shown += [repr(pickle.dumps(store, protocol)) for protocol in range(2, 6)]
    shown += [repr(cloudpickle.dumps(lambda: store)), repr(zarr.storage.StorePath(store, "a"))]
    assert not [text for text in shown if CANARY in text]
    twin = unpickle(pickle.dumps(store))
    assert str(twin) == str(store) == display_uri(uri)


LOADED = """
import pickle, sys
from lobster_zarr.store import run
from zarr.core.buffer import default_buffer_prototype

store = pickle.loads(sys.stdin.buffer.read())
print(run(store.get("k", default_buffer_prototype())).to_bytes() == b"content", store.read_only)
"""


def loaded_elsewhere(pickled, **environment):
    """What another process reads through a pickled store; its error where it cannot."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        check=False,
        input=pickled,
        capture_output=True,
        env=dict(os.environ) | environment,
    )
    return done.stdout.decode() or done.stderr.decode()


def test_another_process_borrows_what_a_pickle_does_not_hold(s3, bucket):
    user = s3.user(f"lender-{bucket[5:]}", "s3:*")
    with s3.enforced_access():
        options = s3.storage_options | user | {"requester_pays": True}
        put(open_store(bucket, options, read_only=False), "k", b"content")
        pickled = pickle.dumps(open_store(bucket, options))
        assert not [text for text in user.values() if text.encode() in pickled]
        assert pickled == pickle.dumps(open_store(bucket, options))
        assert loaded_elsewhere(pickled).split() == ["True", "True"]


def test_without_its_lender_a_pickle_takes_credentials_from_the_environment(s3, bucket):
    put(open_store(bucket, s3.storage_options, read_only=False), "k", b"content")
    pickled = pickle.dumps(open_store(bucket, s3.storage_options))
    reference = open_store(bucket, s3.storage_options).__getstate__()["lent"].encode()
    orphan = pickled.replace(reference, b"x" * len(reference))
    refused = loaded_elsewhere(orphan)
    assert "CredentialsError" in refused
    assert "is lent by the process that it was passed to" in refused
    keys = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret}
    assert loaded_elsewhere(orphan, **keys).split() == ["True", "True"]


def test_a_relative_path_is_pickled_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(open_store("x.zarr", read_only=False), "k")
    pickled = pickle.dumps(open_store("x.zarr"))
    monkeypatch.chdir("/")
    assert get(unpickle(pickled), "k") == CONTENT


# Files


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_file_is_read_by_ranges(s3, bucket, tmp_path, where):
    content = np.random.default_rng(0).bytes(3 << 20)
    if where == "s3":
        uri, options = f"{bucket}/dir/a b+.h5ad", s3.storage_options
        s3.client().put_object(Bucket=bucket.removeprefix("s3://"), Key="dir/a b+.h5ad", Body=content)
    else:
        uri, options = tmp_path / "x.h5ad", None
        uri.write_bytes(content)
    store = FileStore(uri, options)
    assert run(store.meet(100)) == content[:100]
    assert store.n_bytes == len(content)
    for start, stop in ((0, 8), (2 << 20, 3 << 20), (5, 2 << 20)):
        assert run(store.read(start, stop)) == content[start:stop]
    with pytest.raises(errors.FormatError, match="ends at byte 3,145,728"):
        run(store.read(0, len(content) + 1))
    missing = f"{bucket}/absent.h5ad" if where == "s3" else tmp_path / "absent.h5ad"
    with pytest.raises(errors.NotFoundError, match="absent"):
        content_of(missing, options)


def test_a_file_may_be_denied(guarded):
    server, uri, users = guarded
    with pytest.raises(errors.AccessDeniedError, match="s3:GetObject"):
        content_of(f"{uri}/raw.h5ad", {**server.storage_options, **users["nobody"]})


# The loop


async def value(result):
    await asyncio.sleep(0)
    return result


def test_run_inside_a_running_loop():
    async def notebook():
        return run(value(3))

    assert asyncio.run(notebook()) == 3


def test_run_uses_one_thread_and_passes_errors_on():
    async def thread():
        return threading.current_thread()

    threads = [run(thread()) for _ in range(3)]
    assert len(set(threads)) == 1
    assert threads[0].daemon

    async def fails():
        raise errors.FormatError("as it was")

    with pytest.raises(errors.FormatError, match="as it was"):
        run(fails())


def test_run_within_itself_is_refused_and_not_a_deadlock():
    async def inner():
        return run(value(1))

    with pytest.raises(RuntimeError, match="await"):
        run(inner())


def test_an_interrupt_cancels_the_coroutine():
    cancelled = threading.Event()

    async def long():
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        run(long())
    assert cancelled.wait(10)


FORK = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")  # Python's own, that forking with threads is risky
from lobster_zarr import errors
from lobster_zarr.store import open_store, run
from zarr.core.buffer import default_buffer_prototype as prototype

async def one():
    return 1

store = open_store("memory://fork", read_only=False)
assert run(one()) == 1
if "used" in sys.argv:
    run(store.exists("k"))
child = os.fork()
if not child:
    signal.alarm(20)
    status = 1
    try:
        assert run(one()) == 1
        run(store.exists("k"))
        status = 3
    except errors.StorageError as error:
        status = 4 if "spawn" in str(error) else 5
    finally:
        os._exit(status)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("argument", "status"), [("unused", 3), ("used", 4)])
def test_fork(argument, status):
    done = python(FORK, argument)
    assert done.returncode == status, done.stderr
