"""What a conversion reads: the same elements, wherever and however an AnnData lies; damage refused."""

from __future__ import annotations

import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lobster_zarr.errors import BudgetError, FormatError, NotFoundError, UnsupportedError
from lobster_zarr.source import open_source
from tests.oracle import assert_equal
from tests.strategies import sparse_matrices

LIMIT = 1 << 30
# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def cells():
    rng = np.random.default_rng(6)
    counts = sparse.random(9, 6, 0.5, "csr", dtype="float32", random_state=1)
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(["T", "B", None, "T", "B", "T", "NK", "T", "B"]),
                "n_counts": np.arange(9, dtype="int32"),
                "donor": pd.array([f"d{i}" for i in range(9)], dtype="str"),
            },
            index=pd.Index([f"cell{i}" for i in range(9)], name="barcode"),
        ),
        var=pd.DataFrame({"mean": rng.random(6)}, index=[f"gene{i}" for i in range(6)]),
        layers={"csc": counts.tocsc() * 2, "dense": rng.random((9, 6))},
        obsm={"X_umap": rng.random((9, 2)).astype("float32")},
        obsp={"graph": sparse.random(9, 9, 0.2, "csr", random_state=2)},
        uns={"colors": ["#fff", "#000"], "nested": {"k": 3}},
    )
    adata.raw = adata[:, :4].copy()
    return adata


