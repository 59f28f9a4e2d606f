"""The ways to get an answer from a raw H5AD on S3, or a store: downloaded, by h5py over a remote file, in place.

Knows how each way answers each question and converts, as one would write it by hand. Must not know how runs are
measured or shown. Heavy packages are imported inside the ways: who measures imports them first.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.questions import X_ONLY
from benchmarks.steps import CELL_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    import pandas as pd

type Answer = int | pd.DataFrame | ad.AnnData

# Of s3fs's caches "readahead" and "bytes" read too much from place to place, and "blockcache" does not read ahead.
S3FS = {"cache_type": "background", "block_size": 1 << 20}
# A buffer is filled anew after every seek, so that a larger one reads more of what is not asked for.
OBSTORE_BUFFER_BYTES = 64 << 10


@dataclass(frozen=True)
class Question:
    """Which cells (``"all"``, ``"T"``, a slice or a mask), all genes or one, and what of them.

    A gene comes with the names alone, other cells with obs and var; `whole` asks for obsm and uns too.
    """

    cells: Any = "all"
    gene: str | None = None
    verb: str = "to_memory"
    whole: bool = False

    def rows(self, types: Any) -> Any:
        """Return the cells as an indexer, from the cell types in the order of the rows."""
        if not isinstance(self.cells, str):
            return self.cells
        return slice(None) if self.cells == "all" else np.asarray(types == CELL_TYPE)


def questions(n_obs: int) -> dict[str, Question]:
    """Return the questions about a file of so many cells."""
    start, scattered = n_obs * 2 // 5, np.random.default_rng(0).random(n_obs) < 0.05
    return {
        "open": Question(verb="open"),
        "count": Question("T", verb="count"),
        "obs rows": Question("T", verb="to_pandas"),
        "contiguous 5 %": Question(slice(start, start + n_obs // 20)),
        "scattered 5 %": Question(scattered),
        "one gene": Question(gene="CD3D"),
        "everything": Question(whole=True),
    }


@dataclass(frozen=True)
class Remote:
    """A bucket that holds ``STEM.h5ad`` and ``STEM.zarr``, and the line to it (seconds, bits a second)."""

    store: Any
    options: dict[str, Any]
    line: tuple[float, float]
    bucket: str
    stem: str

    @property
    def key(self) -> str:
        """Name of the file in the bucket."""
        return f"{self.stem}.h5ad"


def of_anndata(adata: ad.AnnData, question: Question) -> Answer:
    """Answer from an AnnData, in memory or backed by a file on disk."""
    import anndata as ad

    if question.verb == "open":
        return adata.n_obs
    if question.whole:
        return adata
    rows: Any = question.rows(adata.obs["cell_type"])
    if question.verb == "count":
        return int(rows.sum())
    if question.verb == "to_pandas":
        return adata.obs[rows]
    found = adata[rows, slice(None) if question.gene is None else [question.gene]]
    columns = slice(None) if question.gene is None else []
    return ad.AnnData(found.X, found.obs.loc[:, columns], found.var.loc[:, columns])


def of_hdf5(file: Any, question: Question) -> Answer:
    """Answer through h5py and anndata's readers of elements, which read no more than is asked."""
    import anndata as ad
    import h5py
    import pandas as pd
    from anndata.io import read_elem, sparse_dataset

    with h5py.File(file, "r") as group:
        if question.verb == "open":
            return int(group["X"].attrs["shape"][0])
        if question.verb == "count":
            return int((read_elem(group["obs/cell_type"]) == CELL_TYPE).sum())
        if question.whole:
            whole: ad.AnnData = read_elem(group)
            return whole
        if question.gene is not None:
            obs, var = (pd.DataFrame(index=read_elem(group[f"{name}/_index"])) for name in ("obs", "var"))
            genes = var.index.get_indexer([question.gene])
            return ad.AnnData(sparse_dataset(group["X"])[:, genes], obs, var.iloc[genes])
        obs = read_elem(group["obs"])
        rows = question.rows(obs["cell_type"])
        if question.verb == "to_pandas":
            return obs[rows]
        return ad.AnnData(sparse_dataset(group["X"])[rows], obs[rows], read_elem(group["var"]))


