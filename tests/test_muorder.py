"""The order of rows in a MuData store: sorted by global columns, by those of a modality, or each by its own.

The oracle is mudata's own MuData of the source's modalities, sorted in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pytest
import strategies as sts
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_equal, assert_mudata_equal, reordered, stored, stored_mudata
from test_convert import memory_uri
from test_muconvert import convert, experiment, quiet, read_zarr

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.layout import SOURCE_ORDER
from lobster_zarr.obsmap import follow, misfit, to_source, to_stored
from lobster_zarr.reopen import open_reader
from lobster_zarr.store import open_store
from tests.thrift import examples

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")


def rows_by(data: mudata.MuData, *keys: np.ndarray) -> np.ndarray:
    return np.lexsort(keys[::-1])


def codes_of(column: pd.Series) -> np.ndarray:
    codes = np.asarray(column.cat.codes, int)
    return np.where(codes < 0, 100, codes)


def assert_sorted(path: Path, data: mudata.MuData, order: np.ndarray) -> None:
    """The store is `data` with its global rows in `order`, and every modality in the same."""
    found, root = read_zarr(path), zarr.open_group(path, mode="r")
    parts, obsmap = {}, {}
    for name, part in data.mod.items():
        at = data.obsmap[name][order].astype(int)
        parts[name] = reordered(part, at[at > 0] - 1)
        own = root[f"mod/{name}/obs"]
        unchanged = np.array_equal(at[at > 0] - 1, np.arange(part.n_obs))
        assert (SOURCE_ORDER in own) == (not unchanged)
        if not unchanged:
            assert own[SOURCE_ORDER][:].tolist() == (at[at > 0] - 1).tolist()
        obsmap[name] = np.where(at > 0, np.cumsum(at > 0), 0).astype(np.uint32)
        assert_equal(root[f"obsmap/{name}"][:], obsmap[name])
    assert root[f"obs/{SOURCE_ORDER}"][:].tolist() == order.tolist()
    with quiet():
        expected = mudata.MuData(
            parts,
            obs=data.obs.iloc[order],
            var=data.var,
            obsm={name: np.asarray(value)[order] for name, value in data.obsm.items()},
            obsp={name: value[order][:, order] for name, value in data.obsp.items()},
            uns=data.uns,
            obsmap=obsmap,
            varmap=dict(data.varmap),
            axis=data.axis,
        )
    assert_mudata_equal(found, stored_mudata(expected), sparse_layout="any")


@pytest.mark.parametrize("axis", [0, 1])
def test_sorted_by_a_global_column(tmp_path: Path, axis: int) -> None:
    data = experiment(axis=axis)
    report = convert(data, tmp_path / "a.zarr", sort_by="batch")
    assert report.sort_by == ("batch",)
    assert_sorted(tmp_path / "a.zarr", data, rows_by(data, codes_of(data.obs["batch"])))


def test_sorted_by_a_column_of_a_modality_cells_that_it_lacks_last(tmp_path: Path) -> None:
    data = experiment()
    convert(data, tmp_path / "a.zarr", sort_by=["prot:cell_type", "batch"])
    at = data.obsmap["prot"].astype(int)
    keys = np.where(at > 0, codes_of(data["prot"].obs["cell_type"])[at - 1], 1000)
    assert_sorted(tmp_path / "a.zarr", data, rows_by(data, keys, codes_of(data.obs["batch"])))
    assert lz.open(tmp_path / "a.zarr/mod/prot").sort_by == ("cell_type",)
    assert lz.open(tmp_path / "a.zarr/mod/rna").sort_by == ()


def test_modalities_sorted_by_themselves(tmp_path: Path) -> None:
    data = experiment()
    report = convert(data, tmp_path / "a.zarr", sort_by={"rna": "cell_type"})
    assert report.sort_by == ("rna:cell_type",)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert SOURCE_ORDER not in root["obs"]
    assert SOURCE_ORDER not in root["mod/prot/obs"]
    order = rows_by(data, codes_of(data["rna"].obs["cell_type"]))
    assert root[f"mod/rna/obs/{SOURCE_ORDER}"][:].tolist() == order.tolist()
    found = read_zarr(tmp_path / "a.zarr")
    assert_equal(found["rna"], stored(reordered(data["rna"], order)), sparse_layout="any")
    for name in data.mod:
        at = root[f"obsmap/{name}"][:].astype(int)
        assert (at > 0).tolist() == (data.obsmap[name] > 0).tolist()
        assert list(found[name].obs_names[at[at > 0] - 1]) == list(data.obs_names[at > 0])


@given(data=sts.mudatas(), draw=st.data())
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
def test_any_mudata_sorted_comes_back(data: mudata.MuData, draw: st.DataObject) -> None:
    own = [f"{name}:{column}" for name, part in data.mod.items() for column in part.obs]
    columns = [*data.obs.columns, *own]
    keys = draw.draw(st.lists(st.sampled_from(columns), max_size=2, unique=True)) if columns else []
    uri = memory_uri()
    convert(data, uri, sort_by=keys)
    reader = open_reader(open_store(uri), uri, lz.Network())
    for name, part in data.mod.items():
        found = lz.Dataset(reader.below(f"mod/{name}")).to_memory()
        assert_equal(found, stored(part), sparse_layout="any")


def test_a_column_that_is_not_there_is_offered_where_it_is(tmp_path: Path) -> None:
    for keys, offered in (("cell_type", "'rna:cell_type'"), ("batsh", "'batch'"), ("rna:cel_type", "'cell_type'")):
        with pytest.raises(errors.NotFoundError, match=offered):
            convert(experiment(), tmp_path / "a.zarr", sort_by=keys)
    with pytest.raises(errors.NotFoundError, match="'rna'"):
        convert(experiment(), tmp_path / "a.zarr", sort_by={"rns": ["cell_type"]})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the arithmetic


@given(draw=st.data(), n_obs=st.integers(0, 8), n_rows=st.integers(0, 8), ordered=st.booleans())
def test_an_obsmap_follows_its_rows(draw: st.DataObject, n_obs: int, n_rows: int, ordered: bool) -> None:
    rows = draw.draw(st.permutations(range(1, n_rows + 1)))[:n_obs]
    obsmap = np.array(draw.draw(st.permutations([*rows, *[0] * (n_obs - len(rows))])), np.uint32)
    order = np.array(draw.draw(st.permutations(range(n_obs))), int)
    assert misfit(obsmap, n_obs, n_rows) is None
    part_order = follow(obsmap, order, n_rows) if ordered else None
    moved = np.arange(n_rows) if part_order is None else part_order
    assert sorted(moved) == list(range(n_rows))
    found = to_stored(obsmap, order, part_order)
    assert found.dtype == obsmap.dtype
    for at, position in enumerate(found.astype(int)):
        source = int(obsmap[order[at]])
        assert (position == 0) == (source == 0)
        assert position == 0 or moved[position - 1] == source - 1
    if ordered:
        assert found[found > 0].tolist() == list(range(1, len(rows) + 1))
    assert to_source(found, order, part_order).tolist() == obsmap.tolist()


@pytest.mark.parametrize(
    ("values", "said"),
    [([1, 2], "expected 3"), ([1.0, 2.0, 0.0], "float64"), ([1, 5, 0], "outside"), ([-1, 1, 0], "outside"),
     ([2, 2, 0], "row 2 ")],
)  # fmt: skip
def test_an_obsmap_that_does_not_fit(values: list[Any], said: str) -> None:
    assert said in str(misfit(np.array(values), 3, 4))
