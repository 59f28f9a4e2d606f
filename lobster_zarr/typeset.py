"""Sets text for a terminal of 80 columns: names shortened in the middle, paragraphs wrapped, columns lined up.

Pure. Must not know what is told.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

WIDTH = 80
_UNIT = re.compile(r"(\d) ([kMGT]?B|m?s|min|h|Mbit/s)\b")
"""A number and its unit stay on one line."""
LEAST = 8
"""A column is not made narrower than this."""


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show: a name in a store may hold escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, width: int) -> str:
    """Cut a text in the middle where it is longer than `width`: both ends of a name or URI tell it from others."""
    text = printable(text)
    if len(text) <= width:
        return text
    kept = max(width - 1, 0)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def wrapped(text: str, indent: int, label: str = "") -> list[str]:
    """Break a text into lines; all but the first are indented.

    Parameters
    ----------
    text
        Its own indentation is that of the first line.
    indent
        Of the others.
    label
        Begins the first line, in the place of that much indentation.
    """
    kept = text[: len(text) - len(text.lstrip())]
    first = f"{shortened(label, indent - 2):<{indent}}" if label else kept
    room = WIDTH - indent
    words = [word if len(word) <= room else shortened(word, room) for word in printable(text).split()]
    together = _UNIT.sub("\\1\u00a0\\2", " ".join(words))
    lines = textwrap.wrap(together, WIDTH, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int], shrunk: Sequence[int], indent: int = 2) -> list[str]:
    """Line up cells in columns that fit the width.

    Parameters
    ----------
    rows
        Cells, as many in each row.
    right
        Columns that are aligned at the right: numbers.
    shrunk
        Columns that give way, in this order, where all would be too wide.
    indent
        Of each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for at in shrunk:
        excess = indent + sum(widths) + 2 * (len(widths) - 1) - WIDTH
        widths[at] -= min(max(excess, 0), max(widths[at] - LEAST, 0))
    lines = []
    for row in rows:
        cells = [shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
        placed = [
            c.rjust(w) if at in right else c.ljust(w) for at, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(f"{' ' * indent}{'  '.join(placed)}".rstrip())
    return lines


def titled(title: str, uri: str) -> list[str]:
    """Put a URI behind a title, or under it where that is too wide."""
    uri = printable(uri)
    if len(title) + 2 + len(uri) <= WIDTH:
        return [f"{title}  {uri}"]
    return [title, f"  {shortened(uri, WIDTH - 2)}"]


def human_seconds(seconds: float) -> str:
    """Return a time in a unit that fits: ``0.2 s``, ``3 min``."""
    if seconds < 99.5:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_970 else f"{seconds / 3_600:.1f} h"
