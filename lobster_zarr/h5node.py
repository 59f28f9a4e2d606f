"""Groups and datasets of an HDF5 file as a conversion walks them: by name, sliced by rows, or whole.

What is sliced is fetched by ranges and decoded on all cores. Must not know AnnData's elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, override

import numpy as np

from lobster_zarr.dense import read_array
from lobster_zarr.fetch import together
from lobster_zarr.grid import Runs
from lobster_zarr.h5whole import read_from_file
from lobster_zarr.store import run

if TYPE_CHECKING:
    from lobster_zarr.h5fetch import FileFetcher
    from lobster_zarr.node import ArrayNode, Tree


@dataclass(frozen=True, eq=False)
class FileNode:
    """A node of an open file.

    Parameters
    ----------
    fetcher
        Of the file.
    tree
        All its nodes.
    path
        From the root of the file.
    """

    fetcher: FileFetcher
    tree: Tree
    path: str

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes, as plain values."""
        return dict(self.tree.nodes[self.path]["attributes"])

    def value(self) -> Any:
        """Read all of it, as AnnData reads it."""
        return run(read_from_file(self.fetcher, self.tree, self.path))


class FileDataset(FileNode):
    """A dataset."""

    @property
    def _node(self) -> ArrayNode:
        return self.tree.array(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dataset's shape."""
        return self._node.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, in this machine's byte order."""
        return self._node.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read a contiguous slice of the rows."""
        return read_slices((self,), rows)[0]


def read_slices(datasets: tuple[FileDataset, ...], rows: slice) -> list[np.ndarray]:
    """Read the same contiguous rows of datasets at once."""
    start, stop, _ = rows.indices(datasets[0].shape[0])
    wanted = Runs(np.asarray([start]), np.asarray([max(start, stop)]))
    return run(_read([(d.fetcher, d.tree.array(d.path)) for d in datasets], wanted))


async def _read(nodes: list[tuple[FileFetcher, ArrayNode]], rows: Runs) -> list[np.ndarray]:
    # All will be read, slice by slice: where it lies is asked for once, not for each slice.
    await together(*(fetcher.learn(node, np.arange(node.grid.n_chunks)) for fetcher, node in nodes))
    return await together(*(read_array(fetcher, node, rows) for fetcher, node in nodes))


class FileGroup(FileNode, Mapping[str, FileNode]):
    """A group."""

    @override
    def __getitem__(self, name: str) -> FileNode:
        path = f"{self.path}/{name}".lstrip("/")
        if path not in self.tree.nodes:
            raise KeyError(name)
        kind = FileDataset if self.tree.is_array(path) else FileGroup
        return kind(self.fetcher, self.tree, path)

    @override
    def __iter__(self) -> Iterator[str]:
        head = f"{self.path}/" if self.path else ""
        return (p[len(head) :] for p in self.tree.nodes if p.startswith(head) and p and "/" not in p[len(head) :])

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self)
