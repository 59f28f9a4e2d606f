"""How objects are to lie in S3: encrypted with which key, in which storage class.

Knows the words of S3's API, of boto3 and of obstore for them. Must not know
what the objects are, nor make a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lobster_zarr import errors

ENCRYPTIONS = ("AES256", "aws:kms")
CLASSES = (
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
    "EXPRESS_ONEZONE",
)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html
NOT_AT_ONCE = {"GLACIER", "DEEP_ARCHIVE"}
BILLED_FROM_BYTES = 128 << 10
INFREQUENT = {"STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"}
"""A smaller object is billed as 128 KiB in these, and each read of it a retrieval."""
LEAST_DAYS = {"STANDARD_IA": 30, "ONEZONE_IA": 30, "GLACIER_IR": 90, "GLACIER": 90, "DEEP_ARCHIVE": 180}
"""So long is an object in these billed, also where it is deleted, replaced or moved on before."""


@dataclass(frozen=True)
class Placement:
    """The options of a write."""

    sse: str | None = None
    sse_kms_key_id: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None

    def check(self) -> None:
        """Refuse what S3 has no words for.

        Raises
        ------
        InvalidArgumentError
            An unknown encryption or storage class, or a key without ``aws:kms``.
        """
        for name, given, known in (
            ("sse", self.sse, ENCRYPTIONS),
            ("storage_class", self.storage_class, CLASSES),
        ):
            if given is not None and given not in known:
                raise errors.InvalidArgumentError(
                    f"{name} is {given!r}, expected one of {', '.join(known)}.{errors.did_you_mean(given, known)}"
                )
        if self.sse != "aws:kms" and (self.sse_kms_key_id or self.bucket_key is not None):
            raise errors.InvalidArgumentError(
                "sse_kms_key_id and bucket_key are for encryption by KMS; pass sse='aws:kms' with them."
            )

    def check_store(self) -> None:
        """Refuse classes whose objects cannot be read at once: a store is read from the moment it is there."""
        if self.storage_class in NOT_AT_ONCE:
            raise errors.InvalidArgumentError(
                f"A store in the storage class {self.storage_class} could not be read: its objects have to be restored "
                "first, which takes hours. Use GLACIER_IR, or keep an exported file in that class."
            )

    def class_of(self, n_bytes: int | None) -> str | None:
        """Return the storage class of an object of this size; an infrequent-access one only from 128 KiB."""
        small = n_bytes is not None and n_bytes < BILLED_FROM_BYTES
        return "STANDARD" if small and self.storage_class in INFREQUENT else self.storage_class

    def for_boto3(self, n_bytes: int | None = None) -> dict[str, Any]:
        """Return the arguments of boto3's `put_object` or `upload_file` (its ``ExtraArgs``), save `bucket_key`.

        `upload_file` refuses that one: `ask_for_bucket_key` has it sent.
        """
        arguments = {
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.sse_kms_key_id,
            "StorageClass": self.class_of(n_bytes),
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def ask_for_bucket_key(self, events: Any) -> None:
        """Have all writes of a boto3 session or client ask for what `bucket_key` says."""

        def add(params: dict[str, Any], **_: Any) -> None:
            if params.get("ServerSideEncryption") == "aws:kms":
                params.setdefault("BucketKeyEnabled", self.bucket_key)

        if self.bucket_key is not None:
            for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
                events.register(f"provide-client-params.s3.{operation}", add)

    def for_obstore(self) -> dict[str, Any]:
        """Return the part of obstore's configuration that is one for all objects."""
        config = {
            "aws_server_side_encryption": self.sse,
            "aws_sse_kms_key_id": self.sse_kms_key_id,
            "aws_sse_bucket_key_enabled": self.bucket_key,
        }
        return {name: value for name, value in config.items() if value is not None}
