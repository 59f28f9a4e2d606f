"""Writes what was measured into a page of the documentation, between two comments that stay where they are.

Knows tables in Markdown. Must not know how anything was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.plots import TITLES, reader_name, slug

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


SENSES, VERDICTS = {"<=": "≤", ">=": "≥"}, {True: "met", False: "**not met**"}


def fill(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- measured: name -->`` and ``<!-- end -->``."""
    text, opening = page.read_text(), f"<!-- measured: {name} -->\n"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition("<!-- end -->")
    if not (found and closed):
        raise SystemExit(f"{page}: expected {opening.strip()!r} and '<!-- end -->' after it; add them.")
    page.write_text("\n".join([before + opening, *lines, "", closed + after]))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def images(folder: str, names: Sequence[str], alts: Sequence[str]) -> list[str]:
    """Return the lines that show plots."""
    return ["", *(f"![{alt}]({folder}/{name})" for name, alt in zip(names, alts, strict=True))]


def run_cell(found: dict[str, Any] | None) -> str:
    """Return one run as seconds, requests, megabytes."""
    if found is None or "seconds" not in found:
        return (found or {}).get("error", "").replace(">", "more than")
    cost = f"{found['seconds']:.3g} s, {found['n_requests']:,}, {found['n_bytes'] / 1e6:.3g} MB"
    return cost if found["agrees"] else f"{cost}, **wrong**"


def query_lines(profile: str, found: list[dict[str, Any]], verdicts: Sequence[str]) -> list[str]:
    """Return a table of the readers by the questions: seconds, requests, megabytes; then where this package stands."""
    questions = list(dict.fromkeys(f["question"] for f in found))
    readers = list(dict.fromkeys((f["reader"], f["store"]) for f in found))
    by_run = {(f["question"], f["reader"], f["store"]): f for f in found}
    limits = {f["question"]: f"{f['limit_seconds']:.3g} s, {f['asked_bytes'] / 1e6:.3g} MB" for f in found}
    rows = [["physical limit", *(limits[q] for q in questions)]]
    for reader, store in readers:
        name = reader_name({"reader": reader, "store": store})
        rows.append([name, *(run_cell(by_run.get((q, reader, store))) for q in questions)])
    plots = [f"{slug(q)}-{slug(profile)}.svg" for q in questions]
    said = [f"- {verdict}" for verdict in verdicts]
    shown = table([profile, *(TITLES[q] for q in questions)], rows)
    return [*shown, "", *said, *images("benchmarks", plots, [TITLES[q] for q in questions])]


def store_lines(stores: dict[str, dict[str, Any]], names: dict[str, str]) -> list[str]:
    """Return a table of what converting took and made."""
    rows = []
    for store, f in stores.items():
        sizes = [f"{f[k] / 1e6:,.0f}" if k in f else "" for k in ("peak_bytes", "written_bytes", "stored_bytes")]
        seconds = f"{f['seconds']:.1f}" if "seconds" in f else f.get("error", "")
        rows.append([names.get(store, "the H5AD itself"), seconds, *sizes, f"{f.get('n_objects', ''):,}"])
    return table(["", "seconds", "peak memory, MB", "written, MB", "stored, MB", "objects"], rows)


def bar_lines(bars: list[dict[str, Any]]) -> list[str]:
    """Return a table of the bars."""
    rows = [
        (b["bar"], f"{b['measured']:,.2f}", f"{SENSES[b['sense']]} {b['bound']}", VERDICTS[b["passed"]]) for b in bars
    ]
    return table(["bar", "measured", "wanted", ""], rows)
