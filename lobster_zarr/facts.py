"""What is told of a file or a store without reading it: size, age, checksum, shape.

Must not know which of its callers may see what.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr import checksum, transfer
from lobster_zarr.byterange import Network
from lobster_zarr.errors import FormatError, NotFoundError, UnsupportedError
from lobster_zarr.listing import STORE_SUFFIX
from lobster_zarr.location import Access, Location
from lobster_zarr.multimodal import MultimodalDataset, opened
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.place import name, suffix
from lobster_zarr.refusal import READ
from lobster_zarr.s3client import missing, payer, s3_client
from lobster_zarr.tree import of_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.dataset import Dataset


def of(where: Location, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe what a name says: a store where it ends in ``.zarr``, else a file; errors as of those two."""
    return (of_store if suffix(where) == STORE_SUFFIX else of_file)(where, options)


def exists(where: Location, options: Mapping[str, Any] | None) -> bool:
    """Whether there is a file, or a store that opens.

    Raises
    ------
    StorageError
        The storage does not say.
    """
    if where.scheme == "file" and suffix(where) != STORE_SUFFIX:
        return Path(where.root).is_file()
    try:
        of(where, options)
    except (NotFoundError, FileNotFoundError):
        return False
    except FormatError:  # damaged, or something else: there it is
        return True
    return True


def of_file(where: Location, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe a file: on S3 one request; a local one is read for its SHA-256.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or the storage refused.
    """
    if where.scheme == "s3":
        found = transfer.describe(str(where), options)
        told = {
            "size": found.size_bytes,
            "modified": found.modified,
            "checksum": found.checksum,
            "etag": found.etag,
            "version_id": found.version_id,
            "storage_class": found.storage_class,
            "encryption": found.encryption,
        }
    elif where.scheme == "file":
        path = Path(where.root)
        if not path.is_file():
            raise missing(where)
        stat = path.stat()
        told = {"size": stat.st_size, "modified": stat.st_mtime, "checksum": checksum.sha256(path)}
    else:
        raise UnsupportedError(f"Cannot describe {where}, expected a local path or s3://bucket/name.")
    return {**told, **_named(where)}


def of_store(where: Location, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe a store: one request where its metadata is consolidated.

    ``size`` is that of its arrays as they are stored, None where it is not noted; ``checksum``
    is that of the root metadata, which names every array's size.

    Raises
    ------
    NotFoundError, FormatError, StorageError
        As of `lobster_zarr.open`.
    """
    root = _root(where, options)
    if root is None:
        data: Dataset | MultimodalDataset = open_dataset(where.url if where.is_secret else str(where), options)
        told: dict[str, Any] = {"modified": None, "checksum": None}
    else:
        data, told = root
    info = data.info()
    facts = {"size": info.stored_bytes, **told, **_named(where), "n_obs": data.n_obs, "n_vars": data.n_vars}
    if isinstance(data, MultimodalDataset):
        facts["modalities"] = {
            key: {"n_obs": part.n_obs, "n_vars": part.n_vars} for key, part in data.modalities.items()
        }
    return {**facts, "sort_by": list(info.sort_by), "writer": info.writer}


def _named(where: Location) -> dict[str, Any]:
    ending = suffix(where)
    return {"format": ending.lstrip(".") or "unknown", "path": str(where), "name": name(where), "extension": ending}


def _root(
    where: Location, options: Mapping[str, Any] | None
) -> tuple[Dataset | MultimodalDataset, dict[str, Any]] | None:
    """Open a store from its root metadata alone, and tell its age; None where that does not do."""
    found = _root_bytes(where, options)
    if found is None:
        return None
    document, modified = found
    store = of_root(document)
    if store is None:
        return None
    told = {"modified": modified, "checksum": checksum.of_bytes(document)}
    return opened(store, str(where), Network()), told


def _root_bytes(where: Location, options: Mapping[str, Any] | None) -> tuple[bytes, float] | None:
    if where.scheme == "file":
        path = Path(where.root, "zarr.json")
        return (path.read_bytes(), path.stat().st_mtime) if path.is_file() else None
    if where.scheme != "s3":
        return None
    access, key = Access.of(options), f"{where.prefix}/zarr.json".lstrip("/")
    with s3_client(where, access, READ) as client:
        try:
            answer = client.get_object(Bucket=where.root, Key=key, **payer(access))
        except client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read(), answer["LastModified"].timestamp()
