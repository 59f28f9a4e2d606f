"""A deterministic synthetic single-cell experiment, in memory or as an H5AD of any size.

Knows the statistics of the data and how AnnData lays an H5AD out. Must not know the package
that is benchmarked on it. The same seed gives the same cells on every machine with the same NumPy.

Counts are Poisson(depth x probability), exactly: a cell draws Poisson(depth) molecules and each
molecule draws its gene from an alias table, so the cost follows the molecules (453 million for
100,000 cells) and not the matrix (2,000 million for 20,000 genes).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Name and share of the cells, in per mille.
CELL_TYPES = {
    "Naive CD4 T cell": 170, "CD14 monocyte": 140, "NK cell": 110, "B cell": 95, "Memory CD4 T cell": 88,
    "T cell": 77, "Naive CD8 T cell": 70, "CD8 T cell": 58, "Regulatory T cell": 46, "CD16 monocyte": 38,
    "Dendritic cell": 32, "Plasma cell": 26, "Platelet": 20, "pDC": 14, "Erythrocyte": 10, "HSC": 6,
}  # fmt: skip
MARKERS = ("CD3D", "CD3E", "MS4A1", "LYZ", "NKG7", "GNLY", "PPBP", "FCGR3A", "CST3")
N_DONORS, N_BATCHES, N_PCS = 8, 4, 50
DEPTH_MEDIAN, DEPTH_SIGMA = 4000.0, 0.5
# About 0.6 million molecules: the arrays of one draw stay in the processor's cache.
DRAW_ROWS = 128
# About 7 million non-zeros, 60 MB as CSR: what is held between two writes.
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Genes:
    """Alias tables of the gene distribution of each cell type, each of shape (n_types, n_vars)."""

    threshold: NDArray[np.float64]
    alias: NDArray[np.int32]


@dataclass
class Cells:
    """What is drawn per cell before any count, and the row sums that the counts add."""

    cell_type: NDArray[np.int8]
    depth: NDArray[np.float64]
    n_counts: NDArray[np.float32]


def _alias(probability: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vose's alias table: slot i is itself with chance threshold[i], else alias[i]. O(n)."""
    scaled = (probability * len(probability)).tolist()
    alias = list(range(len(scaled)))
    small = [i for i, p in enumerate(scaled) if p < 1.0]
    large = [i for i, p in enumerate(scaled) if p >= 1.0]
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low] = high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            small.append(large.pop())
    return np.minimum(scaled, 1.0), np.asarray(alias, dtype=np.int32)


def _genes(n_vars: int, rng: np.random.Generator) -> Genes:
    level = rng.lognormal(0.0, 2.2, n_vars) * rng.lognormal(0.0, 0.8, (len(CELL_TYPES), n_vars))
    tables = [_alias(row / row.sum()) for row in level]
    return Genes(np.stack([t for t, _ in tables]), np.stack([a for _, a in tables]))


def _cells(n_obs: int, rng: np.random.Generator) -> Cells:
    share = np.array(list(CELL_TYPES.values())) / 1000
    cell_type = rng.choice(len(share), size=n_obs, p=share).astype(np.int8)
    depth = rng.lognormal(np.log(DEPTH_MEDIAN), DEPTH_SIGMA, n_obs)
    return Cells(cell_type, depth, np.zeros(n_obs, dtype=np.float32))


