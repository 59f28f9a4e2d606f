"""Reads one element of an AnnData store as the object that AnnData would give.

Matrices by rows and columns, through whichever layout is cheaper; everything
else whole, by AnnData's own readers over bytes that were fetched at once.
"""

from __future__ import annotations

import asyncio
import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import anndata as ad
import numpy as np
from scipy import sparse

from lobster_zarr.dense import read_array
from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.fetch import Fetcher, together
from lobster_zarr.h5fetch import FileFetcher
from lobster_zarr.h5whole import file_reads, read_from_file
from lobster_zarr.identity import Identity
from lobster_zarr.layout import COMPANION, DESCENTS, SOURCE_ORDER
from lobster_zarr.sparse import SparseReader
from lobster_zarr.store import display_uri
from lobster_zarr.table import TableReader
from lobster_zarr.whole import read_from_store, store_reads

if TYPE_CHECKING:
    from lobster_zarr.grid import Runs
    from lobster_zarr.node import ArrayNode, Tree
    from lobster_zarr.plan import ArrayRead

type Matrix = Any
"""A numpy array, or a scipy CSR or CSC matrix or array."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One way to read some rows and columns of a sparse matrix.

    Parameters
    ----------
    reader
        Of the matrix, or of its companion.
    reads
        What it would read of chunks.
    n_requests, n_bytes
        What that costs, as far as it is known.
    exact
        Whether it was priced by its chunks, not by the share of the rows.
    """

    reader: SparseReader
    reads: tuple[ArrayRead, ...]
    n_requests: int
    n_bytes: int
    exact: bool = True

    @property
    def name(self) -> str:
        """How the values lie: by cell or by gene."""
        return "row-major" if self.reader.row_major else "gene-major"


def orient(reader: SparseReader, rows: Runs | None, columns: Runs | None) -> tuple[Runs | None, Runs | None]:
    """Return the runs along the major and the minor axis."""
    return (rows, columns) if reader.row_major else (columns, rows)


