"""The lazy MuData of a selection: a true MuData of modalities whose matrices are dask arrays.

Must not know what is done with it.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, override

import mudata
from anndata.acc import AdRef, MapAcc, RefAcc

from lobster_zarr.lazy import lazy_matrices

if TYPE_CHECKING:
    import os

    from lobster_zarr.lazymatrix import SparseFormat
    from lobster_zarr.mureading import JointReading


class LazyMuData(mudata.MuData):  # type: ignore[misc]  # mudata has no types
    """A MuData whose modalities hold dask arrays; a subset or copy of it is one too."""

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str | AdRef | RefAcc | MapAcc):
            return super().__getitem__(index)
        return LazyMuData(self, as_view=True, index=index)

    @override
    def copy(self, filename: str | os.PathLike[str] | None = None) -> mudata.MuData:
        if filename is not None:
            return self.to_memory().copy(filename)
        return self._made(LazyMuData, {name: adata.copy() for name, adata in self.mod.items()})

    def to_memory(self) -> mudata.MuData:
        """Read the matrices: a MuData in memory."""
        # A copy drops categories that are not used any more, as that of any part of an AnnData.
        return self._made(mudata.MuData, {name: adata.copy().to_memory() for name, adata in self.mod.items()})

    def _made(self, kind: type[mudata.MuData], data: dict[str, Any]) -> mudata.MuData:
        names = ("obs", "var", "obsm", "varm", "obsp", "varp", "obsmap", "varmap")
        elements = {name: getattr(self, name).copy() for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mudata's note on names that are not unique
            return kind(data, uns=copy.deepcopy(dict(self.uns)), axis=self.axis, **elements)


def lazy_mudata(reading: JointReading, sparse_format: SparseFormat, block_bytes: int) -> LazyMuData:
    """Make the lazy MuData of a selection. Reads the tables, what a plan needs, and what cannot be lazy."""
    reading.run(reading.axes())
    parts = [lazy_matrices(part, sparse_format, block_bytes) for part in reading.parts.values()]
    whole = reading.run(reading.root.elements())
    return reading.assemble(whole, parts, LazyMuData)
