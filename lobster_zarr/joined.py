"""The tables of a MuData across its modalities: which row of each is which, and all columns as one table.

MuData keeps, for every modality, where the rows of the global obs and var lie in
it (``obsmap``, ``varmap``: the position counted from 1, 0 where the modality
lacks the row). A column of a modality is one of the global table by its map:
``rna:cell_type``. Must not know predicates or matrices.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any, override

import numpy as np
import pandas as pd

from lobster_zarr.dense import read_array
from lobster_zarr.element import StoreReader
from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.grid import Runs
from lobster_zarr.layout import ALIGNED
from lobster_zarr.obsmap import misfit
from lobster_zarr.selection import runs
from lobster_zarr.store import run
from lobster_zarr.table import Column, Known, TableReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl


class Maps:
    """Where the rows of a global table lie in each modality; read once.

    Parameters
    ----------
    reader
        Of the MuData store.
    table
        ``"obs"`` or ``"var"``.
    tables
        The same table of each modality.
    """

    def __init__(self, reader: StoreReader, table: str, tables: Mapping[str, TableReader]) -> None:
        self.reader, self.path, self.tables = reader, f"{table}map", tables
        self.n_rows = getattr(reader, table).n_rows
        self._known: dict[str, np.ndarray | None] = {}
        self._locks = {name: asyncio.Lock() for name in tables}

    def is_aligned(self, modality: str) -> bool:
        """Whether it is known, without a request, that a modality's rows are those of the global table."""
        if modality in self._known:
            return self._known[modality] is None
        path = f"{self.path}/{modality}"
        noted = self.reader.fetcher.noted and self.reader.tree.is_array(path)
        return noted and self.reader.tree.array(path).note.entries.get(ALIGNED) is True

    async def places(self, modality: str) -> np.ndarray | None:
        """Return the row in a modality of each row, int64, -1 where there is none; None where both are the same.

        Raises
        ------
        FormatError
            The map does not fit the modality.
        """
        async with self._locks[modality]:
            if modality not in self._known:
                self._known[modality] = None if self.is_aligned(modality) else await self._read(modality)
            return self._known[modality]

    async def _read(self, modality: str) -> np.ndarray | None:
        node = self.reader.tree.array(f"{self.path}/{modality}")
        stored, n_rows = await read_array(self.reader.fetcher, node), self.tables[modality].n_rows
        if wrong := misfit(stored, self.n_rows, n_rows):
            msg = f"{node.path!r} of {self.reader.uri} {wrong}; the store is damaged: convert it again."
            raise FormatError(msg)
        places = stored.reshape(-1).astype(np.int64) - 1
        return None if np.array_equal(places, np.arange(n_rows)) else places


class JoinedTable(TableReader):
    """A global table and the columns of the modalities' tables, ``<modality>:<column>``, as one.

    Parameters
    ----------
    reader
        Of the MuData store.
    table
        ``"obs"`` or ``"var"``.
    maps
        Of that table.
    """

    def __init__(self, reader: StoreReader, table: str, maps: Maps) -> None:
        super().__init__(reader.fetcher, reader.tree, table)
        self.maps, own = maps, self.columns
        self.owners: dict[str, tuple[str, str]] = {
            f"{name}:{column}": (name, column)
            for name, part in maps.tables.items()
            for column in part.columns
            if f"{name}:{column}" not in own  # pulled into the global table
        }
        """Modality and column of each name that is not a column of the global table itself."""
        self.columns = (*own, *self.owners)
        self.seen: dict[str, Known] = {}
        """What was read of a modality's table, of exactly the rows of the last read; for its own reading."""

    def _owner(self, name: str) -> tuple[TableReader, str] | None:
        if name not in self.owners:
            return None
        modality, column = self.owners[name]
        return self.maps.tables[modality], column

    @override
    def kind(self, name: str) -> str:
        owner = self._owner(name)
        return owner[0].kind(owner[1]) if owner else super().kind(name)

    @override
    def polars_dtype(self, name: str) -> pl.DataType:
        owner = self._owner(name)
        return owner[0].polars_dtype(owner[1]) if owner else super().polars_dtype(name)

    @override
    def candidates(self, expression: pl.Expr, stored: Mapping[str, str], *, as_text: bool = False) -> Runs | None:
        found = super().candidates(expression, {n: c for n, c in stored.items() if not self._owner(c)}, as_text=as_text)
        for modality, part in self.maps.tables.items():
            own = {n: self.owners[c][1] for n, c in stored.items() if self.owners.get(c, ("",))[0] == modality}
            rows = part.candidates(expression, own, as_text=as_text) if own and self.maps.is_aligned(modality) else None
            found = rows if found is None else found if rows is None else _both(found, rows)
        return found

    @override
    async def column(self, name: str, rows: Runs | None = None) -> Column:
        if name not in self.owners:
            return await super().column(name, rows)
        modality, column = self.owners[name]
        own, placed = await self.located(modality, rows)
        values = self._keep(modality, column, own, await self.maps.tables[modality].column(column, own))
        return values if placed is None else taken(values, placed)

    async def located(self, modality: str, rows: Runs | None) -> tuple[Runs | None, np.ndarray | None]:
        """Locate rows of the global table in a modality.

        Returns
        -------
        tuple
            The rows of the modality, None for all; and where among these each row is, int64, -1 where
            the modality lacks it, None where they are the same one after another.
        """
        places = await self.maps.places(modality)
        if places is None:
            return rows, None
        wanted = places if rows is None else places[rows.positions()]
        unique, at = np.unique(wanted[wanted >= 0], return_inverse=True)
        placed = np.full(len(wanted), -1)
        placed[wanted >= 0] = at
        return None if len(unique) == self.maps.tables[modality].n_rows else Runs(*runs(unique)), placed

    def _keep(self, modality: str, column: str, rows: Runs | None, values: Column) -> Column:
        kept = self.seen.setdefault(modality, Known(rows))
        if _same(kept.rows, rows):
            kept.columns[column] = values
        return values


