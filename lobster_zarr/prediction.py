"""What typical queries cost on a store, and what they would cost once it is converted: without a request for either.

A model is a store's metadata over an empty one, with chunks of equal size and
cells and genes of equal length; the planner that runs real queries prices
these on it. Must not send a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from zarr.storage import MemoryStore

from lobster_zarr.blueprint import assumed_bytes, blueprint, file_sizes
from lobster_zarr.element import StoreReader, orient
from lobster_zarr.fetch import Fetcher
from lobster_zarr.grid import Runs, chunks_of_runs
from lobster_zarr.h5array import FileArray
from lobster_zarr.h5fetch import FileFetcher
from lobster_zarr.layout import COMPANION, DESCENTS, SOURCE_ORDER, VALUES_OF
from lobster_zarr.node import FIRST, INDEX
from lobster_zarr.plan import ArrayRead, index_needed
from lobster_zarr.selection import runs
from lobster_zarr.zones import PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lobster_zarr.byterange import Network
    from lobster_zarr.node import ArrayNode, Tree
    from lobster_zarr.sparse import SparseReader

FEW_GENES = 0.01
"""Of the genes: of more of them the offsets of the cells are read ahead too, as :mod:`lobster_zarr.reading` does."""
BEGIN = 0.37
"""Where a contiguous category begins: nowhere in particular."""
MANY_OBJECTS = 100
"""Of an array without shards: of more, the requests are counted, not planned."""
PLACE_BYTES, LEAF_CHUNKS = 48, 64
"""Of a chunk, in what an HDF5 file says of where its chunks lie; and how many a leaf of that has at most."""


@dataclass(frozen=True)
class Cost:
    """Requests, bytes and seconds of a query that runs alone on an open store.

    Parameters
    ----------
    n_requests, n_bytes
        What is read.
    seconds
        On the network that plans assume.
    """

    n_requests: int
    n_bytes: int
    seconds: float


def priced(network: Network, n_requests: int, n_bytes: int, round_trips: int) -> Cost:
    """Return what requests and bytes cost; nothing takes no time."""
    return Cost(n_requests, n_bytes, network.seconds(n_requests, n_bytes, round_trips) if n_requests else 0.0)


@dataclass(frozen=True, eq=False)
class Question:
    """A query as its cost depends on it.

    Parameters
    ----------
    rows
        Of the cells; None for all.
    genes
        Of the genes; None for all.
    predicate
        Column of obs that is read to find the rows; None where none is.
    columns
        Whether all columns of obs are wanted, not the names alone; None where not even these are.
    matrix
        Whether X is wanted.
    whole
        Whether everything else is wanted too.
    """

    rows: Runs | None = None
    genes: Runs | None = None
    predicate: str | None = None
    columns: bool | None = False
    matrix: bool = True
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """A store, as a planner sees it that knows all offsets, and what it costs to get to know them.

    Made by :func:`model_of`.
    """

    reader: StoreReader
    offsets: Mapping[str, Sequence[ArrayRead]] = field(default_factory=dict)

    @property
    def tree(self) -> Tree:
        """Its nodes."""
        return self.reader.tree

    @property
    def network(self) -> Network:
        """What plans assume."""
        return self.reader.fetcher.network

    def priced(self, reads: Iterable[ArrayRead], round_trips: int = 3) -> Cost:
        """Price reads from cold: what they bring, and the shard indexes that are nowhere noted."""
        reads, fetcher = list(reads), self.reader.fetcher
        alone = [read for read in reads if not read.node.has_index and read.node.grid.n_chunks > MANY_OBJECTS]
        n_requests, n_bytes = fetcher.price(read for read in reads if read not in alone)
        for read in alone:  # an object a chunk: nothing to plan, and there may be millions
            n_requests += len(read.chunk_ids)
            n_bytes += fetcher.stored_bytes[read.node.path] * len(read.chunk_ids) // read.node.grid.n_chunks
        for read in reads:
            if read.node.has_index and not read.as_objects and not self._is_noted(read.node):
                more_requests, more_bytes = _places(read)
                n_requests, n_bytes = n_requests + more_requests, n_bytes + more_bytes
        return priced(self.network, n_requests, n_bytes, round_trips)

    def _is_noted(self, node: ArrayNode) -> bool:
        if isinstance(node, FileArray):
            return not node.index.pending
        group, _, name = node.path.removeprefix(self.tree.root).rpartition("/")
        return node.chunk_sizes is not None or (name in {"data", "indices"} and f"{group}/{INDEX}" in self.tree)

    def matrix(self) -> str | None:
        """Return the path of the matrix that is asked for: X, else the first layer, else none."""
        layers = [f"layers/{name}" for name in self.tree.children("layers")]
        return next((p for p in ("X", *layers) if p in self.tree and self.reader.is_matrix(p)), None)

    async def cost(self, asked: Question) -> Cost:
        """Predict what a query costs from cold, opening left out. O(touched chunks)."""
        obs, var = self.reader.obs, self.reader.var
        columns = [] if asked.columns is None else obs.frame_columns(None if asked.columns else [])
        reads = self._predicate(asked) + obs.reads([c for c in columns if c != asked.predicate], asked.rows)
        by_gene = False
        path = self.matrix()
        if asked.matrix and path is not None:
            found, by_gene = await self._reads(path, asked)
            reads += found + var.reads(var.frame_columns(None if asked.whole else []), None)
        if asked.whole:
            reads += await self._rest(path, asked)
        if asked.columns is not None and self._needs_order(asked.rows):
            tail = [r for r in self.offsets.get(f"{path}/{COMPANION}", ()) if r.node.path.endswith(INDEX)]
            if by_gene and tail and tail[0].rows is not None:  # it lies behind the offsets
                reads = [ArrayRead(tail[0].node) if r is tail[0] else r for r in reads]
            else:
                reads.append(ArrayRead(self.tree.array(f"obs/{SOURCE_ORDER}"), asked.rows))
        return self.priced(reads)

    def _needs_order(self, rows: Runs | None) -> bool:
        """Whether the source order of the rows is read: in one run of a sorted column they are known to ascend."""
        if not self.reader.is_sorted:
            return False
        noted = DESCENTS in self.tree.array(f"obs/{SOURCE_ORDER}").note.entries
        return not (noted and rows is not None and len(rows.starts) == 1)

    def _predicate(self, asked: Question) -> list[ArrayRead]:
        """Return what is read to find the rows: by zones no more than the chunks that have them."""
        name, rows = asked.predicate, asked.rows
        if name is None:
            return []
        path = f"obs/{name}"
        node = self.tree.array(f"{path}{VALUES_OF.get(self.tree.encoding(path), '')}")
        found = None
        if PRESENT in node.note.entries and rows is not None and self._has_noted(f"{path}/categories"):
            length, n_rows = node.grid.chunk[0], node.shape[0]
            starts, stops = runs(chunks_of_runs(rows.starts, rows.stops, length))
            found = Runs(starts * length, np.minimum(stops * length, n_rows))
        return self.reader.obs.reads([name], found)

    def _has_noted(self, path: str) -> bool:
        return self.tree.is_array(path) and self.tree.array(path).key(0) in self.reader.fetcher.objects

    async def _reads(self, path: str, asked: Question) -> tuple[list[ArrayRead], bool]:
        """Return what is read of a matrix, the cheaper way, and whether that is by gene."""
        if not self.reader.is_sparse(path):
            columns = asked.genes if path == "X" or path.startswith("layers/") else None
            return [ArrayRead(self.reader.dense(path), asked.rows, columns)], False
        genes = asked.genes if not path.startswith(("obsp/", "raw/", "obsm/")) else None
        genes = asked.rows if path.startswith("obsp/") else genes
        paths = [path]
        if genes is not None and self.reader.is_sparse(f"{path}/{COMPANION}"):
            paths.insert(0, f"{path}/{COMPANION}")
        ways = [(p, await self._way(self.reader.sparse(p), asked.rows, genes)) for p in paths]
        best, reads = min(ways, key=lambda way: self.priced(way[1]).seconds)
        minors = orient(self.reader.sparse(best), asked.rows, genes)[1]
        known = [r for r in self.offsets[best] if minors is not None or not r.node.path.endswith(FIRST)]
        few = genes is not None and genes.total <= FEW_GENES * self.reader.var.n_rows
        if best != path and asked.rows is not None and not few:
            known += self.offsets[path]  # read ahead, in case the rows are few
        return [*reads, *known], best != path

    @staticmethod
    async def _way(reader: SparseReader, rows: Runs | None, genes: Runs | None) -> list[ArrayRead]:
        return await reader.reads(*orient(reader, rows, genes))

    async def _rest(self, path: str | None, asked: Question) -> list[ArrayRead]:
        """Return what is read of everything but obs, var and one matrix."""
        reads: list[ArrayRead] = []
        members = [f"{parent}/{n}" for parent in ("layers", "obsm", "obsp") for n in self.tree.children(parent)]
        for member in [*members, "raw/X"]:
            if member in self.tree and member != path and self.reader.is_matrix(member):
                reads += (await self._reads(member, asked))[0]
            elif member in self.tree and member != path:
                reads += self.reader.whole_reads(member)
        for whole in ("varm", "varp", "uns", "raw/var", "raw/varm"):
            reads += self.reader.whole_reads(whole) if whole in self.tree else []
        return reads


def _places(read: ArrayRead) -> tuple[int, int]:
    """Requests and bytes of what says where the chunks of a read lie."""
    if isinstance(read.node, FileArray):  # a tree: its root, then the leaves that are needed
        n_chunks = len(read.chunk_ids)
        return (min(n_chunks, 1) if read.node.grid.n_chunks < LEAF_CHUNKS else 2), n_chunks * PLACE_BYTES
    n_shards = len(index_needed(read.node, read.chunk_ids))
    return n_shards, n_shards * read.node.index_bytes


async def model_of(
    tree: Tree, sizes: Mapping[str, int], objects: Mapping[str, bytes], network: Network, *, strict: bool, uri: str = ""
) -> Model:
    """Make the model of a store. O(chunks + cells + genes).

    Parameters
    ----------
    tree
        Its nodes.
    sizes
        Stored bytes by path of the array; what is not there is assumed by its codec.
    objects
        Whole objects by key that cost no request.
    network
        What plans assume.
    strict
        Whether this package wrote it.
    uri
        For messages.
    """
    nodes = [tree.array(path) for path in tree.arrays_below("")]
    stored = {node.path: sizes[node.path] if node.path in sizes else assumed_bytes(node) for node in nodes}
    fetcher = Fetcher(MemoryStore(), network=network, strict=strict, stored_bytes=stored, objects=objects)
    for node in nodes:
        if node.has_index and node.grid.n_chunks:
            _suppose_index(fetcher, node, stored[node.path])
    reader = StoreReader(fetcher, tree, uri)
    offsets: dict[str, list[ArrayRead]] = {}
    for path in tree.nodes:
        if reader.is_sparse(path) and not path.startswith(("uns/", "varp/")):
            offsets[path] = await _suppose_offsets(reader.sparse(path), tree, path)
    return Model(reader, offsets)


def _suppose_index(fetcher: Fetcher, node: ArrayNode, stored_bytes: int) -> None:
    """Let the chunks of an array be of one size, or of the sizes that are noted."""
    if node.chunk_sizes is not None:
        fetcher.remember_sizes((node,), node.chunk_sizes[None])
        return
    slots = math.prod(node.grid.chunks_per_shard)
    size = max(stored_bytes // node.grid.n_chunks, 1)
    index = np.column_stack([np.arange(slots, dtype=np.uint64) * np.uint64(size), np.full(slots, size, np.uint64)])
    for shard in range(math.prod(node.grid.shards_per_axis)):
        fetcher.remember(node, shard, index)


async def _suppose_offsets(reader: SparseReader, tree: Tree, path: str) -> list[ArrayRead]:
    """Let all slices of a matrix be of one length; return what reading the offsets reads."""
    offsets = (await reader.reads(None))[2:]
    indptr = np.linspace(0, reader.nnz, reader.n_major + 1).astype(np.int64)
    first = None
    if tree.is_array(f"{path}/{FIRST}"):
        offsets.append(ArrayRead(tree.array(f"{path}/{FIRST}")))
        begins = np.arange(reader.indices.grid.n_chunks) * reader.indices.grid.chunk[0]
        major = np.searchsorted(indptr, begins, "right") - 1
        share = (begins - indptr[major]) / np.maximum(np.diff(indptr)[major], 1)
        first = (share * reader.n_minor).astype(np.int64)
    reader.suppose(indptr, first)
    return offsets


def category(n_rows: int, share: float, *, contiguous: bool) -> Runs:
    """Return the rows of a category of some share of the cells: in one run, or scattered at random."""
    wanted = max(min(round(n_rows * share), n_rows), min(n_rows, 1))
    if contiguous:
        start = int((n_rows - wanted) * BEGIN)
        return Runs(np.asarray([start], np.int64), np.asarray([start + wanted], np.int64))
    return scattered(n_rows, wanted)


def scattered(length: int, wanted: int) -> Runs:
    """Return so many positions of an axis, at random and always the same."""
    at = np.sort(np.random.default_rng(0).choice(length, min(wanted, length), replace=False))
    return Runs(*runs(at.astype(np.int64)))


async def converted(model: Model, sort_by: str | None, companions: Iterable[str] | None = None) -> Model:
    """Return the model of the store that :func:`lobster_zarr.convert` would write of one.

    Parameters
    ----------
    model
        Of the store that is there.
    sort_by
        Column of obs; ``""`` for an order that no column of obs gives, None where the order is kept.
    companions
        Matrices that are stored by gene too; None for X, where it is sparse.
    """
    reader = model.reader
    if companions is None:
        companions = ["X"] if "X" in reader.tree and reader.is_sparse("X") else []
    drawn = blueprint(reader.tree, reader.fetcher.stored_bytes, sort_by, companions)
    return await model_of(drawn.tree, drawn.sizes, drawn.objects, model.network, strict=True, uri=reader.uri)


async def after_conversion(reader: StoreReader, n_rows: int | None, n_genes: int | None) -> tuple[int, int]:
    """Predict requests and bytes of X for some cells and genes, once the store or file is converted. No request.

    The cells lie together, as those of a category do where the conversion sorts by its column; the names of
    cells and genes are counted in, the column of the condition is not.

    Parameters
    ----------
    reader
        Of what is there, in any layout.
    n_rows, n_genes
        How many cells and genes; None for all.

    Returns
    -------
    n_requests, n_bytes
        From cold, opening left out.
    """
    fetcher, obs, var = reader.fetcher, reader.obs, reader.var
    sizes = fetcher.stored_bytes
    if isinstance(fetcher, FileFetcher):
        sizes = file_sizes(reader.tree, fetcher.file.n_bytes)
    model = await model_of(reader.tree, sizes, fetcher.objects, fetcher.network, strict=fetcher.strict, uri=reader.uri)
    rows = None if n_rows is None else category(obs.n_rows, n_rows / max(obs.n_rows, 1), contiguous=True)
    genes = None if n_genes is None else scattered(var.n_rows, n_genes)
    after = await converted(model, None if rows is None else "")
    cost = await after.cost(Question(rows=rows, genes=genes))
    return cost.n_requests, cost.n_bytes
