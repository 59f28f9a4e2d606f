"""What a conversion would write of a store: its nodes, about how many bytes each takes, what its metadata would hold.

From the metadata and the sizes of the store that is there, by the format's own
grids. Must not send a request, nor know what is asked of a store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.h5array import FileArray
from lobster_zarr.layout import (
    COMPANION,
    DESCENTS,
    FORMAT_VERSION,
    MAX_DESCENTS,
    NOTED_CHUNKS,
    NOTED_OBJECT,
    NOTED_OBJECTS,
    ROW_MAJOR_CHUNK,
    SOURCE_ORDER,
    VALUES_OF,
    dense_grid,
    follows_obs,
    gene_major_chunk,
    is_companion,
    new_array,
    sparse_grid,
)
from lobster_zarr.node import FIRST, INDEX, OFFSETS, Tree
from lobster_zarr.noted import ATTRIBUTE, CHUNK_SIZES, pack
from lobster_zarr.plan import MISSING
from lobster_zarr.summary import codec_name
from lobster_zarr.zones import MAX_CATEGORIES, PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lobster_zarr.grid import Grid
    from lobster_zarr.node import ArrayNode

INDEX_RATES = {"gzip": 1.78, "zlib": 1.78, "shuffle+gzip": 1.3, "zstd": 1.5, "lz4": 3.4, "lzf": 2.7} | {
    "blosc-lz4": 1.2,
    "blosc-zstd": 1.02,
    "pcodec": 0.61,
}
"""Bytes of an int32 of `indices`: 100,000 × 20,000 cells × genes of counts, 1,771 a cell (docs/benchmarks.md)."""
VALUE_RATES = {"gzip": 0.61, "zlib": 0.61, "shuffle+gzip": 0.55, "zstd": 0.54, "lz4": 1.3, "lzf": 1.0} | {
    "blosc-lz4": 1.1,
    "blosc-zstd": 0.51,
    "pcodec": 0.27,
}
"""Of a float32 count in `data`, the same matrix."""
OTHER_RATE = 0.5
"""Stored part of the decoded bytes of any other compressed array."""
TEXT_BYTES = 6
"""Stored bytes of a text: a barcode of 16 letters by zstd, with room."""
FILE_TEXT_BYTES = 40
"""Of a text in an HDF5 file: a reference of 16 bytes, and in a heap the text and what is kept beside it."""
BY_GENE_INDEX, BY_GENE_VALUE = 0.75, 0.85
"""Bytes of a value by gene, as a part of those by cell: 0.42 for 0.61, 0.23 for 0.27 and less spread elsewhere."""
SPARSE = ("csr_matrix", "csc_matrix")
MIXED_NAME_BYTES = 2.5
"""Of a name among others in no order: numbered names, which follow each other, take less before they are sorted."""
FROM_LZ4, TEXT_FROM_LZ4, FROM_BYTES = 0.6, 0.4, 0.65
"""What ours take of the bytes of lz4, and of a whole number's that no codec but pcodec has seen as one."""
LENGTH_BYTES = 1.3
"""Of the length of a slice of a matrix, or of the size of a chunk."""


@dataclass(eq=False)
class Blueprint:
    """A store that is not there: its nodes, the bytes of its arrays, and the small objects in its metadata.

    Parameters
    ----------
    tree
        Its nodes.
    sizes
        Stored bytes by path of the array, from the root of the store.
    objects
        Keys of the objects that the metadata holds, without what they hold.
    """

    tree: Tree
    sizes: dict[str, int] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)


def assumed_bytes(node: ArrayNode) -> int:
    """Return the stored bytes of an array whose size is not known: by its codec, as measured on counts."""
    n_values, itemsize = math.prod(node.shape), max(node.dtype.itemsize, 1)
    if isinstance(node, FileArray) and node.is_text:
        return n_values * FILE_TEXT_BYTES
    if node.dtype.kind in "OTU":
        return n_values * TEXT_BYTES
    codec = codec_name(node)
    if codec == "none":
        return n_values * itemsize
    rates = {"indices": INDEX_RATES, "data": VALUE_RATES}.get(node.path.rpartition("/")[2], {})
    return int(n_values * min(rates.get(codec, itemsize * OTHER_RATE), itemsize))


def file_sizes(tree: Tree, n_bytes: int) -> dict[str, int]:
    """Share out the size of an HDF5 file among its datasets: where the places of chunks are known, by these."""
    nodes = {id(n): n for n in map(tree.array, tree.arrays_below("")) if isinstance(n, FileArray)}.values()
    sizes = {n.path: int(n.index.places[:, 1][n.index.places[:, 0] != MISSING].sum()) for n in nodes if _is_placed(n)}
    left = {n.path: assumed_bytes(n) for n in nodes if n.path not in sizes}
    scale = max(n_bytes - sum(sizes.values()), 0) / max(sum(left.values()), 1)
    return sizes | {path: int(size * scale) for path, size in left.items()}


def _is_placed(node: FileArray) -> bool:
    return not node.index.pending and not node.is_text


