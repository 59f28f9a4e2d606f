"""How a holding gets to its place: converted, copied as a store, or copied as a file; and what is there already.

That is told by the destination itself, never by a list of what was done: the root of a converted store names the
checksum of its source, and of a copied file S3 keeps a checksum. Must not know what else is on its way.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, override

from lobster_zarr import removal, transfer
from lobster_zarr.checksum import s3_sum, sha256
from lobster_zarr.convert import convert
from lobster_zarr.errors import ConflictError, NotFoundError, VerificationError
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.location import Location
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.place import suffix
from lobster_zarr.replica import check_copy, copy_store, note_verified, occupant
from lobster_zarr.verify import verify
from lobster_zarr.wholefile import make_folder, whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lobster_zarr.folder import Holding, Stamp
    from lobster_zarr.replica import Occupant

_OF_ZARR = re.compile(r"zarr\.json|\.z[a-z]+|c|\d+(\.\d+)*")
"""Last parts of the keys of a store."""
NOTED_SOURCE = "lobster_zarr_source_sha256"
"""Attribute of the root of a converted store: the SHA-256 of its source."""

type Found = Literal["nothing", "same", "verified", "other"]
"""What a destination holds: what it is to hold, compared before or not yet, or something else."""


@dataclass
class Passage:
    """One holding on its way.

    Parameters
    ----------
    holding
        What goes.
    dest
        Where to.
    options
        As `storage_options` of :func:`lobster_zarr.open`.
    settings
        Options of `lobster_zarr.convert`.
    progress
        Show bars when on a terminal.
    """

    holding: Holding
    dest: Location
    options: Mapping[str, Any] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    action: ClassVar[Literal["convert", "copy"]]

    def __post_init__(self) -> None:
        self.remark = ""
        self._seen: tuple[Stamp, str] | None = None

    @property
    def source_sha256(self) -> str:
        """Of the file as it was when first asked for; of a store, that of the names and sums of its files."""
        if self._seen is None:
            self._seen = self.holding.stamp(), self._digest()  # written to in between, it differs from its stamp
        return self._seen[1]

    def _digest(self) -> str:
        if not self.holding.path.is_dir():
            return sha256(self.holding.path)
        lines = [f"{sha256(p)} {p.relative_to(self.holding.path).as_posix()}\n" for p in self.holding.files()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Refuse a source that was written to since its checksum was taken.

        Raises
        ------
        ConflictError
            It was.
        """
        if self._seen is None or self.holding.stamp() != self._seen[0]:
            raise ConflictError(
                f"{self.holding.path} was changed while it was on its way, and {self.dest} is not what it is now. Run "
                "again with overwrite=True (--overwrite) when nobody writes to it."
            )

    def found(self) -> Found:
        """Look at the destination."""
        raise NotImplementedError

    def send(self, *, overwrite: bool) -> int:
        """Bring it there; return the bytes that it has there."""
        raise NotImplementedError

    def check(self) -> None:
        """Read all that the destination holds and compare it; VerificationError, or as reading raises."""
        raise NotImplementedError

    def record(self) -> None:
        """Note at the destination that it was compared."""

    def delete(self) -> str:
        """Delete the local copy; return why it is kept, where it is."""
        path = self.holding.path
        if path.is_symlink():
            return "a link: what it leads to is yours to delete"
        where = Location("file", str(path))
        if path.is_dir() and suffix(where) != STORE_SUFFIX:
            return f"a folder that does not end in {STORE_SUFFIX}: yours to delete"
        removal.remove(where)
        return ""


