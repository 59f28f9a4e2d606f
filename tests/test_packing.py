"""What AnnData has no encoding for: stored through a real store, and back."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import lobster_zarr as lz
from lobster_zarr.errors import FormatError, UnsupportedError
from lobster_zarr.packing import PACKED, pack, pack_mudata, packed_uns, storable, unpack, unpacked_uns

PROVENANCE = {
    "activities": [
        {"id": "a1", "parameters": {"n": 5, "shape": (20, 3), "none": None, "ok": True}, "inputs": []},
        {"id": "a2", "outputs": [{"entity": "e/1", "role": "x"}], "when": dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC)},
    ],
    "entities": {"lobster:entity/1": {"uri": None, "metadata": {"shape": (20, 3), 7: "seven"}}},
    "tracker_namespace": "lobster",
}


def sample(**uns: object) -> ad.AnnData:
    obs = pd.DataFrame({"cell_type": list("ab") * 10}, index=[f"c{i}" for i in range(20)])
    return ad.AnnData(sp.random(20, 3, 0.5, "csr", dtype="float32", random_state=1), obs=obs, uns=uns)


def stored(adata: ad.AnnData, path: Path) -> ad.AnnData:
    lz.convert(pack(adata), path / "a.zarr", overwrite=True, progress=False)
    return unpack(lz.open(path / "a.zarr").to_memory())


def same(a: object, b: object) -> bool:
    """Equal in value and type, through dicts and lists."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def test_provenance_round_trips_with_its_types(tmp_path):
    assert same(stored(sample(provenance=PROVENANCE), tmp_path).uns["provenance"], PROVENANCE)


def test_other_readers_see_all_that_anndata_can_encode(tmp_path):
    neighbors = {"params": {"n_neighbors": 15, "method": "umap"}, "steps": [{"k": 1}]}
    original = sample(provenance=PROVENANCE, neighbors=neighbors, colors=np.array(["#fff", "#000"], object), pca=None)
    stored(original, tmp_path)
    plain = ad.read_zarr(tmp_path / "a.zarr")
    assert plain.uns["neighbors"]["params"] == {"n_neighbors": 15, "method": "umap"}
    assert list(plain.uns["colors"]) == ["#fff", "#000"]
    assert plain.uns["pca"] is None
    assert json.loads(str(plain.uns[PACKED]))["version"] == 1
    assert unpack(plain).uns["neighbors"] == neighbors
    assert same(plain.uns["provenance"], PROVENANCE)


@pytest.mark.parametrize(
    "value",
    [
        [{"x": 1}],
        [],
        (1, "a"),
        {1: 2},
        {"a/b": {"c": [None]}},
        {"": 0},
        [[1, 2], [3]],
        ["a", None],
        [True, False],
        {"__lobster_zarr__": "tuple"},
        {"s": {1, 2}, "f": frozenset({"x"})},
        [np.arange(6, dtype="uint8").reshape(2, 3), np.float32(0.1), np.array(["a", "b"])],
        [pd.Timestamp("2026-01-02T03:04:05.123456789"), dt.date(2026, 1, 2), dt.time(1, 2)],
        [Path("a/b"), b"\x00\xff", float("inf")],
        2**70,
    ],
)
def test_a_value_round_trips(value, tmp_path):
    assert same(stored(sample(key=value), tmp_path).uns["key"], value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=3))
def test_packing_is_undone(uns):
    before = json.dumps(uns)
    packed = packed_uns(uns)
    assert json.dumps(uns) == before  # the original is not changed
    assert unpacked_uns(packed) == uns


def test_what_cannot_be_kept_is_refused_with_its_place():
    with pytest.raises(UnsupportedError, match=r"uns\['a'\].* object"):
        pack(sample(a=[{"b": object()}]))


def test_what_another_reader_has_read_is_packed_as_it_was():
    uns = {"provenance": PROVENANCE, "neighbors": {"steps": [{"k": 1}], "n": 3}}
    assert unpacked_uns(packed_uns(packed_uns(uns))) == uns
    newer = {"activities": [{"id": "a3"}]}
    assert unpacked_uns(packed_uns(packed_uns(uns) | {"provenance": newer}))["provenance"] == newer


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 9, "entries": []}', "3"])
def test_a_damaged_text_is_an_error(text):
    with pytest.raises(FormatError, match=PACKED):
        unpacked_uns({PACKED: text})


def test_columns_of_objects_become_what_can_be_stored(tmp_path):
    adata = sample()
    some = lambda a, b: pd.Series([a, b] * 10, index=adata.obs_names, dtype=object)  # noqa: E731
    adata.obs["text"], adata.obs["flag"], adata.obs["count"] = some("x", None), some(True, None), some(3, None)
    adata.obs["mixed"], adata.obs["none"], adata.obs["ids"] = some(1, "a"), some(None, None), some("001", "002")
    adata.obs["when"] = pd.Timestamp("2026-01-02")
    adata.obs["a/b"] = 1
    adata.obsm["X/umap"], adata.layers["c/1"] = np.ones((20, 2)), adata.X.copy()
    back = stored(adata, tmp_path)
    assert list(back.obs["text"][:2].fillna("missing")) == ["x", "missing"]
    assert back.obs["flag"].dtype == "boolean"
    assert back.obs["flag"].isna().sum() == 10
    assert back.obs["count"].dtype == "Int64"
    assert list(back.obs["mixed"][:2]) == ["1", "a"]
    assert back.obs["none"].isna().all()
    assert list(back.obs["ids"][:2]) == ["001", "002"]
    assert back.obs["when"].iloc[0] == "2026-01-02 00:00:00"
    assert list(back.obs["a__b"]) == [1] * 20
    assert set(back.obsm) == {"X__umap"}
    assert [k for k in back.layers if k is not None] == ["c__1"]
    assert "a/b" in adata.obs  # the original is not changed


def test_a_table_that_can_be_stored_is_not_copied():
    frame = sample().obs
    assert storable(frame, "obs") is frame


def test_two_names_that_become_one_are_refused():
    adata = sample()
    adata.obs["a/b"], adata.obs["a__b"] = 1, 2
    with pytest.raises(UnsupportedError, match="a__b"):
        pack(adata)


def test_matrices_are_shared_and_raw_is_kept(tmp_path):
    adata = sample(provenance=PROVENANCE)
    adata.raw = adata.copy()
    packed = pack(adata)
    assert np.shares_memory(packed.X.data, adata.X.data)
    back = stored(adata, tmp_path)
    np.testing.assert_array_equal(back.raw.X.toarray(), adata.X.toarray())


def test_a_mudata_round_trips(tmp_path):
    rna, prot = sample(provenance=PROVENANCE), sample()[:15].copy()
    prot.var_names = [f"p{i}" for i in range(3)]
    mdata = mudata.MuData({"rna": rna, "prot": prot})
    mdata.obs["batch"] = "b1"
    mdata.uns["provenance"] = PROVENANCE
    mdata.obsm["X_umap"] = np.ones((20, 2))
    lz.convert(pack_mudata(mdata), tmp_path / "m.zarr", progress=False)
    back = unpack(lz.open(tmp_path / "m.zarr").to_memory())
    assert same(back.uns["provenance"], PROVENANCE)
    assert same(back["rna"].uns["provenance"], PROVENANCE)
    assert list(back.obs["batch"]) == ["b1"] * 20
    np.testing.assert_array_equal(back.obsm["X_umap"], mdata.obsm["X_umap"])
    np.testing.assert_array_equal(back["prot"].X.toarray(), prot.X.toarray())
