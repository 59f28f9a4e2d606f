"""Stores and files that are read through a cache: nothing is asked twice, and nothing that was changed is served."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labs import BUCKET, KINDS, T_CELLS, Lab, cells, data_requests, lab_of, t_cells
from mudatas import assert_mudata_equal, citeseq
from oracle import assert_equal, sliced, stored, stored_mudata

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.backends import H5ADBackend
from tests.gates import Answer, xml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.s3 import S3Server

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]


@pytest.fixture
def lab(s3: S3Server, tmp_path: Path) -> Iterator[Lab]:
    with lab_of(s3, tmp_path) as made:
        yield made


def warnings_of[T](work: Callable[[], T]) -> tuple[T, list[str]]:
    """Do something, and return what it gives and what it warns of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        done = work()
    return done, [str(w.message) for w in seen if w.category is UserWarning]


# ---------------------------------------------------------------- nothing is asked twice

ELSEWHERE = """
import json, sys, hashlib
import lobster_zarr as lz

for uri in sys.argv[3:]:
    data = lz.open(uri, json.loads(sys.argv[1]), cache=sys.argv[2])
    found = data.query("cell_type == 'T cell'").to_memory()
    text = found.X.toarray().tobytes() + "".join(found.obs_names).encode()
    told = [hashlib.sha256(text).hexdigest(), data.stats.n_requests, data.stats.n_cached]
    print(json.dumps(told))
"""


def test_the_same_query_in_a_new_process_reads_no_data(lab: Lab, tmp_path: Path) -> None:
    for name in KINDS:
        adata = cells(name=name)
        lab.write(name, adata, tmp_path)
        assert_equal(lab.open(name).query(T_CELLS).to_memory(), t_cells(adata), sparse_layout="any")
    with lab.asking() as asked:
        command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, json.dumps(lab.options), str(lab.cache)]
        done = subprocess.run(
            [*command, *map(lab.uri, KINDS)],
            capture_output=True,
            check=False,
            text=True,
            cwd=Path(lz.__file__).parents[1],
        )
    assert done.returncode == 0, done.stderr
    for name, line in zip(KINDS, done.stdout.splitlines(), strict=True):
        expected = t_cells(cells(name=name))
        text = expected.X.toarray().tobytes() + "".join(expected.obs_names).encode()
        digest, n_requests, n_cached = json.loads(line)
        assert digest == hashlib.sha256(text).hexdigest()
        assert n_requests == 0 < n_cached
    assert data_requests(asked) == []
    of_ours = [a for a in asked if "/a.zarr/" in a.path]
    assert [(a.method, a.path.rpartition("/")[2]) for a in of_ours] == [("HEAD", "zarr.json")]
    assert sum("list-type" in a.path for a in asked) == 1, "of the store that others wrote"


