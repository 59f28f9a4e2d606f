"""What in the layout of a store makes queries slow, read from its metadata and the sizes of its arrays.

Pure: knows chunks, codecs and AnnData's encodings. Must not send a request,
nor predict what a query costs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lobster_zarr.blueprint import INDEX_RATES, SPARSE
from lobster_zarr.diagnosis import Finding
from lobster_zarr.layout import COMPANION, DENSE_CHUNK, ROW_MAJOR_CHUNK, follows_obs, is_companion
from lobster_zarr.report import human_bytes
from lobster_zarr.summary import codec_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lobster_zarr.node import ArrayNode, Tree
    from lobster_zarr.prediction import Model

MATTERS_BYTES = 1_000_000
"""A matrix of fewer decoded bytes is read in a moment, however it lies."""
LARGE = 8
"""A chunk of so many times the values of ours brings mostly what nobody asked for."""
LARGE_DENSE = 16
MANY_OBJECTS = 64
"""Of a matrix: more than are under way at once."""
TINY_BYTES = 65_536
"""Decoded; a request costs more than such a chunk."""
LARGE_INDEX_BYTES = 1_000_000
WEAK = 2.0
"""Times the bytes of pcodec."""
CATEGORIES = range(2, 1_001)
"""By columns of so many categories rows are worth sorting."""
TYPICAL_CATEGORIES = 20
TELLING = (
    "cell_type",
    "celltype",
    "cell_ontology",
    "annotation",
    "annot",
    "cell_label",
    "leiden",
    "louvain",
    "cluster",
)
"""Parts of the names of columns that people select cells by, the likeliest first."""
CONVERT = "convert it"


def of_matrices(model: Model) -> Iterator[Finding]:
    """Find what is wrong with the matrices whose rows are the cells."""
    tree = model.tree
    for path in tree.nodes:
        if not follows_obs(path) or is_companion(path) or path.count("/") > 1:
            continue
        if model.reader.is_sparse(path):
            values, indices = tree.array(f"{path}/data"), tree.array(f"{path}/indices")
            if _decoded(values) + _decoded(indices) >= MATTERS_BYTES:
                yield from _of_sparse(model, path, values, indices)
        elif tree.is_array(path) and model.reader.is_matrix(path) and _decoded(tree.array(path)) >= MATTERS_BYTES:
            yield from _of_dense(model, path, tree.array(path))


def _of_sparse(model: Model, path: str, values: ArrayNode, indices: ArrayNode) -> Iterator[Finding]:
    tree, where = model.tree, f"{model.tree.root}{path}"
    stored = _stored(model, values) + _stored(model, indices)
    yield from _chunks(where, (indices, values), stored, LARGE * ROW_MAJOR_CHUNK, f"of {ROW_MAJOR_CHUNK:,} values")
    by_row = tree.encoding(path) == SPARSE[0]
    if not by_row:
        yield Finding(
            "by-gene-only",
            where,
            "it is stored by gene (CSC) only.",
            f"the cells of a category need all of it, {human_bytes(stored)}.",
            f"{CONVERT}: it is stored by cell, and X by gene too.",
        )
    elif path == "X" and f"{path}/{COMPANION}" not in tree:
        yield Finding(
            "not-by-gene",
            where,
            "it is stored by cell only, without a copy by gene.",
            f"one gene needs all of it, {human_bytes(stored)}.",
            f"{CONVERT}: X is stored by gene too (gene_major, the default).",
        )
    yield from _codec(where, (indices, values), stored)
    yield from _dtypes(model, path, indices, values)


def _of_dense(model: Model, path: str, node: ArrayNode) -> Iterator[Finding]:
    where = f"{model.tree.root}{path}"
    stored, grid = _stored(model, node), node.grid
    yield from _chunks(where, (node,), stored, LARGE_DENSE * DENSE_CHUNK, f"tiles of {DENSE_CHUNK:,} values")
    genes = path == "X" or path.startswith("layers/")
    if genes and grid.chunk[-1] == grid.shape[-1] and grid.n_chunks > 1 and grid.shape[-1] > DENSE_CHUNK // 256:
        yield Finding(
            "not-by-gene",
            where,
            f"its chunks span all {grid.shape[-1]:,} genes.",
            f"one gene needs all of it, {human_bytes(stored)}.",
            f"{CONVERT}: tiles serve genes as well as cells.",
        )
    yield from _codec(where, (node,), stored)
    yield from _dtypes(model, path, None, node)


def _chunks(where: str, nodes: tuple[ArrayNode, ...], stored: int, large: int, ours: str) -> Iterator[Finding]:
    """Find chunks of the wrong size; the worst alone."""
    node = nodes[0]
    values, n_chunks, objects = math.prod(node.grid.chunk), node.grid.n_chunks, _n_objects(node)
    chunk_bytes = stored // max(n_chunks, 1)
    held = "×".join(f"{n:,}" for n in node.grid.chunk)
    if n_chunks == 1:
        yield Finding(
            "one-chunk",
            where,
            f"all {math.prod(node.shape):,} values are one chunk.",
            f"one cell needs all of it, {human_bytes(stored)}.",
            f"{CONVERT}: chunks {ours}.",
        )
    elif values > large:
        yield Finding(
            "large-chunks",
            where,
            f"its chunks are large: {held} values, {human_bytes(chunk_bytes)}.",
            f"one cell needs {human_bytes(chunk_bytes)}; cells that lie scattered, nearly all {human_bytes(stored)}.",
            f"{CONVERT}: chunks {ours}.",
        )
    elif objects > MANY_OBJECTS and values * node.dtype.itemsize < TINY_BYTES:
        yield Finding(
            "tiny-chunks",
            where,
            f"its chunks are tiny: {objects * len(nodes):,} objects of {human_bytes(stored / objects / len(nodes))}.",
            f"reading it takes {objects * len(nodes):,} requests, each of which costs more than the bytes it brings.",
            f"{CONVERT}: many chunks are one object (a shard), of which ranges are read.",
        )
    elif objects > MANY_OBJECTS and node.sharding is None:
        yield Finding(
            "unsharded",
            where,
            f"each chunk is an object of its own: {objects * len(nodes):,} objects.",
            "chunks that lie side by side take a request each.",
            f"{CONVERT}: many chunks are one object (a shard), of which neighbours are read together.",
        )
    if node.sharding is not None and 16 * math.prod(node.grid.chunks_per_shard) > LARGE_INDEX_BYTES:
        size = human_bytes(16 * math.prod(node.grid.chunks_per_shard))
        yield Finding(
            "giant-shard",
            where,
            f"its shards have {math.prod(node.grid.chunks_per_shard):,} chunks each.",
            f"before the first value, each reader reads an index of {size}.",
            f"{CONVERT}: shards of 2,048 chunks, whose places the store notes.",
        )


def _codec(where: str, nodes: tuple[ArrayNode, ...], stored: int) -> Iterator[Finding]:
    """Find what is stored in more bytes than need be."""
    codec = codec_name(nodes[0])
    decoded = sum(map(_decoded, nodes))
    if codec == "none":
        yield Finding(
            "uncompressed",
            where,
            "it is not compressed.",
            f"each query brings its values in full; all of it is {human_bytes(decoded)}.",
            f"{CONVERT}: each chunk is compressed, counts to about an eighth.",
        )
    elif codec.startswith("blosc") or codec not in INDEX_RATES or len(nodes) == 1:
        return
    elif INDEX_RATES[codec] > WEAK * INDEX_RATES["pcodec"]:
        times = INDEX_RATES[codec] / INDEX_RATES["pcodec"]
        yield Finding(
            "weak-codec",
            where,
            f"{codec} compresses it as bytes, not as numbers.",
            f"{human_bytes(stored)}; positions took {times:.1f} times the bytes of pcodec where it was measured.",
            f"{CONVERT}: the codec profile 'small' is pcodec.",
        )


def _dtypes(model: Model, path: str, indices: ArrayNode | None, values: ArrayNode) -> Iterator[Finding]:
    """Find wide numbers where a codec of bytes has to store them; pcodec stores what they say."""
    if codec_name(values) == "pcodec":
        return
    if indices is not None and indices.dtype.itemsize > 4 and max(model.reader.shape(path)) < 1 << 31:
        yield Finding(
            "wide-dtype",
            indices.path,
            f"positions are {indices.dtype.name}; int32 holds them.",
            "twice the bytes in memory, and more of them stored.",
            "make them int32 at the source; converting keeps the type, but pcodec stores it at no extra cost.",
        )
    if values.dtype.itemsize > 4:
        yield Finding(
            "wide-dtype",
            values.path,
            f"values are {values.dtype.name}.",
            "twice the bytes in memory of a 4-byte type, and more of them stored.",
            "if float32 (of counts, int32) says enough, make it that at the source; converting keeps the type.",
            curable=False,
        )


def of_container(model: Model, *, is_consolidated: bool, is_ours: bool, n_nodes: int) -> Iterator[Finding]:
    """Find what the store as a whole lacks."""
    if model.tree.container == "hdf5":
        yield Finding(
            "no-notes",
            "file",
            "an HDF5 file says where its chunks lie in trees of its own.",
            "opening walks them, and each query reads offsets, places of chunks and whole columns of the condition.",
            f"{CONVERT}: a store opens in one request and notes all that; `lobster-zarr index` notes the places alone.",
        )
        return
    if not is_consolidated:
        yield Finding(
            "unconsolidated",
            "store",
            "its metadata is not consolidated.",
            f"opening it lists all its objects and takes a request for each of {n_nodes:,} nodes.",
            f"{CONVERT}, or zarr.consolidate_metadata: opening is then one request.",
        )
    if not is_ours:
        yield Finding(
            "no-notes",
            "store",
            "it does not note where its chunks lie and what columns hold.",
            "queries first read offsets, shard indexes and whole columns of the condition.",
            f"{CONVERT}: sizes and the values of chunks are noted in the metadata.",
        )


def of_age(n_bytes: int) -> Finding:
    """Say of a file from before anndata 0.7 that it is read whole."""
    return Finding(
        "legacy",
        "file",
        "it was written before anndata 0.7.",
        f"opening it reads all of it, {human_bytes(n_bytes)}, and holds it in memory.",
        f"{CONVERT}.",
    )


def candidates(tree: Tree) -> dict[str, int]:
    """Return the categorical columns of obs that rows may be sorted by, with their numbers of categories, best first.

    A guess by name and number: what people query by is not stored.
    """
    found = {}
    for name in tree.attributes("obs").get("column-order", ()):
        path = f"obs/{name}/categories"
        if tree.encoding(f"obs/{name}") == "categorical" and tree.is_array(path):
            found[str(name)] = tree.array(path).shape[0]
    kept = {name: n for name, n in found.items() if n in CATEGORIES}
    return dict(sorted(kept.items(), key=lambda column: merit(*column)))


def merit(name: str, n: int) -> tuple[int, float]:
    """Rank a column of `n` categories among those that people may query by: the least is the likeliest."""
    ranks = [rank for rank, part in enumerate(TELLING) if part in name.lower()]
    return min(ranks, default=len(TELLING)), abs(math.log(n / TYPICAL_CATEGORIES))


def of_order(model: Model, columns: Mapping[str, int], proposed: str) -> Iterator[Finding]:
    """Say that rows lie in no order that a query could use."""
    sparse = [f"{p}/{h}" for p in model.tree.nodes if model.reader.is_sparse(p) for h in ("data", "indices")]
    dense = [p for p in model.tree.nodes if follows_obs(p) and model.tree.is_array(p)]
    decoded = sum(_decoded(model.tree.array(p)) for p in {*sparse, *dense} if follows_obs(p) or p in sparse)
    if decoded < MATTERS_BYTES or not columns:
        return
    named = [f"{name} ({n:,})" for name, n in list(columns.items())[:5]]
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    yield Finding(
        "unsorted",
        f"{model.tree.root}obs",
        f"rows are not noted as sorted; candidates: {', '.join(named)}{more}.",
        "the cells of a category lie scattered, and touch nearly every chunk of each matrix.",
        f"{CONVERT} with --sort-by {proposed}, or the column that you query by (this is a guess by name and number).",
    )


def text_columns(tree: Tree) -> list[str]:
    """Return the columns of obs that are text; the names of the cells left out."""
    order, index = tree.attributes("obs").get("column-order", ()), tree.attributes("obs").get("_index")
    kinds = {"string-array", "nullable-string-array"}
    return [str(name) for name in order if name != index and _is_text(tree, f"obs/{name}", kinds)]


def _is_text(tree: Tree, path: str, kinds: set[str]) -> bool:
    return tree.encoding(path) in kinds or (tree.is_array(path) and tree.array(path).dtype.kind in "OTU")


def of_text(where: str, n_rows: int, sample: tuple[int, int] | None) -> Finding:
    """Say that a column of text may want to be categorical.

    Parameters
    ----------
    where
        The column.
    n_rows
        Its rows.
    sample
        Distinct values among so many rows that were read; None where none were.
    """
    seen = "whether its values repeat was not looked at"
    if sample is not None:
        distinct, n_seen = sample
        whole = "all" if n_seen == n_rows else "a sample: the first"
        seen = f"{distinct:,} distinct values in {whole} {n_seen:,} rows"
    name = where.rpartition("/")[2]
    return Finding(
        "text-column",
        where,
        f"text ({seen}).",
        "a condition on it reads every text; as a category it would read a small number a cell.",
        f"make it categorical at the source, adata.obs[{name!r}].astype('category'), and convert that.",
        curable=False,
    )


def _decoded(node: ArrayNode) -> int:
    return math.prod(node.shape) * max(node.dtype.itemsize, 1)


def _stored(model: Model, node: ArrayNode) -> int:
    return model.reader.fetcher.stored_bytes.get(node.path, 0)


def _n_objects(node: ArrayNode) -> int:
    return math.prod(node.grid.shards_per_axis)
