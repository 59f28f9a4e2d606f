"""A boto3 client for work on whole objects, whose failures are this package's errors.

Knows boto3, and what it writes to its logs: session tokens and access keys,
which are taken out. Must not know what objects hold.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lobster_zarr import errors
from lobster_zarr.location import NO_CREDENTIALS
from lobster_zarr.refusal import CONNECT_SECONDS, STALL_SECONDS, Attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.location import Access, Location
    from lobster_zarr.refusal import Operation

_ATTEMPTS = 5
_LOGGERS = ("botocore.auth", "botocore.endpoint")
"""Those that show headers as they are sent."""
_SECRET = re.compile(r"(x-amz-security-token\W+|Credential=|Signature=|secret_?key\W+)[^\s'\",;&]+", re.IGNORECASE)


def _redact(record: logging.LogRecord) -> bool:
    record.msg, record.args = _SECRET.sub(r"\1***", record.getMessage()), ()
    return True


@contextlib.contextmanager
def s3_client(where: Location, access: Access, operation: Operation, *, connections: int = 10) -> Iterator[Any]:
    """Lend a boto3 client for one operation on one object or prefix.

    Parameters
    ----------
    where
        What is worked on; errors name it.
    access
        Credentials and endpoint.
    operation
        What is about to be asked.
    connections
        Requests that may be under way at once.

    Yields
    ------
    botocore.client.S3
        What it raises within the block leaves the block as one of ours.

    Raises
    ------
    NotFoundError
        There is no such object.
    StorageError
        S3 refused, failed or could not be reached.
    """
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_redact)  # once, however often it is added
    access.check_endpoint()
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=STALL_SECONDS,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        max_pool_connections=connections,
        s3={"addressing_style": "path" if access.endpoint_url else "auto"},
        signature_version=UNSIGNED if access.anon else None,
    )
    try:
        session = access.session()
        if not access.anon and session.get_credentials() is None:
            raise errors.CredentialsError(NO_CREDENTIALS)
        region = session.region_name or "us-east-1"
        client = session.client(
            "s3", config=config, region_name=region, endpoint_url=access.endpoint_url, verify=access.verify
        )
        with contextlib.closing(client):
            yield client
    except (BotoCoreError, ClientError) as error:
        raise _failure(error, operation, where, access) from error


def payer(access: Access) -> dict[str, str]:
    """Return the argument by which a caller agrees to pay, where it does."""
    return {"RequestPayer": "requester"} if access.requester_pays else {}


def _failure(error: Exception, operation: Operation, where: Location, access: Access) -> Exception:
    from botocore.exceptions import ClientError

    answer = error
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 412:  # noqa: PLR2004 - precondition failed
            return errors.ConflictError(f"{where} was changed while it was read. Read it again.")
        answer = {403: PermissionError(), 404: FileNotFoundError()}.get(status, error)
    parent, _, name = where.prefix.rpartition("/")
    failure = Attempt(operation, name, replace(where, prefix=parent), access).failure(answer)
    if isinstance(failure, FileNotFoundError) and not isinstance(failure, errors.LobsterZarrError):
        return missing(where)
    return failure


def missing(where: Location) -> errors.NotFoundError:
    """Return the error for a file that is not there."""
    return errors.NotFoundError(f"There is no file at {where}. Check the path.")
