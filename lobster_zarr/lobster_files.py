"""Lobster AI's data backend: saves and loads files and stores, locally and on S3, as its data manager names them.

Knows Lobster AI's backend interface. Must not know how paths, files and stores are handled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, override

import mudata
from lobster.core.interfaces.backend import IDataBackend

from lobster_zarr.address import KeptOptions
from lobster_zarr.backend import StorageBackend
from lobster_zarr.documented import saving
from lobster_zarr.packing import pack, pack_mudata, unpack

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import anndata as ad


class ZarrDataBackend(StorageBackend, IDataBackend):  # type: ignore[misc]  # its package is not there where types are checked
    """Holds AnnData and MuData: what AnnData cannot encode is packed, and comes back as it was.

    Parameters
    ----------
    base
        What relative paths are relative to: ``s3://bucket/prefix`` or a local folder.
    storage_options
        As for :func:`lobster_zarr.open`.
    """

    def __init__(
        self, base: str | os.PathLike[str] | None = None, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(base, progress=False)
        self._options = KeptOptions(storage_options)

    @override
    def save(self, data: ad.AnnData | mudata.MuData, path: str | os.PathLike[str], **options: Any) -> None:
        """Save an AnnData or a MuData: see :meth:`StorageBackend.save`. What is passed is not changed."""
        with saving():
            packed = pack_mudata(data) if isinstance(data, mudata.MuData) else pack(data)
        super().save(packed, path, **options)

    @override
    def load(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Load an AnnData or a MuData, or a part of it: see :meth:`StorageBackend.load`."""
        return unpack(super().load(path, **options))
