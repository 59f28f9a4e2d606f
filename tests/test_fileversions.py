"""Versions of files in a bucket that keeps them, and the way back to one."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
from oracle import assert_equal, sliced
from test_versions import T_CELLS, Past, cells, versioned

import lobster_zarr as lz
from lobster_zarr.backends import H5ADBackend, upload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


@pytest.fixture(scope="module")
def file(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Past:
    uri, path = f"{versioned(s3, 'versions-files')}/raw/a.h5ad", tmp_path_factory.mktemp("files") / "a.h5ad"
    read: list[ad.AnnData] = []
    for data in (cells(60, seed=1), cells(70, seed=2)):
        data.write_h5ad(path, convert_strings_to_categoricals=False)
        upload(path, uri, s3.storage_options, progress=False)
        read.insert(0, ad.read_h5ad(path))
    s3.client().put_object(Bucket="versions-files", Key="raw/a.h5ad.bak", Body=b"another")
    lz.index(uri, s3.storage_options, progress=False)
    return Past(uri, s3.storage_options, read)


def test_versions_of_a_file(file: Past, s3: S3Server) -> None:
    found = lz.versions(file.uri, file.options)
    assert [v.state for v in found] == ["current", "replaced"]
    assert found[1].n_bytes
    backend = H5ADBackend(progress=False)
    backend.configure_s3("versions-files", "us-east-1", s3.key, s3.secret, endpoint_url=s3.endpoint)
    for version, expected in zip(found, file.datas, strict=True):
        data = lz.open(file.uri, file.options, version=version.id)
        assert_equal(data.to_memory(progress=False), expected)
        assert_equal(backend.load("raw/a.h5ad", version=version.id), expected)
        rows = np.flatnonzero(expected.obs["cell_type"] == "T cell")
        part = backend.load("raw/a.h5ad", where=T_CELLS, version=version.id)
        assert_equal(part, sliced(expected, rows, slice(None)))
        assert_equal(pickle.loads(pickle.dumps(data)).to_memory(progress=False), expected)  # noqa: S301


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_file_is_rolled_back(
    file: Past, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    uri = f"s3://versions-files/back/{in_parts}.h5ad"
    if in_parts:  # as from 5 GB on
        monkeypatch.setattr(sys.modules["lobster_zarr.rollback"], "MOST_COPIED_BYTES", 1_000)
    uploads = []
    for seed in (1, 2):
        cells(60 + seed, seed=seed).write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
        uploads.append(upload(tmp_path / "a.h5ad", uri, s3.storage_options, progress=False))
    first, second = uploads
    lz.index(uri, file.options, progress=False)
    now, before = lz.versions(uri, file.options)
    assert (now.id, before.id) == (second.version_id, first.version_id)
    report = lz.rollback(uri, before.id, file.options, progress=False)
    assert (report.n_copied, report.n_bytes, report.n_removed) == (1, first.size_bytes, 1)  # its index tells of another
    assert report.replaced == now.id
    assert lz.open(uri, file.options).shape == (61, 20)
    head = s3.client().head_object(Bucket="versions-files", Key=f"back/{in_parts}.h5ad")
    assert first.checksum in head["Metadata"].values()
    assert len(lz.versions(uri, file.options)) == 3
