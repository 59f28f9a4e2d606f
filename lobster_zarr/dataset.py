"""A store that is open: what it holds, and queries on it.

Opening touches metadata only; a :class:`Selection` reads nothing until its
rows, table or matrices are asked for, and then only theirs.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr import predicate as predicates
from lobster_zarr.byterange import Network
from lobster_zarr.dense import Runs
from lobster_zarr.element import ElementReader
from lobster_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    did_you_mean,
)
from lobster_zarr.fetch import Fetcher, Stats, together
from lobster_zarr.layout import ATTRIBUTE, FORMAT_VERSION, SOURCE_ORDER, Tree
from lobster_zarr.selection import positions, runs
from lobster_zarr.store import display_uri, open_store, run
from lobster_zarr.summary import StoreInfo, summarize
from lobster_zarr.table import TableReader
from lobster_zarr.tree import is_ours, read_tree

if TYPE_CHECKING:
    from pathlib import Path

Order = Literal["source", "storage"]
Names = Sequence[str] | None


def open(  # noqa: A001 - the name that users expect: lobster_zarr.open
    uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Dataset:
    """Open a store: one request where its metadata is consolidated.

    Parameters
    ----------
    uri
        ``s3://``, ``gs://``, ``az://``, ``http(s)://``, ``memory://`` or a local path
        (a ``.zip`` too) of an AnnData-Zarr store, written by this package or not.
    storage_options
        s3fs's names: ``key``, ``secret``, ``token``, ``endpoint_url``, ``anon``,
        ``profile``, ``requester_pays``, ``client_kwargs``.

    Raises
    ------
    NotFoundError
        There is no store.
    FormatError
        It is not an AnnData store.
    StorageError
        The storage refused, or could not be reached.
    """
    store = open_store(uri, storage_options)
    tree = run(read_tree(store, os.fspath(uri)))
    return Dataset(os.fspath(uri), Fetcher(store, network=Network(), strict=is_ours(tree)), tree)


@dataclass(frozen=True)
class Projection:
    """Which elements a selection brings, None meaning all.

    Parameters
    ----------
    X, uns, raw
        Whether to bring them.
    layers, obsm, varm, obsp, varp
        Names of members.
    obs_columns, var_columns
        Names of columns.
    """

    X: bool = True
    layers: Names = None
    obsm: Names = None
    varm: Names = None
    obsp: Names = None
    varp: Names = None
    uns: bool = True
    raw: bool = True
    obs_columns: Names = None
    var_columns: Names = None


@dataclass(frozen=True, eq=False)
class Axis:
    """Positions wanted along one axis.

    Parameters
    ----------
    runs
        In storage order; None for the whole axis.
    take : ndarray of int64 or None
        Reorders what was read in storage order to the order of the result.
    """

    runs: Runs | None
    take: np.ndarray | None

    @classmethod
    def of(cls, stored: np.ndarray) -> Axis:
        """Bring positions, in any order and repeated, to runs and a reordering."""
        if np.all(np.diff(stored) > 0):
            return cls(Runs(*runs(stored)), None)
        unique, take = np.unique(stored, return_inverse=True)
        return cls(Runs(*runs(unique)), take)

    def count(self, length: int) -> int:
        """The number of positions in the result."""
        if self.take is not None:
            return len(self.take)
        return length if self.runs is None else self.runs.total

    def arrange(self, value: Any) -> Any:  # noqa: ANN401 - an array, matrix or frame
        """Bring rows that were read in storage order to the order of the result."""
        if self.take is None:
            return value
        return value.iloc[self.take] if isinstance(value, pd.DataFrame) else value[self.take]

    def slice_rows(self, value: Any) -> Any:  # noqa: ANN401
        """Take the positions from a value that was read whole."""
        if self.runs is None:
            return self.arrange(value)
        at = self.runs.positions() if self.take is None else self.runs.positions()[self.take]
        return value.iloc[at] if isinstance(value, pd.DataFrame) else value[at]


class Dataset:
    """An open AnnData store.

    Made by :func:`lobster_zarr.open`.

    Parameters
    ----------
    uri
        Where it is.
    fetcher
        Reads its chunks.
    tree
        Its nodes.
    """

    def __init__(self, uri: str, fetcher: Fetcher, tree: Tree) -> None:
        self.uri = display_uri(uri)
        self.fetcher, self.tree = fetcher, tree
        encoding = tree.encoding("")
        if encoding == "MuData":
            msg = f"{self.uri} is a MuData store, which is not supported yet; open a modality: {self.uri}/mod/<name>."
            raise UnsupportedError(msg)
        version = self.attributes.get("format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            msg = f"{self.uri} has format version {version}, this package reads up to {FORMAT_VERSION}; update it."
            raise UnsupportedError(msg)
        if "obs" not in tree or "var" not in tree:
            found = [k for k in tree.nodes if k and "/" not in k]
            msg = f"{self.uri} is not an AnnData store: it has no obs and var, but {found}."
            raise FormatError(msg)
        self.obs, self.var = TableReader(fetcher, tree, "obs"), TableReader(fetcher, tree, "var")
        self.elements = ElementReader(fetcher, tree)

    @property
    def attributes(self) -> dict[str, Any]:
        """What this package noted at conversion; empty for other stores."""
        noted = self.tree.attributes("").get(ATTRIBUTE)
        return dict(noted) if isinstance(noted, Mapping) else {}

    @cached_property
    def n_obs(self) -> int:
        """The number of cells."""
        return self.obs.n_rows

    @cached_property
    def n_vars(self) -> int:
        """The number of genes."""
        return self.var.n_rows

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self.n_obs, self.n_vars

    @property
    def sort_by(self) -> tuple[str, ...]:
        """obs columns by which the rows are stored grouped."""
        return tuple(self.attributes.get("sort_by", ()))

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return self.tree.children("layers")

    @property
    def obsm(self) -> list[str]:
        """Names of the members of obsm."""
        return self.tree.children("obsm")

    @property
    def varm(self) -> list[str]:
        """Names of the members of varm."""
        return self.tree.children("varm")

    @property
    def obsp(self) -> list[str]:
        """Names of the members of obsp."""
        return self.tree.children("obsp")

    @property
    def varp(self) -> list[str]:
        """Names of the members of varp."""
        return self.tree.children("varp")

    @property
    def stats(self) -> Stats:
        """Requests and bytes read since the store was opened, metadata left out."""
        return self.fetcher.stats

    def info(self) -> StoreInfo:
        """Describe the store from its metadata: no request."""
        return summarize(self.uri, self.tree, self.shape, self.attributes)

    def __repr__(self) -> str:
        return str(self.info())

    def _repr_html_(self) -> str:
        return self.info().to_html()

    def query(
        self,
        obs: Any = None,
        var: Any = None,
        *,
        order: Order = "source",
        **elements: Any,  # noqa: ANN401
    ) -> Selection:
        """Select cells and genes; nothing is read yet.

        Parameters
        ----------
        obs
            A Python-style expression (``"cell_type == 'T cell' and n_counts > 500"``),
            else SQL text (``"cell_type = 'T cell'"``), a dict, a Polars expression,
            names, positions, a slice or a boolean mask. None for all.
        var
            The same for genes.
        order
            ``"source"``: as slicing the source in memory gives them;
            ``"storage"``: as they are stored.
        **elements
            Fields of :class:`Projection`: ``X``, ``layers``, ``obsm``, ``varm``, ``obsp``,
            ``varp``, ``uns``, ``raw``, ``obs_columns``, ``var_columns``.

        Raises
        ------
        NotFoundError
            An element that the store does not have; near names are offered.
        """
        if order not in ("source", "storage"):
            msg = f"order is {order!r}; expected 'source' or 'storage'."
            raise InvalidArgumentError(msg)
        known = [f.name for f in fields(Projection)]
        for name in elements:
            if name not in known:
                msg = f"query has no option {name!r}.{did_you_mean(name, known)} Options: {known}"
                raise InvalidArgumentError(msg)
        projection = Projection(**elements)
        for name in ("layers", "obsm", "varm", "obsp", "varp"):
            _check_names(name, getattr(projection, name), getattr(self, name))
        _check_names("obs", projection.obs_columns, self.obs.columns)
        _check_names("var", projection.var_columns, self.var.columns)
        return Selection(self, obs, var, order, projection)

    def to_memory(self) -> ad.AnnData:
        """Read everything, in source order."""
        return self.query().to_memory()


def _check_names(element: str, wanted: Names, known: Sequence[str]) -> None:
    if isinstance(wanted, str):
        msg = f"{element}={wanted!r} is a single text; expected a list of names: [{wanted!r}]."
        raise InvalidArgumentError(msg)
    for name in wanted or ():
        if name not in known:
            msg = f"{element} has no {name!r}.{did_you_mean(name, known)} It has: {list(known)}"
            raise NotFoundError(msg)


@dataclass(eq=False)
class Selection:
    """Cells and genes of a store, not yet read. Made by :meth:`Dataset.query`."""

    dataset: Dataset
    obs: Any
    var: Any
    order: Order
    projection: Projection
    _axes: tuple[Axis, Axis] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Selection(obs={self.obs!r}, var={self.var!r}, order={self.order!r}) of {self.dataset.uri}"

    def count(self) -> int:
        """Count the cells. Reads the columns that the predicate names, nothing else."""
        axis = run(self._resolve(self.dataset.obs, self.obs, ordered=False))
        return axis.count(self.dataset.n_obs)

    def to_pandas(self) -> pd.DataFrame:
        """Read the obs rows alone. Categories stay as they are stored."""
        return run(self._obs())

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the obs rows to a Parquet file, names in a column ``index`` or as the index is named."""
        from pathlib import Path

        frame = self.to_pandas()
        frame.index.name = frame.index.name or "index"
        frame.reset_index().to_parquet(path, index=False)
        return Path(path)

    def to_memory(self) -> ad.AnnData:
        """Read the selection: what slicing the source in memory gives.

        Returns
        -------
        AnnData
            Values, dtypes, categories, order, names and uns as
            ``source[obs, var].copy()``; a companion or sort order does not show.
        """
        return run(self._read())

    async def _obs(self) -> pd.DataFrame:
        rows = await self._resolve(self.dataset.obs, self.obs, ordered=True)
        frame = await self.dataset.obs.frame(self.projection.obs_columns, rows.runs)
        return rows.arrange(frame)

    async def _resolve(self, table: TableReader, selector: Any, *, ordered: bool) -> Axis:  # noqa: ANN401
        """Bring a selector to positions in storage order."""
        sorted_rows = table.path == "obs" and self.dataset.tree.is_array(f"obs/{SOURCE_ORDER}")
        to_source = sorted_rows and self.order == "source"
        if selector is None:
            if not (ordered and to_source):
                return Axis(None, None)
            stored_at = await self._source_order(None)
            return Axis(None, np.argsort(stored_at))
        if isinstance(selector, str | Mapping | pl.Expr) and not _is_name(selector, table):
            stored = np.flatnonzero(await self._mask(table, selector))
            axis = Axis(Runs(*runs(stored)), None)
            if ordered and to_source and len(stored):
                axis = Axis(axis.runs, np.argsort(await self._source_order(axis.runs)))
            return axis
        names = await table.index() if _names_needed(selector) else None
        if sorted_rows and names is not None:
            names = names[np.argsort(await self._source_order(None))]
        source = positions(selector, names, table.n_rows, axis=table.path)
        source = np.arange(table.n_rows)[source] if isinstance(source, slice) else source
        if not sorted_rows:
            return Axis.of(source if self.order == "source" else np.sort(source))
        place = np.argsort(await self._source_order(None))
        stored = place[source]
        return Axis.of(stored if self.order == "source" else np.sort(stored))

    async def _source_order(self, rows: Runs | None) -> np.ndarray:
        from lobster_zarr.dense import read_array

        node = self.dataset.tree.array(f"obs/{SOURCE_ORDER}")
        return await read_array(self.dataset.fetcher, node, rows)

    async def _mask(self, table: TableReader, selector: Any) -> np.ndarray:  # noqa: ANN401
        kinds = {name: table.kind(name) for name in table.columns}
        index = "_index" if "index" in kinds else "index"
        parsed = predicates.parse(selector, kinds, index=index, axis=table.path)
        values = await together(
            *(table.column(c if c in kinds else table.index_column) for c in parsed.columns)
        )
        series = [predicates.to_polars(c, v) for c, v in zip(parsed.columns, values, strict=True)]
        frame = pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(table.n_rows, bool)})
        return predicates.evaluate(parsed, frame)

    async def _read(self) -> ad.AnnData:
        data, want = self.dataset, self.projection
        rows, columns = await together(
            self._resolve(data.obs, self.obs, ordered=True), self._resolve(data.var, self.var, ordered=True)
        )
        jobs: dict[str, Any] = {
            "obs": data.obs.frame(want.obs_columns, rows.runs),
            "var": data.var.frame(want.var_columns, columns.runs),
        }
        if want.X and "X" in data.tree and data.tree.encoding("X") != "null":
            jobs["X"] = self._matrix("X", rows, columns)
        for parent, axes in (("layers", (rows, columns)), ("obsp", (rows, rows)), ("obsm", (rows, None))):
            for name in _members(data, want, parent):
                jobs[f"{parent}/{name}"] = self._aligned(f"{parent}/{name}", *axes)
        for parent in ("varm", "varp"):
            for name in _members(data, want, parent):
                jobs[f"{parent}/{name}"] = self._whole_sliced(
                    f"{parent}/{name}", columns, pair=parent == "varp"
                )
        if want.uns and "uns" in data.tree:
            jobs["uns"] = data.elements.whole("uns")
        if want.raw and "raw" in data.tree and data.tree.encoding("raw") != "null":
            jobs["raw"] = self._raw(rows)
        results = dict(zip(jobs, await together(*jobs.values()), strict=True))
        results["obs"], results["var"] = rows.arrange(results["obs"]), columns.arrange(results["var"])
        return await asyncio.to_thread(self._assemble, results)

    async def _matrix(self, path: str, rows: Axis, columns: Axis | None) -> Any:  # noqa: ANN401
        value = await self.dataset.elements.matrix(path, rows.runs, columns.runs if columns else None)
        value = rows.arrange(value)
        return value if columns is None or columns.take is None else value[:, columns.take]

    async def _aligned(self, path: str, rows: Axis, columns: Axis | None) -> Any:  # noqa: ANN401
        if self.dataset.elements.is_matrix(path):
            return await self._matrix(path, rows, columns)
        return rows.slice_rows(await self.dataset.elements.whole(path))

    async def _whole_sliced(self, path: str, axis: Axis, *, pair: bool) -> Any:  # noqa: ANN401
        value = axis.slice_rows(await self.dataset.elements.whole(path))
        return axis.slice_rows(value.T).T if pair and (axis.runs or axis.take is not None) else value

    async def _raw(self, rows: Axis) -> dict[str, Any]:
        data = self.dataset
        jobs: dict[str, Any] = {"var": data.elements.whole("raw/var")}
        if "raw/X" in data.tree:
            jobs["X"] = self._matrix("raw/X", rows, None)
        for name in data.tree.children("raw/varm"):
            jobs[f"varm/{name}"] = data.elements.whole(f"raw/varm/{name}")
        got = dict(zip(jobs, await together(*jobs.values()), strict=True))
        varm = {k.removeprefix("varm/"): v for k, v in got.items() if k.startswith("varm/")}
        return {"X": got.get("X"), "var": got["var"], "varm": varm}

    def _assemble(self, results: dict[str, Any]) -> ad.AnnData:
        obs, var, uns = results.pop("obs"), results.pop("var"), results.pop("uns", None) or {}
        parts: dict[str, dict[str, Any]] = {p: {} for p in ("layers", "obsm", "varm", "obsp", "varp")}
        for path, value in results.items():
            parent, _, name = path.partition("/")
            if name:
                parts[parent][name] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's notes on names that are not unique
            if self.obs is not None or self.var is not None:
                # AnnData drops unused categories, and their colors, when it is sliced.
                frames = {
                    p: {n: v for n, v in parts[p].items() if isinstance(v, pd.DataFrame)}
                    for p in ("obsm", "varm")
                }
                shell = ad.AnnData(obs=obs, var=var, uns=uns, **frames)[:, :].copy()
                obs, var, uns = shell.obs, shell.var, shell.uns
                for parent in frames:
                    parts[parent] |= dict(getattr(shell, parent))
            return ad.AnnData(results.get("X"), obs=obs, var=var, uns=uns, raw=results.get("raw"), **parts)


def _members(data: Dataset, want: Projection, parent: str) -> Sequence[str]:
    chosen = getattr(want, parent)
    members: Sequence[str] = getattr(data, parent) if chosen is None else chosen
    return members


def _names_needed(selector: Any) -> bool:  # noqa: ANN401
    if isinstance(selector, str):
        return True
    if isinstance(selector, slice | int | np.integer):
        return isinstance(selector, slice) and isinstance(selector.start or selector.stop, str)
    first = next(iter(selector), None) if hasattr(selector, "__iter__") else None
    return isinstance(first, str)


def _is_name(selector: Any, table: TableReader) -> bool:  # noqa: ANN401
    """Whether a text is one name, such as a gene's, rather than a predicate."""
    return (
        isinstance(selector, str)
        and table.path == "var"
        and selector.isidentifier()
        and selector not in table.columns
    )
