"""What storage_options say of a write and of the way there, as an S3 server sees it; and where a bucket really is."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr import cli, errors
from lobster_zarr.address import Address
from lobster_zarr.location import Access
from lobster_zarr.store import open_store, run
from tests.files import content_of
from tests.gates import Answer, gate, in_region, xml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gates import Gate

PROTOTYPE = default_buffer_prototype()
KMS = "arn:aws:kms:us-east-1:123456789012:key/abcd-1234"


def put(store, key, content=b"content"):
    run(store.set(key, PROTOTYPE.buffer.from_bytes(content)))


def get(store, key):
    buffer = run(store.get(key, PROTOTYPE))
    return None if buffer is None else buffer.to_bytes()


def names(store, prefix=""):
    async def collect():
        return sorted([name async for name in store.list_dir(prefix)])

    return run(collect())


@pytest.fixture
def before(s3) -> Iterator[Gate]:
    """A gate before the server."""
    with gate(s3.endpoint) as running:
        yield running


# Encryption and storage class


@pytest.mark.parametrize(
    ("options", "n_bytes", "expected"),
    [
        ({"sse": "AES256"}, 10, {"ServerSideEncryption": "AES256"}),
        (
            {"sse": "aws:kms", "sse_kms_key_id": KMS, "bucket_key": True},
            10,
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KMS, "BucketKeyEnabled": True},
        ),
        ({"storage_class": "INTELLIGENT_TIERING"}, 10, {"StorageClass": "INTELLIGENT_TIERING"}),
        ({"storage_class": "STANDARD_IA"}, 128 << 10, {"StorageClass": "STANDARD_IA"}),
        ({"storage_class": "STANDARD_IA"}, (128 << 10) - 1, {}),  # STANDARD is left out of a HEAD
        ({"storage_class": "GLACIER_IR"}, 200_000, {"StorageClass": "GLACIER_IR"}),
    ],
)
@pytest.mark.parametrize("parts", [False, True])
def test_objects_are_written_as_the_options_say(s3, monkeypatch, options, n_bytes, expected, parts):
    monkeypatch.setattr("lobster_zarr.store.SINGLE_PUT_BYTES", 5 if parts else 1 << 20)
    store = open_store(s3.bucket("placed") + "/x.zarr", s3.storage_options | options, read_only=False)
    put(store, "k", bytes(n_bytes))
    run(store.set_if_not_exists("new", PROTOTYPE.buffer.from_bytes(bytes(n_bytes))))
    run(store.set_if_not_exists("k", PROTOTYPE.buffer.from_bytes(b"second")))
    for key in ("new", "k"):
        head = s3.client().head_object(Bucket="placed", Key=f"x.zarr/{key}")
        told = {name: head[name] for name in head.keys() & expected.keys()}
        if parts and key == "k":  # the server forgets this one of a multipart upload
            expected = {name: value for name, value in expected.items() if name != "BucketKeyEnabled"}
            told.pop("BucketKeyEnabled", None)
        assert told == expected
        assert ("-" in head["ETag"]) == (parts and key == "k")
        assert head["ContentLength"] == n_bytes
        assert ("StorageClass" in head) == ("StorageClass" in expected)
    run(store.delete_dir(""))


def test_an_upload_in_parts_asks_for_the_bucket_key(s3, before, monkeypatch):
    monkeypatch.setattr("lobster_zarr.store.SINGLE_PUT_BYTES", 5)
    options = s3.storage_options | {"endpoint_url": before.endpoint, "sse": "aws:kms", "bucket_key": True}
    put(open_store(s3.bucket("keyed"), options, read_only=False), "k", bytes(100))
    [started] = [asked for asked in before.asked if asked.method == "POST" and "?uploads" in asked.path]
    assert started.headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
    assert "x-amz-server-side-encryption-bucket-key-enabled" in started.headers["authorization"]


def test_files_that_boto3_uploads_are_written_alike(s3, tmp_path):
    options = {"sse": "aws:kms", "sse_kms_key_id": KMS, "bucket_key": True, "storage_class": "STANDARD_IA"}
    access = Access.of(s3.storage_options | options | {"requester_pays": True})
    s3.bucket("files")
    file = tmp_path / "a.h5ad"
    file.write_bytes(bytes(200_000))
    client = access.client()
    client.upload_file(str(file), "files", "a.h5ad", ExtraArgs=access.put_arguments(200_000))
    client.close()
    head = s3.client().head_object(Bucket="files", Key="a.h5ad")
    assert (head["SSEKMSKeyId"], head["BucketKeyEnabled"], head["StorageClass"]) == (KMS, True, "STANDARD_IA")
    assert access.put_arguments(10)["StorageClass"] == "STANDARD"
    assert access.put_arguments()["RequestPayer"] == "requester"
    assert Access.of({"storage_class": "DEEP_ARCHIVE"}).put_arguments() == {"StorageClass": "DEEP_ARCHIVE"}
    assert Access.of({}).put_arguments() == {}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"sse": "AES265"}, "'AES256'"),
        ({"sse": "kms"}, "aws:kms"),
        ({"storage_class": "STANDARD_1A"}, "'STANDARD_IA'"),
        ({"sse_kms_key_id": KMS}, "sse='aws:kms'"),
        ({"sse": "AES256", "bucket_key": True}, "sse='aws:kms'"),
        ({"storage_class": "GLACIER"}, "GLACIER_IR"),
        ({"storage_class": "DEEP_ARCHIVE"}, "GLACIER_IR"),
        ({"accelerate": True, "endpoint_url": "https://minio.lab"}, "another endpoint"),
        ({"read_timeout": 0}, "read_timeout"),
        ({"connect_timeout": "5"}, "connect_timeout"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": 0}, "at least 1"),
    ],
)
def test_options_of_a_write_out_of_their_domain(options, hint):
    with pytest.raises(errors.InvalidArgumentError, match=hint):
        open_store("s3://bucket/x", {"key": "k", "secret": "s"} | options, read_only=False)


def test_the_options_of_a_write_travel():
    options = {
        "sse": "aws:kms",
        "sse_kms_key_id": KMS,
        "bucket_key": True,
        "storage_class": "STANDARD_IA",
        "accelerate": True,
        "connect_timeout": 3.5,
        "read_timeout": 7,
        "max_attempts": 9,
    }
    address = Address.of("s3://lab/x.zarr", {"key": "k", "secret": "s"} | options)
    _, borrowed = pickle.loads(pickle.dumps(address)).borrow()  # noqa: S301  made by the test
    assert Access.of(borrowed) == Access.of({"key": "k", "secret": "s"} | options)
    assert borrowed.items() >= options.items()


def test_acceleration_goes_to_its_own_endpoint(monkeypatch):
    options = {"key": "k", "secret": "s", "region": "eu-west-1", "max_attempts": 1, "accelerate": True}
    with gate() as proxy:
        proxy.rule = lambda _: Answer(502)
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.endpoint)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(errors.NetworkError):
            put(open_store("s3://lab/x.zarr", options, read_only=False), "k")
        with pytest.raises(errors.InvalidArgumentError, match="dot"):
            open_store("s3://lab.example/x.zarr", options)
    asked = {(one.method, one.path) for one in proxy.asked}
    assert asked == {("CONNECT", "lab.s3-accelerate.amazonaws.com:443")}
    assert len(proxy.asked) >= 2  # obstore's, and botocore's that explains


# The region of a bucket


@pytest.fixture
def abroad(s3, before, request) -> tuple[str, Gate, dict[str, object]]:
    """A bucket in another region, the gate that says so, and options that name none."""
    name = "abroad-" + str(abs(hash(request.node.nodeid)))
    uri = s3.bucket(name)
    before.rule = in_region("eu-west-1", bucket=name)
    return uri, before, {"key": s3.key, "secret": s3.secret, "endpoint_url": before.endpoint}


def test_a_right_region_costs_no_request(abroad):
    uri, before, options = abroad
    store = open_store(uri, options | {"region": "eu-west-1"}, read_only=False)
    put(store, "k")
    assert get(store, "k") == b"content"
    assert names(store) == ["k"]
    assert [asked.method for asked in before.asked] == ["PUT", "GET", "GET"]


@pytest.mark.parametrize("region", [None, "us-west-2"])
def test_a_wrong_region_is_found_once(abroad, region):
    uri, before, options = abroad
    store = open_store(f"{uri}/x.zarr", options | {"region": region}, read_only=False)
    put(store, "k")
    n_finding = len(before.asked) - 2  # the PUT that was refused, and the one that was not
    assert [asked.region for asked in before.asked][-1] == "eu-west-1"
    assert n_finding <= 3
    before.asked.clear()
    assert get(store, "k") == b"content"
    assert names(store) == ["k"]
    assert get(open_store(f"{uri}/x.zarr", options | {"region": region}), "k") == b"content"  # another of that bucket
    assert [asked.region for asked in before.asked] == ["eu-west-1"] * 3
    assert store.address.options["region"] == "eu-west-1"  # so that workers need not find it


@pytest.mark.parametrize(
    "request_of",
    [
        lambda store: get(store, "absent"),
        lambda store: run(store.exists("absent")),
        names,
        lambda store: run(store.delete("absent")),
        lambda store: run(store.delete_dir("absent")),
        lambda store: run(store.set_if_not_exists("k", PROTOTYPE.buffer.from_bytes(b"x"))),
    ],
)
def test_every_request_finds_the_region(abroad, request_of):
    uri, before, options = abroad
    request_of(open_store(uri, options, read_only=False))
    assert before.asked[-1].region == "eu-west-1"


def test_streams_and_files_find_the_region(abroad, s3):
    uri, _, options = abroad
    s3.client().put_object(Bucket=uri[5:], Key="k", Body=b"content")

    async def streamed():
        return b"".join([piece async for piece in open_store(uri, options).stream("k", 2, 5)])

    assert run(streamed()) == b"nte"
    assert content_of(f"{uri}/k", options) == b"content"


def test_where_the_region_cannot_be_found_the_error_says_how(s3, before):
    uri = s3.bucket("vague")
    before.rule = lambda asked: None if asked.region == "mars-1" else Answer(301, xml("PermanentRedirect"))
    store = open_store(uri, s3.storage_options | {"endpoint_url": before.endpoint})
    with pytest.raises(errors.StorageError, match=r"get-bucket-location --bucket vague"):
        get(store, "k")


def test_a_refusal_in_the_right_region_is_still_a_refusal(abroad):
    uri, before, options = abroad
    rule = before.rule
    before.rule = lambda asked: rule(asked) or Answer(403, xml("AccessDenied"))
    for _ in range(2):
        with pytest.raises(errors.AccessDeniedError, match="s3:GetObject"):
            get(open_store(uri, options), "k")


# The way there


@pytest.fixture
def hasty(s3, before):
    return s3.storage_options | {"endpoint_url": before.endpoint, "read_timeout": 0.5, "max_attempts": 3}


@pytest.mark.parametrize("answer", [Answer(503, xml("SlowDown")), Answer(429, xml("TooManyRequests"))])
@pytest.mark.parametrize("n_refused", [2, 1000])
def test_a_burst_that_passes_and_one_that_does_not(s3, before, hasty, answer, n_refused):
    uri = s3.bucket("bursts")
    s3.client().put_object(Bucket="bursts", Key="k", Body=b"content")
    before.rule = lambda _: answer if len(before.asked) <= n_refused else None
    store = open_store(uri, hasty, read_only=False)
    if n_refused == 2:
        assert get(store, "k") == b"content"
        assert len(before.asked) == 3
        return
    for request_of in (lambda: get(store, "k"), lambda: put(store, "k")):
        before.asked.clear()
        with pytest.raises(errors.NetworkError, match=r"(503|429).*max_attempts"):
            request_of()
        assert len(before.asked) == 3 + 1  # and one that asks why
    before.asked.clear()
    with pytest.raises(errors.NetworkError, match="max_attempts"):
        content_of(f"{uri}/k", hasty)
    assert len(before.asked) <= 2 * 3 + 1


def test_a_server_that_stays_silent(before, hasty):
    before.rule = lambda _: Answer(200, seconds=20)
    start = time.monotonic()
    with pytest.raises(errors.NetworkError, match=r"within 0\.5 s.*read_timeout"):
        get(open_store("s3://silent/x", hasty), "zarr.json")
    with pytest.raises(errors.NetworkError, match="read_timeout"):
        names(open_store("s3://silent/x", hasty, read_only=False))
    assert time.monotonic() - start < 15


def test_a_body_that_stalls_while_the_storage_answers(s3, before, hasty):
    uri = s3.bucket("stalling")
    slow = Answer(200, bytes(100), {"ETag": '"x"', "Last-Modified": "Mon, 23 Nov 2026 03:39:42 GMT"}, 2, trickle=True)
    before.rule = lambda asked: slow if asked.path == "/stalling/k" else None
    with pytest.raises(errors.NetworkError, match=r"although the storage answers.*max_attempts.*accelerate"):
        get(open_store(uri, hasty), "k")


def test_a_slow_answer_is_waited_for_as_long_as_is_said(s3, before, hasty):
    uri = s3.bucket("patient")
    s3.client().put_object(Bucket="patient", Key="k", Body=b"content")

    def late(_):
        time.sleep(1)

    before.rule = late
    assert get(open_store(uri, hasty | {"read_timeout": 20}), "k") == b"content"
    assert len(before.asked) == 1


@pytest.mark.parametrize("answer", [Answer(200, b"<html><body>console"), Answer(404, b"<html>", {}), Answer(405)])
def test_an_endpoint_that_is_no_s3(before, hasty, answer):
    before.rule = lambda _: answer
    with pytest.raises(errors.NetworkError, match="endpoint_url"):
        names(open_store("s3://lab/x", hasty))


# The command line


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line with keys in the environment: its status, and what it says."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")

    def run_command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lobster-zarr", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return run_command


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(403, xml("AccessDenied")), ["s3:GetObject on arn:aws:s3:::lab/x.zarr", "aws sts get-caller-identity"]),
        (Answer(400, xml("ExpiredToken")), ["ExpiredToken", "aws sso login"]),
        (Answer(403, xml("SignatureDoesNotMatch")), ["key, secret and the clock", "aws sts get-caller-identity"]),
        (Answer(404, xml("NoSuchBucket")), ["aws s3 ls s3://lab"]),
        (Answer(301, xml("PermanentRedirect")), ["aws s3api get-bucket-location --bucket lab"]),
        (Answer(503, xml("SlowDown")), ["503 SlowDown", "max_attempts"]),
        (Answer(405), ["endpoint_url"]),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy_and_status_2(command, before, answer, words):
    before.rule = lambda _: answer
    status, said = command("info", "s3://lab/x.zarr", "--endpoint-url", before.endpoint)
    assert (status, said.count("\n")) == (2, 1)
    assert not [word for word in words if word not in said], said


def test_no_credentials_is_one_line_too(command, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    status, said = command("info", "s3://lab/x.zarr")
    assert (status, said.count("\n")) == (2, 1)
    assert "aws configure" in said
    assert "aws sts get-caller-identity" in said


def test_convert_places_objects(command, s3, tmp_path):
    ad.AnnData(np.ones((4, 2), np.float32)).write_h5ad(tmp_path / "a.h5ad")
    options = ["--sse", "aws:kms", "--sse-kms-key-id", KMS, "--storage-class", "INTELLIGENT_TIERING"]
    uri = s3.bucket("by-command") + "/a.zarr"
    status, said = command("convert", tmp_path / "a.h5ad", uri, "--endpoint-url", s3.endpoint, *options)
    assert (status, said) == (0, "")
    written = s3.client().list_objects_v2(Bucket="by-command")["Contents"]
    heads = [s3.client().head_object(Bucket="by-command", Key=one["Key"]) for one in written]
    assert {(head["SSEKMSKeyId"], head["StorageClass"]) for head in heads} == {(KMS, "INTELLIGENT_TIERING")}
    status, said = command("convert", tmp_path / "a.h5ad", uri, "--storage-class", "GLACIER", "--overwrite")
    assert (status, said.count("\n")) == (2, 1)
    assert "GLACIER_IR" in said
