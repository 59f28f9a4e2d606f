"""Exact equality of AnnData objects, and what anndata's own store gives back.

Knows AnnData's elements and says where and how two of them differ. anndata's
own test helper is too mild for a store that promises not to change a value:
it lets a dtype, an index name, ``-0.0`` or a dropped explicit zero pass.
Must not know of lobster_zarr.

Tolerated, because it carries no information: `csr_matrix` against `csr_array`,
int32 against int64 sparse indices and the order of indices within a row, C
against F order, `recarray` against a structured array, a NumPy scalar against
the equal Python scalar, `str` subclasses, the order of keys in a mapping, and
the bits of a NaN.
"""

from __future__ import annotations

import functools
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, override

import anndata as ad
import dask.array as da
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata import Raw
from scipy import sparse
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SparseLayout = Literal["same", "any"]

_SHOWN = 8
_KEPT = 100


class _Contents(pickle.Pickler):
    """Refuses what is not in memory: it may be something else next time."""

    @override
    def persistent_id(self, obj: object) -> None:
        if isinstance(obj, da.Array):
            raise pickle.PicklingError


def _once_each[T](trip: Callable[[T], T]) -> Callable[[T], T]:
    """Make the round trip once for equal contents, which tests of many layouts ask for again; a copy every time."""
    kept: OrderedDict[tuple[bytes, bool], bytes] = OrderedDict()

    @functools.wraps(trip)
    def made(given: T) -> T:
        contents = io.BytesIO()
        try:
            _Contents(contents).dump(given)
        except (TypeError, AttributeError, pickle.PicklingError):
            return trip(given)
        key = contents.getvalue(), ad.settings.allow_write_nullable_strings
        if key not in kept:
            kept[key] = pickle.dumps(trip(given))
        kept.move_to_end(key)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        copy: T = pickle.loads(kept[key])  # noqa: S301 - pickled a few lines before
        return copy

    return made


@_once_each
def stored(adata: ad.AnnData) -> ad.AnnData:
    """What anndata gives back after its own round trip through Zarr format 3.

    The text columns are not turned into categoricals, and `adata` is not changed.
    What does change: text arrays become NumPy's `StringDType`, lists become
    arrays, NumPy and 0-d values become Python scalars, sparse arrays become
    sparse matrices, text categories become `str` (`object` when there are
    none), `object` fields of recarrays stay `object` and fixed-width ones
    become it, big-endian becomes native.
    """
    store = MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (adata.copy() if adata.is_view else adata).write_zarr(store, convert_strings_to_categoricals=False)
        return ad.read_zarr(zarr.open_group(store, mode="r"))


def stored_mudata(data: mudata.MuData) -> mudata.MuData:
    """What mudata gives back after its own round trip through Zarr format 3; `data` is not changed.

    Element by element as `mudata.read_zarr` takes them, because `mudata.write_zarr` turns text into
    categoricals, and cannot write what was read from a file.
    """
    names = ("obsm", "varm", "obsp", "varp", "uns", "obsmap", "varmap")
    with warnings.catch_warnings(), ad.settings.override(allow_write_nullable_strings=True):
        warnings.simplefilter("ignore")
        whole = _stored_elements({"obs": data.obs, "var": data.var, **{n: dict(getattr(data, n)) for n in names}})
        return mudata.MuData({name: stored(part) for name, part in data.mod.items()}, axis=int(data.axis), **whole)


@_once_each
def _stored_elements(elements: dict[str, Any]) -> dict[str, Any]:
    group = zarr.open_group(MemoryStore(), mode="w", zarr_format=3)
    for name, value in elements.items():
        ad.io.write_elem(group, name, value)
    return {name: ad.io.read_elem(group[name]) for name in elements}


def assert_mudata_equal(
    actual: mudata.MuData, expected: mudata.MuData, *, sparse_layout: SparseLayout = "same"
) -> None:
    """Raise AssertionError, naming the elements that differ, unless two MuData are equal."""
    assert list(actual.mod) == list(expected.mod)
    assert int(actual.axis) == int(expected.axis)
    for name in expected.mod:
        assert_equal(actual.mod[name], expected.mod[name], sparse_layout=sparse_layout)
    for name in ("obs", "var"):
        assert_equal(getattr(actual, name), getattr(expected, name))
    for name in ("obsm", "varm", "obsp", "varp", "uns", "obsmap", "varmap"):
        assert_equal(
            {name: dict(getattr(actual, name))}, {name: dict(getattr(expected, name))}, sparse_layout=sparse_layout
        )


def reordered(adata: ad.AnnData, rows: np.ndarray) -> ad.AnnData:
    """Return a copy of `adata` with its rows in the order `rows`; unused categories are kept."""
    with warnings.catch_warnings(), ad.settings.override(remove_unused_categories=False):
        warnings.simplefilter("ignore")
        return adata[rows].copy()


