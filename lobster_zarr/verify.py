"""Verifies a store, AnnData or MuData, by itself and against its source.

Opens both, asks for crews, and reports. Must not know how anything is
checked: that is :mod:`lobster_zarr.verification` and :mod:`lobster_zarr.muverify`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr.address import Address
from lobster_zarr.cached import Cached
from lobster_zarr.cluster import crew_for
from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import VerificationError
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.musource import MuSource, open_any
from lobster_zarr.muverify import MuVerification
from lobster_zarr.report import Progress, VerificationReport
from lobster_zarr.store import UriStore
from lobster_zarr.verification import Verification

if TYPE_CHECKING:
    from distributed import Client

    from lobster_zarr.cluster import Crew
    from lobster_zarr.element import StoreReader
    from lobster_zarr.musource import AnySource
    from lobster_zarr.source import Source


def verify(
    uri: str | os.PathLike[str] | Dataset | MultimodalDataset,
    against: AnySource | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    client: Client | Literal[False] | None = None,
) -> VerificationReport:
    """Read every chunk of a store and check it, and compare it with its source.

    Parameters
    ----------
    uri
        Of the store, or an open Dataset. Of a MuData store, each modality is
        checked as an AnnData store is, and obsmap and varmap by what they name.
    against
        The source, of any of the kinds that `lobster_zarr.convert` takes. None
        checks the store alone.
    storage_options
        As for :func:`lobster_zarr.open`.
    progress
        Show progress bars when on a terminal.
    client
        A ``distributed.Client``: the workers of its cluster read the large arrays.
        None takes the active client, where there is one and workers can reach the
        store; False takes none.

    Raises
    ------
    VerificationError
        Something does not fit, or differs: the message names the element and the row.
    ChunkDecodeError
        A chunk is damaged or missing.
    InvalidArgumentError
        `client` was passed, and its workers cannot reach the store (``memory://``).
    """
    started = time.perf_counter()
    opened = open_dataset(uri, storage_options, cache=False) if isinstance(uri, str | os.PathLike) else _uncached(uri)
    store = opened if isinstance(opened, MultimodalDataset) else None
    reader = opened.reader.root if isinstance(opened, MultimodalDataset) else opened.reader
    with ExitStack() as stack:
        source = None
        if against is not None:
            axis = store.axis if store is not None and isinstance(against, Mapping) else None
            opening = open_any(against, storage_options, memory_limit_bytes=1 << 62, checksum=False, axis=axis)
            source = stack.enter_context(opening)
        if source is not None and isinstance(source, MuSource) != (store is not None):
            kinds = ("an AnnData", "a MuData") if store is None else ("a MuData", "an AnnData")
            msg = f"{reader.uri} is {kinds[0]}, the source {kinds[1]}."
            raise VerificationError(msg)
        bars = Progress(enabled=progress)
        if store is not None:
            several = source if isinstance(source, MuSource) else None
            crews = {n: _modality_crew(client, reader, n, several, storage_options) for n in store.modalities}
            multimodal = MuVerification(store, bars, crews)
            multimodal.check(several)
            found = multimodal.n_arrays, multimodal.n_bytes, tuple(multimodal.compared)
        else:
            single = source if not isinstance(source, MuSource) else None
            path = against if single is not None and not single.is_in_memory else None
            found = _single(Dataset(reader), single, bars, _crew(client, reader, "", path, storage_options))
    return VerificationReport(reader.uri, *found, time.perf_counter() - started)


def _uncached(data: Dataset | MultimodalDataset) -> Dataset | MultimodalDataset:
    """Return the same store, to be read from its storage."""
    store = (data.reader.root if isinstance(data, MultimodalDataset) else data.reader).fetcher.store
    return open_dataset(data.uri, store.address.borrow()[1], cache=False) if isinstance(store, Cached) else data


def _single(
    noted: Dataset, source: Source | None, progress: Progress, crew: Crew | None
) -> tuple[int, int, tuple[str, ...]]:
    """Check an AnnData. Returns arrays and bytes that were read, and what was compared."""
    check = Verification(noted.without_notes(), progress, crew)
    with crew or nullcontext():
        check.store()
        check.notes(noted)
        if source is not None:
            check.source(source)
    return len(check.read), check.data.stats.n_bytes + check.n_bytes, tuple(check.compared)


def _modality_crew(
    client: Client | Literal[False] | None,
    reader: StoreReader,
    name: str,
    source: MuSource | None,
    storage_options: Mapping[str, Any] | None,
) -> Crew | None:
    path = None if source is None or source.modalities[name].is_in_memory else source.paths[name]
    return _crew(client, reader, f"mod/{name}", path, storage_options)


def _crew(
    client: Client | Literal[False] | None,
    reader: StoreReader,
    part: str,
    against: Any,
    storage_options: Mapping[str, Any] | None,
) -> Crew | None:
    store, within = reader.fetcher.store, f"{reader.tree.root}{part}".strip("/")
    if within and not isinstance(store, UriStore):
        return crew_for(client, None, None)  # a part of a zip file has no address
    address = store.address if isinstance(store, UriStore) else Address.of(reader.identity.uri)
    source = None if against is None else Address.of(against, storage_options)
    return crew_for(client, address.below(within), source if source and source.is_shared else None)
