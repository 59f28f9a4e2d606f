"""Brings what a user asks for along an axis to positions in storage order.

Reads the columns, names and features that this takes, and keeps what the result
needs too. Must not know how matrices lie.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr import predicate as predicates
from lobster_zarr._clause import Names
from lobster_zarr._feature import Feature
from lobster_zarr.errors import NotFoundError, did_you_mean
from lobster_zarr.features import Found, check_matrix, find, has_x, read_features, searched
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.projection import Axis, Order
from lobster_zarr.selection import positions, runs
from lobster_zarr.table import Known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    features
        The values of features that a predicate has read, for the rows that are known of obs.
    """

    reader: StoreReader
    order: Order
    known: dict[str, Known] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    features: dict[Found, np.ndarray] = field(default_factory=dict)
    _indexes: dict[str, pd.Index] = field(default_factory=dict, init=False)
    _locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock), init=False)

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
        parsed, features = await self._parse(table, selector)
        columns = (c for c in parsed.columns if c not in features)
        stored = {c: c if c in table.columns else table.index_column for c in columns}
        rows = table.candidates(parsed.expression, stored)  # a feature has no zones: it may match anywhere
        known = self.known.setdefault(table.path, Known(rows))
        frame = await self._columns(table, parsed, stored, features, known, self.features)
        found = np.flatnonzero(predicates.evaluate(parsed, frame))
        if table.n_rows and not len(found):
            # What the other rows hold says why.
            whole = frame if known.rows is None else await self._columns(table, parsed, stored, features, Known(), {})
            self.notes = tuple(_why_empty(parsed, whole))
        return found if known.rows is None else known.rows.positions()[found]

    async def _parse(self, table: TableReader, selector: Any) -> tuple[predicates.Predicate, dict[str, Found]]:
        """Parse a predicate; what it names of obs that is no column is looked for among the features."""
        kinds = {name: table.kind(name) for name in table.columns}
        index = "_index" if "index" in kinds else "index"
        features: dict[str, Found] = {}
        while True:
            try:
                of_features = {spelled: found.kind for spelled, found in features.items()}
                return predicates.parse(selector, kinds, index=index, axis=table.path, features=of_features), features
            except NotFoundError as error:
                if error.name is None or table.path != "obs":
                    raise
                spelled = error.name
            features[spelled] = await self.feature(spelled, Names(kinds, index, table.path))

    async def feature(self, spelled: str, columns: Names) -> Found:
        """Find the feature that a name stands for which is no column of obs."""
        feature, is_bare = Feature.of(spelled), "[" not in spelled
        if is_bare and not has_x(self.reader):
            raise columns.unknown(spelled, ", and the store has no X with features")
        check_matrix(self.reader, feature)
        names = await self.feature_names(feature.path)
        # A gene may well be called "X.1".
        found = find(self.reader, Feature("X", spelled), names) if feature.path == "X" else None
        found = found or find(self.reader, feature, names)
        if found is not None:
            return found
        if is_bare:
            raise columns.unknown(spelled, " and X no feature of that name", searched(names))
        near = did_you_mean(feature.name, searched(names))
        msg = f"{feature.matrix} has no feature {feature.name!r}, which the predicate names.{near}"
        raise NotFoundError(msg)

    async def feature_names(self, path: str) -> pd.Index:
        """Read the names of the features, and at the same time what reading some of them by gene needs."""
        work: list[Any] = [self._names(self.reader.var, wanted=True)]
        if self.reader.is_sparse(path):
            work.append(self.reader.prefetch(path, None, Runs.whole(0), few_columns=True, ordered=False))
        names: pd.Index = (await together(*work))[0]
        return names

    async def _columns(
        self,
        table: TableReader,
        parsed: predicates.Predicate,
        stored: Mapping[str, str],
        features: Mapping[str, Found],
        known: Known,
        values: dict[Found, np.ndarray],
    ) -> pl.DataFrame:
        """Read the columns and features of a predicate that are not known, and make its table."""
        missing = [c for c in dict.fromkeys(stored.values()) if c not in known.columns]
        unread = [features[c] for c in parsed.columns if c in features and features[c] not in values]
        read, found = await together(
            together(*(table.column(c, known.rows) for c in missing)), self.read_features(unread, known.rows)
        )
        known.columns.update(zip(missing, read, strict=True))
        values.update(found)
        series = [
            predicates.to_polars(c, values[features[c]] if c in features else known.columns[stored[c]])
            for c in parsed.columns
        ]
        return pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(table.n_rows, bool)})

    async def read_features(self, wanted: Sequence[Found], rows: Runs | None) -> dict[Found, Any]:
        """Read the values of features for some rows of obs."""
        return await read_features(wanted, rows)

    async def _names(self, table: TableReader, *, wanted: bool) -> pd.Index | None:
        """Read all names, and keep them for the result; None where they are not wanted."""
        if not wanted:
            return None
        async with self._locks[table.path]:  # both axes may need those of var
            if table.path not in self._indexes:
                known = self.known.setdefault(table.path, Known())
                # A predicate may have read some rows of the table alone: these are all.
                known = known if known.rows is None else Known()
                if table.index_column not in known.columns:
                    known.columns[table.index_column] = await table.column(table.index_column)
                self._indexes[table.path] = table.as_index(known.columns[table.index_column])
            return self._indexes[table.path]


def _why_empty(parsed: predicates.Predicate, frame: pl.DataFrame) -> Iterator[str]:
    """Say which clauses match no row, and which values nearly match their constants."""
    empty = [clause for clause in parsed.clauses if not predicates.evaluate(clause, frame).any()]
    for clause in empty:
        constants = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", clause.text)]
        texts = [frame[c].cast(pl.String).unique().drop_nulls() for c in clause.columns if _is_text(frame[c])]
        few = [values.to_list() for values in texts if len(values) <= MAX_HINTED_VALUES]
        hints = (did_you_mean(constant, values) for constant in constants for values in few)
        yield f"no row matches {clause.text}.{next((h for h in hints if h), '')}"
    if not empty and len(parsed.clauses) > 1:
        yield "each clause matches rows, but no row matches all of them."


def _is_text(values: pl.Series) -> bool:
    return values.dtype in (pl.String, pl.Enum)


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
