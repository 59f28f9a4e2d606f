"""A selection as an :class:`xarray.Dataset`: obs in memory, matrices read when they are asked for.

Knows how elements become variables, and the graph that reads them block by
block: one small task a block, that shares the recipe of the selection. Must
not know how a block is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.projection import Axis
from lobster_zarr.recipe import Recipe
from lobster_zarr.selection import positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    import xarray as xr

    from lobster_zarr.reading import Reading

BLOCK_BYTES = 32 << 20
"""Bytes of a block, dense, and as it is stored."""
CELLS, GENES = "obs", "var"
"""Dimensions."""
ALL = Axis(None, None)


@dataclass(frozen=True)
class Wanted:
    """What a dataset brings beside obs.

    Parameters
    ----------
    genes
        Among the selection's; None for all.
    obsm
        Names of members; None for all that the selection brings.
    path
        Of the matrix.
    block_bytes
        Of a block.
    """

    genes: Any
    obsm: Sequence[str] | None
    path: str
    block_bytes: int


def to_xarray(reading: Reading, wanted: Wanted) -> xr.Dataset:
    """Make a dataset of a selection: see :meth:`lobster_zarr.Selection.to_xarray`."""
    import xarray as xr

    if wanted.path != "X" and not str(wanted.path).startswith("layers/"):
        msg = f"path is {wanted.path!r}; expected 'X' or a layer, such as 'layers/counts'."
        raise InvalidArgumentError(msg)
    members = _members(reading, wanted.obsm)
    table, names, recipe, bounds = reading.run(_prepare(reading, wanted, members))
    variables: dict[str, Any] = {}
    _put(variables, wanted.path.rpartition("/")[2], (CELLS, GENES), lazy_rows(recipe, wanted.path, len(names), bounds))
    for name in members:
        width = reading.reader.shape(f"obsm/{name}")[1]
        _put(variables, name, (CELLS, f"{name}_dim"), lazy_rows(recipe, f"obsm/{name}", width, bounds))
    for name in table:
        _put(variables, str(name), (CELLS,), as_numpy(table[name]))
    coordinates = {CELLS: as_numpy(table.index.to_series()), GENES: as_numpy(names.to_series())}
    return xr.Dataset(variables, coords=coordinates, attrs={"uri": reading.uri})


def _members(reading: Reading, obsm: Sequence[str] | None) -> list[str]:
    """Return the members of obsm, all of them matrices."""
    if isinstance(obsm, str):
        msg = f"obsm={obsm!r} is a single text; expected a list of names: [{obsm!r}]."
        raise InvalidArgumentError(msg)
    parts = (part.path.partition("/") for part in reading.parts(ALL, ALL))
    brought = [name for parent, _, name in parts if parent == "obsm"]
    for name in obsm or ():
        if name not in brought:
            msg = f"the selection brings no obsm {name!r}.{did_you_mean(str(name), brought)} It has: {brought}"
            raise NotFoundError(msg)
    members = brought if obsm is None else list(obsm)
    for name in members:
        path = f"obsm/{name}"
        if not reading.reader.is_matrix(path) or len(reading.reader.shape(path)) != 2:
            left = [other for other in members if other != name]
            msg = f"{path!r} of {reading.uri} is no matrix of two dimensions; leave it out: obsm={left}."
            raise UnsupportedError(msg)
    return members


async def _prepare(
    reading: Reading, wanted: Wanted, members: Sequence[str]
) -> tuple[pd.DataFrame, pd.Index, Recipe, np.ndarray]:
    """Read obs and the names of the genes, and cut the rows into blocks for all matrices."""
    rows, columns = await reading.settled_axes()
    reading.member(wanted.path, rows, columns)
    reader = reading.reader
    table, index = await together(reading.table(), reader.var.index(columns.runs))
    names = index if columns.take is None else index[columns.take]
    chosen = None
    if wanted.genes is not None:
        at = positions(wanted.genes, names, len(names), axis="var")
        names, chosen = names[at], columns.pick(at, reader.var.n_rows)
    sizes = {wanted.path: len(names)} | {f"obsm/{name}": reader.shape(f"obsm/{name}")[1] for name in members}
    stored = reader.size_bytes(wanted.path) * reading.share(wanted.path, chosen or columns) / max(reader.obs.n_rows, 1)
    widest = max(stored, 1, *(reader.value_dtype(path).itemsize * n_columns for path, n_columns in sizes.items()))
    # Blocks of equal numbers of rows, as xarray wants them to write Zarr.
    bounds = np.append(np.arange(0, len(table), max(int(wanted.block_bytes / widest), 1)), len(table))
    bounds = bounds if len(table) else np.asarray([0, 0])
    return table, names, Recipe(reading, reading.order, chosen), bounds


def lazy_rows(recipe: Recipe, path: str, n_columns: int, bounds: np.ndarray) -> da.Array:
    """Return a matrix of a selection as a dense dask array of blocks of rows.

    Parameters
    ----------
    recipe
        Of the selection; it is in the graph once.
    path
        Of the matrix.
    n_columns
        Of the matrix, as the recipe has it.
    bounds : ndarray of int64
        Of the blocks.
    """
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    dtype = recipe.reading.reader.value_dtype(path)
    token = tokenize(recipe, path, bounds)
    name, shared = f"{path.replace('/', '-')}-{token}", f"selection-{tokenize(recipe)}"
    cuts = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    tasks: dict[Any, Any] = {(name, i, 0): (_read_dense, shared, path, *cut) for i, cut in enumerate(cuts)}
    graph = HighLevelGraph({name: tasks, shared: {shared: recipe}}, {name: {shared}, shared: set()})
    chunks = tuple(np.diff(bounds).tolist()), (n_columns,)
    new: Any = da.Array  # dask has no types
    array: da.Array = new(graph, name, chunks, dtype=dtype, meta=np.empty((0, 0), dtype))
    return array


def _read_dense(recipe: Recipe, path: str, start: int, stop: int) -> np.ndarray:
    async def read() -> Any:
        part = await recipe.part(slice(start, stop))
        return await part.matrix(path)

    matrix = recipe.reading.run(read())
    dense: np.ndarray = matrix.toarray() if sparse.issparse(matrix) else matrix
    return dense


def as_numpy(column: pd.Series) -> np.ndarray:
    """Return a column as NumPy has it: categories as their values; missing numbers and booleans as float NaN.

    xarray cannot yet select, chunk or write what holds pandas' own arrays.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype) if not column.isna().any() else column.astype(object)
    missing = column.isna().to_numpy()
    values: np.ndarray
    if column.dtype == object or not (
        pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype)
    ):
        values = column.to_numpy(object, copy=True)
        values[missing] = np.nan
        of_numbers = missing.any() and not any(isinstance(value, str) for value in values)
        return values.astype(np.float64) if of_numbers else values
    if isinstance(column.dtype, np.dtype):
        values = column.to_numpy()
    elif missing.any():
        values = column.to_numpy(np.float64, na_value=np.nan)
    else:
        values = column.to_numpy(column.dtype.numpy_dtype)
    return values


def _put(variables: dict[str, Any], name: str, dims: tuple[str, ...], value: Any) -> None:
    if name in variables or name in {CELLS, GENES} or name in {d for v in variables.values() for d in v[0]}:
        element = "obs column" if dims == (CELLS,) else "matrix"
        msg = (
            f"the {element} {name!r} would have the name of another variable or dimension "
            f"({[CELLS, GENES, *variables]}); leave one of them out: query(obs_columns=[...]), obsm=[...]."
        )
        raise InvalidArgumentError(msg)
    variables[name] = dims, value
