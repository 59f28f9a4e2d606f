"""Conversion of MuData: what mudata reads from the store, what is refused, what it costs.

The oracle is mudata: what it reads from its own files, and what it makes of what it wrote.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from base64 import b64decode
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import strategies as sts
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_equal, assert_mudata_equal, reordered, stored, stored_mudata
from scipy import sparse
from test_convert import by_anndata, cells, counted, memory_uri

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.layout import NOTED_OBJECTS
from lobster_zarr.store import open_store
from tests.thrift import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


@contextmanager
def quiet() -> Iterator[None]:
    """mudata warns of names that are not unique, and its dependencies of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def experiment(*, axis: int = 0, n_obs: int = 60) -> mudata.MuData:
    """Two modalities with every element; the second has other cells too, in another order, and lacks some."""
    rna, prot = cells(n_obs, 20, seed=1), cells(n_obs, 8, seed=2)
    rng = np.random.default_rng(3)
    prot = reordered(prot, rng.permutation(n_obs)[: n_obs - 9])
    prot.obs_names = [name.replace("cell1", "more") for name in prot.obs_names]
    prot.var_names = [f"protein{i}" for i in range(8)]
    with quiet():
        data = mudata.MuData({"rna": rna, "prot": prot}, axis=axis)
    data.obs["batch"] = pd.Categorical(rng.choice(["b2", "b1"], data.n_obs))
    data.obsm["X_joint"] = rng.normal(size=(data.n_obs, 2))
    data.obsp["wnn"] = sparse.random(data.n_obs, data.n_obs, 0.1, "csr", "float32", rng)
    data.uns["note"] = "joint"
    return data


def convert(source: Any, dest: Any, **options: Any) -> lz.ConversionReport:
    return lz.convert(source, dest, progress=False, **options)


def save(data: mudata.MuData, path: Path) -> Path:
    with quiet():
        data.copy().write(path)  # a copy: mudata turns text into categories in place
    return path


@cache
def _content(**options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save(experiment(**options), Path(folder) / "a.h5mu").read_bytes()


def saved(path: Path, **options: Any) -> Path:
    """Write the file of an `experiment`, which mudata makes once."""
    path.write_bytes(_content(**options))
    return path


def read_zarr(path: Any) -> mudata.MuData:
    with quiet():
        return mudata.read_zarr(path)


def read_h5mu(path: Path) -> mudata.MuData:
    with quiet():
        return mudata.read_h5mu(path)


def by_mudata(data: mudata.MuData, path: Path, zarr_format: int) -> Path:
    with quiet(), ad.settings.override(zarr_write_format=zarr_format):
        copy = data.copy()
        copy._axis = int(copy.axis)  # as it comes from a file, its own writer cannot write it
        mudata.write_zarr(path, copy)
    return path


# ---------------------------------------------------------------- from where


@given(data=sts.mudatas(), codec=st.sampled_from(["small", "fast", "compatible"]))
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
def test_any_mudata_in_memory(data: mudata.MuData, codec: Any) -> None:
    uri = memory_uri()
    report = convert(data, uri, codec=codec)
    assert_mudata_equal(read_zarr(open_store(uri)), stored_mudata(data), sparse_layout="any")
    assert report.modalities == {name: part.shape for name, part in data.mod.items()}
    assert (report.n_obs, report.n_vars) == data.shape


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_file(tmp_path: Path, axis: int) -> None:
    source = saved(tmp_path / "a.h5mu", axis=axis)
    report = convert(source, tmp_path / "a.zarr")
    assert_mudata_equal(read_zarr(tmp_path / "a.zarr"), stored_mudata(read_h5mu(source)))
    assert report.source_bytes == source.stat().st_size
    assert report.gene_major == ("rna:X", "prot:X")
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    with h5py.File(source) as file:
        for name in ("encoding-type", "encoding-version", "encoder", "encoder-version", "axis"):
            assert root.attrs[name] == file.attrs[name]
        for name in ("rna", "prot"):
            assert np.array_equal(root[f"obsmap/{name}"][:], file[f"obsmap/{name}"][:])
            assert root[f"obsmap/{name}"].dtype == np.uint32
    assert type(root.attrs["axis"]) is int


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_that_mudata_wrote(tmp_path: Path, zarr_format: int) -> None:
    source = by_mudata(experiment(), tmp_path / "source.zarr", zarr_format)
    convert(source, tmp_path / "a.zarr")
    assert_mudata_equal(read_zarr(tmp_path / "a.zarr"), stored_mudata(read_zarr(source)))


def test_a_store_of_ours_and_of_s3(s3: S3Server, tmp_path: Path) -> None:
    data, bucket, options = experiment(), s3.bucket("muconvert"), s3.storage_options
    source = save(data, tmp_path / "a.h5mu")
    s3.client().upload_file(str(source), "muconvert", "a.h5mu")
    convert(f"{bucket}/a.h5mu", f"{bucket}/a.zarr", storage_options=options)
    convert(f"{bucket}/a.zarr", tmp_path / "again.zarr", storage_options=options)
    expected = stored_mudata(read_h5mu(source))
    assert_mudata_equal(read_zarr(tmp_path / "again.zarr"), expected)
    convert(f"{bucket}/a.h5mu/mod/prot", tmp_path / "prot.zarr", storage_options=options)
    assert_equal(lz.open(tmp_path / "prot.zarr").to_memory(), expected["prot"])


@pytest.mark.parametrize("spelling", ["a.h5mu/mod/prot", "a.h5mu/prot", "a.zarr/mod/prot", "a.zarr.zip/mod/prot"])
def test_one_modality(tmp_path: Path, spelling: str) -> None:
    source = saved(tmp_path / "a.h5mu")
    convert(source, tmp_path / "a.zarr")
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "a.zarr")
    convert(tmp_path / spelling, tmp_path / "prot.zarr")
    assert_equal(lz.open(tmp_path / "prot.zarr").to_memory(), stored(read_h5mu(source)["prot"]))
    with pytest.raises(errors.NotFoundError, match="Did you mean 'prot'"):
        convert(tmp_path / "a.h5mu/mod/prt", tmp_path / "b.zarr")


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_a_dict(tmp_path: Path, axis: Any) -> None:
    parts = {name: experiment()[name] for name in ("rna", "prot")}
    parts["rna"].write_h5ad(tmp_path / "rna.h5ad", convert_strings_to_categoricals=False)
    by_anndata(parts["prot"], tmp_path / "prot.zarr")
    with quiet():
        expected = mudata.MuData({name: stored(part) for name, part in parts.items()}, axis=axis or 0)
    sources: list[dict[str, Any]] = [parts, {"rna": tmp_path / "rna.h5ad", "prot": str(tmp_path / "prot.zarr")}]
    for source in sources:
        convert(source, tmp_path / "a.zarr", axis=axis, overwrite=True)
        assert_mudata_equal(read_zarr(tmp_path / "a.zarr"), stored_mudata(expected))


