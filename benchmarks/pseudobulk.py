"""Pseudobulk by cell type: aggregated block by block, against read into memory and then summed.

Knows the ways to the same sums, and runs each in a process of its own, from local disk and over S3 on
a shaped line. Must not know how the line is shaped (`benchmarks.network`). Linux only (peak memory).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing as mp
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.network import shaped_s3
from benchmarks.questions import PROFILES, prepare, stored_at
from benchmarks.steps import REPEATS, Figures, Job, timed

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

BY = "cell_type"
X_ONLY: dict[str, Any] = {"obs_columns": [BY], "layers": [], "obsm": [], "uns": False}
LOCAL = "local disk"
CAP_SECONDS = 600
type Place = tuple[Any, Any, dict[str, Any]]  # URI, Zarr store of other readers, options of `open`


def _query(place: Place, **options: Any) -> Any:
    import lobster_zarr as lz

    return lz.open(place[0], **place[2]).query(None, **X_ONLY, **options)


def aggregate(place: Place) -> np.ndarray:
    """Sum while it is read."""
    sums: np.ndarray = _query(place).aggregate(BY).X
    return sums


def aggregate_all(place: Place) -> np.ndarray:
    """Sum, and compute mean, variance and counts too."""
    sums: np.ndarray = _query(place).aggregate(BY, ["sum", "mean", "var", "count_nonzero"]).layers["sum"]
    return sums


def _summed(adata: Any) -> np.ndarray:
    from scipy import sparse

    codes = adata.obs[BY].cat.codes.to_numpy()
    indicator = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums: np.ndarray = (indicator @ adata.X).toarray()
    return sums


def read_then_sum(place: Place) -> np.ndarray:
    """Read everything, as `to_memory` does unless told otherwise, then sum."""
    return _summed(_query(place).to_memory())


def read_stored_then_sum(place: Place) -> np.ndarray:
    """Read everything in the order of storage, the quickest way to have it, then sum."""
    return _summed(_query(place, order="storage").to_memory())


def read_lazy_then_scanpy(place: Place) -> np.ndarray:
    """Read lazily with AnnData, and aggregate the dask array with scanpy."""
    import anndata as ad
    import scanpy as sc
    import zarr
    from anndata.experimental import read_lazy

    group: Any = zarr.open_group(place[1], mode="r", zarr_format=3)
    obs = {BY: ad.io.read_elem(group[f"obs/{BY}"])}
    found = sc.get.aggregate(ad.AnnData(read_lazy(group).X, obs=obs), BY, "sum").layers["sum"]
    sums: np.ndarray = found.compute() if hasattr(found, "compute") else found
    return sums


WAYS: dict[str, Callable[[Place], np.ndarray]] = {
    "aggregate": aggregate,
    "aggregate, 4 statistics": aggregate_all,
    "to_memory, then sum": read_then_sum,
    "to_memory(order='storage'), then sum": read_stored_then_sum,
    "read_lazy, scanpy.get.aggregate": read_lazy_then_scanpy,
}


def measure_here(pipe: Connection, way: str, place: Place, repeats: int) -> None:
    """In a process of its own: answer from a store opened anew each time."""
    import warnings

    import lobster_zarr.query  # noqa: F401 - imports are not part of it

    if "scanpy" in way:
        import scanpy as sc  # noqa: F401

    warnings.simplefilter("ignore")
    sums, figures = timed(lambda: WAYS[way](place), 0, repeats)
    rounded = np.asarray(sums, np.float64).round(3)  # counts: sums of them are whole
    pipe.send(figures | {"digest": hashlib.sha256(np.ascontiguousarray(rounded)).hexdigest()[:16]})


def measure(way: str, place: Place, repeats: int) -> Figures:
    """Return the figures of one way; ``{"error": ...}`` where it failed or took too long."""
    pipe, theirs = mp.Pipe()
    process = mp.get_context("spawn").Process(target=measure_here, args=(theirs, way, place, repeats), daemon=True)
    process.start()
    theirs.close()
    try:
        figures: Figures = pipe.recv() if pipe.poll(CAP_SECONDS) else {"error": f"> {CAP_SECONDS}"}
    except EOFError:
        figures = {"error": "failed"}
    finally:
        process.kill()
        process.join()
    return figures


def measure_line(job: Job, line: str, repeats: int) -> dict[str, Figures]:
    """Run every way from one place."""
    import lobster_zarr as lz

    path = stored_at(job, "sorted")
    if line == LOCAL:
        return {way: measure(way, (str(path), str(path), {}), repeats) for way in WAYS}
    latency_seconds, bandwidth_bits = PROFILES[line]
    with shaped_s3(job.data, latency_seconds, bandwidth_bits) as server:
        import zarr

        options = {
            "storage_options": server.storage_options,
            "network": lz.Network(latency_seconds, bandwidth_bits / 8),
        }
        theirs = zarr.storage.ObjectStore(server.store("queries", path.name), read_only=True)
        return {way: measure(way, (f"s3://queries/{path.name}", theirs, options), repeats) for way in WAYS}


def table(title: str, found: dict[str, Figures]) -> Table:
    """Return the figures as a table, a row a way, beside the first."""
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("way", "s", "times", "first s", "CPU s", "peak MB", "(before)", "answer"):
        shown.add_column(heading, no_wrap=True, justify="left" if heading in ("way", "answer") else "right")
    own = found["aggregate"]
    for way, f in found.items():
        if "error" in f:
            shown.add_row(way, f["error"])
            continue
        seconds = (
            f"{f['seconds']:.2f}",
            f"{f['seconds'] / own.get('seconds', math.nan):.1f}",
            f"{f['all_seconds'][0]:.2f}",
        )
        memory = (f"{f['peak_bytes'] / 1e6:,.0f}", f"{f['before_bytes'] / 1e6:,.0f}")
        verdict = "agrees" if f["digest"] == own.get("digest") else "DIFFERS"
        shown.add_row(way, *seconds, f"{f['cpu_seconds']:.2f}", *memory, verdict)
    return shown


def main() -> int:
    """Measure and print a table a line; status 1 if an answer differs, or reading first is better in anything."""
    parser = argparse.ArgumentParser(description="Measure pseudobulk against reading into memory first.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="10,000 cells instead of 100,000")
    parser.add_argument("--line", choices=[LOCAL, *PROFILES], help="measure this one alone")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    job, console = Job(args.data.resolve(), 10_000 if args.quick else 100_000, 20_000), Console()
    prepare(job)
    console.width = max(console.width, 120)  # piped output has no width of its own
    report, wrong = {}, False
    for line in [args.line] if args.line else [LOCAL, *PROFILES]:
        report[line] = found = measure_line(job, line, args.repeats)
        console.print(table(f"{line}; {job.n_obs:,} x {job.n_vars:,}; load {os.getloadavg()[0]:.1f}", found))
        own = found["aggregate"]
        first = [f for way, f in found.items() if way.startswith("to_memory")]
        wrong |= any(f.get("digest") != own.get("digest") for f in found.values())
        wrong |= any(f[key] <= own[key] for f in first for key in ("seconds", "peak_bytes") if key in f and key in own)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, default=float) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
