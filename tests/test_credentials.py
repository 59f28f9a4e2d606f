"""Every way to credentials that boto3 knows leads to signed requests, and they are renewed in time."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from botocore.loaders import JSONFileLoader
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr import errors
from lobster_zarr.location import Access
from lobster_zarr.store import open_store, run
from tests.files import content_of
from tests.gates import Answer, gate, xml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gates import Asked, Gate

PROTOTYPE = default_buffer_prototype()


def get(store, key="k"):
    return run(store.get(key, PROTOTYPE)).to_bytes()


@pytest.fixture
def lab(s3, monkeypatch) -> Iterator[Gate]:
    """A gate before a bucket with one object, named by the environment alone."""
    s3.bucket("credentials")
    s3.client().put_object(Bucket="credentials", Key="k", Body=b"content")
    with gate(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.endpoint)
        yield running


URI = "s3://credentials"


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def document(key: str, hours: float = 6, **more: object) -> bytes:
    """What containers, instances and processes give."""
    names = {"AccessKeyId": key, "SecretAccessKey": "s" * 20, "Expiration": in_hours(hours)}
    return json.dumps(names | more).encode()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the AWS configuration file."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return (tmp_path / "config").write_text


def check_signed(lab: Gate, key: str, token: str | None = None, **options: object) -> None:
    assert get(open_store(URI, options)) == b"content"
    assert (lab.asked[-1].key, lab.asked[-1].headers.get("x-amz-security-token")) == (key, token)
    assert len(lab.asked) == 1
    assert content_of(f"{URI}/k", options) == b"content"
    assert (lab.asked[-1].key, lab.asked[-1].headers.get("x-amz-security-token")) == (key, token)
    client = Access.of(options).client()
    assert client.get_object(Bucket="credentials", Key="k")["Body"].read() == b"content"
    client.close()
    assert lab.asked[-1].key == key


def test_a_process_gives_them(lab, config, tmp_path):
    (tmp_path / "keys.json").write_bytes(document("AKIAPROCESS", Version=1, SessionToken="process-token"))
    script = f"{sys.executable} -c \"print(open('{tmp_path}/keys.json').read())\""
    config(f"[profile vault]\ncredential_process = {script}\nregion = eu-central-1\n")
    check_signed(lab, "AKIAPROCESS", "process-token", profile="vault")
    assert lab.asked[0].region == "eu-central-1"


def test_a_web_identity_gives_them(lab, s3, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("web-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert get(open_store(URI)) == b"content"
    assert lab.asked[-1].key.startswith("ASIA")
    assert lab.asked[-1].headers["x-amz-security-token"]


def test_a_container_gives_them(lab, monkeypatch):
    with gate() as ecs:
        ecs.rule = lambda _: Answer(200, document("ASIACONTAINER", Token="container-token"))
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{ecs.endpoint}/role")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me-in")
        check_signed(lab, "ASIACONTAINER", "container-token")
        assert {asked.headers["authorization"] for asked in ecs.asked} == {"let-me-in"}


def test_an_instance_gives_them(lab, monkeypatch):
    def metadata(asked: Asked) -> Answer:
        if asked.path.endswith("/api/token"):
            return Answer(200, b"metadata-token")
        if asked.headers.get("x-aws-ec2-metadata-token") != "metadata-token":
            return Answer(401)
        if asked.path.endswith("/security-credentials/"):
            return Answer(200, b"instance-role")
        return Answer(200, document("ASIAINSTANCE", Token="instance-token", Code="Success"))

    with gate() as imds:
        imds.rule = metadata
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{imds.endpoint}/")
        check_signed(lab, "ASIAINSTANCE", "instance-token")


def renewing(monkeypatch, ecs: Gate) -> None:
    """Each answer of the container's server has other keys, good for ten minutes."""
    ecs.rule = lambda _: Answer(200, document(f"ASIA{len(ecs.asked):08}", 1 / 6, Token="token"))
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{ecs.endpoint}/role")


def test_credentials_that_are_about_to_expire_are_renewed_beforehand(lab, monkeypatch):
    monkeypatch.setattr("lobster_zarr.credentials._HANDED_SECONDS", 300)  # as if a minute went by between requests
    with gate() as ecs:
        renewing(monkeypatch, ecs)
        store = open_store(URI)
        for _ in range(3):
            assert get(store) == b"content"
            time.sleep(0.15)  # obstore asks ten times a second at most
    keys = [asked.key for asked in lab.asked]
    assert len(keys) == len(set(keys)) == 3
    assert keys == sorted(keys)


