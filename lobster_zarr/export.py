"""Writes a store back to H5AD or H5MU: streaming, in bounded memory, in source order.

The file appears under its name only when it is whole. Must not know how
anything is written: that is :mod:`lobster_zarr.h5ad` and :mod:`lobster_zarr.muexport`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py

from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import ConflictError, InvalidArgumentError, StorageError, UnsupportedError
from lobster_zarr.h5ad import Compression, Export, Sink, compression_options
from lobster_zarr.muexport import HEADER_BYTES, header, write_mudata
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.report import Progress
from lobster_zarr.scratch import Scratch
from lobster_zarr.store import display_uri, is_local, local_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def export(  # noqa: PLR0913 - the public contract
    uri: str | os.PathLike[str] | Dataset | MultimodalDataset,
    dest: str | os.PathLike[str],
    *,
    modality: str | None = None,
    compression: Compression = "gzip",
    compression_opts: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Write a whole store to an ``.h5ad`` or ``.h5mu`` file, rows in source order.

    Memory is a few blocks of rows, whatever the store's size; a sorted store
    is regrouped through a scratch file.

    Parameters
    ----------
    uri
        Of the store, or an open Dataset.
    dest
        Local path of the file: ``.h5mu`` for a MuData store, ``.h5ad`` for anything else.
    modality
        The one to write, of a MuData store; None for all.
    compression
        Of the datasets: ``"gzip"``, ``"lzf"`` or ``"none"``.
    compression_opts
        Level of gzip, 0 to 9; None for HDF5's own.
    overwrite
        Replace a file that is there.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show progress bars when on a terminal.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ConflictError
        The file exists.
    InvalidArgumentError
        The name of the file does not fit what it would hold.
    NotFoundError
        There is no store, or no such modality.
    ChunkDecodeError
        A chunk of the store is damaged.
    """
    if not is_local(dest):
        msg = f"cannot export to {display_uri(dest)}; export to a local path and upload the file."
        raise UnsupportedError(msg)
    path = local_path(dest)
    if path.exists() and not overwrite:
        msg = f"{path} exists; pass overwrite=True (--overwrite) to replace it."
        raise ConflictError(msg)
    options = compression_options(compression, compression_opts)
    data = _chosen(uri, path, modality, storage_options)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Sink(part) as sink, Scratch() as scratch:
            several, bars = isinstance(data, MultimodalDataset), Progress(enabled=progress)
            begin = partial(Export, sink=sink, scratch=scratch, compression=options)
            with h5py.File(sink, "w", userblock_size=HEADER_BYTES if several else 0) as file:
                if isinstance(data, MultimodalDataset):
                    write_mudata(data, begin, file, bars)
                else:
                    begin(data, file, progress=bars).write()
            if several:
                sink.seek(0)
                sink.write(header())
            sink.check()
        part.replace(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        msg = f"cannot write {path}: {error}. Free space on the disk, or choose another destination."
        raise StorageError(msg) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # of the second the caller is being told
            part.unlink()
    return path


def _chosen(
    uri: str | os.PathLike[str] | Dataset | MultimodalDataset,
    path: Path,
    modality: str | None,
    options: Mapping[str, Any] | None,
) -> Dataset | MultimodalDataset:
    """Open what is to be written; refuse a file whose name says something else."""
    opened = open_dataset(uri, options) if isinstance(uri, str | os.PathLike) else uri
    if isinstance(opened, MultimodalDataset):
        if modality is None and path.suffix != ".h5mu":
            msg = (
                f"{opened.uri} is a MuData store: expected a name that ends in .h5mu, got {path.name!r}. Or choose a "
                f"modality (modality=, --modality): {list(opened.modalities)}"
            )
            raise InvalidArgumentError(msg)
        data = opened if modality is None else opened[modality]
    elif modality is not None:
        msg = f"{opened.uri} is an AnnData store; modality={modality!r} is for a MuData store."
        raise InvalidArgumentError(msg)
    else:
        data = opened
    if isinstance(data, Dataset) and path.suffix == ".h5mu":
        msg = f"{data.uri} is an AnnData: expected a name that ends in .h5ad, got {path.name!r}."
        raise InvalidArgumentError(msg)
    return data
