"""A dataset of an HDF5 file as an array that the planner reads: its chunks and its filters.

It is one stored object, whose chunks lie where its `ChunkIndex` says. Must not know
where the file is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, override

import numpy as np

from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.grid import Grid, cdiv
from lobster_zarr.h5filter import NAMES, Filter, unfiltered
from lobster_zarr.h5format import ChunkIndex
from lobster_zarr.node import MAX_CHUNK_BYTES, ArrayNode
from lobster_zarr.noted import Note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.core.metadata import ArrayV3Metadata

MAX_CHUNKS = 1 << 26
"""Of a dataset; the index of so many takes a gigabyte."""
PIECE_BYTES = 32 << 10
"""A contiguous dataset is read by pieces of whole rows of at most so many bytes, or by one row."""

type Padding = Literal["null", "space", "end"]


@dataclass(frozen=True, eq=False)
class Stored:
    """How a dataset is stored.

    Parameters
    ----------
    dtype
        Of the stored values; of text of variable length `REFERENCE`.
    kind
        What the values are: numbers, booleans in numbers, text of fixed or variable length.
    padding
        Of text of fixed length, what follows it: NULs, blanks, or anything after a NUL.
    chunk
        Shape of a chunk; of a contiguous dataset None.
    filters
        In the order in which they were applied.
    offset
        Of a contiguous dataset, where it begins; None where nothing was written.
    literal
        The values, where they came with the metadata.
    fill
        What stands for what was never written; None for zero.
    """

    dtype: np.dtype[Any]
    kind: Literal["plain", "boolean", "fixed text", "text"] = "plain"
    padding: Padding = "null"
    chunk: tuple[int, ...] | None = None
    filters: tuple[Filter, ...] = ()
    offset: int | None = None
    literal: np.ndarray | None = None
    fill: Any = None


@dataclass(frozen=True, eq=False)
class FileArray(ArrayNode):
    """One dataset of an HDF5 file."""

    size: tuple[int, ...] = ()
    user: Mapping[str, Any] = field(default_factory=dict)
    stored: Stored = field(default_factory=lambda: Stored(np.dtype("f4")))

    @classmethod
    def of(cls, path: str, shape: tuple[int, ...], attributes: Mapping[str, Any], stored: Stored) -> FileArray:
        """Describe a dataset."""
        return cls(path, cast("ArrayV3Metadata", None), shape, attributes, stored)

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    @override
    def attributes(self) -> dict[str, Any]:
        return dict(self.user)

    @cached_property
    @override
    def note(self) -> Note:
        return Note(self.path, {})

    @property
    @override
    def has_index(self) -> bool:
        return True

    @cached_property
    @override
    def chunk_sizes(self) -> None:
        return None

    @cached_property
    @override
    def dtype(self) -> np.dtype[Any]:
        match self.stored.kind:
            case "boolean":
                return np.dtype(bool)
            case "plain":
                return self.stored.dtype.newbyteorder("=")
        return np.dtype(object)

    @property
    def is_text(self) -> bool:
        """Whether the values are text of variable length, which lies elsewhere in the file."""
        return self.stored.kind == "text" and self.stored.literal is None

    @cached_property
    @override
    def grid(self) -> Grid:
        shape, chunk = self.size, self.stored.chunk
        if chunk is None:
            row_bytes = math.prod(shape[1:]) * self.stored.dtype.itemsize
            n_rows = max(min(PIECE_BYTES // max(row_bytes, 1), *shape[:1]), 1) if shape else 1
            chunk = (n_rows, *(max(n, 1) for n in shape[1:])) if shape else ()
        if self.stored.literal is not None:
            chunk = tuple(max(n, 1) for n in shape)
        return Grid(shape, chunk, tuple(max(cdiv(n, c), 1) * c for n, c in zip(shape, chunk, strict=True)))

    @cached_property
    def index(self) -> ChunkIndex:
        """Where the chunks lie; of a chunked dataset nothing is known at first.

        Raises
        ------
        FormatError
            There are too many.
        """
        if self.grid.n_chunks > MAX_CHUNKS:
            msg = f"{self.path!r} says that it has {self.grid.n_chunks:,} chunks; expected at most {MAX_CHUNKS:,}."
            raise FormatError(msg)
        index = ChunkIndex.empty(self.grid)
        if self.stored.chunk is None and self.stored.offset is not None and self.stored.literal is None:
            chunk_bytes, end = self._chunk_bytes, math.prod(self.size) * self.stored.dtype.itemsize
            starts = np.arange(self.grid.n_chunks, dtype=np.int64) * chunk_bytes
            index.places[:, 0] = starts + self.stored.offset
            index.places[:, 1] = np.minimum(starts + chunk_bytes, end) - starts
        return index

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self.grid.chunk) * self.stored.dtype.itemsize

    @override
    def key(self, shard_id: int) -> str:
        return self.path

    @override
    def codec_documents(self) -> list[dict[str, Any]]:
        return [{"name": NAMES.get(code, f"filter {code}")} for code, _, _ in self.stored.filters]

    @override
    def fill(self) -> np.ndarray:
        if self.dtype.kind == "O":
            return np.full(self.grid.chunk, "", self.dtype)
        return np.full(self.grid.chunk, self.stored.fill or 0, self.dtype)

    @override
    def decode(self, encoded: bytes | memoryview, chunk_id: int) -> np.ndarray:
        """Decode one chunk to its full shape; of text the references, as `REFERENCE`.

        Raises
        ------
        ChunkDecodeError
            A filter, or the decoded size, does not fit.
        UnsupportedError
            A filter is not available.
        """
        try:
            values = self._unfiltered(encoded, self.index.masks.get(chunk_id, 0))
        except UnsupportedError:
            raise
        except Exception as error:
            # Every filter has errors of its own; all of them mean damaged bytes here.
            raise self._damaged(chunk_id, len(encoded), error) from error
        if self.stored.kind == "fixed text":
            return np.strings.decode(self._unpadded(values), "utf-8").astype(object)
        if values.dtype.kind == "S":
            return self._unpadded(values)
        return values if self.stored.kind == "text" else values.astype(self.dtype, copy=False)

    def _unpadded(self, values: np.ndarray) -> np.ndarray:
        match self.stored.padding:
            case "space":
                return np.strings.rstrip(values, b" ")
            case "end":
                cut = [text.partition(b"\0")[0] for text in values.ravel().tolist()]
                return np.asarray(cut, values.dtype).reshape(values.shape)
        return values  # numpy takes NULs off

    @override
    def decode_into(self, encoded: memoryview, chunk_id: int, out: np.ndarray) -> None:
        out[...] = self.decode(encoded, chunk_id)

    def _unfiltered(self, encoded: bytes | memoryview, mask: int) -> np.ndarray:
        expected = self._chunk_bytes
        if expected > MAX_CHUNK_BYTES:
            msg = f"it declares {expected:,} decoded bytes; expected at most {MAX_CHUNK_BYTES:,}"
            raise ValueError(msg)
        if self.stored.chunk is None and len(encoded) < expected:  # the last piece of a contiguous dataset
            encoded = bytes(encoded).ljust(expected, b"\0")
        return unfiltered(encoded, mask, self.stored.filters, self.stored.dtype, self.grid.chunk, self.path)
