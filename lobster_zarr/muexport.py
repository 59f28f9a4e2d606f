"""Writes a MuData store to an H5MU file: its global elements, its maps in source positions, each modality.

Knows how MuData lies in HDF5. Must not know how an AnnData is written.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import mudata

from lobster_zarr.obsmap import to_source

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

    from lobster_zarr.h5ad import Export
    from lobster_zarr.multimodal import MultimodalDataset
    from lobster_zarr.report import Progress

HEADER_BYTES = 512
"""Room before the HDF5 file, by which mudata knows its own."""


def header() -> bytes:
    """Return what mudata expects there."""
    text = f"MuData (format-version={mudata.__mudataversion__};creator=lobster_zarr;creator-version={{}})"
    return text.format(version("lobster_zarr")).encode().ljust(HEADER_BYTES, b"\0")


def write_mudata(data: MultimodalDataset, export: Callable[..., Export], file: h5py.File, progress: Progress) -> None:
    """Write every element, modality by modality.

    Parameters
    ----------
    data
        The store.
    export
        Begins the export of an AnnData to a group: an `Export` that has all but these and `progress`.
    file
        Empty.
    progress
        Shows each matrix.
    """
    whole = export(data.whole, file, progress=progress)
    whole.write()
    for kind in ("obsmap", "varmap"):
        file.create_group(kind).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        for name in data.modalities:
            positions = data.reader.stored_map(f"{kind}/{name}")
            whole.put(
                f"{kind}/{name}", to_source(positions, *data.reader.orders(name)) if kind == "obsmap" else positions
            )
    mod = file.create_group("mod")
    for name, part in data.modalities.items():
        export(part, mod.create_group(name), progress=progress.of(name)).write()
    mod.attrs["mod-order"] = list(data.modalities)
    stored = data.whole.tree.attributes("")
    noted = {
        "encoding-version": mudata.__mudataversion__,
        "encoder": "lobster_zarr",
        "encoder-version": version("lobster_zarr"),
    }
    file.attrs.update({key: str(stored.get(key, default)) for key, default in noted.items()})
    file.attrs.update({"encoding-type": "MuData", "axis": data.axis})
