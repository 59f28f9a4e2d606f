"""Verification of MuData stores: sound ones pass against every kind of source, every change is found and named."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import strategies as sts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_convert import cells, memory_uri
from test_muconvert import by_mudata, convert, experiment, read_h5mu, saved
from test_verify import cut, flip, rewritten

import lobster_zarr as lz
from lobster_zarr import errors
from tests.thrift import examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import mudata

    from lobster_zarr.report import VerificationReport

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

ORDERS: dict[str, Any] = {
    "as-is": (),
    "global": "batch",
    "of a modality": ["prot:cell_type", "batch"],
    "by itself": {"prot": "donor"},
}


def verify(uri: Any, against: Any = None, **options: Any) -> VerificationReport:
    return lz.verify(uri, against, progress=False, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("muverify") / "a.h5mu")


@pytest.fixture(scope="module", params=ORDERS)
def sound(request: pytest.FixtureRequest, source: Path) -> Path:
    dest = source.parent / f"{request.param}.zarr"
    convert(source, dest, sort_by=ORDERS[request.param])
    return dest


@pytest.fixture
def store(source: Path, tmp_path: Path) -> Path:
    """A sorted store to be damaged."""
    dest = source.parent / "to copy.zarr"
    if not dest.exists():
        convert(source, dest, sort_by="batch")
    return shutil.copytree(dest, tmp_path / "a.zarr")


def test_a_sound_store_passes(source: Path, sound: Path) -> None:
    alone = verify(sound)
    arrays = [p for p in sound.rglob("zarr.json") if json.loads(p.read_text())["node_type"] == "array"]
    assert (alone.n_arrays, alone.compared) == (len(arrays), ())
    report = verify(sound, source)
    assert {"obs", "uns", "obsp/wnn", "obsmap/prot", "varmap/rna", "mod/rna/X", "mod/prot/raw/X"} <= {*report.compared}
    for name in ("rna", "prot"):
        assert "X" in verify(sound / "mod" / name, f"{source}/mod/{name}").compared
    assert alone.n_bytes > sum(verify(sound / "mod" / name).n_bytes for name in ("rna", "prot"))


def test_the_source_may_be_of_any_kind(source: Path, sound: Path, tmp_path: Path) -> None:
    verify(sound, read_h5mu(source))
    verify(sound, by_mudata(read_h5mu(source), tmp_path / "v2.zarr", 2))
    lz.export(sound, tmp_path / "b.h5mu", progress=False)
    verify(sound, tmp_path / "b.h5mu")


@pytest.mark.parametrize("axis", [0, 1])
def test_against_a_dict(tmp_path: Path, axis: Any) -> None:
    parts = {"rna": cells(30, 9, seed=1), "prot": cells(20, 7, seed=2)}
    parts["rna"].write_h5ad(tmp_path / "rna.h5ad", convert_strings_to_categoricals=False)
    mixed = {"rna": tmp_path / "rna.h5ad", "prot": parts["prot"]}
    convert(mixed, tmp_path / "a.zarr", axis=axis, sort_by="rna:cell_type")
    verify(tmp_path / "a.zarr", mixed)
    verify(tmp_path / "a.zarr", parts)
    with pytest.raises(errors.VerificationError, match="modalities"):
        verify(tmp_path / "a.zarr", dict(reversed(parts.items())))


@given(data=sts.mudatas(), draw=st.data())
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow])
def test_any_mudata_in_any_order(data: mudata.MuData, draw: st.DataObject) -> None:
    own = [f"{name}:{column}" for name, part in data.mod.items() for column in part.obs]
    columns = [*data.obs.columns, *own]
    uri = memory_uri()
    convert(data, uri, sort_by=draw.draw(st.lists(st.sampled_from(columns), max_size=2)) if columns else [])
    verify(uri, data)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", [flip, cut], ids=["flipped", "cut"])
@pytest.mark.parametrize(
    "name", ["obsmap/rna", "obs/batch/codes", "obsm/X_joint", "mod/prot/X/data", "mod/rna/raw/X/indices"]
)
def test_damage_is_found_and_named(store: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(
        next(p for p in sorted((store / name / "c").rglob("*")) if p.is_file())
        if (store / name / "c").is_dir()
        else store / name / "c"
    )
    with pytest.raises(errors.ChunkDecodeError, match=name):
        verify(store)


def _out_of_range(values: np.ndarray) -> None:
    values[3] = 1000


def _twice(values: np.ndarray) -> None:
    first, second = np.flatnonzero(values)[:2]
    values[first] = values[second]


def _swapped(values: np.ndarray) -> None:
    first, second = np.flatnonzero(values)[:2]
    values[[first, second]] = values[[second, first]]


def test_maps_that_do_not_fit(store: Path, source: Path) -> None:
    before = (store / "zarr.json").read_bytes()
    chunk = next(p for p in (store / "obsmap/prot/c").rglob("*") if p.is_file())
    content = chunk.read_bytes()
    for change, message in ((_out_of_range, "outside"), (_twice, "more than once")):
        rewritten(store, "obsmap/prot", change)
        _without_notes(store)
        with pytest.raises(errors.VerificationError, match=f"obsmap/prot.*{message}"):
            verify(store)
        chunk.write_bytes(content)
        (store / "zarr.json").write_bytes(before)
    rewritten(store, "obsmap/prot", _swapped)
    with pytest.raises(errors.VerificationError, match="copy of 'obsmap/prot"):
        verify(store)
    _without_notes(store)
    verify(store)
    with pytest.raises(errors.VerificationError, match=r"obsmap/prot.*source"):
        verify(store, source)


def _without_notes(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    for node in root["consolidated_metadata"]["metadata"].values():
        if node["node_type"] == "array":
            node["attributes"].pop("lobster_zarr", None)
    (store / "zarr.json").write_text(json.dumps(root))


def test_a_map_that_is_said_to_be_aligned(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    nodes = root["consolidated_metadata"]["metadata"]
    nodes["obsmap/prot"]["attributes"].setdefault("lobster_zarr", {})["aligned"] = True
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(errors.VerificationError, match="obsmap/prot"):
        verify(store)


def test_modalities_that_are_not_those_of_the_store(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["mod"]["attributes"]["mod-order"] = ["rna"]
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(errors.FormatError, match="mod-order"):
        verify(store)


def _change(path: str) -> Any:
    def change(file: h5py.File) -> None:
        file[path][5] = file[path][5] + 1

    return change


CHANGES: dict[str, Any] = {
    r"mod/prot: 'layers/scaled'": _change("mod/prot/layers/scaled"),
    r"mod/rna: 'X'": _change("mod/rna/X/data"),
    r"'obsm/X_joint'": _change("obsm/X_joint"),
    r"'obs/batch": lambda file: file["obs/batch/codes"].write_direct(1 - file["obs/batch/codes"][:]),
    r"axis": lambda file: file.attrs.update(axis=1),
    r"modalities": lambda file: file["mod"].attrs.update({"mod-order": ["prot", "rna"]}),
    r"uns/note": lambda file: file["uns/note"].write_direct(np.array("other", dtype=object)),
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_difference_is_named(store: Path, source: Path, tmp_path: Path, named: str) -> None:
    changed = shutil.copy(source, tmp_path / "b.h5mu")
    with h5py.File(changed, "r+") as file:
        CHANGES[named](file)
    with pytest.raises(errors.VerificationError, match=named):
        verify(store, changed)


def test_a_store_of_another_kind(store: Path, source: Path, tmp_path: Path) -> None:
    convert(cells(), tmp_path / "b.zarr")
    for uri, against in ((store, cells()), (tmp_path / "b.zarr", source)):
        with pytest.raises(errors.VerificationError, match="is a"):
            verify(uri, against)


def test_what_mudata_wrote_is_verified_too(tmp_path: Path) -> None:
    for zarr_format in (2, 3):
        assert verify(by_mudata(experiment(), tmp_path / f"{zarr_format}.zarr", zarr_format)).n_arrays > 60
