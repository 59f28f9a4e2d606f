"""What a selection reads: its axes, its elements, and the plan that tells before it spends.

Resolves what a user asks to positions in storage order, and reads the
elements of exactly those. Asynchronous; :mod:`lobster_zarr.query` is its face.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lobster_zarr.assemble import assemble
from lobster_zarr.blocks import Weights, weigh
from lobster_zarr.costs import array_plan, check_budget, excesses, once_converted
from lobster_zarr.errors import FormatError, NotFoundError, did_you_mean
from lobster_zarr.explain import QueryPlan
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.layout import SOURCE_ORDER
from lobster_zarr.plan import ArrayRead
from lobster_zarr.projection import Axis, Names, Order, Part, Projection
from lobster_zarr.resolve import Resolver, n_named
from lobster_zarr.store import run
from lobster_zarr.table import Known
from lobster_zarr.traffic import Stats, observed

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    import anndata as ad
    import pandas as pd

    from lobster_zarr.element import Layout, StoreReader


_ALL = Axis(None, None)
FEW_GENES = 0.01
"""Of the genes: so few named ones will be read by gene, and the offsets of the cells are not read ahead."""


@dataclass(eq=False)
class Reading:
    """What a selection asks for, and what it has learnt on the way.

    Parameters
    ----------
    reader
        Of the store.
    obs, var
        What the user gave; None for all, ``...`` where the rows are given as positions, in `resolved`.
    order
        Of the result.
    projection
        Which elements.
    max_bytes, memory_limit
        Budgets; None for none.
    stats
        Counts what is read.
    resolved
        Both axes, where they are known.
    """

    reader: StoreReader
    obs: Any
    var: Any
    order: Order
    projection: Projection
    max_bytes: int | None = None
    memory_limit: int | None = None
    stats: Stats = field(default_factory=Stats)
    resolved: tuple[Axis, Axis] | None = None
    is_part: bool = False
    resolver: Resolver = field(init=False)
    counted: int | None = field(default=None, init=False)
    _ways: dict[str, list[Layout]] = field(default_factory=dict)
    _shared: dict[str, Any] | None = None
    """What is read once for all parts of a selection; None where this is not one."""
    _of_parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.reader, self.order)

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.reader, self.obs, self.var, self.order, self.projection, self.max_bytes, self.memory_limit)
        return Reading, (*given, Stats(), self.resolved, self.is_part)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which clause of a predicate left no row, once it was resolved."""
        return self.resolver.notes

    @property
    def uri(self) -> str:
        """Where the store is, for messages."""
        return self.reader.uri

    @property
    def is_sliced(self) -> bool:
        """Whether a part of the source is asked for."""
        return self.is_part or self.obs is not None or self.var is not None

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, count what it reads, and check meanwhile that the store is what it was."""
        identity = self.reader.identity  # of a reader that came in a pickle, this opens the store

        async def counted() -> T:
            with observed(self.stats):
                return await identity.guarded(work)

        return run(counted())

    def ordered(self, order: Order) -> Reading:
        """Return the reading of the same selection in an order, to be resolved anew, but for given positions."""
        axes = self.resolved if self.obs is ... else None
        if axes is not None and order == "storage":
            axes = Axis.of(np.sort(axes[0].stored(self.reader.obs.n_rows))), axes[1]
        return Reading(self.reader, self.obs, self.var, order, self.projection, stats=self.stats, resolved=axes)

    async def count(self) -> int:
        """Count the rows."""
        axis = await self._rows(ordered=False)
        self.counted = axis.count(self.reader.obs.n_rows)
        return self.counted

    @property
    def n_obs_known(self) -> int | None:
        """The number of rows, where it was learnt already."""
        return self.counted if self.resolved is None else self.resolved[0].count(self.reader.obs.n_rows)

    async def _rows(self, *, ordered: bool) -> Axis:
        if self.resolved is not None:
            return self.resolved[0]
        return await self.resolver.axis(self.reader.obs, self.obs, ordered=ordered)

    async def table(self) -> pd.DataFrame:
        """Read the obs rows alone."""
        rows = await self._rows(ordered=True)
        frame, final = await together(
            self.reader.obs.frame(self.projection.obs_columns, rows.runs, self.resolver.known.get("obs")),
            self.settled(rows),
        )
        return final.arrange(frame)

    async def settled_axes(self) -> tuple[Axis, Axis]:
        """Resolve both axes, and the order of the rows."""
        rows, columns = await self.axes()
        if rows.pending:
            rows = await self.settled(rows)
            self.resolved = rows, columns
        return rows, columns

    def part(self, rows: Axis, columns: Axis) -> Reading:
        """Return the reading of some of the rows and columns; what both need is read once."""
        part = Reading(self.reader, None, None, self.order, self.projection, None, None, self.stats, (rows, columns))
        part.is_part = self.is_sliced or rows.runs is not None or columns.runs is not None
        part.resolver, part._shared = self.resolver, self._of_parts if self._shared is None else self._shared
        return part

    def only(self, path: str) -> Reading:
        """Return the reading of one matrix alone: nothing is read ahead for others."""
        axes, alone = self.resolved, Projection.only(path)
        one = Reading(self.reader, self.obs, self.var, self.order, alone, None, None, self.stats, axes, self.is_part)
        one.resolver = self.resolver
        return one

    async def bounds(self, target_bytes: int, path: str | None, multiple: int) -> np.ndarray:
        """Cut the rows into blocks: bounds in the result, from 0 to the number of rows."""
        rows, columns = await self.settled_axes()
        n_rows = rows.count(self.reader.obs.n_rows)
        if path is None:
            matrices = [p.path for p in self.parts(rows, columns) if p.rows is rows and not p.whole]
            path = max(matrices, key=self.reader.size_bytes, default=None)
        if path is None:
            return np.asarray([0, n_rows])
        bounds = (await self.weights(path)).bounds(target_bytes)
        up = np.minimum(-(-bounds // multiple) * multiple, n_rows)
        return up if len(up) == 2 else np.unique(up)

    async def weights(self, path: str) -> Weights:
        """Weigh the rows of one matrix of the selection."""
        rows, columns = await self.settled_axes()
        self.member(path, rows, columns)
        return await weigh(self.reader, path, rows, self.share(path, columns))

    def share(self, path: str, columns: Axis) -> float:
        """About which share of a matrix's rows is in memory at once, where some columns are wanted."""
        narrow = columns.runs is not None and path.partition("/")[0] in {"X", "layers"}
        skips = narrow and (not self.reader.is_sparse(path) or self.reader.has_companion(path))
        return columns.count(self.reader.var.n_rows) / max(self.reader.var.n_rows, 1) if skips else 1.0

    async def matrix(self, path: str) -> Any:
        """Read one matrix of the selection.

        Raises
        ------
        NotFoundError
            The selection does not bring it.
        """
        return await self._read_part(self.member(path, *(await self.settled_axes())))

    def member(self, path: str, rows: Axis, columns: Axis) -> Part:
        """Return one matrix of the selection as it is asked for; no request. An error where it is not."""
        parts = {part.path: part for part in self.parts(rows, columns) if part.rows is rows and not part.whole}
        if path not in parts:
            msg = f"the selection brings no matrix {path!r}.{did_you_mean(path, parts)} It has: {sorted(parts)}"
            raise NotFoundError(msg)
        return parts[path]

    async def settled(self, rows: Axis) -> Axis:
        """Read the source order of the rows, where it is not known yet: no other read waits for it."""
        if not rows.pending:
            return rows
        order = await self.reader.source_order(rows.runs)
        return Axis(rows.runs, np.argsort(order) if np.any(np.diff(order) < 0) else None)

    async def axes(self) -> tuple[Axis, Axis]:
        """Resolve both axes, once."""
        if self.resolved is None:
            both = together(self._rows(ordered=True), self.columns())
            (found, columns), _ = await together(*cast("Any", (both, self.prefetch())))
            self.resolved = found, columns
        return self.resolved

    async def columns(self) -> Axis:
        """Resolve the columns alone."""
        return await self.resolver.axis(self.reader.var, self.var, ordered=True)

    async def prefetch(self) -> None:
        """Read what the plan of any rows needs, while the columns of the predicate are on their way."""
        data = self.reader
        rows, columns = (None if s is None else Axis(Runs.whole(0), None) for s in (self.obs, self.var))
        parts = [p for p in self.parts(rows or _ALL, columns or _ALL) if not p.whole]
        matrices = [p for p in parts if self.reader.is_sparse(p.path)]
        ordered = self.order == "source" and self.reader.is_sorted
        genes, cells = (n_named(s, t) / max(t.n_rows, 1) for s, t in ((self.var, data.var), (self.obs, data.obs)))
        few = genes <= min(FEW_GENES, cells)
        wanted = ((p.path, _runs(p.rows), _runs(p.columns)) for p in matrices)
        work = [data.prefetch(*w, few_columns=few, ordered=ordered) for w in wanted]
        if ordered and self.obs is None and self.var is None:  # else it comes with the offsets of the genes
            work.append(data.prefetch_order())
        await together(*work)

    def parts(self, rows: Axis, columns: Axis) -> list[Part]:
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

    def _in_place(self, part: Part) -> bool:
        """Whether all rows of a matrix can go straight to their places in source order, without a second copy."""
        if part.whole or part.rows is None or part.rows.runs is not None or not part.rows.pending:
            return False
        whole_width = part.columns is None or (part.columns.runs is None and part.columns.take is None)
        sparse = self.reader.is_sparse(part.path)
        return whole_width and part.columns is not part.rows and (not sparse or self.reader.sparse(part.path).row_major)

    def known(self, table: str) -> Known | None:
        """What the predicate has read of obs or var."""
        return self.resolver.known.get(table)

    async def element(self, part: Part) -> Any:
        """Read one element of the selection; its rows are settled."""
        return await self._read_part(part)

    async def _read_part(self, part: Part) -> Any:
        rows, columns = part.rows, part.columns
        if not part.whole:
            layout = self._ways[part.path][0] if part.path in self._ways else None
            if self._in_place(part):
                return await self.reader.matrix(part.path, None, None, layout, await self.reader.source_order())
            value = await self.reader.matrix(part.path, _runs(rows), _runs(columns), layout)
            value = value if rows is None else rows.arrange(value)
            return value if columns is None or columns.take is None else value[:, columns.take]
        whole = value = await self._whole(part.path)
        value = value if rows is None else rows.slice_rows(value)
        value = value if columns is None else columns.slice_rows(value.T).T
        return copy.deepcopy(value) if value is whole and self._shared is not None else value

    async def _whole(self, path: str) -> Any:
        """Read an element whole; once for all parts of a selection."""
        if self._shared is None:
            return await self.reader.whole(path)
        if path not in self._shared:
            self._shared[path] = await self.reader.whole(path)
        return self._shared[path]

    async def _var(self, columns: Axis) -> pd.DataFrame:
        """Read the var rows; once for all parts of a selection with the same genes."""
        kept = None if self._shared is None else self._shared.get("var")
        if kept is not None and kept[0] is columns:
            return kept[1].copy()
        known = self.resolver.known.get("var")
        frame = await self.reader.var.frame(self.projection.var_columns, columns.runs, known)
        if self._shared is None:
            return frame
        self._shared["var"] = columns, frame
        return frame.copy()

    async def read(self) -> ad.AnnData:
        """Read everything that is asked for."""
        await self.check_budget()
        obs, var, results = await self.elements()
        try:
            return await asyncio.to_thread(assemble, obs, var, results, sliced=self.is_sliced)
        except ValueError as error:
            # AnnData refuses elements whose lengths do not fit each other.
            msg = f"the elements of {self.uri} do not fit together: {error} Convert it again from a sound source."
            raise FormatError(msg) from error

    async def elements(self) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """Read everything that is asked for: obs, var, and all else by its path."""
        # Where all rows are asked for, theirs come while the columns are found.
        rows = None if self.obs is None and self.resolved is None else (await self.axes())[0].runs
        frame = self.reader.obs.frame(self.projection.obs_columns, rows, self.resolver.known.get("obs"))
        obs, (final, var, values) = await together(*cast("Any", (frame, self._beside_obs())))
        return final.arrange(obs), var, values

    async def _beside_obs(self) -> tuple[Axis, pd.DataFrame, dict[str, Any]]:
        rows, columns = await self.axes()
        parts = self.parts(rows, columns)
        work = (self._read_part(part) for part in parts)
        var, final, *values = await together(self._var(columns), self.settled(rows), *work)
        if rows.pending:
            read = zip(parts, values, strict=True)
            values = [v if self._in_place(part) else part.arrange(v, rows, final) for part, v in read]
        return final, columns.arrange(var), dict(zip((p.path for p in parts), values, strict=True))

    async def check_budget(self) -> None:
        """Plan the query where it has a budget, and refuse it if it is over."""
        if self.max_bytes is not None or self.memory_limit is not None:
            check_budget(await self.explain(), self.max_bytes, self.memory_limit)

    async def explain(self) -> QueryPlan:
        """Plan the query without running it."""
        before = self.stats.n_requests, self.stats.n_bytes
        rows, columns = await self.axes()
        data, want = self.reader, self.projection
        reads: list[ArrayRead] = []
        for table, chosen, axis in ((data.obs, want.obs_columns, rows), (data.var, want.var_columns, columns)):
            known = self.resolver.known.get(table.path, Known()).columns
            reads += table.reads([c for c in table.frame_columns(chosen) if c not in known], axis.runs)
        if rows.pending and not data.knows_order:
            reads.append(ArrayRead(data.tree.array(f"obs/{SOURCE_ORDER}"), rows.runs))
        for part in self.parts(rows, columns):
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
            arrays=tuple(array_plan(data.fetcher, read) for read in reads),
            layouts={path: {way.name: way.n_bytes for way in ways} for path, ways in self._ways.items()},
            network=data.fetcher.network,
            spent_requests=self.stats.n_requests - before[0],
            spent_bytes=self.stats.n_bytes - before[1],
            notes=(
                *self.resolver.notes,
                *excesses(data, self._ways, rows, columns),
                *await once_converted(data, reads, rows, columns),
            ),
            reordered=rows.take is not None
            or columns.take is not None
            or (rows.pending and any(not (part.whole or self._in_place(part)) for part in self.parts(rows, columns))),
        )


def _runs(axis: Axis | None) -> Runs | None:
    return None if axis is None else axis.runs


def _below(reader: StoreReader, parent: str) -> list[str]:
    """Members of a group, relative to ``raw``."""
    return [f"{parent.removeprefix('raw/')}/{name}" for name in reader.tree.children(parent)]
