"""The table of Lobster AI's guide to its S3 backend, measured: write, read, list, metadata; and the T cells alone.

Knows the guide's file (36 samples, 30,000 genes, an H5AD of 180 MB), its line (100 Mbit/s) and its figures, and the
bars that are set beside them. Each run has a process of its own, imports done and what is to be written in memory;
it takes the calls that a user of the backends writes. Must not know how the line is shaped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.questions import BARRED, PROFILES
from benchmarks.steps import CELL_TYPE, Figures, digested
from benchmarks.verdict import judge, print_bars

if TYPE_CHECKING:
    from collections.abc import Callable

N_OBS, N_VARS, N_SAMPLES = 42_600, 30_000, 36
BUCKET, NAME = "lab", "gse180759"
STORE, BOTH, H5AD = f"{NAME}.zarr", f"{NAME}_both.zarr", f"{NAME}.h5ad"
WHERE = f"cell_type == '{CELL_TYPE}'"
REPEATS, CALLS = 3, 9
QUICK_OBS = 1_000


@dataclass(frozen=True)
class Way:
    """One row of the table; `guide` and `bar` are seconds."""

    title: str
    guide: float | None = None
    bar: float | None = None
    calls: int = 1
    """Of one process; the first is told by itself."""


WAYS = {
    "save": Way("write: save(adata, …zarr, sort_by, gene_major=False)", 14.5, 6.0),
    "save_both": Way("write: save(adata, …zarr, sort_by)", 14.5),
    "convert": Way("write: convert(file, …zarr, sort_by, gene_major=False)", 14.5),
    "upload": Way("write: upload(file, …h5ad)", 14.5),
    "load": Way("read: load(…zarr)", 12.1, 5.0),
    "load_file": Way("read: load(…h5ad)", 12.1),
    "list": Way("list: list_files('.')", 0.3, 0.15, CALLS),
    "metadata": Way("metadata: get_metadata(…zarr)", 0.2, 0.06, CALLS),
    "metadata_file": Way("metadata: get_metadata(…h5ad)", 0.2, 0.06, CALLS),
    "t_cells": Way("T cells: load(…zarr, where)", None, 1.0),
    "t_cells_file": Way("T cells: load(…h5ad, where)"),
}


def make(path: Path, n_obs: int) -> None:
    """Write the file as the guide's backend does: gzip, level 6. Counts, obs and var, as a deposited experiment has."""
    import numpy as np
    import pandas as pd

    from benchmarks.synthetic import make_adata
    from lobster_zarr.backends import H5ADBackend

    adata, rng = make_adata(n_obs, N_VARS), np.random.default_rng(1)
    samples = [f"sample_{i + 1}" for i in range(N_SAMPLES)]
    adata.obs["sample_id"] = pd.Categorical.from_codes(rng.integers(0, N_SAMPLES, n_obs), samples)
    del adata.obsm["X_pca"], adata.obsm["X_umap"], adata.uns["pca"]
    H5ADBackend(progress=False).save(adata, path)


def backend(options: Figures) -> Any:
    """Return the guide's backend, configured as the guide has it."""
    from lobster_zarr.backends import H5ADBackend

    made = H5ADBackend(base_path=None, progress=False)
    made.configure_s3(BUCKET, "us-east-1", options["key"], options["secret"], endpoint_url=options["endpoint_url"])
    return made


def prepared(way: str, source: Path, options: Figures) -> Callable[[], Any]:
    """Do what is not measured; return what is."""
    import anndata as ad

    import lobster_zarr as lz
    from lobster_zarr.backends import upload

    s3 = backend(options)
    adata = ad.read_h5ad(source) if way.startswith("save") else None
    settings = {"sort_by": "cell_type", "gene_major": False}
    file = {"storage_options": options, "overwrite": True, "progress": False, **settings}
    ways: dict[str, Callable[[], Any]] = {
        "save": lambda: s3.save(adata, STORE, **settings),
        "save_both": lambda: s3.save(adata, BOTH, sort_by="cell_type"),
        "convert": lambda: lz.convert(source, f"s3://{BUCKET}/{NAME}_file.zarr", **file),
        "upload": lambda: upload(source, f"s3://{BUCKET}/{H5AD}", options, progress=False),
        "load": lambda: s3.load(STORE),
        "load_file": lambda: s3.load(H5AD),
        "list": lambda: s3.list_files("."),
        "metadata": lambda: s3.get_metadata(STORE),
        "metadata_file": lambda: s3.get_metadata(H5AD),
        "t_cells": lambda: s3.load(STORE, where=WHERE),
        "t_cells_file": lambda: s3.load(H5AD, where=WHERE),
    }
    return ways[way]


def run_here(way: str, source: Path, options: Figures) -> Figures:
    """Measure one way in this process: seconds of each call, and what came back."""
    call, seconds, cpu = prepared(way, source, options), [], time.process_time()
    for _ in range(WAYS[way].calls):
        start = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - start)
    figures: Figures = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}
    if way.startswith(("load", "t_cells")):
        figures["digest"] = digested(answer)
    return figures


