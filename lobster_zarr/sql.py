"""SQL over obs and var: Polars runs it, and only the columns and rows that it needs leave the store.

A table is given to Polars as an IO source, so that its optimiser pushes
projection, predicate and limit down to us. Must not parse SQL itself, but for
the one form that Polars lacks: ``SELECT obs WHERE …``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from lobster_zarr import predicate as predicates
from lobster_zarr.errors import InvalidPredicateError, NotFoundError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.selection import runs
from lobster_zarr.store import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lobster_zarr.element import StoreReader
    from lobster_zarr.table import TableReader

_TABLE_ALONE = re.compile(r"^\s*SELECT\s+(obs|var)\s*(?=WHERE\b|ORDER\b|LIMIT\b|;|$)", re.IGNORECASE)

_OWNED = re.compile(
    r"'(?:''|[^'])*'|\"(?:\"\"|[^\"])*\"|\b(?P<owner>[^\W\d]\w*)(?P<sign>[.:])(?P<column>[^\W\d]\w*|\"[^\"]+\")"
)
"""Strings and quoted names, which are left alone; a column of something, and which."""
_FILES = re.compile(r"\b(?:read|scan)_\w+\s*\(", re.IGNORECASE)
_EXAMPLE = "Write for example SELECT donor, count(*) AS n FROM obs GROUP BY donor"


def execute(
    reader: StoreReader,
    stored: Mapping[str, TableReader],
    query: str,
    tables: Mapping[str, Any],
    modalities: Sequence[str] = (),
) -> pl.DataFrame:
    """Run a query over tables of a store and the caller's.

    Parameters
    ----------
    reader
        Of the store.
    stored
        Its tables by name, ``obs`` and ``var`` among them.
    query
        SQL as Polars knows it, or ``SELECT obs WHERE …`` for whole rows.
    tables
        Name to a Polars or pandas frame.
    modalities
        Names of those whose columns are columns of ``obs`` and ``var``: ``rna:cell_type``.

    Raises
    ------
    InvalidPredicateError
        Polars refuses the query.
    NotFoundError
        A column or table that does not exist.
    """
    text: object = query
    if not isinstance(text, str):
        msg = f"the query {query!r} is no text. {_EXAMPLE}"
        raise InvalidPredicateError(msg)
    try:
        query.encode()
    except UnicodeEncodeError as error:
        msg = f"the query {query!a} is no Unicode. {_EXAMPLE}"
        raise InvalidPredicateError(msg) from error
    if _FILES.search(query):
        msg = f"the query {query!r} reads files; give them as tables instead: sql(query, name=frame)."
        raise InvalidPredicateError(msg)
    frames: dict[str, Any] = {name: scan(table) for name, table in stored.items()}
    for name, table in tables.items():
        frames[name] = table if isinstance(table, pl.DataFrame | pl.LazyFrame) else pl.from_pandas(table)
    run(reader.identity.check())
    rewritten = _TABLE_ALONE.sub(r"SELECT * FROM \1 ", _quoted(query, modalities))
    try:
        with pl.SQLContext(frames) as context:
            return context.execute(rewritten).collect()
    except pl.exceptions.ColumnNotFoundError as error:
        known = [column for table in stored.values() for column in table.columns]
        wanted = re.findall(r"\"?([\w.]+)\"?", str(error).partition("\n")[0])
        hint = next((h for w in wanted if (h := did_you_mean(w, known))), "")
        msg = f"the query names a column that does not exist: {str(error).partition(chr(10))[0]}.{hint}"
        raise NotFoundError(msg) from error
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        msg = f"cannot run the query {query!r}: {reason}. Tables: {', '.join(frames)}. {_EXAMPLE}"
        raise InvalidPredicateError(msg) from error


def _quoted(query: str, modalities: Sequence[str]) -> str:
    """Quote the columns of modalities (``rna.cell_type``, ``rna:cell_type``) that are not those of a table in FROM."""

    def quoted(match: re.Match[str]) -> str:
        owner, sign, column = match["owner"], match["sign"], match["column"]
        listed = rf"\b(?:FROM|JOIN)\s+(?:[\w\s]+,\s*)*{owner}\b(?!\s*[.:])"
        is_table = sign == "." and re.search(listed, query, re.IGNORECASE)
        if owner not in modalities or is_table:
            return match.group()
        return f'"{owner}:{column.strip(chr(34))}"'

    return _OWNED.sub(lambda match: quoted(match) if match["owner"] else match.group(), query)


def index_name(table: TableReader) -> str:
    """Return the name under which a table's names appear: the index's own, else ``index``."""
    name = "index" if table.index_column == "_index" else table.index_column
    return name if name not in table.columns else "_index"


def scan(table: TableReader) -> pl.LazyFrame:
    """Return a table of the store as a LazyFrame that reads what is asked of it.

    Rows come in storage order. Text categories are text.
    """
    names = index_name(table)
    stored = {names: table.index_column, **{c: c for c in table.columns}}
    schema = {name: table.polars_dtype(column) for name, column in stored.items()}

    async def columns(wanted: list[str], rows: Runs | None) -> list[pl.Series]:
        values = await together(*(table.column(stored[name], rows) for name in wanted))
        return [
            predicates.to_polars(name, value).cast(schema[name]) for name, value in zip(wanted, values, strict=True)
        ]

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        wanted = list(schema) if with_columns is None else with_columns
        known: dict[str, pl.Series] = {}
        near, at = None, np.arange(table.n_rows)
        if predicate is not None:
            needed = list(dict.fromkeys(predicate.meta.root_names()))
            near = table.candidates(predicate, {name: stored[name] for name in needed}, as_text=True)
            known = {s.name: s for s in run(columns(needed, near))}
            n_read = table.n_rows if near is None else near.total
            mask = pl.DataFrame(list(known.values())).select(predicate.alias("")).to_series().fill_null(value=False)
            # `WHERE true` names no column, and gives one answer for all rows.
            at = np.flatnonzero(mask.to_numpy() if len(mask) == n_read else np.full(n_read, mask[0]))
        at = at if n_rows is None else at[:n_rows]
        positions = at if near is None else near.positions()[at]
        rows = None if len(positions) == table.n_rows else Runs(*runs(positions))
        rest = [name for name in wanted if name not in known]
        read = {s.name: s for s in run(columns(rest, rows))}
        read |= {name: known[name][at] for name in wanted if name in known}
        # Of a cross join, no column of one of the tables may be wanted, but its rows are.
        yield pl.DataFrame([read[name] for name in wanted] or None, height=len(positions))

    return register_io_source(source, schema=schema)
