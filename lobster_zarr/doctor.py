"""Examines a store: what in its layout makes queries slow, what they would cost once it is converted, and the remedy.

Opens the store, learns the sizes of its arrays, and asks
:mod:`lobster_zarr.symptoms` and :mod:`lobster_zarr.prediction`. Reads nothing
of a matrix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.core.buffer import default_buffer_prototype

from lobster_zarr import symptoms
from lobster_zarr.blueprint import file_sizes
from lobster_zarr.byterange import Network
from lobster_zarr.convert import convert
from lobster_zarr.diagnosis import Diagnosis, Finding, Prediction, Repair
from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.grid import Runs, cdiv
from lobster_zarr.h5fetch import FileFetcher
from lobster_zarr.h5store import FileStore
from lobster_zarr.inventory import PAGE_KEYS, array_sizes, n_keys
from lobster_zarr.layout import CODEC_PROFILES, is_companion
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.packed import packed_file
from lobster_zarr.prediction import Cost, Model, Question, category, converted, model_of, priced, scattered
from lobster_zarr.store import display_uri, run
from lobster_zarr.tree import V2_FILES, is_ours

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.element import StoreReader
    from lobster_zarr.node import Tree

SHARE = 0.05
"""Of the cells, where no column of categories tells."""
N_GENES = 50
NODE_BYTES = 100
"""Of a group in consolidated metadata, besides its attributes; an array takes five times that."""
SAMPLED_COLUMNS = 8
SAMPLE_BYTES = 1_000_000
"""A larger chunk of text is not read to count its values."""


@dataclass(frozen=True, eq=False)
class _Patient:
    """One AnnData under examination: the store, or one of its modalities.

    Parameters
    ----------
    name
        Of the modality; empty of a store that is one AnnData.
    reader
        Of the store that is there.
    now
        Its model.
    sort_by
        Columns that its rows are noted as sorted by.
    """

    name: str
    reader: StoreReader
    now: Model
    sort_by: tuple[str, ...]

    @property
    def columns(self) -> dict[str, int]:
        """Columns that rows may be sorted by, best first, and how many categories they have."""
        return symptoms.candidates(self.reader.tree)

    @property
    def column(self) -> str | None:
        """The column that queries are thought to name."""
        return next(iter([c for c in self.sort_by if c in self.columns] or self.columns), None)

    @property
    def share(self) -> float:
        """Part of the cells in a category of it."""
        return 1 / self.columns[self.column] if self.column else SHARE


def doctor(
    uri: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    network: Network | None = None,
) -> Diagnosis:
    """Find what in the layout of a store makes queries slow, and predict what converting it would save.

    Reads the metadata; of a store that does not note its sizes one listing, where one is enough; and of up to
    eight columns of text in obs one small chunk each. Nothing of a matrix.

    Parameters
    ----------
    uri
        As of :func:`lobster_zarr.open`; an AnnData or MuData store, written by this package or not.
    storage_options
        As of :func:`lobster_zarr.open`.
    network
        What the seconds assume; None for 20 ms, 100 Mbit/s, 64 requests at once.

    Returns
    -------
    Diagnosis
        Prints as text of 80 columns; ``to_dict()`` for programs.

    Raises
    ------
    NotFoundError, FormatError, UnsupportedError, StorageError
        As opening it raises.
    """
    network = network or Network()
    packed = packed_file(uri, storage_options)
    if packed is not None:
        return _of_packed(packed, network, storage_options)
    dataset = open_dataset(uri, storage_options, network=network)
    return run(_examined(dataset, network, storage_options))


def repair(
    diagnosis: Diagnosis, dest: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Repair:
    """Run the conversion that a diagnosis proposes, and examine what it wrote.

    Parameters
    ----------
    diagnosis
        From :func:`doctor`.
    dest
        Path or URI of the store to write.
    storage_options
        As of :func:`lobster_zarr.open`, for both.

    Returns
    -------
    Repair
        What was found before, what was done, and what is found after.

    Raises
    ------
    InvalidArgumentError
        The diagnosis proposes no conversion.
    LobsterZarrError
        As :func:`lobster_zarr.convert` raises: where `dest` holds something already a ConflictError.
    """
    if diagnosis.options is None or diagnosis.unpacked:
        why = "unpack it first" if diagnosis.unpacked else "a conversion would repair nothing of it"
        msg = f"{diagnosis.uri} cannot be repaired by converting it: {why}."
        raise InvalidArgumentError(msg)
    report = convert(diagnosis.uri, dest, storage_options=storage_options, **diagnosis.options)
    return Repair(diagnosis, report, doctor(dest, storage_options))


def _of_packed(packed: tuple[str, int, Finding, str], network: Network, options: Mapping[str, Any] | None) -> Diagnosis:
    uri, n_bytes, finding, unpacked = packed
    whole = priced(network, 1, n_bytes, 1)
    return Diagnosis(
        uri=uri,
        n_obs=None,
        n_vars=None,
        findings=(finding,),
        predictions=(Prediction("anything at all", "", whole, None),),
        destination=f"{unpacked.rpartition('.')[0]}.zarr",
        options={},
        endpoint_url=(options or {}).get("endpoint_url"),
        unpacked=unpacked,
    )


async def _examined(
    dataset: Dataset | MultimodalDataset, network: Network, options: Mapping[str, Any] | None
) -> Diagnosis:
    root = dataset.reader.root if isinstance(dataset, MultimodalDataset) else dataset.reader
    opening, consolidated = await cost_of_opening(root, network)
    sizes, source = await array_sizes(root.fetcher, root.tree)
    if isinstance(root.fetcher, FileFetcher):
        sizes, source = file_sizes(root.tree, root.fetcher.file.n_bytes), "file"
    parts = {"": dataset} if not isinstance(dataset, MultimodalDataset) else dataset.modalities
    patients = [await _patient(name, part, sizes, dataset.sort_by) for name, part in parts.items()]
    is_sorted = bool(dataset.sort_by) or any(p.sort_by for p in patients)
    key = _proposed(patients) if not is_sorted else None
    found = list(
        symptoms.of_container(
            patients[0].now, is_consolidated=consolidated, is_ours=is_ours(root.tree), n_nodes=len(root.tree.nodes)
        )
    )
    if isinstance(root.fetcher.store, FileStore) and not isinstance(root.fetcher, FileFetcher):
        found.insert(0, symptoms.of_age(root.fetcher.store.n_bytes))
    for patient in patients:
        found += symptoms.of_matrices(patient.now)
        if key is not None and (patient.name, patient.column) == key:
            found += symptoms.of_order(patient.now, patient.columns, _spelled(key))
        found += await _text(patient, sizes)
    curable = [f for f in found if f.curable]
    chosen = key if key is not None and any(f.kind == "unsorted" for f in found) else None
    predictions, drawn = [], []
    for patient in patients:
        after = (
            await _after(patient, chosen, is_sorted=is_sorted, has_layers_by_gene=_has_layers_by_gene(root.tree))
            if curable
            else None
        )
        drawn += [after[0]] if after else []
        predictions += await _predicted(patient, after)
    opened = Prediction("open", "", opening, _opening_of(drawn, root.tree, network) if drawn else None)
    return Diagnosis(
        uri=dataset.uri,
        n_obs=dataset.n_obs,
        n_vars=dataset.n_vars,
        findings=tuple(sorted(found, key=lambda f: f.kind in {"no-notes", "wide-dtype", "text-column"})),
        predictions=(opened, *predictions),
        destination=_destination(dataset.uri),
        options=_options(dataset, chosen) if curable else None,
        assumptions=_assumptions(patients, source, network, is_converted=bool(curable)),
        endpoint_url=(options or {}).get("endpoint_url"),
    )


async def _patient(name: str, part: Dataset, sizes: Mapping[str, int], root_sort: tuple[str, ...]) -> _Patient:
    fetcher, tree = part.reader.fetcher, part.reader.tree
    ours = fetcher.strict
    now = await model_of(tree, sizes, fetcher.objects, fetcher.network, strict=ours, uri=part.uri)
    own = part.sort_by or tuple(c.removeprefix(f"{name}:") for c in root_sort if c.startswith(f"{name}:"))
    return _Patient(name, part.reader, now, own)


def _proposed(patients: list[_Patient]) -> tuple[str, str] | None:
    """Choose the column to sort by: modality and name."""
    ranked = [(symptoms.merit(p.column, p.columns[p.column]), p.name, p.column) for p in patients if p.column]
    return min(ranked)[1:] if ranked else None


def _spelled(key: tuple[str, str]) -> str:
    return ":".join(filter(None, key))


async def _after(
    patient: _Patient, key: tuple[str, str] | None, *, is_sorted: bool, has_layers_by_gene: bool
) -> tuple[Model, bool]:
    """Return the model of the converted store, and whether its rows are sorted by the patient's column."""
    if key is not None:
        sort_by: str | None = key[1] if key[0] == patient.name else ""
    elif is_sorted:
        sort_by = patient.sort_by[0] if patient.sort_by else ""
    else:
        sort_by = None
    sort_by = None if sort_by == "" and not is_sorted and key is None else sort_by
    tree = patient.reader.tree
    layers = [f"layers/{name}" for name in tree.children("layers")] if has_layers_by_gene else []
    companions = [path for path in ("X", *layers) if path in tree and patient.reader.is_sparse(path)]
    return await converted(patient.now, sort_by, companions), sort_by == patient.column


