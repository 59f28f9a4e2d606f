"""Rows per second of loaders for training: this package's, annbatch's, and random blocks with `read_lazy`.

Each in a process of its own, over one epoch or the first seconds of it, from local disk and over a shaped
loopback S3. annbatch runs under an interpreter of its own, or not at all; the versions that were compared:

    pip install annbatch==0.3.1 anndata==0.13.4 zarr==3.4.2 numcodecs[pcodec]==0.17.1 obstore==0.12.1 zarrs==0.2.3

Knows how each is asked for batches of 256 rows of X and their cell types. Must not know how the line is
shaped (`benchmarks.network`). Requests and bytes are as the server counted them. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

type Batches = Iterator[tuple[Any, np.ndarray]]  # X and the codes of the cell types

BATCH_ROWS, BLOCK_ROWS = 256, 1_000
CAP_SECONDS, SLOW_SECONDS, REPEATS = 20, 10, 3  # a run past the first is ended, one past the second not repeated
LINES: dict[str, tuple[float, float] | None] = {"local disk": None, "20 ms, 1 Gbit/s": (0.02, 1e9)}


def ours(at: dict[str, Any], order: Any = "source", **how: Any) -> Batches:
    """Load with this package, from an open store on."""
    import lobster_zarr as lz

    network = lz.Network(at["line"][0], at["line"][1] / 8) if at["line"] else None
    data = lz.open(at["uri"], storage_options=at["options"], network=network)
    for batch in data.query(order=order).loader(BATCH_ROWS, seed=0, labels=["cell_type"], **how):
        yield batch.X, batch.labels["cell_type"]


def group_of(at: dict[str, Any]) -> Any:
    """Open the store with zarr."""
    import zarr

    if at["line"] is None:
        return zarr.open_group(at["uri"], mode="r", zarr_format=3)
    from obstore.store import S3Store

    options: Any = {"access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
    bucket, _, prefix = at["uri"].removeprefix("s3://").partition("/")
    client: Any = {"allow_http": True}
    endpoint, style = at["options"]["endpoint_url"], {"virtual_hosted_style_request": False}
    remote = S3Store(bucket, prefix=prefix, endpoint=endpoint, client_options=client, **style, **options)
    return zarr.open_group(zarr.storage.ObjectStore(remote, read_only=True), mode="r", zarr_format=3)


def annbatch(at: dict[str, Any], pipeline: str | None = None, **how: Any) -> Batches:
    """Load with annbatch, through a codec pipeline of zarr's."""
    import anndata as ad
    import pandas as pd
    import zarr
    from annbatch import Loader

    if pipeline:
        zarr.config.set({"codec_pipeline.path": pipeline})
    group = group_of(at)
    obs = pd.DataFrame({"cell_type": ad.io.read_elem(group["obs/cell_type"])})
    loader: Any = Loader(batch_size=BATCH_ROWS, shuffle=True, rng=np.random.default_rng(0), **how)
    for batch in loader.add_dataset(ad.io.sparse_dataset(group["X"]), obs=obs):
        yield batch["X"], batch["obs"]["cell_type"].cat.codes.to_numpy()


def read_lazy(at: dict[str, Any]) -> Batches:
    """Read random contiguous blocks with anndata's `read_lazy`."""
    import anndata as ad
    from anndata.experimental import read_lazy

    group = group_of(at)
    lazy, codes = read_lazy(group), ad.io.read_elem(group["obs/cell_type"]).codes
    for start in np.random.default_rng(0).permutation(np.arange(0, lazy.n_obs, BLOCK_ROWS)).tolist():
        rows = slice(start, start + BLOCK_ROWS)
        yield lazy.X[rows].compute(), codes[rows]


ZARRS, FUSED = "zarrs.ZarrsCodecPipeline", "zarr.core.codec_pipeline.FusedCodecPipeline"
READERS: dict[str, tuple[Callable[..., Batches], dict[str, Any]]] = {
    "lobster_zarr": (ours, {}),
    "lobster_zarr, runs of 256": (ours, {"run_rows": 256}),
    "lobster_zarr, as annbatch": (ours, {"run_rows": 512, "buffer_bytes": "228MB"}),
    "lobster_zarr, storage order": (ours, {"shuffle": False, "order": "storage"}),
    "annbatch": (annbatch, {}),
    "annbatch, zarr's fused pipeline": (annbatch, {"pipeline": FUSED}),
    "annbatch, zarrs": (annbatch, {"pipeline": ZARRS}),
    "annbatch, zarrs, runs as lobster_zarr": (
        annbatch,
        {"pipeline": ZARRS, "chunk_size": 160, "preload_nchunks": 48},
    ),
    "read_lazy, 1,000 rows": (read_lazy, {}),
}


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def load(reader: str, at: dict[str, Any]) -> dict[str, Any]:
    """Consume an epoch, or what of it comes in time, and say how much that was and what was in it."""
    how = READERS[reader]
    if how[0] is ours:
        import lobster_zarr.query  # noqa: F401 - imports are not a part of loading
    else:
        import anndata.experimental  # noqa: F401
    cpu_start = cpu_seconds()
    start, n_rows, total, types = time.perf_counter(), 0, 0.0, np.zeros(256, np.int64)
    shares = []
    for x, codes in how[0](at, **how[1]):
        n_rows += x.shape[0]
        total += float(x.data.sum(dtype=np.float64))
        found = np.bincount(codes, minlength=256)
        types += found
        shares.append(found / len(codes))
        if time.perf_counter() - start > CAP_SECONDS:
            break
    seconds = time.perf_counter() - start
    peak = next(n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("VmHWM:"))
    whole = np.sqrt((types / n_rows) * (1 - types / n_rows) / BATCH_ROWS)
    spread = np.std(shares, axis=0)[whole > 0] / whole[whole > 0]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_start,
        "n_rows": n_rows,
        "x_total": total,
        "types": types.tolist(),
        "peak_bytes": int(peak.split()[1]) * 1024,
        "spread": float(np.mean(spread)),
    }


