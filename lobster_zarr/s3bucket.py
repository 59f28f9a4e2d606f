"""A bucket under administration: reads and writes the parts of its configuration.

Knows what S3 calls them, which permission each needs and how S3 says that one
is not set. Must not know what a configuration means.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lobster_zarr.errors import AccessDeniedError, BucketNotFoundError, InvalidArgumentError, UnsupportedError
from lobster_zarr.location import Access, Location
from lobster_zarr.place import is_s3, place
from lobster_zarr.redact import fit_to_show
from lobster_zarr.refusal import IDENTITY, Operation
from lobster_zarr.s3client import s3_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_KEPT_STARTS = ("xn--", "sthree-", "amzn-s3-demo-")
_KEPT_ENDS = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")

_CONFIGURE = Operation("configure", "s3:GetBucketLocation")
_DENIED = {"AccessDenied", "AllAccessDisabled"}
_WRONG = {
    "CrossLocationLoggingProhibitted",  # as S3 spells it
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidBucketState",
    "InvalidLocationConstraint",
    "InvalidRequest",
    "InvalidTargetBucketForLogging",
    "MalformedPolicy",
    "MalformedXML",
}


class Aspect(NamedTuple):
    """A part of a bucket's configuration, in the words of S3 and of boto3."""

    name: str
    call: str
    permission: str
    argument: str
    absent: str = ""
    """The code that S3 answers with where it is not set."""


ENCRYPTION = Aspect(
    "encryption",
    "bucket_encryption",
    "EncryptionConfiguration",
    "ServerSideEncryptionConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
)
VERSIONING = Aspect("versioning", "bucket_versioning", "BucketVersioning", "VersioningConfiguration")
PUBLIC_ACCESS = Aspect(
    "public access block",
    "public_access_block",
    "BucketPublicAccessBlock",
    "PublicAccessBlockConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
)
POLICY = Aspect("policy", "bucket_policy", "BucketPolicy", "Policy", "NoSuchBucketPolicy")
LIFECYCLE = Aspect(
    "lifecycle",
    "bucket_lifecycle_configuration",
    "LifecycleConfiguration",
    "LifecycleConfiguration",
    "NoSuchLifecycleConfiguration",
)
LOGGING = Aspect("logging", "bucket_logging", "BucketLogging", "BucketLoggingStatus")
REPLICATION = Aspect(
    "replication",
    "bucket_replication",
    "ReplicationConfiguration",
    "ReplicationConfiguration",
    "ReplicationConfigurationNotFoundError",
)
ASPECTS = (ENCRYPTION, VERSIONING, PUBLIC_ACCESS, POLICY, LIFECYCLE, LOGGING, REPLICATION)


@dataclass(frozen=True)
class Bucket:
    """A bucket, and the client that speaks for it."""

    name: str
    client: Any

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def get(self, aspect: Aspect) -> Any:
        """Return a part of the configuration, as boto3 has it; a policy as a dict, an empty dict where none is set."""
        answer = self._ask(f"get_{aspect.call}", "read", aspect, f"s3:Get{aspect.permission}")
        told = answer.get(aspect.argument, answer)
        return json.loads(told) if isinstance(told, str) else told

    def put(self, aspect: Aspect, value: Any) -> None:
        """Replace a part of the configuration."""
        given = {aspect.argument: json.dumps(value) if aspect is POLICY else value}
        if aspect is LIFECYCLE:  # what S3 tells in one it takes in two
            others = {name: other for name, other in value.items() if name != "Rules"}
            given = {aspect.argument: {"Rules": value["Rules"]}, **others}
        self._ask(f"put_{aspect.call}", "change", aspect, f"s3:Put{aspect.permission}", **given)

    def region(self) -> str:
        """Return the region that the bucket lies in."""
        location = Aspect("region", "bucket_location", "BucketLocation", "LocationConstraint")
        told = self._ask("get_bucket_location", "read", location, "s3:GetBucketLocation").get("LocationConstraint")
        return {None: "us-east-1", "EU": "eu-west-1"}.get(told, str(told))

    def _ask(self, call: str, verb: str, aspect: Aspect, permission: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import ClientError, ParamValidationError

        request: Callable[..., dict[str, Any]] = getattr(self.client, call)
        try:
            answer = request(Bucket=self.name, **arguments)
        except ParamValidationError as error:
            report = " ".join(error.kwargs["report"].split())
            raise InvalidArgumentError(f"Cannot {verb} the {aspect.name} of {self}: {report}") from None
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if aspect.absent and code == aspect.absent:
                return {}
            failure = self._failure(code, f"{verb} the {aspect.name} of {self}", permission, error)
            if failure is None:
                raise
            raise failure from fit_to_show(error)
        return {name: value for name, value in answer.items() if name != "ResponseMetadata"}

    def _failure(self, code: str, what: str, permission: str, error: Any) -> Exception | None:
        if code in _DENIED:
            return AccessDeniedError(
                f"Access denied: cannot {what}, expected credentials that allow {permission} on "
                f"arn:aws:s3:::{self.name}. Ask its owner, or use other credentials; {IDENTITY}."
            )
        if code == "NoSuchBucket":  # of several, the error of the client would name another
            return BucketNotFoundError(f"Cannot {what}: there is no such bucket at this endpoint. Check its name.")
        if code in _WRONG:
            return InvalidArgumentError(f"Cannot {what}: S3 says {code}: {error.response['Error'].get('Message', '')}")
        if code == "NotImplemented":
            return UnsupportedError(f"Cannot {what}: this storage has none. Use AWS S3 for it.")
        return None


@contextlib.contextmanager
def administered(
    name: str, storage_options: Mapping[str, Any] | None = None, *, region: str | None = None
) -> Iterator[Bucket]:
    """Lend a bucket whose configuration can be asked for and changed.

    Parameters
    ----------
    name
        As `bucket_name` gives it.
    storage_options
        As for :func:`lobster_zarr.open`.
    region
        To speak to, where not the one of the options.

    Raises
    ------
    StorageError
        S3 refused, failed or could not be reached; an `AccessDeniedError` names the permission.
    """
    access = Access.of(storage_options)
    access = replace(access, region=region) if region else access
    with s3_client(Location("s3", name), access, _CONFIGURE) as client:
        yield Bucket(name, client)


def bucket_name(text: str, *, new: bool = False) -> str:
    """Return the name of a bucket, given alone or as ``s3://name``.

    Parameters
    ----------
    text
        What the caller said.
    new
        Whether the bucket is to be made: S3's rules hold for its name. Older ones may break them.

    Raises
    ------
    InvalidArgumentError
        It is no name, or one that S3 does not take.
    """
    where = place(text) if is_s3(text) else Location("s3", text)
    name = where.root
    if not name or where.prefix or "/" in name or "\\" in name:
        raise InvalidArgumentError(f"{text!r} is no bucket, expected a name such as 'lab' or 's3://lab'.")
    wrong = not _NAME.fullmatch(name) or _ADDRESS.fullmatch(name)
    if new and (wrong or name.startswith(_KEPT_STARTS) or name.endswith(_KEPT_ENDS)):
        raise InvalidArgumentError(
            f"{name!r} cannot be a bucket's name, expected 3 to 63 small letters, digits, hyphens and single dots, "
            "with a letter or digit at both ends, that is no IP address and has none of the beginnings and endings "
            f"that S3 keeps for itself ({', '.join(_KEPT_STARTS + _KEPT_ENDS)})."
        )
    return name
