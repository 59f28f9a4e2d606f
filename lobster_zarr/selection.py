"""What a user gives to select along one axis, as positions on it.

This module knows AnnData's rules for positions, slices, boolean masks and names, and turns positions into
runs. It must not know predicates, chunks or stores; names are asked for only where a name was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import polars as pl

from lobster_zarr.errors import InvalidSelectionError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    type Positions = npt.NDArray[np.int64]
    type Names = Callable[[], pd.Index] | pd.Index | None

_LISTS: Final = (
    list,
    tuple,
    range,
    np.ndarray,
    pd.Series,
    pd.Index,
    pd.api.extensions.ExtensionArray,
    pl.Series,
)
_MAX_SHOWN: Final = 5
_MAX_SEARCHED_NAMES: Final = 100_000  # looking for near names takes some 10 microseconds for each that exists


def positions(selector: Any, names: Names, length: int, *, axis: str) -> Positions | slice:
    """Normalise what selects along an axis, by AnnData's rules; O(positions), O(length) for masks and names.

    Parameters
    ----------
    selector
        None for all; a position or positions (integers, negative ones count from the end); a slice, of
        positions or of names (its stop then included); a boolean mask as long as the axis, taken by position;
        a name or names. Order is kept, and so is what is asked for twice. A number always means a position.
    names
        The names on the axis, or what reads them; None if there are none.
    length
        The length of the axis.
    axis
        What messages call it: "obs" or "var".

    Returns
    -------
    numpy.ndarray of int64, shape (n,), or slice
        Positions in ``[0, length)``, or a slice whose start and stop are not negative (stop is None where a
        negative step runs to the first position).

    Raises
    ------
    InvalidSelectionError
        A position is out of bounds, a mask has another length, a name stands more than once on the axis, or
        the selector is none of these.
    NotFoundError
        A name is not on the axis.
    """
    if selector is None:
        return slice(0, length, 1)
    if isinstance(selector, slice):
        return _slice(selector, names, length, axis)
    if isinstance(selector, (str, int, np.integer)) and not isinstance(selector, bool):
        selector = [selector]
    if not isinstance(selector, _LISTS):
        raise _unusable(axis, f"a {type(selector).__name__}")
    # A list goes through object: NumPy would make text of [0, 'a'] and integers of [True, 2].
    values = np.asarray(selector, dtype=object if isinstance(selector, (list, tuple)) else None)
    if values.ndim != 1:
        raise _unusable(axis, f"{values.ndim} dimensions")
    kind = pd.api.types.infer_dtype(values, skipna=False)
    if kind == "boolean":
        return _mask(values.astype(np.bool_, copy=False), length, axis)
    if kind == "integer":
        return _in_bounds(values, length, axis)
    if kind == "string":
        return _named(values, names, axis)
    if kind == "empty" and values.dtype.kind == "O":
        return np.empty(0, dtype=np.int64)
    raise _unusable(axis, "missing values" if pd.isna(values).any() else f"{kind} values")


def runs(sorted_positions: npt.NDArray[np.integer[Any]]) -> tuple[Positions, Positions]:
    """Merge consecutive positions into runs; O(positions).

    Parameters
    ----------
    sorted_positions
        Integers of shape (n,), none smaller than the one before it; repeated ones fall into the same run.

    Returns
    -------
    starts, stops : numpy.ndarray of int64, shape (n_runs,)
        Half-open runs ``[start, stop)``, in order, with a gap between each and the next.

    Raises
    ------
    InvalidSelectionError
        The positions are not sorted.
    """
    given = np.asarray(sorted_positions, dtype=np.int64)
    if not len(given):
        return given, given
    steps = np.diff(given)
    if (steps < 0).any():
        raise InvalidSelectionError("Runs are made of sorted positions; sort them, and restore the order after.")
    breaks = np.flatnonzero(steps > 1)
    return given[np.concatenate(([0], breaks + 1))], given[np.concatenate((breaks, [-1]))] + 1


def _unusable(axis: str, got: str) -> InvalidSelectionError:
    return InvalidSelectionError(
        f"The {axis} selection holds {got}; expected one-dimensional positions (integers), a boolean mask, "
        "names (text) or a slice, without missing values and not mixed."
    )


def _slice(selector: slice, names: Names, length: int, axis: str) -> slice:
    def bound(given: Any) -> Any:
        return int(_named(np.array([given]), names, axis)[0]) if isinstance(given, str) else given

    last = bound(selector.stop)
    last = last + 1 if isinstance(selector.stop, str) else last  # a named stop is included
    try:
        start, stop, step = slice(bound(selector.start), last, selector.step).indices(length)
    except (TypeError, ValueError) as error:
        raise InvalidSelectionError(
            f"The {axis} {selector} is not usable: {error}; expected integers, names or None."
        ) from error
    if not range(start, stop, step):
        return slice(0, 0, 1)
    return slice(start, stop if stop >= 0 else None, step)


def _mask(mask: npt.NDArray[np.bool_], length: int, axis: str) -> Positions:
    if len(mask) != length:
        raise InvalidSelectionError(
            f"The {axis} mask has {len(mask)} values, but {axis} has length {length}; expected one for each."
        )
    return np.flatnonzero(mask).astype(np.int64, copy=False)


def _in_bounds(values: npt.NDArray[Any], length: int, axis: str) -> Positions:
    # Before any cast: a large unsigned or Python integer would wrap.
    outside = (values < -length) | (values >= length)
    if outside.any():
        expected = f"expected {-length} to {length - 1}" if length else "expected none"
        raise InvalidSelectionError(
            f"The {axis} position {values[outside.argmax()]} is out of bounds; {axis} has length {length}, {expected}."
        )
    wrapped = values.astype(np.int64)
    wrapped[wrapped < 0] += length
    return wrapped


def _named(wanted: npt.NDArray[Any], names: Names, axis: str) -> Positions:
    index = names() if callable(names) else names
    if index is None:
        raise InvalidSelectionError(f"{axis} has no names to select by; expected positions, a slice or a mask.")
    wanted = wanted.astype(object)
    once = np.flatnonzero(~index.duplicated()) if not index.is_unique else None
    found: Positions = (index if once is None else index[once]).get_indexer(wanted)
    unknown = list(dict.fromkeys(wanted[found < 0]))
    if unknown:
        shown = ", ".join(map(repr, unknown[:_MAX_SHOWN])) + (", …" if len(unknown) > _MAX_SHOWN else "")
        near = did_you_mean(unknown[0], index) if len(index) <= _MAX_SEARCHED_NAMES else ""
        raise NotFoundError(f"{len(unknown)} of the names asked for are not in {axis}: {shown}.{near}")
    found = found.astype(np.int64, copy=False)
    if once is None:
        return found
    repeated = wanted[index.duplicated(keep=False)[once][found]]
    if len(repeated):
        raise InvalidSelectionError(
            f"The name {repeated[0]!r} is not unique in {axis}; select by position or with a mask instead."
        )
    return once[found]
