"""A local file that appears under its name only when it is whole. Must not know what it holds."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from lobster_zarr.errors import AccessDeniedError, InvalidArgumentError, LobsterZarrError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STAGED = re.compile(r".+#\d+")


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Give a path to write to; the file appears under its name only when it is whole.

    Raises
    ------
    InvalidArgumentError
        The path is a folder's.
    StorageError, AccessDeniedError
        The system refused, whatever in the block asked it.
    """
    if out.is_dir():
        raise InvalidArgumentError(f"cannot write {out}: it is a folder, expected the path of a file in it.")
    part = out.with_name(f".{out.name}.{uuid4().hex[:8]}.part")  # of its own, where several write to one name
    try:
        yield part
        part.replace(out)
    except OSError as error:
        if isinstance(error, LobsterZarrError):
            raise
        raise _refused(out, error) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # of the second the user is being told
            part.unlink()


def make_folder(path: Path) -> Path:
    """Make the folder that a path lies in, where there is none; return the path. Errors as of `whole_file`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, error) from error
    return path


def remove_staged(folder: Path) -> None:
    """Remove what a killed process left of objects that obstore was writing: it does not list them itself."""
    for path in folder.rglob("*#*"):
        if _STAGED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> StorageError:
    kind = AccessDeniedError if isinstance(error, PermissionError) else StorageError
    return kind(f"cannot write {path}: {error.strerror or error}. Check the folder and the space on the disk.")
