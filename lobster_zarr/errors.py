"""Every error that a user of lobster_zarr can meet, in one tree.

The tree is grouped by what a handler would do, and every leaf also has the
built-in base that a caller would expect::

    LobsterZarrError
    ├── NotFoundError(KeyError)              a store, element, column, name or key is not there
    ├── InvalidSelectionError(IndexError)    positions or masks that do not fit the axis
    ├── InvalidPredicateError(ValueError)    a query text or expression that cannot be run
    ├── InvalidArgumentError(ValueError)     an option out of its domain
    ├── FormatError(ValueError)              a store or file that is not what it should be
    ├── ChunkDecodeError(ValueError)         a chunk whose bytes are damaged or missing
    ├── VerificationError(ValueError)        a store that differs from its source
    ├── UnsupportedError(NotImplementedError) an element that cannot be kept
    ├── ConflictError(FileExistsError)       the destination already holds something
    ├── BudgetError(ValueError)              a query or conversion that would exceed its budget
    └── StorageError(OSError)                the storage said no
        ├── AccessDeniedError(PermissionError)
        ├── CredentialsError
        ├── BucketNotFoundError(FileNotFoundError)
        └── NetworkError(ConnectionError)

Knows nothing of stores, arrays or the network.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class LobsterZarrError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError's own __str__ shows the repr of the message.
        return str(self.args[0]) if self.args else ""


class NotFoundError(LobsterZarrError, KeyError):
    """A store, element, column, name or object is not there."""

    name: str | None = None
    """What a predicate named that is no column, where it may yet be something else; None otherwise."""


class InvalidSelectionError(LobsterZarrError, IndexError):
    """Positions, a slice or a mask do not fit the axis they select on."""


class InvalidPredicateError(LobsterZarrError, ValueError):
    """A predicate cannot be parsed, or does not fit the columns it names."""


class InvalidArgumentError(LobsterZarrError, ValueError):
    """An option is outside its domain."""


class FormatError(LobsterZarrError, ValueError):
    """A file or store is not what it should be."""


class ChunkDecodeError(LobsterZarrError, ValueError):
    """The bytes of a chunk are damaged, truncated or missing."""


class VerificationError(LobsterZarrError, ValueError):
    """A store is inconsistent, or differs from what it was made from."""


class UnsupportedError(LobsterZarrError, NotImplementedError):
    """An element cannot be kept without loss, so nothing was written."""


class ConflictError(LobsterZarrError, FileExistsError):
    """The destination already holds something."""


class BudgetError(LobsterZarrError, ValueError):
    """The work would exceed the budget that it was given."""


class StorageError(LobsterZarrError, OSError):
    """The storage refused or failed a request."""

    region: str | None = None
    """The region that the bucket is in, where the request went to another; None otherwise."""


class AccessDeniedError(StorageError, PermissionError):
    """The credentials are valid but may not do this."""


class CredentialsError(StorageError):
    """Credentials are missing, malformed or expired."""


class BucketNotFoundError(StorageError, FileNotFoundError):
    """The bucket does not exist at this endpoint."""


class NetworkError(StorageError, ConnectionError):
    """The storage could not be reached, or stopped answering."""


def near(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Names that nearly match, best first, ignoring case.

    Parameters
    ----------
    name
        What was asked for.
    known
        What exists.
    limit
        The most to offer.

    Returns
    -------
    list of str
        At most `limit` of the known names.
    """
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(str(candidate).casefold(), str(candidate))
    return [folded[k] for k in difflib.get_close_matches(str(name).casefold(), folded, n=limit, cutoff=0.6)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'a' or 'b'?"``, or an empty string where nothing is near."""
    names = [repr(n) for n in near(name, known)]
    return f" Did you mean {' or '.join(names)}?" if names else ""
