"""Lazy arrays and queries on worker processes of a real cluster, over a real S3, without a secret on the way."""

from __future__ import annotations

import os
import pickle
import signal
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import cloudpickle
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from oracle import assert_equal, stored
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import ChunkDecodeError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from tests.s3 import S3Server

SECRET = "canary-of-the-secret-key"
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # distributed's own sockets, at its end
]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def atlas() -> ad.AnnData:
    rng = np.random.default_rng(0)
    n = 2_000
    return stored(
        ad.AnnData(
            sparse.random(n, 80, 0.2, "csr", "float32", rng),
            obs=pd.DataFrame(
                {"cell_type": pd.Categorical(rng.choice(["B", "NK", "T"], n)), "n": rng.integers(0, 100, n)},
                index=[f"cell-{i}" for i in range(n)],
            ),
            var=pd.DataFrame(index=[f"gene-{i}" for i in range(80)]),
            obsm={"X_pca": rng.random((n, 3))},
        )
    )


@pytest.fixture(scope="module")
def dataset(s3: S3Server, atlas: ad.AnnData) -> lz.Dataset:
    """On S3, with keys that only this process was given."""
    options = s3.storage_options | {"key": "AKIA-canary", "secret": SECRET}
    uri = f"{s3.bucket('distributed')}/a.zarr"
    with tiny_chunks(chunk=256, shard_chunks=8):
        lz.convert(atlas, uri, sort_by=["cell_type"], gene_major=True, storage_options=options, progress=False)
    return lz.open(uri, options)


SELECTIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "one cell type": {"obs": "cell_type == 'T'"},
    "scattered": {"obs": "n > 50"},
    "genes": {"var": ["gene-3", "gene-71"]},
    "both": {"obs": "n > 50", "var": ["gene-71", "gene-3"], "order": "storage"},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_workers_compute_what_is_read_directly(client: Client, dataset: lz.Dataset, name: str) -> None:
    selection = dataset.query(**SELECTIONS[name])
    lazy, expected = selection.to_lazy(block_bytes=20_000), selection.to_memory()
    assert_equal(lazy.to_memory().X, expected.X)
    before = dataset.stats.by_array["X/data"]
    assert_equal(selection.to_memory(client=client), expected)
    on_workers = client.compute(lazy.obsm["X_pca"]).result()
    assert_equal(on_workers, expected.obsm["X_pca"])
    assert dataset.stats.by_array["X/data"] == before  # the blocks were read elsewhere


def test_no_secret_is_in_what_is_sent(dataset: lz.Dataset) -> None:
    selection = dataset.query("n > 50")
    lazy = selection.to_lazy(block_bytes=20_000)
    graph = lazy.X.__dask_graph__()
    sent = [pickle.dumps(x) for x in (dataset, selection, lazy, lazy.X, dict(graph), dataset.reader)]
    sent += [cloudpickle.dumps(lambda: (dataset, lazy)), *(pickle.dumps(task) for task in dict(graph).values())]
    sent += [repr(x).encode() for x in (dataset, selection, graph, dict(graph), lazy)]
    assert not [payload for payload in sent if SECRET.encode() in payload or b"AKIA-canary" in payload]


def test_what_the_scheduler_holds_has_no_secret(client: Client, dataset: lz.Dataset) -> None:
    from distributed import wait

    kept = client.persist(dataset.to_lazy(block_bytes=20_000).X)
    wait(kept)

    def scheduler_holds(dask_scheduler: Any) -> bytes:
        return b"".join(pickle.dumps(task.run_spec) for task in dask_scheduler.tasks.values() if task.run_spec)

    held = client.run_on_scheduler(scheduler_holds)
    assert len(held) > 100
    assert SECRET.encode() not in held
    logs = str(client.get_scheduler_logs()) + str(client.get_worker_logs())
    assert SECRET not in logs


def test_a_query_runs_on_a_worker(client: Client, dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    counted = client.submit(lambda s: (s.count(), os.getpid()), dataset.query("cell_type == 'T'")).result()
    assert counted[0] == int((atlas.obs["cell_type"] == "T").sum())
    assert counted[1] != os.getpid()


def test_a_lost_worker_is_replaced_and_the_result_is_the_same(dataset: lz.Dataset, atlas: ad.AnnData) -> None:
    from distributed import Client, LocalCluster

    def slowly(block: Any) -> Any:
        time.sleep(0.2)
        return block

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        x = dataset.to_lazy(block_bytes=20_000).X
        assert x.npartitions > 8
        future = client.compute(x.map_blocks(slowly, meta=x._meta))
        time.sleep(0.5)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert_equal(future.result(timeout=60), atlas.X)


def test_an_error_on_a_worker_is_ours(client: Client, dataset: lz.Dataset, tmp_path: Path, atlas: ad.AnnData) -> None:
    with tiny_chunks(chunk=256, shard_chunks=8):
        lz.convert(atlas, tmp_path / "a.zarr", progress=False)
    shard = next(iter((tmp_path / "a.zarr/X/data/c").iterdir()))
    body = bytearray(shard.read_bytes())
    body[100] ^= 1
    shard.write_bytes(bytes(body))
    with pytest.raises(ChunkDecodeError, match="X/data"):
        client.compute(lz.open(tmp_path / "a.zarr").to_lazy().X).result()


def test_a_store_that_a_worker_cannot_open_fails_the_task_and_not_the_worker(
    client: Client, tmp_path: Path, atlas: ad.AnnData
) -> None:
    workers = set(client.nthreads())
    for where in ("memory://of-this-process", tmp_path / "a.zarr"):
        lz.convert(atlas, where, progress=False)
    mine = lz.open("memory://of-this-process")
    for futures in (
        client.compute(mine.to_lazy().X),
        client.submit(lambda s: s.count(), mine.query("n > 50")),
        client.submit(lambda ds: ds.n_obs, mine),
    ):
        with pytest.raises(NotFoundError, match="memory://of-this-process"):
            futures.result(timeout=30)
    lazy = lz.open(tmp_path / "a.zarr").to_lazy()
    lz.convert(atlas[::-1].copy(), tmp_path / "a.zarr", overwrite=True, progress=False)
    with pytest.raises(ConflictError, match="overwritten"):
        client.compute(lazy.X).result(timeout=30)
    assert set(client.nthreads()) == workers
