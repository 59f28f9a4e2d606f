"""Writes what a command has selected to a file, by the file's suffix; it appears under its name only when it is whole.

Must not know the command line.
"""

from __future__ import annotations

import uuid
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import ConflictError, InvalidArgumentError, NotFoundError
from lobster_zarr.wholefile import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from lobster_zarr.muquery import MultimodalSelection
    from lobster_zarr.query import Selection

TABLES = (".parquet", ".csv")
MOST_CHARACTERS = 60
"""Of a longer text in a table the rest is left out."""
OUTPUTS = (".h5ad", ".h5mu", ".zarr", *TABLES)


def check_output(out: Path, suffixes: tuple[str, ...], *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything is read."""
    if out.suffix not in suffixes:
        msg = f"cannot write {out.name!r}: expected a name that ends in {', '.join(suffixes)}."
        raise InvalidArgumentError(msg)
    if not out.absolute().parent.is_dir():
        msg = f"cannot write {out}: the folder {out.parent} does not exist; make it first."
        raise NotFoundError(msg)
    if out.exists() and not overwrite:
        msg = f"{out} exists; pass --overwrite to replace it."
        raise ConflictError(msg)


def check_kind(out: Path, *, is_mudata: bool) -> None:
    """Refuse a file for the other kind of object."""
    wrong, right = (".h5ad", ".h5mu") if is_mudata else (".h5mu", ".h5ad")
    if out.suffix == wrong:
        kind = "a MuData" if is_mudata else "an AnnData"
        msg = f"cannot write {out.name!r}: the store holds {kind}; expected a name that ends in {right}."
        raise InvalidArgumentError(msg)


def save(selection: Selection | MultimodalSelection, out: Path, client: Any, *, overwrite: bool) -> int:
    """Write a selection by suffix; the workers of `client`, where there is one, read its matrices.

    Returns
    -------
    int
        The number of cells.
    """
    import lobster_zarr as lz

    if out.suffix in TABLES:
        table = selection.to_table()
        with whole_file(out) as part:
            table.to_csv(part, index=False) if out.suffix == ".csv" else table.to_parquet(part, index=False)
        return len(table)
    found: Any = selection.to_memory(client=client)
    if out.suffix == ".zarr":
        lz.convert(found, out, overwrite=overwrite, client=False)
    elif out.suffix == ".h5mu":
        # mudata's own writer would make text categorical.
        staged = f"memory://{uuid.uuid4().hex}"
        lz.convert(found, staged, codec="fast", progress=False, client=False)
        lz.export(staged, out, overwrite=overwrite, progress=False)
    else:
        with whole_file(out) as part:
            found.write_h5ad(part, convert_strings_to_categoricals=False)
    return int(found.n_obs)


def drawn(table: pl.DataFrame, width: int) -> tuple[str, int]:
    """Draw a table with as many of its columns, from the first, as fit.

    Returns
    -------
    str, int
        The table, and how many columns are left out.
    """
    import polars as pl

    texts = table.select(pl.all().cast(pl.String, strict=False).str.len_chars().max().fill_null(0))
    needed = [
        max(min(n or 0, MOST_CHARACTERS), len(name), len(str(table[name].dtype))) + 3
        for name, n in zip(table.columns, texts.row(0) if table.width else (), strict=True)
    ]
    n_columns = sum(total < width for total in accumulate(needed))
    shown = table.select(table.columns[: max(n_columns, 1)])
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=max(width, sum(needed[:1]) + 1),
        fmt_str_lengths=MOST_CHARACTERS,
        tbl_hide_dataframe_shape=True,
        tbl_cell_numeric_alignment="RIGHT",
    ):
        return str(shown), table.width - shown.width
