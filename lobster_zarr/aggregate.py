"""Statistics of groups of cells, gene by gene, without the cells in memory.

Reads a selection block by block, here or on dask workers, and keeps of each
block its moments by group alone. :mod:`lobster_zarr.moments` knows the
arithmetic; this must not.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd

from lobster_zarr.assemble import assemble
from lobster_zarr.blocks import Weights
from lobster_zarr.client import client_for
from lobster_zarr.errors import BudgetError, InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.moments import NEEDS, Func, Kept, Moments, summed_dtype
from lobster_zarr.recipe import Recipe
from lobster_zarr.reduction import reduce_on
from lobster_zarr.report import human_bytes, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    from distributed import Client

    from lobster_zarr.projection import Axis
    from lobster_zarr.reading import Reading

N_CELLS = "n_obs_aggregated"
"""The obs column of the number of cells, as scanpy calls it."""
BLOCK_BYTES = 32 << 20
"""Decoded bytes of a block."""
AHEAD = 3
"""Blocks in memory at once: the next are on their way while one is summed."""


@dataclass(frozen=True)
class Question:
    """What is to be computed of which matrix.

    Parameters
    ----------
    by
        Columns of obs; none for all cells as one group.
    funcs
        Statistics, in the order of the result.
    path
        Of the matrix, ``"X"`` or ``"layers/counts"``.
    """

    by: tuple[str, ...]
    funcs: tuple[Func, ...]
    path: str

    @classmethod
    def of(cls, by: str | Sequence[str] | None, func: str | Sequence[str], path: str) -> Question:
        """Check what a caller gave, as far as no store is needed for that."""
        keys = _texts(by, "by") if by is not None else ()
        funcs = _texts(func, "func")
        for name in funcs:
            if name not in NEEDS:
                msg = f"func is {name!r}.{did_you_mean(name, NEEDS)} Expected one or several of {list(NEEDS)}."
                raise InvalidArgumentError(msg)
        if not funcs or (by is not None and not keys):
            msg = "by and func name nothing; expected at least one func, and for by columns of obs or None."
            raise InvalidArgumentError(msg)
        if N_CELLS in keys:
            msg = f"by names {N_CELLS!r}, which is the column of the result that holds the number of cells; rename it."
            raise InvalidArgumentError(msg)
        if path != "X" and not str(path).startswith("layers/"):
            msg = f"path is {path!r}; expected 'X' or a layer, such as 'layers/counts'."
            raise InvalidArgumentError(msg)
        return cls(keys, cast("tuple[Func, ...]", funcs), path)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """What a block is reduced to."""
        return tuple(dict.fromkeys(name for func in self.funcs for name in NEEDS[func]))


@dataclass(frozen=True, eq=False)
class Aggregation:
    """What a task needs to reduce any block.

    Parameters
    ----------
    recipe
        Of the selection, in storage order.
    question
        What is to be computed.
    groups : DataFrame, one row a group
        The values of the `by` columns, in the order of the result.
    by_gene
        Whether blocks are some genes of all cells, not all genes of some cells.
    """

    recipe: Recipe
    question: Question
    groups: pd.DataFrame
    by_gene: bool

    async def moments(self, start: int, stop: int, codes: np.ndarray | None = None) -> Moments:
        """Reduce one block.

        Parameters
        ----------
        start, stop
            Its cells, or genes, in the selection.
        codes : ndarray of int64, or None
            The group of each cell of the selection; None to read those of the block.
        """
        block, whole = slice(start, stop), slice(None)
        part = await (self.recipe.part(whole, block) if self.by_gene else self.recipe.part(block))
        reading = part.matrix(self.question.path)
        if codes is None:
            matrix, codes = await together(cast("Any", reading), cast("Any", self._codes(part)))
        else:
            matrix, codes = await reading, codes if self.by_gene else codes[block]
        return await asyncio.to_thread(Moments.of, matrix, codes, self.question.kept)

    async def _codes(self, part: Reading) -> np.ndarray:
        rows, _ = await part.axes()
        return await asyncio.to_thread(number, await read_keys(part, rows, self.question.by), self.groups)

    def moments_of_task(self, start: int, stop: int) -> Moments:
        """Reduce one block in a process that knows nothing but this."""
        return self.recipe.reading.run(self.moments(start, stop))

    @property
    def join(self) -> Any:
        """What puts the moments of blocks together."""
        return Moments.beside if self.by_gene else Moments.merge


async def read_keys(reading: Reading, rows: Axis, by: Sequence[str]) -> pd.DataFrame:
    """Read columns of obs, without the names of the cells."""
    table, n_rows = reading.reader.obs, rows.count(reading.reader.obs.n_rows)
    columns = await together(*(table.column(name, rows.runs) for name in by))
    return rows.arrange(pd.DataFrame(dict(zip(by, columns, strict=True)), index=None if by else range(n_rows)))


def tabulate(keys: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Find the groups of some cells.

    Returns
    -------
    DataFrame
        Their values, one row a group, as ``groupby(observed=True, sort=True, dropna=True)`` sorts.
    ndarray of int64, shape (n_cells,)
        The group of each cell, -1 where a value is missing.
    """
    if not len(keys.columns):
        return pd.DataFrame(index=range(1)), np.zeros(len(keys), np.int64)
    labels = keys.groupby([*keys.columns], observed=True, sort=True, dropna=True).ngroup()
    codes = labels.fillna(-1).to_numpy(np.int64)
    known = np.flatnonzero(codes >= 0)
    first = np.empty(int(codes.max(initial=-1)) + 1, np.int64)
    first[codes[known]] = known
    return keys.iloc[first].reset_index(drop=True), codes


