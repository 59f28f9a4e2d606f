"""Descriptions of a store from its metadata alone: text, HTML, plain values."""

from __future__ import annotations

import json

import anndata as ad
import numcodecs
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from lobster_zarr.grid import Grid
from lobster_zarr.layout import new_array
from lobster_zarr.node import ArrayNode
from lobster_zarr.summary import MAX_COLUMNS_SHOWN, codec_name, summarize
from tests.recording import RecordingStore, tree_of, write_foreign
from tests.tags import parsed

HOSTILE = "<script>alert('x')</script> & \"q\""
# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def cells(extra: str = "x"):
    return ad.AnnData(
        sparse.random(9, 6, 0.5, "csr", dtype="float32", random_state=1),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(["T", "B", "NK"] * 3),
                "n_counts": np.arange(9, dtype="int32"),
                "n_genes": pd.array([1, None, 3] * 3, dtype="Int16"),
                "passed": pd.array([True, None, False] * 3, dtype="boolean"),
                "donor": pd.array([f"d{i}" for i in range(9)], dtype="str"),
                extra: np.zeros(9),
            },
            index=[f"cell{i}" for i in range(9)],
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(6)]),
        layers={"dense": np.ones((9, 6))},
        obsm={"X_umap": np.ones((9, 2), "float32")},
        uns={extra: {"a": 1}, "colors": ["#fff"]},
    )


def described(adata, *, zarr_format=3, noted=None, uri="s3://lab/atlas.zarr"):
    store = RecordingStore()
    ad.io.write_elem(zarr.open_group(store, mode="w", zarr_format=zarr_format), "/", adata)
    return summarize(uri, tree_of(store), adata.shape, noted or {})


NOTED = {
    "writer": "lobster_zarr 0.1.0",
    "sort_by": ["cell_type", "donor"],
    "stored_bytes": {"X/data": 1500, "X/indices": 500, "layers/dense": 70, "obs/x": 30},
}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_elements_are_told_with_what_they_are_made_of(zarr_format):
    info = described(cells(), zarr_format=zarr_format, noted=NOTED)
    assert (info.n_obs, info.n_vars, info.sort_by) == (9, 6, ("cell_type", "donor"))
    elements = {e.path: e for e in info.elements}
    assert list(elements) == ["X", "layers/dense", "obsm/X_umap"]
    matrix = elements["X"]
    assert (matrix.kind, matrix.shape, matrix.dtype) == ("csr_matrix", (9, 6), "float32")
    assert matrix.stored_bytes == 2000
    assert not matrix.companion
    assert elements["layers/dense"].stored_bytes == 70
    assert elements["obsm/X_umap"].stored_bytes is None
    assert elements["obsm/X_umap"].shape == (9, 2)
    assert info.stored_bytes == 2100


def test_columns_are_told_with_their_types():
    info = described(cells())
    assert info.obs == {
        "cell_type": "category (3)", "n_counts": "int32", "n_genes": "int16?", "passed": "bool?",
        "donor": "string", "x": "float64",
    }  # fmt: skip
    assert info.var == {}
    assert sorted(info.uns) == ["colors", "x"]


def test_the_text_says_it_in_a_few_lines():
    text = str(described(cells(), noted=NOTED))
    first, second, *rest = text.splitlines()
    assert first == "Dataset 9 × 6  s3://lab/atlas.zarr"
    assert second == "  lobster_zarr 0.1.0 · sorted by cell_type, donor · 2.1 kB"
    (matrix,) = [line for line in rest if line.startswith("  X ")]
    assert all(told in matrix for told in ("csr", "float32", "9 × 6", "2.0 kB"))
    assert any(line.startswith("  obs ") and "cell_type: category (3)" in line for line in rest)
    assert any(line.startswith("  var ") and "(no columns)" in line for line in rest)
    assert any(line.startswith("  uns ") and "colors" in line for line in rest)


def test_a_store_of_another_writer_says_which_format_it_is():
    for zarr_format in (2, 3):
        info = described(cells(), zarr_format=zarr_format)
        assert info.writer == f"AnnData-Zarr, Zarr v{zarr_format}"
        assert info.stored_bytes is None
        assert "sorted" not in str(info)


def test_many_columns_are_cut_in_the_text_and_counted():
    obs = pd.DataFrame({f"c{i}": np.zeros(2) for i in range(MAX_COLUMNS_SHOWN + 5)}, index=["a", "b"])
    info = described(ad.AnnData(obs=obs))
    told = str(info).partition("  obs ")[2].partition("  var ")[0]
    assert told.count("float64") == MAX_COLUMNS_SHOWN
    assert told.rstrip().endswith("5 more")
    assert info.to_html().partition("lz-box")[2].count(">float64<") == MAX_COLUMNS_SHOWN + 5


