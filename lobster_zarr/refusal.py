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
from lobster_zarr.location import NO_CREDENTIALS, Access, Location, display_uri

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_SECONDS, STALL_SECONDS = 5, 30
# S3's own names: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BAD_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "RequestTimeTooSkewed"}
_BAD_TOKEN = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class Operation(NamedTuple):
    """What was asked of the storage."""

    verb: str
    permission: str  # as IAM names it


READ = Operation("read", "s3:GetObject")
WRITE = Operation("write", "s3:PutObject")
DELETE = Operation("delete", "s3:DeleteObject")
LIST = Operation("list", "s3:ListBucket")


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
    from botocore import UNSIGNED
    from botocore.config import Config

    payer = {"RequestPayer": "requester"} if access.requester_pays else {}
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=STALL_SECONDS,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path" if access.endpoint_url else "auto"},
        signature_version=UNSIGNED if access.anon else None,
    )
    try:
        session = access.session()
        region = session.region_name or "us-east-1"
        options = {"region_name": region, "endpoint_url": access.endpoint_url, "verify": access.verify}
        with contextlib.closing(session.client("s3", config=config, **options)) as client:
            if operation is DELETE:
                client.delete_object(Bucket=where.root, Key=f"{where.prefix}/{key}".lstrip("/"), **payer)
            else:
                client.list_objects_v2(Bucket=where.root, Prefix=where.prefix, MaxKeys=1, **payer)
    except errors.CredentialsError as error:
        return error
    except refusals.ClientError as error:
        denied = error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        return _refused_by_s3(error.response, where) or (_denied(operation, key, where) if denied else None)
    except (refusals.ConnectionError, refusals.HTTPClientError):
        shown = display_uri(access.endpoint_url) if access.endpoint_url else "S3"
        return errors.NetworkError(
            f"{shown} cannot be reached for {where}, expected an answer within {CONNECT_SECONDS} s. "
            "Check the endpoint and the network."
        )
    except refusals.ParamValidationError:
        return errors.BucketNotFoundError(f"{where.root!r} cannot name a bucket. Check the URI.")
    except refusals.BotoCoreError:
        return errors.CredentialsError(NO_CREDENTIALS)
    return None


def _refused_by_s3(response: Mapping[str, Any], where: Location) -> errors.StorageError | None:
    code, status = response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return errors.BucketNotFoundError(
            f"The bucket {where.root!r} of {where} does not exist at this endpoint. Check its name and the endpoint."
        )
    if code in _BAD_KEY | _BAD_TOKEN:
        remedy = "Renew the session token" if code in _BAD_TOKEN else "Check key, secret and the clock"
        return errors.CredentialsError(f"S3 does not accept the credentials for {where} ({code}). {remedy}.")
    if code in _WRONG_REGION:
        region = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", "another region")
        return errors.StorageError(f"{where} is in {region}. Pass that as region in storage_options.")
    if status >= 500:
        return errors.NetworkError(f"The storage of {where} fails with {status} {code}. Try again later.")
    return None


def _denied(operation: Operation, key: str, where: Location) -> errors.AccessDeniedError:
    resource = f"arn:aws:s3:::{where.root}" + ("" if operation is LIST else f"/{where.prefix}/{key}".rstrip("/"))
    allowed = f"{operation.permission} on {resource}" if where.scheme == "s3" else f"to {operation.verb} it"
    return errors.AccessDeniedError(
        f"Access denied: cannot {operation.verb} {key!r} in {where}, expected credentials that allow "
        f"{allowed}. Ask its owner, or use other credentials."
    )


def _ask_socket(where: Location) -> errors.StorageError | None:
    host = urlsplit(f"//{where.root}")
    try:
        port = host.port or (443 if where.scheme == "https" else 80)
        socket.create_connection((host.hostname or "", port), CONNECT_SECONDS).close()
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
            answer = _ask_socket(self.where)
        if answer is None and isinstance(error, FileNotFoundError):
            return error
        if answer is None and isinstance(error, (exceptions.PermissionDeniedError, PermissionError)):
            answer = _denied(self.operation, self.key, self.where)
        if answer is None and isinstance(error, exceptions.UnauthenticatedError):
            answer = errors.CredentialsError(f"The storage of {self.where} asks for credentials that it accepts.")
        return answer or errors.StorageError(
            f"Cannot {self.operation.verb} {self.key!r} in {self.where}: {type(error).__name__}, although "
            "the storage answers. Try again; if it stays, look at the cause above."
        )