def test_a_modality_is_a_store_of_its_own(tmp_path: Path) -> None:
    data = experiment()
    convert(data, tmp_path / "a.zarr")
    for name in ("rna", "prot"):
        part = lz.open(tmp_path / "a.zarr" / "mod" / name)
        assert part.attributes["format_version"] == 1
        assert set(part.attributes["stored_bytes"]) == set(part.tree.arrays_below(""))
        assert_equal(part.to_memory(), stored(data[name]))
        assert_equal(part.query("cell_type == 'NK'", ["gene1"] if name == "rna" else None).to_memory().X.shape[0],
                     int((data[name].obs["cell_type"] == "NK").sum()))  # fmt: skip
        with quiet():
            assert_equal(ad.read_zarr(tmp_path / "a.zarr" / "mod" / name), stored(data[name]))


def test_small_objects_are_noted_within_one_room(tmp_path: Path) -> None:
    many = {f"m{i}": cells(60, 20, seed=i) for i in range(14)}
    convert(many, tmp_path / "a.zarr", gene_major=True)
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    nodes = root["consolidated_metadata"]["metadata"].values()
    notes = [node["attributes"].get("lobster_zarr", {}).get("object", "") for node in nodes]
    assert NOTED_OBJECTS * 0.9 < sum(len(b64decode(note)) for note in notes) <= NOTED_OBJECTS


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", ("rna:X", "prot:X")),
        (False, ()),
        (True, ("rna:X", "rna:layers/counts", "prot:X", "prot:layers/counts")),
        (["rna:counts"], ("rna:layers/counts",)),
        ({"rna": True, "prot": False}, ("rna:X", "rna:layers/counts")),
    ],
)
def test_which_matrices_are_gene_major(tmp_path: Path, given: Any, expected: tuple[str, ...]) -> None:
    assert convert(experiment(), tmp_path / "a.zarr", gene_major=given).gene_major == expected


# ---------------------------------------------------------------- what is refused


def _with(change: Any) -> Any:
    def write(path: Path) -> Path:
        saved(path / "a.h5mu")
        with h5py.File(path / "a.h5mu", "r+") as file:
            change(file)
        return path / "a.h5mu"

    return write


def _truncated(path: Path) -> Path:
    source = saved(path / "a.h5mu")
    source.write_bytes(source.read_bytes()[:-5000])
    return source


def _unwritable(path: Path) -> mudata.MuData:
    data = experiment()
    data["prot"].uns["f"] = {1, 2}
    return data


def _backed(path: Path) -> mudata.MuData:
    with quiet():
        return mudata.read_h5mu(saved(path / "a.h5mu"), backed=True)


