"""A selection of cells and genes: nothing is read until its rows, table or matrices are asked for.

The synchronous face of :mod:`lobster_zarr.reading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr import aggregate, piecewise, selected, xarrays
from lobster_zarr._clause import short
from lobster_zarr.blocks import BLOCK_BYTES
from lobster_zarr.client import client_for
from lobster_zarr.loader import Loader, Options, check_rowwise
from lobster_zarr.report import Progress, parse_size, positive
from lobster_zarr.table import named_rows

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import anndata as ad
    import pandas as pd
    import xarray as xr
    from distributed import Client

    from lobster_zarr.blocks import Block
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
        shown = f"obs={short(repr(asked.obs))}, var={short(repr(asked.var))}, order={asked.order!r}"
        return f"Selection({shown}) of {self.uri}"

    def _repr_html_(self) -> str:
        return selected.show(repr(self), self._reading)

    def count(self) -> int:
        """Count the cells. Reads the columns and genes that the predicate names, nothing else."""
        return self._reading.run(self._reading.count())

    def explain(self) -> QueryPlan:
        """Plan the query without running it.

        Reads what the plan needs: the columns and genes of the predicate, offsets and
        shard indexes; nothing else of X. Running the selection afterwards sends exactly the
        requests, and reads exactly the bytes, that an exact plan names.

        Returns
        -------
        QueryPlan
            Prints as a table; ``to_dict()`` for programs.
        """
        return self._reading.run(self._reading.explain())

    def to_pandas(self, *, progress: bool = True) -> pd.DataFrame:
        """Read the obs rows alone. Categories stay as they are stored; `progress` is as of :meth:`to_memory`."""
        with Progress(enabled=progress).watching("reading obs", self.stats):
            return self._reading.run(self._reading.table())

    def to_table(self) -> pd.DataFrame:
        """Read the obs rows with the names as the first column: ``index``, or as the index is named."""
        return named_rows(self.to_pandas())

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_table` to a Parquet file."""
        self.to_table().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self, *, client: Client | None = None, progress: bool = True) -> ad.AnnData:
        """Read the selection: what slicing the source in memory gives.

        Parameters
        ----------
        client
            Of a dask.distributed cluster, whose workers read the matrices and send them
            here; None to read them here, also where a client is active: what is read
            comes here in any case.
        progress
            Show what arrives when on a terminal, or in a notebook with ipywidgets, if it takes a second.

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
        asked = self._reading
        if (cluster := client_for(client or False, asked.reader.fetcher.store)) is None:
            with Progress(enabled=progress).watching("reading", self.stats):
                return asked.run(asked.read())
        from lobster_zarr.lazy import read_on

        asked.run(asked.check_budget())
        return read_on(cluster, asked, BLOCK_BYTES)

    def to_lazy(
        self, *, sparse_format: Literal["matrix", "array"] = "matrix", block_bytes: int | str = BLOCK_BYTES
    ) -> ad.AnnData:
        """Return the selection as a lazy AnnData: X, layers, obsm and the like are dask arrays.

        Subsetting it stays lazy, and reads only the bytes of the rows and the genes that are
        left. Reads the names, what a plan needs and uns.

        Parameters
        ----------
        sparse_format
            Whether sparse blocks are scipy's ``csr_matrix`` or ``csr_array``.
        block_bytes
            Decoded bytes of a block, of the heaviest matrix. Blocks end where stored objects
            end, as far as rows are contiguous in storage.

        Returns
        -------
        AnnData
            obs and var are anndata's lazy ``Dataset2D``; ``to_memory()`` equals that of this
            selection. Rows of a sorted store that are wanted in source order lie scattered:
            select with ``order="storage"`` to work through many of them.
        """
        from lobster_zarr.lazy import lazy_anndata

        return lazy_anndata(self._reading, sparse_format, parse_size(block_bytes, "block_bytes"))

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
        return piecewise.batches(self._reading, positive(n_rows, "n_rows"), parse_size(block_bytes, "block_bytes"))

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
        check_rowwise(self._reading, path)
        return piecewise.blocks(self._reading.only(path), path, parse_size(block_bytes, "block_bytes"))

    def aggregate(
        self,
        by: str | Sequence[str] | None,
        func: Func | Sequence[Func] = "sum",
        *,
        path: str = "X",
        client: Client | Literal[False] | None = None,
        block_bytes: int | str = aggregate.BLOCK_BYTES,
        memory_limit: int | str = "2GB",
        progress: bool = True,
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
            where there is one, else this process; False always takes this process.
        block_bytes
            Decoded bytes of a block. Three are in memory, on dask one a thread.
        memory_limit
            Refuse, before anything of the matrix is read, a result that needs more.
        progress
            As of :meth:`to_memory`.

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
        question = aggregate.Question.of(by, func, path)
        with Progress(enabled=progress).watching("aggregating", self.stats):
            return aggregate.aggregate(self._reading, question, client, block_bytes, memory_limit)

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

    def loader(  # noqa: PLR0913 - the public contract
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        labels: Sequence[str] = (),
        path: str = "X",
        dense: bool = False,
        as_torch: bool = False,
        drop_last: bool = False,
        buffer_bytes: int | str = BLOCK_BYTES,
        run_rows: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Loader:
        """Give shuffled batches of one matrix, with labels, for training; reads nothing yet.

        Rows that lie together in storage are cut into runs, the runs are shuffled, as many as
        fit in a buffer are read at once, and the rows of the buffer are shuffled. The
        next buffer is read while one is used.

        Parameters
        ----------
        batch_size
            Rows of a batch; the last one of an epoch may have fewer.
        shuffle
            Each epoch in another order. False: in the order of the selection.
        seed
            The same seed gives the same batches, epoch by epoch. None: one of its own.
        labels
            obs columns that come with each batch. Categories and text are encoded as
            positions in ``loader.classes[column]``, what is missing as -1.
        path
            ``"X"``, ``"layers/counts"``, ``"obsm/X_pca"``.
        dense
            Whether a matrix that is stored sparse comes as an ndarray, not as CSR.
        as_torch
            Whether a batch holds torch tensors, and a torch ``DataLoader`` may take the loader.
        drop_last
            Leave out a last batch of fewer rows; each rank then has as many batches.
        buffer_bytes
            Decoded bytes that are read at once. Two such buffers are in memory.
        run_rows
            Fewer mix better, more take fewer requests. None: about 2 MB, decoded.
        rank, world_size
            Of several processes that train together each takes an equal share of the rows.

        Returns
        -------
        Loader
            Iterating it gives one epoch of :class:`~lobster_zarr.loader.Batch`.

        Raises
        ------
        NotFoundError
            The selection does not bring `path`, or obs has no such column.
        InvalidArgumentError
            An option out of its domain.
        UnsupportedError
            `path` is in obsp, or torch is asked for and not installed.
        """
        options = Options(
            batch_size,
            shuffle=shuffle,
            seed=seed,
            labels=labels,
            path=path,
            dense=dense,
            as_torch=as_torch,
            drop_last=drop_last,
            buffer_bytes=buffer_bytes,
            run_rows=run_rows,
            rank=rank,
            world_size=world_size,
        )
        return Loader(self._reading, options)
