"""The files of the tests are themselves tested: anndata and mudata read each, and find in it what was written.

Needs h5py, anndata and mudata alone, not lobster_zarr. That every one of `FORMS` is read, and changes
nothing where it should not, is seen on the way in `test_files.py`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import h5old
import mudata
import oracle
import pytest
import strategies
from h5files import FORMS, Form, changes, forms, sample, write
from hypothesis import HealthCheck, given, settings

if TYPE_CHECKING:
    from pathlib import Path

# anndata warns of much that is written on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")
some = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ad.AnnData:
    """The sample, from the plainest file of it."""
    return ad.read_h5ad(write(sample(), tmp_path_factory.mktemp("plain") / "a.h5ad", FORMS["plain"]))


def test_the_sample_is_read_as_it_was_made(plain: ad.AnnData) -> None:
    oracle.assert_equal(oracle.stored(plain), oracle.stored(sample()))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", h5old.OLD)
def test_anndata_reads_old_encodings(name: str, libver: str, plain: ad.AnnData, tmp_path: Path) -> None:
    read = ad.read_h5ad(h5old.write_old(tmp_path / "a.h5ad", name, libver))
    oracle.assert_equal(read.obs["cell_type"].array, plain.obs["cell_type"].array)
    assert list(read.obs_names) == list(plain.obs_names)
    assert read.raw is not None
    assert (read.X != plain.X).sum() == 0


@some
@given(adata=strategies.anndatas(h5ad=True), form=forms())
def test_anndata_reads_drawn_objects_in_drawn_forms(
    adata: ad.AnnData, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read = ad.read_h5ad(write(adata, tmp_path_factory.mktemp("drawn") / "a.h5ad", form))
    if changes(form):
        assert read.shape == adata.shape
    else:
        oracle.assert_equal(oracle.stored(read), oracle.stored(adata))


@some
@given(data=strategies.mudatas(), form=forms())
def test_mudata_reads_drawn_objects_in_drawn_forms(
    data: mudata.MuData, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = mudata.read_h5mu(write(data, tmp_path_factory.mktemp("drawn") / "a.h5mu", form))
    assert list(read.mod) == list(data.mod)
    assert read.shape == data.shape
