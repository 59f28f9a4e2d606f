"""Brings what a user asks for along an axis to positions in storage order.

Reads the columns and names that this takes, and keeps them for the result.
Must not know matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr import predicate as predicates
from lobster_zarr.errors import did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.projection import Axis, Order
from lobster_zarr.selection import positions, runs
from lobster_zarr.table import Known

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.element import StoreReader
    from lobster_zarr.table import TableReader

MAX_HINTED_VALUES = 2_000
"""A column of more values, such as names, is not searched for near ones: that would take seconds."""


@dataclass(eq=False)
class Resolver:
    """Resolves the selectors of one selection.

    Parameters
    ----------
    reader
        Of the store.
    order
        Of the result.
    known
        What was read on the way, by table.
    notes
        Why no row is left, where none is.
    """

    reader: StoreReader
    order: Order
    known: dict[str, Known] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    async def axis(self, table: TableReader, selector: Any, *, ordered: bool) -> Axis:
        """Bring a selector to positions in storage order.

        Parameters
        ----------
        table
            Obs or var.
        selector
            What the user gave.
        ordered
            Whether the order of the result matters: not to count it.
        """
        sorted_rows = table.path == "obs" and self.reader.is_sorted
        to_source = sorted_rows and self.order == "source"
        if selector is None:
            return Axis(None, None, pending=ordered and to_source)
        if isinstance(selector, str | Mapping | pl.Expr) and not _is_name(selector, table):
            found = Runs(*runs(await self._matching(table, selector)))
            return Axis(found, None, pending=ordered and to_source and not self.reader.ascend(found))
        named = _names_needed(selector)
        # How many rows lie between two names is a matter of order, how many names there are is not.
        placed = sorted_rows and (ordered or (named and isinstance(selector, slice)))
        names, place = await together(self._names(table, wanted=named), self._places(wanted=placed))
        # Names say which rows are meant, wherever they lie; positions count in source order.
        in_source = names if names is None or place is None else names[place]
        source = positions(selector, in_source, table.n_rows, axis=table.path)
        source = np.arange(table.n_rows)[source] if isinstance(source, slice) else source
        stored = source if place is None else place[source]
        keep = self.order == "source" or table.path == "var"
        return Axis.of(stored if keep else np.sort(stored))

    async def _places(self, *, wanted: bool) -> np.ndarray | None:
        """Return the stored row of each source row, None where that is not wanted."""
        return np.argsort(await self.reader.source_order(None)) if wanted else None

    async def _matching(self, table: TableReader, selector: Any) -> np.ndarray:
        """Stored positions of the rows that satisfy a predicate."""
        kinds = {name: table.kind(name) for name in table.columns}
        index = "_index" if "index" in kinds else "index"
        parsed = predicates.parse(selector, kinds, index=index, axis=table.path)
        stored = [c if c in kinds else table.index_column for c in parsed.columns]
        rows = table.candidates(parsed.expression, dict(zip(parsed.columns, stored, strict=True)))
        known = self.known.setdefault(table.path, Known(rows))
        frame = await self._columns(table, parsed, stored, known)
        found = np.flatnonzero(predicates.evaluate(parsed, frame))
        if table.n_rows and not len(found):
            # What the other rows hold says why.
            whole = frame if known.rows is None else await self._columns(table, parsed, stored, Known())
            self.notes = tuple(_why_empty(parsed, whole))
        return found if known.rows is None else known.rows.positions()[found]

    async def _columns(
        self, table: TableReader, parsed: predicates.Predicate, stored: list[str], known: Known
    ) -> pl.DataFrame:
        """Read the columns of a predicate that are not known, and make its table."""
        missing = [c for c in dict.fromkeys(stored) if c not in known.columns]
        read = await together(*(table.column(c, known.rows) for c in missing))
        known.columns.update(zip(missing, read, strict=True))
        series = [predicates.to_polars(c, known.columns[s]) for c, s in zip(parsed.columns, stored, strict=True)]
        return pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(table.n_rows, bool)})

    async def _names(self, table: TableReader, *, wanted: bool) -> pd.Index | None:
        """Read all names, and keep them for the result; None where they are not wanted."""
        if not wanted:
            return None
        known = self.known.setdefault(table.path, Known())
        if table.index_column not in known.columns:
            known.columns[table.index_column] = await table.column(table.index_column)
        return table.as_index(known.columns[table.index_column])


def _why_empty(parsed: predicates.Predicate, frame: pl.DataFrame) -> Iterator[str]:
    """Say which clauses match no row, and which values nearly match their constants."""
    empty = [clause for clause in parsed.clauses if not predicates.evaluate(clause, frame).any()]
    for clause in empty:
        constants = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", clause.text)]
        texts = [frame[c].cast(pl.String).unique().drop_nulls() for c in clause.columns if frame[c].dtype != pl.Boolean]
        few = [values.to_list() for values in texts if len(values) <= MAX_HINTED_VALUES]
        hints = (did_you_mean(constant, values) for constant in constants for values in few)
        yield f"no row matches {clause.text}.{next((h for h in hints if h), '')}"
    if not empty and len(parsed.clauses) > 1:
        yield "each clause matches rows, but no row matches all of them."


def _names_needed(selector: Any) -> bool:
    if isinstance(selector, str):
        return True
    if isinstance(selector, slice | int | np.integer):
        return isinstance(selector, slice) and isinstance(selector.start or selector.stop, str)
    first = next(iter(selector), None) if hasattr(selector, "__iter__") else None
    return isinstance(first, str)


def n_named(selector: Any, table: TableReader) -> float:
    """How many rows a selector names; infinite where only the table can tell."""
    if _is_name(selector, table):
        return 1
    return len(selector) if isinstance(selector, list | tuple | np.ndarray | pd.Index) else np.inf


def _is_name(selector: Any, table: TableReader) -> bool:
    """Whether a text is one name, such as a gene's, rather than a predicate."""
    return (
        isinstance(selector, str) and table.path == "var" and selector.isidentifier() and selector not in table.columns
    )
