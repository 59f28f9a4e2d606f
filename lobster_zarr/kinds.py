"""The backends by what they hold: one for AnnData, one for MuData."""

from __future__ import annotations

from lobster_zarr.backend import StorageBackend


class H5ADBackend(StorageBackend):
    """As `StorageBackend`, for AnnData: .h5ad files and .zarr stores."""

    formats = ("h5ad", "zarr")


class MuDataBackend(StorageBackend):
    """As `StorageBackend`, for MuData: .h5mu files and .zarr stores."""

    formats = ("h5mu", "zarr")
