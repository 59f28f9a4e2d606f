"""Buckets that are made, configured and told: what S3 then has is what was asked for."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from botocore.exceptions import ClientError
from gates import gate
from test_cli import run

import lobster_zarr as lz
from lobster_zarr import bucket, errors
from lobster_zarr.backends import Parts, upload
from lobster_zarr.bucketreport import BLOCKS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

__all__ = ["run"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

_numbers = itertools.count()
ROLE = "arn:aws:iam::123456789012:role/replicator"
KEY = "arn:aws:kms:us-east-1:123456789012:key/abcd-1234"
GUIDE = {
    "Rules": [
        {
            "Id": "Archive old experiments",
            "Status": "Enabled",
            "Filter": {"Prefix": "experiments/"},
            "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}, {"Days": 90, "StorageClass": "GLACIER_IR"}],
        },
        {
            "Id": "Delete temporary data",
            "Status": "Enabled",
            "Filter": {"Prefix": "temp/"},
            "Expiration": {"Days": 7},
        },
    ]
}


@pytest.fixture
def name(s3: S3Server) -> str:
    """A bucket as any client makes one."""
    made = f"bucket-{next(_numbers)}"
    s3.bucket(made)
    return made


def fresh() -> str:
    return f"fresh-{next(_numbers)}"


# ---------------------------------------------------------------- make and tell


def test_a_bucket_is_made_encrypted_versioned_and_closed(s3: S3Server) -> None:
    name, client = fresh(), s3.client()
    made = bucket.create(f"s3://{name}", tls_only=True, storage_options=s3.storage_options)
    assert made.created
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    blocked = client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert blocked == dict.fromkeys(BLOCKS, True)
    rule = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    statement = json.loads(client.get_bucket_policy(Bucket=name)["Policy"])["Statement"][0]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert client.get_bucket_location(Bucket=name)["LocationConstraint"] is None  # us-east-1


def test_made_again_a_bucket_is_ours_already_and_keeps_what_it_has(s3: S3Server) -> None:
    name, client = fresh(), s3.client()
    bucket.create(name, storage_options=s3.storage_options)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    client.delete_public_access_block(Bucket=name)
    again = bucket.create(name, storage_options=s3.storage_options)
    assert (again.created, again.configured) == (False, ("public access block",))
    assert again.bucket.versioning == "Suspended"
    assert "yours already" in str(again)
    assert any("versioning is not on" in finding for finding in again.bucket.findings)


def test_a_bucket_elsewhere_and_by_kms(s3: S3Server) -> None:
    name, client = fresh(), s3.client()
    made = bucket.create(name, "eu-west-1", kms_key=KEY, storage_options=s3.storage_options)
    assert client.get_bucket_location(Bucket=name)["LocationConstraint"] == "eu-west-1" == made.bucket.region
    rule = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}
    assert rule["BucketKeyEnabled"]
    assert (made.bucket.encryption, made.bucket.kms_key_id, made.bucket.bucket_key) == ("aws:kms", KEY, True)
    with pytest.raises(errors.ConflictError, match="in eu-west-1, expected eu-west-2"):
        bucket.create(name, "eu-west-2", storage_options=s3.storage_options)


def test_the_guides_own_command_is_refused_by_s3(s3: S3Server) -> None:
    with pytest.raises(ClientError, match="InvalidLocationConstraint"):
        s3.client().create_bucket(Bucket=fresh(), CreateBucketConfiguration={"LocationConstraint": "us-east-1"})


def test_a_bucket_of_somebody_else_is_not_ours(s3: S3Server) -> None:
    def as_another(request: Any, **_: Any) -> None:
        request.headers.add_header("x-moto-account-id", "222222222222")

    name, events = fresh(), s3.client().meta.events
    events.register("before-sign.s3", as_another)
    try:
        s3.bucket(name)
    finally:
        events.unregister("before-sign.s3", as_another)  # all tests of a process share the client
    with pytest.raises(errors.ConflictError, match="somebody else"):
        bucket.create(name, storage_options=s3.storage_options)


@pytest.mark.parametrize(
    "wrong",
    [
        "ab",
        "x" * 64,
        "Upper",
        "a_b",
        "-ab",
        "ab-",
        "a..b",
        "192.168.0.1",
        "xn--a",
        "lab-s3alias",
        "s3://a/b",
        "a/b",
        "",
    ],
)
def test_names_that_no_bucket_has(wrong: str) -> None:
    with pytest.raises(errors.InvalidArgumentError):
        bucket.create(wrong)


def test_no_region_and_no_key() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="eu-west-1"):
        bucket.create("lab-1", "Frankfurt")
    with pytest.raises(errors.InvalidArgumentError, match="kms_key"):
        bucket.create("lab-1", kms_key="abcd")


def test_findings_name_what_is_unsafe(s3: S3Server, name: str) -> None:
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{name}/*"}
    s3.client().put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [everybody]}))
    bucket.lifecycle(
        name, bucket.Rule("cold", tier={"DEEP_ARCHIVE": 1}), archive=True, storage_options=s3.storage_options
    )
    told = bucket.describe(name, s3.storage_options)
    for part in ("everybody s3:GetObject", "without TLS", "public access", "versioning", "DEEP_ARCHIVE", "interrupted"):
        assert any(part in finding for finding in told.findings), (part, told.findings)
    assert max(map(len, str(told).splitlines())) <= 80
    json.dumps(told.to_dict())
    with pytest.raises(errors.BucketNotFoundError):
        bucket.describe("never-made", s3.storage_options)


def test_what_may_not_be_read_is_told_and_found_no_fault_with(s3: S3Server, name: str) -> None:
    user = s3.user("glancer", "s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:ListBucket")
    with s3.enforced_access():
        told = bucket.describe(name, s3.storage_options | user)
        with pytest.raises(errors.AccessDeniedError, match="s3:GetBucketPolicy on arn"):
            bucket.restrict(name, tls_only=True, storage_options=s3.storage_options | user)
    assert "versioning" not in told.unread
    assert {"policy", "lifecycle", "logging"} <= set(told.unread)
    assert not any(part in finding for part in ("TLS", "interrupted", "who reads") for finding in told.findings)


# ---------------------------------------------------------------- policies


def allowed(s3: S3Server, name: str, policy: dict[str, Any]) -> dict[str, Any]:
    """The options of a user who has this policy and no other."""
    iam = s3.client("iam")
    keys = s3.user(name)
    arn = next(s["Resource"] for s in policy["Statement"] if "s3:GetBucketLocation" in s["Action"])
    if any("s3:DeleteObject" in statement["Action"] for statement in policy["Statement"]):
        # Of a deletion in bulk S3 asks for each object, the test's server for the bucket.
        bulk = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": arn}
        policy = {**policy, "Statement": [*policy["Statement"], bulk]}
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy))
    return {**s3.storage_options, **keys}


def test_reading_and_writing_work_under_their_policies(s3: S3Server, name: str, tmp_path: Path) -> None:
    writer = allowed(s3, f"writer-{name}", bucket.iam_policy(name, actions="write"))
    reader = allowed(s3, f"reader-{name}", bucket.iam_policy(name))
    obs = pd.DataFrame({"cell_type": pd.Categorical(["a", "b"] * 20)}, index=[f"c{i}" for i in range(40)])
    adata, uri = ad.AnnData(np.eye(40, 7, dtype=np.float32), obs=obs), f"s3://{name}/a.zarr"
    (tmp_path / "big").write_bytes(bytes(6 << 20))
    with s3.enforced_access():
        lz.convert(adata, uri, storage_options=writer, progress=False)
        lz.convert(adata, uri, overwrite=True, storage_options=writer, progress=False)
        upload(tmp_path / "big", f"s3://{name}/big", writer, parts=Parts(threshold_bytes=1, part_bytes=5 << 20))
        assert lz.open(uri, reader).query("cell_type == 'a'").to_memory().n_obs == 20
        lz.verify(uri, storage_options=reader)
        with pytest.raises(errors.AccessDeniedError):
            lz.convert(adata, f"s3://{name}/b.zarr", storage_options=reader, progress=False)


def test_a_policy_of_a_prefix_ends_there(s3: S3Server, name: str) -> None:
    policy = bucket.iam_policy(name, "team", "write")
    for statement in policy["Statement"]:
        statement.pop("Condition", None)  # the test's server knows none of S3's
    user, other = allowed(s3, f"prefix-{name}", policy), f"s3://{name}/teams/a.zarr"
    adata = ad.AnnData(np.eye(4, 3, dtype=np.float32))
    with s3.enforced_access():
        lz.convert(adata, f"s3://{name}/team/a.zarr", storage_options=user, progress=False)
        assert lz.open(f"s3://{name}/team/a.zarr", user).n_obs == 4
        with pytest.raises(errors.AccessDeniedError):
            lz.convert(adata, other, storage_options=user, progress=False)


def test_policies_hold_what_is_needed_and_no_more() -> None:
    def actions(**options: Any) -> set[str]:
        policy = bucket.iam_policy("lab", **options)
        return {action for statement in policy["Statement"] for action in statement["Action"]}

    reads = {"s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject"}
    writes = reads | {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
    assert actions() == reads
    assert actions(actions="write") == writes
    assert actions(versions=True) == reads | {"s3:ListBucketVersions", "s3:GetObjectVersion"}
    assert actions(actions="write", versions=True) >= writes | {"s3:DeleteObjectVersion"}
    assert actions(kms_key=KEY) == reads | {"kms:Decrypt"}
    assert not actions(actions="admin") & {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
    listing = [s for s in bucket.iam_policy("lab", "team/")["Statement"] if "s3:ListBucket" in s["Action"]]
    assert [s["Condition"] for s in listing] == [{"StringLike": {"s3:prefix": ["team", "team/*"]}}]
    for wrong in ({"actions": "reed"}, {"kms_key": "k"}, {"prefix": "a/../b"}):
        with pytest.raises(errors.InvalidArgumentError):
            bucket.iam_policy("lab", **wrong)


def test_statements_are_merged_by_their_sid(s3: S3Server, name: str) -> None:
    own = {
        "Sid": "Own",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObjectAcl",
        "Resource": f"arn:aws:s3:::{name}/*",
    }
    client = s3.client()
    client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [own]}))
    options = {"storage_options": s3.storage_options}
    planned = bucket.restrict(name, tls_only=True, dry_run=True, **options)
    assert planned.added
    assert "dry run" in str(planned)
    assert json.loads(client.get_bucket_policy(Bucket=name)["Policy"])["Statement"] == [own]
    bucket.restrict(name, tls_only=True, **options)
    ranges = ["203.0.113.0/24", "198.51.100.0/24"]
    change = bucket.restrict(name, tls_only=True, ip_ranges=ranges, caller_ip="203.0.113.9", **options)
    assert (change.added, change.unchanged, change.kept) == (
        ("LobsterZarrIpRanges",),
        ("LobsterZarrTlsOnly",),
        ("Own",),
    )
    there = json.loads(client.get_bucket_policy(Bucket=name)["Policy"])["Statement"]
    assert [statement["Sid"] for statement in there] == ["Own", "LobsterZarrTlsOnly", "LobsterZarrIpRanges"]
    assert there[0] == own
    assert there[2]["Condition"]["NotIpAddress"] == {"aws:SourceIp": ranges}
    assert there[2]["Resource"] == [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    changed = bucket.restrict(name, ip_ranges=["10.0.0.0/8"], lock_out=True, **options)
    assert changed.replaced == ("LobsterZarrIpRanges",)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "nothing to restrict"),
        ({"ip_ranges": ["203.0.113.0/33"]}, "no network"),
        ({"ip_ranges": ["203.0.113.9/24"]}, "host bits"),
        ({"ip_ranges": ["203.0.113.0/24"]}, "caller_ip"),
        ({"ip_ranges": ["203.0.113.0/24"], "caller_ip": "198.51.100.1"}, "would lock you out"),
        ({"ip_ranges": ["203.0.113.0/24"], "caller_ip": "me"}, "expected an address"),
    ],
)
def test_what_would_lock_out_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=told):
        bucket.restrict("lab", **options)


# ---------------------------------------------------------------- lifecycle


def rules_of(s3: S3Server, name: str) -> dict[str, dict[str, Any]]:
    return {rule["ID"]: rule for rule in s3.client().get_bucket_lifecycle_configuration(Bucket=name)["Rules"]}


def test_the_guides_lifecycle_is_one_call_and_merged(s3: S3Server, name: str) -> None:
    options = {"storage_options": s3.storage_options}
    change = bucket.lifecycle(name, GUIDE, **options)
    assert change.added == ("Archive old experiments", "Delete temporary data")
    there = rules_of(s3, name)
    for rule in GUIDE["Rules"]:
        asked = {**rule, "ID": rule["Id"]}
        asked.pop("Id")
        assert there[rule["Id"]] == asked
    own = bucket.Rule("Delete temporary data", "temp/", expire_days=14, noncurrent_days=30, abort_days=3)
    assert bucket.lifecycle(name, own, dry_run=True, **options).replaced == ("Delete temporary data",)
    assert rules_of(s3, name) == there
    change = bucket.lifecycle(name, own, **options)
    assert (change.replaced, change.kept) == (("Delete temporary data",), ("Archive old experiments",))
    now = rules_of(s3, name)
    assert now["Archive old experiments"] == there["Archive old experiments"]
    assert now["Delete temporary data"] == own.to_dict()
    assert bucket.lifecycle(name, own, **options).unchanged == ("Delete temporary data",)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (bucket.Rule("r"), "does nothing"),
        (bucket.Rule("", expire_days=1), "1 to 255"),
        (bucket.Rule("r", tier={"STANDRD_IA": 30}), "Did you mean 'STANDARD_IA'"),
        (bucket.Rule("r", tier={"STANDARD": 30}), "expected one of"),
        (bucket.Rule("r", tier={"STANDARD_IA": 29}), "expected 30 or more"),
        (bucket.Rule("r", tier={"GLACIER": 30}), "cannot be read until it is restored"),
        (bucket.Rule("r", tier={"GLACIER_IR": 30, "STANDARD_IA": 60}), "days that rise"),
        (bucket.Rule("r", tier={"STANDARD_IA": 60, "GLACIER_IR": 60}), "days that rise"),
        (bucket.Rule("r", tier={"ONEZONE_IA": 30, "GLACIER_IR": 90}), "days that rise"),
        (bucket.Rule("r", tier={"GLACIER_IR": 30}, expire_days=30), "expected to delete later"),
        (bucket.Rule("r", expire_days=0), "above zero"),
        (bucket.Rule("r", tier={"GLACIER_IR": -1}), "expected 0 or more"),
        ("temp/", "no lifecycle rule"),
        (None, "no lifecycle rules"),
        ({"Rules": 3}, "no lifecycle rules"),
        ({"ID": "r", "Expiration": 7}, "Expiration is 7, expected a mapping"),
        ({"ID": "r", "Filter": "temp/", "Expiration": {"Days": 7}}, "Filter is 'temp/'"),
        ({"ID": "r", "Transitions": {"Days": 7}}, "expected a list of mappings"),
        ({"ID": "r", "NoncurrentVersionTransitions": ["GLACIER_IR"]}, "expected a list of mappings"),
        ([bucket.Rule("r", expire_days=1), bucket.Rule("r", expire_days=2)], "an ID of its own"),
    ],
)
def test_rules_that_s3_or_a_store_would_not_stand(rule: Any, told: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=told):
        bucket.lifecycle("lab", rule)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (bucket.Rule("all", expire_days=3), "everything in the bucket"),
        (bucket.Rule("r", "p/", tier={"STANDARD_IA": 30, "GLACIER_IR": 40}), "billed for 30 days"),
        (bucket.Rule("r", "p/", tier={"GLACIER_IR": 0}, expire_days=10), "billed for 90 days"),
        (
            {
                "ID": "r",
                "Filter": {"And": {"Prefix": "p/", "ObjectSizeGreaterThan": 1000}},
                "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}],
            },
            "less than 128 KiB",
        ),
    ],
)
def test_rules_that_cost_more_than_they_seem_are_warned_of(s3: S3Server, name: str, rule: Any, told: str) -> None:
    change = bucket.lifecycle(name, rule, dry_run=True, storage_options=s3.storage_options)
    assert any(told in warning for warning in change.warnings)
    assert bucket.describe(name, s3.storage_options).lifecycle == {}


# ---------------------------------------------------------------- logs and replication


def test_logging_is_put_with_the_permission_for_it(s3: S3Server, name: str) -> None:
    logs, client = fresh(), s3.client()
    s3.bucket(logs)
    options = {"storage_options": s3.storage_options}
    assert bucket.log_to(name, logs, dry_run=True, **options).added == (f"s3://{logs}/access-logs/",)
    assert "LoggingEnabled" not in client.get_bucket_logging(Bucket=name)
    bucket.log_to(name, logs, **options)
    told = client.get_bucket_logging(Bucket=name)["LoggingEnabled"]
    assert (told["TargetBucket"], told["TargetPrefix"]) == (logs, "access-logs/")
    (statement,) = json.loads(client.get_bucket_policy(Bucket=logs)["Policy"])["Statement"]
    assert statement["Principal"] == {"Service": "logging.s3.amazonaws.com"}
    assert statement["Resource"] == f"arn:aws:s3:::{logs}/access-logs/*"
    assert statement["Condition"] == {"ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{name}"}}
    assert statement["Sid"].isalnum()
    assert bucket.log_to(name, logs, **options).unchanged
    assert bucket.log_to(name, logs, "other/", **options).replaced
    assert bucket.describe(name, s3.storage_options).logging["TargetBucket"] == logs


def test_a_bucket_does_not_log_to_itself_nor_abroad(s3: S3Server, name: str) -> None:
    with pytest.raises(errors.BucketNotFoundError, match="s3://never-made-logs"):
        bucket.log_to(name, "never-made-logs", storage_options=s3.storage_options)
    with pytest.raises(errors.InvalidArgumentError, match="its own logs"):
        bucket.log_to(name, f"s3://{name}", storage_options=s3.storage_options)
    abroad = fresh()
    bucket.create(abroad, "eu-west-1", kms_key=KEY, storage_options=s3.storage_options)
    with pytest.raises(errors.InvalidArgumentError, match="one region"):
        bucket.log_to(name, abroad, storage_options=s3.storage_options)
    near = fresh()
    bucket.create(near, kms_key=KEY, storage_options=s3.storage_options)
    assert "KMS" in bucket.log_to(name, near, storage_options=s3.storage_options).warnings[0]


def test_replication_needs_versions_on_both_sides(s3: S3Server, name: str) -> None:
    target, client, options = fresh(), s3.client(), {"storage_options": s3.storage_options}
    s3.bucket(target)
    for side in (name, target):
        with pytest.raises(errors.InvalidArgumentError, match=f"versioning of s3://{side} is off"):
            bucket.replicate_to(name, target, ROLE, **options)
        client.put_bucket_versioning(Bucket=side, VersioningConfiguration={"Status": "Enabled"})
    assert bucket.replicate_to(name, target, ROLE, prefix="exp/", dry_run=True, **options).added
    assert bucket.describe(name, s3.storage_options).replication == {}
    with gate(s3.endpoint) as line:  # the test's server keeps no prefix of a replication
        through = {**s3.storage_options, "endpoint_url": line.endpoint}
        bucket.replicate_to(name, target, ROLE, prefix="exp/", storage_class="STANDARD_IA", storage_options=through)
        sent = [asked.body.decode() for asked in line.asked if asked.method == "PUT"]
    assert [text.count("<Filter><Prefix>exp/</Prefix></Filter>") for text in sent] == [1]
    bucket.replicate_to(name, target, ROLE, prefix="raw/", **options)
    told = client.get_bucket_replication(Bucket=name)["ReplicationConfiguration"]
    assert told["Role"] == ROLE
    first, second = told["Rules"]
    assert first["Destination"] == {"Bucket": f"arn:aws:s3:::{target}", "StorageClass": "STANDARD_IA"}
    assert (first["Status"], second["Status"]) == ("Enabled", "Enabled")
    assert [rule["ID"] for rule in (first, second)] == [f"to {target}/exp/", f"to {target}/raw/"]
    assert int(first["Priority"]) != int(second["Priority"])
    with pytest.raises(errors.ConflictError, match="one role"):
        bucket.replicate_to(name, target, f"{ROLE}2", **options)
    for wrong in ({"role": "replicator"}, {"role": ROLE, "storage_class": "COLD"}):
        with pytest.raises(errors.InvalidArgumentError):
            bucket.replicate_to(name, target, **wrong, **options)


# ---------------------------------------------------------------- the command line


def test_the_commands_do_as_the_calls(s3: S3Server, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    name, logs = fresh(), fresh()
    assert json.loads(run("bucket", "create", name, "--json").out)["created"]
    assert run("bucket", "create", logs).out.startswith("The bucket was created")
    assert json.loads(run("bucket", "iam-policy", name, "--actions", "write").out) == bucket.iam_policy(
        name, None, "write"
    )
    (tmp_path / "rules.json").write_text(json.dumps(GUIDE))
    assert "added" in run("bucket", "lifecycle", name, "--file", tmp_path / "rules.json").out
    done = run("bucket", "lifecycle", name, "--rule", "old", "--tier", "STANDARD_IA=30", "--abort", "3", "--json")
    assert json.loads(done.out)["kept"] == ["Archive old experiments", "Delete temporary data"]
    assert run("bucket", "restrict", name, "--tls-only").status == 0
    assert run("bucket", "log-to", name, logs).status == 0
    assert run("bucket", "replicate-to", name, logs, "--role", ROLE, "--dry-run").status == 0
    told = json.loads(run("bucket", "describe", name, "--json").out)
    assert told == json.loads(json.dumps(bucket.describe(name).to_dict()))
    twice = ["--rule", "r", "--tier", "STANDARD_IA=30", "--tier", "STANDARD_IA=90"]
    for wrong in (["--rule", "r", "--tier", "STANDARD_IA"], twice, ["--file", "none.json"], []):
        failed = run("bucket", "lifecycle", name, *wrong)
        assert (failed.status, failed.err.count("\n")) == (2, 1)
