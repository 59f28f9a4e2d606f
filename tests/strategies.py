"""Hypothesis strategies for small AnnData objects, and for what is asked of them.

Knows every encoding that anndata can write to Zarr format 3 and draws only
objects that anndata itself writes and reads back (`test_oracle.py` proves it).
Structure (shapes, kinds, names, missing values) is drawn by Hypothesis and so
shrinks; bulk numbers come from a drawn seed. Must not know of lobster_zarr.

Left out because anndata 0.13.4 refuses or changes them: ``/``, ``\\`` and the
empty text in names (refused, or lost), a missing value in an `object` column
(written as the text ``'None'``), `bytes`, tuples and sets in uns, `object`
fields of a recarray that hold no text, complex scalars and unsigned ones past
int64 (as they are read back they cannot be written again), pandas' `Float64`
and datetime columns, raw where there are no rows (lost on reading).
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64")
NUMBERS = (*INTEGERS, *FLOATS, "bool")
NULLABLES = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "boolean")
SPARSE_CLASSES = (sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.csc_array)

# Names from real files, and names that file systems, URLs or query languages treat specially.
_AWKWARD_NAMES = (
    "cell_type", "n_counts", "cell type", "age(days)", "percent.mito", "pct %", "%25", "naïve", "é",
    "λ₂", "CD4+", "a.b", "a:b", "#1", "what?", "[log]", "*", "~", "it's", '"q"', "a|b", "x,y", "and", "1st",
    ".hidden", "index", "c", "codes", "data", "obs", "T cell & B", " lead", "A", "a",
)  # fmt: skip
# anndata 0.13 takes a frame with a column "dtype" for an array.
_RESERVED = frozenset({"dtype", "_index", ".", "..", "zarr.json", ".zarray", ".zgroup", ".zattrs", "__categories"})
_LETTERS = st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="/\\")
# No NUL (HDF5 ends a string there).
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)

texts = st.one_of(st.sampled_from(["", "T cell", "B cell", "NK", "None", "nan", "NA", "é", "b\n"]), _TEXT)
keys = st.one_of(
    st.sampled_from(_AWKWARD_NAMES),
    st.text(_LETTERS, min_size=1, max_size=6).filter(lambda k: k not in _RESERVED),
)
_seeds = st.integers(0, 2**32 - 1)


def _dicts(values: Callable[[], SearchStrategy[Any]], *, most: int) -> SearchStrategy[dict[str, Any]]:
    return st.lists(keys, max_size=most, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values() for name in names})
    )


# ---------------------------------------------------------------- numbers


@st.composite
def dense_arrays(draw: DrawFn, shape: tuple[int, ...], dtypes: Sequence[str] = (*NUMBERS, "float16")) -> np.ndarray:
    """Arrays in C or F order, with the extremes of their type, NaN, infinities and -0.0."""
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(_seeds))
    values: np.ndarray
    specials: list[Any] = []
    if dtype.kind == "b":
        values = rng.random(shape) < 0.5
    elif dtype.kind in "iu":
        values = rng.poisson(1.0, shape).astype(dtype)
        specials = [np.iinfo(dtype.type).min, np.iinfo(dtype.type).max]
    else:
        values = rng.normal(size=shape).astype(dtype)
        specials = [np.nan, np.inf, -np.inf, -0.0, 0.0, np.finfo(dtype).tiny]
    if dtype.kind != "b" and draw(st.booleans()):
        where = rng.random(shape) < 0.3
        values[where] = rng.choice(np.array(specials, dtype), size=int(where.sum()))
    return np.asfortranarray(values) if draw(st.booleans()) else np.ascontiguousarray(values)


@st.composite
def sparse_matrices(
    draw: DrawFn, shape: tuple[int, int], classes: Sequence[type] = SPARSE_CLASSES
) -> sparse.csr_matrix:
    """Compressed matrices with empty rows, explicit zeros, unsorted indices, int32 or int64 indices."""
    cls = draw(st.sampled_from(classes))
    row_major = cls in (sparse.csr_matrix, sparse.csr_array)
    n_major, n_minor = shape if row_major else shape[::-1]
    rng = np.random.default_rng(draw(_seeds))
    stored = rng.random((n_major, n_minor)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if n_major and draw(st.booleans()):
        stored[rng.integers(n_major)] = False
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    indices = np.nonzero(stored)[1]
    if draw(st.booleans()):
        for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
            rng.shuffle(indices[start:stop])
    values = draw(dense_arrays((indices.size,), NUMBERS))
    if draw(st.booleans()):
        values[rng.random(values.size) < 0.3] = 0
    matrix = cls((values, indices, indptr), shape=shape)
    index_dtype = draw(st.sampled_from([np.int32, np.int64]))
    # Assigned after construction: the constructor narrows the indices to int32.
    matrix.indices, matrix.indptr = indices.astype(index_dtype), indptr.astype(index_dtype)
    return matrix


def matrices(shape: tuple[int, int]) -> SearchStrategy[Any]:
    """Whatever X or a layer may hold."""
    return st.one_of(sparse_matrices(shape), dense_arrays(shape))


# ---------------------------------------------------------------- columns and frames


@st.composite
def categoricals(draw: DrawFn, n: int) -> pd.Categorical:
    """Categories of text, int, float or bool, in any order; unused, missing or no categories at all."""
    elements: SearchStrategy[Any] = draw(
        st.sampled_from([texts, st.integers(-5, 300), st.sampled_from([0.5, -1.25, 1e300, np.inf, 2.0]), st.booleans()])
    )
    categories = draw(st.lists(elements, max_size=4, unique=True))
    # anndata reads no categories back as no objects, whatever they were.
    index = pd.Index(categories, dtype=None if categories else "object")
    if index.dtype.kind == "i":
        index = index.astype(draw(st.sampled_from(["int64", "int16"])))
    codes = draw(st.lists(st.integers(-1, len(index) - 1), min_size=n, max_size=n))
    return pd.Categorical.from_codes(codes, index, ordered=draw(st.booleans()))


@st.composite
def text_columns(draw: DrawFn, n: int) -> Any:
    """Text as object (never missing), as pandas' `str` and as pandas' `string` (sometimes missing)."""
    values = draw(st.lists(texts, min_size=n, max_size=n))
    dtype = draw(st.sampled_from(["object", "str", "string"]))
    if dtype == "object":
        return np.array(values, dtype=object)
    missing = draw(st.lists(st.booleans(), min_size=n, max_size=n)) if draw(st.booleans()) else [False] * n
    return pd.array([None if m else v for v, m in zip(values, missing, strict=True)], dtype=dtype)


@st.composite
def nullable_columns(draw: DrawFn, n: int) -> Any:
    """pandas' masked integers and booleans."""
    dtype = draw(st.sampled_from(NULLABLES))
    element = st.booleans() if dtype == "boolean" else st.integers(0, 100)
    return pd.array(draw(st.lists(st.none() | element, min_size=n, max_size=n)), dtype=dtype)


