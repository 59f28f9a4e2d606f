"""The nodes of a store: arrays with their grid, keys and codec, and the tree of all nodes.

Knows how one chunk becomes bytes and back, and what a store's metadata says.
Must not know where a store is, what a query wants, or do any I/O. The nodes
are Zarr's (https://zarr-specs.readthedocs.io/en/latest/v3/) with AnnData's
encodings in the attributes
(https://anndata.readthedocs.io/en/stable/fileformat-prose.html).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np
import pcodec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.codecs.numcodecs import PCodec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.chunk_utils import ChunkTransform, evolve_codecs, fill_value_or_default
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

from lobster_zarr.errors import ChunkDecodeError, FormatError, UnsupportedError
from lobster_zarr.grid import Grid
from lobster_zarr.noted import ATTRIBUTE, CHUNK_SIZES, Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zarr.abc.codec import Codec

RESERVED_PREFIX = "_lobster_zarr_"
"""Nodes with this prefix are ours; AnnData's readers do not look at them."""
INDEX = RESERVED_PREFIX + "index"
"""``X/<INDEX>``: uint32, the lengths of the major slices, then the encoded bytes of each chunk of data
and of each chunk of indices: all that a plan needs, in one object. Of the companion of a sorted matrix
then ``SOURCE_ORDER``: the order of a gene's cells."""
FIRST = RESERVED_PREFIX + "first"
"""``X/csc/<FIRST>``: the first value of each chunk of indices."""
OFFSETS = (INDEX, FIRST)
"""What repeats, for the planner, what the other arrays of a sparse group hold."""
MAX_CHUNK_BYTES = 2 << 30
"""A chunk that claims to decode to more is refused before anything is allocated."""

_PROTOTYPE = default_buffer_prototype()


