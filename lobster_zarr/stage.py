"""Encodes elements in memory the way AnnData does, to be laid out our way.

AnnData's own writer turns a value into groups and arrays in a memory store;
:func:`lobster_zarr.write.write_staged` writes those with our chunks and codecs.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from zarr.storage import MemoryStore

from lobster_zarr.errors import UnsupportedError


def stage(value: Any, path: str) -> zarr.Group | zarr.Array[Any]:
    """Encode one element.

    Parameters
    ----------
    value
        Whatever AnnData can write.
    path
        Of the element, for messages.

    Raises
    ------
    UnsupportedError
        AnnData cannot write it.
    """
    group = zarr.open_group(MemoryStore(), mode="w", zarr_format=3)
    try:
        with warnings.catch_warnings(), ad.settings.override(allow_write_nullable_strings=True):
            warnings.simplefilter("ignore")
            options = {"compressors": None}
            ad.experimental.write_dispatched(group, "element", value, _write_checked, dataset_kwargs=options)
            return group["element"]
    except Exception as error:
        # anndata's writers raise whatever a value makes them stumble over.
        msg = f"{path!r} ({type(value).__name__}) cannot be stored without loss: {error}. Change or remove it."
        raise UnsupportedError(msg) from error


def _write_checked(write: Any, store: Any, key: str, value: Any, *, dataset_kwargs: Any, iospec: Any) -> None:
    """Write one value, unless anndata would turn a missing one into the text ``None``."""
    del iospec
    if isinstance(value, np.ndarray) and value.dtype == object:
        strange = next((v for v in value.flat if not isinstance(v, str)), None) if value.size else None
        if strange is not None or any(v is None for v in value.flat):
            msg = (
                f"its values mix text with {type(strange).__name__} ({strange!r}), which AnnData would store as text; "
                "make it categorical, or of dtype 'string'"
            )
            raise TypeError(msg)
    write(store, key, value, dataset_kwargs=dataset_kwargs)


def is_plain_string(values: Any) -> bool:
    """Whether names are pandas strings with none missing: an index needs no mask to be kept.

    The mask would cost every reader a request. An empty index keeps it, and so
    does a column: readers could not tell which kind of strings it was.
    """
    dtype = getattr(values, "dtype", None)
    if not isinstance(dtype, pd.StringDtype) or dtype.na_value is pd.NA or not len(values):
        return False
    return not np.any(pd.isna(values))