async def _predicted(patient: _Patient, after: tuple[Model, bool] | None) -> list[Prediction]:
    """Predict the typical queries, now and after."""
    contiguous = patient.sort_by[:1] == (patient.column,)
    now = _questions(patient, contiguous=contiguous)
    then = _questions(patient, contiguous=after[1]) if after else {}
    return [
        Prediction(
            query, patient.name, await patient.now.cost(now[query]), await after[0].cost(then[query]) if after else None
        )
        for query in now
    ]


def _questions(patient: _Patient, *, contiguous: bool) -> dict[str, Question]:
    n_obs, n_vars, column = patient.reader.obs.n_rows, patient.reader.var.n_rows, patient.column
    rows = category(n_obs, patient.share, contiguous=contiguous)
    n_genes = min(N_GENES, n_vars)
    found = {"count of a category": Question(rows, None, column, None, matrix=False)} if column else {}
    found["obs of a category"] = Question(rows, None, column, columns=True, matrix=False)
    if patient.now.matrix() is not None and n_vars:
        found["a category, all genes"] = Question(rows, None, column)
        found["one gene, all cells"] = Question(None, scattered(n_vars, 1))
        found[f"{n_genes} genes of a category"] = Question(rows, scattered(n_vars, n_genes), column)
    found["everything"] = Question(columns=True, whole=True)
    return found


