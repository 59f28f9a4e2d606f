"""What is done to a finished H5AD by other hands: columns added, datasets written again, links, odd types.

Each edit takes the open file of `h5files.sample()` and leaves one that anndata
reads. Must not know how the file was written, nor of lobster_zarr.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

if TYPE_CHECKING:
    from collections.abc import Callable

ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


def put(file: h5py.Group, path: str, value: Any) -> None:
    """Write an element as anndata does, over what was there."""
    parent, _, name = path.rpartition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(file[parent] if parent else file, name, value)


def add_column(file: h5py.File, name: str, dataset: h5py.Dataset | None = None) -> None:
    """List a column of obs, and say of its dataset what it holds."""
    order = [*file["obs"].attrs["column-order"], name]
    file["obs"].attrs["column-order"] = np.array(order, h5py.string_dtype())
    if dataset is not None:
        dataset.attrs.update(ARRAY if h5py.check_string_dtype(dataset.dtype) is None else TEXT)


def _columns_come_and_go(file: h5py.File) -> None:
    put(file, "obs/added", np.arange(file["obs/flag"].size))
    add_column(file, "added")
    kept = [c for c in file["obs"].attrs["column-order"] if c != "score"]
    file["obs"].attrs["column-order"] = np.array(kept, h5py.string_dtype())
    del file["obs/score"]


def _x_overwritten(file: h5py.File) -> None:
    matrix = ad.io.read_elem(file["X"])
    del file["X"]
    put(file, "X", matrix.toarray())
    file.flush()
    del file["X"]
    put(file, "X", (matrix * 2).tocsr())


def _appended_by_turns(file: h5py.File) -> None:
    """Values and indices of X grow by turns, a few at a time: their chunks lie between each other."""
    parts = {}
    for name in ("data", "indices"):
        values = file[f"X/{name}"][()]
        del file[f"X/{name}"]
        made = file["X"].create_dataset(name, (0,), values.dtype, maxshape=(None,), chunks=(5,), compression="gzip")
        parts[made] = values
    for stop in range(0, len(values) + 7, 7):
        for dataset, values in parts.items():
            dataset.resize((min(stop, len(values)),))
            dataset[stop - 7 if stop else 0 :] = values[stop - 7 if stop else 0 : stop]
        file.flush()


def _many_chunks(file: h5py.File) -> None:
    """So many chunks that their index has levels, pages or blocks; one with a fixed, two with growing axes."""
    values = np.arange(2500.0)
    made = file.create_dataset("uns/long", data=values, chunks=(1,))
    growing = file.create_dataset("uns/grows", data=values, chunks=(1,), maxshape=(None,), compression="gzip")
    both = file.create_dataset("uns/both", data=values.reshape(50, 50), chunks=(1, 1), maxshape=(None, None))
    for dataset in (made, growing, both):
        dataset.attrs.update(ARRAY)


def _never_written(file: h5py.File) -> None:
    n = file["obs/flag"].size
    obs = file["obs"]
    for name, options in {
        "zero": {"dtype": "f4"},
        "filled": {"dtype": "i4", "fillvalue": -7},
        "chunked": {"dtype": "f8", "fillvalue": np.nan, "chunks": (5,), "compression": "gzip"},
        "text": {"dtype": h5py.string_dtype()},
        "text in chunks": {"dtype": h5py.string_dtype(), "chunks": (4,)},
        "fixed text": {"dtype": "S6"},
        "truth": {"dtype": bool, "chunks": (8,)},
    }.items():
        add_column(file, name, obs.create_dataset(name, (n,), **options))


def _missing_chunks(file: h5py.File) -> None:
    shape = file["layers/dense"].shape
    values = file["layers/dense"][()]
    del file["layers/dense"]
    made = file.create_dataset("layers/dense", shape, "f8", chunks=(5, 3), fillvalue=-1.5, compression="gzip")
    for number, part in enumerate(made.iter_chunks()):
        if number % 3:
            made[part] = values[part]
    made.attrs.update(ARRAY)
    texts = file["obs"].create_dataset("some", (shape[0],), h5py.string_dtype(), chunks=(4,))
    texts[9:13] = ["a", "é", "", "d"]
    add_column(file, "some", texts)


def _links(file: h5py.File) -> None:
    file["layers/hard"] = file["X"]
    file["layers/soft"] = h5py.SoftLink("/X")
    file["obsm/relative"] = h5py.SoftLink("X_umap")
    file["obs/by another name"] = h5py.SoftLink("/obs/n_counts")
    file["obs/categories shared"] = file["obs/cell_type"]
    add_column(file, "by another name")
    add_column(file, "categories shared")


def _named_types(file: h5py.File) -> None:
    """Types that are objects of their own, here without a name any more."""
    n = file["obs/flag"].size
    for name, dtype in {"named": np.dtype("i4"), "named text": h5py.string_dtype()}.items():
        file[f"uns/{name}"] = dtype
        made = file["obs"].create_dataset(name, (n,), dtype=file[f"uns/{name}"])
        made[...] = np.arange(n) if name == "named" else [f"n{i}" for i in range(n)]
        made.attrs.create("by type", made[0], dtype=file[f"uns/{name}"])
        add_column(file, name, made)
        del file[f"uns/{name}"]


def _many_attributes(file: h5py.File) -> None:
    for node in (file, file["obs"], file["X"], file["X/data"], file["obs/n_counts"]):
        for number in range(20):
            node.attrs[f"note {number}"] = "x" * 100 * number
        node.attrs["array"] = np.arange(500)
        node.attrs["empty"] = h5py.Empty("S1")


def _many_columns(file: h5py.File) -> None:
    n = file["obs/flag"].size
    names = [f"column {i:03} {'é' * (i % 9)}" for i in range(300)]
    for number, name in enumerate(names):
        file["obs"].create_dataset(name, data=np.full(n, number, "i2")).attrs.update(ARRAY)
    order = [*file["obs"].attrs["column-order"], *names]
    file["obs"].attrs["column-order"] = np.array(order, h5py.string_dtype())


def _long_column_order(file: h5py.File) -> None:
    """An attribute of more than 64 kB where the format allows it, of nearly so much where it does not."""
    n = file["obs/flag"].size
    dense = file.libver[0] != "earliest"
    width, count = (900, 80) if dense else (650, 80)
    names = [f"{i:03}{'c' * width}" for i in range(count)]
    for name in names:
        file["obs"].create_dataset(name, data=np.zeros(n, "i1")).attrs.update(ARRAY)
    order = [*file["obs"].attrs["column-order"], *names]
    longest = max(len(c.encode()) for c in order)
    del file["obs"].attrs["column-order"]
    file["obs"].attrs.create("column-order", np.array([c.encode() for c in order], f"S{longest}"))


def _long_texts(file: h5py.File) -> None:
    n = file["obs/flag"].size
    texts = ["é" * 50_000, *(f"{i}" * (i * 100) for i in range(1, n))]
    put(file, "obs/long text", np.array(texts, object))
    add_column(file, "long text")
    put(file, "uns/essay", "word " * 30_000)


def _enumerations(file: h5py.File) -> None:
    n = file["obs/flag"].size
    for name, base in {"enum": "u1", "signed enum": ">i4"}.items():
        dtype = h5py.enum_dtype({"RED": 0, "GREEN": 1, "BLUE": 5}, basetype=base)
        made = file["obs"].create_dataset(name, data=np.arange(n) % 2, dtype=dtype)
        add_column(file, name, made)
    swapped = file.create_dataset("uns/swapped", data=np.array([(1, 2.5)], [("at", ">i2"), ("x", ">f8")]))
    swapped.attrs.update({"encoding-type": "rec-array", "encoding-version": "0.2.0"})
    odd = h5py.enum_dtype({"FALSE": 0, "TRUE": 1}, basetype="i1")
    add_column(file, "chunked truth", file["obs"].create_dataset(
        "chunked truth", data=np.arange(n) % 2, dtype=odd, chunks=(5,), compression="gzip"))  # fmt: skip


def _odd_types(file: h5py.File) -> None:
    """Integers with fewer bits than bytes, arrays as values, compounds with text, as other programs write them."""
    n = file["obs/flag"].size
    narrow = h5t.STD_I32LE.copy()
    narrow.set_precision(20)
    dcpl = h5p.create(h5p.DATASET_CREATE)
    dcpl.set_chunk((7,))
    dcpl.set_filter(h5py.h5z.FILTER_NBIT)
    for name, plist in {"narrow": None, "n-bit": dcpl}.items():
        made = h5d.create(file["obs"].id, name.encode(), narrow, h5s.create_simple((n,)), dcpl=plist)
        made.write(h5s.ALL, h5s.ALL, np.arange(n, dtype="i4") - 9)
        add_column(file, name, h5py.Dataset(made))
    fields = np.dtype([("name", h5py.string_dtype()), ("fixed", "S4"), ("at", "i2"), ("xy", "f4", (2,))])
    table = np.zeros(3, fields)
    table["name"], table["fixed"], table["at"] = ["é", "", "long " * 50], [b"a", b"", b"four"], [1, -2, 3]
    made = file.create_dataset("uns/table", data=table, chunks=(2,), compression="gzip", shuffle=True)
    made.attrs.update({"encoding-type": "rec-array", "encoding-version": "0.2.0"})


def _without_encodings(file: h5py.File) -> None:
    """Arrays and dicts that say nothing of themselves, as programs that are not anndata write them."""
    for path in ("layers/dense", "obsm/X_umap", "obsm", "layers", "uns", "uns/wide", "uns/nested", "obs/n_counts"):
        for name in ("encoding-type", "encoding-version"):
            del file[path].attrs[name]


EDITS: dict[str, Callable[[h5py.File], None]] = {
    "none": lambda _: None,
    "columns come and go": _columns_come_and_go,
    "X overwritten": _x_overwritten,
    "appended by turns": _appended_by_turns,
    "many chunks": _many_chunks,
    "never written": _never_written,
    "missing chunks": _missing_chunks,
    "links": _links,
    "named types": _named_types,
    "many attributes": _many_attributes,
    "many columns": _many_columns,
    "long column-order": _long_column_order,
    "long texts": _long_texts,
    "enumerations": _enumerations,
    "odd types": _odd_types,
    "without encodings": _without_encodings,
}
"""What is done to the file, by name."""

LATEST_TOO = (
    "many chunks", "never written", "missing chunks", "links", "named types", "many attributes", "many columns",
    "long column-order",
)  # fmt: skip
"""Edits whose traces are quite others in the latest version of the format."""
