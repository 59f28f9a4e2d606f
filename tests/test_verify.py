"""Verification passes what is right, and names the element and the row of what is not.

Stores are damaged as disks and other programs damage them: bytes, objects, and
values rewritten through zarr with sound checksums.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from test_convert import cells, convert

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.layout import SOURCE_ORDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def verify(uri: Any, against: Any = None, **options: Any) -> Any:
    return lz.verify(uri, against, progress=False, **options)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "a.zarr"
    convert(cells(), path, sort_by="cell_type", gene_major=True)
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound store, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "a.zarr"))


def chunks(store: Path) -> list[Path]:
    return sorted(p for p in store.rglob("*") if p.is_file() and p.name != "zarr.json")


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("small_blocks", [False, True])
def test_a_sound_store_passes(sound: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: bool) -> None:
    if small_blocks:
        monkeypatch.setattr(import_module("lobster_zarr.verification"), "BLOCK_VALUES", 64)
    alone = verify(sound)
    assert alone.compared == ()
    arrays = [node for _, node in zarr.open_group(sound, mode="r").members(None) if isinstance(node, zarr.Array)]
    assert alone.n_arrays == len(arrays) > 30
    assert alone.n_bytes >= sum(p.stat().st_size for p in chunks(sound))
    against = verify(sound, cells())
    parts = {"X", "layers/counts", "layers/scaled", "obs", "var", "obsm/X_umap", "varm/PCs", "uns", "raw/X", "raw/var"}
    assert parts | {"obsp/distances", "obsp/dense"} <= set(against.compared)
    assert "equal to the source" in str(against)


def test_the_source_may_lie_anywhere_in_any_layout(s3: S3Server, sound: Path, tmp_path: Path) -> None:
    bucket = s3.bucket("verify")
    cells().write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    s3.client().upload_file(str(tmp_path / "a.h5ad"), "verify", "a.h5ad")
    convert(cells(), f"{bucket}/a.zarr", storage_options=s3.storage_options)
    verify(f"{bucket}/a.zarr", f"{bucket}/a.h5ad", storage_options=s3.storage_options)
    verify(lz.open(sound), tmp_path / "a.h5ad")

    other = cells()
    other.X = other.X.tocsc()
    other.layers["counts"].has_sorted_indices = False
    for start, stop in zip(other.layers["counts"].indptr[:-1], other.layers["counts"].indptr[1:], strict=True):
        for part in (other.layers["counts"].indices, other.layers["counts"].data):
            part[start:stop] = part[start:stop][::-1].copy()
    verify(sound, other)


# ---------------------------------------------------------------- damaged bytes


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "lost"])
def test_damage_to_any_object_is_found_and_named(store: Path, damage: Callable[[Path], None]) -> None:
    assert len(chunks(store)) > 40
    for chunk in chunks(store):
        name = str(chunk.relative_to(store)).split("/c/")[0].removesuffix("/c")
        content = chunk.read_bytes()
        damage(chunk)
        with pytest.raises(errors.LobsterZarrError) as raised:
            verify(store)
        assert isinstance(raised.value, errors.ChunkDecodeError), name
        assert name in str(raised.value)
        chunk.write_bytes(content)
    verify(store)


def test_damaged_metadata(store: Path) -> None:
    content = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(content[:-5])
    with pytest.raises(errors.FormatError, match=r"zarr\.json"):
        verify(store)


# ---------------------------------------------------------------- sound bytes, wrong values


def rewritten(store: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change an array through zarr: checksums and all are as they should be."""
    array = zarr.open_array(store / name, mode="r+")
    values = np.asarray(array[...])
    change(values)
    array[...] = values


def _add_one(values: np.ndarray) -> None:
    values[7] += 1


def _swap(values: np.ndarray) -> None:
    first = int(np.flatnonzero(values[1:] != values[:-1])[0])
    values[[first, first + 1]] = values[[first + 1, first]]


def _too_high(values: np.ndarray) -> None:
    values[7] = 10**6


def _negative(values: np.ndarray) -> None:
    values[7] = -1


def _backwards(values: np.ndarray) -> None:
    values[3] = values[1] - 1 if values[1] else values[-1]


def _too_many(values: np.ndarray) -> None:
    values[-1] += 1


@pytest.mark.parametrize("path", ["X", "layers/counts"])
@pytest.mark.parametrize("change", [_add_one, _swap])
def test_a_companion_that_differs(store: Path, path: str, change: Callable[[np.ndarray], None]) -> None:
    rewritten(store, f"{path}/csc/data", change)
    with pytest.raises(errors.VerificationError, match=rf"'{path}/csc' differs from '{path}' in \d rows"):
        verify(store)


