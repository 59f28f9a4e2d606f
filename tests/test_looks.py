"""Representations: HTML that is well formed, safe and tells the figures; text of 80 columns; the plot of a plan."""

from __future__ import annotations

import pickle
import re
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib as mpl
import mudata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.byterange import Network
from lobster_zarr.doctor import repair
from lobster_zarr.errors import UnsupportedError
from lobster_zarr.explain import MOST_LANES, ArrayPlan, QueryPlan
from lobster_zarr.markup import Markup, bar, name, tag
from lobster_zarr.output import drawn
from lobster_zarr.report import human_bytes
from lobster_zarr.touched import line, shares, strip
from lobster_zarr.typeset import WIDTH, aligned, printable, shortened, wrapped
from tests.tags import parsed

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>&\"'"
ESCAPE = "\x1b[31mred"
LONG = "a_name_that_is_much_too_long_for_a_terminal_of_eighty_columns_" * 2
N_OBS, N_VARS = 400, 60


def hostile_cells(prefix: str = "cell") -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({f"score_of_a_signature_{i}": rng.random(N_OBS) for i in range(60)})
    obs["cell_type"] = pd.Categorical(rng.choice(["B", "NK", "T"], N_OBS))
    for column in (HOSTILE, LONG):
        obs[column] = 1
    counts = sparse.csr_matrix(rng.poisson(0.6, (N_OBS, N_VARS)).astype("float32"))
    obs.index = [f"{prefix}-{i}" for i in range(N_OBS)]
    var = pd.DataFrame(index=[HOSTILE, *(f"gene-{i}" for i in range(1, N_VARS))])
    layers = {f"imputed_by_the_model_with_a_long_name_{i}": counts for i in range(50)} | {HOSTILE: counts}
    obsm = {LONG: rng.random((N_OBS, 3)), "X_umap": rng.random((N_OBS, 2))}
    return ad.AnnData(counts, obs, var, layers=layers, obsm=obsm, uns={HOSTILE: "x"})


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of everything that has a representation, of stores whose names are hostile and long."""
    folder = tmp_path_factory.mktemp("a folder <b>")
    made = hostile_cells()
    ours, file = folder / f"{LONG}.zarr", folder / "a.h5ad"
    report = lz.convert(made, ours, sort_by=["cell_type"], progress=False)
    plain = ad.AnnData(made.X, made.obs[["cell_type", HOSTILE]])
    ad.AnnData(made.X, made.obs[[HOSTILE]].assign(**{ESCAPE: 1})).write_h5ad(file)
    plain.write_zarr(folder / "plain.zarr")
    both = mudata.MuData({"rna": plain, f"{HOSTILE} {LONG}": plain[:9].copy()})
    lz.convert(both, folder / "both.zarr", progress=False)
    empty = ad.AnnData(obs=pd.DataFrame(index=[]), var=pd.DataFrame(index=[]))
    lz.convert(empty, folder / "empty.zarr", progress=False)
    data, joint = lz.open(ours), lz.open(folder / "both.zarr")
    selection = data.query("cell_type == 'NK'", [HOSTILE, "gene-3"])
    joined = joint.query("rna:cell_type == 'NK'")
    diagnosis = lz.doctor(folder / "plain.zarr")
    found = {
        "Dataset": data,
        "an empty Dataset": lz.open(folder / "empty.zarr"),
        "Dataset of a file": lz.open(file),
        "QueryPlan": selection.explain(),
        "QueryPlan of a file": lz.open(file).query([3]).explain(),
        "QueryPlan of nothing": data.query("cell_type == 'none'").explain(),
        "Selection": selection,
        "MultimodalDataset": joint,
        "MultimodalSelection": joined,
        "QueryPlan of a MuData": joined.explain(),
        "Diagnosis": diagnosis,
        "Repair": repair(diagnosis, folder / "repaired.zarr"),
        "ConversionReport": report,
        "VerificationReport": lz.verify(ours, made, progress=False),
        "IndexReport": lz.index(file),
    }
    assert {type(value).__name__ for value in found.values()} == {key.partition(" of ")[0].split()[-1] for key in found}
    return found


KINDS = [
    "Dataset", "an empty Dataset", "Dataset of a file", "QueryPlan", "QueryPlan of a file", "QueryPlan of nothing",
    "Selection", "MultimodalDataset", "MultimodalSelection", "QueryPlan of a MuData", "Diagnosis", "Repair",
    "ConversionReport", "VerificationReport", "IndexReport",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_html_is_well_formed_and_runs_nothing(shown: dict[str, Any], kind: str) -> None:
    html = shown[kind]._repr_html_()
    tags = parsed(html + shown[kind]._repr_html_())
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "b>"}
    assert not {a for a in tags.attributes if a.startswith("on")} | (tags.attributes & {"id", "src", "href"})
    assert not re.search(r"url\(|@import|https?:", html)
    assert "<img" not in html
    assert "".join(parsed(html).fallback).startswith(str(shown[kind])[:60]), (
        "where styles are stripped the text is left"
    )


@pytest.mark.parametrize("kind", ["Dataset", "Dataset of a file", "Selection", "ConversionReport", "MultimodalDataset"])
def test_hostile_names_are_told_as_text(shown: dict[str, Any], kind: str) -> None:
    assert HOSTILE in "".join(parsed(shown[kind]._repr_html_()).text)


def test_pieces_escape_what_is_not_markup() -> None:
    assert tag("i", "<b>", title='"') == '<i title="&quot;">&lt;b&gt;</i>'
    assert tag("i", Markup("<b></b>"), cls="a b") == '<i class="lz-a lz-b"><b></b></i>'
    assert [bar(share).count("width") for share in (0, 0.5, 7)] == [0, 1, 1]
    assert "width:100.0%" in bar(7)
    assert "".join(parsed(name(LONG)).text) == LONG


def test_a_plan_tells_its_figures(shown: dict[str, Any]) -> None:
    plan: QueryPlan = shown["QueryPlan"]
    tags = parsed(plan._repr_html_())
    assert {f"{plan.n_requests:,}", human_bytes(plan.n_bytes), human_bytes(plan.memory_bytes)} <= set(tags.text)
    assert f"${plan.dollars:.6f}" in tags.text
    dearest = max(plan.arrays, key=lambda a: a.n_bytes)
    assert f"{len(dearest.chunk_ids):,} of {dearest.n_chunks:,}" in tags.text
    assert "gene-major, chosen" in tags.text
    n_more = sum(a.n_requests > 0 for a in plan.arrays) - 12
    assert n_more > 0
    assert f"{n_more:,} more arrays" in tags.text


def test_sizes_of_elements_and_columns_are_told(shown: dict[str, Any]) -> None:
    data = shown["Dataset"]
    stored = data.attributes["stored_bytes"]
    text = parsed(data._repr_html_()).text
    assert human_bytes(sum(stored.values())) in text
    assert human_bytes(sum(n for path, n in stored.items() if path.startswith("obs/"))) in text
    assert human_bytes(sum(n for path, n in stored.items() if path.startswith("X/"))) in text
    assert human_bytes(stored["obs/score_of_a_signature_7"]) in text
    assert human_bytes(lz.open(shown["Dataset of a file"].uri).reader.fetcher.store.n_bytes) in "".join(
        parsed(shown["Dataset of a file"]._repr_html_()).text
    )


def test_a_selection_shows_what_is_known_without_a_request(shown: dict[str, Any]) -> None:
    data = lz.open(shown["Dataset"].uri)
    asked = data.query("cell_type == 'NK'", ["gene-3"], layers=[])
    before = data.stats.n_requests
    text = " ".join(parsed(asked._repr_html_()).text)
    assert data.stats.n_requests == before
    for told in ("some of 400 cells × 1 of 60 genes", "cell_type == 'NK'", "gene-3", "X_umap", "has been read yet"):
        assert told in text
    assert "imputed" not in text
    n_obs = asked.count()
    assert f"{n_obs:,} of 400 cells" in " ".join(parsed(asked._repr_html_()).text)
    data.query(None, pl.col("index") == "gene-3")._repr_html_()
    for rows in ([3, 4], slice(5), np.arange(N_OBS) < 7, {"cell_type": ["B"]}, 3):
        assert parsed(data.query(rows)._repr_html_())
    assert "7 of 400 cells" in data.query(np.arange(N_OBS) < 7)._repr_html_()
    assert "Did you mean" in (empty := data.query("cell_type == 'TT'"), empty.count())[0]._repr_html_()


def test_a_selection_from_a_pickle_is_shown_without_opening_its_store(shown: dict[str, Any], tmp_path: Path) -> None:
    lz.convert(ad.AnnData(np.ones((3, 2), "float32")), tmp_path / "a.zarr", progress=False)
    sent = pickle.dumps(lz.open(tmp_path / "a.zarr").query([1]))
    (tmp_path / "a.zarr").rename(tmp_path / "gone.zarr")
    again = pickle.loads(sent)  # noqa: S301 - our own
    assert "not open here" in again._repr_html_()
    assert "a.zarr" in again._repr_html_()


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Selection", "MultimodalSelection", "IndexReport"}))
def test_text_fits_a_terminal(shown: dict[str, Any], kind: str) -> None:
    text = str(shown[kind])
    commands = "lobster-zarr convert", "/", "'/"  # are told whole, to be copied
    wide = [line for line in text.splitlines() if len(line) > WIDTH and not line.strip().startswith(commands)]
    assert [line for line in wide if not line.startswith("$ ")] == [], text
    assert "\x1b" not in text, "a name must not command the terminal"


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_shortened_text_keeps_both_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) <= width or len(text) <= width
    assert len(short) == min(len(text), width)
    kept = max(width // 2 - 1, 0)
    assert short[:kept] == printable(text)[:kept]
    assert short[len(short) - kept :] == printable(text)[len(text) - kept :]
    assert all(c.isprintable() for c in short)


@given(st.lists(st.tuples(*[st.text("abc", max_size=50)] * 4), min_size=1, max_size=5))
def test_columns_line_up_and_fit(rows: list[tuple[str, ...]]) -> None:
    lines = aligned(rows, {1}, (0, 2, 3, 1))
    assert len(lines) == len(rows)
    assert max(map(len, lines)) <= WIDTH


@given(st.text("ab 1", max_size=300))
def test_wrapped_text_is_whole(text: str) -> None:
    lines = wrapped(f"  {text}", 4)
    assert all(len(one) <= WIDTH for one in lines)
    if all(len(word) < 70 for word in text.split()):
        assert " ".join(lines).split() == text.split()


def test_a_number_and_its_unit_stay_together() -> None:
    text = " ".join(["it takes 13.9 MB"] * 12)
    assert not [line for line in wrapped(text, 2) if line.strip().startswith("MB")]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_shows_the_columns_that_fit(width: int) -> None:
    table = pl.DataFrame({f"column_{i}": ["text" * (i + 1), None] for i in range(12)} | {"n": [1, 10_000]})
    told, n_left = drawn(table, width)
    assert all(len(one) <= width for one in told.splitlines())
    assert sum(f"column_{i} " in told for i in range(12)) + ("n " in told.splitlines()[1]) == 13 - n_left
    assert (n_left == 0) == (width > 400)
    assert drawn(pl.DataFrame(), width)[1] == 0
    assert drawn(pl.DataFrame({"a": ["x" * 500]}), width)[1] == 0


# ---------------------------------------------------------------- pictures of chunks

grids = st.tuples(st.integers(1, 300), st.integers(1, 20)) | st.tuples(st.integers(1, 900)) | st.just(())


@given(st.data(), grids, st.integers(1, 60), st.integers(1, 9))
def test_shares_are_those_of_the_grid(
    drawing: st.DataObject, chunks_per_axis: tuple[int, ...], across: int, down: int
) -> None:
    grid = np.zeros((*chunks_per_axis, 1, 1)[:2], bool)
    grid.ravel()[drawing.draw(st.lists(st.integers(0, grid.size - 1), max_size=20))] = True
    told = shares(np.flatnonzero(grid), chunks_per_axis, (across, down))
    assert told.shape == (min(down, grid.shape[1]), min(across, grid.shape[0]))
    for (y, x), share in np.ndenumerate(told):
        rows = [r for r in range(grid.shape[0]) if r * told.shape[1] // grid.shape[0] == x]
        columns = [c for c in range(grid.shape[1]) if c * told.shape[0] // grid.shape[1] == y]
        assert share == pytest.approx(grid[np.ix_(rows, columns)].mean())


def test_strips_and_lines_draw_the_chunks_that_are_touched() -> None:
    chunks = np.asarray([0, 1, 2, 7])
    (path,) = parsed(strip(chunks, (10,))).drawn
    assert re.findall(r"M(\d+) (\d+)h(\d+)", path) == [("0", "0", "3"), ("7", "0", "1")]
    assert line(chunks, (10,)) == "███····█··"
    (path,) = parsed(strip(np.asarray([1, 3]), (3, 2))).drawn  # rows 0 and 1, of the second column of chunks
    assert re.findall(r"M(\d+) (\d+)h(\d+)", path) == [("0", "1", "2")]
    assert "4 of 10 chunks" in strip(chunks, (10,))
    assert parsed(strip(np.empty(0, np.int64), (0,))).drawn == []
    assert len(strip(np.arange(0, 10**6, 2), (10**6,))) < 2_000
    assert line(np.arange(0, 1_000, 2), (1_000,)) == "▒" * 32


def plan_of(*arrays: ArrayPlan) -> QueryPlan:
    return QueryPlan("s3://lab/atlas.zarr", 5, 6, arrays, {}, Network(), 0, 0)


def array(path: str, chunks: list[int], per_axis: tuple[int, ...], n_bytes: int = 1_000) -> ArrayPlan:
    return ArrayPlan(path, 1, n_bytes, True, np.asarray(chunks, np.int64), per_axis, 0)


def rectangles(axes: Any) -> list[list[tuple[float, float]]]:
    """From where to where the ranges of each collection reach across."""
    return [
        [(float(p.vertices[:, 0].min()), float(p.vertices[:, 0].max())) for p in collection.get_paths()]
        for collection in axes.collections
    ]


@pytest.fixture(name="plt")
def agg() -> Any:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt
    plt.close("all")


def test_the_plot_draws_what_the_plan_says(plt: Any) -> None:
    plan = plan_of(array("X/data", [0, 1, 2, 7], (10,), 2_500), array("obsm/X_pca", [1, 3], (3, 2)))
    axes = plan.plot()
    whole = [(0.0, 1.0)]
    expected = [whole, [(0, 0.3), (0.7, 0.8)], whole, [], [(0, 2 / 3)]]
    for told, wanted in zip(rectangles(axes), expected, strict=True):
        np.testing.assert_allclose(told, wanted) if wanted else None
        assert len(told) == len(wanted)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["X/data", "obsm/X_pca"]
    assert [text.get_text() for text in axes.texts] == ["4 of 10 chunks, 2.5 kB", "2 of 6 chunks, 1.0 kB"]
    assert "2 requests, 3.5 kB" in axes.get_title(loc="left")
    _, own = plt.subplots()
    assert plan.plot(own) is own
    assert plan.plot(ax=own).figure is own.figure
    assert plan_of().plot().collections[:] == []


def test_the_plot_draws_the_dearest_of_many_arrays(plt: Any) -> None:
    arrays = [array(f"obs/column-{i}", [0], (1,), i) for i in range(MOST_LANES + 6)]
    axes = plan_of(*arrays).plot()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"obs/column-{i}" for i in range(6, MOST_LANES + 6)]
    assert "6 more arrays" in axes.get_title(loc="left")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "QueryPlan" in kind])
def test_every_plan_can_be_drawn(shown: dict[str, Any], kind: str, plt: Any) -> None:
    plan = shown[kind]
    axes = plan.plot()
    read = [a for a in plan.arrays if a.n_requests or a.n_bytes]
    assert len(axes.texts) == min(len(read), MOST_LANES)
    axes.figure.canvas.draw()


def test_without_matplotlib_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib"):
        plan_of(array("X/data", [0], (1,))).plot()
