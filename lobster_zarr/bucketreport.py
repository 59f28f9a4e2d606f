"""How a bucket is configured, read back from S3, and what of it is unsafe or costs for nothing.

Must not change anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lobster_zarr.bucketchange import entries
from lobster_zarr.errors import AccessDeniedError, UnsupportedError
from lobster_zarr.placement import NOT_AT_ONCE
from lobster_zarr.s3bucket import (
    ASPECTS,
    ENCRYPTION,
    LIFECYCLE,
    LOGGING,
    POLICY,
    PUBLIC_ACCESS,
    REPLICATION,
    VERSIONING,
    administered,
    bucket_name,
)
from lobster_zarr.typeset import WIDTH, printable, shortened, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lobster_zarr.s3bucket import Aspect, Bucket

BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


@dataclass(frozen=True)
class BucketReport:
    """The configuration of a bucket.

    Parameters
    ----------
    bucket, region
        ``s3://name``, and where it lies.
    encryption
        ``AES256``, ``aws:kms`` or None where there is none by default.
    kms_key_id, bucket_key
        Of ``aws:kms``: the key, and whether one request to KMS serves many objects.
    versioning
        ``Enabled``, ``Suspended``, or None where it never was on.
    public_access
        Which of S3's four blocks are on.
    policy, lifecycle, logging, replication
        As S3 has them; empty where there is none.
    unread
        Parts that the credentials may not read, or this storage does not have.
    findings
        What is unsafe, or costs for nothing, and what to do about it.
    """

    bucket: str
    region: str
    encryption: str | None
    kms_key_id: str | None
    bucket_key: bool
    versioning: str | None
    public_access: dict[str, bool]
    policy: dict[str, Any]
    lifecycle: dict[str, Any]
    logging: dict[str, Any]
    replication: dict[str, Any]
    unread: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def _rows(self) -> Iterator[tuple[str, str]]:
        key = f", key {self.kms_key_id or 'of AWS'}{', bucket key' * self.bucket_key}" if self.encryption else ""
        yield "encryption", (self.encryption or "none") + (key if self.encryption == "aws:kms" else "")
        yield "versioning", self.versioning or "off"
        n_on = sum(self.public_access.values())
        yield "public", "blocked" if n_on == len(BLOCKS) else f"{n_on} of {len(BLOCKS)} blocks are on"
        for label, configuration, member, key in (
            ("policy", self.policy, "Statement", "Sid"),
            ("lifecycle", self.lifecycle, "Rules", "ID"),
            ("replication", self.replication, "Rules", "ID"),
        ):
            names = [entry.get(key) or "(no name)" for entry in entries(configuration, member)]
            yield label, ", ".join(names) or "none"
        target = f"s3://{self.logging.get('TargetBucket')}/{self.logging.get('TargetPrefix', '')}"
        yield "logging", target if self.logging else "none"

    def __str__(self) -> str:
        lines = [shortened(f"{self.bucket}  {self.region}", WIDTH)]
        for label, value in self._rows():
            known = "not to be read with these credentials" if label in _labels(self.unread) else printable(value)
            lines += wrapped(known, 15, f"  {label}")
        lines += [line for finding in self.findings for line in wrapped(f"  ! {finding}", 4)]
        return "\n".join(lines if self.findings else [*lines, "  nothing to find fault with"])


def _labels(unread: tuple[str, ...]) -> set[str]:
    return {"public" if name == PUBLIC_ACCESS.name else name for name in unread}


def describe(name: str, storage_options: Mapping[str, Any] | None = None) -> BucketReport:
    """Read the configuration of a bucket: eight requests.

    Parameters
    ----------
    name
        ``lab`` or ``s3://lab``.
    storage_options
        As for :func:`lobster_zarr.open`.

    Raises
    ------
    BucketNotFoundError
        There is no such bucket.
    StorageError
        S3 refused or failed. A part alone that may not be read is told in `unread`.
    """
    with administered(bucket_name(name), storage_options) as bucket:
        return report_of(bucket)


def report_of(bucket: Bucket) -> BucketReport:
    """Read the configuration of a bucket that is being administered."""
    told: dict[str, Any] = {}
    for aspect in ASPECTS:
        try:
            told[aspect.name] = bucket.get(aspect)
        except (AccessDeniedError, UnsupportedError):
            continue
    unread = tuple(aspect.name for aspect in ASPECTS if aspect.name not in told)
    rules = told.get(ENCRYPTION.name, {}).get("Rules", [])
    rule = rules[0] if rules else {}
    default = rule.get("ApplyServerSideEncryptionByDefault", {})
    report = BucketReport(
        bucket=str(bucket),
        region=bucket.region(),
        encryption=default.get("SSEAlgorithm"),
        kms_key_id=default.get("KMSMasterKeyID"),
        bucket_key=bool(rule.get("BucketKeyEnabled")),
        versioning=told.get(VERSIONING.name, {}).get("Status"),
        public_access={block: bool(told.get(PUBLIC_ACCESS.name, {}).get(block)) for block in BLOCKS},
        policy=told.get(POLICY.name, {}),
        lifecycle=told.get(LIFECYCLE.name, {}),
        logging=told.get(LOGGING.name, {}).get("LoggingEnabled", {}),
        replication=told.get(REPLICATION.name, {}),
        unread=unread,
    )
    found = [text for aspect, text in _findings(report) if aspect.name not in unread]
    return replace(report, findings=tuple(found))


def _findings(report: BucketReport) -> Iterator[tuple[Aspect, str]]:
    name = report.bucket.removeprefix("s3://")
    make = f"`lobster-zarr bucket create {name}` sets it"
    if report.encryption is None:
        yield ENCRYPTION, f"what is written is not encrypted by default: {make}"
    off = [block for block, on in report.public_access.items() if not on]
    if off:
        yield PUBLIC_ACCESS, f"public access is not blocked ({', '.join(off)}): {make} where none is on"
    for statement in entries(report.policy, "Statement"):
        if _is_public(statement):
            yield POLICY, f"the policy allows everybody {_told(statement)}: name whom it is for"
    if not any(_is_tls_only(statement) for statement in entries(report.policy, "Statement")):
        yield POLICY, f"requests without TLS are answered: `lobster-zarr bucket restrict {name} --tls-only`"
    if report.versioning != "Enabled":
        yield VERSIONING, f"what is overwritten or deleted is gone, versioning is not on: {make} where it never was"
    yield from ((LIFECYCLE, text) for text in _of_rules(report))
    if not report.logging:
        yield LOGGING, f"nobody knows who reads: `lobster-zarr bucket log-to {name} LOG_BUCKET`"


def _of_rules(report: BucketReport) -> Iterator[str]:
    rules = [rule for rule in entries(report.lifecycle, "Rules") if rule.get("Status") == "Enabled"]
    if report.versioning and not any("NoncurrentVersionExpiration" in rule for rule in rules):
        yield "old versions are kept, and paid for, for ever: add a lifecycle rule with noncurrent_days"
    if not any("AbortIncompleteMultipartUpload" in rule for rule in rules):
        yield "parts of interrupted uploads are kept, and paid for, for ever: add a lifecycle rule with abort_days"
    for rule in rules:
        archived = {move.get("StorageClass") for move in rule.get("Transitions", ())} & NOT_AT_ONCE
        if archived:
            yield f"the lifecycle rule {rule.get('ID')!r} moves to {archived.pop()}: stores there cannot be read"


def _is_public(statement: Mapping[str, Any]) -> bool:
    who = statement.get("Principal")
    anybody = who == "*" or (isinstance(who, dict) and "*" in (who.get("AWS") or ()))
    return statement.get("Effect") == "Allow" and anybody and not statement.get("Condition")


def _is_tls_only(statement: Mapping[str, Any]) -> bool:
    plain = statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport")
    return statement.get("Effect") == "Deny" and str(plain).lower() in {"false", "['false']"}


def _told(statement: Mapping[str, Any]) -> str:
    actions = statement.get("Action", "what it does not except")
    return actions if isinstance(actions, str) else ", ".join(actions)
