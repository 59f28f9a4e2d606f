"""What a conversion of a MuData reads: its global elements, and its modalities as AnnData sources.

A MuData is a file, a store, an object in memory, or a dict of AnnDatas that
becomes one. Must not know the destination, nor how an AnnData is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import mudata
import numpy as np
import pandas as pd

from lobster_zarr.errors import FormatError, InvalidArgumentError, UnsupportedError
from lobster_zarr.node import RESERVED_PREFIX
from lobster_zarr.obsmap import misfit
from lobster_zarr.source import Source, check_elements, from_anndata, nested, open_root, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

Axis = Literal[0, 1, -1]
ELEMENTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
"""Global elements that AnnData has too."""
MAPS = {"obsmap": "obs", "varmap": "var"}
type AnySource = str | os.PathLike[str] | ad.AnnData | mudata.MuData | Mapping[str, Any]
"""What can be converted, or compared with."""


@dataclass(frozen=True, eq=False)
class MuSource:
    """One MuData, wherever it lies.

    Parameters
    ----------
    whole
        The global elements.
    modalities
        By name, in their order.
    axis
        What the modalities share: 0, cells; 1, genes; -1, both.
    attributes
        ``encoding-version``, ``encoder`` and ``encoder-version``.
    paths
        Where another process finds a modality; None where it is in memory.
    """

    whole: Source
    modalities: Mapping[str, Source]
    axis: Axis
    attributes: Mapping[str, str]
    paths: Mapping[str, str | os.PathLike[str] | None]

    def positions(self, path: str) -> np.ndarray:
        """Read one array of obsmap or varmap, checked.

        Parameters
        ----------
        path
            ``obsmap/rna``.

        Returns
        -------
        ndarray of int, shape (n_obs,) or (n_vars,)
            Of each global row its row in the modality, from 1 on; 0 where the modality lacks it.

        Raises
        ------
        FormatError
            It is missing, or does not fit.
        """
        kind, _, name = path.partition("/")
        found, source = self.whole.value(path), self.modalities[name]
        expected, n_rows = (len(s.frame(MAPS[kind]).index) for s in (self.whole, source))
        where = f"{path!r} of {self.whole.name}"
        if found is None:
            msg = f"{where} is missing: no reader could align {name!r}. Re-save it with a current mudata."
            raise FormatError(msg)
        values = np.asarray(found)
        wrong = misfit(values, expected, n_rows)
        if wrong is not None:
            msg = f"{where} {wrong}; make the names unique and call update(), or re-save it with a current mudata."
            raise FormatError(msg)
        return values


@contextmanager
def open_any(
    source: AnySource,
    storage_options: Mapping[str, Any] | None = None,
    *,
    memory_limit_bytes: int,
    checksum: bool = True,
    axis: Axis | None = None,
) -> Iterator[Source | MuSource]:
    """Open what is to be converted, an AnnData or a MuData; metadata only.

    Parameters
    ----------
    source
        As of `lobster_zarr.convert`.
    storage_options, memory_limit_bytes, checksum
        As of `open_source`.
    axis
        What the modalities of a dict share; None for the cells, and for what is a MuData already.

    Raises
    ------
    FormatError
        Neither AnnData nor MuData, or not whole.
    UnsupportedError
        It is backed, lazy or nested, or holds elements that are not known.
    """
    if axis not in (None, 0, 1, -1):
        msg = f"axis is {axis!r}; expected 0, 1 or -1."
        raise InvalidArgumentError(msg)
    if axis is not None and not isinstance(source, Mapping):
        msg = "axis is for a dict of modalities; what is a MuData already has its own."
        raise InvalidArgumentError(msg)
    with ExitStack() as stack:
        opened: Source | MuSource
        if isinstance(source, mudata.MuData):
            opened = _from_mudata(source)
        elif isinstance(source, Mapping):
            opened = _from_dict(stack, source, storage_options, memory_limit_bytes, axis=axis or 0, checksum=checksum)
        else:
            opening = open_root(source, storage_options, memory_limit_bytes=memory_limit_bytes, checksum=checksum)
            opened = stack.enter_context(opening)
            if opened.is_multimodal:
                opened = _from_root(opened, os.fspath(source))  # type: ignore[arg-type]  # an AnnData is none
        _check(opened)
        yield opened


def _from_mudata(data: mudata.MuData) -> MuSource:
    name = "the MuData in memory"
    if data.isbacked:
        msg = f"the MuData is backed by {data.filename}; pass that path instead."
        raise UnsupportedError(msg)
    found = {}
    for key, adata in data.mod.items():
        if isinstance(adata, mudata.MuData):
            raise UnsupportedError(nested(key, name))
        found[key] = replace(from_anndata(adata), name=f"{name}/mod/{key}", at=f"mod/{key}/")
    root: dict[str, Any] = {"obs": data.obs, "var": data.var}
    root |= {key: dict(getattr(data, key)) for key in (*ELEMENTS[2:], *MAPS)}
    return MuSource(Source(name, None, root), found, int(data.axis), _written_here(), dict.fromkeys(found))  # type: ignore[arg-type]


def _written_here() -> dict[str, str]:
    return {
        "encoding-version": mudata.__mudataversion__,
        "encoder": "lobster_zarr",
        "encoder-version": version("lobster_zarr"),
    }


def _from_root(root: Source, path: str) -> MuSource:
    """Take a file or store that is a MuData."""
    for kind in MAPS:
        if kind not in root:
            msg = f"{root.name} has no {kind!r}; it is damaged, or of an old muon: re-save it with a current mudata."
            raise FormatError(msg)
    mod: Any = root.root.get("mod", {})
    attributes: dict[str, Any] = dict(root.root.attrs)
    names = sorted(str(name) for name in mod)
    order = [str(name) for name in mod.attrs["mod-order"]] if "mod-order" in getattr(mod, "attrs", {}) else names
    if sorted(order) != names:
        msg = f"'mod-order' of {root.name} names {order}, but it holds {names}; re-save it with a current mudata."
        raise FormatError(msg)
    found = {name: root.modality(name) for name in order}
    axis, stem = attributes.get("axis", 0), path.rstrip("/")
    if axis not in (0, 1, -1):
        msg = f"the attribute 'axis' of {root.name} is {axis!r}; expected 0, 1 or -1."
        raise FormatError(msg)
    noted = {key: str(attributes.get(key, default)) for key, default in _written_here().items()}
    return MuSource(root, found, int(axis), noted, {name: f"{stem}/mod/{name}" for name in found})  # type: ignore[arg-type]


def _from_dict(
    stack: ExitStack,
    parts: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    limit: int,
    *,
    axis: Axis,
    checksum: bool,
) -> MuSource:
    """Take AnnDatas as modalities; what is global is what mudata makes of their names."""
    found, paths = {}, {}
    for name, part in parts.items():
        if isinstance(part, mudata.MuData | Mapping):
            raise UnsupportedError(nested(name, "the dict"))
        opening = open_source(part, options, memory_limit_bytes=limit, checksum=checksum)
        found[name] = replace(stack.enter_context(opening), at=f"mod/{name}/")
        paths[name] = None if isinstance(part, ad.AnnData) else part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are not unique mudata warns whoever reads them
        named = mudata.MuData({name: _names_of(source) for name, source in found.items()}, axis=axis)
    sizes = [source.n_bytes for source in found.values()]
    known = [n for n in sizes if n is not None]
    title = ", ".join(f"{name}={source.name}" for name, source in found.items())
    whole = replace(_from_mudata(named).whole, name=title, n_bytes=sum(known) if len(known) == len(sizes) else None)
    return MuSource(whole, found, axis, _written_here(), paths)


def _names_of(source: Source) -> ad.AnnData:
    """Make an AnnData that has the names of cells and genes, and nothing else."""
    frames = (source.frame("obs"), source.frame("var"))
    obs, var = (pd.DataFrame(index=pd.Index(frame.index, name=frame.index_name)) for frame in frames)
    return ad.AnnData(obs=obs, var=var)


def _check(opened: Source | MuSource) -> None:
    if isinstance(opened, Source):
        check_elements(opened)
        return
    check_elements(opened.whole, (*ELEMENTS, *MAPS, "mod"))
    for name, source in opened.modalities.items():
        unfit = not isinstance(name, str) or "/" in name or name in {"", ".", "..", "zarr.json"}  # type: ignore[redundant-expr]
        if unfit or name.startswith(RESERVED_PREFIX):
            msg = f"a modality of {opened.whole.name} has the name {name!r}, which cannot be stored; rename it."
            raise UnsupportedError(msg)
        check_elements(source)
