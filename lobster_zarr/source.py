"""What a conversion reads: H5AD files, AnnData-Zarr stores and AnnData objects, by element.

Matrices come as streams that are sliced block by block; everything else comes
whole, as AnnData itself reads it. Knows that a file may hold a MuData, and how
to take one modality of it. Must not know the destination.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anndata as ad
import google_crc32c
import pandas as pd
import zarr

from lobster_zarr.byterange import Network
from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.h5fetch import FileFetcher, read_file
from lobster_zarr.h5legacy import is_legacy, load_legacy
from lobster_zarr.h5node import FileDataset, FileGroup, FileNode
from lobster_zarr.h5store import MODALITY, is_file, open_file_store
from lobster_zarr.node import RESERVED_PREFIX
from lobster_zarr.store import display_uri, is_local, local_path, open_store, run
from lobster_zarr.stream import Frame, Stream, array_of, stream_of

if TYPE_CHECKING:
    from pathlib import Path

ELEMENTS = ("X", "layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns", "raw")
CHECKSUM_BLOCK_BYTES = 4 << 20


@dataclass(eq=False)
class Source:
    """One AnnData, wherever it lies.

    Parameters
    ----------
    name
        For messages and the report.
    n_bytes
        Size of the file, or None.
    root
        A mapping of elements: an HDF5 or Zarr group, or a dict of objects.
    checksum
        Returns the crc32c of the file in hexadecimal, as S3 computes it, or None.
    at
        Where it lies in a MuData: ``mod/rna/``; empty where it is a whole.
    """

    name: str
    n_bytes: int | None
    root: Any
    checksum: Callable[[], str | None] = lambda: None
    at: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file without its folder."""
        return self.name.removesuffix(f"/{self.at.rstrip('/')}").rpartition("/")[2]

    @property
    def is_multimodal(self) -> bool:
        """Whether it is a MuData, as mudata tells it."""
        attributes: Any = getattr(self.root, "attrs", {})
        return attributes.get("encoding-type") == "MuData" or (not self.is_in_memory and "mod" in self.root)

    def modality(self, name: str) -> Source:
        """Return one modality of a MuData.

        Raises
        ------
        NotFoundError, FormatError
            There is none of that name, or it is not a group.
        UnsupportedError
            It is a MuData itself, or was written before anndata 0.7.
        """
        mod, at = self.root.get("mod"), f"mod/{name}"
        if mod is None or name not in mod:
            known = [str(n) for n in mod or ()]
            msg = f"{self.name} has no modality {name!r}.{did_you_mean(name, known)} It has: {known}"
            raise NotFoundError(msg)
        found = Source(f"{self.name}/{at}", None, mod[name], at=f"{at}/")
        if not isinstance(found.root, FileGroup | zarr.Group):
            msg = f"{at!r} of {self.name} is not a group; expected an AnnData."
            raise FormatError(msg)
        if found.is_multimodal:
            raise UnsupportedError(nested(name, self.name))
        if isinstance(found.root.get("obs"), FileDataset):
            msg = f"{at!r} of {self.name} was written before anndata 0.7; re-save the file with a current mudata."
            raise UnsupportedError(msg)
        return found

    @property
    def is_in_memory(self) -> bool:
        """Whether the whole of it was read, or passed, as objects."""
        return isinstance(self.root, dict)

    def __contains__(self, path: str) -> bool:
        return self.get(path) is not None

    def get(self, path: str) -> Any:
        """Return the node or object at a path, or None."""
        node = self.root
        for part in path.split("/"):
            if not isinstance(node, Mapping | zarr.Group) or part not in node:
                return None
            node = node[part]
        attributes = getattr(node, "attrs", None)
        if isinstance(node, FileNode | zarr.Group | zarr.Array) and attributes is not None:
            return None if attributes.get("encoding-type") == "null" else node
        return node

    def members(self, path: str) -> list[str]:
        """Names of the members of an element such as ``layers``."""
        node = self.get(path)
        if node is None:
            return []
        if not isinstance(node, Mapping | zarr.Group):
            msg = f"{path!r} of {self.name} is not a mapping of elements; re-save the file with a current anndata."
            raise FormatError(msg)
        return [str(k) for k in node]

    def stream(self, path: str) -> Stream | None:
        """Return a matrix as a stream, or None where the element is not a matrix."""
        node = self.get(path)
        try:
            return stream_of(node, f"{path!r} of {self.name}")
        except (KeyError, IndexError, TypeError) as error:
            msg = f"{path!r} of {self.name} is incomplete: {error}. The file is damaged or not AnnData."
            raise FormatError(msg) from error

    def value(self, path: str) -> Any:
        """Read one element whole, as AnnData reads it."""
        node = self.get(path)
        if not isinstance(node, FileNode | zarr.Group | zarr.Array):
            return node
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return node.value() if isinstance(node, FileNode) else ad.io.read_elem(node)
        except Exception as error:
            # anndata's readers raise whatever a malformed node makes them stumble over.
            msg = f"{path!r} of {self.name} cannot be read by anndata: {error}"
            raise FormatError(msg) from error

    def frame(self, path: str) -> Frame:
        """Return a dataframe column by column; the names are read, the columns are not.

        Raises
        ------
        FormatError
            It is not a dataframe, or names columns that are not stored.
        """
        node = self.get(path)
        if isinstance(node, FileGroup | zarr.Group) and node.attrs.get("encoding-version") == "0.2.0":
            attributes: dict[str, Any] = dict(node.attrs)
            index_name, names = str(attributes["_index"]), [str(c) for c in attributes["column-order"]]
            for name in (index_name, *names):
                if name not in node:
                    msg = f"{path!r} of {self.name} names a column {name!r} that is not stored; the file is damaged."
                    raise FormatError(msg)
            index = array_of(pd.Index(self.value(f"{path}/{index_name}")))
            columns: dict[str, Callable[[], Any]] = {n: partial(self._column, f"{path}/{n}") for n in names}
            return Frame(index, None if index_name == "_index" else index_name, columns)
        frame = self.value(path)
        if not isinstance(frame, pd.DataFrame):
            msg = f"{path!r} of {self.name} is not a dataframe; expected an AnnData {path}."
            raise FormatError(msg)
        strange = [c for c in frame.columns if not isinstance(c, str)]
        if strange:
            msg = f"{path!r} of {self.name} has column names that are not text: {strange}; rename them."
            raise UnsupportedError(msg)
        repeated = sorted({str(c) for c in frame.columns[frame.columns.duplicated()]})
        if repeated:
            msg = f"{path!r} of {self.name} has columns of the same name: {repeated}; rename them."
            raise UnsupportedError(msg)
        loaded: dict[str, Callable[[], Any]] = {c: partial(array_of, frame[c]) for c in frame.columns}
        return Frame(array_of(frame.index), frame.index.name, loaded)

    def _column(self, path: str) -> Any:
        """Read one column as it would be in a DataFrame: pandas infers what text is."""
        return array_of(pd.Series(self.value(path)))


