"""Buckets of S3: made safely, configured, told, copied. The public face of the modules that do it.

Must not know what objects hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lobster_zarr.accesslog import AccessReport, analyze_logs
from lobster_zarr.bucketchange import Change
from lobster_zarr.bucketlinks import log_to, replicate_to
from lobster_zarr.bucketpolicy import change_policy, check_kms_key, iam_policy, restrict, tls_statement
from lobster_zarr.bucketreport import BLOCKS, BucketReport, describe, report_of
from lobster_zarr.errors import AccessDeniedError, ConflictError, InvalidArgumentError
from lobster_zarr.lifecycle import Rule, lifecycle
from lobster_zarr.location import DEFAULT_REGION, Access
from lobster_zarr.replicate import ReplicationReport, replicate
from lobster_zarr.s3bucket import ENCRYPTION, POLICY, PUBLIC_ACCESS, VERSIONING, administered, bucket_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lobster_zarr.s3bucket import Aspect, Bucket

__all__ = [
    "AccessReport",
    "BucketReport",
    "Change",
    "CreationReport",
    "ReplicationReport",
    "Rule",
    "analyze_logs",
    "create",
    "describe",
    "iam_policy",
    "lifecycle",
    "log_to",
    "replicate",
    "replicate_to",
    "restrict",
]

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+")
_NOT_FOUND, _FORBIDDEN = 404, 403


@dataclass(frozen=True)
class CreationReport:
    """What `create` did.

    Parameters
    ----------
    created
        Whether the bucket was made; else it was yours already.
    configured
        What was set; all else was set before.
    bucket
        How it is configured now.
    """

    created: bool
    configured: tuple[str, ...]
    bucket: BucketReport

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {"created": self.created, "configured": self.configured, **self.bucket.to_dict()}

    def __str__(self) -> str:
        done = "was created" if self.created else "is yours already"
        return f"The bucket {done}; set: {', '.join(self.configured) or 'nothing, all of it was'}.\n{self.bucket}"


def create(
    name: str,
    region: str | None = None,
    *,
    kms_key: str | None = None,
    tls_only: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> CreationReport:
    """Make a bucket that is encrypted, versioned and closed to the public; where it is yours, set what is not set.

    What is configured otherwise stays, and `describe` finds fault with it: a suspended versioning, blocks of public
    access that are off. Broken off, the same call completes it.

    Parameters
    ----------
    name
        ``lab-atlases`` or ``s3://lab-atlases``; one name is there once in the world.
    region
        Where it is to lie; by default that of `storage_options` or the environment, else us-east-1.
    kms_key
        ARN of a KMS key to encrypt with (one request to KMS then serves many objects); None for AES256.
    tls_only
        Refuse requests over plain http, by a statement in its policy.
    storage_options
        As for :func:`lobster_zarr.open`.

    Raises
    ------
    InvalidArgumentError
        A name, region or key that is none.
    ConflictError
        The bucket belongs to somebody else, or is yours in another region than `region`.
    StorageError
        S3 refused or failed.
    """
    wanted = bucket_name(name, new=True)
    home = region or Access.of(storage_options).region or DEFAULT_REGION
    if not _REGION.fullmatch(home):
        raise InvalidArgumentError(f"The region is {home!r}, expected one such as 'eu-west-1'.")
    encryption = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": check_kms_key(kms_key)} if kms_key else None
    with administered(wanted, storage_options, region=home) as bucket:
        created = _made(bucket, home)
        if not created and region and bucket.region() != region:
            raise ConflictError(
                f"{bucket} is yours already, in {bucket.region()}, expected {region}. Take another name."
            )
        configured = [aspect.name for aspect in _completed(bucket, encryption)]
        if tls_only:
            change = change_policy(bucket, [tls_statement(wanted)])
            configured += [POLICY.name] if change.added or change.replaced else []
        return CreationReport(created, tuple(configured), report_of(bucket))


def _completed(bucket: Bucket, kms: Mapping[str, str] | None) -> Iterator[Aspect]:
    """Set what is not set; yield it."""
    rule = {"ApplyServerSideEncryptionByDefault": kms or {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": bool(kms)}
    for aspect, value in (
        (PUBLIC_ACCESS, dict.fromkeys(BLOCKS, True)),
        (ENCRYPTION, {"Rules": [rule]}),
        (VERSIONING, {"Status": "Enabled"}),
    ):
        there = bucket.get(aspect)
        default = (there.get("Rules") or [{}])[0].get("ApplyServerSideEncryptionByDefault")
        if not there or (aspect is ENCRYPTION and kms and default != kms):
            bucket.put(aspect, value)
            yield aspect


def _made(bucket: Bucket, region: str) -> bool:
    """Make a bucket; False where it is ours already."""
    from botocore.exceptions import ClientError

    try:
        bucket.client.head_bucket(Bucket=bucket.name)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == _FORBIDDEN:
            raise _taken(bucket) from error
        if status != _NOT_FOUND:
            raise
    else:
        if not _is_listed(bucket):
            raise _taken(bucket)
        return False
    # us-east-1 has no name here: S3 refuses it.
    where = {} if region == DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        bucket.client.create_bucket(Bucket=bucket.name, **where)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "BucketAlreadyOwnedByYou":
            return False
        if code == "BucketAlreadyExists":
            raise _taken(bucket) from error
        if code == "AccessDenied":
            msg = f"Access denied: cannot create {bucket}, expected credentials that allow s3:CreateBucket."
            raise AccessDeniedError(msg) from error
        raise
    return True


def _is_listed(bucket: Bucket) -> bool:
    """Whether a bucket is one of the caller's; True where they may not list theirs."""
    from botocore.exceptions import ClientError

    try:
        answer = bucket.client.list_buckets(Prefix=bucket.name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != _FORBIDDEN:
            raise
        return True
    return bucket.name in {found["Name"] for found in answer.get("Buckets", ())}


def _taken(bucket: Bucket) -> ConflictError:
    return ConflictError(
        f"{bucket} exists and belongs to somebody else, or these credentials may not see it. Names of buckets are "
        "unique in the world: take another, such as one with a date or random letters at its end."
    )
