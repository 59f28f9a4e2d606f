"""Lobster AI's modality adapter for stores: ``load_modality(…, adapter="s3_zarr")`` reads a subset, not a download.

Knows Lobster AI's adapter interface. Must not know its data manager.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, override

import numpy as np
import polars as pl
from lobster.core.adapters.base import BaseAdapter

from lobster_zarr.address import KeptOptions
from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.lobster_files import ZarrDataBackend
from lobster_zarr.location import Location, display_uri
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.packing import unpack
from lobster_zarr.predicate import evaluate, parse, to_polars

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

ADAPTER = "s3_zarr"
OPTIONS = ("obs_filter", "where", "features", "modality", "layers", "obsm", "obsp")

logger = logging.getLogger(__name__)


class ZarrAdapter(BaseAdapter):  # type: ignore[misc]  # its package is not there where types are checked
    """Loads modalities from stores, of their cells and features those that are asked for.

    What it returns is what is stored: no column is added, nothing is normalised.

    Parameters
    ----------
    storage_options
        As for :func:`lobster_zarr.open`. None: the environment's credentials, which are also those of a
        notebook that replays the load.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name=ADAPTER)
        self._options = KeptOptions(storage_options)

    @override
    def from_source(self, source: Any, **options: Any) -> ad.AnnData:
        """Read a modality, or the part of it that the options name.

        Parameters
        ----------
        source
            URI or path of an AnnData-Zarr or MuData-Zarr store, of which only that part is read; or of an
            ``.h5ad``, which is read whole; or an AnnData in memory.
        **options
            Plain values, because Lobster AI records them to replay the load:

            ``obs_filter``
                ``{"cell_type": "T cell"}``; a list of values means one of them.
            ``where``
                A predicate as text, such as ``"n_counts > 500 and cell_type == 'T cell'"``. With
                `obs_filter`, both must hold.
            ``features``
                Names, in the order that is wanted; or a predicate on var as text. None or empty: all.
            ``modality``
                Which one, of a MuData store.
            ``layers``, ``obsm``, ``obsp``
                Names of those to read; all of them where they are not given.

        Returns
        -------
        AnnData
            In memory; rows in the order of the source.

        Raises
        ------
        NotFoundError
            No such store, column, feature or modality; near names are offered.
        InvalidArgumentError
            An unknown option, credentials among them, or a source whose URI holds a signature.
        """
        _check(options)
        if not isinstance(source, str | os.PathLike):
            return _subset(_in_memory(source), options)
        _check_source(source)
        if display_uri(source).lower().endswith(".h5ad"):
            return self._from_file(source, options)
        opened = open_dataset(source, self._options.given())
        modality = options.get("modality")
        if not isinstance(opened, Dataset):
            if modality is None:
                msg = f"{opened.uri} is a MuData store; name one of its modalities: modality={list(opened.modalities)}."
                raise InvalidArgumentError(msg)
            return select(opened[modality], options)
        if modality is not None:
            msg = f"{opened.uri} is an AnnData store; modality={modality!r} is for a MuData store."
            raise InvalidArgumentError(msg)
        return select(opened, options)

    def _from_file(self, source: str | os.PathLike[str], options: Mapping[str, Any]) -> ad.AnnData:
        if options.get("modality") is not None:
            msg = f"{display_uri(source)} is an .h5ad; modality={options['modality']!r} is for a MuData store."
            raise InvalidArgumentError(msg)
        return _subset(ZarrDataBackend(None, self._options.given()).load(source), options)

    @override
    def get_supported_formats(self) -> list[str]:
        """Return the endings of names that it reads."""
        return ["zarr", "h5ad"]

    @override
    def get_modality_name(self) -> str:
        """Return the name under which it is registered."""
        return ADAPTER

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def select(dataset: Dataset, options: Mapping[str, Any]) -> ad.AnnData:
    """Read a part of a store: see :meth:`ZarrAdapter.from_source`."""
    obs_filter, where = options.get("obs_filter"), options.get("where")
    rows: Any = where or obs_filter or None
    if where and obs_filter:
        kinds = {name: dataset.obs.kind(name) for name in dataset.obs.columns}
        rows = _both(where, obs_filter, kinds)
    features = options.get("features") or None
    elements = {name: options[name] for name in ("layers", "obsm", "obsp") if options.get(name) is not None}
    chosen = dataset.query(rows, features if isinstance(features, str | None) else list(features), **elements)
    adata: ad.AnnData = unpack(chosen.to_memory(progress=False))
    for note in chosen.notes:
        logger.warning("%s: %s", dataset.uri, note)
    return adata


