"""Draws what `benchmarks.peers` and `benchmarks.scaling` measured: one SVG a question.

Knows colours and shapes that read on white and on black. Must not know how anything was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN, OTHER, INK, LIMIT = "#2f81f7", "#8b949e", "#7d8590", "#d29922"  # all of middling lightness
TITLES = {
    "T cells": "7.7 % of the cells, all genes",
    "scattered 5 %": "A scattered 5 % of the cells, all genes",
    "one gene, storage": "One gene over all cells",
    "50 genes x T cells": "50 genes of 7.7 % of the cells",
    "count T cells": "How many cells are of a type",
    "whole store": "Everything",
}
WHERE = {"sorted": "our store", "anndata": "AnnData's store", "soma_sorted": "sorted by hand"}


def figure(width: float, height: float) -> Any:
    """Return an empty figure: text as text, no background, the same bytes each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"], mpl.rcParams["svg.hashsalt"] = "none", "benchmarks"
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Any) -> None:
    """Draw what is left of the axes in a colour that shows on white and on black."""
    axes.patch.set_alpha(0)
    axes.tick_params(which="both", colors=INK)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def save(drawn: Any, path: Path) -> None:
    """Write an SVG without a date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def bars(path: Path, title: str, unit: str, rows: list[tuple[str, float]], limit: float | None = None) -> None:
    """Draw a bar a row, on a logarithmic axis, the first in our colour."""
    drawn = figure(7.5, 0.7 + 0.32 * len(rows))
    axes = drawn.subplots()
    names, values = [name for name, _ in rows], [value for _, value in rows]
    drawn_bars = axes.barh(names, values, color=[OWN] + [OTHER] * (len(rows) - 1), height=0.65)
    axes.bar_label(drawn_bars, [f"{v:,.2f}" if v < 10 else f"{v:,.0f}" for v in values], padding=3, color=INK)
    axes.set_xscale("log")
    axes.set_xlim(min([*values, limit or min(values)]) / 2, max(values) * 3)
    if limit:
        axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1)
        axes.annotate("limit", (limit, 1), xycoords=("data", "axes fraction"), color=LIMIT, ha="center", va="bottom")
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", pad=14, color=INK)
    plain(axes)
    save(drawn, path)


def slug(text: str) -> str:
    """Return a name as that of a file."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def reader_name(run: dict[str, Any]) -> str:
    """Return a reader, and its store where that is not the only one."""
    name: str = run["reader"]
    if name == "lobster_zarr" and run["store"] == "h5ad":
        return f"{name}, the H5AD as it is"
    if name == "lobster_zarr" or run["store"] not in WHERE:
        return name
    return f"{name}, {WHERE[run['store']]}"


def draw(report: dict[str, Any], folder: Path) -> None:
    """Draw what a report of `benchmarks.peers` holds."""
    for profile, found in report.get("queries", {}).items():
        for question in dict.fromkeys(f["question"] for f in found):
            runs = [f for f in found if f["question"] == question and "seconds" in f and f["agrees"]]
            rows = [(reader_name(f), f["seconds"]) for f in runs]
            name, title = f"{slug(question)}-{slug(profile)}.svg", f"{TITLES[question]} · {profile}"
            bars(folder / name, title, "seconds", rows, runs[0]["limit_seconds"])
    for name, title, unit, rows in store_plots(report.get("stores", {})):
        bars(folder / name, title, unit, rows)
    if loading := [f for f in report.get("loading", []) if "rows_a_second" in f]:
        speeds = [(f["reader"], f["rows_a_second"]) for f in loading]
        bars(folder / "loading.svg", "Shuffled cells for training · local disk", "cells a second", speeds)
    if asked := report.get("multimodal", {}).get("asked"):
        for question, ways in asked.items():
            rows = [(way, f["seconds"]) for way, f in ways.items()]
            bars(folder / f"mudata-{slug(question)}.svg", f"MuData: {question}", "seconds", rows)


def store_plots(stores: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, list[tuple[str, float]]]]:
    """Yield a plot for each figure of the conversions: file, title, unit, rows."""
    names = {"sorted": "lobster_zarr", "h5ad": "the H5AD", "anndata": "anndata", "soma": "TileDB-SOMA", "slaf": "SLAF"}
    for key, title, unit, scale in (
        ("seconds", "Converting the H5AD", "seconds", 1),
        ("peak_bytes", "Peak memory of converting", "MB", 1e6),
        ("stored_bytes", "Size of the store (ours by cell and by gene)", "MB", 1e6),
    ):
        rows = [(name, stores[s][key] / scale) for s, name in names.items() if key in stores.get(s, {})]
        if rows:
            yield f"convert-{slug(key)}.svg", title, unit, rows


def lines(path: Path, title: str, unit: str, series: dict[str, list[tuple[float, float]]]) -> None:
    """Draw a line a question over the number of cells, both axes logarithmic."""
    drawn = figure(8.5, 4)
    axes = drawn.subplots()
    colours = (OWN, LIMIT, "#3fb950", "#db61a2", "#a371f7", OTHER)
    for colour, (name, points) in zip(colours, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("cells in the store")
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", color=INK)
    axes.legend(frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
    plain(axes)
    save(drawn, path)
