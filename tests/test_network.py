"""The loopback S3 of the benchmarks answers as S3 does, and counts what it answered."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree as ET

import obstore
import pytest

from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.origin import Nginx

if TYPE_CHECKING:
    from collections.abc import Iterator

PAYLOAD = bytes(range(256)) * 1000
KEY = "atlas.zarr/c/0/a b"


without_nginx = pytest.mark.skipif(Nginx.found() is None, reason="there is no nginx here")


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=without_nginx)], ids=["asyncio", "nginx"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShapedS3]:
    root = tmp_path_factory.mktemp("root")
    path = root / "lab" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(PAYLOAD)
    (root / "lab" / "empty").touch()
    (root.parent / "secret").write_bytes(b"outside")
    with shaped_s3(root, nginx=request.param) as running:
        yield running


@pytest.fixture
def client(server: ShapedS3) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, method: str, target: str, byte_range: str | None = None):
    client.request(method, target, headers={"Range": byte_range} if byte_range else {})
    response = client.getresponse()
    return response, response.read()


PATH = "/lab/atlas.zarr/c/0/a%20b"


@pytest.mark.parametrize(
    ("byte_range", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-299", 10, 300),
        ("bytes=255990-", 255_990, 256_000),
        ("bytes=-7", 255_993, 256_000),
        ("bytes=-999999", 0, 256_000),
        ("bytes=255999-300000", 255_999, 256_000),
        ("bytes=0-", 0, 256_000),
        ("bytes=1000-200000", 1000, 200_001),
    ],
)
def test_range(client, byte_range, start, stop):
    response, body = ask(client, "GET", PATH, byte_range)
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/256000"
    assert response.headers["Content-Length"] == str(stop - start)
    assert body == PAYLOAD[start:stop]


@pytest.mark.parametrize("byte_range", ["bytes=256000-", "bytes=256000-256010", "bytes=-0"])
def test_range_outside_the_object(client, byte_range):
    response, body = ask(client, "GET", PATH, byte_range)
    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */256000"
    assert b"<Code>InvalidRange</Code>" in body


@pytest.mark.parametrize("byte_range", [None, "bytes=0-1,5-6", "lines=0-1"])
def test_whole_object(client, byte_range):
    response, body = ask(client, "GET", PATH, byte_range)
    assert (response.status, body) == (200, PAYLOAD)
    assert response.headers["Accept-Ranges"] == "bytes"


def test_head_tells_what_get_tells_without_a_body(client):
    head, body = ask(client, "HEAD", PATH)
    assert (head.status, body) == (200, b"")
    get, _ = ask(client, "GET", PATH)
    assert dict(head.headers) == dict(get.headers)
    assert head.headers["Content-Length"] == "256000"
    assert head.headers["ETag"].startswith('"')
    assert parsedate_to_datetime(head.headers["Last-Modified"]).tzinfo is not None


def test_conditions_of_nginx(server, client, request):
    if request.node.callspec.params["server"] is not True:
        pytest.skip("the asyncio server knows no conditions")
    etag = ask(client, "HEAD", PATH)[0].headers["ETag"]
    for header, value, status in (
        ("If-None-Match", etag, 304),
        ("If-None-Match", '"other"', 200),
        ("If-Match", etag, 200),
        ("If-Match", '"other"', 412),
    ):
        client.request("GET", PATH, headers={header: value})
        response = client.getresponse()
        body = response.read()
        assert (response.status, body == PAYLOAD) == (status, status == 200)
    assert b"PreconditionFailed" in body


def test_empty_object(server, client, request):
    assert ask(client, "GET", "/lab/empty")[1] == b""
    status = 200 if request.node.callspec.params["server"] else 416  # S3's is 416, nginx is of another mind
    assert ask(client, "GET", "/lab/empty", "bytes=-1")[0].status == status


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/lab/absent", 404, b"NoSuchKey"),
        ("GET", "/lab/atlas.zarr", 404, b"NoSuchKey"),
        ("GET", "/lab/../../secret", 404, b"NoSuchKey"),
        ("GET", "/lab/%2e%2e/%2e%2e/secret", 404, b"NoSuchKey"),
        ("GET", "/lab?location", 403, b"AccessDenied"),
        ("GET", "/absent?list-type=2", 404, b"NoSuchBucket"),
        ("GET", "/%2e%2e?list-type=2", 404, b"NoSuchBucket"),
        ("GET", "/", 403, b"AccessDenied"),
        ("PUT", PATH, 405, b"MethodNotAllowed"),
        ("DELETE", PATH, 405, b"MethodNotAllowed"),
    ],
)
def test_refusals_are_xml_and_keep_the_connection(client, method, target, status, code):
    response, body = ask(client, method, target)
    assert response.status == status
    assert b"<Code>" + code + b"</Code>" in body
    socket = client.sock
    assert ask(client, "GET", PATH)[1] == PAYLOAD
    assert client.sock is socket


def listed(client, query: str) -> tuple[list[str], list[str], str | None]:
    """Return the keys, the common prefixes and the token of a page."""
    response, body = ask(client, "GET", f"/lab?list-type=2&{query}")
    assert response.status == 200
    root = ET.fromstring(body)  # noqa: S314 - our own server's
    space = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}
    keys = [node.text for node in root.iterfind("s3:Contents/s3:Key", space)]
    prefixes = [node.text for node in root.iterfind("s3:CommonPrefixes/s3:Prefix", space)]
    assert root.findtext("s3:KeyCount", namespaces=space) == str(len(keys) + len(prefixes))
    return keys, prefixes, root.findtext("s3:NextContinuationToken", namespaces=space)


def test_listing(client):
    assert listed(client, "") == ([KEY, "empty"], [], None)
    assert listed(client, "delimiter=%2F") == (["empty"], ["atlas.zarr/"], None)
    assert listed(client, "prefix=atlas.zarr/&delimiter=/") == ([], ["atlas.zarr/c/"], None)
    assert listed(client, "prefix=atl") == ([KEY], [], None)
    assert listed(client, "prefix=none") == listed(client, "prefix=../") == ([], [], None)
    assert listed(client, "max-keys=1&delimiter=/") == ([], ["atlas.zarr/"], "atlas.zarr/")
    assert listed(client, "delimiter=/&continuation-token=atlas.zarr%2F") == (["empty"], [], None)
    assert listed(client, f"start-after={quote(KEY)}") == (["empty"], [], None)
    assert ask(client, "HEAD", "/lab")[0].status == 200


def test_counters(server, client):
    server.reset()
    ask(client, "GET", PATH, "bytes=5-9")
    ask(client, "HEAD", PATH)
    ask(client, "GET", PATH + "?versionId=1")
    seen = server.counters()
    assert (seen.n_requests, seen.body_bytes) == (3, 5 + 256_000)
    assert seen.log == [
        ("GET", f"lab/{KEY}", "bytes=5-9"),
        ("HEAD", f"lab/{KEY}", None),
        ("GET", f"lab/{KEY}", None),
    ]
    server.reset()
    assert server.counters().log == []


def test_obstore_reads_through_it(server):
    store = server.store("lab")
    assert store.head(KEY)["size"] == len(PAYLOAD)
    assert bytes(store.get(KEY).bytes()) == PAYLOAD
    assert bytes(store.get_range(KEY, start=3, end=700)) == PAYLOAD[3:700]
    parts = store.get_ranges(KEY, starts=[0, 200_000], lengths=[4, 5])
    assert [bytes(part) for part in parts] == [PAYLOAD[:4], PAYLOAD[200_000:200_005]]
    suffix = obstore.get(store, KEY, options={"range": {"suffix": 11}})
    assert bytes(suffix.bytes()) == PAYLOAD[-11:]
    with pytest.raises(FileNotFoundError):
        store.get("absent")
    (page,) = store.list()
    assert {entry["path"]: entry["size"] for entry in page} == {KEY: len(PAYLOAD), "empty": 0}


def test_latency_and_bandwidth_are_lower_bounds_of_the_time(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "object").write_bytes(PAYLOAD)
    with shaped_s3(tmp_path, latency_seconds=0.05, bandwidth_bits=20e6) as server:
        store = server.store("lab")
        start = time.perf_counter()
        store.get("object").bytes()
        assert time.perf_counter() - start >= 0.05 + len(PAYLOAD) * 8 / 20e6 - 0.01


def test_server_ends_with_its_parent_even_when_that_is_killed(tmp_path):
    script = (
        "import os, signal\nfrom benchmarks.network import shaped_s3\n"
        f"with shaped_s3({str(tmp_path)!r}) as server:\n"
        "    print(server.endpoint, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    host = killed.stdout.strip().removeprefix("http://")
    for _ in range(100):
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.connect()
        except ConnectionRefusedError:
            return
        finally:
            connection.close()
        time.sleep(0.05)
    pytest.fail("the server still listens 5 seconds after its parent was killed")


def test_what_is_put_comes_back_with_what_was_noted(tmp_path):
    from lobster_zarr.transfer import Parts, describe, download, remove, upload

    (tmp_path / "root" / "lab").mkdir(parents=True)
    (tmp_path / "file").write_bytes(PAYLOAD * 50)
    with shaped_s3(tmp_path / "root", writable=True) as server:
        options = server.storage_options
        for name, threshold in (("whole", 1 << 30), ("parts", 5 << 20)):
            uri, cut = f"s3://lab/a b/{name}", Parts(threshold_bytes=threshold, part_bytes=5 << 20)
            stored = upload(tmp_path / "file", uri, options, parts=cut)
            assert stored == describe(uri, options)
            assert (tmp_path / "root" / "lab" / "a b" / name).read_bytes() == PAYLOAD * 50
            assert download(uri, tmp_path / "back", options).read_bytes() == PAYLOAD * 50
        assert server.counters().received_bytes >= 2 * len(PAYLOAD) * 50
        store = server.store("lab")
        store.put("c/d", PAYLOAD)
        assert bytes(store.get("c/d").bytes()) == PAYLOAD
        store.delete(["c/d"])
        remove("s3://lab/a b/whole", options)
        assert [entry["path"] for page in store.list() for entry in page] == ["a b/parts"]


def test_an_upload_takes_the_time_of_the_line(tmp_path):
    (tmp_path / "lab").mkdir()
    with shaped_s3(tmp_path, latency_seconds=0.05, bandwidth_bits=20e6, writable=True) as server:
        store = server.store("lab")
        start = time.perf_counter()
        store.put("object", PAYLOAD)
        assert time.perf_counter() - start >= 0.05 + len(PAYLOAD) * 8 / 20e6 - 0.01
