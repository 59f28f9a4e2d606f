"""A boto3 client for work on whole objects, whose failures are this package's errors.

Knows boto3's errors. Must not know what objects hold.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lobster_zarr import errors
from lobster_zarr.redact import fit_to_show
from lobster_zarr.refusal import Attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.location import Access, Location
    from lobster_zarr.refusal import Operation

_FORBIDDEN, _MISSING, _CHANGED = 403, 404, 412


@contextlib.contextmanager
def s3_client(where: Location, access: Access, operation: Operation) -> Iterator[Any]:
    """Lend a boto3 client for one operation on one object or prefix.

    Parameters
    ----------
    where
        What is worked on; errors name it.
    access
        Credentials, endpoint, timeouts.
    operation
        What is about to be asked.

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
    access.check_endpoint()
    access.check_accelerated(where.root)
    with explained(where, access, operation), contextlib.closing(access.client()) as client:
        yield client


@contextlib.contextmanager
def explained(where: Location, access: Access, operation: Operation) -> Iterator[None]:
    """Make what a boto3 client raises within the block one of ours, as of `s3_client`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _failure(error, operation, where, access) from fit_to_show(error)


def payer(access: Access) -> dict[str, str]:
    """Return the argument by which a caller agrees to pay, where it does."""
    return {"RequestPayer": "requester"} if access.requester_pays else {}


def _failure(error: Exception, operation: Operation, where: Location, access: Access) -> Exception:
    from botocore.exceptions import ClientError

    answer = error
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == _CHANGED:
            return errors.ConflictError(f"{where} was changed while it was read. Read it again.")
        answer = {_FORBIDDEN: PermissionError(), _MISSING: FileNotFoundError()}.get(status, error)
    parent, _, name = where.prefix.rpartition("/")
    failure = Attempt(operation, name, replace(where, prefix=parent), access).failure(answer)
    if isinstance(failure, FileNotFoundError) and not isinstance(failure, errors.LobsterZarrError):
        return missing(where)
    return failure


def missing(where: Location) -> errors.NotFoundError:
    """Return the error for a file that is not there."""
    return errors.NotFoundError(f"There is no file at {where}. Check the path.")
