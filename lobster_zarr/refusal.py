"""Why a request failed, as this package's errors.

obstore tells few failures apart by type, so a failed request is followed by
one question to a client that answers in codes (botocore for S3, the operating
system for files): no error's text is read, and success costs nothing. Must
not know of Zarr.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from lobster_zarr import errors
from lobster_zarr.location import DEFAULT_REGION, Access, Location, display_uri

if TYPE_CHECKING:
    from collections.abc import Mapping

# S3's own names: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BAD_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "RequestTimeTooSkewed"}
_BAD_TOKEN = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_TOO_FAST = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests"}
IDENTITY = "`aws sts get-caller-identity` tells whose credentials are used"


class Operation(NamedTuple):
    """What was asked of the storage."""

    verb: str
    permission: str  # as IAM names it


READ = Operation("read", "s3:GetObject")
WRITE = Operation("write", "s3:PutObject")
DELETE = Operation("delete", "s3:DeleteObject")
LIST = Operation("list", "s3:ListBucket")
READ_VERSION = Operation("read", "s3:GetObjectVersion")
LIST_VERSIONS = Operation("list the versions of", "s3:ListBucketVersions")
ROLL_BACK = Operation("roll back", "s3:GetObjectVersion, s3:PutObject and s3:DeleteObject")
ASK_VERSIONING = Operation("ask about the versions of", "s3:GetBucketVersioning")


def refused_by_system(error: OSError, operation: Operation, key: str, where: Location) -> errors.StorageError:
    """Our error for one of the operating system's."""
    what = f"Cannot {operation.verb} {key!r} in {where}: {error.strerror or type(error).__name__}."
    if isinstance(error, PermissionError):
        return errors.AccessDeniedError(f"{what} Expected permission to {operation.verb}; change the mode.")
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return errors.StorageError(f"{what} {'Make room there' if full else 'Check the path'}, then try again.")


def _ask_system(path: Path, operation: Operation, content: Any) -> OSError | None:
    """Try a failed operation again, on a nameless file beside its own, to be given the error number."""
    try:
        if operation is READ:
            path.open("rb").close()
        elif operation is LIST:
            os.scandir(path).close()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent) as twin:
                twin.write(content)
    except OSError as error:
        return error
    return None


def ask_s3(where: Location, access: Access, operation: Operation, key: str) -> errors.StorageError | None:
    """Why S3 refuses requests at the location, or None.

    A listing of one name tells; of a deletion, the same deletion again, because
    obstore deletes in bulk, where the refusal is part of an answer with status 200.
    """
    import botocore.exceptions as refusals
    from botocore.parsers import ResponseParserError

    payer = {"RequestPayer": "requester"} if access.requester_pays else {}
    try:
        with contextlib.closing(access.client(attempts=1)) as client:
            client.meta.events.register("before-parameter-build.s3", _stay)
            if operation is DELETE:
                client.delete_object(Bucket=where.root, Key=f"{where.prefix}/{key}".lstrip("/"), **payer)
            else:
                client.list_objects_v2(Bucket=where.root, Prefix=where.prefix, MaxKeys=1, **payer)
    except errors.CredentialsError as error:
        return error
    except refusals.ClientError as error:
        denied = error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        refused = _refused_by_s3(error.response, where, access)
        return refused or (_denied(operation, key, where, access) if denied else None)
    except refusals.ParamValidationError:
        return errors.BucketNotFoundError(f"{where.root!r} cannot name a bucket. Check the URI.")
    except (refusals.ConnectionError, refusals.HTTPClientError, ResponseParserError) as error:
        return _out_of_reach(error, where, access)
    return None


