"""Stores that the suite reads: small, of a fixed seed, made once for a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.multimodal import MultimodalDataset

N_OBS, N_VARS, SEED = 8_000, 2_000, 0
STORES = {
    "sorted": {"sort_by": ["cell_type"]},
    "unsorted": {},
    "compatible": {"sort_by": ["cell_type"], "codec": "compatible"},
}
"""Name to options of `lobster_zarr.convert`."""
QUERIES = {
    "cell type": {"obs": "cell_type == 'T cell'"},
    "scattered 5 %": {"obs": slice(0, None, 20)},
    "empty": {"obs": "cell_type == 'T cell' and n_counts < 0"},
    "one gene": {"var": ["CD3D"]},
    "genes of a type": {"obs": "cell_type == 'T cell'", "var": slice(0, 50)},
    "all": {},
}
"""Name to arguments of `Dataset.query`."""


class CountingStore(WrapperStore[Any]):
    """Passes reads on to a folder and counts them."""

    def __init__(self, path: Path) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self.n_requests = self.n_bytes = 0

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read, and count the answer."""
        found = await self._store.get(key, prototype, byte_range)
        self.n_requests += 1
        self.n_bytes += 0 if found is None else len(found)
        return found


def make(folder: Path) -> dict[str, str]:
    """Write the file and its stores; name to path."""
    import mudata

    import lobster_zarr as lz
    from benchmarks.synthetic import make_adata

    adata = make_adata(N_OBS, N_VARS, SEED)
    paths = {"file": str(folder / "x.h5ad"), "mudata": str(folder / "mu.zarr")}
    adata.write_h5ad(paths["file"], compression="gzip")
    for name, options in STORES.items():
        paths[name] = str(folder / f"{name}.zarr")
        lz.convert(paths["file"], paths[name], progress=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata's, of what it will pull in a later version
        both = mudata.MuData({"rna": adata, "prot": adata[: N_OBS // 2, :50].copy()})
    lz.convert(both, paths["mudata"], sort_by="rna:cell_type", progress=False)
    return paths


def counted(path: str) -> tuple[Dataset | MultimodalDataset, CountingStore]:
    """Open a store that counts what is read of it."""
    from lobster_zarr.byterange import Network
    from lobster_zarr.multimodal import opened

    store = CountingStore(Path(path))
    return opened(store, path, Network()), store
