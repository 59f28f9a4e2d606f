"""Where a path lies that an application names: locally or on S3, below a base or beside it.

Knows what pathlib leaves of a URI (``s3:/bucket/key``), and that a relative path
may not leave its base. Must not open anything.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PureWindowsPath

from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.location import Location, check_key

_S3 = re.compile(r"(?:.*[\\/])?s3a?:[\\/]+(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
"""Also behind a folder, where ``Path("s3://bucket/key").resolve()`` leaves it."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_s3(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an S3 URI by itself, as it was written or as pathlib left it."""
    return _S3.fullmatch(os.fspath(path)) is not None


def is_absolute(path: str | os.PathLike[str]) -> bool:
    """Whether a path says by itself where it lies: a URI, or an absolute path of this or another system."""
    text = os.fspath(path)
    drive = PureWindowsPath(text).is_absolute()
    return is_s3(text) or bool(_URI.match(text)) or drive or Path(text).expanduser().is_absolute()


def place(path: str | os.PathLike[str], base: str | None = None) -> Location:
    """Return where a path lies.

    Parameters
    ----------
    path
        A URI, also one that pathlib shortened; an absolute path, which stays what it
        is; or a path relative to `base`, with slashes or backslashes.
    base
        A local folder, or ``s3://bucket/prefix``; None for the working directory.

    Returns
    -------
    Location
        A local one is absolute.

    Raises
    ------
    InvalidArgumentError
        The path is empty, leaves its base by ``..``, or is no URI that can be opened.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InvalidArgumentError(f"The path {text!r} names nothing, expected a path or s3://bucket/name.")
    if match := _S3.fullmatch(text):
        return _checked("s3://" + match["rest"].replace("\\", "/"))
    if is_absolute(text):
        return _checked(text)
    if base is None:
        return _checked(str(Path(text).absolute()))
    root = place(base)
    if root.scheme == "file":
        joined = os.path.normpath(Path(root.root, text))
        if not Path(joined).is_relative_to(os.path.normpath(root.root)):
            raise _leaves(text, root)
        return Location("file", joined)
    key = posixpath.normpath(text.replace("\\", "/"))
    if key.split("/")[0] == "..":
        raise _leaves(text, root)
    return _checked(str(root) if key == "." else f"{root}/{key}")


def _checked(uri: str) -> Location:
    where = Location.of(uri)
    where.check()
    if where.scheme == "s3" and where.prefix:
        check_key(where.prefix)
    return where


def _leaves(path: str, root: Location) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The path {path!r} leaves {root}, expected one below it. Pass an absolute path or URI to go elsewhere."
    )


def suffix(where: Location) -> str:
    """Return the ending of a name, in small letters, with its dot: ``.h5ad``."""
    return posixpath.splitext(name(where))[1].lower()


def name(where: Location) -> str:
    """Return the last part of a location: its file's or store's name."""
    return Path(where.root).name if where.scheme == "file" else posixpath.basename(where.prefix or where.root)
