"""What lies below a local folder: files and stores of cells, and everything else.

Knows names, sizes, links, and the look of a store's root. Must not know where
any of it goes.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr.commit import ROOT
from lobster_zarr.errors import InvalidArgumentError, NotFoundError
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.place import place

if TYPE_CHECKING:
    from collections.abc import Iterator

type Kind = Literal["h5ad", "h5mu", "store", "other"]
type Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Of each file its path, inode, size and times: the same as long as nobody wrote to it."""
_KINDS: dict[str, Kind] = {".h5ad": "h5ad", ".h5mu": "h5mu"}


@dataclass(frozen=True)
class Cargo:
    """A file, or a folder that is one thing.

    Parameters
    ----------
    path
        Where it is.
    name
        The same below the folder that was asked for, with slashes.
    kind
        What it is by its name, or by its root where it is a store.
    n_bytes
        Of all its files.
    is_ours
        Whether this package wrote it.
    remark
        Why it is of no known kind, where that is not plain.
    error
        Why nothing can be said of it, where that is so.
    """

    path: Path
    name: str
    kind: Kind
    n_bytes: int = 0
    is_ours: bool = False
    remark: str = ""
    error: str = ""

    def files(self) -> list[Path]:
        """The files that it is made of, sorted."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(Path(at, name) for at, _, names in os.walk(self.path) for name in names)

    def stamp(self) -> Stamp:
        """What changes when somebody writes to it. OSError where it cannot be seen."""
        stats = [(str(path), path.stat()) for path in self.files()]
        return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def cargoes(folder: str | os.PathLike[str]) -> list[Cargo]:
    """Look through a folder, in the order of names. Links to files are followed, links to folders are not.

    Raises
    ------
    NotFoundError, InvalidArgumentError
        It is not there, or no local folder.
    """
    where = place(folder)
    if where.scheme != "file":
        raise InvalidArgumentError(f"{where} is not a folder of this machine, expected one.")
    path = Path(where.root)
    if not path.exists():
        raise NotFoundError(f"There is no folder at {path}. Check the path.")
    if not path.is_dir() or _attributes(path) is not None:
        kind = "a store" if path.is_dir() else "a file"
        raise InvalidArgumentError(f"{path} is {kind}, expected a folder of files. Of one, use convert or upload.")
    return list(_below(path, path))


def _below(folder: Path, top: Path) -> Iterator[Cargo]:
    name = folder.relative_to(top).as_posix()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Cargo(folder, name, "other", error=f"cannot be listed: {error.strerror}")
        return
    for entry in entries:
        path = Path(entry.path)
        try:
            found = _file(path, top) if not entry.is_dir() else _folder(path, top, is_link=entry.is_symlink())
        except OSError as error:
            found = Cargo(path, path.relative_to(top).as_posix(), "other", error=f"cannot be read: {error.strerror}")
        if found is not None:
            yield found
        else:
            yield from _below(path, top)


def _file(path: Path, top: Path) -> Cargo:
    name = path.relative_to(top).as_posix()
    if not path.is_file():
        return Cargo(path, name, "other", remark="a link that leads nowhere" if path.is_symlink() else "no file")
    return Cargo(path, name, _KINDS.get(path.suffix.lower(), "other"), path.stat().st_size)


def _folder(path: Path, top: Path, *, is_link: bool) -> Cargo | None:
    """Return what a folder is; None where it is just a folder."""
    name = path.relative_to(top).as_posix()
    if is_link:
        return Cargo(path, name, "other", remark="a link to a folder, which is not followed")
    attributes = _attributes(path)
    if attributes is None and path.suffix != STORE_SUFFIX:
        return None
    sized = Cargo(path, name, "store")
    n_bytes = sum(entry[2] for entry in sized.stamp())
    if attributes is None:
        return Cargo(path, name, "other", n_bytes, remark="no whole store: it has no root")
    if attributes.get("encoding-type") not in {"anndata", "MuData"}:
        return Cargo(path, name, "other", n_bytes, remark="a Zarr store of something else")
    if any(Path(at, inner).is_symlink() for at, names, _ in os.walk(path) for inner in names):
        return Cargo(path, name, "store", n_bytes, error="it holds a link to a folder; put the folder in its place.")
    return Cargo(path, name, "store", n_bytes, is_ours=ATTRIBUTE in attributes)


def _attributes(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a store's root; None where the folder is none."""
    if not any(ROOT.fullmatch(entry.name) for entry in path.iterdir()):
        return None
    for name in ("zarr.json", ".zattrs"):
        with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):  # damaged: opening it says how
            document = json.loads((path / name).read_bytes())
            return dict(document.get("attributes", document if name == ".zattrs" else {}))
    return {}