def _both(where: str, obs_filter: Mapping[str, Any], columns: Mapping[str, str] | Sequence[str]) -> pl.Expr:
    index = "_index" if "index" in columns else "index"
    parsed = [parse(given, columns, index=index) for given in (where, obs_filter)]
    return pl.all_horizontal(*(p.expression.fill_null(value=False) for p in parsed))


def _subset(adata: ad.AnnData, options: Mapping[str, Any]) -> ad.AnnData:
    """Return of an AnnData in memory what a store would give; the whole one as it is."""
    for name in ("layers", "obsm", "obsp"):
        if options.get(name) is not None:
            msg = f"{name}= is for stores; an .h5ad or an AnnData comes with all it has."
            raise UnsupportedError(msg)
    rows = _mask(adata.obs, [g for g in (options.get("obs_filter"), options.get("where")) if g], "obs")
    features = options.get("features") or None
    if isinstance(features, str):
        columns: Any = _mask(adata.var, [features], "var")
    elif features is None:
        columns = None
    else:
        columns = list(features)
        for name in columns:
            if name not in adata.var_names:
                msg = f"there is no feature {name!r}.{did_you_mean(name, adata.var_names)}"
                raise NotFoundError(msg)
    if rows is None and columns is None:
        return adata
    return adata[slice(None) if rows is None else rows, slice(None) if columns is None else columns].copy()


def _mask(frame: pd.DataFrame, conditions: Sequence[Any], axis: str) -> np.ndarray | None:
    masks = []
    index = "_index" if "index" in frame.columns else "index"
    for given in conditions:
        parsed = parse(given, list(frame.columns), index=index, axis=axis)
        values = {c: (frame[c] if c in frame.columns else frame.index).array for c in parsed.columns}
        table = pl.DataFrame([to_polars(c, v) for c, v in values.items()] or {"_": np.zeros(len(frame), bool)})
        masks.append(evaluate(parsed, table))
    return np.logical_and.reduce(masks) if masks else None


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what is no option, before a provenance record could hold it."""
    for name in options:
        if name not in OPTIONS:
            remedy = f"{did_you_mean(name, OPTIONS)} Options: {list(OPTIONS)}"
            if name in {"storage_options", "key", "secret", "token", "client_kwargs", "profile", "endpoint_url"}:
                remedy = " Pass credentials to lobster_zarr.lobster.attach, or in the environment: Lobster AI records "
                remedy += "what load_modality is given."
            msg = f"the adapter {ADAPTER!r} has no option {name!r}.{remedy}"
            raise InvalidArgumentError(msg)
    for name, kind, told in (("obs_filter", Mapping, "a dict"), ("where", str, "text")):
        if options.get(name) is not None and not isinstance(options[name], kind):
            msg = f"{name} is a {type(options[name]).__name__}, expected {told}."
            raise InvalidArgumentError(msg)


def _check_source(source: str | os.PathLike[str]) -> None:
    if Location.of(source).is_secret:
        msg = (
            f"the URI of {display_uri(source)} holds a signature or password, which Lobster AI would record. Pass "
            "credentials to lobster_zarr.lobster.attach, or in the environment."
        )
        raise InvalidArgumentError(msg)


def _in_memory(source: Any) -> ad.AnnData:
    import anndata as ad

    if not isinstance(source, ad.AnnData):
        msg = f"the source is a {type(source).__name__}; expected the URI or path of a store or .h5ad, or an AnnData."
        raise InvalidArgumentError(msg)
    return source
