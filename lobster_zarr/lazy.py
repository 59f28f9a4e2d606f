"""The lazy AnnData of a selection: dask arrays, tables that are read by the column, names in memory.

Must not know what is done with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd

from lobster_zarr.assemble import assemble
from lobster_zarr.blocks import BLOCK_BYTES
from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.lazymatrix import LazyMatrix, Matrix, SparseFormat
from lobster_zarr.lazytable import lazy_table

if TYPE_CHECKING:
    from distributed import Client

    from lobster_zarr.projection import Axis, Part
    from lobster_zarr.reading import Reading


def lazy_anndata(reading: Reading, sparse_format: SparseFormat, block_bytes: int) -> ad.AnnData:
    """Make the lazy AnnData of a selection. Reads its names, what a plan needs, and what cannot be lazy."""
    _check(sparse_format)
    rows, columns = reading.run(reading.settled_axes())
    lazy, rest = _split(reading, rows, columns)
    (obs, no_obs), (var, no_var), results = reading.run(_read(reading, rest))
    for part in lazy:
        results[part.path] = LazyMatrix(Matrix.of(reading, part, sparse_format, block_bytes))
    return assemble(
        lazy_table(reading, "obs", (obs.index, no_obs), rows, reading.projection.obs_columns),
        lazy_table(reading, "var", (var.index, no_var), columns, reading.projection.var_columns),
        results,
        sliced=False,
    )


def lazy_matrices(reading: Reading, sparse_format: SparseFormat, block_bytes: int) -> ad.AnnData:
    """Make the AnnData of a selection with its tables in memory and its matrices lazy."""
    _check(sparse_format)
    rows, columns = reading.run(reading.settled_axes())
    lazy, rest = _split(reading, rows, columns)
    obs, var, values = reading.run(_tables(reading, rest))
    results = dict(zip((part.path for part in rest), values, strict=True))
    for part in lazy:
        results[part.path] = LazyMatrix(Matrix.of(reading, part, sparse_format, block_bytes))
    return assemble(obs, var, results, sliced=reading.is_sliced)


def read_on(client: Client, reading: Reading, block_bytes: int) -> ad.AnnData:
    """Read a selection with the matrices read by the workers of a cluster, block by block in the order of storage."""
    cluster: Any = client  # dask has no types
    rows, columns = reading.run(reading.settled_axes())
    lazy, rest = _split(reading, rows, columns)
    sparse_format: SparseFormat = "array" if ad.settings.use_sparse_array_on_read else "matrix"
    arrays = [LazyMatrix(Matrix.of(reading, part.as_stored(), sparse_format, block_bytes)) for part in lazy]
    futures = [cluster.compute(array.to_delayed().ravel().tolist()) for array in arrays]  # type: ignore[no-untyped-call]
    try:
        obs, var, values = reading.run(_tables(reading, rest))
        results = dict(zip((part.path for part in rest), values, strict=True))
        for part, array, blocks in zip(lazy, arrays, futures, strict=True):
            results[part.path] = part.arranged(array.join(cluster.gather(blocks)))
    finally:
        cluster.cancel([block for blocks in futures for block in blocks])
    return assemble(obs, var, results, sliced=reading.is_sliced)


def _check(sparse_format: str) -> None:
    if sparse_format not in ("matrix", "array"):
        msg = f"sparse_format is {sparse_format!r}; expected 'matrix' or 'array'."
        raise InvalidArgumentError(msg)


def _split(reading: Reading, rows: Axis, columns: Axis) -> tuple[list[Part], list[Part]]:
    """Tell the matrices of a selection from what cannot be lazy."""
    lazy: list[Part] = []
    rest: list[Part] = []
    for part in reading.parts(rows, columns):
        can_be = not part.whole or (part.path[:5] in {"varm/", "varp/"} and reading.reader.is_matrix(part.path))
        (lazy if can_be else rest).append(part)
    return lazy, rest


async def _tables(reading: Reading, rest: list[Part]) -> tuple[pd.DataFrame, pd.DataFrame, list[Any]]:
    rows, columns = await reading.settled_axes()
    reader, want = reading.reader, reading.projection
    obs, var, *values = await together(
        reader.obs.frame(want.obs_columns, rows.runs, reading.known("obs")),
        reader.var.frame(want.var_columns, columns.runs, reading.known("var")),
        *map(reading.element, rest),
    )
    return rows.arrange(obs), columns.arrange(var), values


type _Frames = tuple[pd.DataFrame, pd.DataFrame]


async def _read(reading: Reading, rest: list[Part]) -> tuple[_Frames, _Frames, dict[str, Any]]:
    """Read obs and var without columns and without rows, and by path the elements that cannot be lazy."""
    rows, columns = await reading.settled_axes()
    reader, want = reading.reader, reading.projection
    tables = (reader.obs, rows, want.obs_columns), (reader.var, columns, want.var_columns)
    names = (table.frame([], axis.runs, reading.known(table.path)) for table, axis, _ in tables)
    empty = (table.frame(chosen, Runs.whole(0)) for table, _, chosen in tables)
    work: Any = (*names, *empty, *map(reading.element, rest), reading.bounds(BLOCK_BYTES, None, 1))
    obs, var, no_obs, no_var, *values, _ = await together(*work)
    results = dict(zip((part.path for part in rest), values, strict=True))
    if reading.is_sliced:
        results |= await _pruned(reading, no_obs, no_var, results)
    return (rows.arrange(obs), no_obs), (columns.arrange(var), no_var), results


async def _pruned(reading: Reading, no_obs: Any, no_var: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Drop from uns the colors of categories that are not left, and these from frames, as AnnData does of a part."""
    uns = results.get("uns") or {}
    axes, tables = await reading.settled_axes(), (reading.reader.obs, reading.reader.var)
    read = []
    for table, axis, empty in zip(tables, axes, (no_obs, no_var), strict=True):
        colored = [name for name in empty.columns if f"{name}_colors" in uns]
        read.append(table.frame(colored, axis.runs, reading.known(table.path)))
    obs, var = (axis.arrange(frame) for axis, frame in zip(axes, await together(*read), strict=True))
    aligned = [p for p, v in results.items() if p[:5] in {"obsm/", "varm/"} and isinstance(v, pd.DataFrame)]
    shell = assemble(obs, var, {path: results[path] for path in aligned} | {"uns": uns}, sliced=True)
    return {path: getattr(shell, path[:4])[path[5:]] for path in aligned} | {"uns": shell.uns}
