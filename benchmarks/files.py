"""What a raw H5AD on S3 costs to ask and to convert, on a shaped line: seconds, requests and bytes.

Knows how the ways of `benchmarks.ways` are run, compared with AnnData in memory, and judged. Must not know
how they answer, or how the line is shaped (`benchmarks.network`). Requests and bytes are as the server counted
them. The server is read-only: what is converted goes to local disk.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing as mp
import os
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.questions import BARRED, PROFILES
from benchmarks.steps import Figures, Job, digest_rest, digest_x, make_source, timed
from benchmarks.verdict import is_wrong, judge, print_bars, reported
from benchmarks.ways import CONVERSIONS, DOWNLOAD, IN_PLACE, INDEXED, WAYS, Remote, of_anndata, questions
from lobster_zarr.sidecar import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from benchmarks.ways import Answer, Question

type Run = tuple[str, str]  # question, way
CAP_SECONDS, SLOW_SECONDS = 180.0, 10.0  # a run past the first is ended, one past the second not repeated
LATE = ("convert", "h5whole", "multimodal", "openstore", "sql")  # these import all that is imported late
BUCKET, INDEXED_BUCKET = "files", "files-indexed"


def prepare(job: Job) -> None:
    """Make the file, the store, and the buckets that hold them, each only where it is absent."""
    import lobster_zarr as lz

    if not job.source.exists():
        make_source(job)
    for bucket in (BUCKET, INDEXED_BUCKET):
        linked = job.data / bucket / job.source.name
        linked.parent.mkdir(parents=True, exist_ok=True)
        if not linked.exists():
            linked.symlink_to(job.source)
    store = job.data / BUCKET / f"{job.source.stem}.zarr"
    if not store.exists():
        lz.convert(job.source, store, gene_major=True, progress=False)
    beside = job.data / INDEXED_BUCKET / f"{job.source.name}{SUFFIX}"
    if not beside.exists() or beside.stat().st_mtime < job.source.stat().st_mtime:
        keep_index(job, beside)


def keep_index(job: Job, beside: Path) -> None:
    """Index the file as the server tells of it; the server is read-only, so that the index is put there by hand."""
    import lobster_zarr as lz

    with tempfile.TemporaryDirectory() as cache, shaped_s3(job.data) as server:
        os.environ["XDG_CACHE_HOME"] = cache
        report = lz.index(f"s3://{INDEXED_BUCKET}/{job.source.name}", server.storage_options, local=True)
        shutil.copy(report.index, beside)
        del os.environ["XDG_CACHE_HOME"]


def digested(answer: Answer) -> Figures:
    """Digest a count, a table of cells or an AnnData: values, types, names and their order."""
    import anndata as ad
    import pandas as pd

    if isinstance(answer, int):
        return {"count": answer}
    adata = ad.AnnData(obs=answer) if isinstance(answer, pd.DataFrame) else answer
    found = {"shape": adata.shape, "rest": digest_rest(adata), "names": zlib.crc32("\n".join(adata.obs_names).encode())}
    return found if adata.X is None else found | {"x": digest_x(adata.X, adata.obs_names)}


def truths(job: Job) -> dict[str, Figures]:
    """Digest the answers of the file read into memory."""
    import anndata as ad

    source = ad.read_h5ad(job.source)
    return {name: digested(of_anndata(source, question)) for name, question in questions(job.n_obs).items()}


def answer(pipe: Connection, remote: Remote, way: str, question: Question) -> None:
    """In a process of its own: answer one question when told to; imports are not part of it."""
    _import()
    pipe.send("ready")
    pipe.recv()
    start = time.perf_counter()
    found = WAYS[way](remote, question)
    pipe.send({"seconds": time.perf_counter() - start})
    pipe.send(digested(found))


def convert(pipe: Connection, remote: Remote, way: str, _: Question) -> None:
    """In a process of its own: convert to a folder of local disk when told to; the store is then read whole."""
    import lobster_zarr as lz

    _import()
    with tempfile.TemporaryDirectory() as folder:
        dest = Path(folder) / "dest.zarr"
        pipe.send("ready")
        pipe.recv()
        pipe.send(timed(lambda: CONVERSIONS[way](remote, dest), 0, 1)[1])
        pipe.send(digested(lz.open(dest).query().to_memory()))


def _import() -> None:
    for name in ("anndata", "boto3", "h5py", "obstore", "pyarrow", "s3fs", *(f"lobster_zarr.{name}" for name in LATE)):
        importlib.import_module(name)


def measure(server: ShapedS3, work: Callable[..., None], args: tuple[Remote, str, Question], cap: float) -> Figures:
    """Return the figures of one run in a fresh process; ``{"error": ...}`` where it failed or took too long."""
    pipe, theirs = mp.Pipe()
    process = mp.get_context("spawn").Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    figures: Figures = {"load": os.getloadavg()[0]}
    try:
        pipe.recv()
        server.reset()
        pipe.send("go")
        if not pipe.poll(cap):
            return figures | {"error": f"> {cap:.0f}"}
        figures |= pipe.recv()
        seen = server.counters()
        return figures | {"n_requests": seen.n_requests, "n_bytes": seen.body_bytes, "digests": pipe.recv()}
    except (EOFError, BrokenPipeError):
        return figures | {"error": "failed"}
    finally:
        process.kill()
        process.join()


def measure_often(server: ShapedS3, work: Callable[..., None], args: Any, options: argparse.Namespace) -> Figures:
    """Return the run of median time; a run that is slow or did not end is not repeated."""
    runs: list[Figures] = []
    while len(runs) < options.repeats:
        runs.append(measure(server, work, args, options.cap_seconds))
        if runs[-1].get("seconds", CAP_SECONDS) > SLOW_SECONDS:
            return runs[-1]
    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    return middle | {"all_seconds": [run["seconds"] for run in runs]}


def measure_profile(
    job: Job, profile: str, truth: dict[str, Figures], options: argparse.Namespace
) -> dict[Run, Figures]:
    """Run everything on one line, and compare every answer with that of AnnData in memory."""
    asked, found = questions(job.n_obs), {}
    ways: list[str] = [way for way in (CONVERSIONS if options.convert else WAYS) if options.way in (way, None)]
    names = ["everything"] if options.convert else list(asked)
    with shaped_s3(job.data, *PROFILES[profile]) as server:
        for name in names:
            for way in ways:
                bucket = INDEXED_BUCKET if way == INDEXED else BUCKET
                remote = Remote(
                    server.store(bucket), server.storage_options, PROFILES[profile], bucket, job.source.stem
                )
                work = convert if options.convert else answer
                figures = measure_often(server, work, (remote, way, asked[name]), options)
                figures["agrees"] = figures.get("digests", truth[name]) == truth[name]
                found[name, way] = figures
                print(name, way, figures.get("seconds", figures.get("error")), file=sys.stderr, flush=True)
    return found


def bars(found: dict[Run, Figures]) -> list[Figures]:
    """Judge what must hold of the file in place; a run that failed or differs passes nothing (NaN)."""

    def of(name: str, way: str, figure: str) -> float:
        run = found.get((name, way), {})
        return run[figure] if run.get("agrees") and figure in run else float("nan")

    def times_faster(name: str) -> float:
        return of(name, DOWNLOAD, "seconds") / of(name, IN_PLACE, "seconds")

    return judge(
        [
            ("open: requests", of("open", IN_PLACE, "n_requests"), "<=", 12),
            ("open, indexed: requests", of("open", INDEXED, "n_requests"), "<=", 1),
            ("count: seconds", of("count", IN_PLACE, "seconds"), "<=", 1.5),
            ("obs rows: seconds", of("obs rows", IN_PLACE, "seconds"), "<=", 2),
            ("contiguous 5 %: times faster than the download", times_faster("contiguous 5 %"), ">=", 5),
            ("scattered 5 %: times faster than the download", times_faster("scattered 5 %"), ">=", 1),
        ]
    )


def table(title: str, found: dict[Run, Figures]) -> Table:
    """Return the figures of one profile as a table, a row a run."""
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "way", "s", "requests", "MB", "CPU s", "peak MB", "answer"):
        shown.add_column(heading, no_wrap=True, justify="left" if heading in ("", "way", "answer") else "right")
    for run, f in found.items():
        if "error" in f:
            shown.add_row(*run, f["error"])
            continue
        own = (f"{f['cpu_seconds']:.1f}", f"{f['peak_bytes'] / 1e6:,.0f}") if "peak_bytes" in f else ("", "")
        counted = (f"{f['n_requests']:,}", f"{f['n_bytes'] / 1e6:,.2f}")
        shown.add_row(*run, f"{f['seconds']:.2f}", *counted, *own, "agrees" if f["agrees"] else "DIFFERS")
    return shown


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Measure ways to read a raw H5AD on a shaped loopback S3.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--n-obs", type=int, default=100_000)
    parser.add_argument("--convert", action="store_true", help="convert instead of asking, to local disk")
    parser.add_argument("--profile", choices=PROFILES, help="measure this one alone")
    parser.add_argument("--way", choices=[*WAYS, *CONVERSIONS], help="measure this one alone, without the bars")
    parser.add_argument("--repeats", type=int, default=1, help="of a run of less than ten seconds; the median is shown")
    parser.add_argument("--cap-seconds", type=float, default=CAP_SECONDS, help="a longer run is ended")
    parser.add_argument("--json", type=Path, metavar="OUT")
    return parser.parse_args()


def main() -> int:
    """Measure, print a table a profile and the bars; status 1 if an answer differs or a run failed."""
    options = parse()
    job = Job(options.data.resolve(), options.n_obs, 20_000)
    prepare(job)
    truth, console, report, wrong = truths(job), Console(), {}, False
    console.width = max(console.width, 120)  # piped output has no width of its own
    for profile in [options.profile] if options.profile else PROFILES:
        found = measure_profile(job, profile, truth, options)
        console.print(table(f"{profile}; {job.n_obs:,} x {job.n_vars:,}; load {os.getloadavg()[0]:.1f}", found))
        judged = bars(found) if profile == BARRED and not (options.convert or options.way) else []
        print_bars(console, judged)
        report[profile] = reported(found, judged)
        wrong |= is_wrong(found)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, default=float) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
