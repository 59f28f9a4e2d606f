"""Conversion and verification on a cluster of two worker processes, against the same done in this process.

The cluster is real, and so is the S3 server. Stores are compared object by object.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin
from layouts import tiny_chunks
from scipy import sparse
from test_convert import cells

import lobster_zarr as lz
from lobster_zarr import cluster as cluster_module
from lobster_zarr import errors
from lobster_zarr.cli import app, main
from lobster_zarr.report import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


class Watch(SchedulerPlugin):
    """Keeps what the scheduler is given, and acts when a task is done."""

    name = "watch"

    def __init__(self) -> None:
        self.tasks: dict[str, bytes] = {}
        self.when_done: Callable[[str, str], None] = lambda key, worker: None

    def transition(self, key: Any, start: Any, finish: Any, *args: Any, **kwargs: Any) -> None:
        if finish == "processing":
            self.tasks[key] = pickle.dumps(self.scheduler.tasks[key].run_spec)
        elif finish == "memory":
            self.when_done(key, kwargs.get("worker", ""))

    def ran(self, name: str) -> int:
        return sum(str(key).startswith(f"lobster-zarr-{name}-") for key in self.tasks)


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[LocalCluster, Client]]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


@pytest.fixture
def client(workers: tuple[LocalCluster, Client], monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client whose cluster gets also what is too small to pay."""
    monkeypatch.setattr(cluster_module, "MIN_VALUES", 32)
    monkeypatch.setattr(cluster_module, "MIN_TASK_VALUES", 40)
    workers[1].wait_for_workers(2, timeout=30)
    return workers[1]


@pytest.fixture
def watch(workers: tuple[LocalCluster, Client]) -> Iterator[Watch]:
    scheduler, watching = workers[0].scheduler, Watch()
    watching.scheduler = scheduler
    scheduler.add_plugin(watching)
    yield watching
    scheduler.remove_plugin(watching.name)


def experiment(*, column_major: bool = False) -> ad.AnnData:
    adata = cells(130, 40, seed=1)
    if column_major:
        adata.X = adata.X.tocsc()
        adata.layers["counts"] = adata.layers["counts"].tocsc()
        adata.obsp["distances"] = adata.obsp["distances"].tocsc()
    return adata


def save(adata: ad.AnnData, path: Path) -> Path:
    adata.write_h5ad(path, convert_strings_to_categoricals=False)
    return path


