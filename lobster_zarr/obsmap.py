"""Which row of a modality is which global row, as rows are stored and as they were in the source.

An obsmap holds, for each global row, the row of the modality from 1 on, or 0
where the modality lacks it; an order holds the source row of each stored row.
Pure arithmetic: must not know where either comes from.
"""

from __future__ import annotations

import numpy as np


def misfit(obsmap: np.ndarray, n_obs: int, n_rows: int) -> str | None:
    """Say what is wrong with an obsmap, None where it fits.

    Parameters
    ----------
    obsmap
        Any array.
    n_obs, n_rows
        Rows of the global obs, and of the modality's.
    """
    if obsmap.size != n_obs or obsmap.dtype.kind not in "iu":
        return f"is {obsmap.dtype} {obsmap.shape}, expected {n_obs:,} positions"
    flat = obsmap.ravel().astype(np.int64)
    if flat.size and not (flat.min() >= 0 and flat.max() <= n_rows):
        return f"has positions outside [0, {n_rows:,}]"
    repeated = np.flatnonzero(np.bincount(flat)[1:] > 1)
    return f"names row {int(repeated[0]) + 1:,} of the modality more than once" if len(repeated) else None


def is_aligned(obsmap: np.ndarray, n_rows: int) -> bool:
    """Whether a modality of so many rows has all global rows, in their order, and no others."""
    return np.array_equal(obsmap.ravel(), np.arange(1, n_rows + 1))


def follow(obsmap: np.ndarray, order: np.ndarray, n_rows: int) -> np.ndarray | None:
    """Bring the rows of a modality into the order of the global rows; those that none names come last.

    Parameters
    ----------
    obsmap : ndarray of int, shape (n_obs,)
        Of the source.
    order : ndarray of int64, shape (n_obs,)
        Of the global rows.
    n_rows
        Of the modality.

    Returns
    -------
    ndarray of int64, shape (n_rows,), or None
        Its order; None where its rows stay as they are.
    """
    named = obsmap.ravel().astype(np.int64)[order]
    named = named[named > 0] - 1
    rest = np.setdiff1d(np.arange(n_rows), named, assume_unique=True)
    found = np.concatenate((named, rest))
    return None if np.array_equal(found, np.arange(n_rows)) else found


def to_stored(obsmap: np.ndarray, order: np.ndarray | None, part_order: np.ndarray | None) -> np.ndarray:
    """Return the obsmap of rows as they are stored, of the same dtype and shape.

    Parameters
    ----------
    obsmap : ndarray of int, shape (n_obs,)
        Of the source.
    order, part_order : ndarray of int64, or None
        Of the global rows, and of the modality's; None where they are stored as they were.
    """
    stored = obsmap.ravel()
    if part_order is not None:
        stored = _renamed(stored, np.argsort(part_order))
    if order is not None:
        stored = stored[order]
    return stored.reshape(obsmap.shape)


def to_source(obsmap: np.ndarray, order: np.ndarray | None, part_order: np.ndarray | None) -> np.ndarray:
    """Return the obsmap of the source from that of rows as they are stored; the inverse of `to_stored`."""
    found = obsmap.ravel()
    if part_order is not None:
        found = _renamed(found, part_order)
    if order is not None:
        found = found[np.argsort(order)]
    return found.reshape(obsmap.shape)


def _renamed(positions: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Replace row i by ``names[i]``, both from 1 on; 0 stays."""
    renamed: np.ndarray = np.concatenate(([0], names + 1)).astype(positions.dtype)[positions]
    return renamed
