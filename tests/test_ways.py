"""Every way of the benchmark of raw files answers what AnnData in memory answers, and converts to the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import lobster_zarr as lz
from benchmarks.files import BUCKET, INDEXED_BUCKET, bars, digested, prepare, truths
from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.steps import Figures, Job
from benchmarks.ways import CONVERSIONS, INDEXED, WAYS, Remote, questions

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = (0.0, 1e10)
N_OBS = 400


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    made = Job(tmp_path_factory.mktemp("files"), N_OBS, 300)
    prepare(made)
    return made


@pytest.fixture(scope="module")
def truth(job: Job) -> dict[str, Figures]:
    return truths(job)


@pytest.fixture(scope="module")
def server(job: Job) -> Iterator[ShapedS3]:
    with shaped_s3(job.data) as running:
        yield running


def remote(job: Job, server: ShapedS3, bucket: str = BUCKET) -> Remote:
    return Remote(server.store(bucket), server.storage_options, LINE, bucket, job.source.stem)


@pytest.mark.parametrize("way", WAYS)
def test_answers(job, truth, server, way):
    at = remote(job, server, INDEXED_BUCKET if way == INDEXED else BUCKET)
    asked = {name: questions(N_OBS)[name] for name in ("obs rows", "scattered 5 %", "one gene", "everything")}
    assert {name: digested(WAYS[way](at, question)) for name, question in asked.items()} == {n: truth[n] for n in asked}


def test_indexed_is_another_way(job, server):
    seen = {}
    for bucket in (BUCKET, INDEXED_BUCKET):
        server.reset()
        WAYS[INDEXED](remote(job, server, bucket), questions(N_OBS)["open"])
        seen[bucket] = server.counters().n_requests
    assert seen[INDEXED_BUCKET] == 1 < seen[BUCKET]


@pytest.mark.parametrize("way", CONVERSIONS)
def test_conversions(job, truth, server, tmp_path, way):
    CONVERSIONS[way](remote(job, server), tmp_path / "dest.zarr")
    assert digested(lz.open(tmp_path / "dest.zarr").query().to_memory()) == truth["everything"]


def test_a_wrong_answer_meets_no_bar():
    assert not any(bar["passed"] for bar in bars({("open", "in place"): {"n_requests": 1, "agrees": False}}))
