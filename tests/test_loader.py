"""An epoch of the loader is the selection, every row once, with its labels; also in several processes."""

from __future__ import annotations

import multiprocessing as mp
import pickle
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from oracle import assert_equal
from oracle import stored as as_stored
from recording import RecordingStore
from scipy import sparse
from zarr.storage import LocalStore

import lobster_zarr as lz
from lobster_zarr.errors import ChunkDecodeError, InvalidArgumentError, NotFoundError, UnsupportedError
from lobster_zarr.loader import encode
from tests.test_blocks import QUERIES, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.s3 import S3Server

N_OBS, N_VARS = 211, 40
TYPES = ["T cell", "B cell", "NK", "absent"]
SMALL: dict[str, Any] = {"buffer_bytes": "4kB", "run_rows": 5}


@pytest.fixture(scope="module")
def source() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(rng.integers(-1, 3, N_OBS), TYPES),
            "cluster": pd.Categorical(rng.integers(5, 9, N_OBS)),
            "n_counts": rng.integers(0, 100, N_OBS),
            "score": rng.normal(size=N_OBS).astype("float32"),
            "doublet": rng.random(N_OBS) < 0.5,
            "sample": [f"s{i}" for i in rng.integers(0, 3, N_OBS)],
            "passed": pd.array(rng.choice([True, False, None], N_OBS), dtype="boolean"),
            "passage": pd.array(rng.integers(0, 9, N_OBS), dtype="Int16"),
        },
        index=[f"cell-{i}" for i in range(N_OBS)],
    )
    adata = ad.AnnData(
        sparse.random(N_OBS, N_VARS, 0.3, "csr", "float32", rng),
        obs=obs,
        var=pd.DataFrame(index=[f"gene-{i}" for i in range(N_VARS)]),
        layers={"dense": rng.normal(size=(N_OBS, N_VARS)), "counts": sparse.random(N_OBS, N_VARS, 0.1, "csr", "int32")},
        obsm={"X_pca": rng.normal(size=(N_OBS, 5)).astype("float32")},
        obsp={"near": sparse.random(N_OBS, N_OBS, 0.05, "csr")},
    )
    return as_stored(adata)