class StoreReader:
    """Reads the elements of one AnnData store; keeps what every plan over a matrix needs.

    Parameters
    ----------
    fetcher
        Of the store.
    tree
        The store's nodes.
    uri
        For messages.
    identity
        Of the store that this is a part of; None for a store of its own.
    """

    is_open: ClassVar = True
    """Whether what is asked of it needs no request to open the store first."""

    def __init__(self, fetcher: Fetcher, tree: Tree, uri: str = "", identity: Identity | None = None) -> None:
        self.fetcher, self.tree, self.uri = fetcher, tree, display_uri(uri)
        self.identity = identity or Identity(uri, fetcher, tree)
        self.obs, self.var = (TableReader(fetcher, tree, name, self.uri or "the store") for name in ("obs", "var"))
        self._sparse: dict[str, SparseReader] = {}
        self._order: np.ndarray | None = None
        self._order_lock = asyncio.Lock()

    def below(self, path: str) -> StoreReader:
        """Return the reader of an AnnData that is a part of the store: no request."""
        return StoreReader(self.fetcher, self.tree.below(path), f"{self.uri}/{path}", self.identity)

    def without_notes(self) -> StoreReader:
        """Return the reader of the same store as if nothing had been noted of its arrays, with stats of its own."""
        return StoreReader(self.fetcher.bare(), self.tree.without_notes(), self.uri, self.identity)

    @property
    def is_sorted(self) -> bool:
        """Whether the rows are stored in another order than the source's."""
        return self.tree.is_array(f"obs/{SOURCE_ORDER}")

    @property
    def knows_order(self) -> bool:
        """Whether :meth:`source_order` needs no request."""
        return self._order is not None

    async def prefetch_order(self) -> None:
        """Read the source order of all rows, once."""
        await self.source_order()

    async def source_order(self, rows: Runs | None = None) -> np.ndarray:
        """Read the source position of each stored row: int64. Only of a sorted store.

        That of all rows is read once, however many ask for it at the same time.
        """
        if rows is None:
            async with self._order_lock:
                if self._order is None:
                    self._order = await self._read_order(None)
                return self._order
        return await self._read_order(rows) if self._order is None else self._order[rows.positions()]

    async def _read_order(self, rows: Runs | None) -> np.ndarray:
        node = self.tree.array(f"obs/{SOURCE_ORDER}")
        if node.shape != (self.obs.n_rows,):
            msg = f"{node.path!r} has the shape {node.shape}, obs {self.obs.n_rows:,} rows; the store is damaged."
            raise FormatError(msg)
        return await read_array(self.fetcher, node, rows)

    def ascend(self, rows: Runs) -> bool:
        """Whether rows are known, without a request, to be in source order as they are stored."""
        descents = self.tree.array(f"obs/{SOURCE_ORDER}").note.entries.get(DESCENTS)
        if not rows.total:
            return True
        if not isinstance(descents, list) or not all(type(d) is int for d in descents):
            return False
        first, last = np.searchsorted(descents, [rows.starts[0], rows.stops[-1] - 1], side="right")
        return bool(first == last)

    def has_companion(self, path: str) -> bool:
        """Whether a sparse matrix can be read by gene."""
        return self.is_sparse(f"{path}/{COMPANION}") or not self.sparse(path).row_major

    def size_bytes(self, path: str) -> int:
        """Decoded bytes of a matrix, from the metadata alone."""
        arrays = [self.sparse(path).values, self.sparse(path).indices] if self.is_sparse(path) else [self.dense(path)]
        return sum(math.prod(a.shape) * max(a.dtype.itemsize, 1) for a in arrays)

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of a matrix, from the metadata alone."""
        return self.sparse(path).shape if self.is_sparse(path) else self.dense(path).shape

    def value_dtype(self, path: str) -> np.dtype[Any]:
        """Return what the values of a matrix are, from the metadata alone."""
        return (self.sparse(path).values if self.is_sparse(path) else self.dense(path)).dtype

    def is_sparse(self, path: str) -> bool:
        """Whether a node is a compressed sparse matrix."""
        return self.tree.encoding(path) in {"csr_matrix", "csc_matrix"}

    def is_matrix(self, path: str) -> bool:
        """Whether a node can be read by rows."""
        if self.is_sparse(path):
            return True
        return (
            self.tree.is_array(path) and self.tree.encoding(path) in {"array", ""} and bool(self.tree.array(path).shape)
        )

    def sparse(self, path: str) -> SparseReader:
        """Return the reader of a sparse matrix, the same one every time."""
        if path not in self._sparse:
            self._sparse[path] = SparseReader(self.fetcher, self.tree, path)
        return self._sparse[path]

    async def matrix(
        self,
        path: str,
        rows: Runs | None,
        columns: Runs | None,
        layout: Layout | None = None,
        place: np.ndarray | None = None,
    ) -> Matrix:
        """Read a matrix by rows and columns, both in storage order.

        Parameters
        ----------
        path
            Of the element.
        rows, columns
            None for all.
        layout
            One of :meth:`layouts` for the same rows and columns; None for the
            cheapest.
        place : ndarray of int64, shape (n_rows,), or None
            With all rows and columns: where each row goes in the result.

        Returns
        -------
        ndarray or sparse matrix
            In the format that it is stored in.
        """
        if not self.is_sparse(path):
            return await read_array(self.fetcher, self.dense(path), rows, columns, place)
        best = layout or (await self.layouts(path, rows, columns))[0]
        reader, (majors, minors) = best.reader, orient(best.reader, rows, columns)
        parts = await reader.read_projected(majors, minors) if minors else await reader.read(majors, place)
        n_major, n_minor = self._extent(reader, majors, minors)
        built = _build(parts, n_major, n_minor, row_major=reader.row_major)
        return built.asformat("csr" if self.sparse(path).row_major else "csc")

    def dense(self, path: str) -> ArrayNode:
        """Return the array of a dense matrix."""
        if not self.is_matrix(path):
            msg = f"{path!r} has the encoding {self.tree.encoding(path)!r}; expected a matrix."
            raise UnsupportedError(msg)
        return self.tree.array(path)

    async def layouts(self, path: str, rows: Runs | None, columns: Runs | None) -> list[Layout]:
        """Price the ways to read a sparse matrix by rows and columns.

        Reads what any plan over the matrix needs, of each layout that is stored.

        Returns
        -------
        list of Layout
            The cheapest first, by the network model; the stored order where equal.
        """
        main = self.sparse(path)
        if columns is None or not self.is_sparse(f"{path}/{COMPANION}"):
            return [await self._layout(main, rows, columns)]
        companion = await self._layout(self.sparse(f"{path}/{COMPANION}"), rows, columns)
        other = self._estimate(main, rows)
        if other is None or self._seconds(other) < self._seconds(companion):
            other = await self._layout(main, rows, columns)
        return sorted((companion, other), key=self._seconds)

    async def prefetch(
        self, path: str, rows: Runs | None, columns: Runs | None, *, few_columns: bool, ordered: bool
    ) -> None:
        """Read what :meth:`layouts` will need for rows and columns that are not known yet, None meaning all.

        Parameters
        ----------
        path
            Of a sparse matrix.
        rows, columns
            None for all, anything else for some.
        few_columns
            Whether a companion, where there is one, will be the cheaper way.
        ordered
            Whether the source order of the rows, which lies beside a companion's offsets, is wanted too.
        """
        main, companion = self.sparse(path), f"{path}/{COMPANION}"
        by_gene = columns is not None and self.is_sparse(companion)
        wanted = [self._prefetch_companion(companion, rows, ordered=ordered)] if by_gene else []
        reordered = ordered and rows is None and columns is None
        if reordered or (orient(main, rows, columns)[0] is not None and not (by_gene and few_columns)):
            wanted.append(main.prepare())
        await together(*wanted)

    async def _prefetch_companion(self, path: str, rows: Runs | None, *, ordered: bool) -> None:
        companion = self.sparse(path)
        await companion.prepare(rows, with_tail=ordered and rows is None and not self.knows_order)
        if companion.tail is not None:
            self._order = companion.tail

    async def _layout(self, reader: SparseReader, rows: Runs | None, columns: Runs | None) -> Layout:
        """Price one way to read, by what it reads."""
        majors, minors = orient(reader, rows, columns)
        if majors is not None:
            await reader.prepare(minors)
        reads = await reader.reads(majors, minors)
        return Layout(reader, tuple(reads), *self.fetcher.price(reads))

    def _estimate(self, reader: SparseReader, rows: Runs | None) -> Layout | None:
        """Price a row-major matrix by the share of the rows, as long as its offsets are not known."""
        arrays = (reader.values, reader.indices)
        if reader.is_prepared or any(a.path not in self.fetcher.stored_bytes for a in arrays):
            return None
        share = 1.0 if rows is None else rows.total / max(reader.shape[0], 1)
        n_bytes = int(share * sum(self.fetcher.stored_bytes[a.path] for a in arrays))
        return Layout(reader, (), 2, n_bytes, exact=False)

    def _seconds(self, layout: Layout) -> float:
        return self.fetcher.network.seconds(layout.n_requests, layout.n_bytes)

    def whole_reads(self, path: str) -> list[ArrayRead]:
        """Return what :meth:`whole` reads."""
        return (file_reads if isinstance(self.fetcher, FileFetcher) else store_reads)(self.tree, path)

    @staticmethod
    def _extent(reader: SparseReader, majors: Runs | None, minors: Runs | None) -> tuple[int, int]:
        shape = reader.shape if reader.row_major else reader.shape[::-1]
        return majors.total if majors else shape[0], minors.total if minors else shape[1]

    async def whole(self, path: str) -> Any:
        """Read an element whole, as AnnData's own reader gives it.

        Raises
        ------
        ChunkDecodeError
            Its bytes are damaged.
        """
        if path in self.fetcher.elements:
            return copy.deepcopy(self.fetcher.elements[path])
        if isinstance(self.fetcher, FileFetcher):
            return await read_from_file(self.fetcher, self.tree, path)
        return await read_from_store(self.fetcher, self.tree, path)


def _build(parts: Any, n_major: int, n_minor: int, *, row_major: bool) -> Matrix:
    arrays = ad.settings.use_sparse_array_on_read
    kinds = {
        (True, False): sparse.csr_matrix,
        (False, False): sparse.csc_matrix,
        (True, True): sparse.csr_array,
        (False, True): sparse.csc_array,
    }
    shape = (n_major, n_minor) if row_major else (n_minor, n_major)
    matrix = kinds[row_major, arrays](shape, dtype=parts.values.dtype)
    small = len(parts.values) <= np.iinfo(np.int32).max and parts.indices.dtype == np.int32
    matrix.indptr = parts.indptr.astype(np.int32 if small else np.int64)
    matrix.indices = parts.indices if small else parts.indices.astype(np.int64, copy=False)
    matrix.data = parts.values
    return matrix
