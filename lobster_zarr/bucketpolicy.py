"""Who may do what: IAM policies of least privilege, and statements of a bucket's own policy.

Knows which actions the requests of this package need. Statements are merged
by their Sid. Must not know who the caller is.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr.bucketchange import Change, change
from lobster_zarr.errors import InvalidArgumentError, did_you_mean
from lobster_zarr.location import check_key
from lobster_zarr.s3bucket import POLICY, administered, bucket_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lobster_zarr.bucketchange import Entry
    from lobster_zarr.s3bucket import Bucket

VERSION = "2012-10-17"
TLS_SID, IP_SID = "LobsterZarrTlsOnly", "LobsterZarrIpRanges"
_KMS_KEY = re.compile(r"arn:aws[\w-]*:kms:[\w-]+:\d{12}:key/.+")
_READ = ("s3:GetObject",)
_WRITE = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
_VERSIONS = {"read": ("s3:GetObjectVersion",), "write": ("s3:DeleteObjectVersion",)}
_PARTS = ("EncryptionConfiguration", "BucketVersioning", "BucketPublicAccessBlock", "BucketPolicy")
_MORE_PARTS = ("LifecycleConfiguration", "BucketLogging", "ReplicationConfiguration")
_ADMIN = ("s3:CreateBucket", *(f"s3:{verb}{part}" for part in _PARTS + _MORE_PARTS for verb in ("Get", "Put")))


def iam_policy(
    bucket: str,
    prefix: str | None = None,
    actions: Literal["read", "write", "admin"] = "read",
    *,
    versions: bool = False,
    kms_key: str | None = None,
) -> dict[str, Any]:
    """Return the IAM policy of a user or role with exactly the actions that this package needs.

    Parameters
    ----------
    bucket
        ``lab`` or ``s3://lab``; a star in it stands for any text.
    prefix
        Only what lies below it; None for the whole bucket.
    actions
        ``read``; ``write``, which reads too, and uploads in parts, replaces and deletes; ``admin``, to make the bucket
        and to configure it, and none of its objects.
    versions
        Old versions too: read them, and with ``write`` delete them.
    kms_key
        ARN of the KMS key that encrypts, where one does.

    Returns
    -------
    dict
        For ``json.dumps``, and `aws iam put-user-policy`.

    Raises
    ------
    InvalidArgumentError
        An unknown value of `actions`, no bucket, prefix or key.
    """
    if actions not in {"read", "write", "admin"}:
        hint = did_you_mean(str(actions), ("read", "write", "admin"))
        raise InvalidArgumentError(f"actions is {actions!r}, expected 'read', 'write' or 'admin'.{hint}")
    key = check_kms_key(kms_key) if kms_key is not None else None
    whole = f"arn:aws:s3:::{bucket_name(bucket)}"
    if actions == "admin":
        return _document(_allow(["s3:ListBucket", "s3:GetBucketLocation", *_ADMIN], whole))
    below = (prefix or "").strip("/")
    if below:
        check_key(below)
    listing = ["s3:ListBucket", *["s3:ListBucketVersions"] * versions]
    objects = [*_READ, *_VERSIONS["read"][: int(versions)]]
    if actions == "write":
        objects += [*_WRITE, *_VERSIONS["write"][: int(versions)]]
    scope = {"Condition": {"StringLike": {"s3:prefix": [below, f"{below}/*"]}}} if below else {}
    statements = [
        _allow(["s3:GetBucketLocation", *([] if below else listing)], whole),
        *([{**_allow(listing, whole), **scope}] if below else []),
        *[_allow(objects, f"{whole}/{name}") for name in ([f"{below}/*", below] if below else ["*"])],
    ]
    if key:
        statements.append(_allow(["kms:Decrypt", *["kms:GenerateDataKey"] * (actions == "write")], key))
    return _document(*statements)


def check_kms_key(text: str) -> str:
    """Return the ARN of a KMS key; what is none is refused."""
    if not _KMS_KEY.fullmatch(text):
        raise InvalidArgumentError(f"kms_key is {text!r}, expected arn:aws:kms:REGION:ACCOUNT:key/ID.")
    return text


def _allow(actions: Sequence[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource}


def _document(*statements: Entry) -> dict[str, Any]:
    return {"Version": VERSION, "Statement": [dict(statement) for statement in statements]}


def restrict(
    name: str,
    *,
    tls_only: bool = False,
    ip_ranges: Sequence[str] = (),
    caller_ip: str | None = None,
    lock_out: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Change:
    """Have a bucket refuse requests without TLS, or from elsewhere than some networks.

    The statements are merged with the policy that is there, by their Sid; others stay.

    Parameters
    ----------
    name
        ``lab`` or ``s3://lab``.
    tls_only
        Refuse what comes over plain http.
    ip_ranges
        Networks, as ``203.0.113.0/24``; requests from all others are refused, whoever makes them. What AWS does by
        itself (to deliver logs, to replicate) and for a caller stays allowed.
    caller_ip
        The address that S3 sees of you (``curl https://checkip.amazonaws.com``): it has to be in a range.
    lock_out
        Go ahead although you may be locked out yourself. The account's root user could then still delete the policy.
    dry_run
        Only tell what would change.
    storage_options
        As for :func:`lobster_zarr.open`.

    Raises
    ------
    InvalidArgumentError
        Nothing was asked for; a range is none; or it may lock you out.
    StorageError
        S3 refused or failed.
    """
    bucket = bucket_name(name)
    ranges = [_network(text) for text in ip_ranges]
    if not ranges and not tls_only:
        raise InvalidArgumentError("There is nothing to restrict, expected tls_only=True or ip_ranges.")
    if ranges and not lock_out:
        _check_caller(ranges, caller_ip)
    new = [tls_statement(bucket)] if tls_only else []
    if ranges:
        by_aws = {"aws:PrincipalIsAWSService": "false", "aws:ViaAWSService": "false"}
        others = {"NotIpAddress": {"aws:SourceIp": [str(network) for network in ranges]}, "Bool": by_aws}
        new.append(_deny(IP_SID, bucket, others))
    with administered(bucket, storage_options) as target:
        return change_policy(target, new, dry_run=dry_run)


def change_policy(bucket: Bucket, new: Sequence[Entry], *, dry_run: bool = False) -> Change:
    """Merge statements with the policy of a bucket, by their Sid."""
    return change(bucket, POLICY, new, empty={"Version": VERSION}, dry_run=dry_run)


def tls_statement(bucket: str) -> dict[str, Any]:
    """Return the statement that refuses requests over plain http."""
    return _deny(TLS_SID, bucket, {"Bool": {"aws:SecureTransport": "false"}})


def _deny(sid: str, bucket: str, condition: Mapping[str, Any]) -> dict[str, Any]:
    arn = f"arn:aws:s3:::{bucket}"
    everything = {"Principal": "*", "Action": "s3:*", "Resource": [arn, f"{arn}/*"]}
    return {"Sid": sid, "Effect": "Deny", **everything, "Condition": dict(condition)}


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        msg = f"{text!r} in ip_ranges is no network ({error}), expected one such as '203.0.113.0/24'."
        raise InvalidArgumentError(msg) from error


def _check_caller(ranges: Sequence[Any], caller_ip: str | None) -> None:
    remedy = "pass your address as caller_ip (`curl https://checkip.amazonaws.com` tells it), or lock_out=True"
    if caller_ip is None:
        raise InvalidArgumentError(f"ip_ranges may lock you out of the bucket: {remedy}.")
    try:
        address = ipaddress.ip_address(caller_ip)
    except ValueError as error:
        raise InvalidArgumentError(f"caller_ip is {caller_ip!r}, expected an address such as 203.0.113.9.") from error
    if not any(address in network for network in ranges):
        shown = ", ".join(map(str, ranges))
        raise InvalidArgumentError(f"ip_ranges would lock you out: {address} is in none of {shown}; add its network.")
