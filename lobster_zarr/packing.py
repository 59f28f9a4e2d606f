"""Keeps what AnnData has no encoding for: lists of dicts in uns, columns of mixed objects, names with a slash.

``pack`` gives an AnnData or MuData that every reader of AnnData opens; what uns holds beyond AnnData's
encodings is one JSON text under a key of its own there, and ``unpack`` puts it back. Must not know stores.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import warnings
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lobster_zarr.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import anndata as ad
    import mudata

PACKED = "lobster_zarr_json"
"""The key in uns of the JSON text; readers that do not know it see a text."""
RECORDS = ("provenance",)
"""Members of uns that are set aside as a whole, so that a file too gives back Python's numbers, not numpy's."""
_TAG = "__lobster_zarr__"
_SLASH = "__"  # as Lobster AI's own backend writes it
_MEMBERS = ("obsm", "varm", "obsp", "varp")


def pack(adata: ad.AnnData) -> ad.AnnData:
    """Return an AnnData that can be stored; matrices are shared with the original, which is not changed.

    Parameters
    ----------
    adata
        In memory, or a view of one.

    Returns
    -------
    AnnData
        ``uns`` without what AnnData cannot encode, and that as JSON text under ``uns["lobster_zarr_json"]``.
        In names, ``/`` is ``__``. Object columns of obs and var are of dtype string, boolean or a number
        (missing values stay missing); those that mix types, and times, are text.

    Raises
    ------
    UnsupportedError
        uns holds an object that neither AnnData nor JSON can hold, or two names become one.
    """
    import anndata as ad

    raw: Any = adata.raw
    aligned: dict[str, Any] = {name: _members(getattr(adata, name), name) for name in _MEMBERS}
    return ad.AnnData(
        X=adata.X,
        obs=storable(adata.obs, "obs"),
        var=storable(adata.var, "var"),
        uns=packed_uns(adata.uns),
        # anndata 0.13 shows X among the layers, under the name None.
        layers=_renamed({k: v for k, v in adata.layers.items() if k is not None}, "layers"),
        raw=None if raw is None else {"X": raw.X, "var": storable(raw.var, "raw.var"), "varm": dict(raw.varm)},
        **aligned,
    )


def pack_mudata(mdata: mudata.MuData) -> mudata.MuData:
    """Return a MuData that can be stored, as :func:`pack`; matrices are shared with the original."""
    import mudata

    own = {name: {k: v for k, v in getattr(mdata, name).items() if k not in mdata.mod} for name in _MEMBERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are shared: who made the original was told
        return mudata.MuData(
            {name: pack(part) for name, part in mdata.mod.items()},
            axis=mdata.axis,
            obs=storable(mdata.obs, "obs"),
            var=storable(mdata.var, "var"),
            uns=packed_uns(mdata.uns),
            obsmap=dict(mdata.obsmap),
            varmap=dict(mdata.varmap),
            **{name: _members(members, name) for name, members in own.items()},
        )


def unpack[T: (ad.AnnData, mudata.MuData)](data: T) -> T:
    """Put back, in place, what :func:`pack` had set aside; return the same object.

    Raises
    ------
    FormatError
        The text under the reserved key is damaged.
    """
    for part in (data, *getattr(data, "mod", {}).values()):
        if PACKED in part.uns:
            part.uns = unpacked_uns(part.uns)
    return data


def packed_uns(uns: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a uns that AnnData stores, with the rest of it as JSON text under a key of its own."""
    if PACKED in uns:  # read by another reader, and perhaps added to since
        uns = unpacked_uns(uns) | {name: uns[name] for name in RECORDS if name in uns}
    entries: list[tuple[list[Any], Any]] = []
    kept: dict[str, Any] = _set_aside(uns, [], entries)
    return kept | ({PACKED: json.dumps({"version": 1, "entries": entries})} if entries else {})


