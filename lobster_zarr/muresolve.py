"""Resolves predicates over a MuData: columns and features of any modality, ``prot:CD3 > 2 and rna:n_counts > 500``.

Must not know how matrices lie, nor what is read for the rows that are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, override

from lobster_zarr._clause import Names
from lobster_zarr._feature import Feature
from lobster_zarr.errors import NotFoundError
from lobster_zarr.features import Found, find, read_features
from lobster_zarr.fetch import together
from lobster_zarr.joined import taken
from lobster_zarr.resolve import Resolver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lobster_zarr.grid import Runs
    from lobster_zarr.joined import JoinedTable, MultimodalReader
    from lobster_zarr.projection import Order


class JointResolver(Resolver):
    """Resolves the selectors of one selection of a MuData.

    Parameters
    ----------
    data
        The store.
    order
        Of the result.
    obs
        The global table, joined with those of the modalities.
    parts
        The resolver of each modality, which keeps what is read of its names.
    """

    def __init__(self, data: MultimodalReader, order: Order, obs: JoinedTable, parts: Mapping[str, Resolver]) -> None:
        super().__init__(data.root, order)
        self.obs, self.parts = obs, parts

    @override
    async def feature(self, spelled: str, columns: Names) -> Found:
        owner = max((m for m in self.parts if spelled.startswith((f"{m}:", f"{m}."))), key=len, default="")
        name = spelled[len(owner) + 1 :]
        if not owner or not name:
            owned = [f"{m}:{spelled}" for m in self.parts if f"{m}:{spelled}" in columns.kinds]
            example = (
                f"; write {' or '.join(owned)}" if owned else f"; those of a modality are {next(iter(self.parts))}:…"
            )
            raise columns.unknown(spelled, example)
        part = self.parts[owner]
        own = Names({c: part.reader.obs.kind(c) for c in part.reader.obs.columns}, columns.index, f"{owner}:obs")
        try:
            return await part.feature(name, own)
        except NotFoundError:
            # Names of features often begin with that of their modality.
            found = find(part.reader, Feature("X", f"{owner}:{name}"), await part.feature_names("X"))
            if found is None:
                raise
            return found

    @override
    async def read_features(self, wanted: Sequence[Found], rows: Runs | None) -> dict[Found, Any]:
        groups = {name: [found for found in wanted if found.reader is part.reader] for name, part in self.parts.items()}
        read = await together(*(self._read(name, group, rows) for name, group in groups.items() if group))
        return {found: values for part in read for found, values in part.items()}

    async def _read(self, modality: str, wanted: Sequence[Found], rows: Runs | None) -> dict[Found, Any]:
        own, placed = await self.obs.located(modality, rows)
        read = await read_features(wanted, own)
        return {found: v if placed is None else taken(v, placed) for found, v in read.items()}
