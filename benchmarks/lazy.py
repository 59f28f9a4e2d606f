"""What the lazy AnnData costs: highly variable genes in bounded memory, and subsets against direct queries.

Knows the questions and how each is answered by this package and by anndata's `read_lazy`. Must not
know how the line is shaped (`benchmarks.network`) or how the data is made (`benchmarks.synthetic`).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.asking import in_process
from benchmarks.network import shaped_s3
from benchmarks.questions import QUESTIONS, prepare, stored_at
from benchmarks.steps import CELL_TYPE, Figures, Job, digest_x, make_source, timed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LATENCY_SECONDS, BANDWIDTH_BITS = 0.02, 100e6
MOST_BYTES, MOST_RATIO = 1.5e9, 1.2
READERS = ("lobster_zarr", "read_lazy")
SUBSETS = {"T cells": "T cells", "50 genes x T cells": "50 genes x T cells"}


def big_store(data: Path, n_obs: int) -> Path:
    """Make the store for the genes, sorted by cell type, where it is absent."""
    import lobster_zarr as lz

    job = Job(data, n_obs, 20_000)
    store = job.source.with_suffix(".zarr")
    if not store.exists():
        if not job.source.exists():
            make_source(job)
        lz.convert(job.source, store, sort_by=["cell_type"], gene_major=False, progress=False)
    return store


def variable_genes(pipe: Connection, store: Path, reader: str) -> None:
    """In a process of its own: normalise, log, and find highly variable genes."""
    import numpy as np
    import scanpy as sc
    from anndata.experimental import read_lazy

    import lobster_zarr as lz

    warnings.simplefilter("ignore")

    def work() -> Any:
        adata = lz.open(store).to_lazy(order="storage") if reader == "lobster_zarr" else read_lazy(store)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=2_000)
        return np.flatnonzero(adata.var["highly_variable"])

    genes, figures = timed(work, 0, 1)
    pipe.send(figures | {"genes": genes.tolist()})


def subset(pipe: Connection, uri: str, options: Figures, name: str, verb: str) -> None:
    """In a process of its own: a query, or the same cells and genes of the lazy AnnData."""
    import numpy as np

    import lobster_zarr as lz
    import lobster_zarr.lazy  # imports are not part of a query

    question = QUESTIONS[name]
    network = lz.Network(LATENCY_SECONDS, BANDWIDTH_BITS / 8)
    data = lz.open(uri, options, network=network)
    genes = question.genes(data.query(X=False, obsm=[], uns=False).to_memory().var_names)
    pipe.send(None)
    pipe.recv()
    data = lz.open(uri, options, network=network)
    if verb == "query":
        answer, figures = timed(lambda: data.query(f"cell_type == '{CELL_TYPE}'", genes).to_memory(), 0, 1)
    else:
        lazy = data.to_lazy()
        pipe.send(None)
        pipe.recv()

        def lazily() -> Any:
            mask = np.asarray(lazy.obs["cell_type"] == CELL_TYPE)
            return lazy[mask][:, genes or slice(None)].to_memory()

        answer, figures = timed(lazily, 0, 1)
    pipe.send(figures | {"x": digest_x(answer.X, answer.obs_names)})


def measure_subsets(job: Job) -> dict[str, dict[str, Figures]]:
    """Measure each subset both ways through a shaped line; requests and bytes as the server saw them."""
    found: dict[str, dict[str, Figures]] = {}
    with shaped_s3(job.data, LATENCY_SECONDS, BANDWIDTH_BITS) as server:
        for name in SUBSETS:
            uri = f"s3://queries/{stored_at(job, 'sorted').name}"
            for verb in ("query", "lazy"):
                figures = in_process(subset, uri, server.storage_options, name, verb, reset=server.reset)
                seen = server.counters()
                figures |= {"n_requests": seen.n_requests, "n_bytes": seen.body_bytes}
                found.setdefault(name, {})[verb] = figures
    return found


def main() -> int:
    """Measure, print the tables and the bars; status 1 where answers differ."""
    parser = argparse.ArgumentParser(description="Measure the lazy AnnData.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--n-obs", type=int, default=500_000, help="cells of the store for variable genes")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    data, console = args.data.resolve(), Console(width=120)
    job, store = Job(data, 100_000, 20_000), big_store(data, args.n_obs)
    prepare(job)

    genes = {reader: in_process(variable_genes, store, reader) for reader in READERS}
    shown = Table(title=f"Highly variable genes, {args.n_obs:,} x 20,000")
    for heading in ("reader", "s", "peak MB"):
        shown.add_column(heading, justify="left" if heading == "reader" else "right")
    for reader, f in genes.items():
        shown.add_row(reader, f"{f['seconds']:.1f}", f"{f['peak_bytes'] / 1e6:,.0f}")
    console.print(shown)

    subsets = measure_subsets(job)
    shown = Table(title="Subsets at 20 ms, 100 Mbit/s")
    for heading in ("cells and genes", "way", "s", "requests", "MB"):
        shown.add_column(heading, justify="left" if heading in ("cells and genes", "way") else "right")
    for name, ways in subsets.items():
        for way, f in ways.items():
            shown.add_row(name, way, f"{f['seconds']:.2f}", str(f["n_requests"]), f"{f['n_bytes'] / 1e6:.2f}")
    console.print(shown)

    own = genes["lobster_zarr"]["peak_bytes"]
    console.print(
        f"{'pass' if own <= MOST_BYTES else 'FAIL'}  peak memory of variable genes: {own / 1e9:.2f} <= 1.5 GB"
    )
    for name, ways in subsets.items():
        for figure in ("n_requests", "n_bytes"):
            ratio = ways["lazy"][figure] / ways["query"][figure]
            console.print(f"{'pass' if ratio <= MOST_RATIO else 'FAIL'}  {name}: {figure} lazy / query: {ratio:.2f}")
    if args.json:
        args.json.write_text(json.dumps({"genes": genes, "subsets": subsets}, indent=1, default=float) + "\n")
    same = genes["lobster_zarr"]["genes"] == genes["read_lazy"]["genes"]
    return int(not same or any(len({f["x"] for f in ways.values()}) > 1 for ways in subsets.values()))


if __name__ == "__main__":
    sys.exit(main())
