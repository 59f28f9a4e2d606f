"""Shows what a selection asks for, and what is known of it by now, as HTML: without a request.

Must not read anything, nor open a store that came in a pickle and was not used yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr._clause import short
from lobster_zarr.markup import Markup, body, box, facts, heading, joined, mono, notes, section, tag
from lobster_zarr.projection import Axis
from lobster_zarr.report import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lobster_zarr.mureading import JointReading
    from lobster_zarr.reading import Reading
    from lobster_zarr.traffic import Stats

MOST_NAMES = 24
"""Names that are shown of a longer list."""
_ALL = Axis(None, None)


def show(text: str, asked: Reading) -> Markup:
    """Show a selection of an AnnData; `text` stands for it where styles are stripped."""
    if not asked.reader.is_open:
        return box(text, heading("Selection", "of a store that is not open here yet", asked.uri))
    n_obs, n_vars = asked.reader.obs.n_rows, asked.reader.var.n_rows
    columns = None if asked.resolved is None else asked.resolved[1].count(n_vars)
    known = (
        (_known(asked.n_obs_known, asked.obs, n_obs), n_obs, "cells"),
        (_known(columns, asked.var, n_vars), n_vars, "genes"),
    )
    chips = [f"{asked.order} order", *_budget(asked.max_bytes, asked.memory_limit)]
    told = facts(("cells", _selector(asked.obs, n_obs)), *_of_genes(asked))
    head = heading("Selection", _size(known), asked.uri, *chips)
    return box(text, head, body(told, notes(asked.notes), _spent(asked.stats)))


def show_modalities(text: str, asked: JointReading) -> Markup:
    """Show a selection of a MuData."""
    wanted, data = asked.asked, asked.data
    if not data.root.is_open:
        return box(text, heading("MultimodalSelection", "of a store that is not open here yet", asked.uri))
    n_obs = _known(asked.n_obs_known, wanted.obs if wanted.join == "outer" else ..., asked.obs.n_rows)
    known = (n_obs, asked.obs.n_rows, "cells"), (asked.var.n_rows, asked.var.n_rows, "features")
    chips = [f"cells in {'any' if wanted.join == 'outer' else 'all'} of the modalities", f"{wanted.order} order"]
    told = [("cells", _selector(wanted.obs, asked.obs.n_rows))]
    if wanted.var is not None:
        told.append(("features", _selector(wanted.var, asked.var.n_rows)))
    parts = [
        section(
            name,
            f"of {part.reader.obs.n_rows:,} × {part.reader.var.n_rows:,}",
            facts(*_of_genes(part)),
            is_open=True,
        )
        for name, part in asked.parts.items()
    ]
    head = heading(
        "MultimodalSelection", _size(known), asked.uri, *chips, *_budget(wanted.max_bytes, wanted.memory_limit)
    )
    return box(text, head, body(facts(*told), *parts, notes(asked.notes), _spent(asked.stats)))


def _known(learnt: int | None, given: Any, n_rows: int) -> int | None:
    """Return how many are selected, where that was learnt or is plain from what was given."""
    if learnt is not None or given is None:
        return n_rows if learnt is None else learnt
    if not isinstance(given, Sized) or isinstance(given, str | Mapping):
        return None
    values = np.asarray(given)
    return int(np.count_nonzero(values)) if values.dtype == bool else len(given)


def _size(known: Sequence[tuple[int | None, int, str]]) -> str:
    shares = {True: "", False: "some of "}
    return " × ".join(f"{shares[n == of] if n in (None, of) else f'{n:,} of '}{of:,} {what}" for n, of, what in known)


def _budget(max_bytes: int | None, memory_limit: int | None) -> list[str]:
    limits = ("at most", max_bytes, "to read"), ("at most", memory_limit, "of memory")
    return [f"{how} {human_bytes(limit)} {what}" for how, limit, what in limits if limit is not None]


def _of_genes(asked: Reading) -> list[tuple[str, str]]:
    """Tell genes, elements and columns that are asked for."""
    want, obs = asked.projection, asked.reader.obs
    paths = [part.path for part in asked.parts(_ALL, _ALL)]
    told = [("genes", _selector(asked.var, asked.reader.var.n_rows)), ("elements", _chips(paths) if paths else "none")]
    for name, chosen, table in (("obs", want.obs_columns, obs), ("var", want.var_columns, asked.reader.var)):
        every = f"all {len(table.columns):,}" if table.columns else "none"
        told.append((f"{name} columns", every if chosen is None else _chips(chosen) or "none"))
    return told


def _selector(given: Any, n_rows: int) -> str:
    """Tell what selects cells or genes."""
    match given:
        case None:
            return f"all {n_rows:,}"
        case EllipsisType():
            return "those of the selection across modalities"
        case Mapping():
            return joined(tag("div", mono(f"{name}: {short(repr(value))}")) for name, value in given.items())
    if isinstance(given, str) or not isinstance(given, Sized):
        return mono(str(given))
    values = np.asarray(given)
    if values.dtype == bool:
        return f"a mask: {np.count_nonzero(values):,} of {values.size:,}"
    return _chips([str(v) for v in values.ravel()[:MOST_NAMES].tolist()], values.size)


def _chips(names: Iterable[str], n_names: int | None = None) -> Markup:
    """Show names one after another, of many the first."""
    names = list(names)
    left = (len(names) if n_names is None else n_names) - len(names[:MOST_NAMES])
    shown = [tag("span", name, cls="chip mono") for name in names[:MOST_NAMES]]
    more = tag("span", f"and {left:,} more", cls="muted") if left else ""
    return tag("div", *shown, more, cls="chips tight") if names else Markup()


def _spent(stats: Stats) -> Markup:
    if not stats.n_requests:
        return notes(["Nothing of it has been read yet."], "plain")
    return notes([f"Read so far: {human_bytes(stats.n_bytes)} in {stats.n_requests:,} requests."], "plain")
