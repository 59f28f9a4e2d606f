"""Answers an SQL query about cells in the form that a caller wants: a table, a file's bytes, or the cells themselves.

Must not know where the data lie.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import InvalidArgumentError, InvalidPredicateError, did_you_mean

if TYPE_CHECKING:
    from lobster_zarr.dataset import Dataset
    from lobster_zarr.multimodal import MultimodalDataset

FILES = ("parquet", "csv", "json")
FORMATS = (*FILES, "anndata", "pandas", "arrow", "polars")
_QUERY = re.compile(r"\s*(SELECT|WITH)\b", re.IGNORECASE)
_CELLS = re.compile(r"\s*SELECT\s+(?:obs|\*\s+FROM\s+obs)\s*(?:WHERE\b(?P<where>.+?))?;?\s*", re.IGNORECASE | re.DOTALL)
EXAMPLE = "Write for example SELECT obs WHERE cell_type = 'T cell'"


def check_question(query: object, output_format: str) -> None:
    """Refuse what is no query, or a form that there is not, before anything is read.

    Raises
    ------
    InvalidPredicateError
        The text is no query, or asks for cells in a way that names none.
    InvalidArgumentError
        There is no such form.
    """
    if output_format not in FORMATS:
        hint = did_you_mean(str(output_format), FORMATS)
        msg = f"output_format is {output_format!r}; expected one of {', '.join(FORMATS)}.{hint}"
        raise InvalidArgumentError(msg)
    if not isinstance(query, str) or not _QUERY.match(query):
        raise InvalidPredicateError(f"{query!r} is no query, expected text that begins with SELECT. {EXAMPLE}")
    if output_format == "anndata" and not _CELLS.fullmatch(query):
        msg = f"{query!r} gives a table, not cells; expected SELECT obs, with a WHERE or without, for 'anndata'."
        raise InvalidPredicateError(f"{msg} {EXAMPLE}")


def cells(dataset: Dataset | MultimodalDataset, query: str, *, progress: bool = True) -> Any:
    """Return the cells that a checked query names: an AnnData, of a MuData store a MuData."""
    match = _CELLS.fullmatch(query)
    where = match["where"] if match else None
    return dataset.query(where.strip() if where else None).to_memory(progress=progress)


def table(dataset: Dataset | MultimodalDataset, query: str, output_format: str, *, progress: bool = True) -> Any:
    """Return the rows that a checked query gives: a frame, a table, or the bytes of a file."""
    frame = dataset.sql(query, progress=progress)
    if output_format == "polars":
        return frame
    if output_format == "pandas":
        return frame.to_pandas()
    if output_format == "arrow":
        return frame.to_arrow()
    sink = io.BytesIO()
    writers: dict[str, Any] = {"parquet": frame.write_parquet, "csv": frame.write_csv, "json": frame.write_json}
    writers[output_format](sink)
    return sink.getvalue()
