"""A local file that appears under its name only when it is whole. Must not know what it holds."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lobster_zarr.errors import LobsterZarrError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Give a path to write to; the file appears under its name only when it is whole."""
    part = out.with_name(f".{out.name}.part")
    try:
        yield part
        part.replace(out)
    except OSError as error:
        if isinstance(error, LobsterZarrError):
            raise
        msg = f"cannot write {out}: {error.strerror or error}. Check the folder and the space on the disk."
        raise StorageError(msg) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # of the second the user is being told
            part.unlink()
