"""This package beside its peers, in one run: converting, asking over a shaped S3, loading, MuData.

Knows who is compared, on which stores, and the bars. Must not know how a package is asked (`benchmarks.readers`)
or installed (`benchmarks.environments`), how a run is measured (`benchmarks.asking`) or drawn (`benchmarks.plots`).
A peer that cannot be had is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import asking, loader, markdown, multimodal
from benchmarks.environments import PACKAGES, interpreter
from benchmarks.network import shaped_s3
from benchmarks.questions import (
    BARRED,
    FAST,
    PROFILES,
    agrees,
    asked_bytes,
    limit_seconds,
    prepare_source,
    stored_at,
    truths,
)
from benchmarks.readers import H5AD, H5PY, LAZY, OURS, SLAF, SOMA, SPARSE
from benchmarks.steps import Figures, Job, stored
from benchmarks.verdict import judge, print_bars

CELLS, GENE = "T cells", "one gene, storage"
ASKED = (CELLS, "scattered 5 %", GENE, "50 genes x T cells", "count T cells", "whole store")
STORES = {
    "sorted": f"{OURS}, both layouts",
    "anndata": "anndata read_h5ad + write_zarr",
    "soma": SOMA,
    "soma_sorted": f"{SOMA}, rows sorted by hand",
    "slaf": SLAF,
}
COMPARED = [(OURS, "sorted"), (OURS, "h5ad"), (H5AD, "h5ad"), (H5PY, "h5ad")]
COMPARED += [(reader, store) for store in ("anndata", "sorted") for reader in (LAZY, SPARSE)]
COMPARED += [(SOMA, "soma"), (SOMA, "soma_sorted"), (SLAF, "slaf")]
NEEDS = {"soma": "tiledbsoma", "soma_sorted": "tiledbsoma", "slaf": "slafdb"}
LOADERS = (
    "lobster_zarr",
    "lobster_zarr, as annbatch",
    "annbatch",
    "annbatch, zarrs",
    "annbatch, zarrs, runs as lobster_zarr",
    "read_lazy, 1,000 rows",
)
PARTS = ("stores", "queries", "loading", "multimodal")
ABSENT = {"error": "not installed"}


@dataclass(frozen=True)
class Peers:
    """The data, and the interpreters that have the peers; None where one cannot be had."""

    job: Job
    pythons: dict[str, Path | None]

    def python(self, store: str) -> Path | str | None:
        """Return the interpreter that reads and writes a store."""
        return self.pythons[NEEDS[store]] if store in NEEDS else sys.executable


def measure_stores(peers: Peers) -> dict[str, Figures]:
    """Convert with each package; a store that an earlier run left keeps the figures of that run."""
    found = {"h5ad": stored(peers.job.source)}
    for store in STORES:
        python = peers.python(store)
        found[store] = asking.convert(peers.job, store, python) if python else ABSENT
        print(store, found[store].get("seconds", found[store].get("error")), file=sys.stderr, flush=True)
    return found


def measure_queries(peers: Peers, profile: str, truth: dict[str, Figures]) -> list[Figures]:
    """Ask everyone on one line what there are true answers of."""
    found, line = [], PROFILES[profile]
    with shaped_s3(peers.job.data, *line) as server:
        for question, true in truth.items():
            asked = asked_bytes(peers.job, question, "sorted")
            limit = {"asked_bytes": sum(asked.values()), "limit_seconds": limit_seconds(asked, line)}
            for reader, store in COMPARED:
                python, run = peers.python(store), (question, reader, store)
                there = python and stored_at(peers.job, store).exists()
                figures: Figures = dict(ABSENT)
                if there and python:
                    figures = asking.measure(server, peers.job, run, line, python)
                figures["agrees"] = agrees(true, figures.get("digests", {}))
                found.append(dict(zip(("question", "reader", "store"), run, strict=True)) | limit | figures)
                print(*run, figures.get("seconds", figures.get("error")), file=sys.stderr, flush=True)
    return found


def usable(figures: Figures) -> float:
    """Seconds of a run that answered, the cap of one that took too long; NaN where it failed or answered wrongly."""
    late = figures.get("error", "").startswith(">")
    seconds: float = figures.get("seconds", asking.CAP_SECONDS if late else float("nan"))
    return seconds if figures["agrees"] else float("nan")


def own_and_best(found: list[Figures], question: str) -> tuple[Figures, Figures | None]:
    """Return this package's run of a question, and the fastest of the others that answered it."""
    asked = [f for f in found if f["question"] == question]
    others = [f for f in asked if f["reader"] != OURS and f["agrees"] and "seconds" in f]
    own = next(f for f in asked if f["reader"] == OURS and f["store"] == "sorted")
    return own, min(others, key=lambda f: f["seconds"], default=None)


