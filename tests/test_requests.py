"""What queries cost, as the store sees it: requests, bytes and dependent round trips, cold and warm."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from oracle import assert_equal
from oracle import stored as as_stored
from recording import Waves
from scipy import sparse
from zarr.storage import LocalStore

import lobster_zarr as lz

if TYPE_CHECKING:
    from pathlib import Path

N_OBS, N_VARS, CHUNK = 20_000, 1_000, 1_024
TYPES = ["B cell", "NK", "T cell", "monocyte"]
MARKERS = [f"gene-{i}" for i in range(0, N_VARS, 20)]
X_ALONE = {"obs_columns": [], "var_columns": [], "obsm": [], "uns": False}


@pytest.fixture(scope="module")
def atlas() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        sparse.random(N_OBS, N_VARS, 0.05, "csr", "float32", rng),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(rng.choice(TYPES, N_OBS, p=[0.3, 0.2, 0.1, 0.4])),
                "donor": pd.Categorical(rng.choice(["d1", "d2", "d3"], N_OBS)),
                "n_counts": rng.integers(0, 1_000, N_OBS),
            },
            index=[f"cell-{i}" for i in range(N_OBS)],
        ),
        var=pd.DataFrame({"mean": rng.random(N_VARS)}, index=[f"gene-{i}" for i in range(N_VARS)]),
        obsm={"X_umap": rng.normal(size=(N_OBS, 2)).astype(np.float32)},
        uns={"title": "atlas", "colors": ["red", "green"]},
    )
    adata.X.data = np.ceil(adata.X.data * 8)
    return adata


@pytest.fixture(scope="module", params=["sorted", "unsorted"])
def stored(request: pytest.FixtureRequest, atlas: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("requests") / f"{request.param}.zarr"
    with tiny_chunks(chunk=CHUNK, shard_chunks=2_048, noted_chunks=128, noted_bytes=1 << 16):
        lz.convert(atlas, path, sort_by=["cell_type"] if request.param == "sorted" else [], progress=False)
    return path


def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[lz.Dataset, Waves]:
    store = Waves(LocalStore(path, read_only=True))
    monkeypatch.setattr("lobster_zarr.multimodal.open_readable", lambda *_: store)
    return lz.open(path), store


QUESTIONS: dict[str, dict[str, Any]] = {
    "cell type": {"obs": "cell_type == 'T cell'"},
    "cell type, X": {"obs": "cell_type == 'T cell'", **X_ALONE},
    "scattered": {"obs": "n_counts < 50"},
    "gene": {"var": ["gene-7"], **X_ALONE},
    "genes of a cell type": {"obs": "cell_type == 'T cell'", "var": MARKERS, **X_ALONE},
    "everything": {},
    "obs": {"X": False, "obsm": [], "uns": False, "var_columns": []},
}
# Requests with the root's, and of the same question asked again: what a plan needs is known by then.
COSTS: dict[tuple[str, str], tuple[int, int]] = {
    ("sorted", "cell type"): (9, 7),
    ("sorted", "cell type, X"): (5, 3),
    ("sorted", "scattered"): (15, 13),
    ("sorted", "gene"): (5, 3),
    ("sorted", "genes of a cell type"): (6, 3),
    ("sorted", "everything"): (10, 7),
    ("sorted", "obs"): (5, 3),
    ("unsorted", "cell type"): (10, 8),
    ("unsorted", "cell type, X"): (6, 4),
    ("unsorted", "scattered"): (13, 11),
    ("unsorted", "gene"): (5, 3),
    ("unsorted", "genes of a cell type"): (105, 102),
    ("unsorted", "everything"): (10, 8),
    ("unsorted", "obs"): (5, 4),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_a_query_costs(stored: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store = opened(stored, monkeypatch)
    assert store.keys == ["zarr.json"]
    cold = dataset.query(**QUESTIONS[name])
    cold.to_memory()
    n_cold = len(store.calls)
    if n_cold <= 64:  # more than that wait for a place
        assert store.n_waves <= 3
    assert (n_cold - 1, store.n_bytes) == (cold.stats.n_requests, cold.stats.n_bytes + store.calls[0].n_bytes)

    store.forget()
    dataset.query(**QUESTIONS[name]).to_memory()
    assert (n_cold, len(store.calls)) == COSTS[stored.stem, name]

    fresh, store = opened(stored, monkeypatch)
    selection = fresh.query(**QUESTIONS[name])
    plan = selection.explain()
    store.forget()
    selection.to_memory()
    assert plan.exact
    assert (plan.n_requests, plan.n_bytes) == (len(store.calls), store.n_bytes)


def test_counting_reads_the_columns_of_the_predicate(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store = opened(stored, monkeypatch)
    assert dataset.query("n_counts < 50 and cell_type == 'T cell'").count() > 0
    assert len(store.calls) <= 3
    assert all(key == "zarr.json" or key.startswith(("obs/n_counts/", "obs/cell_type/")) for key in store.keys)


def test_a_sorted_column_is_read_where_it_can_match(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store = opened(stored, monkeypatch)
    n_cells = dataset.query("cell_type == 'T cell' and n_counts >= 0").count()
    n_bytes = dataset.stats.by_array["obs/n_counts"][1]
    whole = dataset.fetcher.stored_bytes["obs/n_counts"]
    share = (n_cells / CHUNK + 2) * CHUNK / N_OBS
    assert n_bytes <= (share if dataset.sort_by else 1) * whole
    store.forget()
    assert dataset.query("cell_type == 'nobody'").count() == 0
    assert len(store.calls) <= 2, "only to say which clause left no row"


def test_threads_share_a_dataset(stored: Path, atlas: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store = opened(stored, monkeypatch)
    whole = as_stored(atlas)
    masks = {t: (atlas.obs["cell_type"] == t).to_numpy() for t in TYPES}
    start = threading.Barrier(len(TYPES) * 2)

    def ask(kind: str, genes: list[str] | None) -> ad.AnnData:
        start.wait()
        return dataset.query(f"cell_type == {kind!r}", var=genes).to_memory()

    with ThreadPoolExecutor(len(TYPES) * 2) as pool:
        asked = [(kind, genes) for kind in TYPES for genes in (None, MARKERS[:3])]
        for (kind, genes), answer in zip(asked, pool.map(ask, *zip(*asked, strict=True)), strict=True):
            expected = whole[masks[kind], genes or slice(None)].copy()
            assert_equal(answer, expected, sparse_layout="any")
    offsets = [key for key in store.keys if "_lobster_zarr_index" in key]
    assert len(offsets) == len(set(offsets)), "what all need is read once"


@pytest.mark.parametrize("query", [{"obs": ["cell-7", "cell-9000"]}, {"obs": [5, 3], "var": ["gene-7"]}], ids=str)
def test_names_and_positions_take_three_round_trips(
    stored: Path, atlas: ad.AnnData, query: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, store = opened(stored, monkeypatch)
    selection = dataset.query(**query)
    assert_equal(selection.to_memory(), as_stored(atlas)[query["obs"], query.get("var", slice(None))].copy())
    assert store.n_waves <= 3
    assert max(n for n, _ in selection.stats.by_array.values()) <= 2
    positions, store = opened(stored, monkeypatch)
    assert positions.query([5, 3]).count() == 2
    assert store.keys == ["zarr.json"], "positions are counted without a read"


@pytest.mark.parametrize("cells", ["cell_type == 'nobody'", []], ids=str)
def test_nothing_of_a_few_genes_is_told_and_read_alike(
    stored: Path, cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, store = opened(stored, monkeypatch)
    selection = dataset.query(cells, var=["gene-3"], **X_ALONE)
    plan = selection.explain()
    store.forget()
    assert selection.to_memory().shape == (0, 1)
    assert plan.exact
    assert (plan.n_requests, plan.n_bytes) == (len(store.calls), store.n_bytes)


def test_a_gene_of_a_matrix_by_cell_takes_no_more_than_the_window(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded halves of chunks do not pile up until the other halves come."""
    from lobster_zarr import sparse as reading

    monkeypatch.setattr("lobster_zarr.fetch.WINDOW_BYTES", 20_000)
    with tiny_chunks(chunk=CHUNK, shard_chunks=2_048, noted_chunks=128):
        lz.convert(atlas, tmp_path / "a.zarr", gene_major=False, progress=False)
    waiting: list[int] = []

    class Watched(reading._Pairs):
        def put(self, half, chunk_id, decoded):
            found = super().put(half, chunk_id, decoded)
            waiting.append(len(self._waiting))
            return found

    monkeypatch.setattr(reading, "_Pairs", Watched)
    dataset = lz.open(tmp_path / "a.zarr", network=lz.Network(max_request_bytes=4_000))
    answer = dataset.query(var=["gene-7"], **X_ALONE).to_memory()
    assert (answer.X != as_stored(atlas)[:, ["gene-7"]].X).nnz == 0
    assert len(waiting) > 1_500
    assert max(waiting) < 60


def test_the_order_of_all_rows_is_read_once(atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a store whose companion is too small for an index, which would hold it too."""
    with tiny_chunks(chunk=CHUNK, shard_chunks=2_048, noted_chunks=10_000):
        lz.convert(atlas, tmp_path / "a.zarr", sort_by=["cell_type"], progress=False)
    dataset, store = opened(tmp_path / "a.zarr", monkeypatch)
    selection = dataset.query(var=["gene-7"])
    plan = selection.explain()
    store.forget()
    assert_equal(selection.to_memory(), as_stored(atlas)[:, ["gene-7"]].copy(), sparse_layout="any")
    assert sum("source_order" in key for key in store.keys) == 1
    assert (plan.n_requests, plan.n_bytes) == (len(store.calls), store.n_bytes)
