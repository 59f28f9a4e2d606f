"""What a selection of a MuData reads: global rows, and in each modality the cells and genes that they stand for.

The predicate is resolved on the global tables, joined with those of the
modalities; a modality then is a :class:`~lobster_zarr.reading.Reading` of
known positions. One plan for all of it. Asynchronous; :mod:`lobster_zarr.muquery`
is its face.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lobster_zarr.costs import check_budget
from lobster_zarr.explain import QueryPlan
from lobster_zarr.fetch import together
from lobster_zarr.muresolve import JointResolver
from lobster_zarr.projection import Axis, Order, Projection
from lobster_zarr.reading import Reading
from lobster_zarr.resolve import Resolver
from lobster_zarr.traffic import Stats

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    import mudata
    import pandas as pd

    from lobster_zarr.joined import Maps, MultimodalReader

Join = Literal["outer", "inner"]


@dataclass(frozen=True)
class Question:
    """What is asked of a MuData.

    Parameters
    ----------
    obs, var
        What the user gave for the global tables; None for all.
    var_of
        By modality, what the user gave for its own genes.
    order
        Of the result.
    modalities
        Those that are wanted.
    join
        Cells that are in any of them, or in all.
    projections
        By modality, which elements of it.
    whole
        Which global elements.
    max_bytes, memory_limit
        Budgets; None for none.
    """

    obs: Any
    var: Any
    var_of: Mapping[str, Any]
    order: Order
    modalities: tuple[str, ...]
    join: Join
    projections: Mapping[str, Projection]
    whole: Projection
    max_bytes: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of the result lie.

    Parameters
    ----------
    axis
        Rows of the global table.
    n_rows
        How many.
    maps
        By modality, uint32 (n_rows,): the row in the modality's result, counted from 1; 0 where there is none.
    """

    axis: Axis
    n_rows: int
    maps: Mapping[str, np.ndarray]


