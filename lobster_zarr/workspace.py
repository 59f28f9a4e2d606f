"""A workspace of named modalities over several backends, local and on S3, for users without Lobster AI.

Knows which backend a path goes to. Must not know how a backend stores.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import mudata

from lobster_zarr.backend import StorageBackend
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, did_you_mean
from lobster_zarr.kinds import H5ADBackend, MuDataBackend
from lobster_zarr.place import is_absolute, is_s3, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lobster_zarr.rooted import PathLike


class UnknownBackendError(NotFoundError, ValueError):
    """No backend of that name is registered."""


class DataManager:
    """Modalities by name, loaded from and saved to registered backends.

    ``h5ad`` and ``mudata`` are there from the start, below ``workspace_path/data``.

    Parameters
    ----------
    workspace_path
        A local folder, or ``s3://bucket/prefix``.
    default_backend
        Takes relative paths.
    backends
        More of them, by name.
    """

    def __init__(
        self,
        workspace_path: PathLike = "./workspace",
        default_backend: str = "h5ad",
        *,
        backends: dict[str, Any] | None = None,
    ) -> None:
        where = place(workspace_path)
        self.workspace_path: str = str(where)
        self.data_path = str(Path(where.root, "data")) if where.scheme == "file" else f"{where}/data"
        self.modalities: dict[str, Any] = {}
        self.backends: dict[str, Any] = {
            "h5ad": H5ADBackend(self.data_path),
            "mudata": MuDataBackend(self.data_path),
            **(backends or {}),
        }
        self.default_backend = default_backend

    def __repr__(self) -> str:
        names = f"{list(self.modalities)} over {list(self.backends)}"
        return f"DataManager({self.workspace_path!r}, default_backend={self.default_backend!r}): {names}"

    @property
    def default_backend(self) -> str:
        """Name of the backend that takes relative paths."""
        return self._default

    @default_backend.setter
    def default_backend(self, name: str) -> None:
        self._backend(name)
        self._default = name

    def register_backend(self, name: str, backend: Any, overwrite: bool = False) -> None:  # noqa: FBT001, FBT002 - as Lobster AI has it
        """Add a backend.

        Parameters
        ----------
        name
            By which it is chosen.
        backend
            Has `load` and `save`.
        overwrite
            Replace one of that name.

        Raises
        ------
        InvalidArgumentError
            There is one of that name.
        """
        if name in self.backends and not overwrite:
            msg = f"there is a backend {name!r} already; choose another name, or pass overwrite=True."
            raise InvalidArgumentError(msg)
        if not (hasattr(backend, "load") and hasattr(backend, "save")):
            raise InvalidArgumentError(f"a {type(backend).__name__} is no backend; expected one that loads and saves.")
        self.backends[name] = backend

    def list_modalities(self) -> list[str]:
        """Names of what is loaded."""
        return list(self.modalities)

    def get_modality(self, name: str) -> Any:
        """Return one that is loaded.

        Raises
        ------
        NotFoundError
            There is none of that name.
        """
        if name not in self.modalities:
            known = list(self.modalities)
            msg = f"no modality {name!r} is loaded.{did_you_mean(name, known)} There are: {known}"
            raise NotFoundError(msg)
        return self.modalities[name]

    def remove_modality(self, name: str) -> None:
        """Forget one; what is stored stays. Errors as of `get_modality`."""
        self.get_modality(name)
        del self.modalities[name]

    def load_modality(
        self,
        path: PathLike,
        modality_name: str | None = None,
        *,
        lazy: bool = False,
        where: Any = None,
        var: Any = None,
        modalities: Sequence[str] | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> Any:
        """Load a file or store, or a part of it, and keep it under a name.

        Parameters
        ----------
        path
            A relative one is asked of the default backend; ``s3://`` of one that is configured for S3.
        modality_name
            None for the file's name without its ending. One that is loaded already is replaced.
        lazy, where, var, modalities
            As of `StorageBackend.load`.
        backend
            Name of the one to ask instead.
        **options
            More for the backend's `load`.

        Returns
        -------
        AnnData or MuData
            What :meth:`get_modality` gives from now on.

        Raises
        ------
        FileNotFoundError, ValueError, PermissionError, OSError
            As of the backend's `load`.
        """
        taker = self._taker(path, backend)
        given = {"lazy": lazy, "where": where, "var": var, "modalities": modalities}
        given = {key: value for key, value in given.items() if value is not None and value is not False}
        found = taker.load(self._within(path, taker), **given, **options)
        name = PurePosixPath(os.fspath(path).replace("\\", "/")).stem if modality_name is None else modality_name
        self.modalities[name] = found
        return found

    def save_modality(self, modality_name: str, path: PathLike, backend: str | None = None, **options: Any) -> str:
        """Save what is loaded under a name.

        Parameters
        ----------
        modality_name
            Of what is loaded.
        path, backend
            As of `load_modality`.
        **options
            For the backend's `save`: ``sort_by``, ``codec``, ``compression`` and the like.

        Returns
        -------
        str
            Path or URI of what was written.

        Raises
        ------
        NotFoundError
            No such modality is loaded.
        ValueError, PermissionError, OSError
            As of the backend's `save`.
        """
        found = self.get_modality(modality_name)
        taker = self._taker(path, backend, several=isinstance(found, mudata.MuData))
        inner = self._within(path, taker)
        taker.save(found, inner, **options)
        return str(taker.validate_path(inner)) if hasattr(taker, "validate_path") else os.fspath(inner)

    def _backend(self, name: str) -> Any:
        if name not in self.backends:
            known = list(self.backends)
            raise UnknownBackendError(
                f"no backend {name!r} is registered.{did_you_mean(name, known)} There are: {known}"
            )
        return self.backends[name]

    def _taker(self, path: PathLike, named: str | None, *, several: bool | None = None) -> Any:
        """Return the backend for a path; one of ours takes AnnData and MuData where none was named."""
        if named is not None:
            return self._backend(named)
        default = self._backend(self.default_backend)
        taker = self._s3_backend(path, default) if is_s3(path) else default
        if isinstance(taker, StorageBackend):
            return taker.of_any_kind()
        return self.backends["mudata"] if several else taker

    def _s3_backend(self, path: PathLike, default: Any) -> Any:
        """Return the one that is configured for the bucket, else for any, else ours with the environment's."""
        bucket = place(path).root
        known = [default, *self.backends.values()]
        configured = [one for one in known if getattr(one, "bucket", None)]
        exact = [one for one in configured if one.bucket == bucket]
        ours = [one for one in known if isinstance(one, StorageBackend)]
        return next(iter([*exact, *configured, *ours]), default)

    def _within(self, path: PathLike, taker: Any) -> PathLike:
        """Take a path that names the workspace's folder for one below it, as ``./workspace/data/a.h5ad``."""
        if is_absolute(path) or is_s3(self.workspace_path):
            return path
        full = Path(os.path.normpath(Path(path).absolute()))
        if full.is_relative_to(self.data_path):
            return full.relative_to(self.data_path)
        if full.is_relative_to(self.workspace_path):
            return full
        inner = Path(os.path.normpath(path))
        if inner.parts[:1] == ("data",) and getattr(taker, "base_path", None) == self.data_path:
            return inner.relative_to("data")
        return path
