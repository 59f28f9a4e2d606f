"""Conversion, export and verification."""

from __future__ import annotations

from pathlib import Path

from .data import STORES, make


class Convert:
    """From an H5AD to a store."""

    timeout = 300
    params = [*STORES]  # noqa: RUF012 - as asv wants it
    param_names = ("store",)
    number, repeat = 1, (1, 3, 30.0)

    def setup_cache(self) -> dict[str, str]:
        return make(Path.cwd())

    def _convert(self, paths: dict[str, str], store: str) -> int:
        import lobster_zarr as lz

        options = STORES[store]
        return lz.convert(paths["file"], "out.zarr", overwrite=True, progress=False, **options).stored_bytes

    def time_convert(self, paths: dict[str, str], store: str) -> None:
        self._convert(paths, store)

    def peakmem_convert(self, paths: dict[str, str], store: str) -> None:
        self._convert(paths, store)

    def track_stored_bytes(self, paths: dict[str, str], store: str) -> int:
        return self._convert(paths, store)

    def time_export(self, paths: dict[str, str], store: str) -> None:
        import lobster_zarr as lz

        lz.export(paths[store], "out.h5ad", overwrite=True, progress=False)

    def time_verify(self, paths: dict[str, str], store: str) -> None:
        import lobster_zarr as lz

        lz.verify(paths[store])