def sliced(adata: ad.AnnData, rows: Any, genes: Any) -> ad.AnnData:
    """Return ``adata[rows, genes].copy()``: unused categories go, and with them their colors.

    A slice with a step is expanded to positions first: SciPy 1.18 takes an array
    of rows and a strided slice of columns for pairs when they are equally long,
    and so AnnData fails on it.
    """
    rows, genes = _expanded(rows, adata.n_obs), _expanded(genes, adata.n_vars)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adata[rows, genes].copy()


def _expanded(wanted: Any, n: int) -> Any:
    strided = isinstance(wanted, slice) and wanted.step not in (None, 1)
    return np.arange(n)[wanted] if strided else wanted


def assert_equal(actual: object, expected: object, *, sparse_layout: SparseLayout = "same") -> None:
    """Raise AssertionError, naming the elements that differ, unless the two are equal.

    Parameters
    ----------
    actual, expected
        AnnData objects, or elements of them.
    sparse_layout
        ``"any"`` compares CSR with CSC by their entries.
    """
    found = [d for _, d in zip(range(_SHOWN), differences(actual, expected, sparse_layout), strict=False)]
    assert not found, "\n".join(["not equal (actual, then expected):", *found])


def differences(actual: object, expected: object, sparse_layout: SparseLayout = "same") -> Iterator[str]:
    """Yield one line for each element that differs; none when the two are equal."""
    return _Comparison(sparse_layout).compare("", actual, expected)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "AnnData": ad.AnnData,
    "Raw": Raw,
    "DataFrame": pd.DataFrame,
    "Index": pd.Index,
    "array": (np.ndarray, np.void),
    "Categorical": pd.Categorical,  # before the extension arrays, of which it is one
    "extension array": pd.api.extensions.ExtensionArray,
    "mapping": Mapping,
}


def _kind(value: object) -> str:
    """Name the family within which two values can be compared."""
    for name, types in _KINDS.items():
        if isinstance(value, types):
            return name
    if sparse.issparse(value):
        return "sparse"
    return "awkward array" if type(value).__module__.partition(".")[0] == "awkward" else "scalar"