def gap_bytes(density: float) -> float:
    """Bytes of an index where a share `density` of the positions holds a value: the entropy of the gaps.

    pcodec comes within 4 % of it: 0.61 of counts of 1,771 of 20,000 genes a cell, where it was measured.
    """
    d = min(max(density, 1e-9), 1 - 1e-9)
    return -(d * math.log2(d) + (1 - d) * math.log2(1 - d)) / d / 8


def blueprint(tree: Tree, sizes: Mapping[str, int], sort_by: str | None, companions: Iterable[str]) -> Blueprint:
    """Draw what a conversion would write of an AnnData store. O(nodes).

    Parameters
    ----------
    tree
        Nodes of the store that is there, or of a modality.
    sizes
        Stored bytes by path, from the root of the store.
    sort_by
        Column of obs by which rows are grouped; ``""`` by something else, such as the column of another
        modality; None where they are not.
    companions
        Sparse matrices that are stored by gene too.
    """
    return _Draft(tree, sizes, sort_by, frozenset(companions)).drawn()


class _Draft:
    """A blueprint under way."""

    def __init__(self, tree: Tree, sizes: Mapping[str, int], sort_by: str | None, companions: frozenset[str]) -> None:
        self.old, self.known, self.sort_by, self.companions = tree, sizes, sort_by, companions
        self.nodes: dict[str, Any] = {"": {"node_type": "group", "attributes": self._root()}}
        self.sizes: dict[str, int] = {}
        self.keys: dict[str, bytes] = {}
        self.room = NOTED_OBJECTS

    def _root(self) -> dict[str, Any]:
        noted = {"format_version": FORMAT_VERSION, "sort_by": [self.sort_by] if self.sort_by else []}
        kept = {k: v for k, v in self.old.attributes("").items() if k != "consolidated_metadata"}
        return kept | {ATTRIBUTE: noted}

    def drawn(self) -> Blueprint:
        matrices = {p for p in self.old.nodes if follows_obs(p) and self.old.encoding(p) in SPARSE}
        matrices -= {f"{p}/{COMPANION}" for p in matrices}
        for path in self.old.nodes:
            parents = {path, *(path[:i] for i, c in enumerate(path) if c == "/")}
            if path in matrices:
                self._sparse(path)
            elif path and not parents & matrices and path.rpartition("/")[2] not in {SOURCE_ORDER, *OFFSETS}:
                self._copy(path)
        if self.sort_by is not None:
            self._source_order()
        return Blueprint(Tree(self.nodes, 3, self.old.root), self.sizes, self.keys)

    def _copy(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if not self.old.is_array(path):
            attributes = self.old.attributes(path)
            plain = self._is_index(path) and self.old.encoding(path) == "nullable-string-array"
            if not plain:
                self.nodes[path] = {"node_type": "group", "attributes": attributes}
            return
        node = self.old.array(path)
        if parent and self._is_index(parent) and self.old.encoding(parent) == "nullable-string-array":
            if name == "values":  # names of which none is missing are stored without a mask
                self._array(parent, node.shape, node.dtype, self._bytes_of(node))
            return
        n_bytes = self._bytes_of(node)
        sorted_codes = self.sort_by and path.startswith(f"obs/{self.sort_by}") and node.shape == (self._n_rows(),)
        if sorted_codes and node.dtype.kind not in "OTU":
            n_bytes = 64 + n_bytes // 100
        dtype, kind = node.dtype, getattr(node.metadata, "dtype", None)  # a dataset of HDF5 has none
        dtype = np.dtype("u1") if kind is None and dtype.kind not in "biufOTU" else dtype  # records: as many bytes
        self._array(path, node.shape, dtype, n_bytes, self.old.attributes(path), zdtype=kind)

    def _bytes_of(self, node: ArrayNode) -> int:
        """Bytes of an array that is no sparse matrix, as measured on columns of counts, categories and names."""
        codec, kind = codec_name(node), node.dtype.kind
        known = self.known.get(node.path)
        known = assumed_bytes(node) if known is None else known
        if isinstance(node, FileArray) and kind in "OTU":
            known, codec = known * TEXT_BYTES // FILE_TEXT_BYTES, "zstd"
        path = node.path.removeprefix(self.old.root).removesuffix("/values")
        if ("lz4" in codec or codec == "none") and kind in "iubOTU":
            known = int(known * (TEXT_FROM_LZ4 if kind in "OTU" else FROM_LZ4))
        if self.sort_by is not None and kind in "OTU" and path.startswith("obs/") and self._is_index(path):
            known = max(known, int(MIXED_NAME_BYTES * math.prod(node.shape)))
        if "lz4" in codec or codec == "none":
            return known
        return int(known * FROM_BYTES) if kind in "iu" and node.dtype.itemsize > 1 and codec != "pcodec" else known

    def _is_index(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        return parent in self.old and self.old.attributes(parent).get("_index") == name

    def _n_rows(self) -> int:
        index = f"obs/{self.old.attributes('obs').get('_index', '_index')}"
        paths = [p for p in (index, f"{index}/values") if self.old.is_array(p)]
        return self.old.array(paths[0]).shape[0] if paths else 0

    def _array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        n_bytes: float,
        attributes: Mapping[str, Any] | None = None,
        *,
        grid: Grid | None = None,
        zdtype: Any = None,
    ) -> None:
        """Add an array, and what would be noted of it."""
        found = grid or dense_grid(shape)
        plain = dtype.kind in "biufOTU"
        node = new_array(path, shape, dtype, grid=found, zdtype=None if plain else zdtype)
        n_chunks, stored = node.grid.n_chunks, int(n_bytes)
        note: dict[str, Any] = {}
        if node.sharding is not None and n_chunks <= NOTED_CHUNKS:
            note[CHUNK_SIZES] = pack(np.full(n_chunks, -(-stored // n_chunks), np.uint32))
        if n_chunks > 1 and self._has_zones(path):
            note[PRESENT] = ""
        if path == f"obs/{SOURCE_ORDER}" and self._n_groups() <= MAX_DESCENTS:
            note[DESCENTS] = []
        document = node.to_json()
        document["attributes"] = {**(attributes or {}), ATTRIBUTE: note}
        self.nodes[path] = document
        full = self.old.root + path
        self.sizes[full] = stored + math.prod(node.grid.shards_per_axis) * (node.index_bytes if node.sharding else 0)
        if node.has_one_object and n_chunks and stored <= min(NOTED_OBJECT, self.room):
            self.room -= stored
            self.keys[f"{self.old.root}{node.key(0)}"] = b""

    def _has_zones(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        if not path.startswith("obs/") or f"/{name}" not in VALUES_OF.values() or name != "codes":
            return False
        return self.old.array(f"{parent}/categories").shape[0] <= MAX_CATEGORIES

    def _sparse(self, path: str) -> None:
        shape = self.old.attributes(path).get("shape") or [0, 0]
        n_rows, n_columns = int(shape[0]), int(shape[1])
        values, indices = self.old.array(f"{path}/data"), self.old.array(f"{path}/indices")
        nnz = values.shape[0]
        of_value, of_index = self._value_rate(values), gap_bytes(nnz / max(n_rows * n_columns, 1))
        self._matrix(path, (n_rows, n_columns), nnz, (values.dtype, indices.dtype), (of_value, of_index))
        if path in self.companions:
            rates = of_value * BY_GENE_VALUE, of_index * BY_GENE_INDEX
            self._matrix(f"{path}/{COMPANION}", (n_rows, n_columns), nnz, (values.dtype, indices.dtype), rates)

    def _value_rate(self, node: ArrayNode) -> float:
        """Bytes of a value: as pcodec stores it now, else by what another codec makes of it, else as counts have it."""
        codec, nnz, known = codec_name(node), max(math.prod(node.shape), 1), self.known.get(node.path)
        if known is None or codec not in VALUE_RATES:
            return VALUE_RATES["pcodec"]
        return min(known / nnz * VALUE_RATES["pcodec"] / VALUE_RATES[codec], node.dtype.itemsize)

    def _matrix(
        self,
        path: str,
        shape: tuple[int, int],
        nnz: int,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        rates: tuple[float, float],
    ) -> None:
        row_major = not is_companion(path)
        grid = sparse_grid(nnz, ROW_MAJOR_CHUNK if row_major else gene_major_chunk(nnz))
        n_major, index_dtype = shape[0] if row_major else shape[1], dtypes[1]
        encoding = "csr_matrix" if row_major else "csc_matrix"
        attributes = {"encoding-type": encoding, "encoding-version": "0.1.0", "shape": list(shape)}
        self.nodes[path] = {"node_type": "group", "attributes": attributes}
        for name, dtype, rate in zip(("data", "indices"), dtypes, rates, strict=True):
            self._array(f"{path}/{name}", (nnz,), dtype, nnz * rate, grid=grid)
        self._array(f"{path}/indptr", (n_major + 1,), index_dtype, (n_major + 1) * LENGTH_BYTES)
        if grid.n_chunks <= NOTED_CHUNKS:
            return
        length, n_bytes = n_major + 2 * grid.n_chunks, (n_major + 2 * grid.n_chunks) * LENGTH_BYTES
        if not row_major and self.sort_by is not None:
            length, n_bytes = length + shape[0], n_bytes + shape[0] * self._order_rate()
        self._array(f"{path}/{INDEX}", (length,), np.dtype(np.uint32), n_bytes)
        if not row_major:
            first = grid.n_chunks * 2
            self._array(f"{path}/{FIRST}", (grid.n_chunks,), np.dtype(np.uint32), first)

    def _n_groups(self) -> int:
        path = f"obs/{self.sort_by}/categories"
        return self.old.array(path).shape[0] if self.sort_by and self.old.is_array(path) else MAX_DESCENTS + 1

    def _order_rate(self) -> float:
        """Bytes of a source position: positions ascend within a group, in steps of about as many rows as groups."""
        return min(math.log2(max(self._n_groups(), 2) * math.e) / 8, 3)

    def _source_order(self) -> None:
        n_rows = self._n_rows()
        self._array(f"obs/{SOURCE_ORDER}", (n_rows,), np.dtype(np.int64), n_rows * self._order_rate())