class JointReading:
    """What a selection of a MuData asks for, and what it has learnt on the way.

    Parameters
    ----------
    data
        The store.
    asked
        What is wanted of it.
    """

    def __init__(self, data: MultimodalReader, asked: Question) -> None:
        self.data, self.asked, self.stats = data, asked, Stats()
        self.obs, self.var = data.joined("obs"), data.joined("var")
        whole = replace(asked.whole, X=False, raw=False, layers=[])
        self.root = Reading(data.root, asked.obs, asked.var, asked.order, whole, stats=self.stats)
        self.parts = {name: self._part(name) for name in asked.modalities}
        others = {name: Resolver(part, asked.order) for name, part in data.modalities.items() if name not in self.parts}
        resolvers = {name: part.resolver for name, part in self.parts.items()} | others
        self.resolver = self.root.resolver = JointResolver(data, asked.order, self.obs, resolvers)
        self._axes: tuple[Places, Places] | None = None
        self.counted: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return JointReading, (self.data, self.asked)  # resolved anew: what was learnt may be as long as the tables

    def _part(self, name: str) -> Reading:
        asked = self.asked
        obs = ... if self._sliced else None  # which rows, and their order, is resolved here
        var = asked.var_of.get(name, asked.var)
        order: Order = "storage" if self._sliced else asked.order
        budget = asked.max_bytes, asked.memory_limit  # of one alone too
        return Reading(self.data.modalities[name], obs, var, order, asked.projections[name], *budget, self.stats)

    @property
    def _sliced(self) -> bool:
        """Whether cells and genes of a modality are in the order of the global tables, as slicing a MuData has them."""
        return self.asked.obs is not None or self.asked.var is not None or self.asked.join == "inner"

    @property
    def notes(self) -> tuple[str, ...]:
        """Which clause of a predicate left no row, once it was resolved."""
        return self.resolver.notes

    @property
    def uri(self) -> str:
        """Where the store is, for messages."""
        return self.data.root.uri

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, count what it reads, and check meanwhile that the store is what it was."""
        return self.root.run(work)

    @property
    def _filter(self) -> Join | None:
        """Which rows are left out because of what the chosen modalities lack; None where each is in one of them."""
        whole = len(self.asked.modalities) == len(self.data.modalities)
        return None if whole and self.asked.join == "outer" else self.asked.join

    async def count(self) -> int:
        """Count the rows."""
        rows = await self.resolver.axis(self.obs, self.asked.obs, ordered=False)
        if self._filter is None:
            self.counted = rows.count(self.obs.n_rows)
        else:
            self.counted = len((await self._keep(rows.stored(self.obs.n_rows)))[0])
        return self.counted

    @property
    def n_obs_known(self) -> int | None:
        """The number of rows, where it was learnt already."""
        return self.counted if self._axes is None else self._axes[0].n_rows

    async def table(self) -> pd.DataFrame:
        """Read the rows of obs alone, with the columns of the modalities."""
        rows = await self.root.settled(await self.resolver.axis(self.obs, self.asked.obs, ordered=True))
        if self._filter is not None:
            rows = _axis((await self._keep(rows.stored(self.obs.n_rows)))[0], self.obs.n_rows)
        columns = [name for name in self.obs.columns if self._brings(name)]
        return rows.arrange(await self.obs.frame(columns, rows.runs, self.resolver.known.get("obs")))

    def _brings(self, name: str) -> bool:
        modality, column = self.obs.owners.get(name, ("", name))
        if modality and modality not in self.parts:
            return False
        chosen = (self.asked.projections[modality] if modality else self.asked.whole).obs_columns
        return chosen is None or column in chosen

    async def _keep(self, stored: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Leave out the rows that the chosen modalities lack; return with the rest their row in each, or -1."""
        places = await self._places(self.data.obsmap, stored)
        return _joined(stored, places, self._filter)

    async def _places(self, maps: Maps, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Return the stored row in each modality of some stored rows of a global table, -1 where there is none."""
        found = await together(*(maps.places(name) for name in self.parts))
        return {name: stored if at is None else at[stored] for name, at in zip(self.parts, found, strict=True)}

    async def axes(self) -> tuple[Places, Places]:
        """Resolve rows and columns, once, and read meanwhile what the plans of the modalities will need."""
        if self._axes is None:
            ahead = [part.prefetch() for part in (self.root, *self.parts.values())]
            resolving = together(self._rows(), self._columns())
            ((rows, own_rows), (columns, own_columns)), _ = await together(*cast("Any", (resolving, together(*ahead))))
            self.root.resolved = rows.axis, columns.axis
            for name, part in self.parts.items():
                part.resolved = own_rows[name], own_columns[name]
                for table, chosen in ((self.obs, self.asked.obs), (self.var, self.asked.var)):
                    if chosen is not None and name in table.seen:
                        part.resolver.known.setdefault(table.path, table.seen[name])
            self._axes = rows, columns
        return self._axes

    async def _rows(self) -> tuple[Places, dict[str, Axis]]:
        axis = await self.root.settled(await self.resolver.axis(self.obs, self.asked.obs, ordered=True))
        stored, places = await self._keep(axis.stored(self.obs.n_rows))
        if self._sliced:
            return _by_whole(stored, places, self.data.obsmap)
        own = await together(*(self._own_rows(part) for part in self.parts.values()))
        return _by_parts(stored, places, self.data.obsmap, dict(zip(self.parts, own, strict=True)))

    async def _own_rows(self, part: Reading) -> Axis:
        return await part.settled(await part.resolver.axis(part.reader.obs, None, ordered=True))

    async def _columns(self) -> tuple[Places, dict[str, Axis]]:
        if self.asked.var is not None:
            axis = await self.resolver.axis(self.var, self.asked.var, ordered=True)
            stored = axis.stored(self.var.n_rows)
            every = await self._places(self.data.varmap, stored)
            stored, places = _joined(stored, every, None if self._filter is None else "outer")
            return _by_whole(stored, places, self.data.varmap)
        stored = np.arange(self.var.n_rows)
        ordered = {name for name in self.parts if self._sliced and name not in self.asked.var_of}
        free = {name: part for name, part in self.parts.items() if name not in ordered}
        work: Any = (self._places(self.data.varmap, stored), *(part.columns() for part in free.values()))
        places, *found = await together(*work)
        own = dict(zip(free, found, strict=True))
        own |= {name: _axis(_present(places[name]), self.data.varmap.tables[name].n_rows) for name in ordered}
        return _by_parts(stored, places, self.data.varmap, own)

    async def read(self) -> mudata.MuData:
        """Read everything that is asked for."""
        import mudata

        await self.check_budget()
        await self.axes()
        whole, *parts = await together(*cast("Any", (self.root.elements(), *(p.read() for p in self.parts.values()))))
        return await asyncio.to_thread(self.assemble, whole, parts, mudata.MuData)

    def assemble[T: mudata.MuData](
        self, whole: tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]], parts: Sequence[Any], kind: type[T]
    ) -> T:
        """Make a MuData of its global elements and the AnnData of each modality."""
        obs, var, results = whole
        groups: dict[str, dict[str, Any]] = {name: {} for name in ("obsm", "varm", "obsp", "varp")}
        uns = results.pop("uns", None) or {}
        for path, value in results.items():
            parent, _, name = path.partition("/")
            groups[parent][name] = value
        axes = dict(zip(("obs", "var"), self._axes or (), strict=True))
        for table, places in axes.items():
            groups[f"{table}map"] = dict(places.maps)
            groups[f"{table}m"] |= {name: (at > 0).reshape(-1, 1) for name, at in places.maps.items()}
        data = dict(zip(self.parts, parts, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes of mudata's and anndata's on names that are not unique
            made: T = kind(data, obs=obs, var=var, uns=uns, axis=int(self.data.axis), **groups)
        return made

    async def check_budget(self) -> None:
        """Plan the query where it has a budget, and refuse it if it is over."""
        if self.asked.max_bytes is not None or self.asked.memory_limit is not None:
            check_budget(await self.explain(), self.asked.max_bytes, self.asked.memory_limit)

    async def explain(self) -> QueryPlan:
        """Plan the query without running it: one plan for all modalities."""
        before = self.stats.n_requests, self.stats.n_bytes
        rows, columns = await self.axes()
        plans = await together(self.root.explain(), *(part.explain() for part in self.parts.values()))
        of_parts = dict(zip(self.parts, plans[1:], strict=True))
        return QueryPlan(
            uri=self.uri,
            n_obs=rows.n_rows,
            n_vars=columns.n_rows,
            arrays=tuple(array for plan in plans for array in plan.arrays),
            layouts={f"mod/{m}/{path}": ways for m, plan in of_parts.items() for path, ways in plan.layouts.items()},
            network=self.data.root.fetcher.network,
            spent_requests=self.stats.n_requests - before[0],
            spent_bytes=self.stats.n_bytes - before[1],
            notes=(*self.notes, *(f"{m}: {note}" for m, plan in of_parts.items() for note in plan.notes)),
            reordered=any(plan.reordered for plan in plans),
        )


def _present(places: np.ndarray) -> np.ndarray:
    return places[places >= 0]


def _axis(stored: np.ndarray, n_rows: int) -> Axis:
    whole = len(stored) == n_rows and bool(np.all(stored == np.arange(n_rows)))
    return Axis(None, None) if whole else Axis.of(stored)


def _joined(
    stored: np.ndarray, places: dict[str, np.ndarray], join: Join | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Leave out the rows that are in none of the modalities, or not in all; None leaves out none."""
    if join is None:
        return stored, places
    present = np.asarray([at >= 0 for at in places.values()])
    kept = present.all(axis=0) if join == "inner" else present.any(axis=0)
    return stored[kept], {name: at[kept] for name, at in places.items()}


def _by_whole(stored: np.ndarray, places: dict[str, np.ndarray], maps: Maps) -> tuple[Places, dict[str, Axis]]:
    """Of each modality take the rows that those of the global table stand for, in their order."""
    axes = {name: _axis(_present(at), maps.tables[name].n_rows) for name, at in places.items()}
    counted = {name: np.where(at >= 0, np.cumsum(at >= 0), 0).astype(np.uint32) for name, at in places.items()}
    return Places(_axis(stored, maps.n_rows), len(stored), counted), axes


def _by_parts(
    stored: np.ndarray, places: dict[str, np.ndarray], maps: Maps, own: dict[str, Axis]
) -> tuple[Places, dict[str, Axis]]:
    """Of the global table take the rows that stand for any row of a modality."""
    counted = {}
    for name, at in places.items():
        n_rows = maps.tables[name].n_rows
        inverse = np.zeros(n_rows + 1, np.uint32)  # the last one is that of -1
        inverse[own[name].stored(n_rows)] = np.arange(1, own[name].count(n_rows) + 1)
        counted[name] = inverse[at]
    kept = np.any([at > 0 for at in counted.values()], axis=0)
    stored, counted = stored[kept], {name: at[kept] for name, at in counted.items()}
    return Places(_axis(stored, maps.n_rows), len(stored), counted), own
