"""One AnnData on its way to a store: its elements in order, checked before they are written.

Reading, regrouping, encoding and uploading overlap: the calling thread reads
and regroups one block while the codec pool encodes the blocks before it and
the commit uploads finished shards. Must not know who asked, nor whether the
store is a part of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import psutil

from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.layout import (
    DESCENTS,
    FORMAT_VERSION,
    MAX_DESCENTS,
    SOURCE_ORDER,
    VALUES_OF,
    CodecProfile,
    column_chunk,
)
from lobster_zarr.matrices import ARRAY, MatrixConversion
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.partition import ClusterMatrices
from lobster_zarr.stage import stage
from lobster_zarr.stream import Frame, SparseStream
from lobster_zarr.write import write_array, write_staged
from lobster_zarr.zones import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

    from lobster_zarr.cluster import Crew
    from lobster_zarr.commit import Target
    from lobster_zarr.report import Progress
    from lobster_zarr.scratch import Scratch
    from lobster_zarr.source import Source

type Staged = dict[str, zarr.Group | zarr.Array[Any]]
"""Elements that AnnData encoded in memory, by path."""
type GeneMajor = Literal["auto"] | bool | Sequence[str]

MAX_BLOCK_VALUES = 3 << 20
MIN_BLOCK_VALUES = 1 << 16
KEPT_ROWS = 1 << 17
"""A longer column is encoded once to see that it can be, and again to write it."""
CATEGORICAL = {"encoding-type": "categorical", "encoding-version": "0.2.0"}
BYTES_PER_BLOCK_VALUE = 320
"""Working memory that one value of a block costs at the worst moment of the pipeline (measured)."""
DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
MISSING = np.iinfo(np.int64).max - 1
"""Sort key of a missing value: after all others."""


@dataclass(eq=False)
class Conversion:
    """One conversion under way: the source, the row order, and what was written."""

    source: Source
    scratch: Scratch
    sort_by: tuple[str, ...]
    codec: CodecProfile
    gene_major: GeneMajor
    limit_bytes: int
    progress: Progress

    def __post_init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.companions: list[str] = []
        self.kept: Staged = {}
        """Columns that were encoded to see that they can be."""
        self.order: np.ndarray | None = None
        """The source row of each stored row, None where the order is kept."""
        self.n_obs = len(self.source.frame("obs").index)
        self.n_vars = len(self.source.frame("var").index)

    def prepare(self) -> Staged:
        """Find the order of the rows; then as :meth:`stage`."""
        self.order = self._sort_order()
        return self.stage()

    def stage(self) -> Staged:
        """Read and encode, in memory, all that is neither a matrix nor obs.

        Whatever AnnData cannot write is refused here, before the destination
        is touched.
        """
        self._check_shapes()
        self._check_gene_major()
        staged = {}
        for path in self._whole_elements():
            value = self.source.value(path)
            if path.startswith(("obsm/", "varm/", "obsp/", "varp/")):
                self._check_shape(path, value.shape if hasattr(value, "shape") else (len(value),))
            staged[path] = stage(value, self.source.at + path)
        for path in ("obs", "var", "raw/var"):
            if path in self.source:
                self._check_frame(path, self.source.frame(path))
        if "uns" in self.source and not isinstance(self.source.value("uns"), Mapping):
            msg = f"'uns' of {self.source.name} is not a mapping; AnnData keeps names and values there."
            raise FormatError(msg)
        return staged

    def _whole_elements(self) -> list[str]:
        paths = ["uns"] if "uns" in self.source else []
        for parent in ("varm", "varp", "raw/varm", "layers", "obsm", "obsp"):
            for name in self.source.members(parent):
                path = f"{parent}/{name}"
                streamed = parent in {"layers", "obsm", "obsp"} and self.source.stream(path) is not None
                if not streamed and parent == "layers":
                    msg = f"{path!r} of {self.source.name} is not a CSR, CSC or dense matrix; it cannot be kept."
                    raise UnsupportedError(msg)
                if not streamed:
                    paths.append(path)
        return paths

    def _check_shapes(self) -> None:
        for path in self._matrices():
            stream = self.source.stream(path)
            if stream is None:
                msg = f"{path!r} of {self.source.name} is not a CSR, CSC or dense matrix; it cannot be kept."
                raise UnsupportedError(msg)
            self._check_shape(path, stream.shape)

    def _check_shape(self, path: str, shape: tuple[int, ...]) -> None:
        """Refuse an element whose lengths do not fit obs and var."""
        parent = path.partition("/")[0]
        axes = {"obsm": (self.n_obs,), "obsp": (self.n_obs,) * 2, "varm": (self.n_vars,), "varp": (self.n_vars,) * 2}
        expected = axes.get(parent, (self.n_obs, self.n_vars) if parent != "raw" else (self.n_obs,))
        if tuple(shape[: len(expected)]) != expected:
            msg = f"{path!r} of {self.source.name} has the shape {tuple(shape)}; obs and var ask for {expected}."
            raise FormatError(msg)

    def _matrices(self) -> list[str]:
        paths = [p for p in ("X", "raw/X") if p in self.source]
        for parent in ("layers", "obsm", "obsp"):
            for name in self.source.members(parent):
                path = f"{parent}/{name}"
                if self.source.stream(path) is not None:
                    paths.append(path)
        return paths

    def _check_gene_major(self) -> None:
        sparse = [p for p in self._matrices() if isinstance(self.source.stream(p), SparseStream)]
        eligible = [p for p in sparse if p == "X" or p.startswith("layers/")]
        if self.gene_major is True:
            self.companions = eligible
        elif self.gene_major == "auto":
            self.companions = [p for p in eligible if p == "X"]
        elif self.gene_major is not False:
            names = {p.removeprefix("layers/"): p for p in eligible}
            for name in (self.gene_major,) if isinstance(self.gene_major, str) else self.gene_major:
                key = name.removeprefix("layers/")
                if key not in names:
                    where = f"a sparse X or layer of {self.source.name}"
                    msg = f"gene_major names {name!r}, which is not {where}.{did_you_mean(key, names)}"
                    raise NotFoundError(msg)
                self.companions.append(names[key])

    def _check_frame(self, path: str, frame: Frame) -> None:
        bad = [n for n in frame.columns if "/" in n or n == "_index"]
        if bad:
            msg = f"{path} of {self.source.name} has columns that AnnData cannot store: {bad}; rename them."
            raise UnsupportedError(msg)
        if self.source.is_in_memory:
            # What a file holds was encoded once; what is in memory may not be encodable.
            for name, read in frame.stored().items():
                values = read()
                if not isinstance(values, pd.Categorical) and getattr(values.dtype, "kind", "O") not in "biuf":
                    staged = stage(values, f"{self.source.at}{path}/{name}")
                    if len(values) <= KEPT_ROWS:
                        self.kept[f"{path}/{name}"] = staged

    def _sort_order(self) -> np.ndarray | None:
        """Return the source row of each stored row, or None where the order is kept."""
        if not self.sort_by:
            return None
        return np.lexsort([self.sort_key(name) for name in self.sort_by][::-1])

    def sort_key(self, name: str) -> np.ndarray:
        """Return a column of obs as numbers that sort as its values do: int64."""
        columns = self.source.frame("obs").columns
        if name not in columns:
            msg = f"cannot sort by {name!r}: obs of {self.source.name} lacks it.{did_you_mean(name, columns)}"
            raise NotFoundError(msg)
        values = columns[name]()
        codes = values.codes if isinstance(values, pd.Categorical) else pd.factorize(values, sort=True)[0]
        codes = np.asarray(codes, np.int64)
        return np.where(codes < 0, MISSING, codes)

    def write(self, commit: Target, staged: Staged, crew: Crew | None = None) -> None:
        """Write every element, then the root; the sparse matrices with a crew, where there is one."""
        self.write_elements(commit, staged, crew)
        noted = self.note(self.source)
        commit.finish({"encoding-type": "anndata", "encoding-version": "0.1.0", ATTRIBUTE: noted})

    def write_elements(self, commit: Target, staged: Staged, crew: Crew | None = None) -> None:
        """Write every element."""
        self._write_frame(commit, "obs", self.order)
        self._write_frame(commit, "var", None)
        if "raw" in self.source:
            commit.group("raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
            self._write_frame(commit, "raw/var", None)
        groups = {p.rpartition("/")[0] for p in (*staged, *self._matrices())} - {"", "raw"}
        for parent in sorted(groups):
            commit.group(parent, DICT)
        for path, element in staged.items():
            if path.startswith("obsm/") and self.order is not None:
                element = stage(_reordered(self.source.value(path), self.order), path)  # noqa: PLW2901
            self.sizes |= write_staged(commit, path, element, self.codec)
        writer = self._matrix_writer(commit, crew)
        for path in self._matrices():
            stream = self.source.stream(path)
            if stream is not None:
                self.sizes |= writer.write(path, stream)
        if self.order is not None:
            path = f"obs/{SOURCE_ORDER}"
            self.sizes[path] = write_array(commit, path, self.order.astype(np.int64), profile=self.codec)
            descents = np.flatnonzero(np.diff(self.order) < 0) + 1
            commit.note(path, {DESCENTS: descents.tolist()} if len(descents) <= MAX_DESCENTS else {})

    def note(self, source: Source) -> dict[str, Any]:
        """What is noted at the root of the store: O(1), once all is written."""
        return {
            "format_version": FORMAT_VERSION,
            "writer": f"lobster_zarr {version('lobster_zarr')}",
            "codec": self.codec,
            "sort_by": list(self.sort_by),
            "source": {"name": source.file_name, "bytes": source.n_bytes, "crc32c": source.checksum()},
            "stored_bytes": self.sizes,
        }

    def _matrix_writer(self, commit: Target, crew: Crew | None) -> MatrixConversion:
        shared = (commit, self.scratch, self.progress, self.codec)
        order, companions = self.order, tuple(self.companions)
        if crew is None:
            block_values = _block_values(self.limit_bytes)
            self.scratch.room_bytes = _spare_bytes(self.limit_bytes) - BYTES_PER_BLOCK_VALUE * block_values
            return MatrixConversion(*shared, block_values, order, companions)
        block_values = _block_values(min(self.limit_bytes, crew.memory_bytes), crew.threads_per_worker)
        return ClusterMatrices(*shared, block_values, order, companions, crew)

    def _write_frame(self, commit: Target, path: str, order: np.ndarray | None) -> None:
        frame = self.source.frame(path)
        attributes = {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": frame.index_name or "_index",
            "column-order": list(frame.columns),
        }
        commit.group(path, attributes)
        columns = frame.stored()
        with self.progress.phase(path, len(columns), "columns") as advance:
            for name, read in columns.items():
                values = read() if order is None else read().take(order)
                if order is not None:  # it was encoded in the order of the source
                    self.kept.pop(f"{path}/{name}", None)
                member = self._write_column(commit, f"{path}/{name}", values)
                if len(values) > (rows := column_chunk(len(values))):
                    commit.note(f"{path}/{name}{member}", measure(values, rows))
                advance(1)

    def _write_column(self, commit: Target, path: str, values: Any) -> str:
        """Write a column; return where within it the array of its rows lies.

        Numbers and categories are encoded here, as AnnData would: its own way takes several times as long.
        """
        if isinstance(values, pd.Categorical):
            commit.group(path, CATEGORICAL | {"ordered": bool(values.ordered)})
            self._write_column(commit, f"{path}/categories", values.categories.to_numpy())
            self._write_column(commit, f"{path}/codes", values.codes)
            return VALUES_OF["categorical"]
        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.dtype.isnative:
            self.sizes[path] = write_array(commit, path, values, profile=self.codec, attributes=ARRAY)
            return ""
        staged = self.kept.pop(path, None)
        staged = stage(values, path) if staged is None else staged
        self.sizes |= write_staged(commit, path, staged, self.codec)
        return VALUES_OF.get(str(staged.attrs.get("encoding-type")), "")


def _block_values(limit_bytes: int, n_blocks: int = 1) -> int:
    """Values of a block where `n_blocks` are in memory at once, of a process that holds what this one does now."""
    spare_bytes = _spare_bytes(limit_bytes) // n_blocks
    return min(max(spare_bytes // BYTES_PER_BLOCK_VALUE, MIN_BLOCK_VALUES), MAX_BLOCK_VALUES)


def _spare_bytes(limit_bytes: int) -> int:
    held_bytes: int = psutil.Process().memory_info().rss
    return max(limit_bytes - held_bytes, 0)


def _reordered(value: Any, order: np.ndarray) -> Any:
    return value.iloc[order] if isinstance(value, pd.DataFrame) else value[order]