def test_a_gene_major_companion_is_told_and_counted():
    store = RecordingStore()
    group = zarr.open_group(store, mode="w")
    adata = cells()
    ad.io.write_elem(group, "/", adata)
    ad.io.write_elem(group["X"], "csc", adata.X.tocsc())
    noted = {"stored_bytes": {"X/data": 10, "X/csc/data": 7, "Xother": 1000}}
    info = summarize("a.zarr", tree_of(store), adata.shape, noted)
    matrix = info.elements[0]
    assert matrix.companion
    assert matrix.stored_bytes == 17
    assert "csr + csc" in str(info)
    assert "csr_matrix + csc" in info.to_html()


def test_plain_values_go_through_json():
    info = described(cells(), noted=NOTED)
    again = json.loads(json.dumps(info.to_dict()))
    assert again["elements"][0]["path"] == "X"
    assert again["sort_by"] == ["cell_type", "donor"]
    assert again["obs"]["n_counts"] == "int32"


def test_an_empty_store_is_described_too():
    info = described(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])))
    assert info.elements == ()
    assert "Dataset 1 × 1" in str(info)
    assert "<details" in info.to_html()


# ---------------------------------------------------------------- HTML


def test_the_html_is_well_formed_and_says_the_same():
    tags = parsed(described(cells(), noted=NOTED).to_html())
    text = " ".join(tags.text)
    for told in ("9 cells × 6 genes", "s3://lab/atlas.zarr", "csr_matrix", "cell_type", "category (3)", "2.0 kB"):
        assert told in text


def test_hostile_names_are_text_and_never_markup():
    hostile = HOSTILE.replace("/", "|")  # no name in Zarr holds a slash
    adata = cells(hostile)
    adata.layers[hostile] = adata.layers["dense"]
    noted = {"writer": HOSTILE, "sort_by": [HOSTILE], "stored_bytes": {"X": 1}}
    store = RecordingStore()
    group = zarr.open_group(store, mode="w")
    ad.io.write_elem(group, "/", adata)
    group["X"].attrs["encoding-type"] = HOSTILE  # an encoding that nobody knows
    html = summarize(HOSTILE, tree_of(store), adata.shape, noted).to_html()
    tags = parsed(html)
    assert "script" not in tags.seen
    assert "<script" not in html
    text = "".join(tags.text)
    assert text.count(HOSTILE) >= 4  # the URI, the writer, the order, the encoding: all told, as text
    assert text.count(hostile) >= 3  # the column, the layer and uns


# ---------------------------------------------------------------- codecs


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"compressors": None}, "none"),
        ({"compressors": ZstdCodec()}, "zstd"),
        ({"compressors": GzipCodec()}, "gzip"),
        ({"compressors": BloscCodec(cname="lz4")}, "blosc-lz4"),
        ({"compressors": [GzipCodec(), ZstdCodec()]}, "gzip+zstd"),
        ({"compressors": ZstdCodec(), "shards": (8,)}, "zstd"),
        ({"compressors": GzipCodec(), "shards": {"shape": (8,), "index_location": "start"}}, "gzip"),
        ({"zarr_format": 2, "compressors": None}, "none"),
        ({"zarr_format": 2, "compressors": numcodecs.Blosc(cname="zstd")}, "blosc-zstd"),
        ({"zarr_format": 2, "compressors": numcodecs.GZip()}, "gzip"),
        ({"zarr_format": 2, "filters": [numcodecs.Delta(dtype="i8")], "compressors": numcodecs.LZ4()}, "delta+lz4"),
    ],
)  # fmt: skip
def test_codecs_of_others_are_named_as_people_say_them(options, name):
    array = write_foreign(RecordingStore(), np.arange(16), **({"chunks": (4,)} | options))
    assert codec_name(ArrayNode("a", array.metadata)) == name


@pytest.mark.parametrize(
    ("profile", "dtype", "name"),
    [
        ("small", "float32", "pcodec"), ("small", "bool", "blosc-zstd"), ("fast", "int32", "blosc-lz4"),
        ("compatible", "float32", "blosc-zstd"), ("small", "O", "zstd"),
    ],
)  # fmt: skip
def test_codecs_of_ours_are_named_without_the_checksum(profile, dtype, name):
    node = new_array("a", (9,), np.dtype(dtype), grid=Grid((9,), (3,), (9,)), profile=profile)
    assert codec_name(node) == name