def test_the_row_of_a_companion_that_differs(store: Path) -> None:
    matrix = zarr.open_group(store / "X/csc", mode="r")
    rewritten(store, "X/csc/data", _add_one)
    row = int(np.asarray(matrix["indices"][:])[7])
    with pytest.raises(errors.VerificationError, match=rf"in 1 rows.*\b{row}\b"):
        verify(store)


@pytest.mark.parametrize("name", ["X/indices", "X/csc/indices", "raw/X/indices", "obsp/distances/indices"])
@pytest.mark.parametrize("change", [_too_high, _negative])
def test_positions_outside_the_matrix(store: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    rewritten(store, name, change)
    with pytest.raises(errors.VerificationError, match=name):
        verify(store)


@pytest.mark.parametrize("name", ["X/indptr", "X/csc/indptr", "raw/X/indptr"])
@pytest.mark.parametrize("change", [_backwards, _too_many])
def test_slices_that_do_not_fit(store: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    rewritten(store, name, change)
    with pytest.raises(errors.LobsterZarrError, match=name.removesuffix("/indptr")):
        verify(store)


def test_a_source_order_that_is_none(store: Path) -> None:
    rewritten(store, f"obs/{SOURCE_ORDER}", lambda values: values.__setitem__(3, values[4]))
    with pytest.raises(errors.VerificationError, match=SOURCE_ORDER):
        verify(store)


def test_codes_of_no_category(store: Path) -> None:
    rewritten(store, "obs/donor/codes", lambda values: values.__setitem__(3, 9))
    with pytest.raises(errors.LobsterZarrError, match="obs/donor"):
        verify(store)


# ---------------------------------------------------------------- another source


def _x(adata: ad.AnnData) -> None:
    adata.X[17, adata.X[17].indices[0]] += 1


def _layer(adata: ad.AnnData) -> None:
    adata.layers["counts"].data[adata.layers["counts"].indptr[17]] += 1


def _dense_layer(adata: ad.AnnData) -> None:
    adata.layers["scaled"][17, 3] = np.nextafter(adata.layers["scaled"][17, 3], 9)


def _embedding(adata: ad.AnnData) -> None:
    adata.obsm["X_umap"][17, 1] = -adata.obsm["X_umap"][17, 1]


def _swapped_in_a_row(adata: ad.AnnData) -> None:
    adata.layers["scaled"][17, [3, 4]] = adata.layers["scaled"][17, [4, 3]]


def _graph(adata: ad.AnnData) -> None:
    adata.obsp["distances"].data[adata.obsp["distances"].indptr[17]] += 1


def _dense_graph(adata: ad.AnnData) -> None:
    adata.obsp["dense"][17, 5] += 1


def _raw(adata: ad.AnnData) -> None:
    adata.raw.X.data[adata.raw.X.indptr[17]] += 1


def _explicit_zero(adata: ad.AnnData) -> None:
    X, absent = adata.X.tocoo(), int(np.flatnonzero(adata.X[17].toarray()[0] == 0)[0])
    entries = np.append(X.data, 0), (np.append(X.row, 17), np.append(X.col, absent))
    adata.X = sparse.csr_matrix(entries, shape=X.shape, dtype=X.dtype)
    assert adata.X.nnz == X.nnz + 1


IN_A_ROW = {
    "X": (_x, "'X'"),
    "X, an explicit zero": (_explicit_zero, "'X'"),
    "a layer": (_layer, "'layers/counts'"),
    "a dense layer, one bit": (_dense_layer, "'layers/scaled'"),
    "a dense layer, two swapped": (_swapped_in_a_row, "'layers/scaled'"),
    "an embedding": (_embedding, "'obsm/X_umap'"),
    "a graph": (_graph, "'obsp/distances'"),
    "a dense graph": (_dense_graph, "'obsp/dense'"),
    "raw": (_raw, "'raw/X'"),
}


@pytest.mark.parametrize("kind", IN_A_ROW)
def test_one_value_is_named_by_its_row(sound: Path, kind: str) -> None:
    change, element = IN_A_ROW[kind]
    other = cells()
    change(other)
    with pytest.raises(errors.VerificationError, match=rf"{element}.* in 1 rows.* row 17 \('cell17'\)"):
        verify(sound, other)


def _set(column: str, value: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obs.iloc[17, adata.obs.columns.get_loc(column)] = value

    return change


def _rename_category(adata: ad.AnnData) -> None:
    adata.obs["donor"] = adata.obs["donor"].cat.rename_categories({"d2": "d3"})


def _reorder_categories(adata: ad.AnnData) -> None:
    adata.obs["donor"] = adata.obs["donor"].cat.reorder_categories(["d2", "d1"])


def _ordered(adata: ad.AnnData) -> None:
    adata.obs["donor"] = adata.obs["donor"].cat.as_ordered()


def _rename_cell(adata: ad.AnnData) -> None:
    adata.obs_names = ["cell0b", *adata.obs_names[1:]]


def _rename_index(adata: ad.AnnData) -> None:
    adata.obs.index.name = "barcode"


def _dtype(adata: ad.AnnData) -> None:
    adata.obs["n_genes"] = adata.obs["n_genes"].astype("int32")


def _column_order(adata: ad.AnnData) -> None:
    adata.obs = adata.obs[sorted(adata.obs)]


def _more_obs(adata: ad.AnnData) -> None:
    adata.obs["more"] = 1


def _var(adata: ad.AnnData) -> None:
    adata.var.loc["gene3", "symbol"] = "other"


def _uns(adata: ad.AnnData) -> None:
    adata.uns["pca"]["variance"][1] = 2


def _uns_type(adata: ad.AnnData) -> None:
    adata.uns["version"] = 1.0


def _less_uns(adata: ad.AnnData) -> None:
    del adata.uns["pca"]["variance"]


def _more_uns(adata: ad.AnnData) -> None:
    adata.uns["pca"]["ratio"] = np.ones(3)


def _varm(adata: ad.AnnData) -> None:
    adata.varm["PCs"][2, 1] += 1


def _x_dtype(adata: ad.AnnData) -> None:
    adata.X = adata.X.astype("float64")


def _less(adata: ad.AnnData) -> None:
    del adata.layers["scaled"]


def _more(adata: ad.AnnData) -> None:
    adata.obsm["X_pca"] = np.zeros((60, 2))


ELSEWHERE = {
    "a value of obs": (_set("n_genes", 1000), "obs/n_genes"),
    "a flag": (_set("doublet", not cells().obs["doublet"].iloc[17]), "obs/doublet"),
    "a text": (_set("note", "other"), "obs/note"),
    "a missing category": (_set("cell_type", np.nan), "obs/cell_type"),
    "the name of a category": (_rename_category, "obs/donor"),
    "the order of categories": (_reorder_categories, "obs/donor"),
    "whether they are ordered": (_ordered, "obs/donor"),
    "the name of a cell": (_rename_cell, "obs/_index"),
    "the name of the index": (_rename_index, "obs"),
    "the type of a column": (_dtype, "obs/n_genes"),
    "the order of columns": (_column_order, "obs"),
    "another column": (_more_obs, "more"),
    "a value of var": (_var, "var/symbol"),
    "a value of uns": (_uns, "uns/pca/variance"),
    "the type of a value of uns": (_uns_type, "uns/version"),
    "an entry less in uns": (_less_uns, "uns/pca/variance"),
    "an entry more in uns": (_more_uns, "uns/pca/ratio"),
    "loadings": (_varm, "varm/PCs"),
    "the type of X": (_x_dtype, "'X'"),
    "a layer less": (_less, "layers/scaled"),
    "an embedding more": (_more, "obsm/X_pca"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_any_other_difference_is_named(sound: Path, kind: str) -> None:
    change, element = ELSEWHERE[kind]
    other = cells()
    change(other)
    with pytest.raises(errors.VerificationError, match=element):
        verify(sound, other)


def test_another_number_of_cells_or_genes(sound: Path) -> None:
    for other in (cells(61), cells(60, 21), cells()[:59].copy()):
        with pytest.raises(errors.VerificationError):
            verify(sound, other)


def test_the_row_of_a_column_is_the_sources(sound: Path) -> None:
    other = cells()
    _set("n_genes", 1000)(other)
    with pytest.raises(errors.VerificationError, match=r"obs/n_genes.*\b17\b"):
        verify(sound, other)


def test_minus_zero_and_nan_are_values() -> None:
    X = np.array([[0.0, 1.0], [np.nan, 2.0]], "float32")
    adata = ad.AnnData(X, obs=pd.DataFrame({"s": [0.0, np.nan]}, index=["a", "b"]), layers={"s": sparse.csr_matrix(X)})
    convert(adata, "memory://verify-zero")
    verify("memory://verify-zero", adata)
    for name in ("X", "obs"):
        other = adata.copy()
        if name == "X":
            other.X[0, 0] = -0.0
        else:
            other.obs["s"] = [-0.0, np.nan]
        with pytest.raises(errors.VerificationError, match=name):
            verify("memory://verify-zero", other)


def test_what_is_not_there(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=r"absent\.h5ad"):
        verify(sound, tmp_path / "absent.h5ad")
    with pytest.raises(errors.NotFoundError, match=r"absent\.zarr"):
        verify(tmp_path / "absent.zarr")