def _same(a: Runs | None, b: Runs | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a.starts, b.starts) and np.array_equal(a.stops, b.stops)


def _both(a: Runs, b: Runs) -> Runs:
    return Runs(*runs(np.intersect1d(a.positions(), b.positions(), assume_unique=True)))


def taken(values: Column, at: np.ndarray) -> Column:
    """Take positions of a column; -1 is a missing value, which integers and booleans can hold then."""
    missing = at < 0
    if not missing.any():
        return values[at]
    if isinstance(values, np.ndarray) and values.dtype.kind in "iub":
        filled = values[np.where(missing, 0, at)] if len(values) else np.zeros(len(at), values.dtype)
        kind: Any = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
        return kind(filled, missing)
    return pd.api.extensions.take(values, at, allow_fill=True)


class MultimodalReader:
    """Reads a MuData store: the global elements, and each modality as a store of its own.

    Parameters
    ----------
    root
        Reader of the whole store.
    """

    def __init__(self, root: StoreReader) -> None:
        self.root = root

    def __reduce__(self) -> tuple[Any, ...]:
        return MultimodalReader, (self.root,)

    def check(self) -> None:
        """Refuse what is no MuData store; no request.

        Raises
        ------
        FormatError
            It lacks what MuData needs.
        UnsupportedError
            A modality is a MuData itself.
        """
        tree, uri = self.root.tree, self.root.uri
        stored, order = tree.children("mod"), self._order
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(stored):
            msg = f"{uri} holds the modalities {stored}, and names {order} in 'mod-order'; it is damaged."
            raise FormatError(msg)
        if self.axis not in (0, 1, -1):
            msg = f"the attribute 'axis' of {uri} is {self.axis!r}; expected 0, 1 or -1."
            raise FormatError(msg)
        maps = [f"{name}map/{modality}" for name in ("obs", "var") for modality in stored]
        lacks = [p for p in ("obs", "var") if p not in tree] + [p for p in maps if not tree.is_array(p)]
        if lacks:
            msg = f"{uri} is no complete MuData store: it lacks {', '.join(lacks)}. Write it with mudata >= 0.2."
            raise FormatError(msg)
        nested = [name for name in stored if tree.encoding(f"mod/{name}") == "MuData"]
        if nested:
            msg = f"the modalities {nested} of {uri} are MuData themselves; expected AnnData."
            raise UnsupportedError(msg)

    @property
    def _order(self) -> Any:
        tree = self.root.tree
        found = tree.attributes("mod").get("mod-order") if "mod" in tree else None
        return sorted(tree.children("mod")) if found is None else found

    @cached_property
    def modalities(self) -> dict[str, StoreReader]:
        """The modalities by name, in order."""
        return {name: self.root.below(f"mod/{name}") for name in self._order}

    @property
    def axis(self) -> Any:
        """What the modalities share: 0, their cells; 1, their genes; -1, both."""
        return self.root.tree.attributes("").get("axis", 0)

    @cached_property
    def obsmap(self) -> Maps:
        """Where the cells lie in each modality."""
        return Maps(self.root, "obs", {name: part.obs for name, part in self.modalities.items()})

    @cached_property
    def varmap(self) -> Maps:
        """Where the genes lie in each modality."""
        return Maps(self.root, "var", {name: part.var for name, part in self.modalities.items()})

    def joined(self, table: str) -> JoinedTable:
        """Return a global table with the columns of the modalities; of its own, as it remembers what it read."""
        return JoinedTable(self.root, table, self.obsmap if table == "obs" else self.varmap)

    def whole(self) -> StoreReader:
        """Return the reader of the global elements alone."""
        root = self.root
        return StoreReader(root.fetcher, root.tree.without("mod"), root.uri, root.identity)

    def without_notes(self) -> MultimodalReader:
        """Return the reader of the same store as if nothing had been noted of its arrays, with stats of its own."""
        return MultimodalReader(self.root.without_notes())

    def stored_map(self, path: str) -> np.ndarray:
        """Read one array of obsmap or varmap, as it is stored.

        Raises
        ------
        FormatError
            It is not there.
        """
        return run(read_array(self.root.fetcher, self.root.tree.array(path)))

    def orders(self, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Read the source row of each stored row: of the global obs and of a modality's; None where it is kept."""
        readers = self.root, self.modalities[name]
        first, second = (run(reader.source_order()) if reader.is_sorted else None for reader in readers)
        return first, second