def bars(stores: dict[str, Figures], found: list[Figures]) -> list[Figures]:
    """Judge what must hold; a peer that failed or differs was not outrun (NaN passes nothing)."""
    runs = {(f["question"], f["reader"], f["store"]): f for f in found}

    def times(question: str, reader: str, store: str) -> float:
        return usable(runs[question, reader, store]) / usable(runs[question, OURS, "sorted"])

    def stored_share(name: str, store: str) -> float:
        return stores["sorted"][name] / stores[store].get(name, float("nan"))

    cells = runs[CELLS, OURS, "sorted"]
    judged = [
        ("T cells: times faster than downloading the H5AD", times(CELLS, H5AD, "h5ad"), ">=", 30),
        ("T cells: times faster than TileDB-SOMA", times(CELLS, SOMA, "soma"), ">=", 5),
        ("T cells: times faster than read_lazy, our store", times(CELLS, LAZY, "sorted"), ">=", 3.5),
        ("T cells: seconds / physical limit", cells["seconds"] / cells["limit_seconds"], "<=", 1.35),
        ("one gene: times faster than downloading the H5AD", times(GENE, H5AD, "h5ad"), ">=", 200),
        ("one gene: times faster than TileDB-SOMA", times(GENE, SOMA, "soma"), ">=", 3),
        ("converting: times faster than TileDB-SOMA", 1 / stored_share("seconds", "soma"), ">=", 4),
        ("converting: bytes written / anndata's", stored_share("written_bytes", "anndata"), "<=", 1),
        ("converting: peak memory / anndata's", stored_share("peak_bytes", "anndata"), "<=", 1),
    ]
    judged += [
        (f"store, both layouts: bytes / {STORES.get(store, 'the H5AD')}", stored_share("stored_bytes", store), "<=", 1)
        for store in ("h5ad", "anndata", "soma", "slaf")
    ]
    return judge(judged)


