"""Reads what an HDF5 file says of itself: its groups, datasets and attributes, as the nodes of a store.

libhdf5 parses, through h5py, what is in memory of the file. What would lead out of
the file (external links and files, virtual datasets) is refused. Knows how AnnData
spells elements in HDF5, back to 0.7. Must not know how bytes are brought.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lobster_zarr.errors import FormatError, LobsterZarrError, UnsupportedError
from lobster_zarr.h5array import FileArray, Padding, Stored
from lobster_zarr.h5format import REFERENCE, TREE, Branch
from lobster_zarr.node import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from lobster_zarr.h5image import ImageFile

MAX_NODES = 1 << 20
MAX_LITERAL_BYTES = 8 << 20
"""Of what is read with the metadata; compact datasets, which lie in it, have at most 64 KiB."""
MAX_LINKS = 32
"""More soft links one after another are taken for a circle."""


@dataclass(eq=False)
class Survey:
    """What was learned of a file in several passes over what is in memory of it.

    Parameters
    ----------
    name
        For messages.
    nodes
        Documents by path, as of `Tree`.
    arrays
        Datasets by path.
    base
        The address that addresses in the file count from.
    """

    name: str
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, FileArray] = field(default_factory=dict)
    base: int = 0
    _done: set[str] = field(default_factory=set)

    def tree(self, version: str) -> Tree:
        """Return the nodes as a tree; `version` says which file it is."""
        nodes, arrays = dict(self.nodes), {**self.arrays}
        nodes[""] = {**nodes[""], "file": version}
        for path in [p for p, n in self.nodes.items() if _is_old_frame(n)]:
            _rewrite_frame(path, nodes, arrays)
        return Tree(nodes, container="hdf5", _arrays={**arrays})

    def survey(self, file: h5py.File, image: ImageFile) -> None:
        """Go through a file; what is not in memory is noted by `image` and left for another pass.

        Raises
        ------
        FormatError
            It is damaged.
        UnsupportedError
            Parts of it lie elsewhere.
        """
        if file.id.get_create_plist().get_sizes() != (8, 8):
            msg = f"{self.name} has addresses of another size than 8 bytes; re-save it with h5py."
            raise UnsupportedError(msg)
        self.base = file.userblock_size
        self._group(file, "", image, ())

    def _group(self, group: h5py.Group, path: str, image: ImageFile, above: tuple[int, ...]) -> None:
        if path in self._done:
            return
        seen = len(image.missing)
        address = hash(group.id)  # by where it lies in the file
        if address in above:
            msg = f"{path!r} of {self.name} is a group within itself; remove the link."
            raise FormatError(msg)
        names: list[str] = []

        def describe() -> None:
            self.nodes[path] = {"node_type": "group", "attributes": attributes_of(group, self.name)}

        self._try(image, path, describe)
        self._try(image, path, lambda: names.extend(group))
        for name in names:
            self._member(group, name, f"{path}/{name}".lstrip("/"), image, (*above, address))
        if len(image.missing) == seen:
            self._done.add(path)

    def _member(self, group: h5py.Group, name: str, path: str, image: ImageFile, above: tuple[int, ...]) -> None:
        if path in self._done:
            return
        if len(self.nodes) > MAX_NODES:
            msg = f"{self.name} has more than {MAX_NODES:,} groups and datasets, or links without end."
            raise FormatError(msg)

        def visit() -> None:
            if _leaves(group, name):
                msg = f"{path!r} of {self.name} is a link to another file, or in a circle; copy in what it names."
                raise UnsupportedError(msg)
            member = group[name]
            if isinstance(member, h5py.Group):
                self._group(member, path, image, above)
            elif isinstance(member, h5py.Dataset):
                self._dataset(member, path, image)

        self._try(image, path, visit)

    def _dataset(self, dataset: h5py.Dataset, path: str, image: ImageFile) -> None:
        seen = len(image.missing)
        attributes = attributes_of(dataset, self.name)
        stored, shape = stored_of(dataset, path, self.name), tuple(dataset.shape or ())
        array = FileArray.of(path, shape, attributes, stored)
        if stored.chunk is not None and array.grid.n_chunks:
            array.index.pending = self._root_of_index(dataset, array, image)
        if len(image.missing) > seen:
            return
        self.arrays[path] = array
        told = {"shape": list(shape), "dtype": str(stored.dtype), "chunk": stored.chunk and list(stored.chunk)}
        self.nodes[path] = {"node_type": "array", "attributes": attributes, **told}
        self._done.add(path)

    def _root_of_index(self, dataset: h5py.Dataset, array: FileArray, image: ImageFile) -> list[Branch]:
        """Learn where the index of a dataset's chunks begins: libhdf5, asked for one chunk, reads the root first."""
        missing, touched = len(image.missing), len(image.touched)
        whole = Branch(0, array.grid.n_chunks, -1, 0)
        try:
            dataset.id.get_chunk_info_by_coord((0,) * len(array.shape))
        except (OSError, RuntimeError, ValueError):
            if len(image.missing) == missing:
                raise
        reads = [*image.touched[touched:], *image.missing[missing:]]
        known = [image.image.read(start, stop) for start, stop in reads[:1]]
        del image.missing[missing:]  # it is brought when the dataset is read
        if known and known[0] is not None and bytes(known[0][:4]) != TREE:
            return [whole]  # another kind of index, which libhdf5 is to read
        return [Branch(0, whole.last, reads[0][0], reads[0][1] - reads[0][0])] if reads else [whole]

    def _try(self, image: ImageFile, path: str, work: Callable[[], None]) -> None:
        """Do what may stop at something that is not in memory."""
        try:
            work()
        except LobsterZarrError:
            raise
        except Exception as error:
            # h5py raises whatever libhdf5 stumbles over: what is not in memory, or damage.
            if not image.missing:
                msg = f"{path or 'the root'!r} of {self.name} cannot be read: {error}. The file is damaged."
                raise FormatError(msg) from error


