"""A MuData store that is open: its modalities, its global tables, and queries across them.

Opening touches metadata only; a :class:`MultimodalSelection` reads nothing until
its rows, table or modalities are asked for, and then only theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args, override

from lobster_zarr.byterange import Network
from lobster_zarr.dataset import Dataset
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, did_you_mean
from lobster_zarr.h5store import MODALITY, is_file, open_file_store
from lobster_zarr.joined import MultimodalReader
from lobster_zarr.muprojection import WHOLE, of_modalities, projections
from lobster_zarr.muquery import MultimodalSelection
from lobster_zarr.mureading import Join, JointReading, Question
from lobster_zarr.openstore import OpenStore
from lobster_zarr.reopen import open_reader
from lobster_zarr.report import Progress, parse_size
from lobster_zarr.sql import execute
from lobster_zarr.store import open_store
from lobster_zarr.summary import summarize_modalities
from lobster_zarr.versionstore import open_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import mudata
    import polars as pl
    from zarr.abc.store import Store

    from lobster_zarr.element import StoreReader
    from lobster_zarr.mulazy import LazyMuData
    from lobster_zarr.projection import Order
    from lobster_zarr.summary import MultimodalInfo
    from lobster_zarr.table import TableReader


class MultimodalDataset(OpenStore):
    """An open MuData store.

    Made by :func:`lobster_zarr.open`. ``dataset["rna"]`` is a modality, a :class:`Dataset`.

    Parameters
    ----------
    reader
        Reads the elements of the store.
    """

    def __init__(self, reader: MultimodalReader) -> None:
        reader.check()
        self.reader, self.uri = reader, reader.root.uri
        self._check_note()

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self.reader, "uri": self.uri}

    @property
    @override
    def _root(self) -> StoreReader:
        return self.reader.root

    @cached_property
    def modalities(self) -> dict[str, Dataset]:
        """The modalities by name, in order."""
        return {name: Dataset(part) for name, part in self.reader.modalities.items()}

    def __getitem__(self, modality: str) -> Dataset:
        """Return one modality.

        Raises
        ------
        NotFoundError
            There is no such modality.
        """
        self._check_modality(modality)
        return self.modalities[modality]

    def __contains__(self, modality: object) -> bool:
        return modality in self.modalities

    def __iter__(self) -> Iterator[str]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)

    def _check_modality(self, name: str) -> None:
        if name not in self.reader.modalities:
            known = list(self.reader.modalities)
            msg = f"{self.uri} has no modality {name!r}.{did_you_mean(name, known)} It has: {known}"
            raise NotFoundError(msg)

    @property
    def axis(self) -> Literal[0, 1, -1]:
        """What the modalities share: 0, their cells; 1, their genes; -1, both."""
        axis: Literal[0, 1, -1] = self.reader.axis
        return axis

    @property
    def whole(self) -> Dataset:
        """The global elements alone."""
        return Dataset(self.reader.whole())

    def without_notes(self) -> MultimodalDataset:
        """Return the same store as if nothing had been noted of its arrays, with stats of its own."""
        return MultimodalDataset(self.reader.without_notes())

    @property
    def obsm(self) -> list[str]:
        """Names of the global members of obsm; the masks of the modalities left out."""
        return [name for name in self.tree.children("obsm") if name not in self]

    @override
    def info(self) -> MultimodalInfo:
        """Describe the store from its metadata: no request."""
        parts = {name: part.info() for name, part in self.modalities.items()}
        return summarize_modalities(self.uri, self.tree, self.shape, self.attributes, parts, self._file_bytes)

    def query(
        self,
        obs: Any = None,
        var: Any = None,
        *,
        modalities: Sequence[str] | None = None,
        join: Join = "outer",
        order: Order = "source",
        max_bytes: int | str | None = None,
        memory_limit: int | str | None = None,
        **elements: Any,
    ) -> MultimodalSelection:
        """Select cells by the columns of any modality, and genes of each; nothing is read yet.

        Parameters
        ----------
        obs
            As of :meth:`Dataset.query`, on the global table. A column of a modality is
            ``rna:cell_type`` (in SQL also ``rna.cell_type``), missing for cells that the modality lacks.
        var
            A selector of the global var; or by modality one of its own:
            ``{"rna": ["CD3D"], "prot": "all"}``. None for all.
        modalities
            Names of those that are wanted; nothing of the others is read, but for the columns that
            the predicate names. None for all.
        join
            ``"outer"``: cells that any of them has, as slicing a MuData gives them; ``"inner"``: those
            that all of them have.
        order
            ``"source"``: as slicing the source in memory gives them; ``"storage"``: as they are stored.
        max_bytes, memory_limit
            Refuse, before anything of a matrix is read, a query that would read more bytes, or need more
            memory.
        **elements
            Fields of :class:`Projection`. A list of names restricts all modalities and the global elements:
            ``counts`` of each that has it, ``rna:counts`` of one; or a mapping by modality.

        Raises
        ------
        NotFoundError
            A modality or an element that the store does not have; near names are offered.
        """
        chosen = self._chosen(modalities)
        for name, given, expected in (("order", order, ("source", "storage")), ("join", join, get_args(Join))):
            if given not in expected:
                msg = f"{name} is {given!r}; expected {expected[0]!r} or {expected[1]!r}."
                raise InvalidArgumentError(msg)
        by_owner = projections(self.reader, elements)
        whole_var, var_of = of_modalities(self.reader, var)
        asked = Question(
            obs,
            whole_var,
            {name: own for name, own in var_of.items() if name in chosen},
            order,
            chosen,
            join,
            by_owner,
            by_owner[WHOLE],
            None if max_bytes is None else parse_size(max_bytes, "max_bytes"),
            None if memory_limit is None else parse_size(memory_limit, "memory_limit"),
        )
        return MultimodalSelection(JointReading(self.reader, asked))

    def _chosen(self, modalities: Sequence[str] | None) -> tuple[str, ...]:
        if modalities is None:
            return tuple(self.reader.modalities)
        given: object = modalities
        if isinstance(given, str) or not isinstance(given, Iterable) or not modalities:
            msg = f"modalities is {modalities!r}; expected a list of names, of {list(self.reader.modalities)}."
            raise InvalidArgumentError(msg)
        for name in modalities:
            self._check_modality(name)
        return tuple(name for name in self.reader.modalities if name in modalities)

    def sql(self, query: str, *, progress: bool = True, **tables: Any) -> pl.DataFrame:
        """Run SQL over ``obs``, ``var`` and the tables of the modalities; only what it needs is read.

        Parameters
        ----------
        query
            As of :meth:`Dataset.sql`. ``obs`` and ``var`` are the global tables, with the columns of
            the modalities as ``rna.cell_type``: ``SELECT rna.cell_type, count(*) AS n FROM obs WHERE
            prot.n_counts > 500 GROUP BY rna.cell_type``. ``rna`` is the obs of a modality, ``rna_var`` its var.
        progress
            Show what arrives when on a terminal, or in a notebook with ipywidgets, if it takes a second.
        **tables
            Polars or pandas frames, to be joined by name.

        Returns
        -------
        polars.DataFrame
            Without ORDER BY, rows come in storage order.

        Raises
        ------
        InvalidPredicateError, NotFoundError
            The query cannot be run, or names what does not exist.
        """
        data = self.reader
        named: dict[str, TableReader] = {"obs": data.joined("obs"), "var": data.joined("var")}
        for name, part in data.modalities.items():  # a modality may be called "obs"
            named = {name: part.obs, f"{name}_var": part.var} | named
        with Progress(enabled=progress).watching("reading", self.stats):
            return execute(data.root, named, query, tables, tuple(data.modalities))

    def to_lazy(self, *, order: Order = "source", **options: Any) -> LazyMuData:
        """Return everything as a lazy MuData: see :meth:`MultimodalSelection.to_lazy`, whose options it takes."""
        return self.query(order=order).to_lazy(**options)

    def to_memory(self, *, progress: bool = True) -> mudata.MuData:
        """Read everything, in source order; `progress` is as of a selection's."""
        return self.query().to_memory(progress=progress)


