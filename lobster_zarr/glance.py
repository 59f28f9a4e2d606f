"""What one request tells of a store or file: of its root metadata, its kept index, or its first bytes.

Must not know where it lies.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from lobster_zarr.byterange import Network
from lobster_zarr.errors import FormatError, NotFoundError, StorageError
from lobster_zarr.h5fetch import FIRST_BYTES, replay
from lobster_zarr.h5image import FileImage
from lobster_zarr.h5store import open_file_store
from lobster_zarr.h5tree import Survey
from lobster_zarr.loop import run
from lobster_zarr.multimodal import MultimodalDataset, opened
from lobster_zarr.sidecar import Sidecar
from lobster_zarr.store import is_local
from lobster_zarr.tree import read_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.holdings import Holding

    type Nodes = Mapping[str, Mapping[str, Any]]

WHOLE_BYTES = 1 << 20
"""A file of up to so many bytes is read whole, which tells its shape. Of a larger one the beginning does not:
HDF5 puts the names of the members of a group behind what was written before the last of them."""
INDEX_BYTES = 32 << 20
"""A kept index of more bytes is not read."""
ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
_KINDS = {"anndata": "AnnData", "MuData": "MuData"}


def to_read(holding: Holding) -> tuple[str, int] | None:
    """Return the key and the number of its first bytes to read; None where there is nothing that can be."""
    if holding.root is None or holding.n_bytes == 0 or holding.root.storage_class in ARCHIVED:
        return None
    if _has_index(holding) and holding.index is not None:
        return holding.index.key, holding.index.n_bytes
    n_bytes = holding.root.n_bytes
    is_large = holding.form != "zarr" and n_bytes > WHOLE_BYTES
    return holding.root.key, FIRST_BYTES if is_large else n_bytes


def glance(uri: str, holding: Holding, told: bytes | None) -> dict[str, Any]:
    """Return what is known of a store or file.

    Parameters
    ----------
    uri
        Of it; a local file is opened.
    holding
        What a listing tells.
    told
        What `to_read` says, as it was read; None where that is nothing.

    Returns
    -------
    dict
        Fields of a catalog entry.

    Raises
    ------
    LobsterZarrError
        It cannot be read, and why.
    """
    if holding.root is not None and holding.root.storage_class in ARCHIVED:
        msg = f"{uri} is archived ({holding.root.storage_class}); restore it first: `aws s3api restore-object`."
        raise StorageError(msg)
    if holding.form == "zarr":
        return _of_store(uri, holding, told)
    return _of_data(opened(open_file_store(uri), uri, Network())) if is_local(uri) else _of_file(uri, holding, told)


def _has_index(holding: Holding) -> bool:
    return holding.index is not None and holding.index.n_bytes <= INDEX_BYTES


def _of_store(uri: str, holding: Holding, told: bytes | None) -> dict[str, Any]:
    if told is None or holding.root is None:
        msg = f"{uri} has no root metadata: its deletion was broken off. Delete it, or convert to it again."
        raise NotFoundError(msg)
    key = holding.root.key.rpartition("/")[2]
    store = MemoryStore({key: default_buffer_prototype().buffer.from_bytes(told)})
    tree = run(read_tree(store, uri))
    if len(tree.nodes) > 1:
        return _of_data(opened(store, uri, Network()))
    hint = f"the shape of {uri} is not known: its metadata is not consolidated (zarr.consolidate_metadata does it)"
    return {"kind": _KINDS.get(tree.encoding(""), "Zarr"), "hint": hint}


def _of_data(data: Dataset | MultimodalDataset) -> dict[str, Any]:
    several, about = isinstance(data, MultimodalDataset), data.info()
    parts = {k: p.shape for k, p in data.modalities.items()} if isinstance(data, MultimodalDataset) else {}
    shape = {"n_obs": data.n_obs, "n_vars": data.n_vars, "modalities": parts}
    return {"kind": "MuData" if several else "AnnData", **shape, "sort_by": about.sort_by, "writer": about.writer}


def _of_file(uri: str, holding: Holding, told: bytes | None) -> dict[str, Any]:
    if told is None:
        msg = f"{uri} is empty; expected an HDF5 file. Copy it again."
        raise FormatError(msg)
    image, remedy = FileImage(holding.n_bytes), f"`lobster-zarr index {uri}` keeps what tells it"
    if _has_index(holding):
        kept = Sidecar.parse(told, f"{uri} (its index)")
        if holding.root is not None and (kept.etag, kept.n_bytes) == (holding.root.etag, holding.n_bytes):
            image = kept.image()
        else:
            remedy = f"its index is that of another version of it; `lobster-zarr index {uri}` renews it"
    else:
        image.add(0, told)
    nodes = _nodes(image, uri)
    names = sorted(path.partition("/")[2] for path in nodes if path.startswith("mod/") and path.count("/") == 1)
    n_obs, n_vars = _shape(nodes, "")
    encoding = nodes.get("", {}).get("attributes", {}).get("encoding-type")
    return {
        "kind": _KINDS.get(encoding, "MuData" if holding.form == "h5mu" else "AnnData"),
        "n_obs": n_obs,
        "n_vars": n_vars,
        "modalities": {name: _shape(nodes, f"mod/{name}/") for name in names},
        "hint": "" if n_obs is not None and n_vars is not None else f"the shape of {uri} is not known: {remedy}",
    }


class _NotReadError(Exception):
    """Bytes would be needed that were not read."""


def _nodes(image: FileImage, uri: str) -> Nodes:
    """Return the nodes of a file that what was read of it tells."""

    async def read(*_: int) -> bytes:
        raise _NotReadError

    survey = Survey(uri)
    with contextlib.suppress(_NotReadError):
        run(replay(image, read, uri, survey.survey))
    return survey.nodes


def _shape(nodes: Nodes, below: str) -> tuple[int | None, int | None]:
    """Return the cells and genes that the nodes of a file tell; None of what they do not."""

    def n_rows(path: str) -> int | None:
        index = nodes.get(path, {}).get("attributes", {}).get("_index", "")
        found = nodes.get(f"{path}/{index}/values") or nodes.get(f"{path}/{index}", {})
        shape = found.get("shape") or nodes.get(path, {}).get("shape")  # the second of a record array of anndata 0.6
        return shape[0] if shape else None

    return n_rows(f"{below}obs"), n_rows(f"{below}var")