@pytest.fixture(scope="module", params=["sorted", "unsorted"])
def path(request: pytest.FixtureRequest, source: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("loader") / f"{request.param}.zarr"
    with tiny_chunks():
        lz.convert(source, made, sort_by=["cell_type"] if request.param == "sorted" else [], progress=False)
    return made


def matrix_of(source: ad.AnnData, member: str, var: Any) -> Any:
    parent, _, name = member.partition("/")
    matrix: Any = source.X if member == "X" else getattr(source, parent)[name]
    return matrix if var is None or parent == "obsm" else matrix[:, source.var_names.get_indexer(var)]


def rows_in(batches: Iterable[Any]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("member", ["X", "layers/dense", "layers/counts", "obsm/X_pca"])
@pytest.mark.parametrize("question", QUERIES)
def test_an_epoch_is_the_selection(path: Path, source: ad.AnnData, question: str, member: str, shuffle: bool) -> None:
    obs, var = QUERIES[question]
    rows, expected = rows_of(source, obs), matrix_of(source, member, var)
    loader = (
        lz.open(path)
        .query(obs, var)
        .loader(16, shuffle=shuffle, seed=1, labels=["cell_type", "n_counts"], path=member, **SMALL)
    )
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(rows) // 16)
    assert sorted(rows_in(batches)) == list(range(len(rows)))
    assert shuffle or rows_in(batches) == list(range(len(rows)))
    for batch in batches:
        assert_equal(batch.X, expected[rows[batch.rows]])
        table = source.obs.iloc[rows[batch.rows]]
        assert_equal(batch.labels["n_counts"], table["n_counts"].to_numpy())
        assert_equal(batch.labels["cell_type"], table["cell_type"].cat.codes.to_numpy("int64"))


@pytest.mark.parametrize("question", ["everything", "genes", "no genes"])
def test_dense_batches(path: Path, source: ad.AnnData, question: str) -> None:
    obs, var = QUERIES[question]
    rows, expected = rows_of(source, obs), matrix_of(source, "X", var)
    for batch in lz.open(path).query(obs, var).loader(16, dense=True, **SMALL):
        assert_equal(batch.X, expected[rows[batch.rows]].toarray())


def test_storage_order(path: Path, source: ad.AnnData) -> None:
    selection = lz.open(path).query(order="storage")
    rows = source.obs_names.get_indexer(selection.to_pandas().index)
    batches = list(selection.loader(50, shuffle=False, labels=["n_counts"], **SMALL))
    assert rows_in(batches) == list(range(N_OBS))
    for batch in batches:
        assert_equal(batch.X, source.X[rows[batch.rows]])
        assert_equal(batch.labels["n_counts"], source.obs["n_counts"].to_numpy()[rows[batch.rows]])


def test_labels_of_every_kind(path: Path, source: ad.AnnData) -> None:
    loader = lz.open(path).query().loader(N_OBS, shuffle=False, labels=list(source.obs))
    (batch,) = loader
    assert {name: list(index) for name, index in loader.classes.items()} == {
        "cell_type": TYPES,  # "absent" too: two queries have the same codes
        "cluster": [5, 6, 7, 8],
        "sample": ["s0", "s1", "s2"],
    }
    for name in ("cell_type", "cluster", "sample"):
        assert batch.labels[name].dtype == np.int64
        found = pd.Categorical.from_codes(batch.labels[name], loader.classes[name])
        assert np.array_equal(np.asarray(found, object), np.asarray(source.obs[name], object)) or name == "cell_type"
    assert (batch.labels["cell_type"] == -1).sum() == source.obs["cell_type"].isna().sum() > 0
    for name in ("n_counts", "score", "doublet"):
        assert_equal(batch.labels[name], source.obs[name].to_numpy())
    assert_equal(batch.labels["passage"], source.obs["passage"].to_numpy("int16"))
    assert_equal(batch.labels["passed"], source.obs["passed"].to_numpy("float64", na_value=np.nan))


@pytest.mark.parametrize("dtype", ["string", "str", object])
def test_text_that_is_missing_is_coded_so(dtype: Any) -> None:
    codes, classes = encode(pd.array(["b", None, "a", "b"], dtype=dtype))
    assert codes.tolist() == [1, -1, 0, 1]
    assert classes is not None
    assert classes.tolist() == ["a", "b"]


def test_each_epoch_has_an_order_that_the_seed_repeats(path: Path) -> None:
    selection = lz.open(path).query()
    loader, again = (selection.loader(16, seed=5, **SMALL) for _ in range(2))
    epochs = [rows_in(loader) for _ in range(3)]
    assert epochs == [rows_in(again) for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    again.set_epoch(1)
    assert [rows_in(again), rows_in(again)] == epochs[1:]
    assert rows_in(selection.loader(16, seed=6, **SMALL)) not in epochs
    unseeded = [rows_in(selection.loader(16, **SMALL)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_epochs_that_overlap_do_not_disturb_each_other(path: Path) -> None:
    loader = lz.open(path).query().loader(16, seed=5, **SMALL)
    expected = [rows_in(loader), rows_in(loader)]
    loader.set_epoch(0)
    first, second = iter(loader), iter(loader)
    both = list(zip(first, second, strict=True))
    assert [rows_in(b[i] for b in both) for i in (0, 1)] == expected


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_rows(path: Path, world_size: int, drop_last: bool) -> None:
    how: dict[str, Any] = {"seed": 3, "world_size": world_size, "drop_last": drop_last, **SMALL}
    ranks = [lz.open(path).query().loader(16, rank=rank, **how) for rank in range(world_size)]
    seen = [list(rank) for rank in ranks]
    assert [len(s) for s in seen] == [len(rank) for rank in ranks]
    rows = [row for s in seen for row in rows_in(s)]
    assert len(set(rows)) == len(rows)
    if drop_last:
        assert len(rows) == N_OBS // world_size // 16 * 16 * world_size
    else:
        assert sorted(rows) == list(range(N_OBS))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "batch size": ({"batch_size": 0}, InvalidArgumentError, "batch_size"),
    "run": ({"run_rows": 0}, InvalidArgumentError, "run_rows"),
    "buffer": ({"buffer_bytes": "many"}, InvalidArgumentError, "buffer_bytes"),
    "seed": ({"seed": -1}, InvalidArgumentError, "seed"),
    "fraction": ({"seed": 0.5}, InvalidArgumentError, "seed"),
    "world": ({"world_size": 0}, InvalidArgumentError, "world_size"),
    "rank": ({"rank": 2, "world_size": 2, "seed": 0}, InvalidArgumentError, "rank is 2"),
    "no common seed": ({"world_size": 2}, InvalidArgumentError, "seed"),
    "one text": ({"labels": "cell_type"}, InvalidArgumentError, "cell_type"),
    "label": ({"labels": ["celltype"]}, NotFoundError, "cell_type"),
    "matrix": ({"path": "layers/count"}, NotFoundError, "layers/counts"),
    "cells by cells": ({"path": "obsp/near"}, UnsupportedError, "obsp/near"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_refused_when_it_is_asked_for(path: Path, bad: str) -> None:
    given, error, told = BAD[bad]
    with pytest.raises(error, match=told):
        lz.open(path).query().loader(**{"batch_size": 4} | given)


def test_an_epoch_that_cannot_be_told_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="epoch"):
        lz.open(path).query().loader(4).set_epoch(-1)


def test_a_matrix_that_the_selection_leaves_out_is_not_loaded(path: Path) -> None:
    with pytest.raises(NotFoundError, match="no matrix 'X'"):
        lz.open(path).query(X=False).loader(4)


def test_a_damaged_chunk_reaches_the_caller(source: ad.AnnData, tmp_path: Path) -> None:
    with tiny_chunks():
        lz.convert(source, tmp_path / "a.zarr", progress=False)
    for shard in (tmp_path / "a.zarr/X/indices/c").iterdir():
        body = bytearray(shard.read_bytes())
        body[3] ^= 1
        shard.write_bytes(body)
    with pytest.raises(ChunkDecodeError, match="X/indices"):
        list(lz.open(tmp_path / "a.zarr").query().loader(4, **SMALL))


def test_an_epoch_reads_only_its_matrix_and_labels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordingStore(LocalStore(path, read_only=True))
    monkeypatch.setattr("lobster_zarr.multimodal.open_readable", lambda *_: store)
    selection = lz.open(path).query()
    store.forget()
    loader = selection.loader(16, labels=["cell_type"], **SMALL)
    assert store.calls == []
    list(loader)
    assert {"/".join(key.split("/")[:2]) for key in store.keys} <= {
        "X/data", "X/indices", "X/indptr", "X/_lobster_zarr_index", "obs/cell_type", "obs/_lobster_zarr_source_order",
    }  # fmt: skip
    store.forget()
    list(loader)  # of a second epoch only the values are read
    assert {key.partition("/c/")[0] for key in store.keys} == {"X/data", "X/indices"}


def epoch_elsewhere(pickled: bytes, pipe: Any) -> None:
    loader = pickle.loads(pickled)  # noqa: S301 - our own
    pipe.send([(b.rows, b.labels, b.X) for b in loader])


def test_a_loader_travels_to_another_process_without_credentials(source: ad.AnnData, s3: S3Server) -> None:
    uri = f"{s3.bucket('loader')}/a.zarr"
    with tiny_chunks():
        lz.convert(source, uri, sort_by=["cell_type"], storage_options=s3.storage_options, progress=False)
    selection = lz.open(uri, storage_options=s3.storage_options).query("n_counts > 20")
    loader = selection.loader(16, labels=["cell_type"], **SMALL)
    next(iter(loader))  # it has read what it needs, which does not travel
    loader.set_epoch(4)
    pickled = pickle.dumps(loader)
    assert len(pickled) < 6_000
    assert s3.secret.encode() not in pickled
    ours, theirs = mp.Pipe()
    process = mp.get_context("spawn").Process(target=epoch_elsewhere, args=(pickled, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    expected = list(loader)  # without a seed too: a copy has the same
    assert len(found) == len(expected) > 1
    for (rows, labels, matrix), batch in zip(found, expected, strict=True):
        assert_equal(rows, batch.rows)
        assert_equal(labels, batch.labels)
        assert_equal(matrix, batch.X)


def test_torch_that_is_not_there_is_told(path: Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedError, match="pip install torch"):
            lz.open(path).query().loader(4, as_torch=True)


@pytest.mark.parametrize("dense", [True, False])
def test_torch_tensors(path: Path, source: ad.AnnData, dense: bool) -> None:
    torch = pytest.importorskip("torch")
    loader = (
        lz.open(path)
        .query("n_counts > 40")
        .loader(16, as_torch=True, dense=dense, labels=["cell_type", "score"], seed=0, **SMALL)
    )
    rows = rows_of(source, "n_counts > 40")
    for batch in loader:
        at = rows[batch.rows.numpy()]
        assert batch.X.layout == (torch.strided if dense else torch.sparse_csr)
        assert batch.X.dtype == torch.float32
        assert np.array_equal(batch.X.to_dense().numpy(), source.X[at].toarray())
        assert np.array_equal(batch.labels["cell_type"].numpy(), source.obs["cell_type"].cat.codes.to_numpy()[at])
        assert np.array_equal(batch.labels["score"].numpy(), source.obs["score"].to_numpy()[at])


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_workers_of_a_torch_dataloader_share_an_epoch(path: Path, n_workers: int, dense: bool) -> None:
    data = pytest.importorskip("torch.utils.data")
    loader = lz.open(path).query().loader(16, as_torch=True, dense=dense, seed=0, **SMALL)
    context = "spawn" if n_workers else None
    batches = data.DataLoader(loader, batch_size=None, num_workers=n_workers, multiprocessing_context=context)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert len(batches) == len(loader)
        found = [batch.rows.tolist() for batch in batches]
        assert sorted(row for rows in found for row in rows) == list(range(N_OBS))
        loader.set_epoch(epoch)
        assert sorted(found) == sorted(batch.rows.tolist() for batch in loader)  # the same batches, whoever reads them
        epochs.append(found)
    assert epochs[0] != epochs[1]


def test_unseeded_workers_take_another_order_each_epoch(path: Path) -> None:
    data = pytest.importorskip("torch.utils.data")
    loader = lz.open(path).query().loader(16, as_torch=True, **SMALL)
    batches = data.DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    first, second = ([batch.rows.tolist() for batch in batches] for _ in range(2))
    assert first != second
    for epoch in (first, second):
        assert sorted(row for rows in epoch for row in rows) == list(range(N_OBS))
