"""What queries cost over S3 on a shaped line: seconds, requests and bytes, beside their physical limit.

Knows the questions, how this package, AnnData's readers and a whole download answer them, and the bars.
Must not know how the line is shaped (`benchmarks.network`) or how results are digested
(`benchmarks.steps`). Requests and bytes are as the server counted them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.steps import CELL_TYPE, REPEATS, Figures, Job, digest_rest, digest_x, make_source

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

type Run = tuple[str, str, str]  # question, reader, store
type Line = tuple[float, float]  # seconds to the first byte, bits a second
BARRED = "20 ms, 100 Mbit/s"
PROFILES = {BARRED: (0.02, 100e6), "2 ms, 10 Gbit/s": (0.002, 10e9)}
CAP_SECONDS, SLOW_SECONDS = 180, 10  # a run past the first is ended, one past the second not repeated
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
OURS, LAZY, SPARSE, H5AD = "lobster_zarr", "read_lazy", "sparse_dataset", "H5AD"
PEERED = ("T cells", "one gene, storage", "scattered 5 %")
RUNS: list[Run] = [(q, OURS, "sorted") for q in QUESTIONS if q != "whole store"]
RUNS += [(q, OURS, "unsorted") for q in ("scattered 5 %", "whole store")] + [(q, H5AD, "h5ad") for q in PEERED]
RUNS += [(q, peer, store) for peer in (LAZY, SPARSE) for store in ("sorted", "anndata") for q in PEERED]


def stored_at(job: Job, store: str) -> Path:
    """Return where a store, or the H5AD, lies in the bucket ``queries``."""
    return job.data / "queries" / f"{job.source.stem}.{store}{'' if store == 'h5ad' else '.zarr'}"


def prepare(job: Job) -> None:
    """Make the H5AD and the three stores, each only where it is absent."""
    import anndata as ad

    import lobster_zarr as lz

    h5ad, plain, part = (stored_at(job, store) for store in ("h5ad", "anndata", "part"))
    h5ad.parent.mkdir(parents=True, exist_ok=True)
    if not job.source.exists():
        make_source(job)
    if not h5ad.exists():
        h5ad.symlink_to(job.source)
    for store, sort_by in (("sorted", ["cell_type"]), ("unsorted", [])):
        if not stored_at(job, store).exists():
            lz.convert(job.source, stored_at(job, store), sort_by=sort_by, gene_major=True, progress=False)
    if not plain.exists():
        ad.read_h5ad(job.source).write_zarr(part)
        part.rename(plain)


def opened(job: Job, store: str) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
    """Return a store's group from local disk, the source row of each row, its names, cell types and genes."""
    import anndata as ad
    import zarr

    group: Any = zarr.open_group(stored_at(job, store), mode="r")
    order, n_obs = "_lobster_zarr_source_order", group["X"].attrs["shape"][0]
    paths = ("obs/_index", "obs/cell_type", "var/_index")
    columns = {path: np.asarray(ad.io.read_elem(group[path]), object) for path in paths}
    return group, group[f"obs/{order}"][:] if order in group["obs"] else np.arange(n_obs), columns


def digested(question: Question, answer: Any) -> Figures:
    """Digest a count or an AnnData; the order of its rows too, where it is to be the source's."""
    if question.verb in ("open", "count"):
        return {"n_obs": answer if isinstance(answer, int) else answer.n_obs}
    found = {"n_obs": answer.n_obs, "rest": digest_rest(answer)}
    if answer.X is not None:
        found["x"] = digest_x(answer.X, answer.obs_names)
    ordered = question.options.get("order") != "storage"
    return found | ({"names": zlib.crc32("\n".join(answer.obs_names).encode())} if ordered else {})


def truths(job: Job) -> dict[str, Figures]:
    """Digest the answers that the H5AD, read into memory and sliced, gives."""
    import anndata as ad

    source, found = ad.read_h5ad(job.source), {}
    for name, question in QUESTIONS.items():
        mask, genes = question.mask(source.obs["cell_type"].to_numpy()), question.genes(source.var_names)
        answer = source[mask, slice(None) if genes is None else genes]
        if question.verb == "to_pandas":
            answer = ad.AnnData(obs=answer.obs.copy())
        elif question.options:
            answer = ad.AnnData(answer.X, answer.obs[[]], answer.var[[]])
        found[name] = digested(question, int(mask.sum()) if question.verb == "count" else answer)
    return found


