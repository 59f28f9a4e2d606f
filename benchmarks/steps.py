"""The steps of the main job, each measured: wall time, CPU time, peak memory, and what came back.

Knows how each step is done and how its result is digested, so that results made in different
processes and orders compare. Must not know how steps are run, ordered or shown. Linux only (peak
memory comes from /proc). Heavy packages are imported inside the steps: each pays for its own only.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import statistics
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

CELL_TYPE = "T cell"
REPEATS = 3
Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The shape of the data and where its files lie."""

    data: Path
    n_obs: int
    n_vars: int

    @property
    def source(self) -> Path:
        """The H5AD: ``synth_100k.h5ad``, ``synth_500_x2000.h5ad``."""
        cells = f"{self.n_obs // 1000}k" if self.n_obs % 1000 == 0 else str(self.n_obs)
        return self.data / f"synth_{cells}{'' if self.n_vars == 20_000 else f'_x{self.n_vars}'}.h5ad"

    @property
    def rows_store(self) -> Path:
        """The store without the gene-major companion, that every query reads."""
        return self.source.with_suffix(".rows.zarr")

    @property
    def genes_store(self) -> Path:
        """The store with the gene-major companion."""
        return self.source.with_suffix(".genes.zarr")


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory_bytes(name: str) -> int:
    """Return what this process holds (``VmRSS``) or held at most (``VmHWM``)."""
    # Not ru_maxrss: that starts at the parent's own peak when the parent spawns by vfork.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {name}")


def timed[T](run: Callable[[], T], warm_ups: int, repeats: int) -> tuple[T, Figures]:
    """Run something and return its last result with the median wall and CPU time of the repeats."""
    before_bytes, seconds, cpu_seconds = memory_bytes("VmRSS"), [], []
    for _ in range(warm_ups + repeats):
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        result = run()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(_cpu_seconds() - cpu_start)
    return result, {
        "seconds": statistics.median(seconds[warm_ups:]),
        "cpu_seconds": statistics.median(cpu_seconds[warm_ups:]),
        "all_seconds": seconds,
        "peak_bytes": memory_bytes("VmHWM"),
        "before_bytes": before_bytes,
    }


def digest_x(x: Any, obs_names: Any) -> str:
    """Digest a sparse matrix by value, type and row name, whatever the order of its rows."""
    import numpy as np
    import scipy.sparse as sp

    rows = sp.csr_matrix(x)[np.argsort(np.asarray(obs_names, dtype=str))]
    rows.sort_indices()
    digest = hashlib.sha256(repr((rows.shape, rows.dtype.str)).encode())
    for part in (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data):
        digest.update(np.ascontiguousarray(part).view(np.uint8))
    return digest.hexdigest()[:16]


def digest_rest(adata: ad.AnnData) -> str:
    """Digest names, obs, var and obsm by value, whatever the order of the rows."""
    import numpy as np
    import pandas as pd

    cells = adata.obs_names.argsort()
    digest = hashlib.sha256()
    for frame in (adata.obs.iloc[cells], adata.var):
        digest.update(pd.util.hash_pandas_object(frame).to_numpy().tobytes())
        digest.update(repr([*frame.columns, *(str(kind) for kind in frame.dtypes)]).encode())
    for name in sorted(adata.obsm):
        digest.update(name.encode())
        embedding: Any = adata.obsm[name]
        digest.update(np.ascontiguousarray(embedding[cells]).view(np.uint8))
    return digest.hexdigest()[:16]


def digested(answer: Any, *, ordered: bool = True) -> Figures:
    """Digest a count or an AnnData; the order of its rows too, where it matters."""
    if isinstance(answer, int):
        return {"n_obs": answer}
    found = {"n_obs": answer.n_obs, "rest": digest_rest(answer)}
    if answer.X is not None:
        found["x"] = digest_x(answer.X, answer.obs_names)
    return found | ({"names": zlib.crc32("\n".join(answer.obs_names).encode())} if ordered else {})


