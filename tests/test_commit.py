"""A store exists wholly or not at all, and nothing of the user's is deleted.

Conversions are refused, killed, interrupted and denied; what is at the
destination afterwards is the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import zarr
from oracle import assert_equal, stored
from scipy import sparse
from test_convert import by_anndata, cells, convert, read

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.layout import MARKER
from tests.s3 import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

ROOT = Path(__file__).parents[1]


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def small(value: float = 1.0, **elements: Any) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix(np.full((4, 3), value, "float32")), **elements)


def value_of(uri: Any) -> float:
    """The value of every entry of a `small` store, for which all is read."""
    return float(read(uri).X.toarray().min())


# ---------------------------------------------------------------- what is there already


def test_a_store_is_kept_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    convert(small(1), path)
    with pytest.raises(errors.ConflictError, match="overwrite"):
        convert(small(2), path)
    assert value_of(path) == 1
    assert MARKER not in files(path)


def test_overwriting_leaves_no_key_of_the_old_store(tmp_path: Path) -> None:
    old, new = cells(), small(2)
    convert(old, tmp_path / "a.zarr", gene_major=True, sort_by="donor")
    report = convert(new, tmp_path / "a.zarr", overwrite=True)
    convert(new, tmp_path / "fresh.zarr")
    assert report.replaced == "a store"
    assert "replaced a store" in str(report)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "fresh.zarr")
    assert value_of(tmp_path / "a.zarr") == 2


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_overwriting_what_anndata_wrote(tmp_path: Path, zarr_format: int) -> None:
    by_anndata(cells(), tmp_path / "a.zarr", zarr_format)
    with pytest.raises(errors.ConflictError):
        convert(small(2), tmp_path / "a.zarr")
    convert(small(2), tmp_path / "a.zarr", overwrite=True)
    convert(small(2), tmp_path / "fresh.zarr")
    assert files(tmp_path / "a.zarr") == files(tmp_path / "fresh.zarr")


def test_neighbours_on_s3_are_left_alone(s3: S3Server) -> None:
    bucket, options = s3.bucket("commit-neighbours"), s3.storage_options
    client = s3.client()
    neighbours = {"a.zarr2/zarr.json", "a.zar", "a", "b/a.zarr/obs/zarr.json"}
    for key in neighbours:
        client.put_object(Bucket="commit-neighbours", Key=key, Body=b"mine")
    for value in (1, 2):
        convert(small(value), f"{bucket}/a.zarr", overwrite=True, storage_options=options)
    found = {o["Key"] for o in client.list_objects_v2(Bucket="commit-neighbours")["Contents"]}
    assert {key for key in found if not key.startswith("a.zarr/")} == neighbours
    with pytest.raises(errors.ConflictError):
        convert(small(), bucket, overwrite=True, storage_options=options)
    assert {o["Key"] for o in client.list_objects_v2(Bucket="commit-neighbours")["Contents"]} == found


def _zarr_image(path: Path, zarr_format: Any) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.attrs["multiscales"] = [{"version": "0.4"}]
    group["0"] = np.zeros((4, 4))


def _zarr_array(path: Path) -> None:
    zarr.save_array(path, np.zeros(4))


def _documents(path: Path) -> None:
    (path / "X").mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    (path / "X" / "zarr.json").write_text("{}")


def _hidden_file(path: Path) -> None:
    path.mkdir()
    (path / ".ssh").write_text("key")


def _broken_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


FOREIGN = {
    "a zarr.json that is none": _broken_json,
    "a Zarr 3 image": lambda path: _zarr_image(path, 3),
    "a Zarr 2 image": lambda path: _zarr_image(path, 2),
    "a Zarr array": _zarr_array,
    "documents": _documents,
    "a hidden file": _hidden_file,
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_store_of_anndata_is_never_deleted(tmp_path: Path, kind: str, overwrite: bool) -> None:
    path = tmp_path / "mine"
    FOREIGN[kind](path)
    before = {name: (path / name).read_bytes() for name in files(path)}
    with pytest.raises(errors.ConflictError, match="mine"):
        convert(small(), path, overwrite=overwrite)
    assert {name: (path / name).read_bytes() for name in files(path)} == before


def test_a_file_at_the_destination_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_text("mine")
    with pytest.raises(errors.LobsterZarrError):
        convert(small(), tmp_path / "a.zarr", overwrite=True)
    assert (tmp_path / "a.zarr").read_text() == "mine"


# ---------------------------------------------------------------- what is refused


def _refused(tmp_path: Path) -> Iterator[tuple[Any, dict[str, Any], type[Exception]]]:
    (tmp_path / "text.h5ad").write_text("no HDF5")
    unknown = small()
    unknown.uns["f"] = {"deep": {1, 2}}
    yield unknown, {}, errors.UnsupportedError
    yield small(), {"sort_by": ["cell_typ"]}, errors.NotFoundError
    yield small(), {"gene_major": ["cuonts"]}, errors.NotFoundError
    yield small(), {"codec": "gzip"}, errors.InvalidArgumentError
    yield small(), {"memory_limit": "much"}, errors.InvalidArgumentError
    yield tmp_path / "absent.h5ad", {}, errors.NotFoundError
    yield tmp_path / "absent.zarr", {}, errors.NotFoundError
    yield tmp_path / "text.h5ad", {}, errors.FormatError


def test_a_refusal_writes_nothing_and_the_old_store_survives(tmp_path: Path) -> None:
    convert(small(1), tmp_path / "old.zarr")
    before = files(tmp_path / "old.zarr")
    for source, options, error in _refused(tmp_path):
        with pytest.raises(error):
            convert(source, tmp_path / "new.zarr", **options)
        assert not (tmp_path / "new.zarr").exists()
        with pytest.raises(error):
            convert(source, tmp_path / "old.zarr", overwrite=True, **options)
        assert files(tmp_path / "old.zarr") == before
        assert value_of(tmp_path / "old.zarr") == 1


def test_source_and_destination_may_not_be_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(small(1), "a.zarr")
    (tmp_path / "link").symlink_to("a.zarr")
    before = files(tmp_path)
    for dest in ("a.zarr", "a.zarr/", tmp_path / "a.zarr", "link", f"file://{tmp_path}/a.zarr", "a.zarr/X", "."):
        with pytest.raises(errors.InvalidArgumentError):
            convert("a.zarr", dest, overwrite=True)
        assert files(tmp_path) == before
    with pytest.raises(errors.InvalidArgumentError):
        convert("s3://lab/a.zarr", "s3://lab/a.zarr/", storage_options={"key": "x", "secret": "y"})


# ---------------------------------------------------------------- what is cut short


SIGNALLED = """
import os, signal, sys
from lobster_zarr.cli import main
from lobster_zarr.store import UriStore