@contextmanager
def open_source(
    source: str | os.PathLike[str] | ad.AnnData,
    storage_options: Mapping[str, Any] | None = None,
    *,
    memory_limit_bytes: int,
    checksum: bool = True,
) -> Iterator[Source]:
    """Open what is to be converted; metadata only.

    Parameters
    ----------
    source
        Path or URI of an ``.h5ad``, of an AnnData-Zarr store (version 2 or 3,
        a ``.zip`` too), of a modality (``file.h5mu/mod/rna``), or an AnnData in memory.
    storage_options
        As for :func:`lobster_zarr.open`.
    memory_limit_bytes
        A file from before anndata 0.7 can only be read whole; it is refused if
        that would not fit.
    checksum
        Whether to begin to sum up a local file, for :attr:`Source.checksum`.

    Raises
    ------
    FormatError
        Not an AnnData file or store.
    UnsupportedError
        A MuData, a backed or lazy AnnData, or elements AnnData does not know.
    """
    with open_root(source, storage_options, memory_limit_bytes=memory_limit_bytes, checksum=checksum) as opened:
        if opened.is_multimodal:
            msg = f"{opened.name} is a MuData; expected an AnnData, such as one of its modalities: {opened.name}/mod/…"
            raise UnsupportedError(msg)
        check_elements(opened)
        yield opened


@contextmanager
def open_root(
    source: str | os.PathLike[str] | ad.AnnData,
    storage_options: Mapping[str, Any] | None = None,
    *,
    memory_limit_bytes: int,
    checksum: bool = True,
) -> Iterator[Source]:
    """Open what is named, an AnnData or a MuData, its elements not yet checked; arguments as of `open_source`."""
    with ExitStack() as stack:
        if isinstance(source, ad.AnnData):
            yield from_anndata(source)
            return
        if not isinstance(cast("object", source), str | os.PathLike):
            msg = (
                f"cannot convert a {type(source).__name__}; expected an AnnData or a MuData, the path of an .h5ad, "
                ".h5mu or .zarr, or a dict of modalities."
            )
            raise UnsupportedError(msg)
        match = MODALITY.fullmatch(os.fspath(source))
        path = match[1] if match else source
        if is_file(path):
            opened = _from_h5(path, storage_options, memory_limit_bytes)
            if checksum and is_local(path) and not match:
                opened = replace(opened, checksum=_checksum_of(stack, local_path(path)))
        else:
            opened = _from_zarr(path, storage_options)
        yield opened.modality(match[2]) if match else opened