def ask_peer(reader: str, at: Any, question: Question, mask: np.ndarray, genes: Any) -> tuple[Any, Any]:
    """Return X, and the whole answer where it is more than X."""
    import anndata as ad
    import obstore
    import pandas as pd
    import zarr
    from anndata.experimental import read_lazy

    if reader == H5AD:
        with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
            file.writelines(obstore.get(at[0], at[1]).stream())
            file.flush()
            source = ad.read_h5ad(file.name)
        mask = np.asarray(source.obs["cell_type"] == CELL_TYPE) if question.cells == "T" else mask
        answer = source[mask, genes or slice(None)].copy()
        return answer.X, answer
    group: Any = zarr.open_group(zarr.storage.ObjectStore(at[0], read_only=True), mode="r", zarr_format=3)
    if question.cells == "T":
        mask = np.asarray(ad.io.read_elem(group["obs/cell_type"]) == CELL_TYPE)
    if reader == LAZY:
        lazy: Any = read_lazy(group)[:, genes] if genes else read_lazy(group)[mask]
        whole: Any = None if genes else lazy.to_memory()
        return lazy.X.compute() if genes else whole.X, whole
    columns = slice(None) if genes is None else pd.Index(ad.io.read_elem(group["var/_index"])).get_indexer(genes)
    return ad.io.sparse_dataset(group["X"])[mask if genes is None else slice(None), columns], None


def answer_repeatedly(pipe: Connection, job: Job, run: Run, line: Line, options: Figures, at: Any) -> None:
    """In a process of its own: answer a question, each time from a store opened anew, when told to."""
    import anndata as ad

    import lobster_zarr as lz
    import lobster_zarr.query  # imports are not part of a query

    question, (_, order, columns) = QUESTIONS[run[0]], opened(job, "sorted" if run[1] == H5AD else run[2])
    genes, mask = question.genes(columns["var/_index"]), question.mask(columns["obs/cell_type"])
    stored_mask = mask if question.cells == "T" or run[1] == H5AD else mask[order]
    cells: Any = {"all": None, "T": f"cell_type == '{CELL_TYPE}'", "5%": mask}[question.cells]
    pipe.send("ready")
    while pipe.recv():
        start, by_array = time.perf_counter(), {}
        if run[1] == OURS:
            uri, network = f"s3://queries/{stored_at(job, run[2]).name}", lz.Network(line[0], line[1] / 8)
            answer: Any = lz.open(uri, storage_options=options, network=network)
            if question.verb != "open":
                selection = answer.query(cells, genes, **question.options)
                answer, by_array = getattr(selection, question.verb)(), selection.stats.by_array
        else:
            x, answer = ask_peer(run[1], at, question, stored_mask, genes)
        pipe.send((time.perf_counter() - start, by_array))
        if run[1] == OURS:
            pipe.send(digested(question, ad.AnnData(obs=answer) if question.verb == "to_pandas" else answer))
        else:
            names = columns["obs/_index"][stored_mask] if answer is None else answer.obs_names
            whole = {} if answer is None or genes else {"rest": digest_rest(answer)}
            pipe.send({"n_obs": x.shape[0], "x": digest_x(x, names)} | whole)


def measure(server: ShapedS3, job: Job, run: Run, line: Line) -> Figures:
    """Return the figures of one run; ``{"error": ...}`` where it failed or took too long."""
    pipe, theirs = mp.Pipe()
    path = stored_at(job, run[2]).name
    at = (server.store("queries", None if run[1] == H5AD else path), path)
    args = (theirs, job, run, line, server.storage_options, at)
    process = mp.get_context("spawn").Process(target=answer_repeatedly, args=args, daemon=True)
    process.start()
    theirs.close()
    seconds: list[float] = []
    figures: Figures = {"all_seconds": seconds, "load": os.getloadavg()[0]}
    try:
        pipe.recv()
        while len(seconds) < REPEATS and max(seconds, default=0) < SLOW_SECONDS:
            server.reset()
            pipe.send("go")
            if not pipe.poll(CAP_SECONDS):
                return figures | {"error": f"> {CAP_SECONDS}"}
            taken, figures["by_array"] = pipe.recv()
            counted = server.counters()
            seconds.append(taken)
            figures |= {"n_requests": counted.n_requests, "n_bytes": counted.body_bytes, "digests": pipe.recv()}
    except (EOFError, BrokenPipeError):
        return figures | {"error": "failed"}
    finally:
        process.kill()
        process.join()
    return figures | {"seconds": statistics.median(seconds)}


