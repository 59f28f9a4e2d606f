"""The built-in exceptions that a storage backend is documented to raise, beside this package's own.

Must not know what is loaded or saved.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lobster_zarr.errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator


class MissingFileError(NotFoundError, FileNotFoundError):
    """There is no file or store at a path."""


class UnwritableError(UnsupportedError, ValueError):
    """An object holds what cannot be saved."""


@contextmanager
def finding() -> Iterator[None]:
    """Within the block what is not found is a file, and so a FileNotFoundError."""
    try:
        yield
    except MissingFileError:
        raise
    except NotFoundError as error:
        raise MissingFileError(str(error)) from error


@contextmanager
def saving() -> Iterator[None]:
    """Within the block what cannot be kept is a ValueError."""
    try:
        yield
    except UnsupportedError as error:
        raise UnwritableError(str(error)) from error
