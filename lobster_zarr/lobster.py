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


def attach(
    dm: Any,
    uri: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    cache_cap: int = 8,
) -> ZarrModalityBackend | None:
    """Make a data manager load from, save to and work over stores."""
    dm.adapters.pop(ADAPTER, None)  # the entry point's; replacing it would be warned of
    dm.register_adapter(ADAPTER, ZarrAdapter(storage_options))
    if uri is None:
        return None
    workspace = ZarrModalityBackend(uri, storage_options)
    dm.set_modality_backend(workspace, cache_cap=cache_cap)
    return workspace
