"""H5AD and H5MU files of many storage forms: the same elements, however HDF5 lets them lie.

Knows HDF5's ways to store a dataset, a group and an attribute, and writes a
given AnnData or MuData in any of them; `FORMS` names one file of every kind,
`forms()` draws mixtures. Every file is one that anndata (or mudata) reads,
which `test_h5files.py` proves: values may differ from what was given (half
floats, edits), so that the oracle is always what anndata reads from the file.
Must not know of lobster_zarr. Old encodings are in `h5old.py`, damage in `h5damage.py`.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
from h5edits import EDITS, LATEST_TOO
from h5py import h5d, h5f, h5p, h5t
from hypothesis import strategies as st
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    type Annotated = ad.AnnData | mudata.MuData
    type Shape = tuple[int, ...]

N_OBS, N_VARS = 37, 11


# ---------------------------------------------------------------- a sample


@functools.cache
def sample() -> ad.AnnData:
    """Every element and every encoding of AnnData, small; not to be changed."""
    rng = np.random.default_rng(7)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(
                rng.choice(np.array(["T cell", "B cell", "NK", None], object), N_OBS), ["NK", "T cell", "B cell", "n"]
            ),
            "stage": pd.Categorical.from_codes(rng.integers(-1, 3, N_OBS), [10, 20, 30], ordered=True),
            "n_counts": rng.integers(0, 1000, N_OBS).astype("int32"),
            "score": np.where(rng.random(N_OBS) > 0.2, rng.random(N_OBS), np.nan),
            "flag": rng.random(N_OBS) > 0.5,
            "note": np.array([f"é{i}" if i % 3 else "" for i in range(N_OBS)], object),
            "age": pd.array([None if i % 5 == 0 else i for i in range(N_OBS)], dtype="Int16"),
            "sick": pd.array([None if i % 4 == 0 else i % 3 == 0 for i in range(N_OBS)], dtype="boolean"),
            "site": pd.array([None if i % 6 == 0 else f"s{i % 2}" for i in range(N_OBS)], dtype="string"),
        },
        index=pd.Index([f"cell-{i}" for i in range(N_OBS)], name="barcode", dtype="str"),
    )
    var = pd.DataFrame(
        {"mean": rng.random(N_VARS).astype("float32"), "hv": rng.random(N_VARS) > 0.5},
        index=pd.Index([f"gene-{i}" for i in range(N_VARS)], dtype="str"),
    )
    counts = sparse.random(N_OBS, N_VARS, 0.4, "csr", "float32", rng)
    counts.data = np.ceil(counts.data * 9)
    groups = np.array([("CD4+", 1.0), ("é", np.nan)], dtype=[("names", object), ("scores", "float32")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ad.AnnData(
            counts,
            obs=obs,
            var=var,
            layers={"csc": sparse.csc_matrix(counts).astype("int64"), "dense": rng.random((N_OBS, N_VARS))},
            obsm={
                "X_umap": rng.random((N_OBS, 2)).astype("float32"),
                "cube": rng.integers(0, 99, (N_OBS, 2, 3)),
                "frame": pd.DataFrame({"a": np.arange(N_OBS), "b": obs["cell_type"].array}, index=obs.index),
                "sparse": sparse.random(N_OBS, 4, 0.3, "csc", rng=rng),
            },
            varm={"PCs": rng.random((N_VARS, 3))},
            obsp={"graph": sparse.random(N_OBS, N_OBS, 0.1, "csr", rng=rng)},
            varp={"corr": rng.random((N_VARS, N_VARS))},
            uns={
                "cell_type_colors": np.array(["#000", "#111", "#222", "#333"], object),
                "groups": groups,
                "nested": {"k": 3, "text": "é", "no": None, "yes": True, "empty": {}, "half": np.float16([1.5, 2])},
                "none": np.zeros((0, 3)),
                "wide": np.arange(60, dtype="uint16").reshape(3, 4, 5),
            },
        )
        made.raw = ad.AnnData(
            sparse.random(N_OBS, N_VARS + 4, 0.3, "csr", "float32", rng),
            obs=obs[[]],
            var=pd.DataFrame({"n": np.arange(N_VARS + 4)}, index=[f"raw-{i}" for i in range(N_VARS + 4)]),
            varm={"w": rng.random((N_VARS + 4, 2))},
        )
    return made


# ---------------------------------------------------------------- how a dataset is stored


def _fitting(wanted: Shape) -> Callable[[Shape], Any]:
    """Chunks of a shape, as far as it fits (the last number stands for the axes after it)."""

    def chunks(shape: Shape) -> Shape:
        padded = (*wanted, *wanted[-1:] * len(shape))
        return tuple(max(1, min(n, c)) for n, c in zip(shape, padded, strict=False))

    return chunks


CHUNKS: dict[str, Callable[[Shape], Any]] = {
    "contiguous": lambda _: None,
    "compact": lambda _: None,
    "early": lambda _: None,
    "guessed": lambda _: True,
    "one": lambda shape: shape,
    "single values": _fitting((1,)),
    "threes": _fitting((3,)),
    "uneven": lambda shape: tuple(n // 2 + 1 for n in shape),
    "larger": lambda shape: tuple(n + 7 for n in shape),
    "odd": _fitting((3, 7)),
    "rows": _fitting((1, 999)),
    "columns": _fitting((999, 1)),
    "one axis grows": _fitting((4,)),
    "all axes grow": _fitting((5, 4)),
    "implicit": _fitting((6, 5)),
}
"""Name to the ``chunks`` of `create_dataset`; some names also say the layout or what may grow."""

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "gzip 0": {"compression": "gzip", "compression_opts": 0},
    "gzip 9": {"compression": "gzip", "compression_opts": 9},
    "shuffle": {"shuffle": True},
    "shuffle gzip": {"shuffle": True, "compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "shuffle lzf": {"shuffle": True, "compression": "lzf"},
    "fletcher32": {"fletcher32": True},
    "fletcher32 gzip": {"fletcher32": True, "compression": "gzip"},
    "fletcher32 shuffle gzip": {"fletcher32": True, "shuffle": True, "compression": "gzip"},
    "scaleoffset": {"scaleoffset": 0},
    "szip": {"compression": "szip", "compression_opts": ("nn", 2)},
}

NUMBERS: dict[str, Callable[[np.dtype[Any]], Any]] = {
    "given": lambda dtype: dtype,
    "big-endian": lambda dtype: dtype.newbyteorder(">"),
    "half": lambda dtype: np.dtype("f2") if dtype.kind == "f" else dtype,
    "small": lambda dtype: np.dtype("u2") if dtype.kind in "iu" and dtype.itemsize > 2 else dtype,
    "unsigned": lambda dtype: np.dtype(f"u{dtype.itemsize}") if dtype.kind == "i" and dtype.itemsize > 1 else dtype,
    "large": lambda dtype: np.dtype(f"{dtype.kind}8") if dtype.kind in "iuf" else dtype,
}
"""Name to the type that numbers are stored in."""


def _fixed(encoding: str) -> Callable[[int], Any]:
    return lambda length: h5py.string_dtype(encoding, max(length, 1))


def _padded(padding: int) -> Callable[[int], Any]:
    def dtype(length: int) -> h5t.TypeID:
        made = h5t.C_S1.copy()
        made.set_size(length + 1)
        made.set_strpad(padding)
        made.set_cset(h5t.CSET_UTF8)
        return made

    return dtype


TEXTS: dict[str, Callable[[int], Any]] = {
    "utf-8": lambda _: h5py.string_dtype("utf-8"),
    "ascii": lambda _: h5py.string_dtype("ascii"),
    "fixed utf-8": _fixed("utf-8"),
    "fixed ascii": _fixed("ascii"),
    "null-terminated": _padded(h5t.STR_NULLTERM),
    "space-padded": _padded(h5t.STR_SPACEPAD),
}
"""Name to the type that text is stored in, from the length in bytes of the longest."""


@dataclass(frozen=True)
class Storage:
    """How one dataset lies in the file: a key each of CHUNKS, FILTERS, NUMBERS, TEXTS and WRITING."""

    chunks: str = "contiguous"
    filters: str = "none"
    numbers: str = "given"
    texts: str = "utf-8"
    writing: str = "whole"

    def options(self, shape: Shape, dtype: Any) -> dict[str, Any]:
        """Return the keyword arguments of `create_dataset`; a filter that does not go with the type is left out."""
        filters = {} if self._unsuited(dtype, shape) else dict(FILTERS[self.filters])
        chunks = CHUNKS[self.chunks](shape)
        if chunks is None and (filters or self.writing != "whole"):
            chunks = True
        options: dict[str, Any] = {"chunks": chunks or None, **filters}
        if chunks is None and self.chunks != "contiguous":
            options["dcpl"] = _created(self.chunks)
        if self.chunks == "implicit" and not filters:
            options["dcpl"] = _created("early")
        if chunks:
            options["maxshape"] = self._grown(shape)
        if isinstance(chunks, tuple):
            options["chunks"] = tuple(max(n, 1) for n in chunks)
        return options

    def _unsuited(self, dtype: np.dtype[Any], shape: Shape) -> bool:
        if "fletcher32" in self.filters:
            return dtype.kind in "OV"
        # HDF5 gives other values back for unsigned ones past int64.
        return self.filters in ("scaleoffset", "szip") and (dtype.kind not in "iu" or dtype == "u8" or 0 in shape)

    def _grown(self, shape: Shape) -> Any:
        if self.chunks == "one axis grows":
            return (None, *shape[1:]) if all(shape[1:]) else (None,) * len(shape)
        if self.chunks in ("all axes grow", "larger") or 0 in shape or self.writing == "in pieces":
            return (None,) * len(shape)
        return None


def _created(kind: str) -> h5p.PropDCID:
    dcpl = h5p.create(h5p.DATASET_CREATE)
    if kind == "compact":
        dcpl.set_layout(h5d.COMPACT)
    else:
        dcpl.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    return dcpl


def _whole(dataset: h5py.Dataset, values: np.ndarray) -> None:
    dataset[...] = values


def _backwards(dataset: h5py.Dataset, values: np.ndarray) -> None:
    for part in reversed(list(dataset.iter_chunks())):
        dataset[part] = values[part]


def _in_pieces(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Grow the dataset as its values come, past its end, and cut it at last."""
    step = max(len(values) // 5, 1)
    dataset.resize((0, *values.shape[1:]))
    for at in range(0, len(values), step):
        dataset.resize((at + step, *values.shape[1:]))
        dataset[at : at + step] = values[at : at + step] if at + step <= len(values) else _extended(values[at:], step)
        dataset.file.flush()
    dataset.resize(values.shape)


def _extended(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, values[:1].repeat(n - len(values), axis=0)])


