"""MuData on a cluster: converted and verified, where the objects are those that one process writes, and queried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from clusters import two_workers
from layouts import tiny_chunks
from mudatas import citeseq
from oracle import assert_equal, assert_mudata_equal
from test_cluster import assert_same, objects
from test_convert import cells
from test_muconvert import experiment, save, saved

import lobster_zarr as lz
from lobster_zarr import cluster as cluster_module
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with two_workers() as client:
        yield client


@pytest.fixture
def client(workers: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client whose cluster gets also what is too small to pay."""
    monkeypatch.setattr(cluster_module, "MIN_VALUES", 32)
    monkeypatch.setattr(cluster_module, "MIN_TASK_VALUES", 40)
    return workers


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stores that tasks were given for, one entry a task."""
    seen: list[str] = []
    submit = cluster_module.Crew.submit

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(self.job.store.uri)
        return submit(self, *arguments, **options)

    monkeypatch.setattr(cluster_module.Crew, "submit", noted)
    return seen


@pytest.mark.parametrize(("kind", "sort_by"), [("h5mu", "rna:cell_type"), ("dict", ()), ("zarr", {"prot": "donor"})])
def test_the_objects_are_those_of_one_process(
    tmp_path: Path, client: Any, crews: list[str], kind: str, sort_by: Any
) -> None:
    data, source = experiment(n_obs=130), tmp_path / "a.h5mu"
    save(data, source)
    given: Any = source
    if kind == "dict":
        given = {}
        for name in data.mod:
            given[name] = tmp_path / f"{name}.h5ad"
            data[name].write_h5ad(given[name], convert_strings_to_categoricals=False)
    elif kind == "zarr":
        lz.convert(source, tmp_path / "source.zarr", progress=False, client=False)
        given = tmp_path / "source.zarr"
    options: dict[str, Any] = {"sort_by": sort_by, "gene_major": True, "progress": False}
    with tiny_chunks():
        here = lz.convert(given, tmp_path / "here.zarr", client=False, **options)
        assert not crews
        there = lz.convert(given, tmp_path / "there.zarr", client=client, **options)
    assert_same(objects(tmp_path / "there.zarr"), objects(tmp_path / "here.zarr"))
    assert (there.stored_bytes, there.n_objects, there.arrays) == (here.stored_bytes, here.n_objects, here.arrays)
    expected = {str(tmp_path / "there.zarr/mod" / name) for name in data.mod}
    assert set(crews) == expected
    crews.clear()
    told = lz.verify(tmp_path / "there.zarr", given, progress=False, client=client)
    assert told.compared == lz.verify(tmp_path / "here.zarr", given, progress=False, client=False).compared
    assert set(crews) == expected


def test_what_workers_cannot_reach(tmp_path: Path, client: Any) -> None:
    source = saved(tmp_path / "a.h5mu")
    for arguments in ((experiment(), tmp_path / "a.zarr"), (source, "memory://mucluster"), ({"a": cells()}, tmp_path)):
        with pytest.raises(errors.InvalidArgumentError, match="workers"):
            lz.convert(*arguments, progress=False, client=client)
    lz.convert(experiment(), tmp_path / "a.zarr", progress=False)  # the active client is left alone
    lz.verify(tmp_path / "a.zarr", experiment(), progress=False)


def test_workers_read_selections(workers: Any, s3: S3Server) -> None:
    made, uri = citeseq(), f"{s3.bucket('mucluster')}/m.zarr"
    options = {"storage_options": s3.storage_options, "progress": False, "client": False}
    lz.convert(made, uri, sort_by="rna:cell_type", **options)
    selection = lz.open(uri, s3.storage_options).query("rna:cell_type == 'T cell' and prot:CD3 > 1")
    here = selection.to_memory()
    assert here.n_obs
    assert_mudata_equal(selection.to_memory(client=workers), here)
    assert_mudata_equal(selection.to_lazy().to_memory(), here)  # on the active client
    assert workers.submit(lambda sent: sent.to_memory().shape, selection).result() == here.shape
    assert workers.submit(lambda sent: sent.count(), selection["prot"]).result() == here["prot"].n_obs
    for name in ("rna", "atac"):
        there = selection[name].aggregate("cell_type", client=workers)
        assert_equal(there, selection[name].aggregate("cell_type", client=False))
