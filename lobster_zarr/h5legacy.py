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

LIMIT_BYTES = 256 << 20
"""A longer file of that age is refused: it takes several times its size in memory."""
_PART_BYTES = 8 << 20


def is_legacy(tree: Tree) -> bool:
    """Whether a file was written before anndata 0.7."""
    return tree.is_array("obs") or tree.is_array("var") or any(p.startswith("raw.") for p in tree.nodes)


async def read_legacy(
    store: FileStore, limit_bytes: int = LIMIT_BYTES
) -> tuple[Tree, dict[str, bytes], dict[str, Any]]:
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
    BudgetError
        It is longer than `limit_bytes`.
    FormatError
        AnnData cannot read it.
    """
    if store.n_bytes > limit_bytes:
        msg = (
            f"{store} was written before anndata 0.7 and can only be read whole, {store.n_bytes:,} bytes of it; the "
            f"limit is {limit_bytes:,}. Convert it, or re-save it with a current anndata."
        )
        raise BudgetError(msg)
    starts = range(0, store.n_bytes, _PART_BYTES)
    parts = await together(*(store.read(at, min(at + _PART_BYTES, store.n_bytes)) for at in starts))
    adata, memory = await asyncio.to_thread(_staged, b"".join(parts), str(store))
    objects: dict[str, bytes] = {}
    prototype = default_buffer_prototype()
    async for key in memory.list():
        found = await memory.get(key, prototype)
        objects[key] = b"" if found is None else found.to_bytes()
    return await read_tree(memory, str(store)), objects, _elements(adata)


def _staged(body: bytes, name: str) -> tuple[ad.AnnData, MemoryStore]:
    memory = MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adata: Any = ad.read_h5ad(io.BytesIO(body))  # type: ignore[arg-type]  # h5py takes a file as well
        except Exception as error:
            # anndata's readers raise whatever a malformed file makes them stumble over.
            msg = f"{name} was written before anndata 0.7, and anndata cannot read it: {error}"
            raise FormatError(msg) from error
        full = zarr.config.set({"array.write_empty_chunks": True})  # so that no object is looked for in vain
        with full, ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(zarr.open_group(memory, mode="w", zarr_format=3), "/", adata)
        zarr.consolidate_metadata(memory)
    return adata, memory


def _elements(adata: ad.AnnData) -> dict[str, Any]:
    elements: dict[str, Any] = {"uns": dict(adata.uns)}
    for parent in ("obsm", "varm", "varp"):
        elements |= {f"{parent}/{name}": value for name, value in getattr(adata, parent).items()}
    if adata.raw is not None:
        elements |= {"raw/var": adata.raw.var, **{f"raw/varm/{n}": v for n, v in cast("Any", adata.raw).varm.items()}}
    return elements
