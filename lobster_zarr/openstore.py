"""What an open store of either kind tells of itself: its tables, its size, what was noted at its conversion.

From the metadata alone, no request. Must not know queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.h5store import FileStore
from lobster_zarr.layout import FORMAT_VERSION
from lobster_zarr.noted import ATTRIBUTE

if TYPE_CHECKING:
    from lobster_zarr.element import StoreReader
    from lobster_zarr.node import Tree
    from lobster_zarr.summary import MultimodalInfo, StoreInfo
    from lobster_zarr.table import TableReader
    from lobster_zarr.traffic import Stats


class OpenStore:
    """An open store."""

    uri: str

    @property
    def _root(self) -> StoreReader:
        """Reads the whole store."""
        raise NotImplementedError

    def info(self) -> StoreInfo | MultimodalInfo:
        """Describe the store from its metadata: no request."""
        raise NotImplementedError

    @property
    def _file_bytes(self) -> int | None:
        """The size of a raw file; None of a store, and of a part of a file."""
        store = self._root.fetcher.store
        return store.n_bytes if isinstance(store, FileStore) and not self.tree.root else None

    def _check_note(self) -> None:
        """Refuse what a later version wrote, and a damaged note.

        Raises
        ------
        FormatError, UnsupportedError
            As said.
        """
        version = self.attributes.get("format_version", FORMAT_VERSION)
        sorted_by, stored = self.attributes.get("sort_by", []), self.attributes.get("stored_bytes", {})
        sizes = stored.values() if isinstance(stored, dict) else [None]
        sound = isinstance(version, int) and isinstance(sorted_by, list)
        if not sound or not all(type(n) is int and n >= 0 for n in sizes):
            msg = f"the attribute {ATTRIBUTE!r} of {self.uri} is damaged; convert again."
            raise FormatError(msg)
        if version > FORMAT_VERSION:
            msg = f"{self.uri} has format version {version}, this package reads up to {FORMAT_VERSION}; update it."
            raise UnsupportedError(msg)

    @property
    def tree(self) -> Tree:
        """The store's nodes."""
        return self._root.tree

    @property
    def attributes(self) -> dict[str, Any]:
        """What this package noted at conversion; empty for other stores."""
        return self.tree.noted()

    @property
    def obs(self) -> TableReader:
        """The table of cells, of a MuData the global one: its columns, read one by one."""
        return self._root.obs

    @property
    def var(self) -> TableReader:
        """The table of genes, of a MuData the global one."""
        return self._root.var

    @property
    def n_obs(self) -> int:
        """The number of cells; of a MuData, those in any modality."""
        return self.obs.n_rows

    @property
    def n_vars(self) -> int:
        """The number of genes; of a MuData, of all modalities."""
        return self.var.n_rows

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self.n_obs, self.n_vars

    @property
    def sort_by(self) -> tuple[str, ...]:
        """Columns by which the rows are stored grouped."""
        return tuple(self.attributes.get("sort_by", ()))

    @property
    def stats(self) -> Stats:
        """Requests and bytes read since the store was opened, metadata left out."""
        return self._root.fetcher.stats

    def __repr__(self) -> str:
        return str(self.info())

    def _repr_html_(self) -> str:
        return self.info().to_html()
