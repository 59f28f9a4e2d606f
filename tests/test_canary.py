"""No secret is in any text that comes of work on S3: logs, errors, representations, pickles, task graphs.

The secrets are marked, everything is logged at DEBUG, and all that is said is searched for the mark.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import traceback
from typing import TYPE_CHECKING

import anndata as ad
import cloudpickle
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.address import Address
from lobster_zarr.location import Access
from lobster_zarr.redact import redacted
from lobster_zarr.store import open_store, run
from tests.files import content_of
from tests.gates import Answer, gate, xml

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "CANARY"
KEYS = {"key": "AKIACANARYKEYID00001", "secret": "wJalrCANARY/secret+key00000000000001", "token": "IQoJCANARY//token=="}


@pytest.fixture
def said(caplog) -> Iterator[io.StringIO]:
    """All that is logged while a test runs, formatted with its errors, loggers of every name and level included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root, before = logging.getLogger(), logging.getLogger().level
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in levels:
        logging.getLogger(name).setLevel(logging.NOTSET)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    assert MARK not in caplog.text


def check(said: io.StringIO, *texts: object) -> None:
    """Fail where the mark is in one of the texts, or in what was logged."""
    for text in [*texts, said.getvalue()]:
        shown = text if isinstance(text, bytes) else str(text).encode()
        at = shown.find(MARK.encode())
        assert at < 0, shown[max(0, at - 300) : at + 100].decode(errors="replace")


def told(error: BaseException) -> str:
    """An error as a traceback shows it, and all that hangs on it."""
    parts = ["".join(traceback.format_exception(error))]
    while error is not None:
        parts += [repr(error), str(error), repr(error.args), repr(vars(error)), *getattr(error, "__notes__", [])]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join(parts)


def cells() -> ad.AnnData:
    return ad.AnnData(
        sparse.random(60, 20, 0.3, "csr", dtype=np.float32, rng=np.random.default_rng(0)),
        obs=pd.DataFrame({"cell_type": pd.Categorical(["a", "b", "c"] * 20)}, index=[f"c{i}" for i in range(60)]),
    )


def test_a_store_is_made_opened_and_queried_and_nothing_tells_the_secrets(s3, said, tmp_path):
    options = s3.storage_options | KEYS
    uri = s3.bucket("canary") + "/x.zarr"
    cells().write_h5ad(tmp_path / "x.h5ad")
    s3.client().upload_file(str(tmp_path / "x.h5ad"), "canary", "x.h5ad")
    report = lz.convert("s3://canary/x.h5ad", uri, storage_options=options | {"sse": "AES256"}, overwrite=True)
    data = lz.open(uri, options)
    selection = data.query("cell_type == 'a'")
    assert selection.to_memory().n_obs == 20
    lazy = selection.to_lazy()
    verified = lz.verify(uri, against="s3://canary/x.h5ad", storage_options=options)
    graph = cloudpickle.dumps(dict(lazy.X.__dask_graph__()))
    things = [report, data, selection, lazy, verified, data.info(), selection.explain(), open_store(uri, options)]
    things += [
        Access.of(options),
        Address.of(uri, options),
        Access.of(options).provider(),
        open_store(uri, options).store,
    ]
    check(said, graph, pickle.dumps(data), pickle.dumps(selection), *things, *[repr(thing) for thing in things])
    check(said, pickle.dumps(Address.of(uri, options)), json.dumps(report.to_dict()))
    assert "botocore" in said.getvalue()  # it was listened to


FAILURES = {
    "denied": Answer(403, xml("AccessDenied")),
    "expired": Answer(400, xml("ExpiredToken", f"<Token-0>{KEYS['token']}</Token-0>")),
    "unknown": Answer(403, xml("InvalidAccessKeyId", f"<AWSAccessKeyId>{KEYS['key']}</AWSAccessKeyId>")),
    "gone": Answer(404, xml("NoSuchBucket")),
    "abroad": Answer(301, xml("PermanentRedirect"), {"x-amz-bucket-region": "eu-west-1"}),
    "busy": Answer(503, xml("SlowDown")),
    "broken": Answer(200, b"<html>"),
    "silent": Answer(200, seconds=5),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_request_tells_no_secret(said, kind, tmp_path):
    with gate() as broken:
        broken.rule = lambda _: FAILURES[kind]
        options = KEYS | {"endpoint_url": broken.endpoint, "max_attempts": 1, "read_timeout": 0.5}
        failures = []
        for attempt in (
            lambda: lz.open("s3://canary/x.zarr", options),
            lambda: lz.convert(cells(), "s3://canary/x.zarr", storage_options=options),
            lambda: content_of("s3://canary/x.h5ad", options),
            lambda: run(open_store("s3://canary/x.zarr", options, read_only=False).delete("k")),
        ):
            try:
                attempt()
            except lz.errors.LobsterZarrError as error:
                failures.append(error)
        assert failures
        assert broken.asked
        assert all(KEYS["token"] == asked.headers["x-amz-security-token"] for asked in broken.asked)
        check(said, *[told(failure) for failure in failures], *[pickle.dumps(failure) for failure in failures])


def test_what_sts_gives_is_not_logged(s3, said, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("web-identity-CANARY")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    given = {"AccessKeyId": "ASIACANARY000000", "SecretAccessKey": "CANARY/s+1", "SessionToken": "CANARY/t+2=="}
    listed = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
    document = (
        '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        "<AssumeRoleWithWebIdentityResult><Credentials>"
        f"{listed}<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
        "</AssumeRoleWithWebIdentityResponse>"
    ).encode()
    with gate() as sts:
        sts.rule = lambda _: Answer(200, document, {"Content-Type": "text/xml"})
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        s3.bucket("canary-sts")
        s3.client().put_object(Bucket="canary-sts", Key="k", Body=b"content")
        with pytest.raises(errors.NotFoundError):
            lz.open("s3://canary-sts/x.zarr")
        assert content_of("s3://canary-sts/k") == b"content"
        client = Access.of({}).client()
        client.get_object(Bucket="canary-sts", Key="k")["Body"].read()
        client.close()
        assert len(sts.asked) >= 2
    check(said)


def test_other_text_of_the_libraries_stays_and_other_loggers_are_left_alone(s3, caplog):
    open_store("s3://canary/x", s3.storage_options | KEYS)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore.auth").debug("x-amz-security-token:%s\nhost:%s", KEYS["token"], "example.org")
        logging.getLogger("somebody.else").debug("says %s", "token=mine")
    first, second = caplog.messages
    assert first == "x-amz-security-token:***\nhost:example.org"
    assert second == "says token=mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<SecretAccessKey>a/b+c=</SecretAccessKey>", "<SecretAccessKey>***</SecretAccessKey>"),
        ("{'X-Amz-Security-Token': b'abc/='}", "{'X-Amz-Security-Token': b'***'}"),
        ('"Token" : "abc", "Code": "Success"', '"Token" : "***", "Code": "Success"'),
        ("Credential=AKIA1/20261123/us-east-1/s3", "Credential=***/20261123/us-east-1/s3"),
        ("GET /bucket/tokens?list-type=2", "GET /bucket/tokens?list-type=2"),
    ],
)
def test_what_the_libraries_call_a_secret_is_marked(text, expected):
    assert redacted(text) == expected
