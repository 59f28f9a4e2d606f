"""What a conversion takes in one process, and on a cluster of one and of two worker processes.

Knows how each is run: sorted, with the gene-major companion, from and to local disk, in a process of its
own. Every store is compared with the first, object by object. Linux only (peak memory comes from /proc).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import lobster_zarr as lz


def digest(store: Path) -> str:
    """Return a hash of the keys and contents of all objects."""
    total = hashlib.sha256()
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(store)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    from lobster_zarr.report import peak_memory_bytes

    return peak_memory_bytes()


def convert(source: Path, dest: Path, n_workers: int) -> dict[str, float | str]:
    """Convert in this process, or on a cluster that has done nothing yet but its imports."""
    options = {"sort_by": ["cell_type"], "gene_major": True, "progress": False}
    if not n_workers:
        cpu = time.process_time()
        report = lz.convert(source, dest, client=False, **options)
        cpu = time.process_time() - cpu
        return {"seconds": report.seconds, "cpu": cpu, "client": peak_bytes(), "worker": 0, "digest": digest(dest)}
    from distributed import Client, LocalCluster

    workers = {"n_workers": n_workers, "threads_per_worker": 1, "processes": True}
    with LocalCluster(**workers, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        client.run(_import)
        cpu = sum(client.run(time.process_time).values())
        report = lz.convert(source, dest, client=client, **options)
        cpu = sum(client.run(time.process_time).values()) - cpu
        peak = max(client.run(peak_bytes).values())
    return {"seconds": report.seconds, "cpu": cpu, "client": peak_bytes(), "worker": peak, "digest": digest(dest)}


def _import() -> None:
    import lobster_zarr.tasks  # noqa: F401


def main() -> None:
    """Run each conversion in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description="Measure a conversion on a cluster.")
    parser.add_argument("source", type=Path, help="an H5AD of benchmarks.synthetic")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as folder:
        if args.run is not None:
            print(json.dumps(convert(args.source, Path(folder) / "a.zarr", args.run)))
            return
    shown = Table(title=f"{args.source.name}, sorted, with the companion; best of {args.repeats}")
    for heading in ("", "seconds", "against one worker", "CPU s", "peak MB, client", "peak MB, worker"):
        shown.add_column(heading, justify="right" if heading else "left")
    runs: dict[int, list[dict[str, float | str]]] = {0: [], 1: [], 2: []}
    for _ in range(args.repeats):  # by turns, so that what else the machine does befalls all alike
        for n_workers, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.cluster", str(args.source), "--run", str(n_workers)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = {n: min(float(r["seconds"]) for r in found) for n, found in runs.items()}
    for n_workers, found in runs.items():
        name = f"{n_workers} worker{'s' * (n_workers > 1)}" if n_workers else "no cluster"
        peaks = [f"{max(float(r[of]) for r in found) / 1e6:,.0f}" for of in ("client", "worker")]
        ratio, cpu = seconds[1] / seconds[n_workers], statistics.median(float(r["cpu"]) for r in found)
        shown.add_row(name, f"{seconds[n_workers]:.1f}", f"{ratio:.2f}×", f"{cpu:.1f}", *peaks)
    Console(width=100).print(shown)
    assert len({r["digest"] for found in runs.values() for r in found}) == 1, "the stores differ"


if __name__ == "__main__":
    main()
