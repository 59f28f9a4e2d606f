"""The figures of the main job: convert an H5AD once, then take one cell type out of it.

Runs every one of `benchmarks.steps` in a fresh process, compares what the queries returned with what
the H5AD itself gives, and prints one table. Must not know how any step works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.steps import STEPS, Figures, Job


def run_step(job: Job, name: str) -> Figures:
    """Run one step in a fresh process; a step that fails gives ``{"error": ...}``."""
    shape = ["--n-obs", str(job.n_obs), "--n-vars", str(job.n_vars)]
    command = [sys.executable, "-m", "benchmarks.main_job", "--data", str(job.data), *shape, "--step", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def disagreements(steps: dict[str, Figures]) -> list[str]:
    """Names of the queries whose digests differ from those of the H5AD itself."""
    queries = {name: step["digests"] for name, step in steps.items() if "digests" in step}
    truth: Figures = queries.get("query_source") or next(iter(queries.values()), {})
    return [name for name, digests in queries.items() if any(truth[k] != v for k, v in digests.items())]


def _verdict(name: str, figures: Figures, disagreeing: list[str]) -> str:
    if "digests" not in figures or name == "query_source":
        return ""
    return "DIFFERS" if name in disagreeing else "agrees"


def table(report: Figures) -> Table:
    """Return the report as a table, a row a step."""
    shown = Table(title=f"{report['n_obs']:,} x {report['n_vars']:,}, H5AD {report['source_bytes'] / 1e6:,.1f} MB")
    shown.add_column("step", no_wrap=True)
    for heading in ("seconds", "CPU s", "peak MB", "(before)", "cells", "stored MB", "of the H5AD"):
        shown.add_column(heading, justify="right")
    shown.add_column("result")
    for name, figures in report["steps"].items():
        title = STEPS[name][0]
        if "error" in figures:
            shown.add_row(title, *[""] * 7, f"failed: {figures['error']}", style="red")
            continue
        stored_bytes = figures.get("stored_bytes")
        shown.add_row(
            title,
            f"{figures['seconds']:.2f}",
            f"{figures['cpu_seconds']:.2f}",
            f"{figures['peak_bytes'] / 1e6:,.0f}",
            f"{figures['before_bytes'] / 1e6:,.0f}",
            f"{figures['n_obs']:,}" if "n_obs" in figures else "",
            f"{stored_bytes / 1e6:,.1f}" if stored_bytes else "",
            f"{stored_bytes / report['source_bytes']:.1%}" if stored_bytes else "",
            _verdict(name, figures, report["disagreements"]),
        )
    return shown


def _machine() -> Figures:
    packages = ("anndata", "zarr", "numcodecs", "numpy", "scipy", "h5py")
    return {"cpus": os.cpu_count(), "python": platform.python_version()} | {p: version(p) for p in packages}


def run(job: Job) -> Figures:
    """Run every step, making the data only where it is absent, and return the report."""
    job.data.mkdir(parents=True, exist_ok=True)
    names = [name for name in STEPS if name != "make" or not job.source.exists()]
    steps = {name: run_step(job, name) for name in names}
    return {
        "n_obs": job.n_obs,
        "n_vars": job.n_vars,
        "machine": _machine(),
        "source_bytes": job.source.stat().st_size if job.source.exists() else 0,
        "steps": steps,
        "disagreements": disagreements(steps),
    }


def main() -> int:
    """Run the job, or one step of it; status 1 if a step failed or disagrees with the source."""
    parser = argparse.ArgumentParser(description="Measure conversion and query against AnnData's own readers.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--n-obs", type=int, default=100_000)
    parser.add_argument("--n-vars", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--step", choices=STEPS, help="run this step alone, here, and print its figures")
    args = parser.parse_args()
    job = Job(args.data.resolve(), args.n_obs, args.n_vars)
    if args.step:
        print(json.dumps(STEPS[args.step][1](job)))
        return 0
    report = run(job)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    console = Console()
    # Piped output has no width of its own; 80 columns would break every figure.
    console.width = max(console.width, 170)
    console.print(table(report))
    return 1 if report["disagreements"] or any("error" in s for s in report["steps"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