class CopiedFile(Passage):
    """A file that stays what it is."""

    action = "copy"

    @override
    def found(self) -> Found:
        if self.dest.scheme == "file":
            path = Path(self.dest.root)
            same = path.is_file() and sha256(path) == self.source_sha256
            return "verified" if same else "other" if path.exists() else "nothing"
        try:
            noted = transfer.describe(str(self.dest), self.options).checksum
        except NotFoundError:
            return "nothing"
        is_noted = noted == self.source_sha256
        agrees = transfer.agrees(self.holding.path, str(self.dest), self.options)
        return ("same" if is_noted else "other") if agrees is None else ("verified" if agrees else "other")

    @override
    def send(self, *, overwrite: bool) -> int:
        _ = self.source_sha256  # what is written from here on is noticed
        if self.dest.scheme == "file":
            with whole_file(make_folder(Path(self.dest.root))) as part:
                shutil.copyfile(self.holding.path, part)
            return Path(self.dest.root).stat().st_size
        return transfer.upload(self.holding.path, str(self.dest), self.options, progress=self.progress).size_bytes

    @override
    def check(self) -> None:
        if self.dest.scheme == "file":
            held = sha256(Path(self.dest.root))
        else:
            held = transfer.stored_sha256(str(self.dest), self.options)
        if held != self.source_sha256:
            msg = (
                f"{self.dest} holds other bytes than {self.holding.path} (SHA-256 {held[:12]}…, expected "
                f"{self.source_sha256[:12]}…). Run again with overwrite=True (--overwrite)."
            )
            raise VerificationError(msg)


class _Stored(Passage):
    """What is a store at its destination."""

    @override
    def found(self) -> Found:
        there = occupant(str(self.dest), self.options)
        if there.is_free:
            return "nothing"
        if there.record == there.seal(self.source_sha256):
            return "verified"
        return "same" if there.roots and self._is_mine(there) else "other"

    def _is_mine(self, there: Occupant) -> bool:
        """Whether a store, by its root, was made of the source."""
        raise NotImplementedError

    @override
    def record(self) -> None:
        note_verified(str(self.dest), self.source_sha256, self.options)


class CopiedStore(_Stored):
    """A store that stays what it is."""

    action = "copy"

    @override
    def _is_mine(self, there: Occupant) -> bool:
        _ = self.source_sha256
        return there.roots == occupant(self.holding.path.as_posix()).roots

    @override
    def send(self, *, overwrite: bool) -> int:
        _ = self.source_sha256
        return copy_store(self.holding.path, str(self.dest), self.options, overwrite=overwrite)

    @override
    def check(self) -> None:
        check_copy(self.holding.path, str(self.dest), self.options)


class Converted(_Stored):
    """A file or store that becomes a store of this package."""

    action = "convert"

    @override
    def _is_mine(self, there: Occupant) -> bool:
        if NOTED_SOURCE in there.attributes or self.holding.path.is_dir():
            return bool(there.attributes.get(NOTED_SOURCE) == self.source_sha256)
        noted = there.attributes.get(ATTRIBUTE)
        source = noted.get("source") if isinstance(noted, dict) else None  # as a conversion by itself notes it
        if not isinstance(source, dict) or source.get("bytes") != self.holding.n_bytes:
            return False
        return bool(source.get("crc32c") == b64decode(s3_sum(self.holding.path, "ChecksumCRC32C")).hex())

    @override
    def send(self, *, overwrite: bool) -> int:
        wanted = self.settings.get("sort_by", ())
        sort_by = self._columns(wanted)
        if wanted and not sort_by:
            self.remark = f"not sorted: it has no column {' or '.join(wanted)}"
        report = convert(
            self.holding.path,
            str(self.dest),
            overwrite=overwrite,
            storage_options=self.options,
            progress=self.progress,
            attributes={NOTED_SOURCE: self.source_sha256},
            **{**self.settings, "sort_by": sort_by},
        )
        return report.stored_bytes

    def _columns(self, wanted: Sequence[str]) -> list[str]:
        """Those that the file has; of a MuData global ones and a modality's: ``rna:cell_type``."""
        if not wanted:
            return []
        data = open_dataset(self.holding.path)
        known = set(data.obs.columns)
        if isinstance(data, MultimodalDataset):
            known |= {f"{name}:{column}" for name, part in data.modalities.items() for column in part.obs.columns}
        return [name for name in wanted if name in known]

    @override
    def delete(self) -> str:
        strange = [path.name for path in self.holding.files() if not _OF_ZARR.fullmatch(path.name)]
        if self.holding.path.is_dir() and strange:
            return f"it holds {strange[0]} too, which is no part of a store: yours to delete"
        return super().delete()

    @override
    def check(self) -> None:
        verify(str(self.dest), self.holding.path, storage_options=self.options, progress=self.progress)
