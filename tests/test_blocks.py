"""Batches and blocks of a selection: equal to slices in memory, bounded in memory, and what they cost."""

from __future__ import annotations

import collections
import gc
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from oracle import assert_equal, reordered, sliced
from oracle import stored as as_stored
from recording import RecordingStore
from scipy import sparse
from zarr.storage import LocalStore

import lobster_zarr as lz
from lobster_zarr.blocks import Weights
from lobster_zarr.errors import (
    ChunkDecodeError,
    InvalidArgumentError,
    InvalidPredicateError,
    NotFoundError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from pathlib import Path

N_OBS, N_VARS = 230, 40
GENES = [f"gene-{i}" for i in (30, 2, 17)]


@pytest.fixture(scope="module")
def source() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["T cell", "B cell", "NK", None], N_OBS)),
            # Of a few rows somewhere: a batch without them has lost categories, and colors.
            "plate": pd.Categorical.from_codes(np.repeat(np.arange(23), 10), [f"p{i}" for i in range(24)]),
            "n_counts": rng.integers(0, 100, N_OBS),
        },
        index=[f"cell-{i}" for i in range(N_OBS)],
    )
    adata = ad.AnnData(
        sparse.random(N_OBS, N_VARS, 0.3, "csr", "float32", rng),
        obs=obs,
        var=pd.DataFrame(
            {"mean": rng.random(N_VARS), "kind": pd.Categorical(rng.choice(["a", "b"], N_VARS))},
            index=[f"gene-{i}" for i in range(N_VARS)],
        ),
        layers={"dense": rng.normal(size=(N_OBS, N_VARS)), "counts": sparse.random(N_OBS, N_VARS, 0.1, "csr", "int32")},
        obsm={"X_pca": rng.normal(size=(N_OBS, 5)).astype("float32")},
        varm={"loadings": rng.normal(size=(N_VARS, 2))},
        obsp={"near": sparse.random(N_OBS, N_OBS, 0.05, "csr")},
        uns={"title": "x", "plate_colors": [f"#{i:06x}" for i in range(24)], "nested": {"list": np.arange(3)}},
    )
    return as_stored(adata)


