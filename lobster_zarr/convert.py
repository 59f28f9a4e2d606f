"""Converts an AnnData or a MuData, wherever it lies, to a store: streaming, in bounded memory, committed last.

Opens the source, asks for a crew, and reports. Must not know how anything is
written: that is :mod:`lobster_zarr.conversion` and :mod:`lobster_zarr.muconvert`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from lobster_zarr.address import Address
from lobster_zarr.cluster import crew_for
from lobster_zarr.commit import Commit
from lobster_zarr.conversion import Conversion
from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.layout import CodecProfile, check_codec
from lobster_zarr.muconvert import MuConversion
from lobster_zarr.musource import MuSource, open_any
from lobster_zarr.report import ConversionReport, Progress, parse_size, peak_memory_bytes
from lobster_zarr.scratch import Scratch
from lobster_zarr.store import display_uri, is_local, local_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client

    from lobster_zarr.cluster import Crew
    from lobster_zarr.conversion import GeneMajor
    from lobster_zarr.musource import AnySource, Axis


def convert(  # noqa: PLR0913 - the public contract
    source: AnySource,
    dest: str | os.PathLike[str],
    *,
    sort_by: str | Sequence[str] | Mapping[str, str | Sequence[str]] = (),
    gene_major: GeneMajor | Mapping[str, GeneMajor] = "auto",
    codec: CodecProfile = "small",
    memory_limit: int | str = "2GB",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    client: Client | Literal[False] | None = None,
    axis: Axis | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> ConversionReport:
    """Convert an AnnData or a MuData to a chunked Zarr store.

    Parameters
    ----------
    source
        Path or URI of an ``.h5ad``, an ``.h5mu``, or an AnnData-Zarr or MuData-Zarr
        store; an AnnData or a MuData in memory; or a dict of modalities, each a path,
        URI or AnnData: ``{"rna": "a.h5ad", "prot": "b.h5ad"}``. ``file.h5mu/mod/rna``
        is one modality of a file.
    dest
        Path or URI of the store to write.
    sort_by
        obs columns by which the rows are stored grouped. Results still come
        back in source order. Of a MuData, columns of the global obs, or of a modality's
        (``"rna:cell_type"``; cells that it lacks come last): all modalities are stored
        in that order. A dict (``{"rna": ["cell_type"]}``) sorts those modalities alone.
    gene_major
        Whether sparse matrices get a gene-major companion: ``"auto"``, X has
        one; True, the sparse layers too; False, none; or names of elements
        (``["X", "counts"]``). Of a MuData that holds for every modality; names are
        ``"rna:X"``, or a dict by modality.
    codec
        ``"small"``, ``"fast"`` or ``"compatible"``.
    memory_limit
        Bytes, or text such as ``"2GB"``, that the process should not exceed;
        on a cluster, each worker process too.
    overwrite
        Replace a store that `dest` holds already.
    storage_options
        s3fs's names: ``key``, ``secret``, ``token``, ``endpoint_url``, ``anon``,
        ``profile``, ``requester_pays``, ``client_kwargs``.
    progress
        Show progress bars when on a terminal.
    client
        A ``distributed.Client``: the sparse matrices are written by the workers of
        its cluster, and the store is the same, byte for byte. None takes the
        active client, where there is one and workers can read the source and
        write the destination; False takes none.
    axis
        Of a dict of modalities, what they share: 0, cells (as None has it); 1, genes;
        -1, both.
    attributes
        Further attributes of the store's root, as JSON holds them; readers pass over those they do not know.

    Returns
    -------
    ConversionReport
        Sizes, seconds, memory.

    Raises
    ------
    UnsupportedError
        An element cannot be kept; nothing was written.
    ConflictError
        `dest` holds something already.
    FormatError, NotFoundError
        The source is not there, or neither AnnData nor MuData.
    StorageError
        The storage or the scratch disk failed, or workers did not survive their
        tasks; what was written was removed.
    InvalidArgumentError
        An option is out of its domain; `client` was passed and workers cannot
        read the source (what is in memory) or write the destination (``memory://``).
    """
    started = time.perf_counter()
    limit = parse_size(memory_limit, "memory_limit")
    check_codec(codec)
    _refuse_same(source, dest)
    opening = open_any(source, storage_options, memory_limit_bytes=limit, axis=axis)
    with opening as opened, Scratch() as scratch:
        bars = Progress(enabled=progress)
        if isinstance(opened, MuSource):
            keys = {k: _names(v) for k, v in sort_by.items()} if isinstance(sort_by, Mapping) else _names(sort_by)
            multimodal = MuConversion(opened, scratch, keys, codec, gene_major, limit, bars)
            staged = multimodal.prepare()
            crews = _crews(client, opened, dest, storage_options)
            with Commit(os.fspath(dest), storage_options, overwrite=overwrite) as commit:
                commit.attributes |= attributes or {}
                multimodal.write(commit, staged, crews)
            peak = max((crew.peak_memory_bytes for crew in crews.values() if crew), default=0)
            return _report(multimodal, commit, peak, display_uri(dest), time.perf_counter() - started)
        if isinstance(sort_by, Mapping) or isinstance(gene_major, Mapping):
            msg = f"{opened.name} is an AnnData; sort_by and gene_major by modality are for a MuData."
            raise InvalidArgumentError(msg)
        job = Conversion(opened, scratch, _names(sort_by), codec, gene_major, limit, bars)
        elements = job.prepare()
        crew = _crew(client, None if opened.is_in_memory else source, dest, storage_options)
        with Commit(os.fspath(dest), storage_options, overwrite=overwrite) as commit, crew or nullcontext():
            commit.attributes |= attributes or {}
            job.write(commit, elements, crew)
        peak = crew.peak_memory_bytes if crew else 0
        return _report(job, commit, peak, display_uri(dest), time.perf_counter() - started)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _report(
    job: Conversion | MuConversion, commit: Commit, peak_bytes: int, dest: str, seconds: float
) -> ConversionReport:
    whole = job.whole if isinstance(job, MuConversion) else job
    parts = job.parts if isinstance(job, MuConversion) else {}
    return ConversionReport(
        source=whole.source.name,
        destination=dest,
        n_obs=whole.n_obs,
        n_vars=whole.n_vars,
        source_bytes=whole.source.n_bytes,
        stored_bytes=commit.stored_bytes,
        n_objects=commit.n_objects,
        seconds=seconds,
        peak_memory_bytes=max(peak_memory_bytes(), peak_bytes),
        codec=job.codec,
        sort_by=job.sorted_by if isinstance(job, MuConversion) else job.sort_by,
        gene_major=tuple(job.companions),
        replaced=commit.replaced,
        arrays=job.sizes,
        modalities={name: (part.n_obs, part.n_vars) for name, part in parts.items()},
    )


def _crew(
    client: Client | Literal[False] | None,
    source: Any,
    dest: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
) -> Crew | None:
    """Return a crew for one AnnData; a source of None is in memory."""
    if source is None:
        return crew_for(client, None, None)
    return crew_for(client, Address.of(dest, storage_options), Address.of(source, storage_options))


def _crews(
    client: Client | Literal[False] | None,
    opened: MuSource,
    dest: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
) -> dict[str, Crew | None]:
    """Return a crew for each modality: to its workers it is a store of its own."""
    stem = os.fspath(dest).rstrip("/")
    return {
        name: _crew(client, None if source.is_in_memory else opened.paths[name], f"{stem}/mod/{name}", storage_options)
        for name, source in opened.modalities.items()
    }


def _refuse_same(source: Any, dest: str | os.PathLike[str]) -> None:
    if isinstance(source, Mapping):
        for part in source.values():
            _refuse_same(part, dest)
    if not isinstance(source, str | os.PathLike):
        return
    same = display_uri(source) == display_uri(dest)
    if is_local(source) and is_local(dest):
        a, b = local_path(source).resolve(), local_path(dest).resolve()
        same = a == b or a in b.parents or b in a.parents
    if same:
        msg = f"source and destination are the same ({display_uri(dest)}); choose another destination."
        raise InvalidArgumentError(msg)