def test_credentials_that_expired_sooner_are_renewed_and_the_request_made_again(lab, monkeypatch):
    with gate() as ecs:
        renewing(monkeypatch, ecs)
        store = open_store(URI, read_only=False)
        assert get(store) == b"content"
        for refused in (Answer(400, xml("ExpiredToken")), Answer(403, xml("InvalidAccessKeyId"))):
            expired = lab.asked[-1].key
            lab.rule = lambda asked, old=expired, answer=refused: answer if asked.key <= old else None
            assert get(store) == b"content"
            assert lab.asked[-1].key > expired
        lab.rule = lambda _: Answer(403, xml("AccessDenied"))
        with pytest.raises(errors.AccessDeniedError):
            get(store)


def test_a_token_renewed_in_the_environment_is_taken_up(lab, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAOLD")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old-token")
    store = open_store(URI)
    lab.rule = lambda asked: Answer(400, xml("ExpiredToken")) if asked.key == "ASIAOLD" else None
    with pytest.raises(errors.CredentialsError, match="aws sso login"):
        get(store)
    with pytest.raises(errors.CredentialsError, match="aws sso login"):
        content_of(f"{URI}/k")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIANEW")
    assert get(store) == b"content"


# Where there are none to be had


SSO = """
[profile lab]
sso_start_url = https://lab.awsapps.com/start
sso_region = eu-west-1
sso_account_id = 123456789012
sso_role_name = reader
region = eu-west-1
"""
SSO_SESSION = """
[sso-session it]
sso_start_url = https://lab.awsapps.com/start
sso_region = eu-west-1
[profile lab]
sso_session = it
sso_account_id = 123456789012
sso_role_name = reader
"""


@pytest.mark.parametrize("text", [SSO, SSO_SESSION])
@pytest.mark.parametrize("token", ["missing", "expired", "refused"])
def test_a_login_that_is_over_says_how_to_log_in(lab, config, tmp_path, monkeypatch, text, token):
    for owner in ("credentials.SSOProvider", "tokens.SSOTokenProvider"):  # read from HOME when they are imported
        monkeypatch.setattr(f"botocore.{owner}._SSO_TOKEN_CACHE_DIR", str(tmp_path))
    config(text)
    name = b"it" if text is SSO_SESSION else b"https://lab.awsapps.com/start"
    cache = tmp_path / f"{hashlib.sha1(name, usedforsecurity=False).hexdigest()}.json"
    if token != "missing":
        ends = in_hours(-1 if token == "expired" else 1)
        cache.write_text(json.dumps({"accessToken": "sso-token", "expiresAt": ends, "startUrl": "x", "region": "x"}))
    with gate() as portal:
        portal.rule = lambda _: Answer(401, b"{}", {"x-amzn-ErrorType": "UnauthorizedException"})
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", portal.endpoint)
        with pytest.raises(errors.CredentialsError, match=r"'lab'.*`aws sso login --profile lab`") as caught:
            get(open_store(URI, {"profile": "lab"}))
    assert "sso-token" not in str(caught.value)
    assert not lab.asked


def test_a_role_that_is_not_given(lab, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("web-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with gate() as sts:
        refusal = b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
        sts.rule = lambda _: Answer(403, refusal, {"Content-Type": "text/xml"})
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        with pytest.raises(errors.CredentialsError, match=r"AssumeRoleWithWebIdentity: AccessDenied.*trust policy"):
            get(open_store(URI))
    assert not lab.asked


@pytest.mark.parametrize(
    "profile",
    ["credential_process = false", "aws_access_key_id = AKIAHALF", "role_arn = arn:x\nsource_profile = absent"],
)
def test_a_profile_that_gives_none(config, profile):
    config(f"[profile lab]\nregion = eu-west-1\n{profile}\n")
    for opener in (lambda: get(open_store(URI, {"profile": "lab"})), lambda: Access.of({"profile": "lab"}).client()):
        with pytest.raises(errors.CredentialsError, match=r"'lab'.*aws sts get-caller-identity"):
            opener()


def test_requesters_pay_and_strangers_do_not_sign(lab, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTRANGER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    get(open_store(URI, {"requester_pays": True}))
    assert lab.asked[-1].headers["x-amz-request-payer"] == "requester"
    lab.rule = lambda _: Answer(200, b"content", {"ETag": '"x"', "Last-Modified": "Mon, 23 Nov 2026 03:39:42 GMT"})
    get(open_store(URI, {"anon": True}))
    assert "authorization" not in lab.asked[-1].headers


def test_what_describes_aws_is_read_once_for_all_sessions(monkeypatch):
    access = Access.of({"key": "AKIAONE", "secret": "secret"})
    access.client().close()
    read = []
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: read.append(path))
    Access.of({"key": "AKIATWO", "secret": "secret"}).client().close()
    assert read == []