@pytest.fixture(scope="module", params=["sorted", "unsorted"])
def path(request: pytest.FixtureRequest, source: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("blocks") / f"{request.param}.zarr"
    with tiny_chunks():
        lz.convert(source, made, sort_by=["cell_type"] if request.param == "sorted" else [], progress=False)
    return made


QUERIES: dict[str, tuple[Any, Any]] = {
    "everything": (None, None),
    "predicate": ("cell_type == 'T cell'", None),
    "positions": ([7, 200, 7, 3, 90, 91, 92], None),
    "genes": ("n_counts > 40", GENES),
    "one row": ([11], None),
    "no row": ("n_counts > 1000", None),
    "no genes": (slice(3, 50), []),
}


def rows_of(source: ad.AnnData, obs: Any) -> np.ndarray:
    if isinstance(obs, str):
        return np.flatnonzero(source.obs.eval(obs))
    return np.arange(source.n_obs)[slice(None) if obs is None else obs]


@pytest.mark.parametrize("block_bytes", ["1kB", "96MB"])
@pytest.mark.parametrize("question", QUERIES)
def test_batches_are_slices_of_the_selection(path: Path, source: ad.AnnData, question: str, block_bytes: str) -> None:
    obs, var = QUERIES[question]
    rows = rows_of(source, obs)
    batches = list(lz.open(path).query(obs, var).batches(16, block_bytes=block_bytes))
    assert [b.n_obs for b in batches] == [min(16, len(rows) - i) for i in range(0, len(rows), 16)]
    for i, batch in enumerate(batches):
        assert_equal(batch, sliced(source, rows[16 * i : 16 * (i + 1)], slice(None) if var is None else var))


@pytest.mark.parametrize("n_rows", [N_OBS, 1_000])
def test_one_batch_of_everything_is_the_source(path: Path, source: ad.AnnData, n_rows: int) -> None:
    (batch,) = lz.open(path).query().batches(n_rows)
    assert_equal(batch, source)


def test_storage_order(path: Path, source: ad.AnnData) -> None:
    selection = lz.open(path).query(order="storage")
    rows = source.obs_names.get_indexer(selection.to_pandas().index)
    in_storage = reordered(source, rows)
    for i, batch in enumerate(selection.batches(50, block_bytes="2kB")):
        assert_equal(batch, sliced(in_storage, slice(50 * i, 50 * (i + 1)), slice(None)))
    for block in selection.blocks(block_bytes="2kB"):
        assert_equal(block.matrix, in_storage.X[block.rows])


def test_nothing_is_shared_between_batches(path: Path, source: ad.AnnData) -> None:
    for i, batch in enumerate(lz.open(path).query().batches(100, block_bytes="1kB")):
        assert_equal(batch, sliced(source, slice(100 * i, 100 * (i + 1)), slice(None)))
        batch.uns["title"] = "changed"
        batch.uns["nested"]["list"][:] = -1
        batch.varm["loadings"][:] = -1
        batch.var["mean"] = 0.0
        batch.var.index = [f"other-{i}" for i in range(N_VARS)]


@pytest.mark.parametrize("member", ["X", "layers/dense", "layers/counts", "obsm/X_pca"])
@pytest.mark.parametrize("question", QUERIES)
def test_blocks_are_rows_of_the_matrix(path: Path, source: ad.AnnData, question: str, member: str) -> None:
    obs, var = QUERIES[question]
    rows = rows_of(source, obs)
    parent, _, name = member.partition("/")
    expected: Any = source.X if member == "X" else getattr(source, parent)[name]
    expected = (
        expected[rows] if var is None or parent == "obsm" else expected[rows][:, source.var_names.get_indexer(var)]
    )
    blocks = list(lz.open(path).query(obs, var).blocks(member, block_bytes="1kB"))
    assert np.array_equal(np.concatenate([b.rows for b in blocks]), np.arange(len(rows)))
    for block in blocks:
        assert_equal(block.matrix, expected[block.rows])
    if (question, member) in {("everything", "X"), ("predicate", "X"), ("everything", "obsm/X_pca")}:
        assert len(blocks) > 3


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "n_rows": (lambda s: s.batches(0), InvalidArgumentError, "n_rows"),
    "rows of a fraction": (lambda s: s.batches(2.5), InvalidArgumentError, "n_rows"),
    "size of a batch": (lambda s: s.batches(5, block_bytes="x"), InvalidArgumentError, "block_bytes"),
    "size of a block": (lambda s: s.blocks(block_bytes=-1), InvalidArgumentError, "block_bytes"),
    "no such matrix": (lambda s: s.blocks("layers/count"), NotFoundError, "layers/counts"),
    "not a matrix": (lambda s: s.blocks("obs"), NotFoundError, "'obs'"),
    "cells by cells": (lambda s: s.blocks("obsp/near"), UnsupportedError, "obsp/near"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_refused_at_the_call(path: Path, bad: str) -> None:
    call, error, told = BAD[bad]
    with pytest.raises(error, match=told):
        call(lz.open(path).query())


def readers_ahead() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lobster-zarr-ahead")]


@pytest.mark.parametrize("end", ["close", "forget", "raise"])
@pytest.mark.parametrize("kind", ["batches", "blocks", "loader"])
def test_stopping_early_leaves_no_thread(path: Path, end: str, kind: str) -> None:
    def use() -> None:
        selection = lz.open(path).query()
        items: Any = {
            "batches": lambda: selection.batches(10, block_bytes="1kB"),
            "blocks": lambda: selection.blocks(block_bytes="1kB"),
            "loader": lambda: iter(selection.loader(10, buffer_bytes="1kB", run_rows=5)),
        }[kind]()
        next(items)
        assert readers_ahead()
        if end == "close":
            items.close()
        if end == "raise":
            raise ZeroDivisionError

    if end == "raise":
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()
    assert not readers_ahead()


def test_an_error_while_reading_ahead_reaches_the_caller(source: ad.AnnData, tmp_path: Path) -> None:
    with tiny_chunks():
        lz.convert(source, tmp_path / "a.zarr", progress=False)
    last = max((tmp_path / "a.zarr/X/data/c").iterdir(), key=lambda p: int(p.name))
    body = bytearray(last.read_bytes())
    body[3] ^= 1
    last.write_bytes(body)
    blocks = lz.open(tmp_path / "a.zarr").query().blocks(block_bytes="1kB")
    with pytest.raises(ChunkDecodeError, match="X/data"):
        list(blocks)
    batches, seen = lz.open(tmp_path / "a.zarr").query().batches(10, block_bytes="1kB"), []
    with pytest.raises(ChunkDecodeError, match="X/data"):
        seen.extend(batch.n_obs for batch in batches)
    assert 0 < sum(seen) < N_OBS
    assert not readers_ahead()


def test_an_error_of_the_predicate_reaches_the_caller(path: Path) -> None:
    with pytest.raises(InvalidPredicateError):
        next(lz.open(path).query("n_counts ==").blocks())


@pytest.mark.parametrize("kind", ["batches", "blocks", "loader"])
def test_two_blocks_are_in_memory(tmp_path: Path, kind: str) -> None:
    n_obs, block_bytes = 40_000, 2 << 20
    counts = sparse.random(n_obs, 1_000, 0.1, "csr", "float32", np.random.default_rng(0))
    lz.convert(ad.AnnData(counts), tmp_path / "a.zarr", progress=False)  # 32 MB decoded
    selection, n_rows = lz.open(tmp_path / "a.zarr").query(), 0
    items: Any = {
        "batches": lambda: selection.batches(500, block_bytes=block_bytes),
        "blocks": lambda: selection.blocks(block_bytes=block_bytes),
        "loader": lambda: selection.loader(500, buffer_bytes=block_bytes, run_rows=50, seed=0),
    }[kind]
    next(iter(items()))  # what is imported, and read once
    items = items()
    tracemalloc.start()
    gc.disable()  # what only it would free may be many blocks by then
    try:
        for item in items:
            n_rows += item.n_obs if kind == "batches" else len(item.rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        gc.enable()
        tracemalloc.stop()
    assert n_rows == n_obs
    # Two blocks, a batch, offsets of 40,000 rows, and one chunk and its response for each request.
    assert peak < 3 * block_bytes + 40 * n_obs, f"{peak / block_bytes:.1f} blocks"


def test_what_all_batches_need_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordingStore(LocalStore(path, read_only=True))
    monkeypatch.setattr("lobster_zarr.multimodal.open_readable", lambda *_: store)
    selection = lz.open(path).query("n_counts >= 0", layers=[], obsp=[])
    assert sum(1 for _ in selection.batches(10, block_bytes="1kB")) == 23
    asked = collections.Counter(c.key for c in store.calls if c.key.startswith(("uns/", "var", "zarr.json")))
    assert {"uns", "var", "varm"} <= {key.partition("/")[0] for key in asked}
    asked.update(c.key for c in store.calls if c.key.startswith(("X/indptr", "X/_lobster_zarr_")))
    n_ranges = collections.Counter((c.key, str(c.byte_range)) for c in store.calls if c.key in asked)
    assert {what: n for what, n in n_ranges.items() if n > 1} == {}


def test_a_block_ends_where_an_object_ends() -> None:
    weights = Weights(np.full(1_000, 10), shard_bytes=2_000, phase_bytes=500)
    assert weights.bounds(5_000).tolist() == [0, 1_000]
    assert weights.bounds(2_000).tolist() == [0, 150, 350, 550, 750, 950, 1_000]
    assert weights.bounds(4_500).tolist() == [0, 350, 750, 1_000]
    assert weights.bounds(1_000).tolist() == [0, 50, 150, 250, 350, 450, 550, 650, 750, 850, 950, 1_000]


@pytest.mark.parametrize("row_bytes", [[], [5], [0, 0, 0], [900, 1, 1, 900, 1, 900], [1] * 50])
def test_bounds_cover_every_row_once(row_bytes: list[int]) -> None:
    for target in (1, 10, 1_000):
        bounds = Weights(np.asarray(row_bytes, np.int64)).bounds(target).tolist()
        assert bounds[0] == 0
        assert bounds[-1] == len(row_bytes)
        assert len(row_bytes) == 0 or np.all(np.diff(bounds) > 0)
