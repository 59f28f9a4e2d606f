"""Lobster AI's workspace of modalities over a folder or a bucket's prefix of stores: ``<name>.zarr`` each.

Knows Lobster AI's interface of modality backends. Must not know its data manager.
"""

from __future__ import annotations

import datetime as dt
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, override

from lobster.core.backends.modality_backend import ModalityMetadata, WorkspaceModalityBackend

from lobster_zarr.address import KeptOptions
from lobster_zarr.convert import convert
from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.export import export
from lobster_zarr.layout import CODEC_PROFILES, CodecProfile
from lobster_zarr.lobster_adapter import select
from lobster_zarr.lobster_files import ZarrDataBackend
from lobster_zarr.lobster_record import ATTRIBUTE, ListedModality, Listing, record_of
from lobster_zarr.location import check_key
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.packing import PACKED, pack, unpacked_uns
from lobster_zarr.place import is_s3, place
from lobster_zarr.removal import remove
from lobster_zarr.store import display_uri, is_local, open_store, run

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import anndata as ad
    import pandas as pd
    from lobster.core.backends.modality_backend import ModalityRecord
    from zarr.abc.store import Store


SUFFIX = ".zarr"
ROOTS = ("zarr.json", ".zgroup")


class ZarrModalityBackend(WorkspaceModalityBackend):  # type: ignore[misc]  # as ListedModality
    """A workspace whose modalities are stores below one folder or prefix.

    Attached with ``dm.set_modality_backend(backend, cache_cap=8)``, or by :func:`lobster_zarr.lobster.attach`.
    Keeps nothing open and nothing in memory: what another process ingests is there at the next call.

    Parameters
    ----------
    uri
        ``s3://bucket/prefix`` or a local folder.
    storage_options
        As for :func:`lobster_zarr.open`. Neither the text nor the pickle of the backend holds them.
    codec
        Of what is ingested: ``"small"``, ``"fast"`` or ``"compatible"``.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        codec: CodecProfile = "small",
    ) -> None:
        if codec not in CODEC_PROFILES:
            raise InvalidArgumentError(f"unknown codec {codec!r}; expected one of {', '.join(CODEC_PROFILES)}.")
        self.uri, self.codec = display_uri(uri), codec
        self._options = KeptOptions(storage_options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def locate(self, name: Any) -> str:
        """Return the URI of a modality's store, whether it is there or not.

        Raises
        ------
        InvalidArgumentError
            The name cannot be that of a folder.
        """
        if not isinstance(name, str) or not name or "/" in name or name.startswith(".") or "\0" in name:
            msg = f"{name!r} cannot be the name of a modality; expected text without slashes that opens with no dot."
            raise InvalidArgumentError(msg)
        check_key(name)
        return str(Path(self.uri, name + SUFFIX)) if is_local(self.uri) else posixpath.join(self.uri, name + SUFFIX)

    def _store(self, name: str) -> Store:
        return open_store(self.locate(name), self._options.given())

    def _names(self) -> list[str]:
        if is_local(self.uri) and not Path(self.uri).exists():
            return []
        store = open_store(self.uri, self._options.given())

        async def listed() -> list[str]:
            return [name async for name in store.list_dir("")]

        found = (name.rstrip("/") for name in run(listed()))
        return sorted(n.removesuffix(SUFFIX) for n in found if n.endswith(SUFFIX) and not n.startswith("."))

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"there is no modality {name!r} in {self.uri}.{did_you_mean(name, self._names())}")

    def _open(self, name: str) -> Dataset:
        where = self.locate(name)
        try:
            opened = open_dataset(where, self._options.given())
        except NotFoundError as error:
            raise self._missing(name) from error
        if isinstance(opened, Dataset):
            return opened
        msg = f"{opened.uri} is a MuData store; load one of its modalities: load_modality(…, {where!r}, modality=…)."
        raise UnsupportedError(msg)

    @override
    def list_modalities(self) -> list[ModalityRecord]:
        """List the modalities by name: one request.

        Returns
        -------
        list of ModalityRecord
            Their sizes are read, of all at once, when one is first asked for. A modality whose
            ingestion was broken off has none, and ``processing_step`` is ``"unfinished"``.
        """
        names = self._names()
        listing = Listing(names, self._store)
        return [ListedModality(name, listing) for name in names]

    @override
    def get_metadata(self, name: str) -> ModalityMetadata:
        """Describe a modality: one request.

        Raises
        ------
        NotFoundError
            There is none of this name; it is a KeyError.
        """
        dataset = self._open(name)
        record, known = record_of(name, dataset.tree), dataset.info()
        aside = dataset.tree.attributes("").get(ATTRIBUTE, {}).get("uns_keys", [])
        return ModalityMetadata(
            name=name,
            n_obs=record.n_obs,
            n_vars=record.n_vars,
            omics_type=record.omics_type,
            obs_columns={column: _dtype(told) for column, told in known.obs.items()},
            var_columns={column: _dtype(told) for column, told in known.var.items()},
            layers=dataset.layers,
            obsm_keys=dataset.obsm,
            uns_keys=sorted({*known.uns, *aside} - {PACKED}),
            storage_size_bytes=record.storage_size_bytes,
            created_at=record.created_at,
        )

    @override
    def query_obs(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> pd.DataFrame:
        """Read rows of obs: only the columns that are named, and without a filter only these rows.

        Parameters
        ----------
        name
            Of the modality.
        columns
            Names; None or empty for all.
        filters
            ``{"cell_type": "T cell"}``; a list of values means one of them. Several must all hold.
        limit, offset
            How many rows at most, and how many to pass over first.

        Raises
        ------
        NotFoundError
            There is no such modality or column.
        InvalidArgumentError
            `limit` or `offset` is negative.
        """
        for option, value in (("limit", limit), ("offset", offset)):
            if value is not None and value < 0:
                raise InvalidArgumentError(f"{option} is {value!r}, expected a whole number from 0 on.")
        dataset, window = self._open(name), slice(offset, None if limit is None else offset + limit)
        wanted = list(columns) if columns else None
        rows = dict(filters) if filters else slice(*window.indices(dataset.n_obs))
        frame = dataset.query(rows, obs_columns=wanted).to_pandas(progress=False)
        return frame.iloc[window] if filters else frame

    @override
    def materialize_anndata(
        self, name: str, obs_filter: Mapping[str, Any] | None = None, features: Sequence[str] | None = None
    ) -> ad.AnnData:
        """Read a modality, or the cells and features that are asked for, into memory.

        Parameters
        ----------
        name
            Of the modality.
        obs_filter
            As `filters` of :meth:`query_obs`; None or empty for all cells.
        features
            Names, in the order that is wanted; None or empty for all.

        Raises
        ------
        NotFoundError
            There is no such modality, column or feature.
        """
        return select(self._open(name), {"obs_filter": obs_filter, "features": features})

    @override
    def ingest_anndata(self, name: str, adata: ad.AnnData, spec: Any = None) -> None:
        """Store a modality; one of that name is replaced.

        Parameters
        ----------
        name
            Of the modality.
        adata
            In memory; it is not changed. What AnnData cannot encode is kept: see :mod:`lobster_zarr.packing`.
        spec
            A ``ModalitySpec``: its omics type is noted. X is stored as it is, sparse or dense.

        Raises
        ------
        UnsupportedError
            Something cannot be kept; what was there is there still.
        """
        lineage = adata.uns.get("lineage")
        lineage = lineage if isinstance(lineage, Mapping) else {}
        known: dict[str, Any] = {
            "created_at": dt.datetime.now(dt.UTC).isoformat(),
            "uns_keys": list(map(str, adata.uns)),
        }
        known["omics_type"] = getattr(spec, "omics_type", "unknown")
        known |= {key: str(lineage[key]) for key in ("parent_modality", "processing_step") if lineage.get(key)}
        convert(
            pack(adata),
            self.locate(name),
            codec=self.codec,
            overwrite=True,
            storage_options=self._options.given(),
            progress=False,
            client=False,
            attributes={ATTRIBUTE: known},
        )

    @override
    def export_h5ad(self, name: str, target: str | os.PathLike[str]) -> Path:
        """Write a modality to an ``.h5ad`` file as Lobster AI writes it itself, in bounded memory.

        What of uns AnnData cannot encode becomes text, as Lobster AI's own backend has it. An S3 URI, as
        ``save_modality`` hands it on, is saved as :class:`ZarrDataBackend` saves it.

        Raises
        ------
        NotFoundError
            There is no such modality.
        """
        path = Path(target)
        if is_s3(path):
            ZarrDataBackend(None, self._options.given()).save(self.materialize_anndata(name), path)
            return path
        part = path.with_name(f".{path.name}.h5ad")
        try:
            export(self._open(name), part, overwrite=True, progress=False)
            _as_lobster_writes(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @override
    def remove(self, name: str) -> None:
        """Delete a modality, its root first: from then on it does not open.

        Raises
        ------
        NotFoundError
            There is no such modality.
        """
        if not self.exists(name):
            raise self._missing(name)
        remove(place(self.locate(name)), self._options.given())

    @override
    def exists(self, name: str) -> bool:
        """Whether there is a modality of this name: one request."""
        try:
            store = self._store(name)
        except NotFoundError:
            return False
        return any(run(store.exists(root)) for root in ROOTS)


def _dtype(told: str) -> str:
    """Return a column's dtype, as pandas names it, of what a description tells: ``category (5)``, ``int64?``."""
    name = told.partition(" (")[0]
    if not name.endswith("?"):
        return name
    return {"bool?": "boolean"}.get(name, name[:-1].replace("int", "Int").replace("uI", "UI"))


def _as_lobster_writes(path: Path) -> None:
    """Put back, in an .h5ad, what its uns holds as JSON text, in the form that Lobster AI gives it in a file."""
    import h5py
    from anndata.io import read_elem, write_elem
    from lobster.core.utils.h5ad_utils import sanitize_value

    with h5py.File(path, "r+") as file:
        if PACKED in file.get("uns", ()):
            uns = unpacked_uns(cast("Any", read_elem(file["uns"])), sanitize_value)
            del file["uns"]
            write_elem(file, "uns", uns)