def _unfiltered_here_and_there(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Take gzip, the last filter, off every second chunk, as HDF5 itself does where it gains nothing."""
    dataset[...] = values
    dataset.flush()
    if dataset.compression != "gzip" or dataset.fletcher32:
        return
    bit = 1 << (dataset.id.get_create_plist().get_nfilters() - 1)
    for number in range(0, dataset.id.get_num_chunks(), 2):
        at = dataset.id.get_chunk_info(number).chunk_offset
        mask, body = dataset.id.read_direct_chunk(at)
        plain = body if mask & bit else zlib.decompress(body)
        if len(plain) != len(body):  # of a chunk that keeps its size libhdf5 keeps the mask too
            dataset.id.write_direct_chunk(at, plain, mask | bit)


WRITING: dict[str, Callable[[h5py.Dataset, np.ndarray], None]] = {
    "whole": _whole,
    "backwards": _backwards,
    "in pieces": _in_pieces,
    "masked": _unfiltered_here_and_there,
}


# ---------------------------------------------------------------- how a file is stored


@dataclass(frozen=True)
class Form:
    """How a file lies: each dataset takes the next of `storages`, and at last one of EDITS is done to the file."""

    storages: tuple[Storage, ...] = (Storage(),)
    libver: str | tuple[str, str] = "earliest"
    options: tuple[tuple[str, Any], ...] = ()
    """Of `h5py.File`, where the form is more than a version."""
    attributes: str = "utf-8"
    """A key of TEXTS."""
    masked_texts: bool = False
    """Whether text has a mask where nothing is missing."""
    edit: str = "none"
    offset_bytes: int = 8
    """What an address in the file takes."""

    @property
    def ordered(self) -> bool:
        """Whether groups and attributes keep the order in which they were made."""
        return bool(dict(self.options).get("track_order"))


def write(data: Annotated, path: Path, form: Form) -> Path:
    """Write `data` to `path` in a form; an H5MU says what it is in its first 512 bytes.

    mudata joins columns, which pandas does not do with big-endian numbers: they stay native there.
    """
    if isinstance(data, mudata.MuData):
        native = tuple(s if s.numbers != "big-endian" else replace(s, numbers="given") for s in form.storages)
        form = replace(form, storages=native, options=(*form.options, ("userblock_size", 512)), offset_bytes=8)
    with _plain(data) as plain, _created_file(path, form) as file:
        _copy(plain, file, form, itertools.cycle(form.storages))
    if isinstance(data, mudata.MuData):
        with path.open("r+b") as raw:
            raw.write(f"MuData (format-version=0.1.0;creator=muon;creator-version={mudata.__version__})".encode())
    elif form.edit != "none":
        with h5py.File(path, "r+", libver=form.libver) as file:
            EDITS[form.edit](file)
    return path


def _plain(data: Annotated) -> h5py.File:
    """Return `data` as anndata or mudata writes it, in memory."""
    body = _plain_sample() if data is sample() else _plain_bytes(data)
    return h5py.File(io.BytesIO(body), "r")


@functools.cache
def _plain_sample() -> bytes:
    return _plain_bytes(sample())


def _plain_bytes(data: Annotated) -> bytes:
    body = io.BytesIO()
    with (
        warnings.catch_warnings(),
        ad.settings.override(allow_write_nullable_strings=True),
        h5py.File(body, "w") as file,
    ):
        warnings.simplefilter("ignore")
        if isinstance(data, mudata.MuData):
            mudata._core.io._write_h5mu(file, data)
        else:
            ad.io.write_elem(file, "/", data.copy() if data.is_view else data)
    return body.getvalue()


def _created_file(path: Path, form: Form) -> h5py.File:
    options = dict(form.options)
    if form.offset_bytes == 8:
        return h5py.File(path, "w", libver=form.libver, **options)
    creation, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
    creation.set_sizes(form.offset_bytes, form.offset_bytes)
    access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST)
    return h5py.File(h5f.create(str(path).encode(), h5f.ACC_TRUNC, creation, access))


def _copy(source: h5py.Group, target: h5py.Group, form: Form, storages: Iterator[Storage]) -> None:
    _copy_attributes(source, target, form)
    for name, node in source.items():
        if not form.masked_texts and _is_masked_needlessly(node):
            made = store(target, name, node["values"], next(storages), track_order=form.ordered)
            _copy_attributes(node["values"], made, form)
        elif isinstance(node, h5py.Group):
            _copy(node, target.create_group(name, track_order=form.ordered), form, storages)
        else:
            _copy_attributes(node, store(target, name, node, next(storages), track_order=form.ordered), form)


def _is_masked_needlessly(node: Any) -> bool:
    """Whether a column of text may be stored without its mask, and is still read as it was."""
    encoding, parent = (n.attrs.get("encoding-type") for n in (node, node.parent))
    if encoding != "nullable-string-array" or parent != "dataframe" or node.attrs["na-value"] != "NaN":
        return False
    return node["mask"].size > 0 and not node["mask"][()].any()


def _copy_attributes(source: Any, target: Any, form: Form) -> None:
    for name, value in source.attrs.items():
        dtype: Any = source.attrs.get_id(name).dtype
        is_text = h5py.check_string_dtype(dtype) is not None
        kept, stored_as = _texts(value, form.attributes) if is_text else (value, dtype)
        target.attrs.create(name, kept, dtype=stored_as)


def store(target: h5py.Group, name: str, node: h5py.Dataset, storage: Storage, **more: Any) -> h5py.Dataset:
    """Store a dataset again, in another form as far as it goes with its type and shape."""
    if node.shape is None:
        return target.create_dataset(name, data=h5py.Empty(node.dtype), **more)
    values = node[()]
    dtype: Any = node.dtype
    if h5py.check_string_dtype(dtype) is not None:
        values, dtype = _texts(values, storage.texts)
    elif dtype.kind in "iuf" and not _kept(node, storage.numbers):
        dtype = NUMBERS[storage.numbers](dtype)
    if isinstance(dtype, h5t.TypeID):
        return _low_level(target, name, values, dtype)
    if not node.shape:
        return target.create_dataset(name, data=values, dtype=dtype, **more)
    with np.errstate(all="ignore"):
        values = values if values.dtype.kind in "OV" else values.astype(dtype)
    options = storage.options(node.shape, dtype)
    if options.get("dcpl") is not None and values.nbytes > 1 << 15:
        del options["dcpl"]
    dataset = target.create_dataset(name, shape=node.shape, dtype=dtype, **options, **more)
    if 0 not in node.shape:
        WRITING[storage.writing](dataset, values)
    return dataset


def _kept(node: h5py.Dataset, numbers: str) -> bool:
    """Whether SciPy or pandas would refuse other numbers here."""
    name = node.name.rpartition("/")[2]
    refused = {"big-endian": ("data", "indices", "indptr", "categories", "values"), "half": ("data", "categories")}.get(
        numbers, ()
    )
    return name == "codes" or (name in refused and any(n in node.parent for n in ("indptr", "codes", "mask")))


def _texts(values: Any, form: str) -> tuple[Any, Any]:
    """Texts in a form that can hold them: only ASCII where it is ASCII, nothing empty where HDF5 would lose it."""
    encoded = [v if isinstance(v, bytes) else v.encode() for v in np.asarray(values, object).ravel().tolist()]
    if "ascii" in form and not all(v.isascii() for v in encoded):
        form = form.replace("ascii", "utf-8")
    if form not in ("utf-8", "ascii") and any(v.rstrip(b" \0") != v for v in encoded):
        form = "utf-8"
    dtype = TEXTS[form](max(map(len, encoded), default=1))
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return values, dtype
    memory = h5py.string_dtype("utf-8", max([1, *map(len, encoded)])) if isinstance(dtype, h5t.TypeID) else dtype
    return np.array(encoded, memory).reshape(np.shape(values)), dtype


def _low_level(target: h5py.Group, name: str, values: np.ndarray, dtype: h5t.TypeID) -> h5py.Dataset:
    space = h5py.h5s.create_simple(values.shape) if values.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5d.create(target.id, name.encode(), dtype, space)
    if values.size:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values, h5t.py_create(values.dtype, logical=True))
    return h5py.Dataset(dataset)


def _file(**options: Any) -> Form:
    """Mixed storages, as in a file of many hands; every option of Form may be set."""
    mixed = (
        Storage("guessed", "gzip"),
        Storage("threes"),
        Storage("uneven", "shuffle gzip"),
        Storage(),
        Storage("one"),
    )
    return Form(**{"storages": mixed, **options})


FORMS: dict[str, Form] = {
    "plain": Form(),
    **{f"chunks {k}": Form((Storage(k),)) for k in ("compact", "early", "single values", "threes", "uneven", "larger")},
    **{f"chunks {k}": Form((Storage(k),)) for k in ("odd", "one axis grows", "all axes grow")},
    **{f"chunks {k}, latest": Form((Storage(k),), libver="latest") for k in CHUNKS},
    **{
        f"chunks {k}, gzip, latest": Form((Storage(k, "gzip"),), libver="latest")
        for k in ("one", "threes", "one axis grows", "all axes grow")
    },
    **{f"filters {k}": Form((Storage("threes", k),)) for k in FILTERS if k != "none"},
    **{f"numbers {k}": Form((Storage("guessed", "shuffle gzip", k),)) for k in NUMBERS if k != "given"},
    **{f"texts {k}": Form((Storage("guessed", texts=k),)) for k in TEXTS},
    **{f"attributes {k}": _file(attributes=k) for k in ("ascii", "fixed utf-8", "fixed ascii")},
    **{f"written {k}": Form((Storage("threes", "shuffle gzip", writing=k),)) for k in WRITING if k != "whole"},
    "written in pieces, latest": Form((Storage("threes", writing="in pieces"),), libver="latest"),
    "texts masked": _file(masked_texts=True),
    "v108": _file(libver=("v108", "v108")),
    "v110": _file(libver=("v110", "v110")),
    "v112": _file(libver=("earliest", "v112")),
    "latest": _file(libver="latest"),
    "ordered": _file(options=(("track_order", True),)),
    "ordered, latest": _file(options=(("track_order", True),), libver="latest"),
    "user block": _file(options=(("userblock_size", 512),)),
    "user block, latest": _file(options=(("userblock_size", 1024),), libver="latest"),
    "paged": _file(options=(("fs_strategy", "page"), ("fs_page_size", 4096)), libver="latest"),
    "aggregated": _file(options=(("fs_strategy", "aggregate"), ("fs_persist", True)), libver="v110"),
    "aligned": _file(options=(("alignment_threshold", 64), ("alignment_interval", 4096))),
    "four-byte addresses": _file(offset_bytes=4),
    **{f"edit {k}": _file(edit=k) for k in EDITS if k != "none"},
    **{f"edit {k}, latest": _file(edit=k, libver="latest") for k in LATEST_TOO},
}
"""One file of every kind, by name."""


# CI has 15 minutes for all: it takes every third form and damage, a run by hand all.
IN_TURN = slice(None, None, 3 if os.environ.get("CI") else 1)


def changes(form: Form) -> bool:
    """Whether values become others, or other elements, in a form."""
    return form.edit != "none" or any(s.numbers != "given" for s in form.storages)


def storages() -> SearchStrategy[Storage]:
    """Any storage of a dataset, but for szip, which takes no chunk of one value."""
    filters = FILTERS.keys() - {"szip"}
    return st.builds(Storage, *(st.sampled_from(sorted(of)) for of in (CHUNKS, filters, NUMBERS, TEXTS, WRITING)))


def forms() -> SearchStrategy[Form]:
    """Any form of a file whose datasets are each stored in their own way; no edits, which need the sample."""
    options = st.sampled_from([(), (("track_order", True),), (("userblock_size", 512),)])
    return st.builds(
        Form,
        st.lists(storages(), min_size=1, max_size=5).map(tuple),
        st.sampled_from(["earliest", "v108", "latest"]),
        options,
        st.sampled_from(["utf-8", "ascii", "fixed utf-8"]),
        st.booleans(),
    )