name, operation, wanted, *arguments = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
keys = []
real = getattr(UriStore, operation)


async def watched(store, key, *rest):
    keys.append(key)
    if wanted in (key, str(len(keys))):
        os.kill(os.getpid(), getattr(signal, name))
    await real(store, key, *rest)


setattr(UriStore, operation, watched)
sys.argv = ["lobster-zarr", "convert", *arguments]
main()
"""


def signalled(name: str, moment: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `lobster-zarr convert`, and send it a signal as it begins an operation on an object."""
    operation, _, wanted = moment.partition(" ")
    command = [sys.executable, "-c", SIGNALLED, name, operation, wanted, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)


@pytest.fixture
def h5ad(tmp_path: Path) -> Path:
    path = tmp_path / "source.h5ad"
    cells().write_h5ad(path, convert_strings_to_categoricals=False)
    return path


@pytest.mark.parametrize("moment", ["set 40", "set zarr.json"])
def test_a_killed_conversion_does_not_open_and_is_replaced(tmp_path: Path, h5ad: Path, moment: str) -> None:
    path = tmp_path / "a.zarr"
    assert signalled("SIGKILL", moment, h5ad, path).returncode == -9
    assert MARKER in files(path)
    (path / "obs").mkdir(exist_ok=True)
    (path / "obs" / "zarr.json#1").touch()  # as obstore stages what it writes
    with pytest.raises(errors.NotFoundError, match="unfinished"):
        lz.open(path)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(path, mode="r")  # nor by any other reader
    report = convert(small(2), path)
    assert report.replaced == "an unfinished conversion"
    convert(small(2), tmp_path / "fresh.zarr")
    assert files(path) == files(tmp_path / "fresh.zarr")
    assert value_of(path) == 2