ADATA = cells()
KINDS = ["memory", "h5ad", "zarr3", "zarr2", "zip"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same cells in every kind of file."""
    folder = tmp_path_factory.mktemp("sources")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ADATA.write_h5ad(folder / "a.h5ad", convert_strings_to_categoricals=False)
        for zarr_format in (2, 3):
            group = zarr.open_group(folder / f"a{zarr_format}.zarr", mode="w", zarr_format=zarr_format)
            ad.io.write_elem(group, "/", ADATA)
    shutil.make_archive(str(folder / "a.zarr"), "zip", folder / "a3.zarr")
    names = {"h5ad": "a.h5ad", "zarr3": "a3.zarr", "zarr2": "a2.zarr", "zip": "a.zarr.zip"}
    return {"memory": ADATA} | {kind: folder / name for kind, name in names.items()}


def put_together(stream):
    """The matrix of a sparse stream, from blocks of at most five values."""
    blocks = list(stream.blocks(5))
    at = [b[0] for b in blocks]
    assert at == np.cumsum([0, *(len(b[1]) for b in blocks)])[:-1].tolist()
    assert all(len(b[1]) == 1 or len(b[2]) <= 5 for b in blocks)
    lengths, indices, values = (np.concatenate([b[i] for b in blocks] or [np.empty(0)]) for i in (1, 2, 3))
    cls = sparse.csr_matrix if stream.row_major else sparse.csc_matrix
    matrix = cls(stream.shape, dtype=values.dtype)
    matrix.indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    matrix.indices, matrix.data = indices.astype(np.int64), values
    return matrix


# ---------------------------------------------------------------- every kind of source


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_come_in_blocks(kind, files):
    with open_source(files[kind], memory_limit_bytes=LIMIT) as source:
        for path, expected in (
            ("X", ADATA.X), ("layers/csc", ADATA.layers["csc"]), ("obsp/graph", ADATA.obsp["graph"]),
            ("raw/X", ADATA.raw.X),
        ):  # fmt: skip
            stream = source.stream(path)
            assert stream.nnz == expected.nnz
            assert stream.row_major == (expected.format == "csr")
            assert_equal(put_together(stream), expected)
        dense = source.stream("layers/dense")
        assert (dense.shape, dense.dtype) == ((9, 6), np.float64)
        blocks = list(dense.blocks(13))
        assert [at for at, _ in blocks] == [0, 2, 4, 6, 8]  # two rows of six values a block
        assert np.array_equal(np.concatenate([rows for _, rows in blocks]), ADATA.layers["dense"])
        assert source.stream("uns") is None
        assert source.stream("nowhere") is None


@pytest.mark.parametrize("kind", KINDS)
def test_columns_come_one_by_one(kind, files):
    with open_source(files[kind], memory_limit_bytes=LIMIT) as source:
        frame = source.frame("obs")
        assert frame.index_name == "barcode"
        assert list(frame.index) == list(ADATA.obs_names)
        assert list(frame.columns) == ["cell_type", "n_counts", "donor"]
        for name, read in frame.columns.items():
            assert_equal(pd.Series(read()).array, ADATA.obs[name].array)
        assert source.frame("var").index_name is None
        assert list(source.frame("raw/var").index) == list(ADATA.raw.var_names)


@pytest.mark.parametrize("kind", KINDS)
def test_elements_are_found_or_are_not(kind, files):
    with open_source(files[kind], memory_limit_bytes=LIMIT) as source:
        assert sorted(source.members("layers")) == ["csc", "dense"]
        assert source.members("obsm") == ["X_umap"]
        assert source.members("varm") == source.members("nowhere") == []
        assert "X" in source
        assert "layers/dense" in source
        assert "layers/other" not in source
        assert "X/data/deeper" not in source
        assert source.value("uns/nested/k") == 3
        assert source.value("obsm/X_umap").dtype == np.float32


def test_sources_know_their_size_and_name(files):
    for kind in ("h5ad", "memory", "zarr3"):
        with open_source(files[kind], memory_limit_bytes=LIMIT) as source:
            expected = files["h5ad"].stat().st_size if kind == "h5ad" else None
            assert source.n_bytes == expected
            assert (str(files[kind]) if kind != "memory" else "memory") in source.name


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_is_no_element(kind, tmp_path):
    adata = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g"]))
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "a.h5ad")
    elif kind != "memory":
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if kind == "zarr2" else 3)
        ad.io.write_elem(group, "/", adata)
    where = {"memory": adata, "h5ad": tmp_path / "a.h5ad"}.get(kind, tmp_path / "a.zarr")
    with open_source(where, memory_limit_bytes=LIMIT) as source:
        assert "X" not in source
        assert source.stream("X") is None
        assert "raw" not in source
        assert list(source.frame("obs").index) == ["a", "b"]


def test_a_view_and_a_slash_at_the_end_are_as_good(files):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view = ADATA[2:5]
        with open_source(view, memory_limit_bytes=LIMIT) as source:
            assert_equal(put_together(source.stream("X")), ADATA.X[2:5])
    with open_source(f"{files['zarr3']}/", memory_limit_bytes=LIMIT) as source:
        assert "X" in source


@given(sparse_matrices((5, 4)), st.integers(1, 30))
@settings(max_examples=60)
def test_blocks_are_all_of_a_matrix_and_never_more_than_asked(matrix, max_values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.AnnData(matrix)
    with open_source(adata, memory_limit_bytes=LIMIT) as source:
        stream = source.stream("X")
        blocks = list(stream.blocks(max_values))
    lengths = np.concatenate([b[1] for b in blocks])
    assert lengths.tolist() == np.diff(matrix.indptr).tolist()
    assert np.concatenate([b[2] for b in blocks]).tolist() == matrix.indices.tolist()
    assert repr(np.concatenate([b[3] for b in blocks]).tolist()) == repr(matrix.data.tolist())
    for at, own, indices, values in blocks:
        assert own.sum() == len(indices) == len(values)
        assert len(own) == 1 or len(values) <= max_values
        assert at + len(own) <= len(lengths)


@pytest.mark.parametrize("dtype", [">f4", ">i8", "<f4"])
def test_values_come_in_the_byte_order_of_this_machine(dtype, tmp_path):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    matrix = sparse.csr_matrix(values.astype("f8"))
    ad.AnnData(np.zeros((4, 3), "f4"), layers={"s": matrix}).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["X"], file["layers/s/data"]
        file.create_dataset("X", data=values).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["layers/s"].create_dataset("data", data=matrix.data.astype(dtype))
    with open_source(tmp_path / "a.h5ad", memory_limit_bytes=LIMIT) as source:
        dense, stored = source.stream("X"), source.stream("layers/s")
        assert dense.dtype == np.dtype(dtype).newbyteorder("=")
        for blocks, expected in (
            ([rows for _, rows in dense.blocks(4)], values),
            ([block[3] for block in stored.blocks(4)], matrix.data),
        ):
            assert all(block.dtype.isnative for block in blocks)
            assert np.array_equal(np.concatenate(blocks), expected)


# ---------------------------------------------------------------- what is refused


def refusal(error, source, limit=LIMIT):
    with pytest.raises(error) as failure, open_source(source, memory_limit_bytes=limit):
        pytest.fail("the source was opened")
    return str(failure.value)


@pytest.mark.parametrize("name", ["nothing.h5ad", "nothing.zarr", "nothing", "folder/nothing.h5"])
def test_nothing_there(name, tmp_path):
    assert name in refusal(NotFoundError, tmp_path / name)


@pytest.mark.parametrize("name", ["empty.zarr", "empty"])
def test_a_folder_without_a_store_is_not_found(name, tmp_path):
    (tmp_path / name).mkdir()
    refusal(NotFoundError, tmp_path / name)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_h5ad_is_refused(keep, files, tmp_path):
    body = files["h5ad"].read_bytes()
    (tmp_path / "a.h5ad").write_bytes(body[: int(len(body) * keep) if isinstance(keep, float) else keep])
    refusal(FormatError, tmp_path / "a.h5ad")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.h5ad").write_text("cell,gene\n")
    refusal(FormatError, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "b.h5ad", "w") as file:
        file["matrix"] = [1, 2, 3]
    refusal(FormatError, tmp_path / "b.h5ad")
    zarr.open_group(tmp_path / "c.zarr", mode="w").create_group("images")
    refusal(FormatError, tmp_path / "c.zarr")


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_mudata_is_refused_by_name(kind, tmp_path):
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = mudata.MuData({"rna": ad.AnnData(np.eye(3)), "prot": ad.AnnData(np.eye(3))})
        if kind == "h5ad":
            both.write(tmp_path / "a.h5mu")
            (tmp_path / "a.h5mu").rename(tmp_path / "a.h5ad")
        else:
            both.write_zarr(tmp_path / "a.zarr")
    assert "MuData" in refusal(UnsupportedError, tmp_path / f"a.{kind}")
    assert "MuData" in refusal(UnsupportedError, both)


@pytest.mark.parametrize("value", [3, None, np.eye(2), b"bytes"])
def test_what_is_no_source_at_all_is_refused(value):
    assert type(value).__name__ in refusal(UnsupportedError, value)


def test_a_backed_anndata_is_refused_with_its_path(files):
    backed = ad.read_h5ad(files["h5ad"], backed="r")
    try:
        assert str(files["h5ad"]) in refusal(UnsupportedError, backed)
    finally:
        backed.file.close()


@pytest.mark.parametrize("missing", ["obs", "var"])
def test_without_obs_or_var_it_is_no_anndata(missing, files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file[missing]
    assert repr(missing) in refusal(FormatError, tmp_path / "a.h5ad")


def test_elements_that_anndata_does_not_know_are_refused_and_not_dropped(files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["spliced_extra"] = [1]
    assert "spliced_extra" in refusal(UnsupportedError, tmp_path / "a.h5ad")


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_a_column_with_our_prefix_is_refused(kind, tmp_path):
    adata = ad.AnnData(np.eye(2), obs=pd.DataFrame({"_lobster_zarr_x": [1, 2]}, index=["a", "b"]))
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "a.h5ad")
    assert "_lobster_zarr_x" in refusal(UnsupportedError, adata if kind == "memory" else tmp_path / "a.h5ad")


@pytest.mark.parametrize("missing", ["data", "indices", "indptr"])
def test_a_sparse_group_without_one_of_its_arrays_is_damaged(missing, files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file[f"X/{missing}"]
    with open_source(tmp_path / "a.h5ad", memory_limit_bytes=LIMIT) as source, pytest.raises(FormatError):
        source.stream("X")


@pytest.mark.parametrize("damage", ["indptr", "negative", "beyond", "short"])
def test_a_sparse_group_whose_parts_do_not_fit_is_damaged(damage, files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        if damage == "indptr":
            file["X/indptr"][3] = 999
        elif damage == "short":
            kept = file["X/data"][:-2]
            del file["X/data"]
            file["X/data"] = kept
        else:
            file["X/indices"][1] = -1 if damage == "negative" else 6
    with open_source(tmp_path / "a.h5ad", memory_limit_bytes=LIMIT) as source, pytest.raises(FormatError):
        list(source.stream("X").blocks(5))


def test_a_column_that_is_listed_but_not_stored_is_damage(files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["obs/n_counts"]
    with open_source(tmp_path / "a.h5ad", memory_limit_bytes=LIMIT) as source:
        with pytest.raises(FormatError) as failure:
            source.frame("obs")
        assert "n_counts" in str(failure.value)
        assert len(source.frame("var").index) == 6


def test_what_anndata_cannot_read_is_damage(files, tmp_path):
    shutil.copy(files["h5ad"], tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["uns/nested"].attrs["encoding-type"] = "no such encoding"
    with open_source(tmp_path / "a.h5ad", memory_limit_bytes=LIMIT) as source, pytest.raises(FormatError):
        source.value("uns")


# ---------------------------------------------------------------- files from before anndata 0.7


def write_legacy(path):
    """A file as anndata 0.6 wrote it: obs and var are compound tables."""
    obs = np.array([(b"cell0", 3), (b"cell1", 5)], dtype=[("index", "S8"), ("n_counts", "i4")])
    var = np.array([(b"g0",), (b"g1",), (b"g2",)], dtype=[("index", "S8")])
    with h5py.File(path, "w") as file:
        file["X"] = np.arange(6, dtype="f4").reshape(2, 3)
        file["obs"], file["var"] = obs, var


def test_a_legacy_file_is_read_whole_where_it_fits(tmp_path):
    write_legacy(tmp_path / "old.h5ad")
    with open_source(tmp_path / "old.h5ad", memory_limit_bytes=LIMIT) as source:
        assert list(source.frame("obs").index) == ["cell0", "cell1"]
        assert list(source.frame("obs").columns["n_counts"]()) == [3, 5]
        ((_, rows),) = source.stream("X").blocks(100)
        assert rows.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert source.n_bytes == (tmp_path / "old.h5ad").stat().st_size


def test_a_legacy_file_that_would_not_fit_is_refused_before_it_is_read(tmp_path):
    write_legacy(tmp_path / "old.h5ad")
    size = (tmp_path / "old.h5ad").stat().st_size
    assert "memory_limit" in refusal(BudgetError, tmp_path / "old.h5ad", limit=size)
