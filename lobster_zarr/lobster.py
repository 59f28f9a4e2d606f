"""The plug-in for Lobster AI: :func:`attach` makes a data manager store on S3 and read subsets from there.

Importing this module needs ``lobster-ai`` (the extra ``lobster``). Must not know how stores are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lobster_zarr.lobster_adapter import ADAPTER, ZarrAdapter
from lobster_zarr.lobster_workspace import ZarrModalityBackend

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["ZarrAdapter", "ZarrModalityBackend", "attach", "create_adapter"]


def create_adapter() -> ZarrAdapter:
    """Return the adapter with the environment's credentials: the entry point ``s3_zarr`` of ``lobster.adapters``."""
    return ZarrAdapter()
