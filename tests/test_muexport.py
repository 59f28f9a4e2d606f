"""Export of MuData stores: mudata reads the file as its own, in source order; one modality; the command line."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pytest
from oracle import assert_equal, assert_mudata_equal, stored, stored_mudata
from test_cli import run  # noqa: F401 - a fixture
from test_commit import guarded, signalled  # noqa: F401 - a fixture
from test_convert import cells, python
from test_muconvert import by_mudata, convert, experiment, read_h5mu, read_zarr, saved
from test_muverify import ORDERS

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def export(uri: Any, dest: Any, **options: Any) -> Path:
    return lz.export(uri, dest, progress=False, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "source.h5mu")


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("sort_by", ORDERS)
def test_the_source_comes_back(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path, sort_by: str, small_blocks: bool
) -> None:
    if small_blocks:
        monkeypatch.setattr(import_module("lobster_zarr.h5ad"), "BLOCK_VALUES", 64)
    convert(source, tmp_path / "a.zarr", sort_by=ORDERS[sort_by])
    export(tmp_path / "a.zarr", tmp_path / "a.h5mu")
    expected = stored_mudata(read_h5mu(source))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not created by muon")
        found = mudata.read_h5mu(tmp_path / "a.h5mu")
    assert_mudata_equal(stored_mudata(found), expected)
    with h5py.File(tmp_path / "a.h5mu") as file, h5py.File(source) as original:
        assert dict(file.attrs) == dict(original.attrs)
        assert set(file) == set(original)
        for path in ("obsmap/rna", "obsmap/prot", "varmap/rna"):
            assert_equal(file[path][:], original[path][:])
    assert (tmp_path / "a.h5mu").read_bytes()[:31] == b"MuData (format-version=0.1.0;cr"
    export(tmp_path / "a.zarr", tmp_path / "prot.h5ad", modality="prot")
    assert_equal(stored(ad.read_h5ad(tmp_path / "prot.h5ad")), expected["prot"])
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_mudata_wrote_is_exported_too(tmp_path: Path, zarr_format: int) -> None:
    path = by_mudata(experiment(axis=1), tmp_path / "a.zarr", zarr_format)
    export(path, tmp_path / "a.h5mu")
    assert_mudata_equal(stored_mudata(read_h5mu(tmp_path / "a.h5mu")), stored_mudata(read_zarr(path)))


def test_no_modality_at_all(tmp_path: Path) -> None:
    convert(mudata.MuData({}), tmp_path / "a.zarr")
    assert read_zarr(tmp_path / "a.zarr").shape == (0, 0)
    lz.verify(tmp_path / "a.zarr", mudata.MuData({}), progress=False)
    export(tmp_path / "a.zarr", tmp_path / "a.h5mu")
    assert read_h5mu(tmp_path / "a.h5mu").n_mod == 0


def test_a_file_of_another_kind(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "mu.zarr")
    convert(cells(), tmp_path / "ad.zarr")
    for name, options, error, match in (
        ("mu.zarr", {}, errors.InvalidArgumentError, r"h5mu.*'rna', 'prot'"),
        ("ad.zarr", {"modality": "rna"}, errors.InvalidArgumentError, "AnnData"),
        ("mu.zarr", {"modality": "prt"}, errors.NotFoundError, "'prot'"),
    ):
        with pytest.raises(error, match=match):
            export(tmp_path / name, tmp_path / "a.h5ad", **options)
    for name, options in (("ad.zarr", {}), ("mu.zarr", {"modality": "rna"})):
        with pytest.raises(errors.InvalidArgumentError, match=r"\.h5ad"):
            export(tmp_path / name, tmp_path / "a.h5mu", **options)
    assert not list(tmp_path.glob("a.h5*"))


def test_a_failing_export_leaves_nothing(tmp_path: Path, source: Path, scratch: Path) -> None:
    convert(source, tmp_path / "a.zarr", sort_by="batch")
    chunk = tmp_path / "a.zarr/mod/prot/obsp/dense/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(errors.ChunkDecodeError, match="mod/prot/obsp/dense"):
        export(tmp_path / "a.zarr", tmp_path / "a.h5mu")
    assert not list(tmp_path.glob("*a.h5mu*"))
    assert not list(scratch.iterdir())


# ---------------------------------------------------------------- the command line


def test_from_the_command_line(run: Callable[..., Any], tmp_path: Path, source: Path) -> None:  # noqa: F811
    data = experiment()
    for name in ("rna", "prot"):
        data[name].write_h5ad(tmp_path / f"{name}.h5ad", convert_strings_to_categoricals=False)
    parts = ",".join(f"{name}={tmp_path / name}.h5ad" for name in ("rna", "prot"))
    told = json.loads(run("convert", parts, tmp_path / "a.zarr", "--sort-by", "rna:donor", "--axis", "0", "--json").out)
    assert told["modalities"] == {"rna": [60, 20], "prot": [51, 8]}
    assert run("verify", tmp_path / "a.zarr", "--against", parts).status == 0
    assert run("convert", source, tmp_path / "b.zarr").status == 0
    assert run("export", tmp_path / "b.zarr", tmp_path / "b.h5mu").status == 0
    assert_mudata_equal(stored_mudata(read_h5mu(tmp_path / "b.h5mu")), stored_mudata(read_h5mu(source)))
    assert run("export", tmp_path / "b.zarr", tmp_path / "rna.out.h5ad", "--modality", "rna").status == 0
    for arguments, named in (
        (("export", tmp_path / "b.zarr", tmp_path / "c.h5ad"), "--modality"),
        (("convert", "rna=absent.h5ad", tmp_path / "c.zarr"), "absent.h5ad"),
        (("convert", parts, tmp_path / "c.zarr", "--axis", "2"), "axis"),
        (("convert", source, tmp_path / "c.zarr", "--sort-by", "cell_type"), "rna:cell_type"),
    ):
        done = run(*arguments)
        assert done.status == 2
        assert named in done.err
        assert done.err.count("\n") == 1
    assert not list(tmp_path.glob("c.*"))


# ---------------------------------------------------------------- what is cut short, or refused on the way


@pytest.mark.parametrize("moment", ["set 90", "set zarr.json"])
def test_interrupted_nothing_is_left(tmp_path: Path, source: Path, moment: str) -> None:
    done = signalled("SIGINT", moment, source, tmp_path / "a.zarr")
    assert done.returncode == 130
    assert not list((tmp_path / "a.zarr").rglob("*"))


def test_killed_it_does_not_open_and_is_replaced(tmp_path: Path, source: Path) -> None:
    assert signalled("SIGKILL", "set zarr.json", source, tmp_path / "a.zarr").returncode == -9
    with pytest.raises(errors.NotFoundError, match="unfinished"):
        lz.open(tmp_path / "a.zarr")
    assert convert(source, tmp_path / "a.zarr").replaced == "an unfinished conversion"
    lz.verify(tmp_path / "a.zarr", source, progress=False)


@pytest.mark.parametrize("denied", ["mod/prot/X/data", "mod/prot/zarr.json", "zarr.json"])
def test_refused_on_the_way_nothing_is_left(guarded: S3Server, denied: str) -> None:  # noqa: F811
    name = "mu-denied-" + denied.lower().translate(str.maketrans("/.", "--"))
    bucket = guarded.bucket(name)
    everything = ("s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject")
    options = guarded.storage_options | guarded.user(name, *everything)
    statement = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/a.zarr/{denied}*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    guarded.client("iam").put_user_policy(UserName=name, PolicyName="denied", PolicyDocument=policy)
    with guarded.enforced_access(), pytest.raises(errors.AccessDeniedError, match=denied):
        convert(experiment(), f"{bucket}/a.zarr", storage_options=options)
    assert "Contents" not in guarded.client().list_objects_v2(Bucket=name)


FULL = """
import resource, sys
import lobster_zarr as lz

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    getattr(lz, sys.argv[4])(*sys.argv[1:3], progress=False)
except lz.errors.StorageError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = {name: ad.AnnData(rng.random((300, 300)).astype("float32")) for name in ("rna", "prot")}
    convert(parts, tmp_path / "a.zarr")
    for dest, limit, work in (("b.zarr", 200_000, "convert"), ("b.h5mu", 400_000, "export")):
        done = python(FULL, tmp_path / "a.zarr", tmp_path / dest, limit, work)
        assert (done.returncode, done.stderr) == (0, "")
        assert dest in done.stdout
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(tmp_path / "a.zarr")]
