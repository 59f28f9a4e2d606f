"""What a predicate reads of a table of ten million cells that is sorted by cell type.

Knows how to make the table and which questions to ask. Requests and bytes are as the package counts
them, and the same on every machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import lobster_zarr as lz

QUESTIONS = (
    "cell_type == 'T cell'",
    "cell_type == 'T cell' and n_counts > 20000",
    "n_counts > 20000",
    "cell_type in ['type 15', 'T cell'] and donor == 'd1'",
    "cell_type == 'nothing of the kind'",
)


def make(n_obs: int) -> ad.AnnData:
    """Return cells of 16 types of unequal size in random order, without X."""
    rng = np.random.default_rng(0)
    shares = np.sort(rng.dirichlet(np.ones(16)))[::-1]
    names = ["T cell", *(f"type {i}" for i in range(1, 16))]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(rng.choice(16, n_obs, p=np.roll(shares, 4)), names),
            "donor": pd.Categorical.from_codes(rng.integers(0, 8, n_obs), [f"d{i}" for i in range(8)]),
            "n_counts": rng.lognormal(np.log(4000), 0.5, n_obs).astype(np.int32),
            "pct_mito": rng.beta(2, 30, n_obs).astype(np.float32),
        },
        index=pd.Index(np.char.add("cell-", np.arange(n_obs).astype(str))),
    )
    return ad.AnnData(obs=obs)


def main() -> None:
    """Convert the table and print what each question costs."""
    parser = argparse.ArgumentParser(description="Measure what predicates read of a sorted table.")
    parser.add_argument("--n-obs", type=int, default=10_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as folder:
        path = Path(folder) / "cells.zarr"
        report = lz.convert(make(args.n_obs), path, sort_by=["cell_type"], progress=False)
        shown = Table(
            title=f"{args.n_obs:,} cells, {report.stored_bytes / 1e6:,.1f} MB; converted in {report.seconds:.1f} s"
        )
        for heading in ("question", "cells", "seconds", "requests", "kB read", "kB of its columns"):
            shown.add_column(heading, justify="left" if heading == "question" else "right")
        metadata_kb = (path / "zarr.json").stat().st_size / 1e3
        shown.add_row("open", "", "", "1", f"{metadata_kb:,.1f}", "")
        for question in QUESTIONS:
            dataset = lz.open(path)
            selection, start = dataset.query(question), time.perf_counter()
            n_cells = selection.count()
            seconds = time.perf_counter() - start
            whole = sum(n for p, n in report.arrays.items() if p.split("/")[1] in question)
            cost = (f"{selection.stats.n_requests}", f"{selection.stats.n_bytes / 1e3:,.1f}", f"{whole / 1e3:,.1f}")
            shown.add_row(question, f"{n_cells:,}", f"{seconds:.3f}", *cost)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
