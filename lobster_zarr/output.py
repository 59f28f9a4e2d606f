"""Writes what a command has selected to a file, by the file's suffix; it appears under its name only when it is whole.

Must not know the command line.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import ConflictError, InvalidArgumentError, NotFoundError
from lobster_zarr.wholefile import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from lobster_zarr.muquery import MultimodalSelection
    from lobster_zarr.query import Selection

TABLES = (".parquet", ".csv")
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