def run_one(python: str, reader: str, at: dict[str, Any]) -> dict[str, Any]:
    """Run a reader in a process of its own; what it answers, or what it failed with."""
    root = str(Path(__file__).parents[1])
    command = [python, "-m", "benchmarks.loader", "--reader", reader, "--at", json.dumps(at)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=3 * CAP_SECONDS)
    except subprocess.TimeoutExpired:  # before its first buffer was there
        return {"error": f"> {3 * CAP_SECONDS} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(store: Path, name: str, python: str | None, readers: Any = READERS) -> list[dict[str, Any]]:
    """Run every reader on one line; medians of three runs where one takes less than ten seconds."""
    from benchmarks.network import shaped_s3

    line = LINES[name]
    runs: dict[str, list[dict[str, Any]]] = {
        reader: [] for reader in readers if READERS[reader][0] is not annbatch or python
    }
    with shaped_s3(store.parent.parent, *(line or (0.0, 1e12))) as server:
        uri = f"s3://{store.parent.name}/{store.name}" if line else str(store)
        at = {"uri": uri, "line": line, "options": server.storage_options if line else {}}
        for reader in [*runs] * REPEATS:  # in turns: what else the machine does befalls all of them
            if all(r.get("seconds", SLOW_SECONDS) < SLOW_SECONDS for r in runs[reader]):
                server.reset()
                interpreter = python if python and READERS[reader][0] is annbatch else sys.executable
                run, counted = run_one(interpreter, reader, at), server.counters()
                runs[reader].append(run | {"n_requests": counted.n_requests, "n_bytes": counted.body_bytes})
                print(name, reader, run.get("seconds", run.get("error")), file=sys.stderr, flush=True)
    found = []
    for reader, each in runs.items():
        figures = each[-1] | {"line": name, "reader": reader, "runs": each}
        if not any("error" in r for r in each):
            figures["rows_a_second"] = statistics.median(r["n_rows"] / r["seconds"] for r in each)
            figures["cpu_ms"] = 1e6 * statistics.median(r["cpu_seconds"] / r["n_rows"] for r in each)
        found.append(figures)
    return found


def table(title: str, found: list[dict[str, Any]]) -> Table:
    """Return the figures as a table, a row a reader."""
    from rich.table import Table  # the interpreter that has annbatch need not have rich

    shown = Table(title=title)
    for heading in ("line", "reader", "rows/s", "CPU ms/1k", "rows", "requests", "MB", "peak MB", "spread"):
        shown.add_column(heading, no_wrap=True)
    for f in found:
        if "error" in f:
            shown.add_row(f["line"], f["reader"], f["error"] if f["error"].startswith(">") else "failed")
            continue
        counted = (f"{f['n_requests']:,}", f"{f['n_bytes'] / 1e6:,.1f}") if LINES[f["line"]] else ("", "")
        peak, spread = f"{f['peak_bytes'] / 1e6:,.0f}", f"{f['spread']:.2f}"
        speed = f"{f['rows_a_second']:,.0f}", f"{f['cpu_ms']:.1f}", f"{f['n_rows']:,}"
        shown.add_row(f["line"], f["reader"], *speed, *counted, peak, spread)
    return shown


def differ(found: list[dict[str, Any]], n_obs: int) -> bool:
    """Whether a reader failed, or two that finished an epoch saw different cells."""
    whole = {(f["x_total"], *f["types"]) for f in found if f.get("n_rows") == n_obs}
    return len(whole) > 1 or any(not f.get("error", ">").startswith(">") for f in found)


def main() -> int:
    """Measure and print a table; status 1 if a reader failed or two that finished an epoch disagree."""
    parser = argparse.ArgumentParser(description="Measure loaders for training.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--python", metavar="PATH", help="an interpreter that has annbatch; without it is left out")
    parser.add_argument("--line", choices=LINES, help="measure this one alone")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        print(json.dumps(load(args.reader, args.at)))
        return 0
    from rich.console import Console

    from benchmarks.questions import prepare, stored_at
    from benchmarks.steps import Job

    job = Job(args.data.resolve(), 100_000, 20_000)
    prepare(job)
    store = stored_at(job, "sorted")
    found = [f for name in ([args.line] if args.line else LINES) for f in measure(store, name, args.python)]
    console = Console()
    console.width = max(console.width, 140)
    console.print(table(f"rows a second, {store.name}; load {os.getloadavg()[0]:.1f}", found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(differ(found, job.n_obs))


if __name__ == "__main__":
    sys.exit(main())
