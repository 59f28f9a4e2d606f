"""What this package notes of an array, in an attribute of that array.

A note spares requests: where the chunks lie, which values they hold, or the
whole of a small object. It lies in the array's own metadata, so that whoever
writes the array anew drops it. Must not know what an array means.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lobster_zarr.errors import FormatError

ATTRIBUTE = "lobster_zarr"
"""The attribute: of an array its note, of the root what is noted of the store."""
MAX_BYTES = 16 << 20
"""More than this is not a note: a few bytes could inflate to much."""
CHUNK_SIZES, OBJECT = "chunk_sizes", "object"


def pack(values: np.ndarray | bytes) -> str:
    """Encode values as base64 of their zlib-compressed little-endian bytes."""
    raw = values if isinstance(values, bytes) else values.astype(values.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode()


@dataclass(frozen=True)
class Note:
    """The note of one array.

    Parameters
    ----------
    path
        Of the array, for messages.
    entries
        The attribute's value; empty where there is none.
    """

    path: str
    entries: Mapping[str, Any]

    @classmethod
    def of(cls, path: str, attributes: Mapping[str, Any]) -> Note:
        """Take an array's note from its attributes; anything but a mapping is none of ours."""
        entries = attributes.get(ATTRIBUTE)
        return cls(path, entries if isinstance(entries, Mapping) else {})

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Decode packed values, None where they are not noted.

        Raises
        ------
        FormatError
            They are damaged: the size is checked before anything larger is allocated.
        """
        if name not in self.entries:
            return None
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        raw = self._inflate(name, n_bytes) if n_bytes <= MAX_BYTES else b""
        if len(raw) != n_bytes:
            raise self._damaged(name)
        return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)

    def texts(self, name: str, n: int) -> np.ndarray:
        """Return a list of `n` texts, None among them, as an object array."""
        values = self.entries.get(name)
        if not isinstance(values, list) or len(values) != n or not all(isinstance(v, str | None) for v in values):
            raise self._damaged(name)
        return np.asarray(values, object)

    def object(self) -> bytes | None:
        """Return the array's only stored object, None where it is not noted."""
        if OBJECT not in self.entries:
            return None
        try:
            return base64.b64decode(self.entries[OBJECT], validate=True)
        except (ValueError, TypeError) as error:
            raise self._damaged(OBJECT) from error

    def _inflate(self, name: str, n_bytes: int) -> bytes:
        try:
            stream = zlib.decompressobj()
            return stream.decompress(base64.b64decode(self.entries[name], validate=True), n_bytes + 1)
        except (ValueError, TypeError, zlib.error) as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> FormatError:
        msg = f"the note {name!r} in the metadata of array {self.path!r} is damaged; convert again."
        return FormatError(msg)
