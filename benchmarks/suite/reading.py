"""Opening, queries, counts, SQL, lazy access, batches and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .data import QUERIES, STORES, counted, make


class _Made:
    """Made once for all benchmarks of a class; its `setup_cache` runs in a folder that lasts as long as they do."""

    timeout = 300

    def setup_cache(self) -> dict[str, str]:
        return make(Path.cwd())


class Open(_Made):
    """From a path to a dataset."""

    params = [*STORES, "mudata", "file"]  # noqa: RUF012 - as asv wants it
    param_names = ("store",)

    def time_open(self, paths: dict[str, str], store: str) -> None:
        import lobster_zarr as lz

        lz.open(paths[store])

    def track_requests(self, paths: dict[str, str], store: str) -> int:
        return counted(paths[store])[1].n_requests if store != "file" else 0


class Query(_Made):
    """From an open store to an AnnData in memory."""

    params = ([*QUERIES], [*STORES, "file"])
    param_names = ("query", "store")

    def setup(self, paths: dict[str, str], query: str, store: str) -> None:
        import lobster_zarr as lz

        self.dataset: Any = lz.open(paths[store])
        self.arguments: Any = QUERIES[query]

    def time_to_memory(self, paths: dict[str, str], query: str, store: str) -> None:
        self.dataset.query(**self.arguments).to_memory()

    def peakmem_to_memory(self, paths: dict[str, str], query: str, store: str) -> None:
        self.dataset.query(**self.arguments).to_memory()

    def time_explain(self, paths: dict[str, str], query: str, store: str) -> None:
        self.dataset.query(**self.arguments).explain()

    def _read(self, paths: dict[str, str], query: str, store: str) -> tuple[int, int]:
        if store == "file":
            selection = self.dataset.query(**self.arguments)
            selection.to_memory()
            return selection.stats.n_requests, selection.stats.n_bytes
        dataset, counting = counted(paths[store])
        dataset.query(**self.arguments).to_memory()
        return counting.n_requests, counting.n_bytes

    def track_requests(self, paths: dict[str, str], query: str, store: str) -> int:
        return self._read(paths, query, store)[0]

    def track_bytes(self, paths: dict[str, str], query: str, store: str) -> int:
        return self._read(paths, query, store)[1]


class Tables(_Made):
    """Without the matrix."""

    def time_count(self, paths: dict[str, str]) -> None:
        import lobster_zarr as lz

        lz.open(paths["sorted"]).query("cell_type == 'T cell' and n_counts > 2000").count()

    def track_count_requests(self, paths: dict[str, str]) -> int:
        dataset, counting = counted(paths["sorted"])
        dataset.query("cell_type == 'T cell' and n_counts > 2000").count()
        return counting.n_requests

    def time_sql(self, paths: dict[str, str]) -> None:
        import lobster_zarr as lz

        lz.open(paths["sorted"]).sql("SELECT donor, count(*) AS n FROM obs GROUP BY donor")


class Streams(_Made):
    """What does not come at once."""

    def setup(self, paths: dict[str, str]) -> None:
        import lobster_zarr as lz

        self.dataset: Any = lz.open(paths["sorted"])

    def time_lazy(self, paths: dict[str, str]) -> None:
        self.dataset.to_lazy()

    def time_lazy_subset(self, paths: dict[str, str]) -> None:
        lazy = self.dataset.to_lazy()
        lazy[(lazy.obs["cell_type"] == "T cell").to_numpy()].to_memory()

    def time_batches(self, paths: dict[str, str]) -> None:
        for _ in self.dataset.query().batches(1024):
            pass

    def time_loader(self, paths: dict[str, str]) -> None:
        for _ in self.dataset.query().loader(128, seed=0):
            pass

    def time_aggregate(self, paths: dict[str, str]) -> None:
        self.dataset.query().aggregate("cell_type", "sum")


class Modalities(_Made):
    """One modality by the columns of another."""

    QUERY = "rna:cell_type == 'T cell'"

    def time_query(self, paths: dict[str, str]) -> None:
        import lobster_zarr as lz

        dataset: Any = lz.open(paths["mudata"])
        dataset.query(self.QUERY, modalities=["prot"]).to_memory()

    def track_requests(self, paths: dict[str, str]) -> int:
        dataset, counting = counted(paths["mudata"])
        selection: Any = dataset.query(self.QUERY, modalities=["prot"])  # type: ignore[call-arg]
        selection.to_memory()
        return counting.n_requests