def _set(path: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        file[path][0] = value

    return change


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "no obsmap": (errors.FormatError, "obsmap", _with(lambda file: file.pop("obsmap"))),
    "an obsmap too few": (errors.FormatError, "obsmap/prot", _with(lambda file: file["obsmap"].pop("prot"))),
    "a row that is not there": (errors.FormatError, "varmap/rna", _with(_set("varmap/rna", 1000))),
    "a row twice": (errors.FormatError, "obsmap/rna", _with(_set("obsmap/rna", 2))),
    "a modality of another order": (errors.FormatError, "mod-order", _with(lambda f: f["mod"].pop("rna"))),
    "a modality that is none": (errors.FormatError, "mod/rna", _with(lambda f: f["mod/rna"].pop("obs"))),
    "an axis that is none": (errors.FormatError, "axis", _with(lambda f: f.attrs.update(axis=2))),
    "a nested file": (errors.UnsupportedError, "'rna'", _with(lambda f: f["mod/rna"].create_group("mod"))),
    "truncated": (errors.FormatError, "truncated", _truncated),
    "what cannot be stored": (errors.UnsupportedError, "mod/prot/uns", _unwritable),
    "backed": (errors.UnsupportedError, "a.h5mu", _backed),
    "an unknown element": (errors.UnsupportedError, "extra", _with(lambda f: f.create_group("extra"))),
    "of an unknown name": (errors.UnsupportedError, "a/b", lambda _: {"a/b": cells()}),
    "nested in memory": (errors.UnsupportedError, "'in'", lambda _: {"in": experiment()}),
    "no source at all": (errors.UnsupportedError, "NoneType", lambda _: {"rna": None}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_leaves_nothing(tmp_path: Path, scratch: Path, kind: str) -> None:
    error, named, make = REFUSED[kind]
    source = make(tmp_path)
    with pytest.raises(error, match=named):
        convert(source, tmp_path / "new.zarr", sort_by={"rna": "cell_type"} if "rna" not in named else ())
    assert not (tmp_path / "new.zarr").exists()
    assert not list(scratch.iterdir())


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for source, options in (
        (cells(), {"sort_by": {"rna": "cell_type"}}),
        (cells(), {"axis": 0}),
        (experiment(), {"axis": 1}),
        ({"rna": cells()}, {"axis": 3}),
    ):
        with pytest.raises(errors.InvalidArgumentError):
            convert(source, tmp_path / "a.zarr", **options)
    for names in (["X"], ["rna:Y"], {"rns": True}):
        with pytest.raises(errors.NotFoundError, match="rna"):
            convert(experiment(), tmp_path / "a.zarr", gene_major=names)
    assert not list(tmp_path.iterdir())


def test_mudata_itself_cannot_write_what_is_nested(tmp_path: Path) -> None:
    with quiet():
        outer = mudata.MuData({"in": experiment(), "out": cells()})
        with pytest.raises((AttributeError, TypeError, KeyError, NotImplementedError, ValueError)):
            mudata.write_h5mu(tmp_path / "a.h5mu", outer)
    with pytest.raises(errors.UnsupportedError, match="'in'"):
        convert(outer, tmp_path / "a.zarr")


# ---------------------------------------------------------------- what it costs, and what is there already


def test_a_store_of_either_kind_replaces_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    data = experiment()
    convert(data, path)
    fresh = {p.relative_to(path) for p in path.rglob("*") if p.is_file()}
    with pytest.raises(errors.ConflictError):
        convert(cells(), path)
    assert convert(cells(), path, overwrite=True).replaced == "a store"
    assert_equal(lz.open(path).to_memory(), stored(cells()))
    assert convert(data, path, overwrite=True).replaced == "a store"
    assert {p.relative_to(path) for p in path.rglob("*") if p.is_file()} == fresh
    assert_mudata_equal(read_zarr(path), stored_mudata(data))


def test_what_a_small_experiment_costs_in_requests(s3: S3Server) -> None:
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(3000)]
    parts = {}
    for name, n_vars in (("rna", 200), ("prot", 20), ("atac", 300)):
        parts[name] = ad.AnnData(
            sparse.random(3000, n_vars, 0.1, "csr", "float32", rng),
            obs=pd.DataFrame({"n_counts": rng.random(3000)}, index=names),
            var=pd.DataFrame({"mean": rng.random(n_vars)}, index=[f"{name}{i}" for i in range(n_vars)]),
            obsm={"X_pca": rng.random((3000, 10))},
        )
    data = mudata.MuData(parts)
    data.obs["batch"] = pd.Categorical(rng.choice(["a", "b"], 3000))
    with counted(s3.endpoint) as (endpoint, log):
        options = s3.storage_options | {"endpoint_url": endpoint}
        report = convert(data, f"{s3.bucket('muconvert-cost')}/a.zarr", storage_options=options)
        methods = [method for method, _ in log]
    assert methods.count("PUT") == report.n_objects + 1 <= 150  # and the marker
    assert len(methods) == methods.count("PUT") + 2, "a listing of the destination, and the marker's deletion"
    assert log[-2][1].endswith("/a.zarr/zarr.json"), "the root is the commit point"
    parts_up = [i for i, (_, key) in enumerate(log) if key.rpartition("/mod/")[2].count("/") == 1 and "/mod/" in key]
    assert parts_up == [len(log) - 3 - i for i in (2, 1, 0)], "and before it the modalities' roots"