def number(keys: pd.DataFrame, groups: pd.DataFrame) -> np.ndarray:
    """Return the group of each cell, all of whose groups are among some that were tabulated."""
    _, codes = tabulate(pd.concat([groups, keys.set_axis(range(len(keys)))], ignore_index=True))
    return codes[len(groups) :]


def aggregate(
    reading: Reading,
    question: Question,
    client: Client | Literal[False] | None,
    block_bytes: int | str,
    memory_limit: int | str,
) -> ad.AnnData:
    """Aggregate the cells of a selection: see :meth:`lobster_zarr.Selection.aggregate`."""
    _check(reading, question)
    target, limit = parse_size(block_bytes, "block_bytes"), parse_size(memory_limit, "memory_limit")
    cluster = client_for(client, reading.reader.fetcher.store)
    recipe = Recipe(reading, "storage")
    (groups, codes), var = reading.run(_tables(recipe, question))
    dtype = _dtype(reading, question.path)
    like: dict[Kept, Any] = {"sum": summed_dtype(dtype), "count_nonzero": np.int64, "squares": np.float64}
    like = {name: np.dtype(like[name]) for name in question.kept}
    _check_budget(len(groups), len(var), question, limit)
    bounds, by_gene = reading.run(_cut(recipe, question.path, target))
    work = Aggregation(recipe, question, groups, by_gene)
    cuts = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    total = Moments.zeros(np.arange(len(groups)), like, len(var))
    if not len(var):
        total.n_cells[:] = np.bincount(codes[codes >= 0], minlength=len(groups))
    elif np.any(codes >= 0):
        if cluster is None:
            total = reading.run(_reduce(work, cuts, codes, total))
        else:
            total.add(reduce_on(cluster, work, cuts, _task, work.join))
    return _assemble(total, groups, var, question)


def _check(reading: Reading, question: Question) -> None:
    known = reading.reader.obs.columns
    for name in question.by:
        if name not in known:
            msg = f"by names {name!r}, which is no column of obs.{did_you_mean(name, known)} Columns: {list(known)}"
            raise NotFoundError(msg)


def _dtype(reading: Reading, path: str) -> np.dtype[Any]:
    """Return the dtype of a matrix that can be summed."""
    dtype = reading.reader.value_dtype(path)
    if dtype.kind not in "biuf":
        msg = f"{path!r} of {reading.uri} holds {dtype}; expected real numbers or booleans to aggregate."
        raise UnsupportedError(msg)
    return dtype