@dataclass(frozen=True)
class ArrayNode:
    """One Zarr array of a store: its grid, its keys and its codec.

    Parameters
    ----------
    path
        Path from the root of the store, without a leading slash.
    metadata
        Zarr's own description of the array.
    """

    path: str
    metadata: ArrayV3Metadata | ArrayV2Metadata

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.metadata.shape

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's user attributes, our note left out."""
        return {k: v for k, v in self.metadata.attributes.items() if k != ATTRIBUTE}

    @cached_property
    def note(self) -> Note:
        """What this package noted of the array."""
        return Note.of(self.path, self.metadata.attributes)

    @cached_property
    def chunk_sizes(self) -> np.ndarray | None:
        """Encoded bytes of each chunk, uint32 (n_chunks,), where they are noted."""
        return self.note.array(CHUNK_SIZES, "u4", (self.grid.n_chunks,)) if self.sharding else None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that a decoded chunk has."""
        return np.dtype(self.metadata.dtype.to_native_dtype())

    @cached_property
    def sharding(self) -> ShardingCodec | None:
        """The sharding codec, where each stored object holds many chunks."""
        codecs: tuple[Codec, ...] = getattr(self.metadata, "codecs", ())
        return codecs[0] if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec) else None

    @property
    def has_index(self) -> bool:
        """Whether each stored object holds many chunks, and an index says where."""
        return self.sharding is not None

    @cached_property
    def grid(self) -> Grid:
        """Chunks (inner chunks where sharded) and stored objects."""
        v2 = isinstance(self.metadata, ArrayV2Metadata)
        outer = self.metadata.chunks if v2 else getattr(self.metadata.chunk_grid, "chunk_shape", None)
        if outer is None:
            msg = f"array {self.path!r} has an irregular chunk grid; expected a regular one."
            raise UnsupportedError(msg)
        chunk = self.sharding.chunk_shape if self.sharding else outer
        return Grid(tuple(self.shape), tuple(chunk), tuple(outer))

    def key(self, shard_id: int) -> str:
        """Return the Zarr key of one stored object."""
        coords = self.grid.shard_coords(shard_id)
        name = self.metadata.encode_chunk_key(coords)
        return f"{self.path}/{name}"

    @property
    def has_one_object(self) -> bool:
        """Whether one stored object holds the whole array."""
        return math.prod(self.grid.shards_per_axis) == 1

    def object_keys(self) -> list[str]:
        """Return the Zarr keys of all stored objects, in C order."""
        return [self.key(i) for i in range(math.prod(self.grid.shards_per_axis))]

    def codec_documents(self) -> list[dict[str, Any]]:
        """Return what the metadata says of the codecs of a chunk."""
        if isinstance(self.metadata, ArrayV2Metadata):
            members = (*(self.metadata.filters or ()), self.metadata.compressor)
            return [m.get_config() for m in members if m is not None]
        codecs = self.sharding.codecs if self.sharding else self.metadata.codecs
        return [c.to_dict() for c in codecs]

    @cached_property
    def _spec(self) -> ArraySpec:
        chunk_bytes = math.prod(self.grid.chunk) * max(self.dtype.itemsize, 1)
        if chunk_bytes > MAX_CHUNK_BYTES:
            limits = f"decoded bytes; expected at most {MAX_CHUNK_BYTES:,}. Rewrite the store with smaller chunks."
            raise UnsupportedError(f"array {self.path!r} declares chunks of {chunk_bytes:,} {limits}")
        order: Any = getattr(self.metadata, "order", "C")
        config = ArrayConfig.from_dict({"order": order, "write_empty_chunks": True, "read_missing_chunks": False})
        return ArraySpec(self.grid.chunk, self.metadata.dtype, self.metadata.fill_value, config, _PROTOTYPE)

    def fill(self) -> np.ndarray:
        """Return what stands for a chunk that was never written: Zarr's fill value."""
        return np.full(self.grid.chunk, fill_value_or_default(self._spec), self.dtype)

    @cached_property
    def _transform(self) -> ChunkTransform:
        codecs: Iterable[Codec]
        if isinstance(self.metadata, ArrayV2Metadata):
            codecs = (V2Codec(filters=self.metadata.filters, compressor=self.metadata.compressor),)
        else:
            codecs = self.sharding.codecs if self.sharding else self.metadata.codecs
        return ChunkTransform(codecs=evolve_codecs(codecs, self._spec))

    def encode(self, chunk: np.ndarray) -> bytes:
        """Encode one chunk; a partial one at the edge is padded to full shape."""
        if chunk.shape != self.grid.chunk:
            whole = np.zeros(self.grid.chunk, self.dtype)
            whole[tuple(slice(n) for n in chunk.shape)] = chunk
            chunk = whole
        encoded = self._transform.encode_chunk(_PROTOTYPE.nd_buffer.from_ndarray_like(chunk), self._spec)
        if encoded is None:
            msg = f"array {self.path!r}: a codec dropped a chunk"
            raise FormatError(msg)
        return encoded.to_bytes()

    def decode(self, encoded: bytes | memoryview, chunk_id: int) -> np.ndarray:
        """Decode one chunk to its full shape.

        Raises
        ------
        ChunkDecodeError
            The checksum, the codec or the decoded size does not fit.
        """
        try:
            buffer = _PROTOTYPE.buffer.from_array_like(np.frombuffer(encoded, np.uint8))
            chunk = np.asarray(self._transform.decode_chunk(buffer, self._spec).as_ndarray_like())
            return chunk.reshape(self.grid.chunk)
        except Exception as error:
            # Every codec has errors of its own; all of them mean damaged bytes here.
            raise self._damaged(chunk_id, len(encoded), error) from error

    def decode_into(self, encoded: memoryview, chunk_id: int, out: np.ndarray) -> None:
        """Decode one chunk straight into its place in a result.

        Parameters
        ----------
        encoded
            The chunk's bytes.
        chunk_id
            For messages.
        out : ndarray of the array's dtype, shape ``grid.chunk``
            Contiguous.

        Raises
        ------
        ChunkDecodeError
            As :meth:`decode`.
        """
        if not self._is_plain_pcodec:
            out[...] = self.decode(encoded, chunk_id)
            return
        body = bytes(encoded[:-4])
        try:
            if _crc32c(body) != encoded[-4:]:
                msg = "its checksum does not fit"
                raise ValueError(msg)
            done = pcodec.standalone.simple_decompress_into(body, out)
            if done.n_processed != len(out) or not done.finished:
                msg = f"it holds {done.n_processed} values or more, expected {len(out)}"
                raise ValueError(msg)
        except Exception as error:
            raise self._damaged(chunk_id, len(encoded), error) from error

    @cached_property
    def _is_plain_pcodec(self) -> bool:
        """Whether a chunk is pcodec and a checksum, one-dimensional: it can skip zarr's codec chain."""
        codecs = self.sharding.codecs if self.sharding else getattr(self.metadata, "codecs", ())
        kinds = [type(c) for c in codecs]
        return kinds == [PCodec, Crc32cCodec] and len(self.shape) == 1 and self.dtype.isnative

    def _damaged(self, chunk_id: int, n_bytes: int, error: Exception) -> ChunkDecodeError:
        msg = (
            f"chunk {chunk_id} of array {self.path!r} ({n_bytes:,} bytes) cannot be decoded: {error}. "
            f"The object is damaged or truncated; restore it from a copy or convert again."
        )
        return ChunkDecodeError(msg)

    @cached_property
    def index_bytes(self) -> int:
        """Size of one shard's index (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/)."""
        return 16 * math.prod(self.grid.chunks_per_shard) + 4 * self._index_has_checksum

    @cached_property
    def _index_has_checksum(self) -> bool:
        kinds = [type(c) for c in self.sharding.index_codecs] if self.sharding else []
        if kinds not in ([BytesCodec, Crc32cCodec], [BytesCodec]):
            names = ", ".join(k.__name__ for k in kinds)
            msg = f"array {self.path!r} encodes its shard indexes with {names}; expected bytes and crc32c."
            raise UnsupportedError(msg)
        return len(kinds) == 2

    @property
    def index_at_start(self) -> bool:
        """Whether a shard begins with its index instead of ending with it."""
        location: Any = getattr(self.sharding, "index_location", "end")
        return str(getattr(location, "value", location)) == "start"

    def decode_index(self, encoded: bytes | memoryview, shard_id: int) -> np.ndarray:
        """Decode a shard index.

        Returns
        -------
        ndarray of uint64, shape (n_slots, 2)
            Offset and size of each chunk in the shard; all ones where a chunk is missing.
        """
        payload = bytes(encoded)
        body, stored = (payload[:-4], payload[-4:]) if self._index_has_checksum else (payload, b"")
        if len(payload) != self.index_bytes or (stored and _crc32c(body) != stored):
            msg = (
                f"the index of shard {self.key(shard_id)!r} is damaged ({len(payload):,} bytes, "
                f"expected {self.index_bytes:,} with a valid checksum); restore the object or convert again."
            )
            raise ChunkDecodeError(msg)
        return np.frombuffer(body, "<u8").reshape(-1, 2)

    def build_shard(self, chunks: Mapping[int, bytes]) -> bytes:
        """Concatenate encoded chunks (by slot, ascending) and append the index."""
        index = np.full((math.prod(self.grid.chunks_per_shard), 2), np.iinfo(np.uint64).max, "<u8")
        offset = 0
        for slot, encoded in chunks.items():
            index[slot] = offset, len(encoded)
            offset += len(encoded)
        body = index.tobytes()
        return b"".join([*chunks.values(), body, _crc32c(body)])

    def to_json(self) -> dict[str, Any]:
        """Return the array's ``zarr.json``."""
        document: dict[str, Any] = json.loads(self.metadata.to_buffer_dict(_PROTOTYPE)["zarr.json"].to_bytes())
        return document


