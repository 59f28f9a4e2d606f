"""Single-cell data on S3, read by the cell and the gene.

Convert an H5AD once to chunked Zarr; from then on fetch only the cells and
genes that a query asks for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version as _version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobster_zarr import errors
    from lobster_zarr.byterange import Network
    from lobster_zarr.convert import convert
    from lobster_zarr.dataset import Dataset
    from lobster_zarr.diagnosis import Diagnosis
    from lobster_zarr.doctor import doctor
    from lobster_zarr.export import export
    from lobster_zarr.h5index import IndexReport, index
    from lobster_zarr.manifest import MigrationReport
    from lobster_zarr.migration import migrate
    from lobster_zarr.multimodal import MultimodalDataset, open
    from lobster_zarr.muquery import MultimodalSelection
    from lobster_zarr.query import Selection
    from lobster_zarr.report import ConversionReport
    from lobster_zarr.verify import verify

__all__ = [
    "ConversionReport",
    "Dataset",
    "Diagnosis",
    "IndexReport",
    "MigrationReport",
    "MultimodalDataset",
    "MultimodalSelection",
    "Network",
    "Selection",
    "convert",
    "doctor",
    "errors",
    "export",
    "index",
    "migrate",
    "open",
    "verify",
]

__version__ = _version("lobster_zarr")

# Loaded on first use: anndata alone takes a second to import.
_HOMES = {
    "ConversionReport": "report",
    "Dataset": "dataset",
    "Diagnosis": "diagnosis",
    "IndexReport": "h5index",
    "MigrationReport": "manifest",
    "MultimodalDataset": "multimodal",
    "MultimodalSelection": "muquery",
    "Network": "byterange",
    "Selection": "query",
    "convert": "convert",
    "doctor": "doctor",
    "export": "export",
    "index": "h5index",
    "migrate": "migration",
    "open": "multimodal",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("lobster_zarr.errors")
    if name not in _HOMES:
        msg = f"module 'lobster_zarr' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"lobster_zarr.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the submodule `convert` would bind it over the function.
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
