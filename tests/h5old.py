"""H5AD files as old versions of anndata wrote them, by hand: 0.7, and 0.6 and earlier.

Follows files of those versions: frames that keep their categories aside and
refer to them (0.7), compound tables with their categories in uns, sparse
groups named after h5sparse (before). Every file is one that anndata reads.
Must not know of lobster_zarr.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from h5files import sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UTF8 = h5py.string_dtype()


# ---------------------------------------------------------------- anndata 0.7


def _0_7(file: h5py.File) -> None:
    """No attribute but on frames and sparse matrices; categories by reference."""
    made = sample()
    _sparse_0_7(file, "X", made.X)
    _sparse_0_7(file, "layers/csc", made.layers["csc"])
    file["layers/dense"] = made.layers["dense"]
    _frame_0_7(file, "obs", made.obs[["cell_type", "stage", "n_counts", "score", "flag", "note"]])
    _frame_0_7(file, "var", made.var)
    file["obsm/X_umap"] = made.obsm["X_umap"]
    _frame_0_7(file, "obsm/frame", made.obsm["frame"])
    _sparse_0_7(file, "obsm/sparse", made.obsm["sparse"])
    _sparse_0_7(file, "obsp/graph", made.obsp["graph"])
    file["varm/PCs"] = made.varm["PCs"]
    _sparse_0_7(file, "raw/X", made.raw.X)
    _frame_0_7(file, "raw/var", made.raw.var)
    file["raw/varm/w"] = dict(made.raw.varm)["w"]
    file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0", "shape": made.raw.shape})
    _uns(file)
    _frame_0_7(file, "uns/frame", made.obs[["stage"]].reset_index(drop=True).set_index(pd.Index(made.obs_names)))
    table = np.array([("é", 1.5, "x"), ("long " * 9, np.nan, "")], [("name", UTF8), ("score", "f4"), ("0", UTF8)])
    file["uns/rank_genes_groups/names"] = table


def _frame_0_7(file: h5py.Group, path: str, frame: pd.DataFrame) -> None:
    group = file.require_group(path)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
    index = frame.index.name or "_index"
    group.attrs["_index"] = index
    group.attrs["column-order"] = np.array(list(frame.columns), UTF8)
    group.create_dataset(index, data=frame.index.to_numpy(object), dtype=UTF8)
    for name, column in frame.items():
        if not isinstance(column.dtype, pd.CategoricalDtype):
            values = column.to_numpy()
            group.create_dataset(name, data=values, dtype=UTF8 if values.dtype == object else values.dtype)
            continue
        kept = column.cat.categories.to_numpy()
        kept = kept if kept.dtype.kind == "i" else kept.astype(object)
        aside = group.require_group("__categories")
        categories = aside.create_dataset(name, data=kept, dtype=UTF8 if kept.dtype == object else kept.dtype)
        categories.attrs["ordered"] = column.cat.ordered
        codes = group.create_dataset(name, data=column.cat.codes.to_numpy())
        codes.attrs["categories"] = categories.ref


def _sparse_0_7(file: h5py.Group, path: str, matrix: Any) -> None:
    group = file.require_group(path)
    group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = matrix.shape
    for name in ("data", "indices", "indptr"):
        group.create_dataset(name, data=getattr(matrix, name), maxshape=(None,))


# ---------------------------------------------------------------- anndata 0.6 and earlier


def _0_6(file: h5py.File, *, text: Any = UTF8, **options: Any) -> None:
    """Tables are compounds, categories are in uns; obsm and varm are groups, and may be sparse."""
    made = sample()
    _h5sparse(file, "X", made.X)
    _h5sparse(file, "layers/csc", made.layers["csc"])
    file["layers/dense"] = made.layers["dense"]
    _tables(file, text=text, **options)
    file["obsm/X_umap"] = made.obsm["X_umap"]
    _h5sparse(file, "obsm/sparse", made.obsm["sparse"])
    file["varm/PCs"] = made.varm["PCs"]
    _h5sparse(file, "raw.X", made.raw.X)
    file["raw.var"] = _compound(made.raw.var, text)
    file["raw.varm/w"] = dict(made.raw.varm)["w"]


def _0_5(file: h5py.File, **options: Any) -> None:
    """X and raw.X are dense, text is of a fixed length, obsm and varm are compounds of arrays."""
    made = sample()
    file.create_dataset("X", data=made.X.toarray(), **options)
    _tables(file, text="S", **options)
    for name, value in (("obsm", made.obsm["X_umap"]), ("varm", made.varm["PCs"])):
        table = np.zeros(len(value), [("X_first", value.dtype, value.shape[1:]), ("one", "f8")])
        table["X_first"], table["one"] = value, np.arange(len(value))
        file.create_dataset(name, data=table, **options)
    file.create_dataset("raw.X", data=made.raw.X.toarray(), **options)
    file.create_dataset("raw.var", data=_compound(made.raw.var, "S"), **options)
    fields = [("CD4+/CD25 T Reg", "S200"), ("1", "S200")]
    file["uns/rank_genes_groups/names"] = np.array([(b"GENE", b""), (b"OTHER", b"x")], fields)


def _tables(file: h5py.File, *, text: Any, **options: Any) -> None:
    made = sample()
    obs = made.obs[["cell_type", "n_counts", "score", "flag"]].copy()
    obs["only"] = pd.Categorical(["one"] * len(obs))
    obs["batch"] = pd.Categorical.from_codes(np.arange(len(obs)) % 2, [3, 7])
    _uns(file)
    for name in obs:
        if isinstance(obs[name].dtype, pd.CategoricalDtype):
            kept = obs[name].cat.categories
            file[f"uns/{name}_categories"] = kept.to_numpy() if name == "batch" else np.array(list(kept), "S")
            obs[name] = obs[name].cat.codes
    file["uns/nowhere_categories"] = np.array([b"a", b"b"])
    file.create_dataset("obs", data=_compound(obs, text), **options)
    file.create_dataset("var", data=_compound(made.var, text), **options)


def _compound(frame: pd.DataFrame, text: Any) -> np.ndarray:
    names = [n.encode() for n in frame.index]
    kind = np.array(names).dtype if text == "S" else text
    table = np.zeros(len(frame), [("index", kind), *((name, column.dtype) for name, column in frame.items())])
    table["index"] = names if text == "S" else list(frame.index)
    for name, column in frame.items():
        table[name] = column
    return table


def _h5sparse(file: h5py.Group, path: str, matrix: Any) -> None:
    group = file.require_group(path)
    group.attrs.update({"h5sparse_format": matrix.format, "h5sparse_shape": np.array(matrix.shape)})
    for name in ("data", "indices", "indptr"):
        group.create_dataset(name, data=getattr(matrix, name), maxshape=(None,))


# ---------------------------------------------------------------- both


def _uns(file: h5py.Group) -> None:
    """What says nothing of itself: scalars, texts, arrays, one text in an array (which is read as a text)."""
    uns = file.create_group("uns")
    uns["cell_type_colors"] = np.array([b"#000", b"#111", b"#222", b"#333"])
    uns["single"] = np.array([b"one"])
    uns["pca/variance"] = np.arange(5.0)
    uns["pca/params/n"] = 50
    uns["pca/params/zero"] = np.bool_(True)
    uns.create_dataset("pca/params/text", data="é", dtype=UTF8)
    uns.create_dataset("texts", data=np.array(["a", "é", ""], object), dtype=UTF8)
    uns.create_group("empty")


OLD: dict[str, Callable[[h5py.File], None]] = {
    "0.7": _0_7,
    "0.6": _0_6,
    "0.6, fixed text": functools.partial(_0_6, text="S"),
    "0.6, chunked": functools.partial(_0_6, chunks=(5,), compression="gzip", shuffle=True),
    "0.5": _0_5,
    "0.5, chunked": functools.partial(_0_5, chunks=True, compression="lzf"),
}
"""Name to what writes the elements of a file."""


def write_old(path: Path, name: str, libver: str = "earliest") -> Path:
    """Write a file as an old version did."""
    with h5py.File(path, "w", libver=libver) as file:
        OLD[name](file)
    return path