def objects(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert set(found) == set(expected)
    assert not [key for key in expected if found[key] != expected[key]]


# ---------------------------------------------------------------- the same store


@pytest.mark.parametrize(
    ("column_major", "sort_by", "noted_chunks"),
    [(False, [], 1), (False, ["cell_type", "donor"], 512), (True, [], 512), (True, ["cell_type", "donor"], 1)],
    ids=["csr", "csr-sorted", "csc", "csc-sorted"],
)
def test_the_objects_are_those_of_one_process(
    tmp_path: Path, client: Client, watch: Watch, column_major: bool, sort_by: list[str], noted_chunks: int
) -> None:
    source = save(experiment(column_major=column_major), tmp_path / "a.h5ad")
    options: dict[str, Any] = {"sort_by": sort_by, "gene_major": True, "progress": False}
    with tiny_chunks(noted_chunks=noted_chunks, noted_bytes=1 << 16):
        here = lz.convert(source, tmp_path / "here.zarr", client=False, **options)
        assert not watch.tasks
        there = lz.convert(source, tmp_path / "there.zarr", client=client, **options)
    assert_same(objects(tmp_path / "there.zarr"), objects(tmp_path / "here.zarr"))
    assert (there.stored_bytes, there.n_objects, there.arrays) == (here.stored_bytes, here.n_objects, here.arrays)
    # X, counts, distances, raw/X and the companions of the first two, in several shards each
    assert watch.ran("write_shard") > 6 * 3
    assert watch.ran("encode_part") > watch.ran("write_shard")
    assert bool(watch.ran("split_rows")) == (column_major or bool(sort_by))
    assert max(map(len, watch.tasks.values())) < 5_000, "a task carries spans, not the data"


DTYPES = ("bool", "float16", "float64", "complex64")


def test_any_dtype_and_duplicates_and_an_order_within_rows_of_their_own(tmp_path: Path, client: Client) -> None:
    adata, rng = experiment(), np.random.default_rng(0)
    for dtype in DTYPES:
        matrix = sparse.random(130, 40, 0.5, "csr", rng=rng)
        matrix.data = (matrix.data * 100).astype(dtype)
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.has_sorted_indices = False
        adata.layers[dtype] = matrix
    adata.layers["none"] = sparse.csr_matrix((130, 40), dtype="float32")
    adata.layers["in one row"] = sparse.csr_matrix(np.eye(130, 1).astype("float32") @ np.ones((1, 40), "float32"))
    source = save(adata, tmp_path / "a.h5ad")
    with h5py.File(source, "r+") as file:
        file["layers/float64/indices"][1] = file["layers/float64/indices"][0]
    with tiny_chunks():
        for name, where in (("here", False), ("there", client)):
            lz.convert(source, tmp_path / name, sort_by="cell_type", gene_major=True, progress=False, client=where)
    assert_same(objects(tmp_path / "there"), objects(tmp_path / "here"))


def test_in_chunks_as_they_are(tmp_path: Path, client: Client, watch: Watch) -> None:
    """A matrix of a few hundred chunks, and the sizes of tasks that dask is really given."""
    rng = np.random.default_rng(0)
    X = sparse.random(6_000, 1_000, 0.3, "csr", "float32", rng)
    obs = pd.DataFrame(
        {"group": pd.Categorical(rng.integers(0, 5, 6_000).astype(str))}, index=np.arange(6_000).astype(str)
    )
    ad.AnnData(X, obs=obs).write_zarr(tmp_path / "a.zarr")
    cluster_module.MIN_TASK_VALUES = 1 << 16  # undone by the fixture
    for name, where in (("here", False), ("there", client)):
        lz.convert(tmp_path / "a.zarr", tmp_path / name, sort_by="group", progress=False, client=where)
    assert_same(objects(tmp_path / "there"), objects(tmp_path / "here"))
    assert min(watch.ran("split_rows"), watch.ran("encode_part")) >= 16


# ---------------------------------------------------------------- on S3, and no secret on the way


def in_bucket(s3: S3Server, bucket: str, prefix: str) -> dict[str, bytes]:
    s3_client = s3.client()
    listed = s3_client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
    keys = [entry["Key"] for entry in listed]
    return {k.removeprefix(f"{prefix}/"): s3_client.get_object(Bucket=bucket, Key=k)["Body"].read() for k in keys}


def test_from_s3_to_s3_with_keys_that_are_lent(
    s3: S3Server, tmp_path: Path, client: Client, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    user = s3.user("cluster", "s3:*")
    options = s3.storage_options | user
    bucket = s3.bucket("cluster")
    s3.client().upload_file(str(save(experiment(), tmp_path / "a.h5ad")), "cluster", "a.h5ad")
    assert not any(client.run(os.environ.get, "AWS_ACCESS_KEY_ID").values())
    source, there = f"{bucket}/a.h5ad", f"{bucket}/there.zarr"
    with s3.enforced_access(), tiny_chunks(chunk=64, shard_chunks=16), caplog.at_level("DEBUG", "distributed"):
        for dest, where in ((tmp_path / "here", False), (there, client)):
            report = lz.convert(
                source, dest, sort_by="cell_type", storage_options=options, progress=False, client=where
            )
        told = lz.verify(there, source, storage_options=options, progress=False, client=client)
    assert {"X", "layers/counts", "obsp/distances", "obsp/dense"} <= set(told.compared)
    written = in_bucket(s3, "cluster", "there.zarr")
    assert_same(written, objects(tmp_path / "here"))
    assert (report.n_objects, report.stored_bytes) == (len(written), sum(map(len, written.values())))

    kinds = ("split_rows", "encode_part", "write_shard", "on_store", "on_source")
    assert all(watch.ran(kind) for kind in kinds)
    logs = repr(client.get_worker_logs()) + repr(client.get_scheduler_logs()) + caplog.text
    for secret in user.values():
        assert secret not in logs
        assert not [key for key, task in watch.tasks.items() if secret.encode() in task]


# ---------------------------------------------------------------- what goes wrong


def test_a_worker_that_is_killed_costs_time_alone(tmp_path: Path, client: Client, watch: Watch) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    pids = client.run(os.getpid)
    killed: list[int] = []

    def kill(key: str, worker: str) -> None:
        name = "split_rows" if not killed else "encode_part"
        if key.startswith(f"lobster-zarr-{name}-") and worker in pids:
            killed.append(pids.pop(worker))
            os.kill(killed[-1], signal.SIGKILL)

    watch.when_done = kill
    with tiny_chunks():
        lz.convert(source, tmp_path / "there", sort_by="donor", gene_major=True, progress=False, client=client)
        lz.convert(source, tmp_path / "here", sort_by="donor", gene_major=True, progress=False, client=False)
    assert len(killed) == 2, "both workers that there were at first"
    assert_same(objects(tmp_path / "there"), objects(tmp_path / "here"))


def assert_nothing_comes(store: Path, client: Client) -> None:
    assert not objects(store)
    time.sleep(0.5)
    assert not objects(store)
    assert not any(client.processing().values())
    with pytest.raises(errors.NotFoundError):
        lz.open(store)


def test_a_damaged_source_is_told_as_it_is_here_and_leaves_nothing(tmp_path: Path, client: Client) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    with h5py.File(source, "r+") as file:
        file["layers/counts/indices"][700] = 10**6
    with tiny_chunks(), pytest.raises(errors.FormatError, match=r"layers/counts.*a\.h5ad.*outside \[0, 40\)"):
        lz.convert(source, tmp_path / "a.zarr", sort_by="donor", progress=False, client=client)
    assert_nothing_comes(tmp_path / "a.zarr", client)


def _limit_files(n_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def test_a_full_disk_of_a_worker_leaves_nothing(tmp_path: Path, client: Client) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    client.run(_limit_files, 600)  # as a full disk: a part is written, then none
    try:
        with tiny_chunks(), pytest.raises(errors.StorageError, match=r"a\.zarr.*Make room"):
            lz.convert(source, tmp_path / "a.zarr", gene_major=True, progress=False, client=client)
    finally:
        client.run(_limit_files, resource.RLIM_INFINITY)
    assert_nothing_comes(tmp_path / "a.zarr", client)


@pytest.mark.parametrize("phase", ["X: regrouping rows", "X", "X/csc"])
def test_interrupted_it_leaves_nothing(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    source, shown = save(experiment(), tmp_path / "a.h5ad"), Progress.phase

    def interrupted(self: Progress, name: str, total: int, unit: str = "values") -> Any:
        if name == phase:
            signal.raise_signal(signal.SIGINT)  # its tasks are under way
        return shown(self, name, total, unit)

    monkeypatch.setattr(Progress, "phase", interrupted)
    with tiny_chunks(), pytest.raises(KeyboardInterrupt):
        lz.convert(source, tmp_path / "a.zarr", sort_by="donor", progress=False, client=client)
    assert_nothing_comes(tmp_path / "a.zarr", client)


# ---------------------------------------------------------------- verification


def test_a_flipped_bit_is_found_and_named(tmp_path: Path, client: Client, watch: Watch) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    with tiny_chunks():
        lz.convert(source, tmp_path / "a.zarr", sort_by="donor", progress=False, client=False)
    sound = lz.verify(tmp_path / "a.zarr", source, progress=False, client=client)
    here = lz.verify(tmp_path / "a.zarr", source, progress=False, client=False)
    assert (sound.compared, sound.n_arrays) == (here.compared, here.n_arrays)
    assert sound.n_bytes >= sum(len(v) for k, v in objects(tmp_path / "a.zarr").items() if not k.endswith(".json"))
    assert watch.ran("on_store") > 6 * 3
    for name in ("X/data", "X/csc/indices", "obsp/distances/data", "layers/scaled"):
        chunk = max(p for p in (tmp_path / "a.zarr" / name / "c").rglob("*") if p.is_file())
        content = chunk.read_bytes()
        chunk.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        with pytest.raises(errors.ChunkDecodeError, match=name):
            lz.verify(tmp_path / "a.zarr", progress=False, client=client)
        chunk.write_bytes(content)


def test_a_difference_from_the_source_is_named_as_it_is_here(tmp_path: Path, client: Client) -> None:
    source = save(experiment(column_major=True), tmp_path / "a.h5ad")
    lz.convert(source, tmp_path / "a.zarr", sort_by="donor", progress=False, client=False)
    for path in ("X/data", "obsp/distances/data", "layers/scaled"):
        with h5py.File(source, "r+") as file:
            value = file[path][77]
            file[path][77] = value + 1
        messages = []
        for where in (client, False):
            with pytest.raises(errors.VerificationError, match=path.removesuffix("/data")) as raised:
                lz.verify(tmp_path / "a.zarr", source, progress=False, client=where)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        with h5py.File(source, "r+") as file:
            file[path][77] = value


# ---------------------------------------------------------------- which client


def test_the_active_client_is_used_unless_told_otherwise(tmp_path: Path, client: Client, watch: Watch) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    lz.convert(source, tmp_path / "a.zarr", progress=False)
    assert not watch.tasks
    with client.as_current():
        lz.convert(source, tmp_path / "b.zarr", progress=False, client=False)
        lz.convert(experiment(), tmp_path / "c.zarr", progress=False)  # cannot be shared out
        lz.convert(source, "memory://cluster", progress=False)
        lz.verify("memory://cluster", source, progress=False)
        assert not watch.tasks
        lz.convert(source, tmp_path / "d.zarr", progress=False)
        assert watch.ran("write_shard")
        lz.verify(tmp_path / "d.zarr", experiment(), progress=False)  # only the source is in memory
        assert watch.ran("on_store")
        assert not watch.ran("on_source")


def test_what_workers_cannot_reach_is_refused(tmp_path: Path, client: Client) -> None:
    source = save(experiment(), tmp_path / "a.h5ad")
    for arguments in ((experiment(), tmp_path / "a.zarr"), (source, "memory://cluster-2")):
        with pytest.raises(errors.InvalidArgumentError, match="leave out client"):
            lz.convert(*arguments, progress=False, client=client)
    assert not (tmp_path / "a.zarr").exists()
    with pytest.raises(errors.InvalidArgumentError, match="not asynchronous"):
        lz.convert(source, tmp_path / "a.zarr", client="tcp://localhost:8786")  # type: ignore[arg-type]


def _convert(source: str, dest: str) -> int:
    import lobster_zarr

    return lobster_zarr.convert(source, dest, progress=False).n_obs


def test_a_conversion_inside_a_task_waits_for_no_other_task(tmp_path: Path, client: Client) -> None:
    sources = [save(experiment(), tmp_path / f"{i}.h5ad") for i in range(4)]
    futures = [client.submit(_convert, str(s), str(s.with_suffix(".zarr")), pure=False) for s in sources]
    assert client.gather(futures) == [130] * 4


def test_the_command_line(tmp_path: Path, client: Client, watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    source, store = save(experiment(), tmp_path / "a.h5ad"), tmp_path / "a.zarr"
    at = ["--scheduler", client.scheduler.address]
    app(["convert", str(source), str(store), *at], standalone_mode=False)
    assert watch.ran("write_shard")
    app(["verify", str(store), "--against", str(source), *at], standalone_mode=False)
    assert watch.ran("on_source")
    assert f"{store} is sound" in capsys.readouterr().out
    app(["query", str(store), "index != ''", "-o", str(tmp_path / "all.h5ad"), *at], standalone_mode=False)
    assert any(key[0].startswith("X-") for key in watch.tasks if isinstance(key, tuple))
    assert ad.read_h5ad(tmp_path / "all.h5ad").shape == experiment().shape


@pytest.mark.parametrize("address", ["nonsense", "tls://127.0.0.1:9"])
def test_a_scheduler_that_does_not_answer_is_one_error(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lobster-zarr", "convert", "a.h5ad", "a.zarr", "--scheduler", address])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert address in line
