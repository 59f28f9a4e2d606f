"""Bars, and whether what was measured meets them. Must not know what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from benchmarks.steps import Figures


def judge(judged: list[tuple[str, float, str, float]]) -> list[Figures]:
    """Say of each bar whether it is met; what is not a number meets none."""
    keys = ("bar", "measured", "sense", "bound")
    return [dict(zip(keys, j, strict=True), passed=j[1] <= j[3] if j[2] == "<=" else j[1] >= j[3]) for j in judged]


def print_bars(console: Console, judged: list[Figures]) -> None:
    """Print the bars, a line each."""
    for b in judged:
        verdict = "met    " if b["passed"] else "NOT MET"
        console.print(f"{verdict}  {b['bar']}: {b['measured']:,.2f} {b['sense']} {b['bound']}", highlight=False)


def reported(found: Mapping[tuple[str, ...], Figures], judged: list[Figures]) -> Figures:
    """Return the runs of a profile and its bars as plain values."""
    return {"runs": [{"run": run, **figures} for run, figures in found.items()], "bars": judged}


def is_wrong(found: Mapping[tuple[str, ...], Figures]) -> bool:
    """Whether a run failed, or its answer differs from AnnData's."""
    return any(figures.get("error") == "failed" or not figures["agrees"] for figures in found.values())
