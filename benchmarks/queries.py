"""What queries cost over S3 on a shaped line: seconds, requests and bytes, beside their physical limit.

Knows the bars of this package's own queries; `benchmarks.peers` has the others. Must not know how the line is
shaped (`benchmarks.network`) or how a question is asked (`benchmarks.asking`). Requests and bytes are as the
server counted them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.asking import Run, measure
from benchmarks.network import shaped_s3
from benchmarks.questions import BARRED, PROFILES, QUESTIONS, agrees, asked_bytes, limit_seconds, prepare, truths
from benchmarks.readers import OURS
from benchmarks.steps import Figures, Job
from benchmarks.verdict import is_wrong, judge, print_bars, reported

GENES = ("one gene, storage", "one gene, source")
RUNS: list[Run] = [(q, OURS, "sorted") for q in QUESTIONS if q != "whole store"]
RUNS += [(q, OURS, "unsorted") for q in ("scattered 5 %", "whole store")]


def bars(found: dict[Run, Figures]) -> list[Figures]:
    """Judge what must hold of this package's own queries."""
    cells, gene = found["T cells", OURS, "sorted"], found["one gene, storage", OURS, "sorted"]
    in_x = sum(n for path, (_, n) in gene["by_array"].items() if path.startswith("X/"))
    scattered, whole = (found[q, OURS, "unsorted"] for q in ("scattered 5 %", "whole store"))
    judged = [
        ("T cells: seconds / limit", cells["seconds"] / cells["limit_seconds"], "<=", 1.35),
        ("scattered 5 %, unsorted: seconds / whole store", scattered["seconds"] / whole["seconds"], "<=", 1),
        ("T cells: requests", cells["n_requests"], "<=", 20),
        ("T cells: bytes / encoded", cells["n_bytes"] / cells["asked_bytes"], "<=", 1.15),
        ("one gene: requests", max(found[q, OURS, "sorted"]["n_requests"] for q in GENES), "<=", 6),
        ("one gene: bytes / encoded, names and column", gene["n_bytes"] / gene["asked_bytes"], "<=", 2),
        ("one gene: bytes of X / encoded column", in_x / gene["asked"]["X"], "<=", 2),
        ("count: requests", found["count T cells", OURS, "sorted"]["n_requests"], "<=", 3),
        ("open: requests", found["open", OURS, "sorted"]["n_requests"], "<=", 1),
    ]
    return judge(judged)


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
    found: dict[Run, Figures] = {}
    with shaped_s3(job.data, *PROFILES[profile]) as server:
        for run in runs:
            figures = measure(server, job, run, PROFILES[profile])
            asked = asked_bytes(job, run[0], run[2])
            figures |= {"asked": asked, "asked_bytes": sum(asked.values())}
            figures |= {"limit_seconds": limit_seconds(asked, PROFILES[profile])}
            found[run] = figures | {"agrees": agrees(truth[run[0]], figures.get("digests", {}))}
            print(*run, figures.get("seconds", figures.get("error")), file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Measure, print a table a profile and the bars; status 1 if an answer differs or a run failed."""
    parser = argparse.ArgumentParser(description="Measure this package's queries over a shaped loopback S3.")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("_data"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="10,000 cells instead of 100,000")
    parser.add_argument("--profile", choices=PROFILES, help="measure this one alone")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    job = Job(args.data.resolve(), 10_000 if args.quick else 100_000, 20_000)
    prepare(job)
    truth, console, report, wrong = truths(job), Console(), {}, False
    console.width = max(console.width, 120)  # piped output has no width of its own
    for profile in [args.profile] if args.profile else PROFILES:
        found = measure_profile(job, profile, truth, RUNS)
        console.print(table(f"{profile}; {job.n_obs:,} x {job.n_vars:,}; load {os.getloadavg()[0]:.1f}", found))
        judged = bars(found) if profile == BARRED else []
        print_bars(console, judged)
        report[profile] = reported(found, judged)
        wrong |= is_wrong(found)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, default=float) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