def columns(n: int) -> SearchStrategy[Any]:
    """Any column of `n` rows that anndata can keep in obs or var."""
    return st.one_of(categoricals(n), text_columns(n), nullable_columns(n), dense_arrays((n,), (*NUMBERS, "float16")))


@st.composite
def indexes(draw: DrawFn, n: int, prefix: str) -> pd.Index:
    """Names of an axis: plain, unicode or with duplicates; named or not."""
    kind = draw(st.sampled_from(["plain", "plain", "unicode", "duplicates"]))
    names = [f"{prefix}{i}" for i in range(n)]
    if kind == "unicode":
        names = draw(st.lists(_TEXT.filter(bool), min_size=n, max_size=n, unique=True))
    elif kind == "duplicates":
        names = draw(st.lists(st.sampled_from([f"{prefix}0", f"{prefix}1", "é"]), min_size=n, max_size=n))
    return pd.Index(names, dtype="str", name=draw(st.none() | keys))


@st.composite
def frames(draw: DrawFn, index: pd.Index, *, most: int = 3) -> pd.DataFrame:
    """Frames over `index` with up to `most` columns, none called like the index."""
    held = draw(_dicts(lambda: columns(len(index)), most=most))
    held.pop(str(index.name), None)
    return pd.DataFrame(held, index=index)


# ---------------------------------------------------------------- uns


@st.composite
def recarrays(draw: DrawFn) -> np.ndarray:
    """Structured arrays as `rank_genes_groups` keeps them: one field a group, text and numbers."""
    n = draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from(["0", "1", "CD4+/CD25 T Reg", "B cell", "é"]), min_size=1, unique=True))
    fields = []
    for _ in names:
        field = draw(st.one_of(dense_arrays((n,)), st.lists(texts, min_size=n, max_size=n)))
        # "x" first: anndata cannot write a text field whose every value is empty.
        fields.append(np.array(["x", *field[1:]]) if isinstance(field, list) else field)
    array: np.ndarray = np.rec.fromarrays(fields, names=names)
    if draw(st.booleans()):
        array = np.array(array.tolist(), dtype=[(k, object if f.dtype.kind == "U" else f.dtype) for k, f in
                                                zip(names, fields, strict=True)])  # fmt: skip
    return array