def test_killed_after_the_root_the_store_is_whole(tmp_path: Path, h5ad: Path) -> None:
    path = tmp_path / "a.zarr"
    assert signalled("SIGKILL", f"delete {MARKER}", h5ad, path).returncode == -9
    assert_equal(read(path), stored(cells()))
    with pytest.raises(errors.ConflictError):
        convert(small(2), path)
    convert(small(2), path, overwrite=True)
    assert MARKER not in files(path)


def test_killed_before_the_old_root_goes_the_old_store_is_whole(tmp_path: Path, h5ad: Path) -> None:
    path = tmp_path / "a.zarr"
    convert(small(1), path)
    assert signalled("SIGKILL", "delete zarr.json", h5ad, path, "--overwrite").returncode == -9
    assert value_of(path) == 1
    with pytest.raises(errors.ConflictError):  # nobody agreed to lose it
        convert(small(2), path)
    assert value_of(path) == 1


def test_killed_while_the_old_store_goes_nothing_opens(tmp_path: Path, h5ad: Path) -> None:
    path = tmp_path / "a.zarr"
    convert(small(1), path)
    assert signalled("SIGKILL", "delete 5", h5ad, path, "--overwrite").returncode == -9
    with pytest.raises(errors.NotFoundError, match="unfinished"):
        lz.open(path)
    assert convert(small(2), path).replaced == "an unfinished conversion"
    assert value_of(path) == 2


@pytest.mark.parametrize("moment", [f"set {MARKER}", "set 40", "set zarr.json"])
def test_interrupted_nothing_is_left(tmp_path: Path, h5ad: Path, moment: str) -> None:
    path = tmp_path / "a.zarr"
    done = signalled("SIGINT", moment, h5ad, path)
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1, done.stderr
    assert "interrupted" in done.stderr
    assert not list(path.rglob("*"))
    assert convert(small(2), path).replaced == ""


def test_interrupted_while_the_old_store_goes_nothing_is_left(tmp_path: Path, h5ad: Path) -> None:
    path = tmp_path / "a.zarr"
    convert(small(1), path)
    done = signalled("SIGINT", "delete 5", h5ad, path, "--overwrite")
    assert done.returncode == 130
    assert not list(path.rglob("*"))


def test_interrupted_on_s3_nothing_is_left(s3: S3Server, h5ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.bucket('commit-interrupted')}/a.zarr"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    done = signalled("SIGINT", "set 30", h5ad, uri, "--endpoint-url", s3.endpoint)
    assert done.returncode == 130
    assert "Contents" not in s3.client().list_objects_v2(Bucket="commit-interrupted")


# ---------------------------------------------------------------- what the storage refuses


@pytest.fixture(scope="module")
def guarded() -> Iterator[S3Server]:
    """A server of its own: access control is on for all that use it."""
    with s3_server() as server:
        yield server


EVERYTHING = ("s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject")


def test_a_missing_bucket(s3: S3Server) -> None:
    with pytest.raises(errors.BucketNotFoundError, match="commit-nowhere"):
        convert(small(), "s3://commit-nowhere/a.zarr", storage_options=s3.storage_options)


def test_a_reader_may_not_convert(guarded: S3Server) -> None:
    bucket = guarded.bucket("reader")
    options = guarded.storage_options | guarded.user("reader", "s3:GetObject", "s3:ListBucket")
    with guarded.enforced_access(), pytest.raises(errors.AccessDeniedError, match="s3:PutObject"):
        convert(small(), f"{bucket}/a.zarr", storage_options=options)
    assert "Contents" not in guarded.client().list_objects_v2(Bucket="reader")


@pytest.mark.parametrize("denied", ["X/data", "obsm/*", "zarr.json"])
def test_refused_on_the_way_nothing_is_left(guarded: S3Server, denied: str) -> None:
    name = "denied-" + denied.lower().translate(str.maketrans("/.*", "---")).strip("-")
    bucket = guarded.bucket(name)
    options = guarded.storage_options | guarded.user(name, *EVERYTHING)
    statement = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/a.zarr/{denied}*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    guarded.client("iam").put_user_policy(UserName=name, PolicyName="denied", PolicyDocument=policy)
    with guarded.enforced_access(), pytest.raises(errors.AccessDeniedError, match=r"a\.zarr"):
        convert(cells(), f"{bucket}/a.zarr", storage_options=options)
    assert "Contents" not in guarded.client().list_objects_v2(Bucket=name)
    convert(small(), f"{bucket}/a.zarr", storage_options=guarded.storage_options)