def _crc32c(payload: bytes) -> bytes:
    return int(google_crc32c.value(payload)).to_bytes(4, "little")


@dataclass(frozen=True)
class Tree:
    """All nodes of a store, as its consolidated metadata tells.

    Parameters
    ----------
    nodes
        Path to node document; the root's path is the empty string.
    zarr_format
        2 or 3.
    root
        Of a part of a store, where it lies: ``mod/rna/``. Arrays say where they are from the root of the store.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    zarr_format: int = 3
    root: str = ""
    _arrays: dict[str, ArrayNode] = field(default_factory=dict, repr=False, compare=False)
    """Parsed arrays by their path from the root of the store; shared with its parts."""
    container: Literal["zarr", "hdf5"] = "zarr"
    """What holds the nodes."""

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for path in self.nodes:
            if path:
                parent, _, name = path.rpartition("/")
                children.setdefault(parent, []).append(name)
        return children

    def below(self, path: str) -> Tree:
        """Return the part of the store below a group."""
        prefix = f"{path}/"
        nodes = {p.removeprefix(prefix): n for p, n in self.nodes.items() if p.startswith(prefix)}
        return Tree({"": self.nodes[path], **nodes}, self.zarr_format, self.root + prefix, self._arrays, self.container)

    def __contains__(self, path: str) -> bool:
        return path in self.nodes

    def children(self, path: str) -> list[str]:
        """Names of the direct members of a group, ours left out."""
        return [n for n in self._children.get(path, []) if not n.startswith(RESERVED_PREFIX)]

    def attributes(self, path: str) -> dict[str, Any]:
        """User attributes of a node; of an array without our note."""
        attributes = self.nodes[path].get("attributes") or {}
        return {k: v for k, v in attributes.items() if k != ATTRIBUTE or not path}

    def noted(self) -> dict[str, Any]:
        """Return what this package noted of the store; empty for other stores."""
        noted = self.attributes("").get(ATTRIBUTE)
        return dict(noted) if isinstance(noted, dict) else {}

    def encoding(self, path: str) -> str:
        """AnnData's ``encoding-type`` of a node, or an empty string."""
        return str(self.attributes(path).get("encoding-type", "")) if path in self.nodes else ""

    def is_array(self, path: str) -> bool:
        """Whether a node exists and is an array."""
        return path in self.nodes and self.nodes[path].get("node_type") == "array"

    def array(self, path: str) -> ArrayNode:
        """Parse one array's metadata, once."""
        full = self.root + path
        if full not in self._arrays:
            if not self.is_array(path):
                msg = f"{full!r} is not an array of this store; its metadata is incomplete or damaged."
                raise FormatError(msg)
            self._arrays[full] = ArrayNode(full, self._parse(path))
        return self._arrays[full]

    def _parse(self, path: str) -> ArrayV3Metadata | ArrayV2Metadata:
        document: Any = {k: v for k, v in self.nodes[path].items() if k != "node_type"}
        try:
            if self.zarr_format == 3:
                return ArrayV3Metadata.from_dict({**document, "node_type": "array"})
            return ArrayV2Metadata.from_dict(document)
        except Exception as error:
            # zarr raises whatever a malformed document makes it stumble over.
            msg = f"the metadata of array {path!r} is not valid: {error}. The store is damaged, or of a later Zarr."
            raise FormatError(msg) from error

    def noted_objects(self) -> dict[str, bytes]:
        """Return the small objects that the metadata holds, by key."""
        noted = (p for p, n in self.nodes.items() if p and ATTRIBUTE in (n.get("attributes") or {}))
        arrays = (self.array(p) for p in noted if self.is_array(p) and self.array(p).grid.n_chunks)
        found = ((node, node.note.object()) for node in arrays)
        return {node.key(0): payload for node, payload in found if payload is not None}

    def without(self, path: str) -> Tree:
        """Return the tree without a group and what is below it."""
        kept = {p: n for p, n in self.nodes.items() if p != path and not p.startswith(f"{path}/")}
        return replace(self, nodes=kept)

    def without_notes(self) -> Tree:
        """Return the tree as if this package had noted nothing of its arrays."""
        if self.container == "hdf5":  # which has none
            return self
        nodes = {p: {**n, "attributes": self.attributes(p)} for p, n in self.nodes.items()}
        kept = {p: n for p, n in nodes.items() if p.rpartition("/")[2] not in OFFSETS}
        return Tree(kept, self.zarr_format, self.root)

    def arrays_below(self, path: str) -> list[str]:
        """Return the paths of a node's arrays, itself included."""
        prefix = f"{path}/" if path else ""
        return [p for p in self.nodes if (p == path or p.startswith(prefix)) and self.is_array(p)]
