"""The on-disk format, version 1: names of our own, chunk shapes, codecs.

Knows how an element is laid out when it is written. Must not know where a
store is, what a query wants, or do any I/O.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, VLenUTF8Codec, ZstdCodec
from zarr.codecs.numcodecs import PCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.dtype import VariableLengthUTF8, parse_dtype

from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.grid import Grid, cdiv
from lobster_zarr.node import RESERVED_PREFIX, ArrayNode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec, Codec
    from zarr.dtype import ZDType

FORMAT_VERSION = 1
VALUES_OF = {"categorical": "/codes", "nullable-integer": "/values", "nullable-boolean": "/values"} | {
    "nullable-string-array": "/values"
}
"""Member of a column's encoding that has its rows, and its zones in its note; of others the array itself."""
SOURCE_ORDER = RESERVED_PREFIX + "source_order"
"""``obs/<SOURCE_ORDER>``: int64 (n_obs,), the source position of each stored row."""
COMPANION = "csc"
"""``X/csc``: the gene-major companion of a row-major sparse matrix."""
MARKER = RESERVED_PREFIX + "incomplete.json"
"""Object at the root while a conversion is under way."""
VERIFIED = RESERVED_PREFIX + "verified.json"
"""Object at the root: with what source, by its SHA-256, the store was compared, and what its objects were then."""

ROW_MAJOR_CHUNK = 8_192
SPARSE_SHARD = 1 << 24
COLUMN_CHUNK = 1 << 13
COLUMN_CHUNKS = 256
"""A longer column has larger chunks instead of more of them, so that its note stays small."""
COLUMN_SHARD = 1 << 22
DENSE_CHUNK_ROWS = 256
DENSE_CHUNK = 1 << 16
DENSE_SHARD = 1 << 24
NOTED_CHUNKS = 512
"""A sharded array of at most this many chunks has their sizes in its note; a matrix of more has an INDEX."""
DESCENTS = "descents"
"""Entry of the note of SOURCE_ORDER: the stored rows whose source position is less than that of the row before."""
MAX_DESCENTS = 1_000
ALIGNED = "aligned"
"""Entry of the note of ``obsmap/<modality>`` and ``varmap/<modality>``, true: its rows are the global ones, in their
order."""
NOTED_OBJECT = 2 << 10
"""An object of at most this many bytes is in the note of its array too, and costs no request."""
NOTED_OBJECTS = 64 << 10
"""The noted objects of a store together: every open reads them."""

CodecProfile = Literal["small", "fast", "compatible"]
CODEC_PROFILES: tuple[str, ...] = get_args(CodecProfile)


def _zarr_dtype(dtype: np.dtype[Any]) -> ZDType[Any, Any]:
    if dtype.kind in "OTU":
        return VariableLengthUTF8()
    return parse_dtype(dtype, zarr_format=3)


def check_codec(profile: str) -> None:
    """Refuse what is no codec profile."""
    if profile not in CODEC_PROFILES:
        raise InvalidArgumentError(f"unknown codec {profile!r}; expected one of {', '.join(CODEC_PROFILES)}.")


def codecs_for(dtype: np.dtype[Any], profile: CodecProfile) -> tuple[ArrayBytesCodec, tuple[BytesBytesCodec, ...]]:
    """Choose the codecs of one array; the last is always a crc32c checksum.

    Parameters
    ----------
    dtype
        Of the array's values.
    profile
        ``small``: pcodec (https://github.com/pcodec/pcodec) where it supports the
        dtype; ``fast``: blosc-lz4; ``compatible``: blosc-zstd, readable in browsers.
    """
    if dtype.kind in "OTU":
        return VLenUTF8Codec(), (ZstdCodec(level=5), Crc32cCodec())
    numeric = dtype.kind in "iuf"
    if profile == "small" and numeric and dtype.itemsize in (2, 4, 8):
        return PCodec(level=8), (Crc32cCodec(),)
    serializer = BytesCodec(endian="little" if dtype.itemsize > 1 else None)
    if dtype.kind not in "iufb":
        return serializer, (ZstdCodec(level=5), Crc32cCodec())
    cname: Any = "lz4" if profile == "fast" else "zstd"
    blosc = BloscCodec(typesize=dtype.itemsize, cname=cname, clevel=5, shuffle="shuffle")
    return serializer, (blosc, Crc32cCodec())


