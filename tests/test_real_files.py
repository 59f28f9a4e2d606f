"""The real files, in place: what comes is what anndata and mudata read of them."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import mudata
import mudatas
import oracle
import pytest
from test_real_data import BROKEN, H5AD, H5MU, _cases

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3 import S3Server

# What anndata and mudata say of old, odd and awkward files.
pytestmark = pytest.mark.filterwarnings("ignore")


def _has_awkward(path: Path) -> bool:
    return "awkward" in path.name or "airr" in path.name or "wu2020" in path.name


@pytest.fixture
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("path", _cases([p for p in H5AD if p.stat().st_size < 3 << 20]))
def test_a_real_file_in_place(path: Path, quietly: None) -> None:
    if _has_awkward(path):
        pytest.importorskip("awkward")
    expected, data = ad.read_h5ad(path), lz.open(path)
    oracle.assert_equal(data.to_memory(), expected)
    rows, genes = slice(1, None, 5), slice(0, None, 7)
    selection = lz.open(path).query(rows, genes)
    plan = selection.explain()
    oracle.assert_equal(selection.to_memory(), oracle.sliced(expected, rows, genes))
    if plan.exact:
        assert selection.stats.n_requests - plan.spent_requests == plan.n_requests


@pytest.mark.parametrize("path", _cases([p for p in H5AD if p.stat().st_size >= 3 << 20]))
def test_a_large_real_file_in_place(path: Path, quietly: None) -> None:
    expected = ad.read_h5ad(path)
    rows, genes = slice(100, 900), slice(3, None, 11)
    oracle.assert_equal(lz.open(path).query(rows, genes).to_memory(), oracle.sliced(expected, rows, genes))


@pytest.mark.parametrize("path", _cases(H5MU))
def test_a_real_multimodal_file_in_place(path: Path, quietly: None) -> None:
    if _has_awkward(path):
        pytest.importorskip("awkward")
    mudatas.assert_mudata_equal(lz.open(path).to_memory(), mudata.read_h5mu(path))


@pytest.mark.parametrize("path", _cases(BROKEN))
def test_a_broken_real_file_is_refused(path: Path) -> None:
    with pytest.raises(errors.LobsterZarrError, match=re.escape(path.stem)):
        lz.open(path).to_memory()


@pytest.mark.parametrize("path", _cases([p for p in H5AD if 1 << 20 < p.stat().st_size < 2 << 20][:4]))
def test_a_real_file_on_s3(path: Path, s3: S3Server, quietly: None) -> None:
    s3.bucket("real")
    s3.client().upload_file(str(path), "real", path.name)
    uri = f"s3://real/{path.name}"
    expected = oracle.sliced(ad.read_h5ad(path), slice(5, 40), slice(None))
    data = lz.open(uri, storage_options=s3.storage_options)
    oracle.assert_equal(data.query(slice(5, 40)).to_memory(), expected)