def _measured_query(query: Callable[[], ad.AnnData]) -> Figures:
    result, figures = timed(query, 1, REPEATS)
    digests = {"x": digest_x(result.X, result.obs_names), "rest": digest_rest(result)}
    return figures | {"n_obs": result.n_obs, "digests": digests}


def make_source(job: Job) -> Figures:
    """Write the synthetic H5AD."""
    from benchmarks import synthetic

    part = job.source.with_suffix(".part")
    _, figures = timed(lambda: synthetic.make(part, job.n_obs, job.n_vars), 0, 1)
    part.rename(job.source)
    return figures


def _convert(job: Job, dest: Path, *, gene_major: bool) -> Figures:
    shutil.rmtree(dest, ignore_errors=True)
    import lobster_zarr as lz

    def convert() -> object:
        return lz.convert(str(job.source), str(dest), sort_by=["cell_type"], gene_major=gene_major, progress=False)

    _, figures = timed(convert, 0, 1)
    return figures | stored(dest)


def stored(path: Path) -> Figures:
    """Count the objects of a store, or of a file, and their bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {"n_objects": len(files), "stored_bytes": sum(file.stat().st_size for file in files)}


def convert_rows(job: Job) -> Figures:
    """Convert without the gene-major companion."""
    return _convert(job, job.rows_store, gene_major=False)


def convert_genes(job: Job) -> Figures:
    """Convert with the gene-major companion."""
    return _convert(job, job.genes_store, gene_major=True)


def query_source(job: Job) -> Figures:
    """Take the cells out of the H5AD itself, backed: what all the others must agree with."""
    import anndata as ad

    def query() -> ad.AnnData:
        adata = ad.read_h5ad(job.source, backed="r")
        return adata[(adata.obs["cell_type"] == CELL_TYPE).to_numpy()].to_memory()

    return _measured_query(query)


def query_lobster(job: Job) -> Figures:
    """Query the store with this package."""
    import lobster_zarr as lz

    return _measured_query(lambda: lz.open(str(job.rows_store)).query(f"cell_type == '{CELL_TYPE}'").to_memory())


def query_read_lazy(job: Job) -> Figures:
    """Take the cells with AnnData's `read_lazy`."""
    import numpy as np
    from anndata.experimental import read_lazy

    def query() -> ad.AnnData:
        lazy = read_lazy(str(job.rows_store))
        return lazy[np.asarray(lazy.obs["cell_type"] == CELL_TYPE)].to_memory()

    return _measured_query(query)


def query_sparse_dataset(job: Job) -> Figures:
    """Take X alone with AnnData's `sparse_dataset`."""
    import anndata as ad
    import numpy as np
    import zarr

    def query() -> tuple[Any, Any]:
        group = zarr.open_group(str(job.rows_store), mode="r", zarr_format=3)
        mask = np.asarray(ad.io.read_elem(group["obs/cell_type"]) == CELL_TYPE)
        return ad.io.sparse_dataset(group["X"])[mask], mask

    (x, mask), figures = timed(query, 1, REPEATS)
    obs: Any = ad.io.read_elem(zarr.open_group(str(job.rows_store), mode="r", zarr_format=3)["obs"])
    return figures | {"n_obs": x.shape[0], "digests": {"x": digest_x(x, obs.index[mask])}}


STEPS: dict[str, tuple[str, Callable[[Job], Figures]]] = {
    "make": ("make the H5AD", make_source),
    "convert_rows": ("convert, sorted by cell_type", convert_rows),
    "convert_genes": ("convert, with the gene-major companion", convert_genes),
    "query_lobster": (f"query {CELL_TYPE!r}: lobster_zarr", query_lobster),
    "query_read_lazy": (f"query {CELL_TYPE!r}: anndata read_lazy", query_read_lazy),
    "query_sparse_dataset": (f"query {CELL_TYPE!r}: anndata sparse_dataset, X only", query_sparse_dataset),
    "query_source": (f"query {CELL_TYPE!r}: anndata backed H5AD", query_source),
}
