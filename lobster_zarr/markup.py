"""The pieces that HTML representations are made of: sections, tables, figures, bars, and the style that they share.

Everything that a store could have written is escaped here: a piece is :class:`Markup`, and any other text that goes
into one becomes text. Colours are the page's own, thinned (``currentColor``), so that light and dark notebooks both
fit; accents follow JupyterLab's and VS Code's variables. No script, no id, nothing from elsewhere. Must not know what
is shown.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCROLLED = 16
"""A list of more lines scrolls in its own box."""
TAIL = 9
"""Characters at the end of a name that are always shown."""
PREVIEWED = 8
"""Names that a closed section shows of what it holds."""

STYLE = """
.lz-text{display:none}
.lz-box{display:block!important;--lz-accent:var(--jp-brand-color1,var(--vscode-charts-blue,#3b82d6));
--lz-warm:var(--jp-warn-color1,var(--vscode-charts-orange,#d9822b));
--lz-good:var(--jp-success-color1,var(--vscode-charts-green,#3a9d5d));
--lz-muted:color-mix(in srgb,currentColor 66%,transparent);--lz-line:color-mix(in srgb,currentColor 16%,transparent);
--lz-face:color-mix(in srgb,currentColor 5%,transparent);--lz-track:color-mix(in srgb,currentColor 11%,transparent);
--lz-mono:var(--jp-code-font-family,var(--vscode-editor-font-family,ui-monospace,SFMono-Regular,Menlo,Consolas,
"DejaVu Sans Mono",monospace));
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));
font:13px/1.45 var(--jp-ui-font-family,var(--vscode-font-family,system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif));font-variant-numeric:tabular-nums;text-align:left;max-width:900px;
border:1px solid var(--lz-line);border-radius:8px;overflow:hidden;margin:4px 0;box-sizing:border-box}
@media (prefers-color-scheme:dark){.lz-box{--lz-accent:var(--jp-brand-color1,var(--vscode-charts-blue,#4c93e6))}}
[data-jp-theme-light="false"] .lz-box,[data-theme="dark"] .lz-box,[theme="dark"] .lz-box,.vscode-dark .lz-box,
[data-md-color-scheme="slate"] .lz-box{--lz-accent:#5aa2f2;--lz-warm:#e8a04c;--lz-good:#57bd7b}
.lz-box *{box-sizing:border-box}
.lz-head{padding:9px 14px 10px;background:var(--lz-face);border-bottom:1px solid var(--lz-line)}
.lz-title{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline}
.lz-kind{color:var(--lz-muted)}.lz-big{font-size:15px;font-weight:600}
.lz-end{margin-left:auto;font-weight:600;white-space:nowrap}
.lz-mono{font-family:var(--lz-mono);font-size:12px}
.lz-cut{display:flex;min-width:0;white-space:pre}
.lz-cut>:first-child{overflow:hidden;text-overflow:ellipsis}.lz-cut>:last-child{flex:none}
.lz-uri{display:block;color:var(--lz-muted);overflow-wrap:anywhere;margin-top:1px}
.lz-muted{color:var(--lz-muted);font-weight:400}
.lz-chips{display:flex;flex-wrap:wrap;gap:4px 6px;margin-top:6px}
.lz-chip{border:1px solid var(--lz-line);border-radius:10px;padding:0 8px;font-size:12px;overflow-wrap:anywhere}
.lz-chips.lz-tight{margin:0}
.lz-body{padding:4px 14px 8px}
.lz-box details{border-top:1px solid var(--lz-line)}
.lz-box details:first-child{border-top:0}
.lz-box summary{display:flex;gap:8px;align-items:baseline;cursor:pointer;padding:5px 0;list-style:none;margin:0}
.lz-box summary::-webkit-details-marker{display:none}
.lz-box summary::before{content:"";flex:none;width:0;height:0;border:4px solid transparent;border-right:0;
border-left:6px solid var(--lz-muted);transform:translateY(-1px)}
.lz-box details[open]>summary::before{transform:translateY(-1px) rotate(90deg)}
.lz-box summary:focus-visible{outline:2px solid var(--lz-accent);outline-offset:-2px}
.lz-name{font-weight:600;white-space:nowrap;max-width:60%;overflow:hidden;text-overflow:ellipsis}
.lz-peek{flex:1 1 0;min-width:0;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;color:var(--lz-muted)}
.lz-box details[open]>summary>.lz-peek{visibility:hidden}
.lz-inner{padding:0 0 8px 14px}
.lz-scroll{max-height:360px;overflow:auto}.lz-wide{overflow-x:auto}
.lz-box.lz-box .lz-table{border-collapse:collapse;border:0;width:100%;table-layout:fixed;margin:0 0 4px;font-size:12px;
min-width:600px;color:inherit}
.lz-box.lz-box .lz-table tr,.lz-box.lz-box .lz-table thead{background:none;border:0}
.lz-box.lz-box .lz-table th,.lz-box.lz-box .lz-table td{border:0;padding:2px 14px 2px 0;text-align:left;
white-space:nowrap;overflow:hidden;text-overflow:ellipsis;vertical-align:middle;line-height:1.5;max-width:none;
background:none}
.lz-box.lz-box .lz-table th{font-weight:400;color:var(--lz-muted);font-size:11px}
.lz-box.lz-box .lz-table tbody tr:hover td{background:var(--lz-face)}
.lz-box.lz-box .lz-table .lz-n{text-align:right}
.lz-box.lz-box .lz-table td:last-child,.lz-box.lz-box .lz-table th:last-child{padding-right:4px}
.lz-track{display:block;height:6px;border-radius:3px;background:var(--lz-track);overflow:hidden}
.lz-fill{display:block;height:100%;min-width:1px;background:var(--lz-accent)}
.lz-fill.lz-warm{background:var(--lz-warm)}.lz-fill.lz-good{background:var(--lz-good)}
.lz-strip{display:block;width:100%;background:var(--lz-track);border-radius:2px;fill:var(--lz-accent);
shape-rendering:crispEdges}
.lz-figures{display:flex;flex-wrap:wrap;border-bottom:1px solid var(--lz-line)}
.lz-figure{flex:1 1 110px;padding:8px 14px;border-right:1px solid var(--lz-line)}
.lz-figure:last-child{border-right:0}
.lz-figure b{display:block;font-size:20px;line-height:1.2;font-weight:600;white-space:nowrap}
.lz-figure span{color:var(--lz-muted);font-size:11px}
.lz-columns{display:grid;grid-template-columns:repeat(auto-fill,minmax(245px,1fr));gap:1px 22px;font-size:12px;
padding-right:4px}
.lz-column{display:flex;gap:8px;min-width:0}
.lz-column>:first-child{flex:1 1 auto;min-width:7em}
.lz-column>.lz-muted{flex:none;max-width:55%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.lz-column>.lz-size{flex:none;min-width:4.6em;text-align:right}
.lz-facts{display:grid;grid-template-columns:minmax(70px,max-content) 1fr;gap:3px 16px;padding:4px 0;font-size:12px}
.lz-facts>span:nth-child(odd){color:var(--lz-muted)}
.lz-facts>span{min-width:0;overflow-wrap:anywhere}
.lz-note{padding:5px 0 3px 12px;margin:5px 0 0;border-left:3px solid var(--lz-warm);font-size:12px;
overflow-wrap:anywhere}
.lz-note.lz-plain{border-left-color:var(--lz-line);color:var(--lz-muted)}
.lz-command{font-family:var(--lz-mono);font-size:12px;background:var(--lz-track);border-radius:4px;padding:6px 10px;
margin:8px 0 4px;overflow-wrap:anywhere;white-space:pre-wrap}
"""
_STYLE = "".join(STYLE.splitlines())


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, cls: str = "", **attributes: str) -> Markup:
    """Make an element; children and attributes are escaped, but for what is Markup.

    Parameters
    ----------
    name
        Of the element.
    *children
        What it holds.
    cls
        Its classes, without the prefix ``lz-``.
    **attributes
        Others, ``_`` standing for ``-``.
    """
    if cls:
        attributes = {"class": " ".join(f"lz-{c}" for c in cls.split()), **attributes}
    told = "".join(f' {key.replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    """Put pieces one after another."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in children))


def box(text: str, head: str, *parts: str) -> Markup:
    """Make the whole of a representation.

    Parameters
    ----------
    text
        What is shown where styles are stripped, as in notebooks that are not trusted.
    head, *parts
        The heading, and what lies under it.
    """
    style = Markup(f"<style>{_STYLE}</style>")
    return tag(
        "div",
        style,
        tag("pre", text, cls="text"),
        tag("div", head, *parts, cls="box", style="display:none"),
        cls="repr",
    )


def heading(kind: str, title: str, uri: str, *chips: str, end: str = "") -> Markup:
    """Make a heading: what it is, the main figure, where it is, and facts."""
    parts = tag("span", kind, cls="kind"), tag("span", title, cls="big"), tag("span", end, cls="end")
    line = tag("div", *parts, cls="title")
    told = [tag("span", chip, cls="chip") for chip in chips if chip]
    return tag("div", line, mono(uri, cls="uri"), tag("div", *told, cls="chips") if told else "", cls="head")


def mono(text: str, cls: str = "") -> Markup:
    """Make text in the type of code."""
    return tag("span", text, cls=f"mono {cls}")


def name(text: str) -> Markup:
    """Make a name that is cut in the middle where room is short: both ends tell it from others."""
    at = max(len(text) - TAIL, 0)
    return tag("span", tag("span", text[:at]), tag("span", text[at:]), cls="mono cut", title=text)


def section(title: str, note: str, *parts: str, is_open: bool, names: Sequence[str] = (), end: str = "") -> Markup:
    """Make a section that opens and closes, without a script.

    Parameters
    ----------
    title, note
        What it is, and how much of it there is.
    *parts
        What it holds.
    is_open
        Whether it is open at first.
    names
        The first are told while it is closed.
    end
        At the end of the line: a size.
    """
    peek = ", ".join(names[:PREVIEWED]) + (", …" if len(names) > PREVIEWED else "")
    line = tag(
        "summary",
        tag("span", title, cls="name", title=title),
        tag("span", note, cls="muted"),
        tag("span", peek, cls="peek"),
        tag("span", end, cls="muted"),
    )
    return tag("details", line, tag("div", *parts, cls="inner"), **({"open": ""} if is_open else {}))


def table(heads: Sequence[str], widths: Sequence[int], rows: Sequence[Sequence[str]], right: Iterable[int]) -> Markup:
    """Make a table of fixed proportions, so that several under one another line up.

    Parameters
    ----------
    heads, rows
        Cells.
    widths
        Of the columns, in parts of their sum.
    right
        Columns that are aligned at the right: numbers.
    """
    numeric, total = set(right), sum(widths)
    sizes = [Markup(f'<col style="width:{100 * width / total:.1f}%">') for width in widths]

    def cells(kind: str, row: Sequence[str]) -> Markup:
        made = (tag(kind, cell, cls="n" if at in numeric else "") for at, cell in enumerate(row))
        return tag("tr", *made)

    head = tag("thead", cells("th", heads)) if any(heads) else ""
    body = tag("tbody", *(cells("td", row) for row in rows))
    made = tag("table", tag("colgroup", *sizes), head, body, cls="table")
    return scrolled(made, len(rows)) if len(rows) > SCROLLED else tag("div", made, cls="wide")


def scrolled(part: str, n_lines: int) -> Markup:
    """Put what has many lines in a box of its own that scrolls."""
    return tag("div", part, cls="scroll") if n_lines > SCROLLED else joined([part])


def bar(share: float, cls: str = "") -> Markup:
    """Make a bar that is filled in part, from 0 to 1."""
    width = f"width:{100 * min(max(share, 0), 1):.1f}%"
    fill = tag("span", cls=f"fill {cls}", style=width) if share > 0 else ""
    return tag("span", fill, cls="track")


def figures(*told: tuple[str, str]) -> Markup:
    """Make large figures side by side, each with what it counts."""
    return tag("div", *(tag("div", tag("b", n), tag("span", what), cls="figure") for n, what in told), cls="figures")


def columns(told: Sequence[tuple[str, str, str]]) -> Markup:
    """Make a list in several columns: names, what they are, and their sizes."""
    lines = [
        tag(
            "div",
            name(named),
            tag("span", kind, cls="muted", title=kind),
            tag("span", size, cls="size muted") if size else "",
            cls="column",
        )
        for named, kind, size in told
    ]
    return scrolled(tag("div", *lines, cls="columns"), len(told) // 3)


def facts(*told: tuple[str, str]) -> Markup:
    """Make pairs of a term and what is said of it."""
    return tag("div", *(tag("span", part) for pair in told for part in pair), cls="facts")


def body(*parts: str) -> Markup:
    """Make what lies under a heading."""
    return tag("div", *parts, cls="body")


def notes(texts: Iterable[str], cls: str = "") -> Markup:
    """Make remarks, one under another."""
    return joined(tag("div", text, cls=f"note {cls}") for text in texts)