def new_array(  # noqa: PLR0913 - one call describes one array
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    grid: Grid,
    profile: CodecProfile = "small",
    attributes: Mapping[str, Any] | None = None,
    zdtype: ZDType[Any, Any] | None = None,
    fill_value: object = None,
) -> ArrayNode:
    """Describe an array to be written.

    Parameters
    ----------
    path
        Path from the root of the store.
    shape, dtype
        Of the whole array; object and unicode dtypes become variable-length UTF-8.
    grid
        From one of the ``*_grid`` functions of this module.
    profile
        Codec profile.
    attributes
        AnnData's encoding attributes.
    zdtype, fill_value
        Zarr's dtype and fill value, where the caller already has them.
    """
    kind = zdtype or _zarr_dtype(dtype)
    serializer, compressors = codecs_for(np.dtype(kind.to_native_dtype()), profile)
    codecs: tuple[Codec, ...] = (serializer, *compressors)
    if grid.shard != grid.chunk:
        codecs = (ShardingCodec(chunk_shape=grid.chunk, codecs=codecs),)
    metadata = ArrayV3Metadata(
        shape=shape,
        data_type=kind,
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": grid.shard}},
        chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}},
        fill_value=kind.default_scalar() if fill_value is None else fill_value,
        codecs=codecs,
        attributes=dict(attributes or {}),
        dimension_names=None,
    )
    return ArrayNode(path, metadata)


def _sharded_vector(n: int, chunk: int, shard: int) -> Grid:
    if n <= chunk:
        return Grid((n,), (max(n, 1),), (max(n, 1),))
    return Grid((n,), (chunk,), (min(shard, cdiv(n, chunk) * chunk),))


def follows_obs(path: str) -> bool:
    """Whether an element is a matrix whose rows are the cells: streamed, and sorted with them."""
    return path in {"X", "raw/X"} or path.startswith(("layers/", "obsm/", "obsp/"))


def is_companion(path: str) -> bool:
    """Whether a group is the companion of a matrix, not a layer that is called so."""
    parts = path.split("/")
    return parts[-1] == COMPANION and (parts[-2:-1] == ["X"] or parts[-3:-2] == ["layers"])


def gene_major_chunk(nnz: int) -> int:
    """Values in a chunk of a companion.

    One gene costs the sizes of all chunks (about 2.4 bytes each) and the rest of
    a chunk at either end: the square root balances the two.
    """
    return 1 << min(max(round(math.log2(max(nnz, 1) / 3) / 2), 12), 16)


def column_chunk(n_rows: int) -> int:
    """Rows in a chunk of a column."""
    return max(COLUMN_CHUNK, 1 << (cdiv(n_rows, COLUMN_CHUNKS) - 1).bit_length())


def sparse_grid(nnz: int, chunk: int) -> Grid:
    """Grid of a sparse matrix's ``data`` or ``indices``: small chunks, large shards."""
    return _sharded_vector(nnz, chunk, SPARSE_SHARD)


def dense_grid(shape: tuple[int, ...]) -> Grid:
    """Grid of any other array: columns whole where short, matrices in tiles.

    A matrix's tile serves both row and column access; a shard is a band of
    rows of about 16 million values.
    """
    if not shape:
        return Grid((), (), ())
    if len(shape) == 1:
        length = column_chunk(shape[0])
        return _sharded_vector(shape[0], length, max(COLUMN_SHARD, length))
    n_rows, width = shape[0], max(math.prod(shape[1:]), 1)
    if n_rows * width <= DENSE_CHUNK:
        whole_shape = tuple(max(n, 1) for n in shape)
        return Grid(shape, whole_shape, whole_shape)
    rows = max(min(n_rows, DENSE_CHUNK_ROWS, DENSE_SHARD // width), 1)
    if len(shape) == 2:
        cols = min(width, max(DENSE_CHUNK // rows, 1))
        rows = min(n_rows, max(rows, min(DENSE_CHUNK // cols, column_chunk(n_rows))))
        rest: tuple[int, ...] = (cols,)
        rest_shard: tuple[int, ...] = (cdiv(width, cols) * cols,)
    else:
        rows = max(min(n_rows, DENSE_CHUNK // width), 1)
        rest = rest_shard = tuple(max(n, 1) for n in shape[1:])
    bands = max(min(DENSE_SHARD // (rows * width), cdiv(n_rows, rows)), 1)
    chunk, shard = (rows, *rest), (rows * bands, *rest_shard)
    return Grid(shape, chunk, shard)