def columns(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """Return an empty table."""
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in (*left, *right):
        shown.add_column(heading, no_wrap=True, justify="left" if heading in left else "right")
    return shown


def store_table(stores: dict[str, Figures]) -> Table:
    """Return what converting took and what it made."""
    shown = columns("Converting the H5AD", ("by",), ("s", "peak MB", "written MB", "objects", "stored MB", "of ours"))
    own = stores["sorted"]["stored_bytes"]
    for store, f in stores.items():
        name = STORES.get(store, "the H5AD itself")
        if "error" in f:
            shown.add_row(name, f["error"])
            continue
        took = [f"{f['seconds']:,.1f}"] if "seconds" in f else [""]
        took += [f"{f[k] / 1e6:,.0f}" if k in f else "" for k in ("peak_bytes", "written_bytes")]
        size = (f"{f['n_objects']:,}", f"{f['stored_bytes'] / 1e6:,.1f}", f"{f['stored_bytes'] / own:.2f}")
        shown.add_row(name, *took, *size)
    return shown


def held(digests: Figures) -> str:
    """What of the answer came: everything, or X alone."""
    return "" if "rest" in digests or "x" not in digests else " (X)"


def query_table(title: str, found: list[Figures]) -> Table:
    """Return a row a run: its cost, and how many times this package's and the limit's."""
    right = ("s", "requests", "MB", "peak MB", "x ours", "x limit")
    shown = columns(title, ("question", "reader", "store"), (*right, "answer"))
    for f in found:
        own, name = own_and_best(found, f["question"])[0], (f["question"], f["reader"], f["store"])
        if "seconds" not in f:
            shown.add_row(*name, f["error"], *[""] * 5, f.get("why", "")[:40])
            continue
        cost = (f"{f['n_requests']:,}", f"{f['n_bytes'] / 1e6:,.2f}", f"{f['peak_bytes'] / 1e6:,.0f}")
        times = (f"{f['seconds'] / own['seconds']:.1f}", f"{f['seconds'] / f['limit_seconds']:.2f}")
        verdict = f"agrees{held(f['digests'])}" if f["agrees"] else "DIFFERS"
        shown.add_row(*name, f"{f['seconds']:.3f}", *cost, *times, verdict)
    return shown


def verdicts(found: list[Figures]) -> list[str]:
    """Say of each question how this package stands beside the best of the others, and where it loses."""
    said = []
    for question in ASKED:
        own, best = own_and_best(found, question)
        if best is None or "seconds" not in own:
            said.append(f"{question}: nothing to compare")
            continue
        times, limit = best["seconds"] / own["seconds"], own["seconds"] / own["limit_seconds"]
        where = f"{best['reader']}, {best['store']}{held(best['digests'])}"
        word = f"wins, {times:.1f}x faster than" if times >= 1 else f"LOSES, {1 / times:.1f}x slower than"
        said.append(f"{question}: {word} the best peer ({where}); {limit:.2f}x the limit")
    return said


def show(console: Console, report: Figures) -> None:
    """Print the report."""
    console.print(report["title"], report["versions"])
    if "stores" in report:
        console.print(store_table(report["stores"]))
    for profile, found in report.get("queries", {}).items():
        console.print(query_table(profile, found))
        console.print(*verdicts(found), sep="\n", highlight=False)
    print_bars(console, report.get("bars", []))
    if "loading" in report:
        console.print(loader.table("Shuffled loading", report["loading"]))
    if "multimodal" in report:
        console.print(*multimodal.tables(report["multimodal"], multimodal_cells(report["n_obs"])))


def multimodal_cells(n_obs: int) -> int:
    """Return the cells of the MuData: three modalities of as many as of the one take too long to make."""
    return min(n_obs, multimodal.N_OBS)


def page_lines(report: Figures) -> list[str]:
    """Return what of the report goes into the documentation."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"{report['title']}; {versions}.", ""]
    if "stores" in report:
        lines += [*markdown.store_lines(report["stores"], STORES), ""]
        shown = ("convert-seconds.svg", "convert-peak-bytes.svg", "convert-stored-bytes.svg")
        lines += [*markdown.images("benchmarks", shown, ("Seconds to convert", "Peak memory", "Size")), ""]
    for profile, found in report.get("queries", {}).items():
        lines += [*markdown.query_lines(profile, found, verdicts(found)), ""]
    return [*lines, *markdown.bar_lines(report.get("bars", []))]


def keep(report: Figures, path: Path | None) -> None:
    """Write a report where that is wanted."""
    if path:
        path.write_text(json.dumps(report, indent=1, default=float) + "\n")


def measure(peers: Peers, args: argparse.Namespace) -> Figures:
    """Run the parts that were asked for."""
    job = peers.job
    title = f"{job.n_obs:,} x {job.n_vars:,}; load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}"
    report: Figures = {"title": title, "versions": {p: version(p) for p in ("lobster-zarr", "anndata", "zarr")}}
    report["n_obs"] = job.n_obs

    def add(part: Figures) -> None:
        report.update(part)
        keep(report, args.json)  # an hour's work: what a run that is ended had found stays

    stores = measure_stores(peers)
    if "stores" in args.parts:
        add({"stores": stores})
    if "queries" in args.parts:
        truth = truths(job, ASKED)
        found = {p: measure_queries(peers, p, truth) for p in ((BARRED, FAST) if args.fast else (BARRED,))}
        report["versions"] |= {f["reader"]: f["version"] for f in found[BARRED] if "version" in f}
        add({"queries": found, "bars": bars(stores, found[BARRED])})
    if "loading" in args.parts:
        python, at = peers.pythons["annbatch"], stored_at(job, "sorted")
        add({"loading": loader.measure(at, "local disk", str(python) if python else None, LOADERS)})
    if "multimodal" in args.parts:
        add({"multimodal": multimodal.measure(job.data, multimodal_cells(job.n_obs))})
    return report


def measure_again(peers: Peers, report: Figures, names: list[str]) -> None:
    """Ask some questions of an earlier report anew, of everyone, and judge it by that."""
    truth = truths(peers.job, names)
    for profile, found in report["queries"].items():
        fresh = measure_queries(peers, profile, truth)
        report["queries"][profile] = [*(f for f in found if f["question"] not in names), *fresh]
        report["queries"][profile].sort(key=lambda f: ASKED.index(f["question"]))
    report["title"] += f"; {', '.join(names)} of a later run"
    report["bars"] = bars(report["stores"], report["queries"][BARRED])


def main() -> int:
    """Measure, print, draw; status 1 if an answer is wrong, or one of this package's missing."""
    parser = argparse.ArgumentParser(description="Compare this package with its peers.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="where the peers' are, or are made")
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PATH", help="an interpreter to use")
    parser.add_argument("--n-obs", type=int, default=100_000, help="cells; the bars were set for the default")
    parser.add_argument("--n-vars", type=int, default=20_000)
    parser.add_argument("--fast", action="store_true", help="at 2 ms, 10 Gbit/s as well")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the figures there as SVG")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables into this page of Markdown")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--from-json", type=Path, metavar="IN", help="measure nothing; show and draw an earlier run")
    parser.add_argument("--again", nargs="+", choices=ASKED, default=[], help="of that run, ask these anew")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.from_json.read_text()) if args.from_json else {}
    if not report or args.again:
        job = Job(args.data.resolve(), args.n_obs, args.n_vars)
        prepare_source(job)
        given = {name: Path(path) for name, _, path in (each.partition("=") for each in args.python)}
        folder = args.environments or job.data / "environments"
        pythons = {name: given[name] if name in given else interpreter(folder.resolve(), name) for name in PACKAGES}
        peers = Peers(job, pythons)
        if report:
            measure_again(peers, report, args.again)
            keep(report, args.json)
        else:
            report = measure(peers, args)
    console = Console()
    console.width = max(console.width, 150)
    show(console, report)
    if args.plots:
        from benchmarks import plots

        plots.draw(report, args.plots)
    if args.page:
        markdown.fill(args.page, "peers", page_lines(report))
    runs = [f for found in report.get("queries", {}).values() for f in found]
    return int(any(not f["agrees"] or (f["store"] == "sorted" and "error" in f) for f in runs))


if __name__ == "__main__":
    sys.exit(main())