def test_stats_tell_what_came_from_where(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    first, second = lab.open("a.zarr"), lab.open("a.zarr")
    first.query(T_CELLS).to_memory()
    second.query(T_CELLS).to_memory()
    assert first.stats.n_cached == 0 < first.stats.n_requests
    assert second.stats.n_requests == 0
    assert second.stats.cached_bytes == first.stats.n_bytes


def test_a_part_of_what_was_read_is_there(lab: Lab, tmp_path: Path) -> None:
    adata = cells()
    lab.write("a.zarr", adata, tmp_path)
    lab.open("a.zarr").to_memory()
    with lab.asking() as asked:
        found = lab.open("a.zarr").query(range(20, 60)).to_memory()
    assert_equal(found, stored(sliced(adata, range(20, 60), slice(None))), sparse_layout="any")
    assert data_requests(asked) == []


def test_a_mudata_store_is_cached(lab: Lab) -> None:
    data = citeseq()
    lz.convert(data, lab.uri("m.zarr"), storage_options=lab.s3.storage_options, progress=False)
    for _ in range(2):
        with lab.asking() as asked:
            assert_mudata_equal(lab.open("m.zarr").to_memory(), stored_mudata(data))
    assert data_requests(asked) == []


def test_without_a_cache_nothing_is_kept(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    monkeypatch.setenv("LOBSTER_ZARR_CACHE", str(lab.cache))
    lab.open("a.zarr", cache=False).to_memory()
    lz.convert(cells(), tmp_path / "local.zarr", progress=False)
    lz.open(tmp_path / "local.zarr").to_memory()
    assert not lab.cache.exists()
    lz.open(lab.uri("a.zarr"), lab.options).to_memory()
    assert [s.uri for s in lz.Cache(lab.cache).info().stores] == [lab.uri("a.zarr")]


def test_a_dataset_that_travels_takes_its_cache_along_and_no_secret(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    secret = {"key": "AKIACANARY", "secret": "wJalrCANARY"}
    data = lz.open(lab.uri("a.zarr"), lab.options | secret, cache=lz.Cache(lab.cache, "1GB"))
    data.to_memory()
    sent = pickle.dumps(data)
    assert b"CANARY" not in sent
    with lab.asking() as asked:
        there = pickle.loads(sent)  # noqa: S301  made by the test
        assert_equal(there.to_memory(), data.to_memory())
    assert data_requests(asked) == []
    kept = b"".join(path.read_bytes() for path in lab.cache.rglob("*") if path.is_file())
    assert b"a.zarr" in kept
    assert b"CANARY" not in kept


def test_a_backend_loads_a_whole_file_through_the_cache(lab: Lab, tmp_path: Path) -> None:
    adata = cells()
    lab.write("a.h5ad", adata, tmp_path)
    options = dict(lab.options)
    key, secret, endpoint = options.pop("key"), options.pop("secret"), options.pop("endpoint_url")
    for _ in range(2):
        backend = H5ADBackend(progress=False)
        backend.configure_s3(BUCKET, None, key, secret, endpoint_url=endpoint, cache=lz.Cache(lab.cache), **options)
        json.dumps(backend.get_storage_info())
        with lab.asking() as asked:
            assert_equal(backend.load(lab.uri("a.h5ad")), stored(adata))
    assert data_requests(asked) == []


# ---------------------------------------------------------------- nothing stale is served


@pytest.mark.parametrize("name", KINDS)
def test_what_is_overwritten_while_it_is_open_is_not_served(lab: Lab, tmp_path: Path, name: str) -> None:
    lab.write(name, cells(name=name), tmp_path)
    data = lab.open(name)
    data.query(T_CELLS).to_memory()
    other = cells(1, name)
    lab.write(name, other, tmp_path)
    time.sleep(0.5)  # as long as the last look counts
    for _ in range(2):
        with pytest.raises(errors.ConflictError, match="open it again"):
            data.query(T_CELLS).to_memory()
    for _ in range(2):
        assert_equal(lab.open(name).query(T_CELLS).to_memory(), t_cells(other), sparse_layout="any")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_overwritten_before_it_is_read_is_not_mixed(lab: Lab, tmp_path: Path, name: str) -> None:
    lab.write(name, cells(name=name), tmp_path)
    lab.open(name).query(T_CELLS).to_memory()
    data = lab.open(name)
    other = cells(1, name)
    lab.write(name, other, tmp_path)
    time.sleep(0.5)
    try:
        found = data.to_memory()
    except errors.ConflictError as error:
        assert "open it again" in str(error)  # noqa: PT017 - or it is right
    else:
        assert_equal(found, stored(other), sparse_layout="any")
    for _ in range(2):
        assert_equal(lab.open(name).to_memory(), stored(other), sparse_layout="any")


def test_other_data_under_the_same_metadata_is_noticed(lab: Lab, tmp_path: Path) -> None:
    """Of a store that others wrote, also where only a chunk was exchanged."""
    adata, other = cells(), cells()
    other.obs["n_counts"] = (other.obs["n_counts"] + 1).to_numpy()
    lab.write("foreign.zarr", adata, tmp_path)
    data = lab.open("foreign.zarr")
    assert_equal(data.query(T_CELLS).to_memory(), t_cells(adata), sparse_layout="any")
    root = lab.body("foreign.zarr/zarr.json")
    lab.write("foreign.zarr", other, tmp_path)
    assert lab.body("foreign.zarr/zarr.json") == root
    with pytest.raises(errors.ConflictError) as told:
        data.query(T_CELLS).to_memory()
    assert told.value.__cause__ is not told.value  # in which distributed would go round for ever
    sent = pickle.dumps(data)
    there = pickle.loads(sent)  # noqa: S301  made by the test
    there.query(T_CELLS).count()  # opens what all that are sent share
    lab.put("foreign.zarr/obs/n_counts/c/0", lab.body("foreign.zarr/obs/n_counts/c/0")[::-1])
    with pytest.raises((errors.ConflictError, errors.ChunkDecodeError)):
        there.to_memory()
    lab.write("foreign.zarr", other, tmp_path)
    again = pickle.loads(sent)  # noqa: S301  made by the test
    assert_equal(again.query(T_CELLS).to_memory(), t_cells(other), sparse_layout="any")
    assert_equal(lab.open("foreign.zarr").query(T_CELLS).to_memory(), t_cells(other), sparse_layout="any")


def test_the_same_root_written_anew_is_another_store(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    data = lab.open("a.zarr")
    data.to_memory()
    key, root = "a.zarr/X/data/c/0", lab.body("a.zarr/zarr.json")
    body = lab.body(key)
    time.sleep(1.0)  # the resolution of Last-Modified
    lab.put(key, body[:5] + bytes([body[5] ^ 1]) + body[6:])
    lab.put("a.zarr/zarr.json", root)
    with pytest.raises(errors.ConflictError):
        data.to_memory()
    with pytest.raises(errors.ChunkDecodeError):  # as it is read from the storage
        lab.open("a.zarr").to_memory()


def test_an_object_of_an_overwriting_is_not_kept_as_one_of_the_store(lab: Lab, tmp_path: Path) -> None:
    adata = cells()
    lab.write("a.zarr", adata, tmp_path)
    key = "a.zarr/X/data/c/0"
    body = lab.body(key)
    time.sleep(1.0)  # the resolution of Last-Modified
    lab.put(key, body[:5] + bytes([body[5] ^ 1]) + body[6:])
    with pytest.raises((errors.ChunkDecodeError, errors.ConflictError)):
        lab.open("a.zarr").to_memory()
    lab.put(key, body)  # as a version that is restored
    for _ in range(2):
        assert_equal(lab.open("a.zarr").to_memory(), stored(adata), sparse_layout="any")


def test_an_object_that_changes_between_two_reads_is_an_error(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    data = lab.open("a.zarr")
    data.query(range(3)).to_memory()
    for key in ("a.zarr/X/data/c/0", "a.zarr/X/indices/c/0"):
        lab.put(key, bytes(len(lab.body(key))))
    with pytest.raises(errors.ConflictError):
        data.query(range(50, 100)).to_memory()


@pytest.mark.parametrize("name", ["a.zarr", "a.h5ad"])
def test_what_is_damaged_in_the_cache_is_read_again(lab: Lab, tmp_path: Path, name: str) -> None:
    adata = cells(name=name)
    lab.write(name, adata, tmp_path)
    lab.open(name).to_memory()
    for path in lab.cache.glob("*/kept/*/*"):
        body = path.read_bytes()
        path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    for _ in range(2):
        with lab.asking() as asked:
            assert_equal(lab.open(name).to_memory(), stored(adata), sparse_layout="any")
    assert data_requests(asked) == []


def test_a_verification_reads_the_storage(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    data = lab.open("a.zarr")
    data.to_memory()
    key = "a.zarr/X/data/c/0"
    body = lab.body(key)
    lab.put(key, body[:5] + bytes([body[5] ^ 1]) + body[6:])
    for given in (data, lab.uri("a.zarr")):
        with pytest.raises(errors.ChunkDecodeError):
            lz.verify(given, storage_options=lab.options | {"cache": str(lab.cache)}, progress=False)


# ---------------------------------------------------------------- without a network, without a disk


@pytest.mark.parametrize("name", KINDS)
def test_offline_what_is_cached_is_served_and_nothing_else(lab: Lab, tmp_path: Path, name: str) -> None:
    adata = cells(name=name)
    lab.write(name, adata, tmp_path)
    lab.open(name).query(T_CELLS).count()
    keyless = {key: value for key, value in lab.options.items() if key not in {"key", "secret"}}
    with lab.asking() as asked:
        data = lz.open(lab.uri(name), keyless, cache=lab.cache, offline=True)
        assert data.query(T_CELLS).count() == t_cells(adata).n_obs
        with pytest.raises(errors.NetworkError, match="is not in the cache"):
            data.to_memory()
        with pytest.raises(errors.NetworkError, match="is not in the cache"):
            lab.open(f"other-{name}", offline=True)
    assert asked == []


def test_offline_without_a_cache_is_refused(lab: Lab) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="expected a cache"):
        lab.open("a.zarr", cache=False, offline=True)


@pytest.mark.parametrize("name", KINDS)
def test_where_the_storage_is_out_of_reach_what_is_cached_is_served_with_a_warning(
    s3: S3Server, tmp_path: Path, name: str
) -> None:
    adata = cells(name=name)
    with lab_of(s3, tmp_path) as lab:
        lab.write(name, adata, tmp_path)
        lab.open(name).query(T_CELLS).count()
        before = lab.open(name)
        before.query(T_CELLS).count()
        lab.gate.rule = lambda _: Answer(503, xml("ServiceUnavailable"))
        time.sleep(0.5)
        found, warned = warnings_of(lambda: [before.query(T_CELLS).count() for _ in range(2)])
        assert ["as it was seen last" in text for text in warned] == [True]
    data, warned = warnings_of(lambda: lab.open(name))
    assert ["as it was seen last" in text for text in warned] == [True]
    assert [*found, data.query(T_CELLS).count()] == [t_cells(adata).n_obs] * 3
    with pytest.raises(errors.NetworkError, match="is not in the cache"):
        data.to_memory()
    with pytest.raises(errors.NetworkError, match="reached"):
        lab.open(f"other-{name}")


def test_a_cache_that_cannot_be_written_fails_no_query(lab: Lab, tmp_path: Path) -> None:
    adata = cells()
    lab.write("a.zarr", adata, tmp_path)
    lab.cache.write_text("a file, no folder")
    found, warned = warnings_of(lambda: [lab.open("a.zarr").to_memory() for _ in range(2)])
    assert ["is not used" in text for text in warned] == [True]
    for one in found:
        assert_equal(one, stored(adata), sparse_layout="any")