def asked_bytes(job: Job, name: str, store: str) -> dict[str, float]:
    """Encoded bytes of exactly the values asked for, by element; a chunk's are shared out among its values."""
    question, (group, order, columns) = QUESTIONS[name], opened(job, store)
    sizes, types, var = group.attrs["lobster_zarr"]["stored_bytes"], columns["obs/cell_type"], columns["var/_index"]
    rows = question.mask(types) if question.cells == "T" else question.mask(types)[order]

    def total(start: str) -> int:
        return sum(n for path, n in sizes.items() if path.startswith(start) and "_lobster_zarr_" not in path)

    def slices(matrix: Any) -> np.ndarray:
        indptr, n_chunks = matrix["indptr"][:], -(-matrix["data"].shape[0] // matrix["data"].chunks[0])
        sizes = matrix["_lobster_zarr_index"][len(indptr) - 1 : len(indptr) - 1 + 2 * n_chunks]
        chunks = sizes.reshape(2, -1).sum(axis=0)
        edges = np.minimum(np.arange(len(chunks) + 1) * matrix["data"].chunks[0], indptr[-1])
        return np.diff(np.interp(indptr, edges, np.concatenate(([0], np.cumsum(chunks, dtype=np.int64)))))

    if question.verb != "to_memory":
        metadata_bytes = (stored_at(job, store) / "zarr.json").stat().st_size
        parts = {"open": metadata_bytes, "count": total("obs/cell_type"), "to_pandas": total("obs/")}
        return {question.verb: parts[question.verb]}
    names, genes = "_index" if question.options else "", question.genes(var)
    picked = np.arange(len(var)) if genes is None else np.flatnonzero(np.isin(var, genes))
    asked = {"obs": total(f"obs/{names}") * rows.mean(), "var": total(f"var/{names}") * len(picked) / len(var)}
    asked |= {} if question.options else {"obsm": total("obsm/") * rows.mean(), "uns": total("uns/")}
    if genes is None:
        return asked | {"X": slices(group["X"])[rows].sum()}
    matrix, each = group["X/csc"], slices(group["X/csc"])
    cells = [matrix["indices"][slice(*matrix["indptr"][c : c + 2])] for c in picked]
    return asked | {"X": sum(each[c] * rows[s].mean() for c, s in zip(picked, cells, strict=True) if len(s))}


def bars(found: dict[Run, Figures]) -> list[Figures]:
    """Judge what must hold; a peer that failed or differs was not outrun (NaN passes nothing)."""

    def faster(name: str, reader: str, store: str) -> float:
        peer, own = found[name, reader, store], found[name, OURS, "sorted"]
        usable = peer["agrees"] and peer.get("error") != "failed"
        return peer.get("seconds", CAP_SECONDS) / own["seconds"] if usable else float("nan")

    cells, gene = found["T cells", OURS, "sorted"], found["one gene, storage", OURS, "sorted"]
    in_x = sum(n for path, (_, n) in gene["by_array"].items() if path.startswith("X/"))
    scattered, whole = (found[q, OURS, "unsorted"] for q in ("scattered 5 %", "whole store"))
    judged = [
        ("T cells: seconds / limit", cells["seconds"] / cells["limit_seconds"], "<=", 1.35),
        ("T cells: times faster than the H5AD", faster("T cells", H5AD, "h5ad"), ">=", 30),
        ("one gene: times faster than the H5AD", faster("one gene, storage", H5AD, "h5ad"), ">=", 200),
        ("T cells: times faster than read_lazy, our store", faster("T cells", LAZY, "sorted"), ">=", 3.5),
        ("T cells: times faster than read_lazy, AnnData's store", faster("T cells", LAZY, "anndata"), ">=", 12),
        ("scattered 5 %, unsorted: seconds / whole store", scattered["seconds"] / whole["seconds"], "<=", 1),
        ("T cells: requests", cells["n_requests"], "<=", 20),
        ("T cells: bytes / encoded", cells["n_bytes"] / cells["asked_bytes"], "<=", 1.15),
        ("one gene: requests", max(found[q, OURS, "sorted"]["n_requests"] for q in QUESTIONS if "gene," in q), "<=", 6),
        ("one gene: bytes / encoded, names and column", gene["n_bytes"] / gene["asked_bytes"], "<=", 2),
        ("one gene: bytes of X / encoded column", in_x / gene["asked"]["X"], "<=", 2),
        ("count: requests", found["count T cells", OURS, "sorted"]["n_requests"], "<=", 3),
        ("open: requests", found["open", OURS, "sorted"]["n_requests"], "<=", 1),
    ]
    keys = ("bar", "measured", "sense", "bound")
    return [dict(zip(keys, j, strict=True), passed=j[1] <= j[3] if j[2] == "<=" else j[1] >= j[3]) for j in judged]


def table(title: str, found: dict[Run, Figures]) -> Table:
    """Return the figures of one profile as a table, a row a run."""
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in (
        "query",
        "reader",
        "store",
        "s",
        "runs",
        "requests",
        "MB",
        "asked MB",
        "limit s",
        "ratio",
        "answer",
    ):
        left = heading in ("query", "reader", "store", "answer")
        shown.add_column(heading, no_wrap=True, justify="left" if left else "right")
    for run, f in found.items():
        limit = (f"{f['asked_bytes'] / 1e6:,.3f}", f"{f['limit_seconds']:.3f}")
        if "error" in f:
            shown.add_row(*run, f["error"], str(len(f["all_seconds"])), "", "", *limit)
            continue
        counted = (str(len(f["all_seconds"])), f"{f['n_requests']:,}", f"{f['n_bytes'] / 1e6:,.3f}")
        ratio, verdict = f"{f['seconds'] / f['limit_seconds']:.2f}", "agrees" if f["agrees"] else "DIFFERS"
        shown.add_row(*run, f"{f['seconds']:.3f}", *counted, *limit, ratio, verdict)
    return shown


def measure_profile(job: Job, profile: str, truth: dict[str, Figures], runs: list[Run]) -> dict[Run, Figures]:
    """Run everything on one line; set beside each the bytes asked for and the time that they must take."""
    (latency_seconds, bandwidth_bits), found = PROFILES[profile], {}
    with shaped_s3(job.data, latency_seconds, bandwidth_bits) as server:
        for run in runs:
            figures = measure(server, job, run, PROFILES[profile])
            asked = asked_bytes(job, run[0], "unsorted" if run[2] == "unsorted" else "sorted")
            limit = sum(asked.values()) * 8 / bandwidth_bits + 3 * latency_seconds
            agrees = all(truth[run[0]].get(k) == v for k, v in figures.get("digests", {}).items())
            figures |= {"asked": asked, "asked_bytes": sum(asked.values()), "limit_seconds": limit, "agrees": agrees}
            found[run] = figures
            print(*run, figures.get("seconds", figures.get("error")), file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Measure, print a table a profile and the bars; status 1 if an answer differs or a run failed."""
    parser = argparse.ArgumentParser(description="Measure queries over a shaped loopback S3.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="10,000 cells instead of 100,000")
    parser.add_argument("--profile", choices=PROFILES, help="measure this one alone")
    parser.add_argument("--own", action="store_true", help="this package alone, without the bars")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    job = Job(args.data.resolve(), 10_000 if args.quick else 100_000, 20_000)
    prepare(job)
    truth, console, report, wrong = truths(job), Console(), {}, False
    console.width = max(console.width, 120)  # piped output has no width of its own
    for profile in [args.profile] if args.profile else PROFILES:
        runs = [r for r in RUNS if r[1] == OURS or not args.own]
        found = measure_profile(job, profile, truth, runs)
        console.print(table(f"{profile}; {job.n_obs:,} x {job.n_vars:,}; load {os.getloadavg()[0]:.1f}", found))
        judged = bars(found) if profile == BARRED and not args.own else []
        for b in judged:
            verdict = "pass" if b["passed"] else "FAIL"
            console.print(f"{verdict}  {b['bar']}: {b['measured']:,.2f} {b['sense']} {b['bound']}")
        report[profile] = {"runs": [{"run": run, **f} for run, f in found.items()], "bars": judged}
        wrong |= any(f.get("error") == "failed" or not f["agrees"] for f in found.values())
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, default=float) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