def unpacked_uns(uns: Mapping[str, Any], as_file: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """Return the uns that :func:`packed_uns` was given.

    Parameters
    ----------
    uns
        As it was stored; it is not changed.
    as_file
        For a uns that is to be written to a file: makes of each value that was set aside one that can be.
        Names have no slashes then.
    """
    result = _copied(uns)
    text = result.pop(PACKED, None)
    if text is None:
        return result
    try:
        document = json.loads(str(text))
        version, entries = document["version"], document["entries"]
        for path, value in entries if version == 1 else ():
            *parents, last = map(_decoded, path)
            place = result
            for name in parents:
                place = place.setdefault(name, {})
            if as_file is None:
                place[last] = _decoded(value)
            else:
                place[str(last).replace("/", _SLASH) or _SLASH] = as_file(_decoded(value))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"uns[{PACKED!r}] is damaged ({type(error).__name__}); expected the JSON text that lobster_zarr wrote."
        raise FormatError(msg) from error
    if version != 1:
        msg = f"uns[{PACKED!r}] has version {version}, this package reads version 1; update it."
        raise FormatError(msg)
    return result


def storable(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a table whose columns AnnData can store; the same one where they are so already.

    Parameters
    ----------
    frame
        obs, var, or a table in obsm.
    where
        Its name, for messages.
    """
    changed = {name: values for name in frame if (values := _column(frame[name])) is not None}
    names = _names(frame.columns, where)
    if not changed and names == list(frame.columns):
        return frame
    result = frame.copy(deep=False)
    for name, values in changed.items():
        result[name] = values
    return result.set_axis(names, axis=1)


def _column(values: pd.Series) -> pd.Series | None:
    """Return a column as AnnData can store it, None where it can so already."""
    if values.dtype != object and values.dtype.kind not in "mM":
        return None
    known = values.dropna()
    kind = pd.api.types.infer_dtype(known) if values.dtype == object else "time"
    if kind == "string":
        return None if len(known) == len(values) else values.astype("string")
    if kind == "integer" and not _is_native([known.min(), known.max()]):
        kind = "big"
    dtype = {"boolean": "boolean", "integer": "Int64", "floating": "float64"}.get(kind)
    return values.astype(dtype) if dtype else values.map(str, na_action="ignore").astype("string")


def _names(names: Iterable[Any], where: str) -> list[str]:
    result = [str(name).replace("/", _SLASH) for name in names]
    if twice := {name for name in result if result.count(name) > 1}:
        msg = f"several names of {where} would be stored as {min(twice)!r}; rename all but one."
        raise UnsupportedError(msg)
    return result


def _renamed(members: Mapping[Any, Any], where: str) -> dict[str, Any]:
    return dict(zip(_names(members, where), members.values(), strict=True))


def _members(members: Mapping[Any, Any], where: str) -> dict[str, Any]:
    return {
        name: storable(value, f"{where}[{name!r}]") if isinstance(value, pd.DataFrame) else value
        for name, value in _renamed(members, where).items()
    }


def _set_aside(values: Mapping[Any, Any], path: list[Any], entries: list[tuple[list[Any], Any]]) -> dict[str, Any]:
    """Return what AnnData encodes of a mapping; the rest is added to the entries, each with its path."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        named = isinstance(name, str) and bool(name) and "/" not in name and name != PACKED
        is_record = not path and name in RECORDS and _is_plain(value)
        if named and not is_record and _is_native(value):
            kept[name] = value
        elif named and not is_record and isinstance(value, Mapping):
            kept[name] = _set_aside(value, [*path, name], entries)
        else:
            where = [*path, name]
            entries.append(([_encoded(step, where) for step in where], _encoded(value, where)))
    return kept


def _is_native(value: Any) -> bool:
    """Whether AnnData stores the value, and returns what equals it (a list as an array)."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and k and "/" not in k and _is_native(v) for k, v in value.items())
    if isinstance(value, list):
        texts, numbers = _all(value, str), _all(value, (int, float)) and not any(isinstance(v, bool) for v in value)
        return bool(value) and (texts or (numbers and np.asarray(value).dtype.kind in "if"))
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufcUV" or (value.dtype.kind in "OT" and _all(value.flat, str))
    if isinstance(value, np.generic):
        return value.dtype.kind in "biufcU"
    # Of anything else that is not plain, such as a sparse matrix or a table, AnnData is the judge.
    return not isinstance(value, (tuple, set, frozenset, bytes, dt.date, dt.time, PurePath))


def _all(values: Iterable[Any], kinds: Any) -> bool:
    return all(isinstance(v, kinds) for v in values)


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold all of a value, as `_encoded` writes it, without arrays."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, chain(value.keys(), value.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bytes, dt.date, dt.time, PurePath, np.generic))


def _encoded(value: Any, where: list[Any]) -> Any:
    """Return a value as JSON holds it; what JSON has no type for is tagged."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, list):
        return [_encoded(v, where) for v in value]
    if isinstance(value, np.ndarray):
        return _array(value, where)
    if isinstance(value, Mapping):
        if all(type(k) is str and k != _TAG for k in value):
            return {k: _encoded(v, [*where, k]) for k, v in value.items()}
        return {_TAG: "dict", "value": [[_encoded(k, where), _encoded(v, where)] for k, v in value.items()]}
    return _tagged(value, where)


def _tagged(value: Any, where: list[Any]) -> Any:
    for name, kind, as_plain in _TAGGED:
        if isinstance(value, kind):
            plain = as_plain(value)
            return {_TAG: name, "value": plain if isinstance(plain, str) else _encoded(plain, where)}
    raise _unknown(value, where)


def _unknown(value: Any, where: list[Any]) -> UnsupportedError:
    told = "".join(f"[{step!r}]" for step in where)
    what = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return UnsupportedError(
        f"uns{told} is or holds a {what}, for which neither AnnData nor JSON has a form there; change or remove it."
    )


def _array(value: np.ndarray, where: list[Any]) -> dict[str, Any]:
    if value.dtype.kind not in "biufUOT":
        raise _unknown(value, where)
    dtype = value.dtype.str if value.dtype.kind in "biufU" else "O"
    values = [_encoded(v, where) for v in value.ravel().tolist()]
    return {_TAG: "array", "dtype": dtype, "shape": list(value.shape), "value": values}


_TAGGED: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("tuple", tuple, list),
    ("set", set, list),
    ("frozenset", frozenset, list),
    ("scalar", np.generic, np.asarray),
    ("bytes", bytes, lambda value: base64.b64encode(value).decode()),
    ("Timestamp", pd.Timestamp, pd.Timestamp.isoformat),  # before what it is a kind of
    ("datetime", dt.datetime, dt.datetime.isoformat),
    ("date", dt.date, dt.date.isoformat),
    ("time", dt.time, dt.time.isoformat),
    ("Path", PurePath, str),
)
_BUILT: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "Timestamp": pd.Timestamp,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "Path": Path,
    "bytes": base64.b64decode,
    "scalar": lambda value: value[()],
}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {k: _decoded(v) for k, v in value.items()}
    content = _decoded(value["value"])
    if value[_TAG] == "array":
        return np.array(content, value["dtype"]).reshape(value["shape"])
    return _BUILT[value[_TAG]](content)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the dicts of a uns, not what they hold."""
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}
