"""A selection of a MuData: nothing is read until its rows, modalities or table are asked for.

The synchronous face of :mod:`lobster_zarr.mureading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lobster_zarr import selected
from lobster_zarr._clause import short
from lobster_zarr.blocks import BLOCK_BYTES
from lobster_zarr.client import client_for
from lobster_zarr.errors import NotFoundError, did_you_mean
from lobster_zarr.query import Selection
from lobster_zarr.report import Progress, parse_size
from lobster_zarr.table import named_rows

if TYPE_CHECKING:
    import os

    import mudata
    import pandas as pd
    from distributed import Client

    from lobster_zarr.explain import QueryPlan
    from lobster_zarr.mulazy import LazyMuData
    from lobster_zarr.mureading import JointReading
    from lobster_zarr.traffic import Stats


@dataclass(frozen=True, eq=False)
class MultimodalSelection:
    """Cells of a MuData store, and genes of some of its modalities, not yet read.

    Made by :meth:`MultimodalDataset.query`. ``selection["rna"]`` is the selection of one modality, with all
    that a :class:`~lobster_zarr.query.Selection` does: batches, loader, aggregate, to_xarray.
    """

    _reading: JointReading

    @property
    def stats(self) -> Stats:
        """What this selection has read since it was made."""
        return self._reading.stats

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self._reading.uri

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that it brings."""
        return tuple(self._reading.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which clause of a predicate left no row, with values that are near, once it was resolved."""
        return self._reading.notes

    def __repr__(self) -> str:
        asked = self._reading.asked
        var = asked.var if asked.var is not None else dict(asked.var_of) or None
        chosen = ", ".join(self.modalities)
        shown = f"obs={short(repr(asked.obs))}, var={short(repr(var))}, modalities={chosen}"
        return f"MultimodalSelection({shown}) of {self.uri}"

    def _repr_html_(self) -> str:
        return selected.show_modalities(repr(self), self._reading)

    def __getitem__(self, modality: str) -> Selection:
        """Return the selection of one modality: its cells, in the order of the whole.

        Reads the columns of the predicate, where that was not done yet.

        Raises
        ------
        NotFoundError
            The selection does not bring it.
        """
        if modality not in self._reading.parts:
            msg = f"the selection brings no modality {modality!r}.{did_you_mean(modality, self.modalities)}"
            raise NotFoundError(f"{msg} It has: {list(self.modalities)}")
        self._reading.run(self._reading.axes())
        return Selection(self._reading.parts[modality])

    def count(self) -> int:
        """Count the cells. Reads the columns that the predicate names, and where they lie in the modalities."""
        return self._reading.run(self._reading.count())

    def explain(self) -> QueryPlan:
        """Plan the query without running it: one plan for all modalities. As :meth:`Selection.explain`."""
        return self._reading.run(self._reading.explain())

    def to_pandas(self, *, progress: bool = True) -> pd.DataFrame:
        """Read the obs rows alone: global columns, and those of the modalities as ``<modality>:<column>``.

        What :meth:`mudata.MuData.pull_obs` makes: a value is missing where the modality lacks the cell.
        `progress` is as of :meth:`to_memory`.
        """
        with Progress(enabled=progress).watching("reading obs", self.stats):
            return self._reading.run(self._reading.table())

    def to_table(self) -> pd.DataFrame:
        """Read the obs rows with the names as the first column: ``index``, or as the index is named."""
        return named_rows(self.to_pandas())

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_table` to a Parquet file."""
        self.to_table().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self, *, client: Client | None = None, progress: bool = True) -> mudata.MuData:
        """Read the selection: what slicing the source in memory, and copying it, gives.

        Parameters
        ----------
        client
            Of a dask.distributed cluster, whose workers read the matrices of the modalities;
            None to read them here.
        progress
            Show what arrives when on a terminal, or in a notebook with ipywidgets, if it takes a second.

        Raises
        ------
        BudgetError
            The plan exceeds `max_bytes` or `memory_limit`; nothing of a matrix was read.
        ChunkDecodeError, StorageError
            A chunk is damaged, or the storage failed.
        """
        asked = self._reading
        if (cluster := client_for(client or False, asked.data.root.fetcher.store)) is None:
            with Progress(enabled=progress).watching("reading", self.stats):
                return asked.run(asked.read())
        import mudata

        from lobster_zarr.lazy import read_on

        asked.run(asked.check_budget())
        asked.run(asked.axes())
        parts = [read_on(cluster, part, BLOCK_BYTES) for part in asked.parts.values()]
        return asked.assemble(asked.run(asked.root.elements()), parts, mudata.MuData)

    def to_lazy(
        self, *, sparse_format: Literal["matrix", "array"] = "matrix", block_bytes: int | str = BLOCK_BYTES
    ) -> LazyMuData:
        """Return the selection as a MuData whose matrices are dask arrays.

        obs, var and the global elements are read; X, layers, obsm and the like of the modalities are not.
        Subsetting it stays lazy, across modalities, and reads only the bytes of the cells and genes that
        are left.

        Parameters
        ----------
        sparse_format, block_bytes
            As of :meth:`Selection.to_lazy`.

        Returns
        -------
        LazyMuData
            A ``mudata.MuData``; ``to_memory()`` equals that of this selection.
        """
        from lobster_zarr.mulazy import lazy_mudata

        return lazy_mudata(self._reading, sparse_format, parse_size(block_bytes, "block_bytes"))
