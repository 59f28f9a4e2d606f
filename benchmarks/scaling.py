"""Whether a question costs what its answer is, or what the store is: the same questions of ever larger stores.

Makes cheap stores (2,000 genes; 60 values a cell, 6 from five million cells on) in which one cell type
always has 1,000 cells. Knows the questions. Must not know how the line is shaped (`benchmarks.network`);
`benchmarks.footprint` goes on on paper.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

from benchmarks import markdown, plots
from benchmarks.asking import in_process
from benchmarks.network import shaped_s3
from benchmarks.questions import BARRED, PROFILES, X_ONLY
from benchmarks.steps import Figures, memory_bytes, stored, timed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SIZES = (10_000, 100_000, 1_000_000)
N_VARS, RARE = 2_000, 1_000
DRAWS, FEW_DRAWS, MANY_ROWS = 100, 10, 5_000_000  # fewer values a cell in a store of more rows
REPEATS = 3
QUESTIONS: dict[str, tuple[Any, Any, Figures]] = {
    "open": (None, None, {}),
    "count 1,000 cells": ("cell_type == 'rare'", None, {}),
    "1,000 cells of a type": ("cell_type == 'rare'", None, {}),
    "1,000 cells, 50 genes": ("cell_type == 'rare'", [f"gene-{i}" for i in range(0, N_VARS, 40)], {}),
    "1,000 scattered cells": ("scattered", None, {}),
    "8 % of the cells": ("cell_type == 'type 1'", None, {}),
    "one gene, all cells": (None, ["gene-7"], X_ONLY | {"order": "storage"}),
}
FIXED = ("open", "count 1,000 cells", "1,000 cells of a type", "1,000 cells, 50 genes", "1,000 scattered cells")


def make(n_obs: int) -> ad.AnnData:
    """Return cells of a rare and twelve other types in random order; their values spread evenly."""
    rng = np.random.default_rng(0)
    types = rng.integers(1, 13, n_obs).astype(np.int8)
    types[rng.choice(n_obs, RARE, replace=False)] = 0
    per_row = DRAWS if n_obs < MANY_ROWS else FEW_DRAWS
    step = N_VARS // per_row
    genes = rng.integers(0, step, (n_obs, per_row), np.int32)
    genes += np.arange(0, N_VARS, step, dtype=np.int32)
    depth = rng.uniform(0.2, 1, (n_obs, 1)).astype(np.float32)  # cells of one length would compress too well
    kept = rng.random(genes.shape, np.float32) < depth
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    counts = rng.geometric(0.4, indptr[-1]).astype(np.float32)
    x = sp.csr_matrix((counts, genes[kept], indptr), shape=(n_obs, N_VARS))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(types, ["rare", *(f"type {i}" for i in range(1, 13))]),
            "n_counts": np.asarray(x.sum(axis=1)).ravel(),
        },
        index=pd.Index(np.char.add("cell-", np.arange(n_obs).astype(str)).astype(object)),
    )
    return ad.AnnData(x, obs, pd.DataFrame(index=[f"gene-{i}" for i in range(N_VARS)]))


def prepare(pipe: Connection, path: Path, n_obs: int) -> None:
    """In a process of its own: make the cells and convert them."""
    import lobster_zarr as lz

    adata = make(n_obs)
    before = memory_bytes("VmHWM")
    _, figures = timed(lambda: lz.convert(adata, path, sort_by=["cell_type"], gene_major=True, progress=False), 0, 1)
    pipe.send(figures | stored(path) | {"made_bytes": before})


def ask(pipe: Connection, uri: str, options: Figures, name: str, n_obs: int) -> None:
    """In a process of its own: one question, three times, each of a store opened anew; the median seconds."""
    import lobster_zarr as lz
    import lobster_zarr.query  # imports are not part of a query

    (cells, genes, how), network = QUESTIONS[name], lz.Network(PROFILES[BARRED][0], PROFILES[BARRED][1] / 8)
    scattered = np.sort(np.random.default_rng(1).choice(n_obs, RARE, replace=False))
    rows = scattered if cells == "scattered" else cells

    def run() -> int:
        data = lz.open(uri, options, network=network)
        if name == "open":
            return int(data.n_obs)
        selection = data.query(rows, genes, **how)
        if name.startswith("count"):
            return int(selection.count())
        x: Any = selection.to_memory().X
        return int(x.nnz)

    seconds, before = [], memory_bytes("VmRSS")
    for _ in range(REPEATS):
        pipe.send(None)
        pipe.recv()
        answer, figures = timed(run, 0, 1)
        seconds.append(figures["seconds"])
    pipe.send(figures | {"answer": answer, "seconds": statistics.median(seconds), "before_bytes": before})


def truth(adata: ad.AnnData, name: str) -> int:
    """Return the count, or the values of X, that a question's answer has."""
    cells, genes, _ = QUESTIONS[name]
    scattered = np.sort(np.random.default_rng(1).choice(adata.n_obs, RARE, replace=False))
    mask: Any = slice(None) if cells is None else scattered
    if isinstance(cells, str) and cells != "scattered":
        mask = (adata.obs["cell_type"] == cells.split("'")[1]).to_numpy()
    if name in ("open", "count 1,000 cells"):
        return int(adata.obs.iloc[mask].shape[0])
    return int(adata[mask, genes or slice(None)].X.nnz)