def downloaded(remote: Remote, question: Question) -> Answer:
    """Download the whole file to disk, read of it what is needed, take the subset."""
    import anndata as ad

    with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
        file.writelines(remote.store.get(remote.key).stream())
        file.flush()
        if question.verb == "to_memory":
            return of_anndata(ad.read_h5ad(file.name), question)
        adata = ad.read_h5ad(Path(file.name), backed="r")  # spares what needs no X its reading
        answer = of_anndata(adata, question)
        adata.file.close()
        return answer


def s3fs_file(remote: Remote) -> Any:
    """Open the file with s3fs."""
    import s3fs

    files = s3fs.S3FileSystem(**remote.options, skip_instance_cache=True)
    return files.open(f"{remote.bucket}/{remote.key}", "rb", **S3FS)


def over_s3fs(remote: Remote, question: Question) -> Answer:
    """Read with h5py over an s3fs file."""
    with s3fs_file(remote) as file:
        return of_hdf5(file, question)


class _Reader(io.RawIOBase):
    """An obstore reader as the file that h5py expects: what is read is plain `bytes`."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def read(self, size: int = -1) -> bytes:
        return bytes(self._reader.read(None if size < 0 else size))

    def readinto(self, buffer: Any) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def over_obstore(remote: Remote, question: Question) -> Answer:
    """Read with h5py over a buffered obstore reader."""
    import obstore

    reader = obstore.open_reader(remote.store, remote.key, buffer_size=OBSTORE_BUFFER_BYTES)
    return of_hdf5(_Reader(reader), question)


def _ours(name: str, remote: Remote, question: Question) -> Answer:
    import lobster_zarr as lz

    network = lz.Network(remote.line[0], remote.line[1] / 8)
    dataset: Any = lz.open(f"s3://{remote.bucket}/{name}", storage_options=remote.options, network=network)
    if question.verb == "open":
        return int(dataset.n_obs)
    cells = question.cells
    if isinstance(cells, str):
        cells = None if cells == "all" else f"cell_type == '{CELL_TYPE}'"
    if question.gene is not None:
        return dataset.query(cells, [question.gene], **X_ONLY).to_memory()
    options = {} if question.whole else {"obsm": [], "uns": False}
    answer: Answer = getattr(dataset.query(cells, **options), question.verb)()
    return answer


def in_place(remote: Remote, question: Question) -> Answer:
    """Open the file itself with this package."""
    return _ours(remote.key, remote, question)


def of_store(remote: Remote, question: Question) -> Answer:
    """Ask the store that this package converted the file to."""
    return _ours(f"{remote.stem}.zarr", remote, question)


DOWNLOAD, S3FS_WAY, OBSTORE_WAY = "download", "h5py over s3fs", "h5py over obstore"
IN_PLACE, INDEXED, CONVERTED = "in place", "in place, indexed", "converted"
WAYS: dict[str, Callable[[Remote, Question], Answer]] = {
    DOWNLOAD: downloaded,
    S3FS_WAY: over_s3fs,
    OBSTORE_WAY: over_obstore,
    IN_PLACE: in_place,
    INDEXED: in_place,  # of a bucket where the index lies beside the file
    CONVERTED: of_store,
}


def convert_in_place(remote: Remote, dest: Path) -> None:
    """Convert the file where it lies."""
    _convert(f"s3://{remote.bucket}/{remote.key}", dest, storage_options=remote.options)


def convert_downloaded(remote: Remote, dest: Path) -> None:
    """Download the file to disk, then convert it."""
    with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
        file.writelines(remote.store.get(remote.key).stream())
        file.flush()
        _convert(file.name, dest)


def convert_in_memory(remote: Remote, dest: Path) -> None:
    """Read the whole with h5py over an s3fs file, then convert the AnnData."""
    import h5py
    from anndata.io import read_elem

    with s3fs_file(remote) as file, h5py.File(file, "r") as group:
        adata = read_elem(group)
    _convert(adata, dest)


def _convert(source: Any, dest: Path, **options: Any) -> None:
    import lobster_zarr as lz

    lz.convert(source, dest, sort_by=["cell_type"], progress=False, **options)


CONVERSIONS: dict[str, Callable[[Remote, Path], None]] = {
    "convert in place": convert_in_place,
    "download, convert": convert_downloaded,
    "h5py over s3fs into memory, convert": convert_in_memory,
}