async def cost_of_opening(reader: StoreReader, network: Network) -> tuple[Cost, bool]:
    """Return what opening costs, and whether the metadata is consolidated. One or two requests."""
    tree, store = reader.tree, reader.fetcher.store
    if isinstance(store, FileStore):
        # Of a file from before anndata 0.7, all of it.
        extents = reader.fetcher.image.extents() if isinstance(reader.fetcher, FileFetcher) else [(0, b"")]
        n_bytes = sum(len(body) for _, body in extents) or store.n_bytes
        return priced(network, len(extents), n_bytes, min(len(extents), 3)), True
    key = "zarr.json" if tree.zarr_format == 3 else ".zmetadata"
    body = await store.get(key, default_buffer_prototype())
    root = b"" if body is None else body.to_bytes()
    if tree.zarr_format == 2 and root:
        return priced(network, 2, len(root), 2), True
    if tree.zarr_format == 3 and json.loads(root or b"{}").get("consolidated_metadata"):
        return priced(network, 1, len(root), 1), True
    documents = len(tree.nodes) if tree.zarr_format == 3 else len(tree.nodes) * len(V2_FILES) * 2 // 3
    n_requests = documents + cdiv(n_keys(tree), PAGE_KEYS) + (1 if tree.zarr_format == 3 else 3)
    n_bytes = sum(len(json.dumps(node, indent=2)) for node in tree.nodes.values())
    return priced(network, n_requests, n_bytes, 3), False