def open(
    uri: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    network: Network | None = None,
    version: str | None = None,
) -> Dataset | MultimodalDataset:
    """Open a store, one request where its metadata is consolidated, or an HDF5 file in place, a few.

    Parameters
    ----------
    uri
        ``s3://``, ``gs://``, ``az://``, ``http(s)://``, ``memory://`` or a local path
        (a ``.zip`` too) of an AnnData-Zarr or MuData-Zarr store, written by this package or not;
        or of an ``.h5ad`` or ``.h5mu``, of which ``x.h5mu/mod/rna`` is a modality.
    storage_options
        s3fs's names: ``key``, ``secret``, ``token``, ``endpoint_url``, ``anon``,
        ``profile``, ``requester_pays``, ``client_kwargs``.
    network
        Latency, bandwidth and concurrency that plans assume: which gaps are read
        through, which layout is the cheaper, how many seconds ``explain()`` tells.
        Answers do not depend on it. None for 20 ms, 100 Mbit/s, 64 requests at once.
    version
        On S3, the id of a version that `lobster_zarr.versions` lists, or the beginning of it: all is
        read as it was at that commit. One request more for each 1,000 versions of objects. None for what is there now.

    Returns
    -------
    Dataset or MultimodalDataset
        The second for a MuData store.

    Raises
    ------
    NotFoundError
        There is no store.
    FormatError
        It is not an AnnData or MuData store.
    UnsupportedError, ConflictError
        The bucket keeps no versions; or which objects belong to the version cannot be told.
    StorageError
        The storage refused, or could not be reached.
    """
    match = MODALITY.fullmatch(os.fspath(uri))
    if match and is_file(match[1]):
        whole = open(match[1], storage_options, network=network, version=version)
        if isinstance(whole, MultimodalDataset):
            return whole[match[2]]
    if version is not None:
        past = open_version(uri, storage_options, version)
        return opened(past, str(past), network or Network())
    store = open_file_store(uri, storage_options) if is_file(uri) else open_store(uri, storage_options)
    return opened(store, os.fspath(uri), network or Network())


def opened(store: Store, uri: str, network: Network) -> Dataset | MultimodalDataset:
    """Open what a Zarr store holds."""
    reader = open_reader(store, uri, network)
    kind = reader.tree.encoding("") or ("MuData" if "mod" in reader.tree and "X" not in reader.tree else "")
    return MultimodalDataset(MultimodalReader(reader)) if kind == "MuData" else Dataset(reader)
