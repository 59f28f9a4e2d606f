"""What ties a bucket to another: the delivery of its access logs, and its replication.

Knows what S3 asks of both buckets. Must not know what the logs say, nor copy
anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lobster_zarr.bucketchange import Change, change
from lobster_zarr.bucketpolicy import change_policy
from lobster_zarr.errors import ConflictError, InvalidArgumentError
from lobster_zarr.placement import Placement
from lobster_zarr.s3bucket import ENCRYPTION, LOGGING, REPLICATION, VERSIONING, Bucket, administered, bucket_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROLE = re.compile(r"arn:aws[\w-]*:iam::\d{12}:role/.+")
_SERVICE = "logging.s3.amazonaws.com"


def log_to(
    name: str,
    target: str,
    prefix: str = "access-logs/",
    *,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Change:
    """Have S3 write a log of the requests to a bucket into another one.

    The logging service is allowed to, by a statement in the policy of the target.

    Parameters
    ----------
    name
        Whose requests are logged.
    target
        Where the logs go: another bucket of the same account and region.
    prefix
        Of their keys there.
    dry_run
        Only tell what would change.
    storage_options
        As for :func:`lobster_zarr.open`.

    Returns
    -------
    Change
        Of the logging; logs arrive within hours, and not every request is promised to be in them.

    Raises
    ------
    InvalidArgumentError
        The target is the bucket itself, whose logs would be logged, or lies in another region.
    StorageError
        S3 refused or failed.
    """
    source, sink = bucket_name(name), bucket_name(target)
    if source == sink:
        raise InvalidArgumentError(f"s3://{source} would log its own logs. Name another bucket for them.")
    given = {"TargetBucket": sink, "TargetPrefix": prefix}
    statement = {
        "Sid": "LobsterZarrLogsOf" + re.sub(r"\W|_", "", source.title()),  # a Sid has letters and digits alone
        "Effect": "Allow",
        "Principal": {"Service": _SERVICE},
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{sink}/{prefix}*",
        "Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{source}"}},
    }
    with administered(source, storage_options) as bucket:
        logs = Bucket(sink, bucket.client)
        here, there = bucket.region(), logs.region()
        if here != there:
            raise InvalidArgumentError(f"{bucket} is in {here} and {logs} in {there}, expected one region for both.")
        before = bucket.get(LOGGING).get("LoggingEnabled", {})
        change_policy(logs, [statement], dry_run=dry_run)
        if before != given and not dry_run:
            bucket.put(LOGGING, {"LoggingEnabled": given})
        after = given if dry_run else bucket.get(LOGGING).get("LoggingEnabled", {})
        named = (f"{logs}/{prefix}",)
        return Change(
            bucket=str(bucket),
            what=LOGGING.name,
            added=() if before else named,
            replaced=named if before and before != given else (),
            unchanged=named if before == given else (),
            kept=(),
            configuration=after,
            warnings=tuple(_of_encryption(logs)),
            dry_run=dry_run,
        )


def _of_encryption(logs: Bucket) -> list[str]:
    rules = logs.get(ENCRYPTION).get("Rules", [])
    used = {rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules}
    kms = f"{logs} encrypts by KMS, into which S3 delivers no logs: have it encrypt by AES256"
    return [kms] if used - {None, "AES256"} else []


def replicate_to(
    name: str,
    target: str,
    role: str,
    *,
    prefix: str = "",
    storage_class: str | None = None,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Change:
    """Have S3 copy what is written from now on to another bucket, in this or another region.

    What is there already is not copied: `replicate` does. S3 keeps no order between objects, so a store that is being
    copied may have its root before its chunks: read the copy once S3 reports it done.

    Parameters
    ----------
    name, target
        From where to where; both have to be versioned.
    role
        ARN of the IAM role that S3 takes on to copy.
    prefix
        Of the keys that are copied; all by default. The rule is named after it and the target.
    storage_class
        Of the copies; None for that of the originals.
    dry_run
        Only tell what would change.
    storage_options
        As for :func:`lobster_zarr.open`.

    Raises
    ------
    InvalidArgumentError
        A bucket that is not versioned, or an argument that is none.
    ConflictError
        The bucket replicates by another role already.
    StorageError
        S3 refused or failed.
    """
    source, sink = bucket_name(name), bucket_name(target)
    if source == sink:
        raise InvalidArgumentError(f"s3://{source} cannot replicate to itself. Name another bucket.")
    if not _ROLE.fullmatch(role):
        raise InvalidArgumentError(f"role is {role!r}, expected arn:aws:iam::ACCOUNT:role/NAME.")
    Placement(storage_class=storage_class).check()
    destination = {"Bucket": f"arn:aws:s3:::{sink}"} | ({"StorageClass": storage_class} if storage_class else {})
    with administered(source, storage_options) as bucket:
        for side in (bucket, Bucket(sink, bucket.client)):
            _check_versioned(side)
        there = bucket.get(REPLICATION)
        if there and there.get("Role") != role:
            raise ConflictError(f"{bucket} replicates by {there.get('Role')}, expected {role}: a bucket has one role.")
        rule_id = f"to {sink}/{prefix}"
        rule = {
            "ID": rule_id,
            "Priority": _priority(there, rule_id),
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "Destination": destination,
            "DeleteMarkerReplication": {"Status": "Disabled"},
        }
        return change(bucket, REPLICATION, [rule], empty={"Role": role}, dry_run=dry_run)


def _check_versioned(bucket: Bucket) -> None:
    status = bucket.get(VERSIONING).get("Status", "off")
    if status != "Enabled":
        raise InvalidArgumentError(
            f"The versioning of {bucket} is {status}, expected Enabled: S3 replicates between versioned buckets. "
            f"`aws s3api put-bucket-versioning --bucket {bucket.name} --versioning-configuration Status=Enabled`."
        )


def _priority(there: Mapping[str, Any], rule_id: str) -> int:
    """Return that of the rule of this name, else one that no rule has: S3 wants them to differ."""
    known = {rule.get("ID"): rule.get("Priority", 0) for rule in there.get("Rules", ())}
    return int(known.get(rule_id, max(known.values(), default=0) + 1))
