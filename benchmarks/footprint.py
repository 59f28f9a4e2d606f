"""How large a store is, and what a question must read of it, for any number of cells: on paper.

Takes chunks and shards from `lobster_zarr.layout`, and encoded bytes a value from the store of 100,000 × 20,000
cells × genes of the other benchmarks. Reads nothing. A test holds it against stores that were written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lobster_zarr.layout import ROW_MAJOR_CHUNK, dense_grid, gene_major_chunk, sparse_grid

VALUES_PER_ROW = 1_736
N_VARS = 20_000
N_OBSM = 52
# Encoded bytes a value, of the store sorted by cell type; pcodec, level 8.
ENCODED_BYTES = {
    "X/data": 0.289, "X/indices": 0.627, "X/indptr": 1.41, "X/_lobster_zarr_index": 1.37,
    "X/csc/data": 0.217, "X/csc/indices": 0.392, "X/csc/indptr": 1.81, "X/csc/_lobster_zarr_index": 1.03,
    "X/csc/_lobster_zarr_first": 2.13, "obs/_index": 6.25, "obs/_lobster_zarr_source_order": 0.65,
    "obs/cell_type": 0.009, "obs/donor": 0.44, "obs/batch": 0.33, "obs/n_counts": 1.66, "obs/pct_mito": 3.17,
    "obsm": 3.31,
}  # fmt: skip
STORAGE_DOLLARS = 0.023 / 1e9  # a byte and month


@dataclass(frozen=True)
class Array:
    """One array of a store: its length, in how many chunks and objects it lies, and its encoded bytes."""

    n_values: int
    n_chunks: int
    n_objects: int
    n_bytes: float


def array(path: str, shape: tuple[int, ...], chunk: int | None = None) -> Array:
    """Return what an array of the layout takes; `chunk` that of a sparse half."""
    grid = sparse_grid(shape[0], chunk) if chunk else dense_grid(shape)
    n_values = math.prod(shape)
    n_chunks, n_objects = (
        math.prod(math.ceil(n / part) for n, part in zip(shape, parts, strict=True))
        for parts in (grid.chunk, grid.shard)
    )
    return Array(n_values, n_chunks, n_objects, n_values * ENCODED_BYTES[path])


def arrays(n_obs: int, n_vars: int = N_VARS, values_per_row: float = VALUES_PER_ROW) -> dict[str, Array]:
    """Return the arrays that grow with the cells, of a sorted store with both layouts."""
    nnz = round(n_obs * values_per_row)
    by_gene = gene_major_chunk(nnz)
    x_chunks, csc_chunks = (max(1, math.ceil(nnz / chunk)) for chunk in (ROW_MAJOR_CHUNK, by_gene))
    found = {f"X/{half}": array(f"X/{half}", (nnz,), ROW_MAJOR_CHUNK) for half in ("data", "indices")}
    found |= {f"X/csc/{half}": array(f"X/csc/{half}", (nnz,), by_gene) for half in ("data", "indices")}
    lengths = {
        "X/indptr": n_obs + 1,
        "X/_lobster_zarr_index": n_obs + 2 * x_chunks,
        "X/csc/indptr": n_vars + 1,
        "X/csc/_lobster_zarr_index": n_vars + 2 * csc_chunks + n_obs,
        "X/csc/_lobster_zarr_first": csc_chunks,
    }
    lengths |= {path: n_obs for path in ENCODED_BYTES if path.startswith("obs/")}
    return found | {p: array(p, (n,)) for p, n in lengths.items()} | {"obsm": array("obsm", (n_obs, N_OBSM))}


def described(n_obs: int) -> dict[str, float]:
    """Return what a store of so many cells is: objects, bytes, what a question must read to find its answer."""
    held = arrays(n_obs)
    n_bytes = sum(a.n_bytes for a in held.values())
    of_genes = held["X/csc/_lobster_zarr_index"].n_values - n_obs  # without the source order
    return {
        "n_objects": sum(a.n_objects for a in held.values()),
        "n_bytes": n_bytes,
        "index_bytes": held["X/_lobster_zarr_index"].n_bytes,
        "gene_index_bytes": of_genes * ENCODED_BYTES["X/csc/_lobster_zarr_index"],
        "name_bytes": held["obs/_index"].n_bytes,
        "zone_rows": dense_grid((n_obs,)).chunk[0],
        "dollars": n_bytes * STORAGE_DOLLARS,
    }


def human(n_bytes: float) -> str:
    """Return bytes as a person reads them, to two digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.2g} {unit}" if n_bytes < 9.95 else f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2g} TB"


def paper_rows() -> list[str]:
    """Return the table of docs/scaling.md."""
    rows = []
    for power in range(5, 10):
        d = described(10**power)
        cells = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))
        sizes = [human(d[k]) for k in ("n_bytes", "index_bytes", "gene_index_bytes", "name_bytes")]
        rows.append(
            f"| 10{cells} | {d['n_objects']:,.0f} | {' | '.join(sizes)} | {d['zone_rows']:,} | {d['dollars']:,.2f} |"
        )
    return rows


if __name__ == "__main__":
    print(*paper_rows(), sep="\n")