def _stay(context: dict[str, Any], **_: Any) -> None:
    """Keep botocore from following a bucket: it would hide the region, and asks for ever where none is told."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _out_of_reach(error: Exception, where: Location, access: Access) -> errors.NetworkError:
    import botocore.exceptions as refusals
    from botocore.parsers import ResponseParserError

    shown = display_uri(access.endpoint_url) if access.endpoint_url else "S3"
    if isinstance(error, ResponseParserError):
        return errors.NetworkError(
            f"{shown} answers for {where}, but not as S3 does. Check endpoint_url: of a server with a web console, "
            "S3 is on another port."
        )
    if isinstance(error, (refusals.ReadTimeoutError, refusals.ConnectTimeoutError)):
        option = "read_timeout" if isinstance(error, refusals.ReadTimeoutError) else "connect_timeout"
        seconds = access.stall_seconds if option == "read_timeout" else access.connect_seconds
        return errors.NetworkError(
            f"{shown} does not answer for {where}, expected an answer within {seconds:g} s. Check the endpoint and the "
            f"network; if they are slow, raise {option} or max_attempts in storage_options."
        )
    return errors.NetworkError(
        f"{shown} cannot be reached for {where}, expected an S3 endpoint. Check the endpoint and the network."
    )


def _elsewhere(response: Mapping[str, Any], where: Location, access: Access) -> errors.StorageError:
    told = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region") or response["Error"].get("Region")
    failure = errors.StorageError(
        f"The bucket of {where} is in {told or 'another region'}, but was asked for in "
        f"{access.region or DEFAULT_REGION}. Pass region={told or '…'!r} in storage_options, or set AWS_REGION; "
        f"`aws s3api get-bucket-location --bucket {where.root}` tells which it is."
    )
    failure.region = told
    return failure


def _refused_by_s3(response: Mapping[str, Any], where: Location, access: Access) -> errors.StorageError | None:
    code, status = response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return errors.BucketNotFoundError(
            f"The bucket {where.root!r} of {where} does not exist at this endpoint. Check its name with "
            f"`aws s3 ls s3://{where.root}`, and the endpoint."
        )
    if code in _BAD_KEY | _BAD_TOKEN:
        remedy = (
            "Renew it (`aws sso login`, or ask for a new session token)"
            if code in _BAD_TOKEN
            else "Check key, secret and the clock"
        )
        return errors.CredentialsError(
            f"S3 does not accept the credentials for {where} ({code}). {remedy}; {IDENTITY}."
        )
    if code in _WRONG_REGION or 300 <= status < 400:
        return _elsewhere(response, where, access)
    if code in _TOO_FAST or status == 429 or status >= 500:
        return errors.NetworkError(
            f"The storage of {where} fails with {status} {code}, also after {access.attempts} attempts. Try again "
            f"later, with fewer requests at once; raise max_attempts in storage_options.{_doubt(code)}"
        )
    if status in {404, 405} and code not in {"NoSuchKey", "MethodNotAllowed"}:
        shown = display_uri(access.endpoint_url) if access.endpoint_url else "S3"
        return errors.NetworkError(f"{shown} knows no bucket {where.root!r} and answers {status}. Check endpoint_url.")
    return None


def _doubt(code: str) -> str:
    """Say that it may be no S3, where its answer holds a status and no code of S3's."""
    return " It may be no S3: check endpoint_url." if code.isdigit() else ""


def _denied(operation: Operation, key: str, where: Location, access: Access) -> errors.AccessDeniedError:
    resource = f"arn:aws:s3:::{where.root}"
    if "Bucket" not in operation.permission:
        resource = "/".join(filter(None, (resource, where.prefix, key)))
    allowed = f"{operation.permission} on {resource}" if where.scheme == "s3" else f"to {operation.verb} it"
    if operation is WRITE and access.sse == "aws:kms":
        allowed += f", and kms:GenerateDataKey on {access.sse_kms_key_id or 'the KMS key of the bucket'}"
    remedy = f"Ask its owner, or use other credentials; {IDENTITY}" if where.scheme == "s3" else "Ask its owner"
    return errors.AccessDeniedError(
        f"Access denied: cannot {operation.verb} {key!r} in {where}, expected credentials that allow "
        f"{allowed}. {remedy}."
    )


def _ask_socket(where: Location, access: Access) -> errors.StorageError | None:
    host = urlsplit(f"//{where.root}")
    try:
        port = host.port or (443 if where.scheme == "https" else 80)
        socket.create_connection((host.hostname or "", port), access.connect_seconds).close()
    except OSError:
        return errors.NetworkError(f"{where} cannot be reached. Check the host and the network.")
    return None


@dataclass(frozen=True)
class Attempt:
    """A request that failed."""

    operation: Operation
    key: str
    where: Location
    access: Access
    content: Any = b""
    seconds: float = 0
    """How long it took to fail, all attempts together."""

    def failure(self, error: Exception) -> Exception:
        """Our error for a client's; blocks for one small request of its own."""
        from obstore import exceptions

        answer: Exception | None = None
        if self.where.scheme == "file":
            seen = _ask_system(Path(self.where.root, self.key), self.operation, self.content)
            if self.operation is READ and isinstance(seen, (FileNotFoundError, NotADirectoryError)):
                return seen
            answer = seen and refused_by_system(seen, self.operation, self.key, self.where)
        elif self.where.scheme == "s3":
            answer = ask_s3(self.where, self.access, self.operation, self.key)
            if isinstance(answer, errors.AccessDeniedError) and self.operation not in {LIST, DELETE}:
                answer = None
        elif self.where.scheme in {"http", "https"}:
            answer = _ask_socket(self.where, self.access)
        if answer is None and isinstance(error, FileNotFoundError):
            return error
        if answer is None and isinstance(error, (exceptions.PermissionDeniedError, PermissionError)):
            answer = _denied(self.operation, self.key, self.where, self.access)
        if answer is None and isinstance(error, exceptions.UnauthenticatedError):
            answer = errors.CredentialsError(f"The storage of {self.where} asks for credentials that it accepts.")
        if answer is None and self.where.scheme != "file" and self.seconds >= self.access.stall_seconds:
            return errors.NetworkError(
                f"Cannot {self.operation.verb} {self.key!r} in {self.where}: given up after {self.seconds:.0f} s, "
                "although the storage answers small requests. The network is slow or breaks off: raise read_timeout or "
                "max_attempts in storage_options, or, far from the bucket's region, try accelerate=True."
            )
        return answer or errors.StorageError(
            f"Cannot {self.operation.verb} {self.key!r} in {self.where}: {type(error).__name__}, although "
            "the storage answers. Try again; if it stays, look at the cause above."
        )
