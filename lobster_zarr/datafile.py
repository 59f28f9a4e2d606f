"""Reads and writes .h5ad and .h5mu files of this machine exactly: text stays text.

Must not know where files come from.
"""

from __future__ import annotations

import itertools
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import h5py
import mudata
import pandas as pd

from lobster_zarr.convert import convert
from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.export import export
from lobster_zarr.h5ad import compression_options
from lobster_zarr.location import Location
from lobster_zarr.mulazy import LazyMuData
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.refusal import READ, refused_by_system
from lobster_zarr.s3client import missing
from lobster_zarr.wholefile import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.multimodal import MultimodalDataset

    type Annotated = ad.AnnData | mudata.MuData

_ALIGNED = ("layers", "obsm", "varm", "obsp", "varp")


def read_file(path: Path, *, backed: bool = False) -> Annotated:
    """Read a whole file.

    Parameters
    ----------
    path
        Of an .h5ad or .h5mu.
    backed
        Leave X in the file until it is asked for.

    Raises
    ------
    NotFoundError, StorageError
        There is no such file, or it cannot be opened.
    FormatError
        It is damaged, or holds something else.
    """
    mode: Literal["r"] | None = "r" if backed else None
    holds_mudata = is_mudata(path)
    try:
        return mudata.read_h5mu(path, backed=mode) if holds_mudata else ad.read_h5ad(path, backed=mode)
    except MemoryError:
        raise
    except Exception as error:
        msg = f"cannot read {path}: {error}. It may be damaged: compare it with the original, or re-save it there."
        raise FormatError(msg) from error


def is_mudata(path: Path) -> bool:
    """Whether a file holds a MuData; errors as of `read_file`."""
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise missing(Location("file", str(path))) from error
    except OSError as error:
        raise refused_by_system(error, READ, path.name, Location("file", str(path.parent))) from error
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("encoding-type") == "MuData" or "mod" in file
    except OSError as error:
        msg = f"{path} is not a readable HDF5 file: {error}. It may be truncated; compare its size with the original."
        raise FormatError(msg) from error


def write_file(data: Annotated, path: Path, compression: str | None, compression_opts: int | None) -> None:
    """Write a file, which appears under its name only when it is whole.

    Parameters
    ----------
    data
        An AnnData for an .h5ad, a MuData for an .h5mu.
    path
        Of the file, which is replaced.
    compression, compression_opts
        As of `lobster_zarr.export`.

    Raises
    ------
    UnsupportedError
        It holds what cannot be written.
    StorageError
        The disk refused.
    """
    options = compression_options(compression, compression_opts)
    if isinstance(data, mudata.MuData):
        # mudata's own writer would make text categorical.
        with stored(data) as staged:
            chosen: Any = compression or "none"
            export(staged, path, compression=chosen, compression_opts=compression_opts, overwrite=True, progress=False)
        return
    with whole_file(path) as part:
        try:
            data.write_h5ad(part, convert_strings_to_categoricals=False, **options)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            what = "; ".join([str(error), *getattr(error, "__notes__", ())])  # anndata notes which element it was
            msg = f"cannot write {path}: {what}. Change or remove what is named, then save again."
            raise UnsupportedError(msg) from error


@contextmanager
def stored(source: Annotated) -> Iterator[Dataset | MultimodalDataset]:
    """Give a store of what is in memory, that lasts as long as the block."""
    with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as scratch:
        path = Path(scratch, "data.zarr")
        convert(source, path, codec="fast", gene_major=False, progress=False, client=False)
        yield open_dataset(path)


def in_memory(data: Annotated) -> Annotated:
    """Return what can be written: something lazy or backed is read first, as what is written may replace it."""
    if not isinstance(data, mudata.MuData):
        return data.to_memory() if _elsewhere(data) else data
    if not any(_elsewhere(part) for part in data.mod.values()):
        return data
    if isinstance(data, LazyMuData):
        return data.to_memory()
    msg = "the MuData holds modalities that are lazy or backed; read them first, with to_memory() of each."
    raise UnsupportedError(msg)


def _elsewhere(data: ad.AnnData) -> bool:
    """Whether values are still where the object was opened from."""
    if data.isbacked:
        return True
    if not all(isinstance(table, pd.DataFrame) for table in (data.obs, data.var)):
        return True
    matrices = itertools.chain([data.X], *(getattr(data, name).values() for name in _ALIGNED))
    return any(hasattr(matrix, "__dask_graph__") for matrix in matrices)
