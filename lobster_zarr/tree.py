"""Opens a store: reads its metadata, in one request where it is consolidated.

Knows Zarr's metadata objects of version 2 and 3. Must not know AnnData.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from lobster_zarr.errors import FormatError, NotFoundError
from lobster_zarr.layout import MARKER
from lobster_zarr.node import Tree
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.store import display_uri, explain_missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.abc.store import Store

V2_FILES = (".zgroup", ".zarray", ".zattrs")


async def read_tree(store: Store, uri: str) -> Tree:
    """Read all metadata of a store.

    One request for a consolidated store of Zarr version 3, two to four for one
    of version 2; a store without consolidated metadata costs a listing and a
    request for each node.

    Raises
    ------
    NotFoundError
        There is no store, or only an unfinished conversion.
    FormatError
        The metadata is damaged.
    """
    root = await _document(store, "zarr.json", uri)
    if root is not None:
        if root.get("node_type") != "group":
            msg = f"{display_uri(uri)} is a single Zarr array; expected an AnnData store (a group)."
            raise FormatError(msg)
        consolidated = root.pop("consolidated_metadata", None)
        nodes = consolidated["metadata"] if consolidated else await _walk(store, uri)
        for node in nodes.values():
            node.pop("consolidated_metadata", None)  # of a group by itself, where it was written as a root
        return Tree({"": root, **nodes})
    flat = await _document(store, ".zmetadata", uri)
    if flat is not None:
        return _tree_v2(flat["metadata"])
    if await _document(store, ".zgroup", uri) is not None:
        keys = [k async for k in store.list_prefix("") if k.rpartition("/")[2] in V2_FILES]
        documents = await asyncio.gather(*(_document(store, k, uri) for k in keys))
        return _tree_v2(dict(zip(keys, documents, strict=True)))
    return await _nothing(store, uri)


def of_root(document: bytes, key: str = "zarr.json") -> MemoryStore | None:
    """Return a store that holds no more than root metadata, given; None where that does not tell of all nodes."""
    if key != ".zmetadata":
        try:
            known = bool(json.loads(document)["consolidated_metadata"])
        except (ValueError, KeyError, TypeError):  # opening it says what is wrong
            known = False
        if not known:
            return None
    return MemoryStore({key: default_buffer_prototype().buffer.from_bytes(document)})


async def _nothing(store: Store, uri: str) -> Tree:
    where = display_uri(uri)
    marker = await _document(store, MARKER, uri)
    if marker is not None:
        version = marker.get("rollback")
        told = (
            f"rollback; roll back again, to {version}"
            if version
            else "conversion; convert to it again (it is replaced)"
        )
        msg = f"{where} is an unfinished {told}."
        raise NotFoundError(msg)
    reason = await explain_missing(store)
    if reason is not None:
        raise reason
    msg = f"{where} holds no Zarr store (no zarr.json, no .zgroup); check the path, or convert to it first."
    raise NotFoundError(msg)


async def _document(store: Store, key: str, uri: str) -> dict[str, Any] | None:
    buffer = await store.get(key, default_buffer_prototype())
    if buffer is None:
        return None
    try:
        document: Any = json.loads(buffer.to_bytes())
    except ValueError as error:
        msg = f"{key!r} of {display_uri(uri)} is not valid JSON ({error}); the store is damaged."
        raise FormatError(msg) from error
    if not _is_document(key, document):
        msg = f"{key!r} of {display_uri(uri)} is no metadata of Zarr; the store is damaged."
        raise FormatError(msg)
    checked: dict[str, Any] = document
    return checked


def _is_document(key: str, document: Any) -> bool:
    """Whether JSON has the outline of Zarr's metadata: objects, and objects where it nests."""
    if not isinstance(document, dict):
        return False
    match key.rpartition("/")[2]:
        case ".zmetadata":
            return _all_objects(document.get("metadata"))
        case "zarr.json":
            nested = document.get("consolidated_metadata", None)
            if nested is not None and not (isinstance(nested, dict) and _all_objects(nested.get("metadata"))):
                return False
            nodes: list[Any] = [document, *(nested["metadata"].values() if nested else ())]
            return all(isinstance(node.get("attributes") or {}, dict) for node in nodes)
    return True


def _all_objects(nodes: Any) -> bool:
    return isinstance(nodes, dict) and all(isinstance(n, dict) for n in nodes.values())


async def _walk(store: Store, uri: str) -> dict[str, Any]:
    keys = [k async for k in store.list_prefix("") if k.endswith("/zarr.json")]
    documents = await asyncio.gather(*(_document(store, k, uri) for k in keys))
    return {k.removesuffix("/zarr.json"): d for k, d in zip(keys, documents, strict=True) if d}


def _tree_v2(files: Mapping[str, Any]) -> Tree:
    nodes: dict[str, dict[str, Any]] = {}
    for key, document in files.items():
        path, _, name = key.rpartition("/")
        node = nodes.setdefault(path, {"attributes": {}})
        match name:
            case ".zattrs":
                node["attributes"] = document
            case ".zarray":
                node |= {**document, "node_type": "array"}
            case ".zgroup":
                node |= {"node_type": "group"}
    return Tree(nodes, zarr_format=2)


def is_ours(tree: Tree) -> bool:
    """Whether this package wrote the store: no chunk is left out of it."""
    return ATTRIBUTE in tree.attributes("")