def measure(data: Path, n_obs: int) -> Figures:
    """Ask everything of one store, made where it is absent."""
    path = data / "scaling" / f"{n_obs}.zarr"
    note = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not note.exists():
        note.write_text(json.dumps(in_process(prepare, path, n_obs)))
    found: Figures = {"n_obs": n_obs, "store": json.loads(note.read_text()), "questions": {}}
    adata = make(n_obs)
    with shaped_s3(data, *PROFILES[BARRED]) as server:
        for name in QUESTIONS:
            uri, options = f"s3://scaling/{path.name}", server.storage_options
            figures, seen = in_process(ask, uri, options, name, n_obs, reset=server.reset), server.counters()
            figures |= {"n_requests": seen.n_requests, "n_bytes": seen.body_bytes}
            found["questions"][name] = figures | {"agrees": figures["answer"] == truth(adata, name)}
            print(n_obs, name, figures["seconds"], file=sys.stderr, flush=True)
    return found


def table(found: list[Figures]) -> Table:
    """Return a row a question and store."""
    shown = Table(title=f"{BARRED}; load {os.getloadavg()[0]:.1f}")
    for heading in ("question", "cells in the store", "s", "requests", "MB", "memory", "answer"):
        shown.add_column(heading, justify="left" if heading == "question" else "right")
    for name in QUESTIONS:
        for of_store in found:
            f = of_store["questions"][name]
            cost = (f"{f['seconds']:.2f}", f"{f['n_requests']:,}", f"{f['n_bytes'] / 1e6:,.3f}", held(f))
            shown.add_row(name, f"{of_store['n_obs']:,}", *cost, "agrees" if f["agrees"] else "DIFFERS")
    return shown


def page_lines(found: list[Figures]) -> list[str]:
    """Return the table for the documentation: a row a question, its cost at each size."""
    rows = []
    for name in QUESTIONS:
        asked = [of_store["questions"][name] for of_store in found]
        rows.append(
            [name]
            + [f"{f['n_requests']:,}, {f['n_bytes'] / 1e6:.3g} MB, {f['seconds']:.2f} s, " + held(f) for f in asked]
        )
    return markdown.table(["", *(f"{of_store['n_obs']:,} cells" for of_store in found)], rows)


def held(figures: Figures) -> str:
    """Return the memory that a question took over what its process held before."""
    return f"{(figures['peak_bytes'] - figures['before_bytes']) / 1e6:,.0f} MB"


def draw(found: list[Figures], folder: Path) -> None:
    """Draw bytes, seconds and requests over the cells."""
    for key, unit, scale in (("n_bytes", "MB read", 1e6), ("seconds", "seconds", 1), ("n_requests", "requests", 1)):
        asked = {q: [(f["n_obs"], f["questions"][q][key] / scale) for f in found] for q in QUESTIONS if q != "open"}
        title, name = f"The same question of larger stores: {unit}", f"scaling-{plots.slug(key)}.svg"
        plots.lines(folder / name, title, unit, asked)


def main() -> int:
    """Measure, print, draw; status 1 where an answer is wrong."""
    parser = argparse.ArgumentParser(description="Ask the same of ever larger stores.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the figures there as SVG")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table into this page of Markdown")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    found = [measure(args.data.resolve(), n_obs) for n_obs in args.sizes]
    console = Console()
    console.width = max(console.width, 120)
    console.print(table(found))
    for of_store in found:
        f = of_store["store"]
        size = f"{f['n_objects']:,} objects, {f['stored_bytes'] / 1e6:,.1f} MB, converted in {f['seconds']:.1f} s"
        console.print(f"{of_store['n_obs']:,} cells: {size}", highlight=False)
    for name in FIXED:
        first, last = (of_store["questions"][name] for of_store in (found[0], found[-1]))
        growth = (
            f"bytes {last['n_bytes'] / first['n_bytes']:.1f}x, requests {last['n_requests'] / first['n_requests']:.1f}x"
        )
        console.print(f"{name}: {found[-1]['n_obs'] / found[0]['n_obs']:,.0f}x the cells, {growth}", highlight=False)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, default=float) + "\n")
    if args.page:
        markdown.fill(args.page, "scaling", page_lines(found))
    if args.plots:
        draw(found, args.plots)
    return int(any(not f["agrees"] for of_store in found for f in of_store["questions"].values()))


if __name__ == "__main__":
    sys.exit(main())