@st.composite
def _uns_arrays(draw: DrawFn, *, h5ad: bool) -> Any:
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    kind = draw(st.sampled_from(["numeric", "numeric", "text", "complex", "big-endian", "time"]))
    if kind == "text":
        size = int(np.prod(shape, dtype=int))
        values: Any = np.array(draw(st.lists(texts, min_size=size, max_size=size)), dtype=object)
        values = values.reshape(shape)
        return values.astype(draw(st.sampled_from([object, "U5", np.dtypes.StringDType()]))) if shape else values
    if kind == "complex" and shape:
        array = np.zeros(shape, "complex64")
        array.imag = draw(dense_arrays(shape, ("float32",)))
        return array
    if kind == "big-endian":
        native = draw(dense_arrays(shape, ("float32", "int32")))
        return native.astype(native.dtype.newbyteorder(">"))
    if kind == "time" and shape and not h5ad:
        return draw(dense_arrays(shape, ("int64",))).astype(draw(st.sampled_from(["M8[ns]", "m8[s]"])))
    return draw(dense_arrays(shape))


def _scalars() -> SearchStrategy[Any]:
    return st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), texts,
        st.sampled_from([np.float32(0.1), np.int8(-3), np.uint64(7), np.bool_(True), np.str_("é")]),
    )  # fmt: skip


def _uns_leaves(*, h5ad: bool) -> SearchStrategy[Any]:
    return st.one_of(
        _scalars(),
        _uns_arrays(h5ad=h5ad),
        recarrays(),
        sparse_matrices((3, 2)),
        st.lists(texts, max_size=3),
        st.lists(st.integers(-5, 5), max_size=3),
        indexes(3, "row").flatmap(frames),
        frames(pd.RangeIndex(2)),
        categoricals(3),
        nullable_columns(2),
        st.builds(ad.AnnData, sparse_matrices((2, 2))),
    )


def _uns(*, h5ad: bool) -> SearchStrategy[dict[str, Any]]:
    tree = st.recursive(_uns_leaves(h5ad=h5ad), lambda leaf: _dicts(lambda: leaf, most=3), max_leaves=4)
    return _dicts(lambda: tree, most=2)


@st.composite
def _colors(draw: DrawFn, frame: pd.DataFrame) -> dict[str, list[str]]:
    """scanpy's ``<column>_colors``: as many as the categories, now and then too few."""
    found = {}
    for name in frame:
        if isinstance(frame[name].dtype, pd.CategoricalDtype) and draw(st.booleans()):
            n_colors = len(frame[name].cat.categories) - draw(st.sampled_from([0, 0, 0, 1]))
            found[f"{name}_colors"] = [f"#{i:06x}" for i in range(max(n_colors, 1))]
    return found


# ---------------------------------------------------------------- AnnData


@st.composite
def _aligned(draw: DrawFn, index: pd.Index) -> dict[str, Any]:
    """What obsm and varm hold: 1-D to 3-D arrays, text, sparse matrices, frames."""
    n = len(index)
    width = draw(st.integers(0, 3))
    kinds = st.one_of(
        dense_arrays((n,)),
        dense_arrays((n, width)),
        dense_arrays((n, 2, width)),
        st.lists(texts, min_size=n, max_size=n).map(lambda v: np.array(v, dtype=object).reshape(n, 1)),
        sparse_matrices((n, width)),
        frames(index, most=2),
    )
    return draw(_dicts(lambda: kinds, most=1))


@st.composite
def _raw(draw: DrawFn, obs: pd.DataFrame, n_vars: int) -> ad.AnnData:
    index = draw(indexes(n_vars + draw(st.integers(0, 4)), "raw_gene"))
    return ad.AnnData(
        draw(matrices((len(obs), len(index)))),
        obs=obs[[]].copy(),
        var=draw(frames(index, most=2)),
        varm=draw(_aligned(index)),
    )


@st.composite
def anndatas(
    draw: DrawFn,
    *,
    min_obs: int = 0,
    max_obs: int = 12,
    max_vars: int = 9,
    h5ad: bool = False,
    x: Callable[[tuple[int, int]], SearchStrategy[Any]] | None = None,
) -> ad.AnnData:
    """AnnData objects with any mix of what anndata can store.

    Parameters
    ----------
    min_obs, max_obs, max_vars
        Bounds of the shape.
    h5ad
        Keep to what HDF5 can hold too (no datetime arrays in uns).
    x
        From the shape to the strategy of X; by default any matrix, or none.
    """
    shape = (draw(st.integers(min_obs, max_obs)), draw(st.integers(0, max_vars)))
    obs = draw(frames(draw(indexes(shape[0], "cell"))))
    var = draw(frames(draw(indexes(shape[1], "gene")), most=2))
    uns = draw(_uns(h5ad=h5ad))
    uns |= draw(_colors(obs)) | draw(_colors(var))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
        adata = ad.AnnData(
            draw(st.none() | matrices(shape) if x is None else x(shape)),
            obs=obs,
            var=var,
            uns=uns,
            layers=draw(_dicts(lambda: matrices(shape), most=2)),
            obsm=draw(_aligned(obs.index)),
            varm=draw(_aligned(var.index)),
            obsp=draw(_dicts(lambda: matrices((shape[0], shape[0])), most=1)),
            varp=draw(_dicts(lambda: matrices((shape[1], shape[1])), most=1)),
        )
        if shape[0] and draw(st.sampled_from([False, False, True])):
            adata.raw = draw(_raw(obs, shape[1]))
    return adata


