"""A MuData on its way to a store: its global elements, and its modalities one after another.

All are checked before anything is written; the root is one commit point for
all. Rows keep their order in obs and in every modality, or all follow the
global obs, or a modality follows columns of its own: obsmap is written as the
rows are stored. Must not know how an AnnData is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.conversion import MISSING, Conversion
from lobster_zarr.errors import NotFoundError, did_you_mean
from lobster_zarr.layout import ALIGNED
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.obsmap import follow, is_aligned, to_stored
from lobster_zarr.stage import stage
from lobster_zarr.write import write_staged

if TYPE_CHECKING:
    from lobster_zarr.cluster import Crew
    from lobster_zarr.commit import Commit
    from lobster_zarr.conversion import GeneMajor, Staged
    from lobster_zarr.layout import CodecProfile
    from lobster_zarr.musource import MuSource
    from lobster_zarr.report import Progress
    from lobster_zarr.scratch import Scratch

ABSENT = MISSING + 1
"""Sort key of a cell that the modality lacks: after all others."""
DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
GROUPS = ("obsm", "varm", "obsp", "varp", "uns")
"""Written also where they are empty, as mudata does."""


@dataclass(eq=False)
class MuConversion:
    """One conversion of a MuData under way."""

    source: MuSource
    scratch: Scratch
    sort_by: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    codec: CodecProfile
    gene_major: GeneMajor | Mapping[str, GeneMajor]
    limit_bytes: int
    progress: Progress

    def __post_init__(self) -> None:
        sort_keys, gene_major = self._own_sort_keys(), self._own_gene_major()
        common: dict[str, Any] = {"scratch": self.scratch, "codec": self.codec, "limit_bytes": self.limit_bytes}
        keys = () if isinstance(self.sort_by, Mapping) else self.sort_by
        whole = self.source.whole
        self.whole = Conversion(whole, sort_by=keys, gene_major=False, progress=self.progress, **common)
        self.parts: dict[str, Conversion] = {}
        for name, source in self.source.modalities.items():
            own: dict[str, Any] = {"sort_by": tuple(sort_keys[name]), "gene_major": gene_major[name]}
            self.parts[name] = Conversion(source, progress=self.progress.of(name), **own, **common)
        self.obsmaps = {name: self.source.positions(f"obsmap/{name}") for name in self.parts}
        self.varmaps = {name: self.source.positions(f"varmap/{name}") for name in self.parts}

    @property
    def sizes(self) -> dict[str, int]:
        """Encoded bytes by array path, of all that is written."""
        parts = ((f"mod/{name}/{path}", n) for name, part in self.parts.items() for path, n in part.sizes.items())
        return self.whole.sizes | dict(parts)

    @property
    def companions(self) -> list[str]:
        """Matrices that are stored by gene too: ``rna:X``."""
        return [f"{name}:{path}" for name, part in self.parts.items() for path in part.companions]

    @property
    def sorted_by(self) -> tuple[str, ...]:
        """Columns that rows are sorted by."""
        if not isinstance(self.sort_by, Mapping):
            return self.sort_by
        return tuple(f"{name}:{column}" for name, columns in self.sort_by.items() for column in columns)

    def _split(self, text: str) -> tuple[str, str] | None:
        """Split ``rna:cell_type``, None where it begins with no modality."""
        names = [name for name in self.source.modalities if text.startswith(f"{name}:")]
        longest = max(names, key=len, default=None)
        return None if longest is None else (longest, text[len(longest) + 1 :])

    def _known(self, name: str, option: str) -> None:
        if name not in self.source.modalities:
            known = list(self.source.modalities)
            msg = f"{option} names the modality {name!r}.{did_you_mean(name, known)} There are: {known}"
            raise NotFoundError(msg)

    def _own_sort_keys(self) -> dict[str, list[str]]:
        """Columns of its own that the rows of each modality are grouped by."""
        if isinstance(self.sort_by, Mapping):
            for name in self.sort_by:
                self._known(name, "sort_by")
            return {name: list(self.sort_by.get(name, ())) for name in self.source.modalities}
        found: dict[str, list[str]] = {name: [] for name in self.source.modalities}
        for name, own in found.items():
            for key in self.sort_by:  # from the first on: by what comes after another key, rows are not grouped
                split = self._split(key)
                if split is None or split[0] != name or key in self.source.whole.frame("obs").columns:
                    break
                own.append(split[1])
        return found

    def _own_gene_major(self) -> dict[str, GeneMajor]:
        given = self.gene_major
        if isinstance(given, Mapping):
            for name in given:
                self._known(name, "gene_major")
            return {name: given.get(name, "auto") for name in self.source.modalities}
        if given == "auto" or isinstance(given, bool):
            return dict.fromkeys(self.source.modalities, given)
        named: dict[str, list[str]] = {name: [] for name in self.source.modalities}
        for text in (given,) if isinstance(given, str) else given:
            split = self._split(text)
            if split is None:
                offers = [f"{name}:{text}" for name in named]
                msg = f"gene_major names {text!r} without its modality; expected one of {offers}."
                raise NotFoundError(msg)
            named[split[0]].append(split[1])
        return dict(named)

    def prepare(self) -> dict[str, Staged]:
        """Check everything, find the order of the rows, and encode what is not streamed; by modality, "" the global.

        Whatever cannot be kept is refused here, before the destination is touched.
        """
        if isinstance(self.sort_by, Mapping):
            for part in self.parts.values():
                part.order = np.lexsort([part.sort_key(c) for c in part.sort_by][::-1]) if part.sort_by else None
        elif self.sort_by:
            self.whole.order = np.lexsort([self._sort_key(key) for key in self.sort_by][::-1])
            for name, part in self.parts.items():
                part.order = follow(self.obsmaps[name], self.whole.order, part.n_obs)
        return {"": self.whole.stage(), **{name: part.stage() for name, part in self.parts.items()}}

    def _sort_key(self, key: str) -> np.ndarray:
        """Return a global column, or one of a modality, as numbers that sort as its values do."""
        columns, split = self.source.whole.frame("obs").columns, self._split(key)
        if key in columns or (split is None and not self._holders(key)):
            return self.whole.sort_key(key)
        if split is None:
            offers = " or ".join(repr(f"{name}:{key}") for name in self._holders(key))
            msg = f"cannot sort by {key!r}: the global obs has no such column. Did you mean {offers}?"
            raise NotFoundError(msg)
        name, column = split
        at = self.obsmaps[name].ravel().astype(np.int64)
        keys = np.full(self.whole.n_obs, ABSENT)
        keys[at > 0] = self.parts[name].sort_key(column)[at[at > 0] - 1]
        return keys

    def _holders(self, column: str) -> list[str]:
        return [name for name, part in self.source.modalities.items() if column in part.frame("obs").columns]

    def _n_rows(self, kind: str, name: str) -> int:
        return self.parts[name].n_obs if kind == "obsmap" else self.parts[name].n_vars

    def write(self, commit: Commit, staged: Mapping[str, Staged], crews: Mapping[str, Crew | None]) -> None:
        """Write every modality, then the root; a modality's sparse matrices with its crew, where there is one."""
        self.whole.write_elements(commit, staged[""])
        for group in GROUPS:
            if not any(path.split("/")[0] == group for path in (*staged[""], *self.whole.sizes)):
                commit.group(group, DICT)
        obsmaps = {
            name: to_stored(self.obsmaps[name], self.whole.order, part.order) for name, part in self.parts.items()
        }
        for kind, maps in (("obsmap", obsmaps), ("varmap", self.varmaps)):
            commit.group(kind, DICT)
            for name, values in maps.items():
                path = f"{kind}/{name}"
                self.whole.sizes |= write_staged(commit, path, stage(values, path), self.codec)
                commit.note(path, {ALIGNED: True} if is_aligned(values, self._n_rows(kind, name)) else {})
        commit.group("mod", {"mod-order": list(self.parts)})
        for name, part in self.parts.items():
            crew = crews.get(name)
            with crew or nullcontext():
                part.write(commit.below(f"mod/{name}"), staged[name], crew)
        noted = self.whole.note(self.source.whole) | {"stored_bytes": self.sizes}
        attributes = {"encoding-type": "MuData", **self.source.attributes, "axis": self.source.axis}
        commit.finish(attributes | {ATTRIBUTE: noted})
