"""A selection of cells and genes: nothing is read until its rows, table or matrices are asked for.

The synchronous face of :mod:`lobster_zarr.reading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr import aggregate, xarrays
from lobster_zarr.blocks import BLOCK_BYTES, Block
from lobster_zarr.report import parse_size, positive
from lobster_zarr.scratch import ahead

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import anndata as ad
    import pandas as pd
    import xarray as xr

    from lobster_zarr.explain import QueryPlan
    from lobster_zarr.moments import Func
    from lobster_zarr.reading import Reading
    from lobster_zarr.traffic import Stats


@dataclass(frozen=True, eq=False)
class Selection:
    """Cells and genes of a store, not yet read. Made by :meth:`Dataset.query`.

    Its pickle is small and holds no credentials.
    """

    _reading: Reading

    @property
    def stats(self) -> Stats:
        """What this selection has read since it was made."""
        return self._reading.stats

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self._reading.uri

    @property
    def notes(self) -> tuple[str, ...]:
        """Which clause of a predicate left no row, with values that are near, once it was resolved."""
        return self._reading.notes

    def __repr__(self) -> str:
        asked = self._reading
        return f"Selection(obs={asked.obs!r}, var={asked.var!r}, order={asked.order!r}) of {self.uri}"

    def count(self) -> int:
        """Count the cells. Reads the columns that the predicate names, nothing else."""
        return self._reading.run(self._reading.count())

    def explain(self) -> QueryPlan:
        """Plan the query without running it.

        Reads what the plan needs: the columns of the predicate, offsets and shard
        indexes; nothing of X. Running the selection afterwards sends exactly the
        requests, and reads exactly the bytes, that an exact plan names.

        Returns
        -------
        QueryPlan
            Prints as a table; ``to_dict()`` for programs.
        """
        return self._reading.run(self._reading.explain())

    def to_pandas(self) -> pd.DataFrame:
        """Read the obs rows alone. Categories stay as they are stored."""
        return self._reading.run(self._reading.table())

    def to_table(self) -> pd.DataFrame:
        """Read the obs rows with the names as the first column.

        It is called as the index is named, else ``index``, or ``_index`` where a
        column has that name.
        """
        frame = self.to_pandas()
        if frame.index.name in frame.columns:  # which holds the same values
            return frame.reset_index(drop=True)
        return frame.reset_index(names=frame.index.name or ("_index" if "index" in frame.columns else "index"))

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_table` to a Parquet file."""
        from pathlib import Path

        self.to_table().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self) -> ad.AnnData:
        """Read the selection: what slicing the source in memory gives.

        Returns
        -------
        AnnData
            Values, dtypes, categories, order, names and uns as
            ``source[obs, var].copy()``; a companion or sort order does not show.

        Raises
        ------
        BudgetError
            The plan exceeds `max_bytes` or `memory_limit`; nothing of X was read.
        ChunkDecodeError, StorageError
            A chunk is damaged, or the storage failed.
        """
        return self._reading.run(self._reading.read())

    def batches(self, n_rows: int, *, block_bytes: int | str = BLOCK_BYTES) -> Iterator[ad.AnnData]:
        """Read the selection in order, so many rows at a time; the next are read while these are used.

        Parameters
        ----------
        n_rows
            Rows of a batch; the last one may have fewer.
        block_bytes
            Decoded bytes that are read at once: as many batches as fit, at least one. Two
            such blocks are in memory.

        Yields
        ------
        AnnData
            What :meth:`to_memory` of these rows gives.
        """
        size = positive(n_rows, "n_rows")
        for block in ahead(map(self._read_rows, *_pairs(self._bounds(block_bytes, None, size)))):
            for at in range(0, block.n_obs, size):
                yield block if block.n_obs <= size else block[at : at + size].copy()

    def blocks(self, path: str = "X", *, block_bytes: int | str = BLOCK_BYTES) -> Iterator[Block]:
        """Read one matrix of the selection in order, block by block; the next is read while one is used.

        Parameters
        ----------
        path
            ``"X"``, ``"layers/counts"``, ``"obsm/X_pca"``.
        block_bytes
            Decoded bytes of a block. Two are in memory.

        Yields
        ------
        Block
            Positions of the rows in the selection, and their values.
        """
        yield from ahead(map(partial(self._read_block, path), *_pairs(self._bounds(block_bytes, path, 1))))

    def aggregate(
        self,
        by: str | Sequence[str] | None,
        func: Func | Sequence[Func] = "sum",
        *,
        path: str = "X",
        client: Any = None,
        block_bytes: int | str = aggregate.BLOCK_BYTES,
        memory_limit: int | str = "2GB",
    ) -> ad.AnnData:
        """Aggregate each gene over groups of cells (pseudobulk): no more than a few blocks are ever in memory.

        Parameters
        ----------
        by
            One or several columns of obs. A cell for which one of them is missing is left out, as pandas does.
            None takes all cells as one group, called ``all``: per-gene statistics.
        func
            One or several of ``"sum"``, ``"mean"``, ``"count_nonzero"`` and ``"var"`` (with one degree of
            freedom less than cells; NaN of a single cell).
        path
            ``"X"``, or a layer: ``"layers/counts"``.
        client
            A ``dask.distributed.Client`` on whose workers to compute. None takes the active one,
            where there is one, else this process; ``"local"`` always takes this process.
        block_bytes
            Decoded bytes of a block. Three are in memory, on dask one a thread.
        memory_limit
            Refuse, before anything of the matrix is read, a result that needs more.

        Returns
        -------
        AnnData, shape (n_groups, n_vars)
            One row a group, as ``groupby(by, observed=True, sort=True)`` sorts them; obs has the columns
            `by` and ``n_obs_aggregated``, the number of cells; var is the selection's. As of
            ``scanpy.get.aggregate`` each statistic is a layer of its name; one alone is X too. Sums of
            integers and booleans, and counts, are exact integers; all else is float64. NaN propagates
            as in NumPy.

        Raises
        ------
        NotFoundError
            No such column or matrix.
        InvalidArgumentError, UnsupportedError
            An option out of its domain; a matrix that does not hold real numbers or booleans.
        BudgetError
            Groups × genes exceed `memory_limit`.
        """
        return aggregate.aggregate(
            self._reading, aggregate.Question.of(by, func, path), client, block_bytes, memory_limit
        )

    def to_xarray(
        self,
        genes: Any = None,
        *,
        obsm: Sequence[str] | None = None,
        path: str = "X",
        block_bytes: int | str = xarrays.BLOCK_BYTES,
    ) -> xr.Dataset:
        """Open the selection as a labelled dataset: obs in memory, X and obsm as dask arrays of blocks of cells.

        Parameters
        ----------
        genes
            Names (or positions, or a mask) among the genes of the selection; None for all.
        obsm
            Names of members; None for all that the selection brings.
        path
            ``"X"``, or a layer: ``"layers/counts"``.
        block_bytes
            Of a block of the widest matrix, dense; X is dense here, whatever it is stored as.

        Returns
        -------
        xarray.Dataset
            Dimensions ``obs`` and ``var``, labelled with the names, and ``<member>_dim`` for each
            member of obsm. Variables: the matrix, called ``X`` or as the layer; the members of obsm;
            the columns of obs, as NumPy holds them: categories as their values, missing text as
            NaN, missing numbers and booleans as float NaN. Reads obs; nothing of the matrices.

        Raises
        ------
        NotFoundError, UnsupportedError
            No such gene, member or matrix; a member that is no matrix of two dimensions.
        InvalidArgumentError
            Two variables, or a variable and a dimension, would have one name.
        """
        wanted = xarrays.Wanted(genes, obsm, path, parse_size(block_bytes, "block_bytes"))
        return xarrays.to_xarray(self._reading, wanted)

    def _bounds(self, block_bytes: int | str, path: str | None, multiple: int) -> np.ndarray:
        return self._reading.run(self._reading.bounds(parse_size(block_bytes, "block_bytes"), path, multiple))

    def _part(self, start: int, stop: int) -> Reading:
        rows, columns = self._reading.run(self._reading.settled_axes())
        return self._reading.part(rows.pick(slice(start, stop), self._reading.reader.obs.n_rows), columns)

    def _read_rows(self, start: int, stop: int) -> ad.AnnData:
        part = self._part(start, stop)
        return part.run(part.read())

    def _read_block(self, path: str, start: int, stop: int) -> Block:
        part = self._part(start, stop)
        matrix = part.run(part.matrix(path))
        return Block(np.arange(start, stop), matrix.tocsr() if hasattr(matrix, "tocsr") else matrix)


def _pairs(bounds: np.ndarray) -> tuple[list[int], list[int]]:
    return bounds[:-1].tolist(), bounds[1:].tolist()
