"""Reads elements of a Zarr store whole, as AnnData's own reader gives them, over bytes that were fetched at once."""

from __future__ import annotations

import asyncio
import json
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from lobster_zarr.errors import ChunkDecodeError
from lobster_zarr.fetch import together
from lobster_zarr.plan import ArrayRead

if TYPE_CHECKING:
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.node import Tree


def store_reads(tree: Tree, path: str) -> list[ArrayRead]:
    """Return what `read_from_store` reads."""
    return [ArrayRead(tree.array(p), as_objects=True) for p in tree.arrays_below(path)]


async def read_from_store(fetcher: Fetcher, tree: Tree, path: str) -> Any:
    """Read an element whole: all its objects at once, then AnnData's reader.

    Raises
    ------
    ChunkDecodeError
        Its bytes are damaged.
    """
    memory = MemoryStore()
    keys = [(r.node.path, k) for r in store_reads(tree, path) for k in r.node.object_keys()]
    bodies = await together(*(fetcher.get(p, k) for p, k in keys))
    prototype = default_buffer_prototype()
    for (_, key), body in zip(keys, bodies, strict=True):
        if body is None and fetcher.strict:
            msg = f"object {key!r} is missing from the store; restore it or convert again."
            raise ChunkDecodeError(msg)
        if body is not None:
            await memory.set(key.removeprefix(tree.root), prototype.buffer.from_bytes(bytes(body)))
    for key, document in _metadata(tree, path).items():
        await memory.set(key, prototype.buffer.from_bytes(json.dumps(document).encode()))
    return await asyncio.to_thread(_read, memory, tree, path)


def _metadata(tree: Tree, path: str) -> dict[str, Any]:
    nodes = {p: n for p, n in tree.nodes.items() if p == path or p.startswith(f"{path}/")}
    parents = path.split("/")[:-1]
    for i in range(len(parents) + 1):
        nodes["/".join(parents[:i])] = {"node_type": "group", "attributes": {}}
    files: dict[str, Any] = {}
    for node_path, node in nodes.items():
        at = f"{node_path}/" if node_path else ""
        if tree.zarr_format == 3:
            files[f"{at}zarr.json"] = {"zarr_format": 3, **node}
            continue
        files[f"{at}.zattrs"] = node.get("attributes", {})
        if node.get("node_type") == "array":
            files[f"{at}.zarray"] = {k: v for k, v in node.items() if k not in {"attributes", "node_type"}}
        else:
            files[f"{at}.zgroup"] = {"zarr_format": 2}
    return files


def _read(memory: MemoryStore, tree: Tree, path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(memory, mode="r", zarr_format=3 if tree.zarr_format == 3 else 2)
            return ad.io.read_elem(group[path])
    except Exception as error:
        # The bytes are all here: whatever fails now is what they say.
        msg = f"{path!r} cannot be decoded: {error}. The store is damaged; restore it or convert again."
        raise ChunkDecodeError(msg) from error
