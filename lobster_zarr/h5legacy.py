"""Files from before anndata 0.7, whose tables are single datasets of records: read whole, as AnnData reads them.

What was read is kept as the objects of a Zarr store, so that queries go the same way
as on any other. Must not know queries.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from typing import TYPE_CHECKING, Any, cast

import anndata as ad
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from lobster_zarr.errors import BudgetError, FormatError
from lobster_zarr.fetch import together
from lobster_zarr.tree import read_tree

if TYPE_CHECKING:
    from lobster_zarr.h5store import FileStore
    from lobster_zarr.node import Tree

LIMIT_BYTES = 2 << 30
"""Memory that opening a file of that age may need."""
EXPANSION = 8
"""Bytes in memory assumed for each byte of such a file."""
_PART_BYTES = 8 << 20


def is_legacy(tree: Tree) -> bool:
    """Whether a file was written before anndata 0.7."""
    return tree.is_array("obs") or tree.is_array("var") or any(p.startswith("raw.") for p in tree.nodes)


async def read_legacy(store: FileStore) -> tuple[Tree, dict[str, bytes], dict[str, Any]]:
    """Read a file whole.

    Returns
    -------
    tree
        Of a Zarr store of the same AnnData.
    objects
        All objects of that store, by key.
    elements
        What is read whole, by path, as AnnData gave it.

    Raises
    ------
    BudgetError, FormatError
        As `load_legacy`.
    """
    adata = await load_legacy(store, LIMIT_BYTES)
    memory = await asyncio.to_thread(_staged, adata)
    objects: dict[str, bytes] = {}
    prototype = default_buffer_prototype()
    async for key in memory.list():
        found = await memory.get(key, prototype)
        objects[key] = b"" if found is None else found.to_bytes()
    return await read_tree(memory, str(store)), objects, _elements(adata)


async def load_legacy(store: FileStore, limit_bytes: int) -> ad.AnnData:
    """Read a file whole, as AnnData.

    Raises
    ------
    BudgetError
        It might need more memory than `limit_bytes`.
    FormatError
        AnnData cannot read it.
    """
    if store.n_bytes * EXPANSION > limit_bytes:
        msg = (
            f"{store} was written before anndata 0.7 and can only be read whole, about "
            f"{store.n_bytes * EXPANSION:,} bytes; the limit is {limit_bytes:,}. "
            "Convert it with a higher memory_limit, or re-save it with a current anndata."
        )
        raise BudgetError(msg)
    starts = range(0, store.n_bytes, _PART_BYTES)
    parts = await together(*(store.read(at, min(at + _PART_BYTES, store.n_bytes)) for at in starts))
    return await asyncio.to_thread(_read, b"".join(parts), str(store))


def _read(body: bytes, name: str) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ad.read_h5ad(io.BytesIO(body))  # type: ignore[arg-type]  # h5py takes a file as well
        except Exception as error:
            # anndata's readers raise whatever a malformed file makes them stumble over.
            msg = f"{name} was written before anndata 0.7, and anndata cannot read it: {error}"
            raise FormatError(msg) from error


def _staged(adata: ad.AnnData) -> MemoryStore:
    memory = MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = zarr.config.set({"array.write_empty_chunks": True})  # so that no object is looked for in vain
        with full, ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(zarr.open_group(memory, mode="w", zarr_format=3), "/", adata)
        zarr.consolidate_metadata(memory)
    return memory


def _elements(adata: ad.AnnData) -> dict[str, Any]:
    elements: dict[str, Any] = {"uns": dict(adata.uns)}
    for parent in ("obsm", "varm", "varp"):
        elements |= {f"{parent}/{name}": value for name, value in getattr(adata, parent).items()}
    if adata.raw is not None:
        elements |= {"raw/var": adata.raw.var, **{f"raw/varm/{n}": v for n, v in cast("Any", adata.raw).varm.items()}}
    return elements
