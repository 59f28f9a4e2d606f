"""The plug-in for Lobster AI: :func:`attach` makes a data manager store on S3 and read subsets from there.

Importing this module needs ``lobster-ai`` (the extra ``lobster``). Must not know how stores are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lobster_zarr.lobster_adapter import ADAPTER, ZarrAdapter
from lobster_zarr.lobster_files import ZarrDataBackend
from lobster_zarr.lobster_workspace import ZarrModalityBackend

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["ZarrAdapter", "ZarrDataBackend", "ZarrModalityBackend", "attach", "create_adapter"]

BACKEND = "s3"


def create_adapter() -> ZarrAdapter:
    """Return the adapter with the environment's credentials: the entry point ``s3_zarr`` of ``lobster.adapters``."""
    return ZarrAdapter()


def attach(
    dm: Any,
    uri: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    workspace: bool = False,
    cache_cap: int = 8,
) -> ZarrDataBackend:
    """Make a data manager load from, and save to, stores and files on S3.

    Registers the adapter ``s3_zarr``, and a backend as ``s3`` and as ``mudata`` (the one that ``save_mudata``
    always takes). Whatever has these names is replaced; the default backend stays what it is.

    Parameters
    ----------
    dm
        Lobster AI's ``DataManagerV2``.
    uri
        What relative paths are relative to for that backend: ``s3://bucket/prefix`` or a folder. None for
        the data manager's own folder.
    storage_options
        As for :func:`lobster_zarr.open`; they are neither recorded nor shown. None for the environment's.
    workspace
        Keep the modalities themselves at `uri`, one store each, as a :class:`ZarrModalityBackend`: they are
        read when they are used, and those that were changed are written before they leave memory.
    cache_cap
        How many modalities stay in memory then.

    Returns
    -------
    ZarrDataBackend
        The backend; ``dm.default_backend = "s3"`` makes it the default one.

    Raises
    ------
    InvalidArgumentError
        An unknown option, or a URI that cannot be opened.
    """
    base = dm.data_dir if uri is None else uri
    backend, adapter = ZarrDataBackend(base, storage_options), ZarrAdapter(storage_options)
    for registered, register, name, plugin in (
        (dm.adapters, dm.register_adapter, ADAPTER, adapter),
        (dm.backends, dm.register_backend, BACKEND, backend),
        (dm.backends, dm.register_backend, "mudata", backend),
    ):
        registered.pop(name, None)  # to overwrite would be warned of
        register(name, plugin)
    if workspace:
        dm.set_modality_backend(ZarrModalityBackend(base, storage_options), cache_cap=cache_cap)
    return backend