def measure(server: ShapedS3, way: str, source: Path, repeats: int) -> Figures:
    """Measure one way in processes of its own."""
    runs = []
    for _ in range(repeats):
        server.reset()
        command = [sys.executable, "-m", "benchmarks.guide", "--way", way, "--file", str(source)]
        told = subprocess.run(
            [*command, "--endpoint", server.endpoint], capture_output=True, text=True, check=False, timeout=600
        )
        if told.returncode:
            raise SystemExit(f"{way} failed:\n{told.stderr}")
        seen = server.counters()
        runs.append(json.loads(told.stdout) | {"n_requests": seen.n_requests / WAYS[way].calls})
        runs[-1] |= {"n_bytes": (seen.body_bytes + seen.received_bytes) / WAYS[way].calls}
    first = [run["seconds"][0] for run in runs]
    later = [s for run in runs for s in run["seconds"][1:]]
    return {
        "seconds": statistics.median(later or first),
        "first_seconds": statistics.median(first),
        "all_seconds": [run["seconds"] for run in runs],
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs) / WAYS[way].calls,
        "n_requests": runs[-1]["n_requests"],
        "n_bytes": runs[-1]["n_bytes"],
        "digests": [run.get("digest") for run in runs],
        "load": os.getloadavg()[0],
    }


def truths(source: Path) -> dict[str, Figures]:
    """Digest what the file, read into memory, holds."""
    import anndata as ad

    whole = ad.read_h5ad(source)
    part = whole[whole.obs["cell_type"] == CELL_TYPE]
    return {"load": digested(whole), "t_cells": digested(part)}


def table(found: dict[str, Figures], title: str) -> Table:
    """Return the guide's table with what was measured beside it."""
    shown = Table(title=title, box=SIMPLE, pad_edge=False)
    shown.add_column("", no_wrap=True)
    for heading in ("guide s", "measured s", "first call s", "CPU s", "requests", "MB", "line s", "load"):
        shown.add_column(heading, justify="right")
    latency, bits = PROFILES[BARRED]
    for way, f in found.items():
        row, least = WAYS[way], f["n_bytes"] * 8 / bits + latency
        told = (
            f"{f['seconds']:.3f}",
            f"{f['first_seconds']:.3f}",
            f"{f['cpu_seconds']:.2f}",
            f"{f['n_requests']:,.0f}",
        )
        guide = "" if row.guide is None else f"{row.guide}"
        shown.add_row(row.title, guide, *told, f"{f['n_bytes'] / 1e6:,.2f}", f"{least:.3f}", f"{f['load']:.1f}")
    return shown


def main() -> int:
    """Measure, print the table and the bars; status 1 if an answer differs."""
    parser = argparse.ArgumentParser(description="Measure the table of the S3 backend's guide.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_OBS:,} cells, one run each; no bars")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what is read was written before")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--way", choices=WAYS, help="measure this one here, once, against --endpoint")
    parser.add_argument("--file", type=Path, metavar="H5AD")
    parser.add_argument("--endpoint", metavar="URL")
    args = parser.parse_args()
    if args.way:
        options = {"key": "x", "secret": "x", "endpoint_url": args.endpoint}
        print(json.dumps(run_here(args.way, args.file, options)))
        return 0
    n_obs = QUICK_OBS if args.quick else N_OBS
    source = args.data.resolve() / f"guide_{n_obs}.h5ad"
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        make(source, n_obs)
    truth, found, differs = truths(source), {}, []
    with tempfile.TemporaryDirectory(dir=source.parent) as root:
        Path(root, BUCKET).mkdir()
        shutil.copyfile(source, Path(root, BUCKET, "other.h5ad"))
        with shaped_s3(root, *PROFILES[BARRED], writable=True) as server:
            for way in args.ways:
                found[way] = measure(server, way, source, 1 if args.quick else REPEATS)
                expected = truth.get(way.removesuffix("_file"))
                differs += [way for digest in found[way]["digests"] if digest is not None and digest != expected]
                print(way, f"{found[way]['seconds']:.3f}", file=sys.stderr, flush=True)
    console = Console()
    console.width = max(console.width, 130)
    size = source.stat().st_size / 1e6
    console.print(table(found, f"{n_obs:,} x {N_VARS:,}, H5AD {size:.1f} MB; {BARRED}"))
    judged = judge([(WAYS[w].title, f["seconds"], "<=", bar) for w, f in found.items() if (bar := WAYS[w].bar)])
    if not args.quick:
        print_bars(console, judged)
    if args.json:
        args.json.write_text(json.dumps({"source_bytes": size * 1e6, "ways": found, "bars": judged}, indent=1) + "\n")
    for way in differs:
        console.print(f"{way}: the answer DIFFERS from AnnData's", style="red")
    return int(bool(differs))


if __name__ == "__main__":
    sys.exit(main())
