"""Storage backends: one call each to load, save, find, describe and query what an application names by a path.

Knows which form a path asks for (.h5ad, .h5mu, .zarr), and which errors a backend
is documented to raise. Must not know the application.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import mudata

from lobster_zarr import answer, datafile, facts, listing, removal, transfer
from lobster_zarr.convert import convert
from lobster_zarr.documented import MissingFileError, finding, saving
from lobster_zarr.errors import ConflictError, FormatError, InvalidArgumentError, UnsupportedError
from lobster_zarr.h5ad import compression_options
from lobster_zarr.location import Location, display_uri
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.place import name, suffix
from lobster_zarr.rooted import Rooted
from lobster_zarr.s3client import missing
from lobster_zarr.wholefile import make_folder, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import anndata as ad

    from lobster_zarr.dataset import Dataset
    from lobster_zarr.rooted import PathLike
    from lobster_zarr.transfer import Callback, Parts

GZIP_LEVEL = 6
_CAPABILITIES = ("load", "save", "exists", "delete", "list_files", "get_metadata", "query")


class StorageBackend(Rooted):
    """Loads and saves AnnData and MuData, locally and on S3.

    A name's ending says its form: ``.h5ad`` and ``.h5mu`` are files, ``.zarr`` is a store, of which
    a part can be loaded. Instances pickle without their secrets, as datasets do.

    Parameters
    ----------
    base_path
        What relative paths are relative to: a local folder or ``s3://bucket/prefix``. None for the
        bucket of `configure_s3`, else the working directory.
    compression, compression_opts
        Of .h5ad and .h5mu files: ``"gzip"`` with its level (None for 6), ``"lzf"`` or ``"none"``.
    parts
        How files are cut on their way to and from S3; None as of `transfer.upload`.
    progress
        Show progress bars when on a terminal.
    """

    formats: ClassVar[tuple[str, ...]] = ("h5ad", "h5mu", "zarr")

    def __init__(
        self,
        base_path: PathLike | None = None,
        compression: str | None = "gzip",
        compression_opts: int | None = None,
        *,
        parts: Parts | None = None,
        progress: bool = True,
    ) -> None:
        compression_options(compression, compression_opts)
        level = GZIP_LEVEL if compression == "gzip" and compression_opts is None else compression_opts
        super().__init__(base_path)
        self.compression, self.compression_opts = compression, level
        self.parts, self.progress = parts, progress

    def of_any_kind(self) -> StorageBackend:
        """Return one that lies at the same place and takes AnnData and MuData."""
        twin = StorageBackend(self.base_path, self.compression, self.compression_opts)
        twin.__dict__.update(vars(self))
        return twin

    def supports_format(self, format_name: str) -> bool:
        """Whether files of this ending are loaded and saved."""
        return format_name.lower().lstrip(".") in self.formats

    def _form(self, where: Location) -> str:
        ending = suffix(where).lstrip(".")
        if ending not in self.formats:
            others = _other_backend(ending)
            known = ", ".join(f".{form}" for form in self.formats)
            raise FormatError(f"{where} ends in {ending or 'nothing'!r}; expected one of {known}.{others}")
        return ending

    def load(  # noqa: PLR0913 - the public contract
        self,
        path: PathLike,
        *,
        where: Any = None,
        var: Any = None,
        lazy: bool = False,
        modalities: Sequence[str] | None = None,
        backed: bool = False,
        version: str | None = None,
        callback: Callback | None = None,
        **elements: Any,
    ) -> Any:
        """Load a file or store, or a part of it.

        Of a part only its bytes are read, of a store or a file. A whole file comes from S3 through
        scratch space, checked against its checksum.

        Parameters
        ----------
        path
            Of an .h5ad, .h5mu or .zarr.
        where, var
            Which cells and genes, as `obs` and `var` of `Dataset.query`.
        lazy
            Read values when they are used.
        modalities
            Of a MuData, those that are wanted.
        backed
            Of a local file: leave X in it.
        version
            On S3, the id of a version that `lobster_zarr.versions` lists; None for what is there now.
        callback
            Called with the bytes of a download that are done, and of the whole.
        **elements
            More of `Dataset.query`: ``layers``, ``obsm``, ``order``, ``max_bytes`` and the like.

        Returns
        -------
        AnnData or MuData

        Raises
        ------
        FileNotFoundError
            There is nothing at the path.
        ValueError
            It is damaged or of another kind, or an option does not fit it.
        PermissionError, OSError
            The storage refused.
        """
        at = self._place(path)
        asked = elements | {key: v for key, v in (("obs", where), ("var", var)) if v is not None}
        asked |= {} if modalities is None else {"modalities": modalities}
        in_place = self._form(at) == "zarr" or bool(asked) or lazy
        _refuse(version is not None and at.scheme != "s3", "version", "what lies at s3://")
        _refuse(backed and (in_place or at.scheme != "file"), "backed", "a whole local .h5ad or .h5mu")
        if in_place:
            selection = self._checked(self._open(at, version)).query(**asked)
            return selection.to_lazy() if lazy else selection.to_memory(progress=self.progress)
        with self._local(at, callback, version) as file:
            self._check_kind(several=datafile.is_mudata(file), what=str(at))
            return datafile.read_file(file, backed=backed)

    def save(
        self,
        data: ad.AnnData | mudata.MuData,
        path: PathLike,
        *,
        overwrite: bool = True,
        callback: Callback | None = None,
        **options: Any,
    ) -> None:
        """Save a file or store; what was there is replaced. What is lazy or backed is read first.

        Parameters
        ----------
        data
            An AnnData for .h5ad, a MuData for .h5mu, either for .zarr.
        path
            Where to; missing folders are made.
        overwrite
            Whether something there is replaced.
        callback
            Called with the bytes of an upload that are done, and of the whole.
        **options
            Of a store, those of `lobster_zarr.convert`: ``sort_by``, ``codec``, ``gene_major``; of a
            file, ``compression`` and ``compression_opts``, where not as this backend has them.

        Raises
        ------
        ValueError
            It holds what cannot be saved, or does not fit the ending.
        FileExistsError
            Something is there, and `overwrite` is False; or what is there is no store of cells.
        PermissionError, OSError
            The storage refused.
        """
        at = self._place(path)
        form = self._form(at)
        data = datafile.in_memory(self._checked(data))
        with saving():
            if form == "zarr":
                for given in options.keys() - signature(convert).parameters.keys():
                    _refuse(given, given, "no store; expected an option of lobster_zarr.convert")
                settings = {"progress": self.progress, **options}
                convert(data, str(at), overwrite=overwrite, storage_options=self._storage_options(at), **settings)
                return
            if (form == "h5mu") != isinstance(data, mudata.MuData):
                expected = ".h5mu" if isinstance(data, mudata.MuData) else ".h5ad"
                raise FormatError(f"a {type(data).__name__} cannot be {at}; expected a name in {expected} or .zarr.")
            if not overwrite and self.exists(path):
                raise ConflictError(f"{at} exists; pass overwrite=True to replace it.")
            for given in options:
                _refuse(given not in {"compression", "compression_opts"}, given, "a .zarr store")
            with self._outgoing(at, callback) as file:
                datafile.write_file(data, file, *self._compression(options))

    def _compression(self, options: dict[str, Any]) -> tuple[str | None, int | None]:
        chosen = options.get("compression", self.compression)
        level = self.compression_opts if chosen == self.compression else None
        return chosen, options.get("compression_opts", level)

    def _checked(self, data: Any) -> Any:
        """Refuse what is not of this backend's kind."""
        several = isinstance(data, MultimodalDataset | mudata.MuData)
        if not hasattr(data, "obs"):
            raise InvalidArgumentError(f"a {type(data).__name__} is no AnnData or MuData, expected one of them.")
        self._check_kind(several=several, what=getattr(data, "uri", f"the {type(data).__name__}"))
        return data

    def _check_kind(self, *, several: bool, what: str) -> None:
        form = "h5mu" if several else "h5ad"
        if form not in self.formats:
            kind = "a MuData" if several else "an AnnData"
            raise FormatError(f"{what} is {kind}, which {type(self).__name__} does not hold.{_other_backend(form)}")

    def _open(self, at: Location, version: str | None = None) -> Dataset | MultimodalDataset:
        with finding():
            return open_dataset(at.url if at.is_secret else str(at), self._storage_options(at), version=version)

    @contextmanager
    def _local(self, at: Location, callback: Callback | None = None, version: str | None = None) -> Iterator[Path]:
        """Give a file of this machine, as long as the block lasts."""
        if at.scheme == "file":
            if not Path(at.root).is_file():
                raise MissingFileError(str(missing(at)))
            yield Path(at.root)
            return
        if at.scheme != "s3":
            raise UnsupportedError(f"Cannot read the file {at}, expected s3:// or a local path. Copy it there first.")
        with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as scratch:
            path, options = Path(scratch, name(at)), self._storage_options(at)
            with finding():
                how: Any = {"parts": self.parts, "callback": callback, "progress": self.progress}
                transfer.download(str(at), path, options, version=version, **how)
            yield path

    @contextmanager
    def _outgoing(self, at: Location, callback: Callback | None = None) -> Iterator[Path]:
        """Give a path to write a file to, that is brought where it belongs at the end of the block."""
        if at.scheme == "file":
            yield make_folder(Path(at.root))
            return
        if at.scheme != "s3":
            raise UnsupportedError(f"Cannot write the file {at}, expected s3:// or a local path.")
        with tempfile.TemporaryDirectory(prefix="lobster-zarr-") as scratch:
            path = Path(scratch, name(at))
            yield path
            options = self._storage_options(at)
            transfer.upload(path, str(at), options, parts=self.parts, callback=callback, progress=self.progress)

    def query(self, path: PathLike, query: str, output_format: str = "parquet", output: PathLike | None = None) -> Any:
        """Answer an SQL query about cells; only what it needs is read.

        Parameters
        ----------
        path
            Of a store or a file.
        query
            ``SELECT obs WHERE obs.cell_type = 'T cell'`` for whole rows, or any SQL of `Dataset.sql`.
        output_format
            ``"parquet"``, ``"csv"``, ``"json"``: the bytes of a file; ``"pandas"``, ``"arrow"``,
            ``"polars"``: a table; ``"anndata"``: the cells themselves, for ``SELECT obs`` alone.
        output
            Write the file there instead, locally or on S3; with ``"anndata"`` a name that `save` takes.

        Returns
        -------
        bytes, a table or AnnData; str, where it was written, with `output`

        Raises
        ------
        InvalidPredicateError, NotFoundError
            The text is no query, or names what does not exist.
        FileNotFoundError, PermissionError, OSError
            As of `load`.
        """
        answer.check_question(query, output_format)
        if output is not None and output_format not in (*answer.FILES, "anndata"):
            msg = f"output is for {', '.join(answer.FILES)} and anndata; {output_format!r} is no file."
            raise InvalidArgumentError(msg)
        found = self._answer(self._place(path), query, output_format)
        if output is None:
            return found
        if output_format == "anndata":
            self.save(found, output)
        else:
            with self._outgoing(self._place(output)) as out, whole_file(out) as part:
                part.write_bytes(found)
        return str(self._place(output))

    def _answer(self, at: Location, query: str, output_format: str) -> Any:
        self._form(at)
        return _answered(self._open(at), query, output_format, progress=self.progress)

    def exists(self, path: PathLike) -> bool:
        """Whether there is a file or store.

        Raises
        ------
        PermissionError, OSError
            The storage does not say.
        """
        at = self._place(path)
        return facts.exists(at, self._storage_options(at))

    def get_metadata(self, path: PathLike) -> dict[str, Any]:
        """Describe a file or store without reading it: on S3, one request.

        Returns
        -------
        dict
            ``size``, ``modified`` (seconds since 1970), ``checksum``, ``format``, ``path``, ``name``; of a
            store also ``n_obs``, ``n_vars``, ``sort_by``, ``writer``, of a MuData ``modalities``.

        Raises
        ------
        FileNotFoundError, PermissionError, OSError
            There is none, or the storage refused.
        """
        at = self._place(path)
        with finding():
            return facts.of(at, self._storage_options(at))

    def list_files(self, directory: PathLike = ".", pattern: str = "*") -> list[str]:
        """List files and stores of a folder, sorted; ``**/*.zarr`` for all levels.

        Raises
        ------
        FileNotFoundError
            There is no such folder; on S3, nothing below it.
        PermissionError, OSError
            The storage refused.
        """
        at = self._place(directory)
        with finding():
            return listing.names(at, self._storage_options(at), pattern)

    def delete(self, path: PathLike) -> None:
        """Delete a file or store; of a store first what makes it open.

        Raises
        ------
        FileNotFoundError, PermissionError, OSError
            There is none, or the storage refused.
        """
        at = self._place(path)
        with finding():
            removal.remove(at, self._storage_options(at))

    def get_storage_info(self) -> dict[str, Any]:
        """Describe this backend, without secrets."""
        base = None if self.base_path is None else display_uri(self.base_path)
        return {
            "backend_type": "s3" if self._place(".").scheme == "s3" else "local",
            "backend_class": type(self).__name__,
            "capabilities": list(_CAPABILITIES),
            "configuration": self.s3_config,
            "base_path": base,
            "supported_formats": list(self.formats),
            "compression": self.compression,
            "compression_opts": self.compression_opts,
            "s3_ready": True,
        }


def _other_backend(form: str) -> str:
    takers = {"h5ad": "H5ADBackend", "h5mu": "MuDataBackend"}
    return f" {takers[form]} does." if form in takers else ""


def _refuse(given: object, option: str, what: str) -> None:
    if given:
        raise InvalidArgumentError(f"{option} is for {what}.")


def _answered(data: Dataset | MultimodalDataset, query: str, output_format: str, *, progress: bool) -> Any:
    if output_format == "anndata":
        return answer.cells(data, query, progress=progress)
    return answer.table(data, query, output_format, progress=progress)
