"""Paths as applications mangle them lie where they were meant, and a relative one never outside its base."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from lobster_zarr import errors
from lobster_zarr.place import is_s3, name, place, suffix

HOME = str(Path("~").expanduser())
HERE = str(Path.cwd())


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("s3://bucket/k.zarr", None, "s3://bucket/k.zarr"),
        ("s3:/bucket/k.zarr", None, "s3://bucket/k.zarr"),
        (Path("s3://bucket/p/k.zarr"), None, "s3://bucket/p/k.zarr"),
        (Path("s3://bucket/p/k.zarr").absolute(), None, "s3://bucket/p/k.zarr"),
        (PureWindowsPath("s3://bucket/p/k.zarr"), None, "s3://bucket/p/k.zarr"),
        ("S3://bucket/k.zarr/", "s3://other/p", "s3://bucket/k.zarr"),
        ("s3a://bucket/k.zarr", None, "s3://bucket/k.zarr"),
        (Path("s3://bucket/k.zarr"), "/data", "s3://bucket/k.zarr"),
        ("k.h5ad", "s3://bucket", "s3://bucket/k.h5ad"),
        ("sub/k.h5ad", Path("s3://bucket/p"), "s3://bucket/p/sub/k.h5ad"),
        ("./sub/../k.h5ad", "s3://bucket/p", "s3://bucket/p/k.h5ad"),
        ("sub\\k.h5ad", "s3://bucket/p", "s3://bucket/p/sub/k.h5ad"),
        (PurePosixPath("k.h5ad"), "s3://bucket/p/", "s3://bucket/p/k.h5ad"),
        (".", "s3://bucket/p", "s3://bucket/p"),
        ("k.h5ad", "/data", "/data/k.h5ad"),
        ("a/../k.h5ad", "/data", "/data/k.h5ad"),
        ("..k.h5ad", "/data", "/data/..k.h5ad"),
        ("k.h5ad", "data", f"{HERE}/data/k.h5ad"),
        ("k.h5ad", None, f"{HERE}/k.h5ad"),
        ("/elsewhere/k.h5ad", "/data", "/elsewhere/k.h5ad"),
        ("/elsewhere/k.h5ad", "s3://bucket", "/elsewhere/k.h5ad"),
        ("~/k.h5ad", "s3://bucket", f"{HOME}/k.h5ad"),
        ("file:///elsewhere/k.h5ad", "/data", "/elsewhere/k.h5ad"),
        ("C:\\lab\\k.h5ad", "s3://bucket", "C:\\lab\\k.h5ad"),
        ("memory://x.zarr", "/data", "memory://x.zarr"),
        ("my s3 data/k.h5ad", "/data", "/data/my s3 data/k.h5ad"),
    ],
    ids=repr,
)
def test_a_path_lies_where_it_was_meant(path: Any, base: Any, expected: str) -> None:
    base = None if base is None else os.fspath(base)
    assert str(place(path, base)) == expected


@pytest.mark.parametrize("base", ["/data", "s3://bucket/p", "s3://bucket"])
@pytest.mark.parametrize("path", ["../k.h5ad", "a/../../k.h5ad", "..", "./../data2/k.h5ad", Path("../k.h5ad")])
def test_a_relative_path_does_not_leave_its_base(path: Any, base: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="leaves"):
        place(path, base)


@pytest.mark.parametrize("path", ["", "a\0b", "s3://bucket/a/../../k", "s3://", "ftp://host/k", "s3://key:pw@bucket/k"])
def test_what_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        place(path)


def test_names_and_endings() -> None:
    assert [name(place(p)) for p in ("s3://b/p/k.H5AD", "/a/k.zarr/", "s3://b")] == ["k.H5AD", "k.zarr", "b"]
    assert [suffix(place(p)) for p in ("s3://b/p/k.H5AD", "/a/k.zarr/", "/a/k")] == [".h5ad", ".zarr", ""]


def test_what_is_s3() -> None:
    assert [is_s3(p) for p in ("s3://b/k", Path("s3://b/k"), "./s3/k", "gs://b/k", "b/k")] == [True, True] + [False] * 3