def _leaves(group: h5py.Group, path: str, depth: int = 0) -> bool:
    """Whether a link leads to another file, itself or by way of the links that it names."""
    at = group.file if path.startswith("/") else group
    names = [name for name in path.split("/") if name]
    for i, name in enumerate(names):
        kind = at.id.links.get_info(name.encode()).type
        if kind == h5py.h5l.TYPE_SOFT:
            if depth > MAX_LINKS or _leaves(at, at.id.links.get_val(name.encode()).decode(), depth + 1):
                return True
        elif kind != h5py.h5l.TYPE_HARD:
            return True
        found = at[name] if i + 1 < len(names) else None
        if not isinstance(found, h5py.Group):
            return False
        at = found
    return False


def attributes_of(node: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any]:
    """Return the attributes of a node as plain values; a reference as the path that it names."""
    return {str(k): _plain(v, node, name) for k, v in node.attrs.items()}


def _plain(value: Any, node: h5py.Group | h5py.Dataset, name: str) -> Any:
    match value:
        case h5py.Reference():
            return {"reference": str(node.file[value].name).strip("/")} if value else None
        case h5py.Empty():
            return None
        case np.ndarray() | list() | tuple():
            return [_plain(v, node, name) for v in np.asarray(value, object).tolist()]
        case np.generic():
            return _plain(value.item(), node, name)
        case bytes():
            return value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def stored_of(dataset: h5py.Dataset, path: str, name: str) -> Stored:
    """Return how a dataset is stored.

    Raises
    ------
    UnsupportedError
        Its values lie in other files.
    """
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    if layout == h5py.h5d.VIRTUAL or plist.get_external_count():
        msg = f"the values of {path!r} of {name} lie in other files; re-save it with h5py, values and all."
        raise UnsupportedError(msg)
    dtype, kind = _kind(dataset)
    fill = None if kind in {"text", "fixed text"} or dtype.kind not in "biufc" else dataset.fillvalue
    if dataset.shape is None:
        return Stored(dtype, kind, literal=np.zeros((), dtype))
    if layout == h5py.h5d.COMPACT or _is_odd(dataset):
        if dataset.nbytes > MAX_LITERAL_BYTES:
            msg = f"{path!r} of {name} has numbers of {dataset.dtype} with odd bits; re-save it with h5py."
            raise UnsupportedError(msg)
        values = dataset.asstr()[()] if "text" in kind else dataset[()]
        literal = np.asarray(values, object if "text" in kind else values.dtype.newbyteorder("="))
        return Stored(literal.dtype if kind == "plain" else dtype, kind, literal=literal)
    filters = tuple(plist.get_filter(i)[:3] for i in range(plist.get_nfilters()))
    offset = None if layout == h5py.h5d.CHUNKED else dataset.id.get_offset()
    return Stored(dtype, kind, _padding(dataset), dataset.chunks, filters, offset, fill=fill)


