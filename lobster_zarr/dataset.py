"""A store that is open: what it holds, and queries on it.

Opening touches metadata only; a :class:`Selection` reads nothing until its
rows, table or matrices are asked for, and then only theirs.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, override

from lobster_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    did_you_mean,
)
from lobster_zarr.openstore import OpenStore
from lobster_zarr.projection import Names, Order, Projection
from lobster_zarr.query import Selection
from lobster_zarr.reading import Reading
from lobster_zarr.report import Progress, parse_size
from lobster_zarr.sql import execute
from lobster_zarr.summary import StoreInfo, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    import polars as pl

    from lobster_zarr.element import StoreReader
    from lobster_zarr.fetch import Fetcher


class Dataset(OpenStore):
    """An open AnnData store.

    Made by :func:`lobster_zarr.open`.

    Its pickle is small and holds no credentials; the process that loads it opens the store, once,
    when it is first read from.

    Parameters
    ----------
    reader
        Reads the elements of the store.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.reader, self.uri, tree = reader, reader.uri, reader.tree
        self._check_note()
        if "obs" not in tree or "var" not in tree:
            found = [k for k in tree.nodes if k and "/" not in k]
            msg = f"{self.uri} is not an AnnData store: it has no obs and var, but {found}."
            raise FormatError(msg)

    @property
    @override
    def _root(self) -> StoreReader:
        return self.reader

    @property
    def fetcher(self) -> Fetcher:
        """Reads the objects of the store."""
        return self.reader.fetcher

    def without_notes(self) -> Dataset:
        """Return the same store as if nothing had been noted of its arrays, with stats of its own."""
        return Dataset(self.reader.without_notes())

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

    @override
    def info(self) -> StoreInfo:
        """Describe the store from its metadata: no request."""
        return summarize(self.uri, self.tree, self.shape, self.attributes, self._file_bytes)

    def query(
        self,
        obs: Any = None,
        var: Any = None,
        *,
        order: Order = "source",
        max_bytes: int | str | None = None,
        memory_limit: int | str | None = None,
        **elements: Any,
    ) -> Selection:
        """Select cells and genes; nothing is read yet.

        Parameters
        ----------
        obs
            A Python-style expression (``"cell_type == 'T cell' and n_counts > 500"``),
            else SQL text (``"cell_type = 'T cell'"``), a dict, a Polars expression,
            names, positions, a slice or a boolean mask. None for all. A predicate may name
            features too: ``"CD3D > 0"``, ``"layers['counts'].CD3D > 2"``; a column comes first.
        var
            The same for genes.
        order
            ``"source"``: as slicing the source in memory gives them;
            ``"storage"``: as they are stored.
        max_bytes, memory_limit
            Refuse, before anything of X is read, a query that would read more
            bytes, or need more memory.
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
        most_bytes = None if max_bytes is None else parse_size(max_bytes, "max_bytes")
        memory_bytes = None if memory_limit is None else parse_size(memory_limit, "memory_limit")
        return Selection(Reading(self.reader, obs, var, order, projection, most_bytes, memory_bytes))

    def sql(self, query: str, *, progress: bool = True, **tables: Any) -> pl.DataFrame:
        """Run SQL over ``obs`` and ``var``: only the columns and rows that it needs are read.

        Parameters
        ----------
        query
            SQL as Polars knows it: ``SELECT donor, count(*) AS n FROM obs WHERE
            cell_type = 'T cell' GROUP BY donor``; or ``SELECT obs WHERE
            obs.cell_type = 'T cell'`` for whole rows. Names are the column
            ``index``, or as the index is named.
        progress
            Show what arrives when on a terminal, or in a notebook with ipywidgets, if it takes a second.
        **tables
            Polars or pandas frames, to be joined by name.

        Returns
        -------
        polars.DataFrame
            Has ``to_pandas()``, ``to_arrow()``, ``write_parquet()``, ``write_csv()``. Without
            ORDER BY, rows come in storage order.

        Raises
        ------
        InvalidPredicateError, NotFoundError
            The query cannot be run, or names what does not exist.
        """
        with Progress(enabled=progress).watching("reading", self.stats):
            return execute(self.reader, {"obs": self.obs, "var": self.var}, query, tables)

    def to_lazy(self, *, order: Order = "source", **options: Any) -> ad.AnnData:
        """Return everything as a lazy AnnData: see :meth:`Selection.to_lazy`, whose options it takes."""
        return self.query(order=order).to_lazy(**options)

    def to_memory(self, *, progress: bool = True) -> ad.AnnData:
        """Read everything, in source order; `progress` is as of a selection's."""
        return self.query().to_memory(progress=progress)


def _check_names(element: str, wanted: Names, known: Sequence[str]) -> None:
    if isinstance(wanted, str):
        msg = f"{element}={wanted!r} is a single text; expected a list of names: [{wanted!r}]."
        raise InvalidArgumentError(msg)
    for name in wanted or ():
        if name not in known:
            msg = f"{element} has no {name!r}.{did_you_mean(name, known)} It has: {list(known)}"
            raise NotFoundError(msg)
