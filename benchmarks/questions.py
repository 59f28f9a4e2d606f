"""The questions that the benchmarks ask, their true answers, and the bytes that answers must move.

Knows which cells and genes are asked for, where the stores of one source lie, and how a question is answered
in memory. Must not know who answers (`benchmarks.readers`), or how that is measured (`benchmarks.asking`).
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.steps import CELL_TYPE, Figures, Job, digested, make_source

if TYPE_CHECKING:
    from pathlib import Path

type Line = tuple[float, float]  # seconds to the first byte, bits a second
BARRED, FAST = "20 ms, 100 Mbit/s", "2 ms, 10 Gbit/s"
PROFILES: dict[str, Line] = {BARRED: (0.02, 100e6), FAST: (0.002, 10e9)}
X_ONLY = {"obs_columns": [], "var_columns": [], "obsm": [], "uns": False}


@dataclass(frozen=True)
class Question:
    """Which cells (``"all"``, ``"T"``, ``"5%"``), how many genes (None for all), and what of them."""

    cells: str
    n_genes: int | None = None
    verb: str = "to_memory"
    options: Figures = field(default_factory=dict)

    def genes(self, names: Any) -> list[str] | None:
        """CD3D and others of a fixed seed."""
        others = np.random.default_rng(1).permutation(sorted(set(names) - {"CD3D"}))
        return None if self.n_genes is None else ["CD3D", *map(str, others[: self.n_genes - 1])]

    def mask(self, types: np.ndarray) -> np.ndarray:
        """Which cells, in the order of their types (for ``"5%"``: that of the source)."""
        scattered = np.random.default_rng(0).random(len(types)) < 0.05
        asked: np.ndarray = {"all": np.ones(len(types), bool), "T": types == CELL_TYPE, "5%": scattered}[self.cells]
        return asked


QUESTIONS = {
    "open": Question("all", verb="open"),
    "count T cells": Question("T", verb="count"),
    "T cells": Question("T"),
    "T cells, X only": Question("T", options=X_ONLY),
    "one gene, storage": Question("all", 1, options=X_ONLY | {"order": "storage"}),
    "one gene, source": Question("all", 1, options=X_ONLY),
    "50 genes x T cells": Question("T", 50),
    "scattered 5 %": Question("5%"),
    "obs": Question("all", verb="to_pandas"),
    "whole store": Question("all"),
}


def stored_at(job: Job, store: str) -> Path:
    """Return where a store, or the H5AD, lies in the bucket ``queries``."""
    suffix = {"h5ad": "", "soma": "", "soma_sorted": "", "slaf": ""}.get(store, ".zarr")
    return job.data / "queries" / f"{job.source.stem}.{store}{suffix}"


def prepare_source(job: Job) -> None:
    """Make the H5AD where it is absent, and give it a name in the bucket."""
    h5ad = stored_at(job, "h5ad")
    h5ad.parent.mkdir(parents=True, exist_ok=True)
    if not job.source.exists():
        make_source(job)
    if not h5ad.exists():
        h5ad.symlink_to(job.source)


def prepare(job: Job, stores: tuple[str, ...] = ("sorted", "unsorted")) -> None:
    """Make the H5AD and this package's stores, each only where it is absent."""
    import lobster_zarr as lz

    prepare_source(job)
    for store in stores:
        if not stored_at(job, store).exists():
            sort_by = ["cell_type"] if store == "sorted" else []
            lz.convert(job.source, stored_at(job, store), sort_by=sort_by, gene_major=True, progress=False)


def opened(job: Job, store: str) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
    """Return a store's group from local disk, the source row of each row, its names, cell types and genes."""
    import anndata as ad
    import zarr

    group: Any = zarr.open_group(stored_at(job, store), mode="r")
    order, n_obs = "_lobster_zarr_source_order", group["X"].attrs["shape"][0]
    paths = ("obs/_index", "obs/cell_type", "var/_index")
    columns = {path: np.asarray(ad.io.read_elem(group[path]), object) for path in paths}
    return group, group[f"obs/{order}"][:] if order in group["obs"] else np.arange(n_obs), columns