def _is_odd(dataset: h5py.Dataset) -> bool:
    """Whether numbers are stored in other bits than a processor has: libhdf5 is to read them."""
    kind = dataset.id.get_type()
    if kind.get_class() not in {h5py.h5t.INTEGER, h5py.h5t.FLOAT}:
        return False
    plain = h5py.h5t.py_create(np.dtype(dataset.dtype.str))
    told, expected = ((k.get_size(), k.get_precision(), k.get_offset()) for k in (kind, plain))
    return told != expected or (kind.get_class() == h5py.h5t.FLOAT and kind.get_fields() != plain.get_fields())


def _padding(dataset: h5py.Dataset) -> Padding:
    kind = dataset.id.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str():
        return "null"
    padding: dict[int, Padding] = {h5py.h5t.STR_SPACEPAD: "space", h5py.h5t.STR_NULLTERM: "end"}
    return padding.get(kind.get_strpad(), "null")


def _kind(dataset: h5py.Dataset) -> tuple[np.dtype[Any], Any]:
    kind = dataset.id.get_type()
    text = h5py.check_string_dtype(dataset.dtype)
    encoding = dataset.attrs.get("encoding-type", "")
    if text is not None and text.length is None:
        return REFERENCE, "text"
    if text is not None:
        return np.dtype(f"S{text.length}"), "plain" if encoding == "array" else "fixed text"
    if dataset.dtype == np.dtype(bool):
        return np.dtype(f"i{kind.get_size()}"), "boolean"
    if dataset.dtype.kind not in "iufc":
        return np.dtype(f"V{kind.get_size()}"), "plain"
    return np.dtype(dataset.dtype.str), "plain"


def _is_old_frame(node: dict[str, Any]) -> bool:
    attributes = node["attributes"]
    return (attributes.get("encoding-type"), attributes.get("encoding-version")) == ("dataframe", "0.1.0")


def _rewrite_frame(path: str, nodes: dict[str, dict[str, Any]], arrays: dict[str, FileArray]) -> None:
    """Spell a dataframe of anndata 0.7, whose categories lie beside it, as later ones do."""
    for name in nodes[path]["attributes"].get("column-order") or ():
        column = f"{path}/{name}"
        reference = nodes.get(column, {}).get("attributes", {}).get("categories")
        target = reference.get("reference") if isinstance(reference, dict) else None
        if target not in arrays or column not in arrays:
            continue
        ordered = bool(arrays[target].attributes.get("ordered", False))
        told = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": ordered}
        for member, of in (("codes", column), ("categories", target)):
            arrays[f"{column}/{member}"] = arrays[of]
            nodes[f"{column}/{member}"] = nodes[of]
        nodes[column] = {"node_type": "group", "attributes": told}
        del arrays[column]
