"""Checks a MuData store: each modality as an AnnData, the global elements, and the maps between them.

Must not know how an AnnData is checked: that is :mod:`lobster_zarr.verification`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lobster_zarr.errors import VerificationError
from lobster_zarr.layout import ALIGNED
from lobster_zarr.obsmap import is_aligned, misfit, to_stored
from lobster_zarr.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.cluster import Crew
    from lobster_zarr.multimodal import MultimodalDataset
    from lobster_zarr.musource import MuSource
    from lobster_zarr.report import Progress


@dataclass(eq=False)
class MuVerification:
    """One verification of a MuData store under way.

    Parameters
    ----------
    noted
        The store as it is.
    progress
        Shows each matrix.
    crews
        By modality.
    """

    noted: MultimodalDataset
    progress: Progress
    crews: Mapping[str, Crew | None]

    def __post_init__(self) -> None:
        self.data = self.noted.without_notes()
        self.whole = Verification(self.data.whole, self.progress)
        self.parts = {
            name: Verification(part, self.progress.of(name), self.crews.get(name))
            for name, part in self.data.modalities.items()
        }

    @property
    def n_arrays(self) -> int:
        """Arrays that were read."""
        return sum(len(check.read) for check in (self.whole, *self.parts.values()))

    @property
    def n_bytes(self) -> int:
        """Encoded bytes that were read."""
        return self.data.stats.n_bytes + sum(check.n_bytes for check in self.parts.values())

    @property
    def compared(self) -> list[str]:
        """Elements found equal to the source, by full path."""
        parts = [f"mod/{name}/{path}" for name, check in self.parts.items() for path in check.compared]
        return self.whole.compared + parts

    def check(self, source: MuSource | None) -> None:
        """Check the store, and compare it with a source, where there is one."""
        if source is not None:
            self._outline(source)
        self.whole.store()
        self.whole.notes(self.noted.whole)
        self._maps()
        for name, check in self.parts.items():
            with check.crew or nullcontext():
                check.store()
                check.notes(self.noted[name])
                if source is not None:
                    check.source(source.modalities[name])
        if source is not None:
            self.whole.source(source.whole)
            self._compare_maps(source)

    def _fail(self, message: str) -> None:
        msg = f"{self.data.uri}: {message}"
        raise VerificationError(msg)

    def _outline(self, source: MuSource) -> None:
        found, expected = list(self.parts), list(source.modalities)
        if found != expected:
            self._fail(f"it has the modalities {found}, the source {expected}.")
        if self.data.axis != source.axis:
            self._fail(f"its axis is {self.data.axis}, that of the source {source.axis}.")

    def _maps(self) -> None:
        whole = self.data.whole
        for kind, n_all in (("obsmap", whole.n_obs), ("varmap", whole.n_vars)):
            found = sorted(whole.tree.children(kind))
            if found != sorted(self.parts):
                self._fail(f"{kind!r} has arrays for {found}; expected one for each modality, {sorted(self.parts)}.")
            for name, check in self.parts.items():
                n_rows = check.data.n_obs if kind == "obsmap" else check.data.n_vars
                positions = self.data.reader.stored_map(f"{kind}/{name}")
                wrong = misfit(positions, n_all, n_rows)
                if wrong is not None:
                    self._fail(f"'{kind}/{name}' {wrong}.")
                noted = self.noted.tree.array(f"{kind}/{name}").note.entries.get(ALIGNED, False)
                if noted and not is_aligned(positions, n_rows):
                    self._fail(f"what the metadata of '{kind}/{name}' says of it differs from what it holds.")

    def _compare_maps(self, source: MuSource) -> None:
        for name in self.parts:
            order, part_order = self.data.reader.orders(name)
            rows = to_stored(source.positions(f"obsmap/{name}"), order, part_order)
            for path, expected in ((f"obsmap/{name}", rows), (f"varmap/{name}", source.positions(f"varmap/{name}"))):
                stored = self.data.reader.stored_map(path)
                if stored.dtype != expected.dtype or not np.array_equal(stored, expected):
                    self._fail(f"{path!r} differs from the source.")
                self.whole.compared.append(path)