def truths(job: Job, names: Any = QUESTIONS) -> dict[str, Figures]:
    """Digest the answers that the H5AD, read into memory and sliced, gives."""
    import anndata as ad

    source, found = ad.read_h5ad(job.source), {}
    for name in names:
        question = QUESTIONS[name]
        mask, genes = question.mask(source.obs["cell_type"].to_numpy()), question.genes(source.var_names)
        answer = source[mask, slice(None) if genes is None else genes]
        if question.verb == "to_pandas":
            answer = ad.AnnData(obs=answer.obs.copy())
        elif question.options:
            answer = ad.AnnData(answer.X, answer.obs[[]], answer.var[[]])
        found[name] = digested(int(mask.sum()) if question.verb == "count" else answer)
    return found


def agrees(truth: Figures, digests: Figures) -> bool:
    """Whether all that an answer holds is what the truth says of it."""
    return all(truth.get(k) == v for k, v in digests.items())


def asked_bytes(job: Job, name: str, store: str) -> dict[str, float]:
    """Encoded bytes of exactly the values asked for, by element; a chunk's are shared out among its values."""
    question, (group, order, columns) = QUESTIONS[name], opened(job, store)
    sizes, types, var = group.attrs["lobster_zarr"]["stored_bytes"], columns["obs/cell_type"], columns["var/_index"]
    rows = question.mask(types) if question.cells == "T" else question.mask(types)[order]

    def total(start: str) -> int:
        return sum(n for path, n in sizes.items() if path.startswith(start) and "_lobster_zarr_" not in path)

    if question.verb != "to_memory":
        metadata_bytes = (stored_at(job, store) / "zarr.json").stat().st_size
        parts = {"open": metadata_bytes, "count": total("obs/cell_type"), "to_pandas": total("obs/")}
        return {question.verb: parts[question.verb]}
    names, genes = "_index" if question.options else "", question.genes(var)
    picked = np.arange(len(var)) if genes is None else np.flatnonzero(np.isin(var, genes))
    asked = {"obs": total(f"obs/{names}") * rows.mean(), "var": total(f"var/{names}") * len(picked) / len(var)}
    asked |= {} if question.options else {"obsm": total("obsm/") * rows.mean(), "uns": total("uns/")}
    if genes is None:
        return asked | {"X": slice_bytes(group["X"])[rows].sum()}
    matrix, each = group["X/csc"], slice_bytes(group["X/csc"])
    cells = [matrix["indices"][slice(*matrix["indptr"][c : c + 2])] for c in picked]
    return asked | {"X": sum(each[c] * rows[s].mean() for c, s in zip(picked, cells, strict=True) if len(s))}


def slice_bytes(matrix: Any) -> np.ndarray:
    """Encoded bytes of every row of X, or of every gene of the companion."""
    indptr, n_chunks = matrix["indptr"][:], -(-matrix["data"].shape[0] // matrix["data"].chunks[0])
    if "_lobster_zarr_index" in matrix:
        sizes = matrix["_lobster_zarr_index"][len(indptr) - 1 : len(indptr) - 1 + 2 * n_chunks]
        chunks = sizes.reshape(2, -1).sum(axis=0)
    else:
        notes = (matrix[half].attrs["lobster_zarr"]["chunk_sizes"] for half in ("data", "indices"))
        chunks = sum(np.frombuffer(zlib.decompress(base64.b64decode(note)), "<u4") for note in notes)
    edges = np.minimum(np.arange(len(chunks) + 1) * matrix["data"].chunks[0], indptr[-1])
    return np.diff(np.interp(indptr, edges, np.concatenate(([0], np.cumsum(chunks, dtype=np.int64)))))


def limit_seconds(asked: dict[str, float], line: Line) -> float:
    """Return the least time that an answer can take: its encoded bytes, and three round trips."""
    return sum(asked.values()) * 8 / line[1] + 3 * line[0]
