"""A MuData store, taken apart: its global elements and its modalities, each read as an AnnData store.

No request is made for it. Must not know what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from lobster_zarr.dataset import Dataset
from lobster_zarr.dense import read_array
from lobster_zarr.element import StoreReader
from lobster_zarr.errors import FormatError, NotFoundError, did_you_mean
from lobster_zarr.node import Tree
from lobster_zarr.store import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from lobster_zarr.musource import Axis


@dataclass(frozen=True, eq=False)
class MuStore:
    """The parts of one MuData store.

    Parameters
    ----------
    whole
        The global elements: obs, var, obsm, …, obsmap and varmap.
    modalities
        By name, in their order.
    """

    whole: Dataset
    modalities: Mapping[str, Dataset]

    @classmethod
    def of(cls, reader: StoreReader) -> Self:
        """Take a store apart.

        Raises
        ------
        FormatError
            It is not what a MuData store should be.
        """
        tree = reader.tree
        order = tree.attributes("mod").get("mod-order") if "mod" in tree else None
        names = tree.children("mod")
        if order is None and "mod" in tree:
            order = sorted(names)
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
            msg = f"{reader.uri} holds the modalities {names}, and names {order} in 'mod-order'; it is damaged."
            raise FormatError(msg)
        attributes = {**tree.attributes(""), "encoding-type": "anndata"}
        nodes = {p: n for p, n in tree.nodes.items() if p and p != "mod" and not p.startswith("mod/")}
        outline = Tree({"": {**tree.nodes[""], "attributes": attributes}, **nodes}, tree.zarr_format)
        whole = Dataset(StoreReader(reader.fetcher, outline, reader.uri, reader.identity))
        if attributes.get("axis", 0) not in (0, 1, -1):
            msg = f"the attribute 'axis' of {reader.uri} is {attributes['axis']!r}; expected 0, 1 or -1."
            raise FormatError(msg)
        return cls(whole, {name: Dataset(reader.below(f"mod/{name}")) for name in order})

    @property
    def uri(self) -> str:
        """Of the store, without secrets."""
        return self.whole.uri

    @property
    def axis(self) -> Axis:
        """What the modalities share."""
        axis: Axis = self.whole.tree.attributes("").get("axis", 0)
        return axis

    def __getitem__(self, name: str) -> Dataset:
        if name not in self.modalities:
            known = list(self.modalities)
            msg = f"{self.uri} has no modality {name!r}.{did_you_mean(name, known)} It has: {known}"
            raise NotFoundError(msg)
        return self.modalities[name]

    def without_notes(self) -> MuStore:
        """Return the same store as if nothing had been noted of its arrays, with stats of its own."""
        parts = {name: part.without_notes() for name, part in self.modalities.items()}
        return replace(self, whole=self.whole.without_notes(), modalities=parts)

    def positions(self, path: str) -> np.ndarray:
        """Read one array of obsmap or varmap, as it is stored.

        Raises
        ------
        FormatError
            It is not there.
        """
        return run(read_array(self.whole.fetcher, self.whole.tree.array(path)))

    def orders(self, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Read the source row of each stored row: of the global obs and of a modality's; None where it is kept."""
        readers = self.whole.reader, self[name].reader
        first, second = (run(reader.source_order()) if reader.is_sorted else None for reader in readers)
        return first, second
