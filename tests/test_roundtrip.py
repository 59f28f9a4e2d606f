"""Whatever anndata can store comes back from our store as it comes back from anndata's own.

Property tests over `strategies.anndatas`, judged by `oracle`: conversion from
memory, H5AD and AnnData-Zarr, sorting, queries, export, verification, damage.
"""

from __future__ import annotations

import itertools
import warnings
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import tiny_chunks
from oracle import assert_equal, reordered, sliced, stored
from recording import EAGER, EXACT
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import LobsterZarrError
from tests import thrift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def examples(n: int) -> settings:
    """Few examples, each large: one object passes through every encoding it drew."""
    return settings(max_examples=thrift.examples(n), deadline=None, suppress_health_check=list(HealthCheck))


codecs = st.sampled_from(["small", "fast", "compatible"])
_numbers = itertools.count()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a path where nothing is yet."""
    root = tmp_path_factory.mktemp("roundtrip")
    return lambda suffix: root / f"{next(_numbers)}{suffix}"


def memory_uri() -> str:
    return f"memory://roundtrip-{next(_numbers)}"


def quietly(do: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call anndata without its warnings, which are meant for the user of anndata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return do(*args, **options)


def convert(source: Any, dest: Any, **options: Any) -> None:
    lz.convert(source, dest, progress=False, **options)


def sparse_elements(adata: ad.AnnData) -> Iterator[Any]:
    candidates = [adata.X, *adata.layers.values(), *([] if adata.raw is None else [adata.raw.X])]
    yield from filter(sparse.issparse, candidates)


# ---------------------------------------------------------------- conversion


@examples(12)
@given(adata=strategies.anndatas(), codec=codecs, gene_major=st.booleans())
def test_anndata_reads_what_was_converted(
    fresh: Callable[[str], Path], adata: ad.AnnData, codec: str, gene_major: bool
) -> None:
    before = adata.copy()
    path = fresh(".zarr")
    convert(adata, path, codec=codec, gene_major=gene_major)
    back = quietly(ad.read_zarr, path)
    assert_equal(back, stored(adata), sparse_layout="any")
    assert {m.format for m in sparse_elements(back)} <= {"csr"}
    assert_equal(adata, before)  # the source is not touched


@examples(8)
@given(adata=strategies.anndatas(h5ad=True), codec=codecs)
def test_an_h5ad_file(fresh: Callable[[str], Path], adata: ad.AnnData, codec: str) -> None:
    source, path = fresh(".h5ad"), fresh(".zarr")
    quietly(adata.write_h5ad, source, convert_strings_to_categoricals=False)
    convert(source, path, codec=codec)
    assert_equal(quietly(ad.read_zarr, path), stored(adata), sparse_layout="any")


@examples(8)
@given(adata=strategies.anndatas(), zarr_format=st.sampled_from([2, 3]))
def test_an_anndata_zarr_store(fresh: Callable[[str], Path], adata: ad.AnnData, zarr_format: int) -> None:
    source, path = fresh(".zarr"), fresh(".zarr")

    def write_and_read() -> ad.AnnData:
        with ad.settings.override(zarr_write_format=zarr_format):
            adata.write_zarr(source, convert_strings_to_categoricals=False)
        return ad.read_zarr(source)

    expected = stored(quietly(write_and_read))
    convert(source, path)
    assert_equal(quietly(ad.read_zarr, path), expected, sparse_layout="any")


@pytest.mark.parametrize("cls", [sparse.csc_matrix, sparse.csc_array])
@pytest.mark.parametrize("from_file", [False, True], ids=["memory", "h5ad"])
def test_csc_becomes_csr_with_its_explicit_zeros(fresh: Callable[[str], Path], cls: type, from_file: bool) -> None:
    entries = (np.array([1.0, 0.0, -0.0, np.nan], "float32"), np.array([2, 0, 1, 0]), np.array([0, 2, 2, 4]))
    adata = ad.AnnData(cls(entries, shape=(3, 3)))
    source: Any = adata
    if from_file:
        source = fresh(".h5ad")
        quietly(adata.write_h5ad, source)
    uri = memory_uri()
    convert(source, uri, gene_major=True)
    got = lz.open(uri).query(None).to_memory().X
    assert got.format == "csr"
    assert_equal(got, adata.X, sparse_layout="any")


# ---------------------------------------------------------------- order

NETWORKS = [EXACT, EAGER, lz.Network()]
LAYOUTS = [nullcontext, *(partial(tiny_chunks, chunk=c, noted_chunks=n) for c in (2, 8) for n in (1, 512))]


def _groups(obs: pd.DataFrame, column: str) -> np.ndarray:
    return np.asarray(pd.factorize(obs[column])[0])


def _n_runs(labels: list[tuple[int, ...]]) -> int:
    return sum(1 for _ in itertools.groupby(labels))


@examples(10)
@given(drawn=st.data(), adata=strategies.anndatas())
def test_sorted_storage(fresh: Callable[[str], Path], drawn: st.DataObject, adata: ad.AnnData) -> None:
    sort_by = drawn.draw(strategies.sort_keys(adata.obs), "sort_by")
    adata.obs["source_row"] = np.arange(adata.n_obs)
    expected, path = stored(adata), fresh(".zarr")
    convert(adata, path, sort_by=sort_by)

    dataset = lz.open(path)
    assert_equal(dataset.query(None).to_memory(), expected, sparse_layout="any")
    in_storage = dataset.query(None, order="storage").to_memory()
    rows = in_storage.obs["source_row"].to_numpy()
    assert_equal(in_storage, reordered(expected, rows), sparse_layout="any")
    assert_equal(quietly(ad.read_zarr, path), in_storage, sparse_layout="any")

    labels = [tuple(map(int, row)) for row in zip(*(_groups(in_storage.obs, c) for c in sort_by), strict=True)]
    for n in range(1, len(sort_by) + 1):
        prefixes = [label[:n] for label in labels]
        assert _n_runs(prefixes) == len(set(prefixes)), f"{sort_by[:n]} is not contiguous"
    for label in set(labels):
        within = [row for row, other in zip(rows, labels, strict=True) if other == label]
        assert within == sorted(within), "the sort is not stable"
    if not sort_by:
        assert list(rows) == list(range(adata.n_obs))


# ---------------------------------------------------------------- queries


@examples(15)
@given(drawn=st.data(), adata=strategies.anndatas(), gene_major=st.booleans())
def test_a_query_is_what_anndata_slices(drawn: st.DataObject, adata: ad.AnnData, gene_major: bool) -> None:
    uri = memory_uri()
    sort_by = drawn.draw(strategies.sort_keys(adata.obs), "sort_by")
    with drawn.draw(st.sampled_from(LAYOUTS), "layout")():
        convert(adata, uri, gene_major=gene_major, sort_by=sort_by)
    whole = stored(adata)
    for _ in range(3):
        rows = drawn.draw(strategies.selections(adata.obs_names), "rows")
        genes = drawn.draw(strategies.selections(adata.var_names), "genes")
        selection = lz.open(uri, network=drawn.draw(st.sampled_from(NETWORKS), "network")).query(rows, var=genes)
        expected = sliced(whole, rows, genes)
        assert_equal(selection.to_memory(), expected, sparse_layout="any")
        assert selection.count() == expected.n_obs


@examples(8)
@given(drawn=st.data(), adata=strategies.anndatas())
def test_a_query_reads_the_layers_and_obsm_it_names(drawn: st.DataObject, adata: ad.AnnData) -> None:
    uri = memory_uri()
    convert(adata, uri)
    rows = drawn.draw(strategies.selections(adata.obs_names), "rows")
    wanted = {
        name: drawn.draw(st.lists(st.sampled_from(sorted(there)), unique=True) if there else st.just([]), name)
        for name, there in (("layers", adata.layers.keys() - {None}), ("obsm", adata.obsm.keys()))
    }
    expected = sliced(stored(adata), rows, slice(None))
    for name, names in wanted.items():
        for other in [k for k in getattr(expected, name) if k is not None and k not in names]:
            del getattr(expected, name)[other]
    assert_equal(lz.open(uri).query(rows, **wanted).to_memory(), expected, sparse_layout="any")


@examples(5)
@given(adata=strategies.anndatas(), gene_major=st.booleans())
def test_nothing_asked_for_is_an_empty_anndata(
    fresh: Callable[[str], Path], adata: ad.AnnData, gene_major: bool
) -> None:
    adata.obs.index.name = None  # a name that is also a column's must hold the same values
    adata.obs["n_counts"] = np.arange(adata.n_obs, dtype="float32")
    uri = memory_uri()
    convert(adata, uri, gene_major=gene_major)
    nobody = np.zeros(adata.n_obs, dtype=bool)
    expected = sliced(stored(adata), nobody, slice(None))
    for rows in ("n_counts > 1e9", nobody, [], slice(0, 0)):
        empty = lz.open(uri).query(rows).to_memory()
        assert empty.shape == (0, adata.n_vars)
        assert_equal(empty, expected, sparse_layout="any")
    quietly(empty.write_zarr, fresh(".zarr"), convert_strings_to_categoricals=False)


# ---------------------------------------------------------------- export and verification


@examples(8)
@given(drawn=st.data(), adata=strategies.anndatas(h5ad=True))
def test_export_gives_the_source_back(fresh: Callable[[str], Path], drawn: st.DataObject, adata: ad.AnnData) -> None:
    uri, path = memory_uri(), fresh(".h5ad")
    convert(adata, uri, sort_by=drawn.draw(strategies.sort_keys(adata.obs), "sort_by"))
    lz.export(uri, path)
    assert_equal(stored(quietly(ad.read_h5ad, path)), stored(adata), sparse_layout="any")


@examples(6)
@given(drawn=st.data(), adata=strategies.anndatas(min_obs=1), gene_major=st.booleans())
def test_verify_passes_on_what_convert_wrote(drawn: st.DataObject, adata: ad.AnnData, gene_major: bool) -> None:
    uri = memory_uri()
    sort_by = drawn.draw(strategies.sort_keys(adata.obs), "sort_by")
    with drawn.draw(st.sampled_from(LAYOUTS), "layout")():
        convert(adata, uri, gene_major=gene_major, sort_by=sort_by)
    lz.verify(uri)
    lz.verify(uri, against=adata)


def _changed(adata: ad.AnnData) -> Iterator[tuple[str, ad.AnnData]]:
    """Yield copies that differ from `adata` in one small thing each."""
    for name in ("X", "obs", "uns", "obsm", "names"):
        other = adata.copy()
        if name == "X":
            other.X.data[0] += 1
        elif name == "obs":
            other.obs["n"] = [1, 2, 4]
        elif name == "uns":
            other.uns["version"] = 2
        elif name == "obsm":
            other.obsm["X_pca"][0, 0] = -0.0
        else:
            other.obs_names = ["a", "b", "d"]
        yield name, other


def test_verify_fails_against_another_source() -> None:
    obs = pd.DataFrame({"n": [1, 2, 3]}, index=["a", "b", "c"])
    X = sparse.csr_matrix(np.eye(3, dtype="float32"))
    adata = ad.AnnData(X, obs=obs, obsm={"X_pca": np.zeros((3, 2))}, uns={"version": 1})
    uri = memory_uri()
    convert(adata, uri)
    for name, other in _changed(adata):
        try:
            lz.verify(uri, against=other)
        except LobsterZarrError:
            continue
        pytest.fail(f"a changed {name} was not noticed")


def _damage(path: Path, kind: str, at: float) -> None:
    content = bytearray(path.read_bytes())
    if kind == "lose":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: int(at * len(content))])
    else:
        content[int(at * len(content))] ^= 1 << int(at * 8)
        path.write_bytes(content)


@examples(12)
@given(
    drawn=st.data(),
    adata=strategies.anndatas(min_obs=1),
    codec=codecs,
    kind=st.sampled_from(["flip", "flip", "truncate", "lose"]),
)
def test_damage_is_an_error_and_never_a_value(
    fresh: Callable[[str], Path], drawn: st.DataObject, adata: ad.AnnData, codec: str, kind: str
) -> None:
    path = fresh(".zarr")
    with drawn.draw(st.sampled_from(LAYOUTS), "layout")():
        convert(adata, path, codec=codec, gene_major=True)
    chunks = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json" and p.stat().st_size)
    chunk = drawn.draw(st.sampled_from(chunks), "chunk")
    _damage(chunk, kind, drawn.draw(st.floats(0, 1, exclude_max=True), "at"))

    with pytest.raises(LobsterZarrError):
        lz.verify(path, against=adata)
    for genes in (None, [0] if adata.n_vars else []):
        try:
            got = lz.open(path).query(None, var=genes).to_memory()
        except LobsterZarrError:
            continue
        whole = stored(adata)
        expected = whole if genes is None else sliced(whole, slice(None), genes)
        assert_equal(got, expected, sparse_layout="any")


# ---------------------------------------------------------------- what cannot be kept


@pytest.mark.parametrize("missing", [None, np.nan], ids=["None", "NaN"])
def test_a_missing_object_value_never_becomes_text(missing: object) -> None:
    # anndata's own writer stores the text 'None' here.
    note = pd.Series(["a", missing, "None"], dtype=object, index=["1", "2", "3"])
    adata = ad.AnnData(np.zeros((3, 1), "float32"), obs=pd.DataFrame({"note": note}))
    uri = memory_uri()
    try:
        convert(adata, uri)
    except LobsterZarrError:
        return
    back = lz.open(uri).query(None).to_memory().obs["note"]
    assert list(back.isna()) == [False, True, False]
    assert list(back.dropna()) == ["a", "None"]


def _unstorable() -> Iterator[tuple[str, dict[str, Any]]]:
    index = ["1", "2"]
    yield "column with a slash", {"obs": pd.DataFrame({"a/b": [1, 2]}, index=index)}
    yield "Float64 column", {"obs": pd.DataFrame({"f": pd.array([1.5, None], dtype="Float64")}, index=index)}
    yield "datetime column", {"obs": pd.DataFrame({"t": pd.to_datetime(["2020-01-01"] * 2)}, index=index)}
    yield "set in uns", {"uns": {"s": {1, 2}}}
    yield "function in uns", {"uns": {"deep": {"f": len}}}
    yield "key that is not text", {"uns": {"deep": {1: 2}}}


@pytest.mark.parametrize("parts", [pytest.param(p, id=name) for name, p in _unstorable()])
def test_what_anndata_cannot_store_is_refused_and_nothing_is_written(
    fresh: Callable[[str], Path], parts: dict[str, Any]
) -> None:
    adata, path = ad.AnnData(np.zeros((2, 1), "float32"), **parts), fresh(".zarr")
    with pytest.raises(LobsterZarrError):
        convert(adata, path)
    assert not [p for p in path.rglob("*") if p.is_file()]