def _opening_of(models: list[Model], tree: Tree, network: Network) -> Cost:
    """Predict what opening a converted store costs, of a MuData with the global elements: one request."""
    others = [path for path in tree.nodes if not path.startswith("mod/")] if tree.children("mod") else []
    n_bytes = sum(len(json.dumps(tree.attributes(p))) + NODE_BYTES * (1 + 4 * tree.is_array(p)) for p in others)
    n_bytes += sum(len(json.dumps(dict(model.tree.nodes), separators=(",", ":"))) for model in models)
    for model in models:
        objects, sizes = model.reader.fetcher.objects, model.reader.fetcher.stored_bytes
        n_bytes += sum(n * 4 // 3 for path, n in sizes.items() if any(k.startswith(f"{path}/c") for k in objects))
        n_bytes += sum(len(path) + 10 for path in sizes)
    return priced(network, 1, n_bytes, 1)


async def _text(patient: _Patient, sizes: Mapping[str, int]) -> list[Finding]:
    """Find columns of text of which few values are distinct, as far as one chunk of each tells."""
    found, obs = [], patient.reader.obs
    for at, name in enumerate(symptoms.text_columns(patient.reader.tree)):
        path = f"obs/{name}" if patient.reader.tree.is_array(f"obs/{name}") else f"obs/{name}/values"
        node = patient.reader.tree.array(path)
        n_rows = min(node.grid.chunk[0], obs.n_rows)
        chunk_bytes = sizes.get(node.path, SAMPLE_BYTES + 1) // max(node.grid.n_chunks, 1)
        sample = None
        if at < SAMPLED_COLUMNS and chunk_bytes <= SAMPLE_BYTES and n_rows:
            values = await obs.column(name, Runs(np.asarray([0]), np.asarray([n_rows])))
            sample = len(set(values.tolist())), n_rows
        if sample is None or sample[0] <= sample[1] // 2:
            found.append(symptoms.of_text(f"{patient.reader.tree.root}obs/{name}", obs.n_rows, sample))
    return found


def _has_layers_by_gene(tree: Tree) -> bool:
    """Whether a layer of the store, or of a modality, is stored by gene too."""
    return any("layers/" in path and is_companion(path) for path in tree.nodes)


def _options(dataset: Dataset | MultimodalDataset, key: tuple[str, str] | None) -> dict[str, Any]:
    """Return the options of the conversion that is proposed; what the store has been converted with is kept."""
    options: dict[str, Any] = {"gene_major": _has_layers_by_gene(dataset.tree) or "auto"}
    sort_by = (_spelled(key),) if key else dataset.sort_by
    options |= {"sort_by": list(sort_by)} if sort_by else {}
    codec = dataset.attributes.get("codec", CODEC_PROFILES[0])
    return options | ({"codec": codec} if codec in CODEC_PROFILES[1:] else {})


def _destination(uri: str) -> str:
    stem = display_uri(uri).rstrip("/")
    head, dot, suffix = stem.rpartition(".")
    plain = head if dot and "/" not in suffix else stem
    return f"{plain}.zarr" if suffix in {"h5ad", "h5mu", "h5"} else f"{plain}-converted.zarr"


def _assumptions(patients: list[_Patient], source: str, network: Network, *, is_converted: bool) -> tuple[str, ...]:
    told = [
        (
            f"{network.latency_seconds * 1e3:.0f} ms, {network.bandwidth_bytes * 8 / 1e6:,.0f} Mbit/s, "
            f"{network.concurrency} requests at once; cells and genes of equal length; a matrix is X, with the names"
        )
    ]
    for patient in patients:
        of = f"by {patient.column!r}" if patient.column else "no column of categories tells"
        lies = "in one run" if patient.column and patient.sort_by[:1] == (patient.column,) else "scattered now"
        prefix = f"{patient.name}: " if patient.name else ""
        told.append(f"{prefix}a category is {patient.share:.1%} of the cells ({of}), {lies}")
    known = {
        "noted": "sizes are those that the store notes",
        "listed": "sizes are those of the objects, listed",
        "file": "sizes are the file's, shared out by the codecs as measured on counts",
        "assumed": "sizes are assumed from the codecs, as measured on counts: listing would take several requests",
    }
    told.append(known[source])
    if is_converted:
        told.append(
            "after: positions by the density of the matrix, values from the stored bytes by the codecs' measured ratio "
            "(or 0.27 bytes a count); both within about a third"
        )
    return tuple(told)
