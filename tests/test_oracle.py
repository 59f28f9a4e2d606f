"""The test material is itself tested: the oracle catches mutations, anndata keeps what strategies draw.

Needs anndata alone, not lobster_zarr.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import oracle
import pandas as pd
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.thrift import examples

if TYPE_CHECKING:
    from collections.abc import Callable

# anndata warns of much that is drawn on purpose: duplicate names, old settings of pandas.
pytestmark = pytest.mark.filterwarnings("ignore")
some = settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))


# ---------------------------------------------------------------- strategies against anndata


@some
@given(adata=strategies.anndatas())
def test_what_anndata_stores_it_stores_again_unchanged(adata: ad.AnnData) -> None:
    once = oracle.stored(adata)
    oracle.assert_equal(oracle.stored(once), once)


@some
@given(adata=strategies.anndatas())
def test_matrices_and_columns_come_back_as_they_were_drawn(adata: ad.AnnData) -> None:
    back = oracle.stored(adata)
    for name in ("obs", "var", "X"):
        oracle.assert_equal(getattr(back, name), getattr(adata, name))
    for name in ("layers", "obsp", "varp"):
        oracle.assert_equal(dict(getattr(back, name)), dict(getattr(adata, name)))


@some
@given(adata=strategies.anndatas(h5ad=True))
def test_h5ad_and_zarr_keep_the_same(tmp_path_factory: pytest.TempPathFactory, adata: ad.AnnData) -> None:
    path = tmp_path_factory.mktemp("h5ad") / "a.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path, convert_strings_to_categoricals=False)
        from_h5ad = ad.read_h5ad(path)
    oracle.assert_equal(oracle.stored(from_h5ad), oracle.stored(adata))


@some
@given(drawn=st.data(), adata=strategies.anndatas())
def test_selections_are_ones_anndata_takes(drawn: st.DataObject, adata: ad.AnnData) -> None:
    rows = drawn.draw(strategies.selections(adata.obs_names))
    genes = drawn.draw(strategies.selections(adata.var_names))
    whole = oracle.stored(adata)
    got = oracle.sliced(whole, rows, genes)
    kept = oracle.stored(got)  # categories of which none is left lose their dtype, once
    oracle.assert_equal(oracle.stored(kept), kept)
    for index, wanted, kept in (
        (whole.obs_names, rows, got.obs_names),
        (whole.var_names, genes, got.var_names),
    ):
        assert list(kept) == _picked(index, wanted)
    keys = drawn.draw(strategies.sort_keys(adata.obs))
    assert set(keys) <= set(adata.obs.columns)
    assert len(keys) <= 2


def _picked(index: pd.Index, wanted: Any) -> list[str]:
    if isinstance(wanted, list):
        return [at if isinstance(at, str) else index[at] for at in wanted]
    return list(index[wanted])


# ---------------------------------------------------------------- the oracle against mutations


def sample() -> ad.AnnData:
    """One object with something of every kind to spoil."""
    return _sample().copy()


@functools.cache
def _sample() -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["a", "b", None, "a"], categories=["b", "a", "unused"]),
            "size": [1.5, np.nan, -0.0, 2.0],
            "n": np.array([1, 2, 3, 4], dtype="int32"),
            "note": pd.array(["x", None, "", "z"], dtype="str"),
            "flag": pd.array([True, None, False, True], dtype="boolean"),
        },
        index=pd.Index(["c1", "c2", "c3", "c3"], name="cell_id"),
    )
    X = sparse.csr_matrix(
        (np.array([1.0, 0.0, np.nan, -0.0], "float32"), np.array([0, 2, 1, 0]), np.array([0, 2, 2, 3, 4])),
        shape=(4, 3),
    )
    raw = ad.AnnData(sparse.csc_matrix(np.eye(4, 5)), obs=obs[[]], varm={"PCs": np.ones((5, 2))})
    groups = np.array([("CD4+", 1.0), ("NK", np.nan)], dtype=[("names", object), ("scores", "float32")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.AnnData(
            X,
            obs=obs,
            var=pd.DataFrame({"long": ["A", "B", "C"]}, index=["g1", "g2", "g3"]),
            layers={"dense": np.array([[0.0, -0.0, np.nan]] * 4)},
            obsm={"df": pd.DataFrame({"u": [1, 2, 3, 4]}, index=obs.index), "X_umap": np.zeros((4, 2))},
            obsp={"graph": sparse.csr_matrix(np.eye(4))},
            uns={"groups": groups, "deep": {"one": 1, "text": "t", "no": None, "yes": True, "nan": np.nan}},
        )
        adata.raw = raw
    return oracle.stored(adata)


def _edit(change: Callable[[ad.AnnData], object]) -> Callable[[ad.AnnData], None]:
    def edit(adata: ad.AnnData) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(adata)

    return edit


def _x(change: Callable[[Any], Any]) -> Callable[[ad.AnnData], None]:
    return _edit(lambda a: setattr(a, "X", change(a.X.copy())))


def _x_value(at: int, value: float) -> Callable[[ad.AnnData], None]:
    return _edit(lambda a: a.X.data.__setitem__(at, value))


def _without_zeros(matrix: Any) -> Any:
    matrix.eliminate_zeros()
    return matrix


def _column(name: str, change: Callable[[pd.Series], Any]) -> Callable[[ad.AnnData], None]:
    return _edit(lambda a: a.obs.__setitem__(name, change(a.obs[name])))


def _deep(name: str, value: object) -> Callable[[ad.AnnData], None]:
    return _edit(lambda a: a.uns["deep"].__setitem__(name, value))


def _groups(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ad.AnnData], None]:
    return _edit(lambda a: a.uns.__setitem__("groups", change(a.uns["groups"])))


def _replace_raw(**kept: bool) -> Callable[[ad.AnnData], None]:
    def change(a: ad.AnnData) -> None:
        raw = a.raw.to_adata()
        raw.varm.clear()
        a.raw = raw if kept["varm"] is False else None

    return _edit(change)


MUTATIONS: dict[str, tuple[Callable[[ad.AnnData], None], str]] = {
    "X dtype": (_x(lambda x: x.astype("float64")), "/X value: dtype float64"),
    "X NaN to 0": (_x_value(2, 0.0), "/X value"),
    "X -0.0 to 0.0": (_x_value(3, 0.0), "/X value"),
    "X one value": (_x_value(0, 1.0000001), "/X value"),
    "X explicit zeros dropped": (_x(_without_zeros), "/X entries stored"),
    "X to CSC": (_x(sparse.csc_matrix), "/X format"),
    "X to dense": (_x(lambda x: x.toarray()), "/X: array"),
    "X to none": (_x(lambda x: None), "/X: scalar"),
    "X column moved": (_edit(lambda a: a.X.indices.__setitem__(1, 1)), "/X column"),
    "layer -0.0": (_edit(lambda a: a.layers["dense"].__setitem__((1, 1), 0.0)), "/layers/dense"),
    "layer NaN": (_edit(lambda a: a.layers["dense"].__setitem__((1, 2), 0.0)), "/layers/dense"),
    "layer lost": (_edit(lambda a: a.layers.pop("dense")), "/layers: keys missing"),
    "obsm frame": (_edit(lambda a: a.obsm["df"].__setitem__("u", [1, 2, 3, 5])), "/obsm/df['u']"),
    "obsm dtype": (_edit(lambda a: a.obsm.update(X_umap=np.zeros((4, 2), "f4"))), "/obsm/X_umap: dtype"),
    "obsm shape": (_edit(lambda a: a.obsm.update(X_umap=np.zeros((4, 3)))), "/obsm/X_umap: shape"),
    "obsp lost": (_edit(lambda a: a.obsp.pop("graph")), "/obsp: keys missing"),
    "raw lost": (_edit(lambda a: setattr(a, "raw", None)), "/raw: scalar"),
    "raw varm lost": (_replace_raw(varm=False), "/raw/varm: keys missing"),
    "index name": (_edit(lambda a: setattr(a.obs.index, "name", None)), "/obs index name"),
    "names": (_edit(lambda a: setattr(a, "obs_names", ["c1", "c2", "c3", "c4"])), "/obs index"),
    "order of categories": (
        _column("kind", lambda c: c.cat.reorder_categories(["a", "b", "unused"])),
        "/obs['kind'] categories",
    ),
    "unused category": (
        _column("kind", lambda c: c.cat.remove_unused_categories()),
        "/obs['kind'] categories",
    ),
    "ordered": (_column("kind", lambda c: c.cat.as_ordered()), "/obs['kind'] ordered"),
    "codes": (_column("kind", lambda c: c.fillna("b")), "/obs['kind'] codes"),
    "category to text": (_column("kind", lambda c: c.astype("str")), "/obs['kind']: extension"),
    "column dtype": (_column("n", lambda c: c.astype("int64")), "/obs['n']: dtype"),
    "column NaN": (_column("size", lambda c: c.fillna(0.0)), "/obs['size']"),
    "column -0.0": (_column("size", lambda c: c + 0.0), "/obs['size']"),
    "missing text": (_column("note", lambda c: c.fillna("")), "/obs['note'] missing"),
    "str to string": (_column("note", lambda c: c.astype("string")), "/obs['note'] dtype"),
    "str to object": (_column("note", lambda c: c.astype(object)), "/obs['note']: array"),
    "missing flag": (_column("flag", lambda c: c.fillna(value=False)), "/obs['flag'] missing"),
    "flag": (_column("flag", lambda c: ~c), "/obs['flag']: "),
    "column lost": (_edit(lambda a: a.obs.pop("n")), "/obs columns"),
    "order of columns": (_edit(lambda a: setattr(a, "obs", a.obs[list(a.obs)[::-1]])), "/obs columns"),
    "uns key": (_edit(lambda a: a.uns.pop("deep")), "/uns: keys missing"),
    "uns key added": (_edit(lambda a: a.uns.update(more=1)), "/uns: keys missing [], keys not expected"),
    "uns int to float": (_deep("one", 1.0), "/uns/deep/one: float"),
    "uns int to bool": (_deep("one", value=True), "/uns/deep/one: bool"),
    "uns bool to int": (_deep("yes", 1), "/uns/deep/yes: int"),
    "uns NaN": (_deep("nan", 0.0), "/uns/deep/nan"),
    "uns text": (_deep("text", "u"), "/uns/deep/text"),
    "uns None": (_deep("no", "None"), "/uns/deep/no"),
    "uns scalar to array": (_deep("one", np.array([1])), "/uns/deep/one: array"),
    "recarray text": (_groups(lambda g: _with_field(g, "names", "B")), "/uns/groups['names']"),
    "recarray NaN": (_groups(lambda g: _with_field(g, "scores", 0.0)), "/uns/groups['scores']"),
    "recarray field type": (
        _groups(lambda g: g.astype([("names", object), ("scores", "float64")])),
        "/uns/groups['scores']: dtype",
    ),
    "recarray field name": (
        _groups(lambda g: g.astype([("names", object), ("s", "float32")])),
        "/uns/groups: dtype",
    ),
}


def _with_field(array: np.ndarray, name: str, value: object) -> np.ndarray:
    array = array.copy()
    array[name][1] = value
    return array


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught_and_named(name: str) -> None:
    mutate, expected = MUTATIONS[name]
    spoiled = sample()
    mutate(spoiled)
    with pytest.raises(AssertionError) as caught:
        oracle.assert_equal(spoiled, sample())
    lines = str(caught.value).splitlines()[1:]
    assert any(line.startswith(expected) for line in lines), lines
    with pytest.raises(AssertionError):
        oracle.assert_equal(sample(), spoiled)


def _unsorted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix.indices[:2], matrix.data[:2] = matrix.indices[1::-1].copy(), matrix.data[1::-1].copy()
    matrix.indices = matrix.indices.astype("int64")
    return matrix


TOLERATED: dict[str, Callable[[ad.AnnData], None]] = {
    "nothing": _edit(lambda a: None),
    "sparse array": _x(sparse.csr_array),
    "order of indices and their type": _x(_unsorted),
    "Fortran order": _edit(lambda a: a.layers.update(dense=np.asfortranarray(a.layers["dense"]))),
    "order of keys": _edit(lambda a: a.uns.update(groups=a.uns.pop("groups"))),
    "NumPy scalar": _deep("one", np.int64(1)),
    "NumPy text": _deep("text", np.str_("t")),
    "recarray": _groups(lambda g: g.view(np.recarray)),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_carries_no_information_is_tolerated(name: str) -> None:
    changed = sample()
    TOLERATED[name](changed)
    oracle.assert_equal(changed, sample())


@pytest.mark.parametrize("wanted", [sparse.csr_matrix, sparse.csc_matrix])
def test_sparse_layout_any_compares_entries_to_the_bit(wanted: type) -> None:
    x = sample().X
    oracle.assert_equal(wanted(x), x, sparse_layout="any")
    spoiled = wanted(x).copy()
    spoiled.data[0] = 7
    with pytest.raises(AssertionError, match="value"):
        oracle.assert_equal(spoiled, x, sparse_layout="any")
    with pytest.raises(AssertionError, match="array"):
        oracle.assert_equal(x.toarray(), x, sparse_layout="any")


def test_reordered_keeps_unused_categories() -> None:
    once = oracle.reordered(sample(), np.array([3, 1, 0, 2]))
    assert list(once.obs["n"]) == [4, 2, 1, 3]
    assert list(once.obs["kind"].cat.categories) == ["b", "a", "unused"]
    oracle.assert_equal(oracle.reordered(once, np.array([2, 1, 3, 0])), sample())


def _mutations() -> dict[str, Callable[[mudata.MuData], Any]]:
    return {
        "a value of a modality": lambda m: m["b"].X.__setitem__((0, 0), 5),
        "a global column": lambda m: m.obs.__setitem__("batch", [1, 2, 4]),
        "a global index name": lambda m: setattr(m.var.index, "name", "gene"),
        "obsm": lambda m: m.obsm["X"].__setitem__((0, 0), 9),
        "obsmap": lambda m: m.obsmap.__setitem__("a", np.array([2, 1, 3], "uint32")),
        "uns": lambda m: m.uns.update(note=1.0),
        "the order of modalities": lambda m: m.mod.update(a=m.mod.pop("a")),
        "the axis": lambda m: setattr(m, "_axis", 1),
    }


def multimodal() -> mudata.MuData:
    obs, var = pd.DataFrame(index=["1", "2", "3"]), pd.DataFrame(index=["g"])
    data = mudata.MuData(
        {"a": ad.AnnData(np.ones((3, 1)), obs=obs), "b": ad.AnnData(np.ones((2, 1)), obs=obs[:2], var=var)}
    )
    data.obs["batch"] = [1, 2, 3]
    data.obsm["X"] = np.zeros((3, 2))
    data.uns["note"] = 1
    return data


@pytest.mark.parametrize("kind", _mutations())
def test_a_mutation_of_a_mudata_is_caught(kind: str) -> None:
    changed = multimodal()
    oracle.assert_mudata_equal(changed, multimodal())
    oracle.assert_mudata_equal(oracle.stored_mudata(changed), oracle.stored_mudata(multimodal()))
    _mutations()[kind](changed)
    with pytest.raises(AssertionError):
        oracle.assert_mudata_equal(changed, multimodal())


# ---------------------------------------------------------------- why strategies leave things out


def test_anndata_writes_a_missing_object_value_as_text() -> None:
    values = pd.Series(["a", None, np.nan], dtype=object, index=["1", "2", "3"])
    back = oracle.stored(ad.AnnData(np.zeros((3, 1)), obs=pd.DataFrame({"note": values})))
    assert list(back.obs["note"]) == ["a", "None", "nan"]


def test_anndata_loses_the_type_of_no_categories() -> None:
    empty = pd.Categorical([None], categories=pd.Index([], dtype="float32"))
    kept, lost = pd.Index([], dtype="float32"), pd.Index([], dtype="str")
    for index, back in ((kept, "float32"), (lost, "object")):
        obs = pd.DataFrame({"k": empty.set_categories(index)}, index=["1"])
        assert oracle.stored(ad.AnnData(np.zeros((1, 1)), obs=obs)).obs["k"].cat.categories.dtype == back


@pytest.mark.parametrize("name", ["", "a/b"])
def test_anndata_does_not_keep_this_column_name(name: str) -> None:
    adata = ad.AnnData(np.zeros((1, 1)), obs=pd.DataFrame({name: [1]}, index=["1"]))
    try:
        assert name not in oracle.stored(adata).obs
    except ValueError:
        assert "/" in name


def test_anndata_loses_raw_where_there_are_no_rows() -> None:
    adata = ad.AnnData(np.zeros((0, 1)))
    adata.raw = adata.copy()
    assert oracle.stored(adata).raw is None


def test_scipy_takes_rows_and_a_strided_slice_for_pairs() -> None:
    adata = ad.AnnData(sparse.csr_matrix(np.eye(4)))
    with pytest.raises(ValueError):
        adata[[0, 1], ::2].copy()
    assert oracle.sliced(adata, [0, 1], slice(None, None, 2)).shape == (2, 2)