# ---------------------------------------------------------------- MuData


@st.composite
def _part_names(draw: DrawFn, kind: str, modality: str, *, shared: bool) -> pd.Index:
    """Names of an axis of a modality: in any order, some or all of a pool that others draw from too, or its own."""
    own = draw(st.sampled_from([False, False, False, True] if shared else [True, True, True, False]))
    pool = [f"{modality}-{kind}{i}" if own else f"{kind}{i}" for i in range(7)]
    chosen = draw(st.permutations(pool))[: draw(st.sampled_from([7, 7, 5, 3, 1, 0]))]
    if len(chosen) > 1 and draw(st.sampled_from([False] * 7 + [True])):
        chosen[0] = chosen[1]
    return pd.Index(chosen, dtype="str")


def _global_columns(n: int) -> SearchStrategy[Any]:
    """Columns that mudata's join with those of the modalities leaves as they are, or changes for all readers."""
    return st.one_of(categoricals(n), dense_arrays((n,), ("int64", "float32", "bool")), nullable_columns(n))


@st.composite
def mudatas(draw: DrawFn) -> mudata.MuData:
    """MuData objects of one to three modalities, whose cells or genes are the same, others, or in another order."""
    axis, parts = draw(st.sampled_from([0, 0, 1, -1])), {}
    for name in draw(
        st.lists(st.sampled_from(["rna", "prot", "a:b", "λ₂", "csc"]), min_size=1, max_size=3, unique=True)
    ):
        obs_names = draw(_part_names("cell", name, shared=axis != 1))
        var_names = draw(_part_names("gene", name, shared=axis != 0))
        shape = len(obs_names), len(var_names)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
            parts[name] = ad.AnnData(
                draw(st.none() | matrices(shape)),
                obs=draw(frames(obs_names, most=2)),
                var=draw(frames(var_names, most=1)),
                layers=draw(_dicts(lambda shape=shape: matrices(shape), most=1)),
                obsm=draw(_dicts(lambda n=shape[0]: dense_arrays((n, 2)), most=1)),
                obsp=draw(_dicts(lambda n=shape[0]: sparse_matrices((n, n)), most=1)),
            )
    state = random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are not unique
        data = mudata.MuData(parts, axis=axis)
    random.setstate(state)  # mudata draws names from it
    for frame, most in ((data.obs, 2), (data.var, 1)):
        n_rows = len(frame)
        for name, column in draw(_dicts(lambda n=n_rows: _global_columns(n), most=most)).items():
            frame[name] = column
    data.uns.update(draw(_uns(h5ad=True)))
    if data.n_obs and draw(st.booleans()):
        data.obsm["X_joint"] = draw(dense_arrays((data.n_obs, 2), FLOATS))
        data.obsp["wnn"] = draw(sparse_matrices((data.n_obs,) * 2, (sparse.csr_matrix,)))
    return data


# ---------------------------------------------------------------- what is asked of them


def masks(n: int) -> SearchStrategy[np.ndarray]:
    """Boolean masks over an axis of length `n`."""
    return st.lists(st.booleans(), min_size=n, max_size=n).map(lambda m: np.array(m, dtype=bool))


def positions(n: int) -> SearchStrategy[Any]:
    """Positions in any order, repeated and negative too; a list or an array."""
    drawn = st.lists(st.integers(-n, n - 1), max_size=n + 2) if n else st.just([])
    return st.one_of(drawn, drawn.map(lambda p: np.array(p, dtype=np.int64)))


def names(index: pd.Index) -> SearchStrategy[list[str]]:
    """Names in any order, repeated too; only from an axis whose names are unique."""
    return st.lists(st.sampled_from(list(index)), max_size=len(index) + 2) if len(index) else st.just([])


def selections(index: pd.Index) -> SearchStrategy[Any]:
    """Masks, positions, slices (any step) and, where they are unique, names of one axis."""
    n = len(index)
    kinds = [masks(n), positions(n), st.slices(n), st.just(slice(None))]
    return st.one_of(*kinds, names(index)) if index.is_unique else st.one_of(*kinds)


@st.composite
def sort_keys(draw: DrawFn, obs: pd.DataFrame) -> list[str]:
    """No, one or two columns of obs, categorical ones first."""
    ordered = sorted(obs.columns, key=lambda c: not isinstance(obs[c].dtype, pd.CategoricalDtype))
    if not ordered:
        return []
    return draw(st.lists(st.sampled_from(ordered), max_size=2, unique=True))