def _counts(cells: Cells, rows: range, genes: Genes, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts of a few rows as float32 CSR with sorted int32 indices. O(molecules)."""
    n_vars = genes.threshold.shape[1]
    molecules = rng.poisson(cells.depth[rows.start : rows.stop])
    first_slot = np.repeat(cells.cell_type[rows.start : rows.stop].astype(np.int32) * n_vars, molecules)
    uniform = rng.random(len(first_slot)) * n_vars
    gene = uniform.astype(np.int32)
    uniform -= gene
    slot = first_slot + gene
    gene = np.where(uniform < genes.threshold.ravel()[slot], gene, genes.alias.ravel()[slot])
    gene += np.repeat(np.arange(len(rows), dtype=np.int32) * n_vars, molecules)
    gene.sort()
    first = np.flatnonzero(np.diff(gene, prepend=-1))
    counts = np.diff(first, append=len(gene)).astype(np.float32)
    row, column = np.divmod(gene[first], n_vars)
    indptr = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(np.bincount(row, minlength=len(rows)), out=indptr[1:])
    return sp.csr_matrix((counts, column.astype(np.int32), indptr), shape=(len(rows), n_vars))


def _blocks(cells: Cells, genes: Genes, rng: np.random.Generator) -> Iterator[sp.csr_matrix]:
    """Yield X in blocks of `BLOCK_ROWS` rows, filling `cells.n_counts` as they go."""
    n_obs = len(cells.depth)
    for start in range(0, n_obs, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n_obs)
        draws = (range(i, min(i + DRAW_ROWS, stop)) for i in range(start, stop, DRAW_ROWS))
        block = sp.vstack([_counts(cells, rows, genes, rng) for rows in draws], format="csr")
        cells.n_counts[start:stop] = np.asarray(block.sum(axis=1)).ravel()
        yield block


def _barcodes(n_obs: int) -> NDArray[np.object_]:
    """Return unique 16-letter barcodes: an odd multiplier permutes the 4^16 numbers."""
    number = (np.arange(n_obs, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(0x5EED)) % np.uint64(4**16)
    digits = (number[:, None] >> np.arange(0, 32, 2, dtype=np.uint64)) & np.uint64(3)
    letters = np.frombuffer(b"ACGT", dtype="S1")[digits.astype(np.intp)]
    return np.array([f"{b.decode()}-1" for b in letters.view("S16").ravel()], dtype=object)


def _obs(cells: Cells, rng: np.random.Generator) -> pd.DataFrame:
    n_obs = len(cells.depth)
    donors = [f"donor_{i + 1}" for i in range(N_DONORS)]
    batches = [f"batch_{i + 1}" for i in range(N_BATCHES)]
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cells.cell_type, list(CELL_TYPES)),
            "donor": pd.Categorical.from_codes(rng.integers(0, N_DONORS, n_obs), donors),
            "n_counts": cells.n_counts,
            "pct_mito": rng.beta(2.0, 30.0, n_obs).astype(np.float32),
            "batch": pd.Categorical.from_codes(rng.integers(0, N_BATCHES, n_obs), batches),
        },
        index=pd.Index(_barcodes(n_obs)),
    )


def _var(gene_sums: NDArray[np.float64], n_obs: int, rng: np.random.Generator) -> pd.DataFrame:
    n_vars = len(gene_sums)
    names = np.array([f"GENE{i + 1:05d}" for i in range(n_vars)], dtype=object)
    markers = MARKERS[:n_vars]
    names[rng.choice(n_vars, size=len(markers), replace=False)] = markers
    return pd.DataFrame({"mean": (gene_sums / max(n_obs, 1)).astype(np.float32)}, index=pd.Index(names))


def _obsm(cells: Cells, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    def cloud(n_columns: int, spread: float) -> NDArray[np.float32]:
        centre = rng.normal(0.0, spread, (len(CELL_TYPES), n_columns)).astype(np.float32)
        noise = rng.standard_normal((len(cells.depth), n_columns), dtype=np.float32)
        return noise + centre[cells.cell_type]

    return {"X_pca": cloud(N_PCS, 3.0), "X_umap": cloud(2, 8.0)}


def _uns(seed: int) -> dict[str, Any]:
    colors = np.array([f"#{(i * 0x0F1E2D + 0x1F77B4) % 0x1000000:06x}" for i in range(len(CELL_TYPES))], object)
    pca = {"params": {"n_comps": N_PCS, "zero_center": True}, "variance": np.linspace(9, 1, N_PCS)}
    return {"cell_type_colors": colors, "pca": pca, "synthetic": {"seed": seed}}


def _annotations(cells: Cells, gene_sums: NDArray[np.float64], seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """Every element but X, to be called once all of X was drawn."""
    obs, var = _obs(cells, rng), _var(gene_sums, len(cells.depth), rng)
    return {"obs": obs, "var": var, "obsm": _obsm(cells, rng), "uns": _uns(seed)}


def make_adata(n_obs: int, n_vars: int, seed: int = 0) -> ad.AnnData:
    """Make the experiment in memory; equal to what `make` writes for the same arguments.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes; at least 1 each.
    seed
        Of every random draw.

    Returns
    -------
    anndata.AnnData
        X is float32 CSR with int32 indices; about 14 kB a cell at 20,000 genes.
    """
    counts_rng, other_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    genes, cells = _genes(n_vars, other_rng), _cells(n_obs, other_rng)
    x = sp.vstack(list(_blocks(cells, genes, counts_rng)), format="csr")
    gene_sums = np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
    return ad.AnnData(X=x, **_annotations(cells, gene_sums, seed, other_rng))


def make(path: str | Path, n_obs: int, n_vars: int, seed: int = 0) -> int:
    """Write the experiment as H5AD out of core, gzip level 4 throughout as AnnData does it.

    Parameters
    ----------
    path
        File to create or replace.
    n_obs, n_vars
        Cells and genes; at least 1 each.
    seed
        Of every random draw.

    Returns
    -------
    int
        Non-zeros written. Memory is that of `BLOCK_ROWS` rows of counts and the obsm, under 1 GB;
        time is about 45 seconds for 100,000 x 20,000 on one core.
    """
    counts_rng, other_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    genes, cells = _genes(n_vars, other_rng), _cells(n_obs, other_rng)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        gene_sums = _write_x(file, _blocks(cells, genes, counts_rng), n_obs, n_vars)
        gzip = {"compression": "gzip", "compression_opts": 4}
        for name, element in _annotations(cells, gene_sums, seed, other_rng).items():
            ad.io.write_elem(file, name, element, dataset_kwargs=gzip)
        for name in ("layers", "obsp", "varm", "varp"):
            ad.io.write_elem(file, name, {})
        return int(file["X/data"].shape[0])


def _write_x(file: h5py.File, blocks: Iterator[sp.csr_matrix], n_obs: int, n_vars: int) -> NDArray[np.float64]:
    """Append the blocks to the group X and return the sum of every gene."""
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([n_obs, n_vars], dtype=np.int64)
    gene_sums, indptr, stored = np.zeros(n_vars), [np.zeros(1, dtype=np.int64)], 0
    for block in blocks:
        for name in ("data", "indices"):
            part = getattr(block, name)
            if name not in group:
                # h5py guesses its chunks from the shape: tell it the final one, as AnnData would.
                shape = (max(1, round(len(part) * n_obs / block.shape[0])),)
                group.create_dataset(name, shape, part.dtype, maxshape=(None,), compression="gzip")
            if (needed := stored + len(part)) > len(group[name]):
                group[name].resize((needed,))
            group[name][stored:needed] = part
        indptr.append(block.indptr[1:].astype(np.int64) + stored)
        stored += block.nnz
        gene_sums += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
    for name in ("data", "indices"):
        group[name].resize((stored,))
    rows = np.concatenate(indptr).astype(np.int32 if stored < 2**31 else np.int64)
    group.create_dataset("indptr", data=rows, maxshape=(None,), compression="gzip")
    return gene_sums


def main() -> None:
    """Run the command line: write one file and say what is in it."""
    parser = argparse.ArgumentParser(description="Write a synthetic single-cell H5AD.")
    parser.add_argument("out", metavar="OUT.h5ad")
    parser.add_argument("--n-obs", type=int, default=100_000)
    parser.add_argument("--n-vars", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    nnz = make(args.out, args.n_obs, args.n_vars, args.seed)
    seconds = time.perf_counter() - start
    with h5py.File(args.out) as file:
        size_bytes = file.id.get_filesize()
    print(
        f"{args.out}: {args.n_obs:,} x {args.n_vars:,}, {nnz:,} non-zeros ({nnz / args.n_obs:,.0f} a cell), "
        f"{size_bytes / 1e6:,.1f} MB ({size_bytes / nnz:.2f} bytes a non-zero), {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
