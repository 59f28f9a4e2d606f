"""Finds the features (genes) that a predicate names in the matrices of one store, and reads their values.

Reads the named features alone, by the cheaper layout. Must not know how predicates are parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.errors import FormatError, InvalidPredicateError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.selection import runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from lobster_zarr._feature import Feature
    from lobster_zarr.element import StoreReader

MAX_SEARCHED_NAMES = 100_000
"""Of more names, such as those of peaks, none is offered as near: that would take seconds."""


@dataclass(frozen=True)
class Found:
    """One feature of one matrix, where it was found.

    Parameters
    ----------
    reader
        Of the store.
    path
        Of the matrix.
    column
        Its position in var.
    """

    reader: StoreReader
    path: str
    column: int

    @property
    def kind(self) -> str:
        """What a predicate may do with its values."""
        return "boolean" if self.reader.value_dtype(self.path).kind == "b" else "number"


def check_matrix(reader: StoreReader, feature: Feature) -> None:
    """Refuse a feature of a matrix whose values cannot be compared; no request.

    Raises
    ------
    NotFoundError
        There is no such matrix.
    UnsupportedError
        It is no matrix of real numbers or booleans.
    FormatError
        It does not fit obs and var.
    """
    layer = feature.path.partition("/")[2]
    layers = reader.tree.children("layers") if "layers" in reader.tree else []
    if layer and layer not in layers:
        has = f" Layers: {', '.join(map(repr, layers))}" if layers else " It has no layers."
        msg = f"the store has no layer {layer!r}, which the predicate names.{did_you_mean(layer, layers) or has}"
        raise NotFoundError(msg)
    if not layer and not has_x(reader):
        msg = f"the predicate names {feature.name!r} of X, but the store has no X.{_instead(layers)}"
        raise NotFoundError(msg)
    if not reader.is_matrix(feature.path):
        msg = f"{feature.matrix} has the encoding {reader.tree.encoding(feature.path)!r}; a predicate needs a matrix."
        raise UnsupportedError(msg)
    dtype, shape = reader.value_dtype(feature.path), reader.shape(feature.path)
    if dtype.kind not in "biuf":
        msg = f"{feature.matrix} holds {dtype}; a predicate needs real numbers or booleans."
        raise UnsupportedError(msg)
    if shape != (reader.obs.n_rows, reader.var.n_rows):
        expected = f"{reader.obs.n_rows:,} cells × {reader.var.n_rows:,} genes"
        msg = f"{feature.matrix} has the shape {shape}, expected {expected}; the store is damaged."
        raise FormatError(msg)


def has_x(reader: StoreReader) -> bool:
    """Whether a store has X; no request."""
    return "X" in reader.tree and reader.tree.encoding("X") != "null"


def _instead(layers: Sequence[str]) -> str:
    return f" Features of a layer are layers[{layers[0]!r}]['name']." if layers else ""


def find(reader: StoreReader, feature: Feature, names: pd.Index) -> Found | None:
    """Find a feature among the names of var; None where it is not there.

    Raises
    ------
    InvalidPredicateError
        Several have its name.
    """
    at = names.get_indexer_for([feature.name])
    if len(at) > 1:
        msg = (
            f"the predicate names the feature {feature.name!r}, but {len(at)} features are called that. Give them "
            "unique names in the source (adata.var_names_make_unique()) and convert it again."
        )
        raise InvalidPredicateError(msg)
    return None if at[0] < 0 else Found(reader, feature.path, int(at[0]))


def searched(names: pd.Index) -> list[str]:
    """Return the names among which near ones are looked for."""
    return [] if len(names) > MAX_SEARCHED_NAMES else names.astype(str).tolist()


async def read_features(wanted: Iterable[Found], rows: Runs | None) -> dict[Found, np.ndarray]:
    """Read the values of features for some cells, in storage order.

    Parameters
    ----------
    wanted
        Of any matrices; those of one matrix are read together.
    rows
        Runs of cells; None for all.

    Returns
    -------
    dict of ndarray, shape (n_rows,)
        Of the matrix's dtype; what a sparse matrix does not store is 0.
    """
    by_matrix: dict[tuple[StoreReader, str], list[Found]] = {}
    for found in dict.fromkeys(wanted):
        by_matrix.setdefault((found.reader, found.path), []).append(found)
    read = await together(*(_read(*matrix, group, rows) for matrix, group in by_matrix.items()))
    return {found: values for part in read for found, values in part.items()}


async def _read(reader: StoreReader, path: str, group: list[Found], rows: Runs | None) -> dict[Found, np.ndarray]:
    columns = np.unique([found.column for found in group])
    values = await reader.matrix(path, rows, Runs(*runs(columns)))
    dense = values.toarray(order="F") if reader.is_sparse(path) else values
    return {
        found: dense[:, at] for found, at in zip(group, columns.searchsorted([f.column for f in group]), strict=True)
    }
