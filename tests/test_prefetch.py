"""What is brought into a cache ahead of time, what a cache tells of itself, and its commands."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from labs import KINDS, T_CELLS, Lab, cells, lab_of, t_cells
from oracle import assert_equal, stored

import lobster_zarr as lz
from lobster_zarr import cli, errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3 import S3Server


@pytest.fixture
def lab(s3: S3Server, tmp_path: Path) -> Iterator[Lab]:
    with lab_of(s3, tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_store_is_prefetched_and_read_offline(lab: Lab, tmp_path: Path, name: str) -> None:
    adata = cells(name=name)
    lab.write(name, adata, tmp_path)
    report = lz.prefetch(lab.uri(name), cache=lab.cache, storage_options=lab.options, progress=False)
    assert report.n_bytes > 0
    assert report.n_requests > 0
    with lab.asking() as asked:
        data = lab.open(name, offline=True)
        assert_equal(data.to_memory(), stored(adata), sparse_layout="any")
        assert_equal(data.query(T_CELLS).to_memory(), t_cells(adata), sparse_layout="any")
    assert asked == []
    again = lz.prefetch(lab.uri(name), cache=lab.cache, storage_options=lab.options, progress=False)
    assert again.n_requests == 0 < again.held_bytes


def test_a_query_is_prefetched(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    report = lz.prefetch(
        lab.uri("a.zarr"), T_CELLS, ["g1"], cache=lab.cache, storage_options=lab.options, progress=False
    )
    assert report.n_requests > 0
    assert lab.open("a.zarr", offline=True).query(T_CELLS, ["g1"]).to_memory().n_vars == 1
    assert str(report).startswith("Cached s3://")


def test_what_does_not_fit_or_cannot_be_cached_is_refused_before(lab: Lab, tmp_path: Path) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    with pytest.raises(errors.BudgetError, match="at most"):
        lz.prefetch(lab.uri("a.zarr"), cache=lz.Cache(lab.cache, 2_000), storage_options=lab.options, progress=False)
    with pytest.raises(errors.UnsupportedError, match="lies on this machine"):
        lz.prefetch(tmp_path, cache=lab.cache, progress=False)


def test_the_cache_tells_and_drops_what_it_holds(lab: Lab, tmp_path: Path) -> None:
    for name in KINDS:
        lab.write(name, cells(), tmp_path)
        lab.open(name).to_memory()
    cache = lz.Cache(lab.cache, "1MB")
    info = cache.info()
    assert [s.uri for s in info.stores] == [lab.uri(name) for name in reversed(KINDS)]
    assert 0 < info.n_bytes <= info.max_bytes == 1_000_000
    assert all(len(line) <= 80 for line in str(info).splitlines())
    assert json.loads(json.dumps(info.to_dict()))["path"] == str(lab.cache)
    assert "a.h5ad" in info._repr_html_()
    assert [s.uri for s in cache.clear(lab.uri("a.zarr")).stores] == [lab.uri(n) for n in ("a.h5ad", "foreign.zarr")]
    assert cache.clear().stores == ()
    assert not [path for path in lab.cache.glob("*/kept/*/*") if path.is_file()]


@pytest.mark.parametrize("given", ["s3://lab/cache", 7, "https://user:CANARY@host/cache"])
def test_what_is_no_folder_is_refused(given: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="expected a folder") as refused:
        lz.open("s3://lab/a.zarr", {"key": "a", "secret": "b"}, cache=given)
    assert "CANARY" not in str(refused.value)


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="max_bytes"):
        lz.Cache(tmp_path, "much")
    with pytest.raises(errors.InvalidArgumentError, match="cache_max_bytes"):
        lz.open("s3://lab/a.zarr", {"cache": tmp_path, "cache_max_bytes": "1GB"})


def test_the_command_line(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lab.write("a.zarr", cells(), tmp_path)
    for variable, value in {
        "AWS_ACCESS_KEY_ID": lab.s3.key,
        "AWS_SECRET_ACCESS_KEY": lab.s3.secret,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": lab.gate.endpoint,
        "LOBSTER_ZARR_CACHE": str(lab.cache),
    }.items():
        monkeypatch.setenv(variable, value)

    def told(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return str(said.out)

    uri = lab.uri("a.zarr")
    assert json.loads(told("cache", "prefetch", uri, "--json"))["n_bytes"] > 0
    with lab.asking() as asked:
        count = json.loads(told("query", uri, T_CELLS, "--offline", "--json"))["n_obs"]
        told("info", uri, "--offline")
        told("sql", uri, "SELECT count(*) AS n FROM obs", "--offline")
        told("export", uri, str(tmp_path / "out.h5ad"), "--offline", "--cache", str(lab.cache))
    assert asked == []
    assert count == t_cells(cells()).n_obs
    assert json.loads(told("cache", "info", "--json"))["stores"][0]["uri"] == uri
    assert uri in told("cache", "info")
    assert json.loads(told("cache", "clear", uri, "--json"))["stores"] == []
