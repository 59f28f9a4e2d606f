"""The documented S3 backend: what an application imports. Knows no more than where that is."""

from __future__ import annotations

from lobster_zarr.backend import StorageBackend
from lobster_zarr.kinds import H5ADBackend, MuDataBackend
from lobster_zarr.transfer import Parts, download, upload
from lobster_zarr.workspace import DataManager

__all__ = ["DataManager", "H5ADBackend", "MuDataBackend", "Parts", "StorageBackend", "download", "upload"]