def nested(name: str, where: str) -> str:
    """Return what is to be said of a modality that is a MuData."""
    return (
        f"modality {name!r} of {where} is a MuData itself, which mudata cannot write either; "
        "make its modalities those of the outer MuData."
    )


def from_anndata(adata: ad.AnnData) -> Source:
    """Take an AnnData in memory.

    Raises
    ------
    UnsupportedError
        It is backed or lazy.
    """
    if adata.isbacked:
        msg = f"the AnnData is backed by {adata.filename}; pass that path instead, or adata.to_memory()."
        raise UnsupportedError(msg)
    if not isinstance(cast("object", adata.obs), pd.DataFrame) or not isinstance(
        cast("object", adata.var), pd.DataFrame
    ):
        msg = "the AnnData is lazy; pass adata.to_memory(), or the path of what it was opened from."
        raise UnsupportedError(msg)
    pairs = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp", "uns")}
    layers = {k: v for k, v in adata.layers.items() if k is not None}
    root: dict[str, Any] = {"obs": adata.obs, "var": adata.var, "layers": layers, **pairs}
    if adata.X is not None:
        root["X"] = adata.X
    if adata.raw is not None:
        root["raw"] = {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(cast("Any", adata.raw).varm)}
    return Source("the AnnData in memory", None, root)


def _from_h5(source: str | os.PathLike[str], options: Mapping[str, Any] | None, limit: int) -> Source:
    store = open_file_store(source, options)
    tree, image, base = run(read_file(store))
    if is_legacy(tree):
        loaded = from_anndata(run(load_legacy(store, limit)))
        return Source(display_uri(source), store.n_bytes, loaded.root)
    fetcher = FileFetcher(store, network=Network(), image=image, base=base)
    return Source(display_uri(source), store.n_bytes, FileGroup(fetcher, tree, ""))


def _checksum_of(stack: ExitStack, path: Path) -> Callable[[], str]:
    """Read a file on a thread of its own while it is converted; the result is waited for."""
    stopped = threading.Event()

    def work() -> str:
        crc = 0
        with path.open("rb") as file:
            while (block := file.read(CHECKSUM_BLOCK_BYTES)) and not stopped.is_set():
                crc = google_crc32c.extend(crc, block)
        return f"{crc:08x}"

    thread = ThreadPoolExecutor(1, "lobster-zarr-checksum")
    stack.callback(thread.shutdown)
    stack.callback(stopped.set)
    return thread.submit(work).result


def _from_zarr(source: str | os.PathLike[str], options: Mapping[str, Any] | None) -> Source:
    name = display_uri(source)
    try:
        group = zarr.open_group(open_store(source, options), mode="r")
    except FileNotFoundError as error:
        msg = f"{name} is neither an .h5ad or .h5mu file nor a Zarr store; check the path."
        raise NotFoundError(msg) from error
    return Source(name, None, group)


def check_elements(source: Source, known: Collection[str] = ELEMENTS) -> None:
    """Refuse what is not AnnData, or holds elements AnnData does not know.

    Raises
    ------
    FormatError, UnsupportedError
        The message names the element.
    """
    for name in ("obs", "var"):
        if name not in source:
            msg = f"{source.name} has no {name!r}; expected an AnnData file or store."
            raise FormatError(msg)
    unknown = [k for k in source.root if k not in known]
    if unknown:
        msg = f"{source.name} has elements that AnnData does not know: {unknown}; remove or rename them."
        raise UnsupportedError(msg)
    for parent in ("layers", "obsm", "varm", "obsp", "varp"):
        slashed = [name for name in source.members(parent) if "/" in name]
        if slashed:
            msg = f"{parent} of {source.name} has a name with '/': {slashed[0]!r}; Zarr does not allow it: rename it."
            raise UnsupportedError(msg)
    for table in ("obs", "var"):
        node = source.get(table)
        names = node.columns if isinstance(node, pd.DataFrame) else node.attrs.get("column-order", ())
        ours = [str(c) for c in names if str(c).startswith(RESERVED_PREFIX)]
        if ours:
            msg = (
                f"{table} column {ours[0]!r} of {source.name} uses the reserved prefix {RESERVED_PREFIX!r}; rename it."
            )
            raise UnsupportedError(msg)