@dataclass(frozen=True)
class _Comparison:
    sparse_layout: SparseLayout

    def compare(self, where: str, a: Any, b: Any) -> Iterator[str]:
        kinds = _kind(a), _kind(b)
        if kinds[0] != kinds[1]:
            yield f"{where or '.'}: {kinds[0]} {_short(a)}, {kinds[1]} {_short(b)}"
            return
        yield from _BY_KIND[kinds[0]](self, where, a, b)

    def anndata(self, where: str, a: ad.AnnData, b: ad.AnnData) -> Iterator[str]:
        yield from _same(f"{where}/shape", a.shape, b.shape)
        for name in ("obs", "var"):
            yield from self.frame(f"{where}/{name}", getattr(a, name), getattr(b, name))
        yield from self.compare(f"{where}/X", a.X, b.X)
        for name in ("layers", "obsm", "varm", "obsp", "varp"):
            yield from self.mapping(f"{where}/{name}", dict(getattr(a, name)), dict(getattr(b, name)))
        yield from self.compare(f"{where}/raw", a.raw, b.raw)
        yield from self.mapping(f"{where}/uns", a.uns, b.uns)

    def raw(self, where: str, a: Raw, b: Raw) -> Iterator[str]:
        yield from _same(f"{where}/shape", a.shape, b.shape)
        yield from self.compare(f"{where}/X", a.X, b.X)
        yield from self.frame(f"{where}/var", a.var, b.var)
        yield from self.mapping(f"{where}/varm", *(dict(cast("Any", x).varm) for x in (a, b)))
        yield from self.index(f"{where}/obs_names", a.obs_names, b.obs_names)

    def mapping(self, where: str, a: Mapping[Any, Any], b: Mapping[Any, Any]) -> Iterator[str]:
        # anndata keeps X among the layers too, under None.
        missing, extra = (sorted(map(repr, x.keys() - y.keys() - {None})) for x, y in ((b, a), (a, b)))
        if missing or extra:
            yield f"{where}: keys missing {missing}, keys not expected {extra}"
        for key in b:
            if key in a and key is not None:
                yield from self.compare(f"{where}/{key}", a[key], b[key])

    def frame(self, where: str, a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
        yield from self.index(f"{where} index", a.index, b.index)
        yield from _same(f"{where} columns", list(a.columns), list(b.columns))
        for name in b:
            if name in a:
                yield from self.compare(f"{where}[{name!r}]", _values(a[name]), _values(b[name]))

    def index(self, where: str, a: pd.Index, b: pd.Index) -> Iterator[str]:
        yield from _same(f"{where} name", a.name, b.name)
        yield from self.compare(where, _values(a), _values(b))

    def categorical(self, where: str, a: pd.Categorical, b: pd.Categorical) -> Iterator[str]:
        yield from _same(f"{where} ordered", bool(a.ordered), bool(b.ordered))
        yield from self.compare(f"{where} categories", _values(a.categories), _values(b.categories))
        yield from self.array(f"{where} codes", a.codes.astype(np.int64), b.codes.astype(np.int64))

    def extension(self, where: str, a: Any, b: Any) -> Iterator[str]:
        yield from _same(f"{where} dtype", a.dtype, b.dtype)
        yield from self.array(f"{where} missing", np.asarray(a.isna()), np.asarray(b.isna()))
        if len(a) == len(b) and a.dtype == b.dtype:
            there = ~(np.asarray(a.isna()) | np.asarray(b.isna()))
            yield from self.array(where, *(x.to_numpy(dtype=object)[there] for x in (a, b)))

    def sparse(self, where: str, a: Any, b: Any) -> Iterator[str]:
        if self.sparse_layout == "same":
            yield from _same(f"{where} format", a.format, b.format)
        yield from _same(f"{where} shape", a.shape, b.shape)
        yield from _same(f"{where} entries stored", a.nnz, b.nnz)
        for name, x, y in zip(("row", "column", "value"), _entries(a), _entries(b), strict=True):
            yield from self.array(f"{where} {name}", x, y)

    def array(self, where: str, a: Any, b: Any) -> Iterator[str]:
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            yield f"{where}: shape {a.shape}, shape {b.shape}"
        elif a.dtype.names is not None and a.dtype.names == b.dtype.names:
            for name in a.dtype.names:
                yield from self.array(f"{where}[{name!r}]", a[name], b[name])
        elif a.dtype != b.dtype:
            yield f"{where}: dtype {a.dtype}, dtype {b.dtype}"
        else:
            differ = np.argwhere(~_equal_elements(a, b))
            if len(differ):
                at = tuple(map(int, differ[0]))
                yield f"{where}: {a[at]!r}, {b[at]!r} at {at} and {len(differ) - 1} more of {a.size}"

    def awkward(self, where: str, a: Any, b: Any) -> Iterator[str]:
        yield from _same(f"{where} type", str(a.type), str(b.type))
        # As text, so that NaN equals NaN and -0.0 differs from 0.0.
        yield from _same(where, repr(a.to_list()), repr(b.to_list()))

    def scalar(self, where: str, a: object, b: object) -> Iterator[str]:
        if not _equal_scalars(a, b):
            yield f"{where or '.'}: {type(a).__name__} {_short(a)}, {type(b).__name__} {_short(b)}"


_BY_KIND: dict[str, Callable[..., Iterator[str]]] = {
    "AnnData": _Comparison.anndata,
    "Raw": _Comparison.raw,
    "DataFrame": _Comparison.frame,
    "Index": _Comparison.index,
    "sparse": _Comparison.sparse,
    "array": _Comparison.array,
    "Categorical": _Comparison.categorical,
    "extension array": _Comparison.extension,
    "awkward array": _Comparison.awkward,
    "mapping": _Comparison.mapping,
    "scalar": _Comparison.scalar,
}


def _same(where: str, a: object, b: object) -> Iterator[str]:
    if a != b:
        yield f"{where}: {_short(a)}, {_short(b)}"


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _values(column: pd.Series | pd.Index) -> Any:
    """Return the array behind a column: NumPy's where there is one, else pandas' own."""
    array = column.array
    return array.to_numpy() if isinstance(array, pd.arrays.NumpyExtensionArray) else array


def _entries(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, column and value of each stored entry, in order of rows; explicit zeros are entries."""
    major = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr).astype(np.int64))
    minor = np.asarray(matrix.indices, dtype=np.int64)
    rows, columns = (major, minor) if matrix.format == "csr" else (minor, major)
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], matrix.data[order]


def _equal_elements(a: np.ndarray, b: np.ndarray) -> Any:
    """Compare two arrays of one dtype and shape, element by element and to the bit (any NaN is NaN)."""
    if a.dtype.kind in "mM":
        return a.view("i8") == b.view("i8")
    if a.dtype.kind == "c":
        return _equal_elements(a.real, b.real) & _equal_elements(a.imag, b.imag)
    if a.dtype.kind == "f":
        return ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
    if a.dtype.kind == "O":
        pairs = zip(a.ravel(), b.ravel(), strict=True)
        return np.array([_equal_scalars(x, y) for x, y in pairs], dtype=bool).reshape(a.shape)
    return np.asarray(a == b)


def _equal_scalars(a: Any, b: Any) -> bool:
    """Compare two scalars by type and value; missing values equal those of their own type."""
    a, b = (str(v) if isinstance(v, str) else v.item() if isinstance(v, np.generic) else v for v in (a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, float | complex):
        return bool(_equal_elements(np.array(a), np.array(b)))
    return a is b or bool(a == b)