def _check_budget(n_groups: int, n_genes: int, question: Question, limit: int) -> None:
    """Refuse a result that does not fit: with the sums of all blocks, and of one that has cells of every group."""
    needed = 8 * n_groups * n_genes * (2 * len(question.kept) + len(question.funcs))
    if needed > limit:
        msg = (
            f"{n_groups:,} groups × {n_genes:,} genes would need {human_bytes(needed)} to aggregate "
            f"{', '.join(question.funcs)}, over memory_limit={human_bytes(limit)}; group by columns of fewer values, "
            "select fewer genes, or raise the limit."
        )
        raise BudgetError(msg)


async def _tables(recipe: Recipe, question: Question) -> tuple[tuple[pd.DataFrame, np.ndarray], pd.DataFrame]:
    """Read the groups, and var as the selection has it."""
    rows, columns = await recipe.axes()
    reading = recipe.reading
    reading.member(question.path, rows, columns)
    keys, var = await together(
        read_keys(reading, rows, question.by),
        reading.reader.var.frame(reading.projection.var_columns, columns.runs),
    )
    shell = assemble(pd.DataFrame(index=pd.Index([], dtype="str")), columns.arrange(var), {}, sliced=reading.is_sliced)
    return await asyncio.to_thread(tabulate, keys), shell.var


async def _cut(recipe: Recipe, path: str, target_bytes: int) -> tuple[np.ndarray, bool]:
    """Cut the selection into blocks, of cells, or of genes where the matrix is stored by gene alone."""
    reader, (_, columns) = recipe.reading.reader, await recipe.axes()
    if not reader.is_sparse(path) or reader.sparse(path).row_major:
        return await recipe.reading.bounds(target_bytes, path, 1), False
    matrix = reader.sparse(path)
    stored, indptr = columns.stored(reader.var.n_rows), await matrix.indptr()
    value_bytes = matrix.values.dtype.itemsize + matrix.indices.dtype.itemsize
    return Weights((indptr[stored + 1] - indptr[stored]) * value_bytes).bounds(target_bytes), True


async def _reduce(work: Aggregation, cuts: Sequence[tuple[int, int]], codes: np.ndarray, total: Moments) -> Moments:
    """Reduce all blocks, a few at once; they are added in their order, so that a sum comes out the same every time."""
    gate, turns = asyncio.Semaphore(AHEAD), [asyncio.Event() for _ in range(len(cuts) + 1)]
    done: list[Moments] = []

    async def one(i: int, start: int, stop: int) -> None:
        async with gate:
            moments = await work.moments(start, stop, codes)
            await turns[i].wait()
            if work.by_gene:
                done.append(moments)
            else:
                await asyncio.to_thread(total.add, moments)
            turns[i + 1].set()

    turns[0].set()
    await together(*(one(i, *cut) for i, cut in enumerate(cuts)))
    if work.by_gene:
        total.add(Moments.beside(done))
    return total


def _task(work: Aggregation, start: int, stop: int) -> Moments:
    return work.moments_of_task(start, stop)


def _assemble(total: Moments, groups: pd.DataFrame, var: pd.DataFrame, question: Question) -> ad.AnnData:
    names = ["_".join(map(str, row)) for row in groups.itertuples(index=False)] if question.by else ["all"]
    obs = groups.set_axis(pd.Index(names, dtype="str"))
    obs[N_CELLS] = total.n_cells
    results: dict[str, Any] = {f"layers/{func}": total.result(func) for func in question.funcs}
    if len(question.funcs) == 1:
        results["X"] = results[f"layers/{question.funcs[0]}"]
    return assemble(obs, var, results, sliced=False)


def _texts(given: Any, name: str) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
        msg = f"{name} is {given!r}; expected a name, or a list of different names."
        raise InvalidArgumentError(msg)
    return cast("tuple[str, ...]", texts)
