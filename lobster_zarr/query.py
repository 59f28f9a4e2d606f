"""A selection of cells and genes: nothing is read until its rows, table or matrices are asked for.

Resolves what a user asks to positions in storage order, reads the elements of
exactly those, and assembles what slicing the source in memory would give.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr import predicate as predicates
from lobster_zarr.errors import BudgetError, FormatError, did_you_mean
from lobster_zarr.explain import ArrayPlan, QueryPlan
from lobster_zarr.fetch import Fetcher, Stats, observed, together
from lobster_zarr.grid import Runs
from lobster_zarr.layout import SOURCE_ORDER
from lobster_zarr.plan import ArrayRead
from lobster_zarr.projection import Axis, Names, Order, Part, Projection
from lobster_zarr.report import human_bytes
from lobster_zarr.selection import positions, runs
from lobster_zarr.store import run
from lobster_zarr.table import Known

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from lobster_zarr.element import Layout, StoreReader
    from lobster_zarr.table import TableReader


_ALL = Axis(None, None)
FEW_GENES = 0.01
"""Of the genes: so few named ones will be read by gene, and the offsets of the cells are not read ahead."""
MAX_HINTED_VALUES = 2_000
"""A column of more values, such as names, is not searched for near ones: that would take seconds."""


@dataclass(eq=False)
class Selection:
    """Cells and genes of a store, not yet read. Made by :meth:`Dataset.query`."""

    reader: StoreReader
    uri: str
    obs: Any
    var: Any
    order: Order
    projection: Projection
    max_bytes: int | None = None
    memory_limit: int | None = None
    stats: Stats = field(default_factory=Stats, repr=False)
    """What this selection has read since it was made."""
    notes: tuple[str, ...] = ()
    """Which clause of a predicate left no row, with values that are near, once it was resolved."""
    _resolved: tuple[Axis, Axis] | None = field(default=None, repr=False)
    _known: dict[str, Known] = field(default_factory=dict, repr=False)
    _ways: dict[str, list[Layout]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Selection(obs={self.obs!r}, var={self.var!r}, order={self.order!r}) of {self.uri}"

    def count(self) -> int:
        """Count the cells. Reads the columns that the predicate names, nothing else."""
        axis = self._run(self._resolve(self.reader.obs, self.obs, ordered=False))
        return axis.count(self.reader.obs.n_rows)

    def explain(self) -> QueryPlan:
        """Plan the query without running it.

        Reads what the plan needs: the columns of the predicate, offsets and shard
        indexes; nothing of X. Running the selection afterwards sends exactly the
        requests, and reads exactly the bytes, that an exact plan names.

        Returns
        -------
        QueryPlan
            Prints as a table; ``to_dict()`` for programs.
        """
        return self._run(self._explain())

    def to_pandas(self) -> pd.DataFrame:
        """Read the obs rows alone. Categories stay as they are stored."""
        return self._run(self._obs())

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        async def counted() -> T:
            with observed(self.stats):
                return await work

        return run(counted())

    def to_table(self) -> pd.DataFrame:
        """Read the obs rows with the names as the first column.

        It is called as the index is named, else ``index``, or ``_index`` where a
        column has that name.
        """
        frame = self.to_pandas()
        if frame.index.name in frame.columns:  # which holds the same values
            return frame.reset_index(drop=True)
        return frame.reset_index(names=frame.index.name or ("_index" if "index" in frame.columns else "index"))

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_table` to a Parquet file."""
        from pathlib import Path

        self.to_table().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self) -> ad.AnnData:
        """Read the selection: what slicing the source in memory gives.

        Returns
        -------
        AnnData
            Values, dtypes, categories, order, names and uns as
            ``source[obs, var].copy()``; a companion or sort order does not show.

        Raises
        ------
        BudgetError
            The plan exceeds `max_bytes` or `memory_limit`; nothing of X was read.
        ChunkDecodeError, StorageError
            A chunk is damaged, or the storage failed.
        """
        return self._run(self._read())

    async def _obs(self) -> pd.DataFrame:
        rows = await self._resolve(self.reader.obs, self.obs, ordered=True)
        frame, final = await together(
            self.reader.obs.frame(self.projection.obs_columns, rows.runs, self._known.get("obs")),
            self._settled(rows),
        )
        return final.arrange(frame)

    async def _settled(self, rows: Axis) -> Axis:
        """Read the source order of the rows, where it is not known yet: no other read waits for it."""
        if not rows.pending:
            return rows
        order = await self.reader.source_order(rows.runs)
        return Axis(rows.runs, np.argsort(order) if np.any(np.diff(order) < 0) else None)

    async def _names(self, table: TableReader) -> pd.Index:
        """Read all names, and keep them for the result."""
        known = self._known.setdefault(table.path, Known())
        if table.index_column not in known.columns:
            known.columns[table.index_column] = await table.column(table.index_column)
        return table.as_index(known.columns[table.index_column])

    async def _axes(self) -> tuple[Axis, Axis]:
        """Resolve both axes, once."""
        if self._resolved is None:
            axes = (
                self._resolve(self.reader.obs, self.obs, ordered=True),
                self._resolve(self.reader.var, self.var, ordered=True),
            )
            (rows, columns), _ = await together(*cast("Any", (together(*axes), self._prefetch())))
            self._resolved = rows, columns
        return self._resolved

    async def _prefetch(self) -> None:
        """Read what the plan of any rows needs, while the columns of the predicate are on their way."""
        rows, columns = (None if s is None else Axis(Runs.whole(0), None) for s in (self.obs, self.var))
        parts = [p for p in self._parts(rows or _ALL, columns or _ALL) if not p.whole]
        matrices = [p for p in parts if self.reader.is_sparse(p.path)]
        ordered = self.order == "source" and self.reader.is_sorted
        few = _n_named(self.var, self.reader.var) <= FEW_GENES * self.reader.var.n_rows
        wanted = ((p.path, _runs(p.rows), _runs(p.columns)) for p in matrices)
        await together(*(self.reader.prefetch(*w, few_columns=few, ordered=ordered) for w in wanted))

    async def _resolve(self, table: TableReader, selector: Any, *, ordered: bool) -> Axis:
        """Bring a selector to positions in storage order."""
        sorted_rows = table.path == "obs" and self.reader.is_sorted
        to_source = sorted_rows and self.order == "source"
        if selector is None:
            return Axis(None, None, pending=ordered and to_source)
        if isinstance(selector, str | Mapping | pl.Expr) and not _is_name(selector, table):
            found = Runs(*runs(await self._matching(table, selector)))
            return Axis(found, None, pending=ordered and to_source and not self.reader.ascend(found))
        names = await self._names(table) if _names_needed(selector) else None
        if sorted_rows and names is not None:
            names = names[np.argsort(await self.reader.source_order(None))]
        source = positions(selector, names, table.n_rows, axis=table.path)
        source = np.arange(table.n_rows)[source] if isinstance(source, slice) else source
        if not sorted_rows:
            keep = self.order == "source" or table.path == "var"
            return Axis.of(source if keep else np.sort(source))
        place = np.argsort(await self.reader.source_order(None))
        stored = place[source]
        return Axis.of(stored if self.order == "source" else np.sort(stored))

    async def _matching(self, table: TableReader, selector: Any) -> np.ndarray:
        """Stored positions of the rows that satisfy a predicate."""
        kinds = {name: table.kind(name) for name in table.columns}
        index = "_index" if "index" in kinds else "index"
        parsed = predicates.parse(selector, kinds, index=index, axis=table.path)
        stored = [c if c in kinds else table.index_column for c in parsed.columns]
        rows = table.candidates(parsed.expression, dict(zip(parsed.columns, stored, strict=True)))
        known = self._known.setdefault(table.path, Known(rows))
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

    def _parts(self, rows: Axis, columns: Axis) -> list[Part]:
        """Everything that is read but obs and var."""
        data, want = self.reader, self.projection
        parts = [Part("X", rows, columns)] if want.X and "X" in data.tree and data.tree.encoding("X") != "null" else []
        aligned = {"layers": (rows, columns), "obsp": (rows, rows), "obsm": (rows, None)}
        for parent, (major, minor) in aligned.items():
            for name in self._members(parent):
                path = f"{parent}/{name}"
                parts.append(Part(path, major, minor, whole=not data.is_matrix(path)))
        parts += [Part(f"varm/{name}", columns, None, whole=True) for name in self._members("varm")]
        parts += [Part(f"varp/{name}", columns, columns, whole=True) for name in self._members("varp")]
        if want.uns and "uns" in data.tree:
            parts.append(Part("uns", whole=True))
        if want.raw and "raw" in data.tree and data.tree.encoding("raw") != "null":
            parts += [Part("raw/X", rows)] if "raw/X" in data.tree else []
            parts += [Part(f"raw/{name}", whole=True) for name in ("var", *_below(data, "raw/varm"))]
        return parts

    def _members(self, parent: str) -> Sequence[str]:
        chosen: Names = getattr(self.projection, parent)
        return self.reader.tree.children(parent) if chosen is None else chosen

    async def _read_part(self, part: Part) -> Any:
        rows, columns = part.rows, part.columns
        if not part.whole:
            layout = self._ways[part.path][0] if part.path in self._ways else None
            value = await self.reader.matrix(part.path, _runs(rows), _runs(columns), layout)
            value = value if rows is None else rows.arrange(value)
            return value if columns is None or columns.take is None else value[:, columns.take]
        value = await self.reader.whole(part.path)
        value = value if rows is None else rows.slice_rows(value)
        return value if columns is None else columns.slice_rows(value.T).T

    async def _read(self) -> ad.AnnData:
        if self.max_bytes is not None or self.memory_limit is not None:
            self._check_budget(await self._explain())
        rows, columns = await self._axes()
        data, want, parts = self.reader, self.projection, self._parts(*await self._axes())
        obs, var, final, *values = await together(
            data.obs.frame(want.obs_columns, rows.runs, self._known.get("obs")),
            data.var.frame(want.var_columns, columns.runs, self._known.get("var")),
            self._settled(rows),
            *(self._read_part(part) for part in parts),
        )
        if rows.pending:
            values = [part.arrange(value, rows, final) for part, value in zip(parts, values, strict=True)]
        results = dict(zip((p.path for p in parts), values, strict=True))
        try:
            return await asyncio.to_thread(self._assemble, final.arrange(obs), columns.arrange(var), results)
        except ValueError as error:
            # AnnData refuses elements whose lengths do not fit each other.
            msg = f"the elements of {self.uri} do not fit together: {error} Convert it again from a sound source."
            raise FormatError(msg) from error

    async def _explain(self) -> QueryPlan:
        before = self.stats.n_requests, self.stats.n_bytes
        rows, columns = await self._axes()
        data, want = self.reader, self.projection
        reads: list[ArrayRead] = []
        for table, chosen, axis in ((data.obs, want.obs_columns, rows), (data.var, want.var_columns, columns)):
            known = self._known.get(table.path, Known()).columns
            reads += table.reads([c for c in table.frame_columns(chosen) if c not in known], axis.runs)
        if rows.pending and not data.knows_order:
            reads.append(ArrayRead(data.tree.array(f"obs/{SOURCE_ORDER}"), rows.runs))
        for part in self._parts(rows, columns):
            if part.whole:
                reads += data.whole_reads(part.path)
            elif data.is_sparse(part.path):
                if part.path not in self._ways:
                    self._ways[part.path] = await data.layouts(part.path, _runs(part.rows), _runs(part.columns))
                reads += self._ways[part.path][0].reads
            else:
                reads.append(ArrayRead(data.dense(part.path), _runs(part.rows), _runs(part.columns)))
        await data.fetcher.prepare(reads)
        return QueryPlan(
            uri=self.uri,
            n_obs=rows.count(data.obs.n_rows),
            n_vars=columns.count(data.var.n_rows),
            arrays=tuple(_array_plan(data.fetcher, read) for read in reads),
            layouts={path: {way.name: way.n_bytes for way in ways} for path, ways in self._ways.items()},
            network=data.fetcher.network,
            spent_requests=self.stats.n_requests - before[0],
            spent_bytes=self.stats.n_bytes - before[1],
            notes=self.notes,
        )

    def _check_budget(self, plan: QueryPlan) -> None:
        for name, limit, cost in (
            ("max_bytes", self.max_bytes, plan.n_bytes),
            ("memory_limit", self.memory_limit, plan.memory_bytes),
        ):
            if limit is not None and cost > limit:
                msg = (
                    f"the query on {self.uri} would need {human_bytes(cost)}, over {name}={human_bytes(limit)} "
                    f"({plan.n_obs:,} cells × {plan.n_vars:,} genes); narrow it, or raise the limit."
                )
                raise BudgetError(msg)

    def _assemble(self, obs: pd.DataFrame, var: pd.DataFrame, results: dict[str, Any]) -> ad.AnnData:
        uns = results.pop("uns", None) or {}
        parts: dict[str, Any] = {p: {} for p in ("layers", "obsm", "varm", "obsp", "varp", "raw")}
        for path, value in results.items():
            parent, _, name = path.partition("/")
            if name:
                parts[parent][name] = value
        raw = parts.pop("raw")
        varm = {name.removeprefix("varm/"): raw.pop(name) for name in list(raw) if name.startswith("varm/")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's notes on names that are not unique
            if self.obs is not None or self.var is not None:
                # AnnData drops unused categories, and their colors, when it is sliced.
                frames: dict[str, Any] = {
                    p: {n: v for n, v in parts[p].items() if isinstance(v, pd.DataFrame)} for p in ("obsm", "varm")
                }
                shell = ad.AnnData(obs=obs, var=var, uns=uns, **frames)[:, :].copy()
                obs, var, uns = shell.obs, shell.var, shell.uns
                for parent in frames:
                    parts[parent] |= dict(getattr(shell, parent))
            whole_raw = {"X": None, **raw, "varm": varm} if raw else None
            return ad.AnnData(results.get("X"), obs=obs, var=var, uns=uns, raw=whole_raw, **parts)


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


def _runs(axis: Axis | None) -> Runs | None:
    return None if axis is None else axis.runs


def _below(reader: StoreReader, parent: str) -> list[str]:
    """Members of a group, relative to ``raw``."""
    return [f"{parent.removeprefix('raw/')}/{name}" for name in reader.tree.children(parent)]


def _array_plan(fetcher: Fetcher, read: ArrayRead) -> ArrayPlan:
    plan = fetcher.plan(read)
    n_bytes, exact = fetcher.expected_bytes(read, plan)
    node = read.node
    return ArrayPlan(
        node.path, len(fetcher.sent(plan)), n_bytes, exact, read.chunk_ids, node.grid.n_chunks, read.result_bytes
    )


def _names_needed(selector: Any) -> bool:
    if isinstance(selector, str):
        return True
    if isinstance(selector, slice | int | np.integer):
        return isinstance(selector, slice) and isinstance(selector.start or selector.stop, str)
    first = next(iter(selector), None) if hasattr(selector, "__iter__") else None
    return isinstance(first, str)


def _n_named(selector: Any, table: TableReader) -> float:
    """How many rows a selector names; infinite where only the table can tell."""
    if _is_name(selector, table):
        return 1
    return len(selector) if isinstance(selector, list | tuple | np.ndarray | pd.Index) else np.inf


def _is_name(selector: Any, table: TableReader) -> bool:
    """Whether a text is one name, such as a gene's, rather than a predicate."""
    return (
        isinstance(selector, str) and table.path == "var" and selector.isidentifier() and selector not in table.columns
    )
