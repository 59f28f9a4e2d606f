"""The doctor: each finding on a store that has it and on one that has not, predictions against what is really read.

The oracle of a prediction is the query itself: its requests and bytes, on the store as it is and on the
store that the proposed conversion really wrote.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import strategies
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import cli, symptoms
from lobster_zarr.diagnosis import HEALTHY, WIDTH
from lobster_zarr.doctor import repair
from lobster_zarr.errors import AccessDeniedError, ConflictError, FormatError, InvalidArgumentError, NotFoundError
from lobster_zarr.loop import run as run_coroutine
from lobster_zarr.prediction import Question, after_conversion, converted, model_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lobster_zarr.diagnosis import Diagnosis
    from tests.s3 import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

N_OBS, N_VARS, N_TYPES = 4_000, 500, 20
X_ONLY: dict[str, Any] = {name: [] for name in ("layers", "obsm", "obsp", "varm", "varp", "obs_columns", "var_columns")}
X_ONLY |= {"uns": False, "raw": False}
NOTES = "no-notes"


@functools.cache
def counts() -> sparse.csr_matrix:
    """Counts whose genes differ as those of cells do."""
    rng = np.random.default_rng(0)
    return sparse.csr_matrix(rng.poisson(rng.gamma(0.3, 1.2, N_VARS), (N_OBS, N_VARS)).astype(np.float32))


def cells(x: Any = None) -> ad.AnnData:
    """Cells of 20 types, equally many of each, in no order."""
    rng = np.random.default_rng(1)
    types = rng.permutation(np.repeat([f"type {i}" for i in range(N_TYPES)], N_OBS // N_TYPES))
    return ad.AnnData(
        counts() if x is None else x,
        obs=pd.DataFrame(
            {
                "donor": pd.Categorical(rng.choice(["d1", "d2"], N_OBS)),
                "cell_type": pd.Categorical(types),
                "n_counts": rng.integers(0, 2_000, N_OBS),
            },
            index=["".join(letters) for letters in rng.choice(list("ACGT"), (N_OBS, 16))],
        ),
        var=pd.DataFrame(index=[f"gene-{i}" for i in range(N_VARS)]),
        obsm={"X_umap": rng.normal(size=(N_OBS, 2)).astype(np.float32)},
        uns={"title": "atlas"},
    )


def write(adata: ad.AnnData, path: Path, zarr_format: int = 3, **options: Any) -> Path:
    if zarr_format == 3:
        adata.write_zarr(path, **options)
        return path
    group = zarr.open_group(path, mode="w", zarr_format=2)
    ad.io.write_elem(group, "/", adata)
    zarr.consolidate_metadata(group.store)
    return path


def rewrite(path: Path, arrays: tuple[str, ...] = ("X/data", "X/indices"), **options: Any) -> None:
    """Write arrays of a store anew, laid out in another way."""
    group = zarr.open_group(path, mode="a", zarr_format=3, use_consolidated=False)
    for name in arrays:
        values, attributes = group[name][...], dict(group[name].attrs)
        values = values.astype(options.get("dtype", values.dtype))
        layout = {k: v for k, v in options.items() if k != "dtype"}
        del group[name]
        made = group.create_array(name, shape=values.shape, dtype=values.dtype, attributes=attributes, **layout)
        made[...] = values
    zarr.consolidate_metadata(path, zarr_format=3)


def unconsolidate(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    del document["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return cells()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, adata: ad.AnnData) -> Path:
    """A store as anndata writes it."""
    return write(adata, tmp_path_factory.mktemp("doctor") / "plain.zarr")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, adata: ad.AnnData) -> Path:
    """A store as this package writes it, sorted."""
    path = tmp_path_factory.mktemp("doctor") / "ours.zarr"
    lz.convert(adata, path, sort_by="cell_type", progress=False)
    return path


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy.zarr"))


def kinds(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Elements by kind of finding."""
    found: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.kind, []).append(finding.element)
    return found


# ---------------------------------------------------------------- findings


def test_a_converted_and_sorted_store_is_healthy(ours: Path) -> None:
    found = lz.doctor(ours)
    assert found.healthy
    assert not found.findings
    assert (found.options, found.command) == (None, "")
    assert str(found).splitlines()[0].endswith(f"{ours.name} (4,000 × 500): {HEALTHY}")
    assert {p.after for p in found.predictions} == {None}


def test_what_anndata_writes_by_default(plain: Path) -> None:
    found = lz.doctor(plain)
    expected = {"large-chunks": ["X"], "not-by-gene": ["X"], "weak-codec": ["X"], "unsorted": ["obs"], NOTES: ["store"]}
    assert kinds(found) == expected
    assert found.options == {"gene_major": "auto", "sort_by": ["cell_type"]}
    unsorted = next(f for f in found.findings if f.kind == "unsorted")
    assert "cell_type (20), donor (2)" in unsorted.problem


@pytest.mark.parametrize(
    ("kind", "layout", "limits"),
    [
        ("one-chunk", {"chunks": (10**9,)}, {}),
        ("one-chunk", {"chunks": (10**9,), "shards": (10**9,)}, {}),
        ("large-chunks", {"chunks": (80_000,)}, {}),
        ("tiny-chunks", {"chunks": (2_000,)}, {}),
        ("unsharded", {"chunks": (20_000,)}, {"MANY_OBJECTS": 8}),
        ("giant-shard", {"chunks": (500,), "shards": (10**9,)}, {"LARGE_INDEX_BYTES": 10_000}),
        ("uncompressed", {"chunks": (20_000,), "compressors": None}, {}),
        ("weak-codec", {"chunks": (20_000,), "compressors": zarr.codecs.GzipCodec()}, {}),
        ("wide-dtype", {"chunks": (20_000,), "dtype": np.int64}, {}),
        (None, {"chunks": (20_000,), "compressors": zarr.codecs.BloscCodec(cname="zstd")}, {}),
    ],
)
def test_the_layout_of_a_sparse_matrix(
    copy: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, layout: dict[str, Any], limits: dict[str, int]
) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(symptoms, name, limit)
    n = int(zarr.open_group(copy, mode="r")["X/data"].shape[0])
    whole = -(-n // 500) * 500
    cut = {k: (min(v[0], whole),) if isinstance(v, tuple) else v for k, v in layout.items()}
    rewrite(copy, **cut)
    found = kinds(lz.doctor(copy))
    of_layout = set(found) - {"not-by-gene", "unsorted", NOTES} - ({"weak-codec"} if kind != "weak-codec" else set())
    assert of_layout == ({kind} if kind else set())
    if kind:
        assert all(element.startswith("X") for element in found[kind])


def test_unsharded_is_told_only_of_many_objects(copy: Path) -> None:
    rewrite(copy, chunks=(20_000,))
    assert "unsharded" not in kinds(lz.doctor(copy))


def test_metadata_that_is_not_consolidated(copy: Path, plain: Path) -> None:
    assert "unconsolidated" not in kinds(lz.doctor(plain))
    unconsolidate(copy)
    found = lz.doctor(copy)
    assert "unconsolidated" in kinds(found)
    opened = found.predictions[0]
    n_nodes = len(list(copy.rglob("zarr.json")))
    assert opened.query == "open"
    assert opened.now is not None
    assert opened.now.n_requests == n_nodes + 2, "the root, a listing, and each node"
    assert opened.after is not None
    assert opened.after.n_requests == 1


def test_a_matrix_by_gene_only(tmp_path: Path) -> None:
    found = lz.doctor(write(cells(counts().tocsc()), tmp_path / "csc.zarr"))
    assert "by-gene-only" in kinds(found)
    assert "not-by-gene" not in kinds(found)


@pytest.mark.parametrize("chunks", [(500, N_VARS), (256, 128)])
def test_a_dense_matrix(tmp_path: Path, chunks: tuple[int, int]) -> None:
    path = write(cells(counts().toarray()), tmp_path / "dense.zarr", chunks=chunks)
    found = lz.doctor(path)
    assert ("not-by-gene" in kinds(found)) == (chunks[1] == N_VARS)
    assert "large-chunks" not in kinds(found)
    rewrite(path, ("X",), chunks=(N_OBS, N_VARS))
    assert "one-chunk" in kinds(lz.doctor(path))


def test_wide_values(tmp_path: Path) -> None:
    found = lz.doctor(write(cells(counts().astype(np.float64)), tmp_path / "wide.zarr"))
    assert kinds(found)["wide-dtype"] == ["X/data"]


def test_columns_of_text(tmp_path: Path) -> None:
    made = cells()
    made.obs["tissue"] = pd.array(np.where(np.arange(N_OBS) % 2, "lung", "liver"), dtype="str")
    made.obs["barcode"] = pd.array([f"b{i}" for i in range(N_OBS)], dtype="str")
    path = write(made, tmp_path / "text.zarr", convert_strings_to_categoricals=False)
    found = lz.doctor(path)
    assert kinds(found)["text-column"] == ["obs/tissue"], "barcodes are no categories"
    told = next(f for f in found.findings if f.kind == "text-column")
    assert "2 distinct values in all 4,000 rows" in told.problem
    assert not told.curable
    rewrite(path, ("obs/tissue/values",), chunks=(1_000,))
    told = next(f for f in lz.doctor(path).findings if f.kind == "text-column")
    assert "2 distinct values in a sample: the first 1,000 rows" in told.problem
    # Of a store that lacks nothing else, no conversion is proposed: it would not help.
    lz.convert(made, tmp_path / "ours.zarr", sort_by="cell_type", progress=False)
    left = lz.doctor(tmp_path / "ours.zarr")
    assert (set(kinds(left)), left.options) == ({"text-column"}, None)
    with pytest.raises(InvalidArgumentError, match="would repair nothing"):
        repair(left, tmp_path / "again.zarr")


def test_a_store_of_ours_that_lacks_something(adata: ad.AnnData, tmp_path: Path) -> None:
    lz.convert(adata, tmp_path / "a.zarr", gene_major=False, codec="compatible", progress=False)
    found = lz.doctor(tmp_path / "a.zarr")
    assert kinds(found) == {"not-by-gene": ["X"], "unsorted": ["obs"]}
    assert found.command.endswith("a-converted.zarr --sort-by cell_type --codec compatible")


def test_small_matrices_are_left_alone(tmp_path: Path) -> None:
    small = cells()[:100].copy()
    assert set(kinds(lz.doctor(write(small, tmp_path / "small.zarr")))) == {NOTES}


@pytest.mark.parametrize("name", ["a.h5ad.gz", "a.h5ad", "a.zip"])
def test_a_file_that_is_compressed_as_a_whole(tmp_path: Path, s3: S3Server, name: str) -> None:
    path, payload = tmp_path / name, b"\x89HDF\r\n\x1a\n" + bytes(1_000)
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.h5ad", payload)
    else:
        path.write_bytes(gzip.compress(payload))
    bucket = s3.bucket("doctor-packed")
    s3.client().upload_file(str(path), "doctor-packed", name)
    for uri, options in ((str(path), None), (f"{bucket}/{name}", s3.storage_options)):
        found = lz.doctor(uri, options)
        assert kinds(found) == {"packed": [name]}
        assert found.predictions[0].now is not None
        assert found.predictions[0].now.n_bytes == path.stat().st_size
        unpack = "unzip" if name == "a.zip" else "gunzip"
        assert unpack in found.findings[0].remedy
        assert found.arguments[:2] == ["lobster-zarr", "convert"]
        assert found.arguments[3].endswith("a.zarr")
        with pytest.raises(InvalidArgumentError, match="unpack it first"):
            repair(found, tmp_path / "b.zarr")


def test_a_zipped_store_is_a_store(plain: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "plain.zarr"), "zip", plain)
    zipped, folder = lz.doctor(tmp_path / "plain.zarr.zip"), lz.doctor(plain)
    assert kinds(zipped) == kinds(folder)


# ---------------------------------------------------------------- predictions


def asked(uri: Any, options: dict[str, Any] | None = None) -> dict[str, tuple[int, int]]:
    """Run the typical queries: what each really reads, on a store that was just opened."""
    genes = [f"gene-{i}" for i in np.random.default_rng(5).choice(N_VARS, 50, replace=False)]
    predicate = {"cell_type": "type 7"}
    queries: dict[str, Callable[[lz.Dataset], Any]] = {
        "count of a category": lambda d: d.query(predicate).count(),
        "obs of a category": lambda d: d.query(predicate).to_pandas(),
        "a category, all genes": lambda d: d.query(predicate, **X_ONLY).to_memory(),
        "one gene, all cells": lambda d: d.query(None, ["gene-7"], **X_ONLY).to_memory(),
        "50 genes of a category": lambda d: d.query(predicate, genes, **X_ONLY).to_memory(),
        "everything": lambda d: d.to_memory(),
    }
    found = {}
    for name, query in queries.items():
        data = lz.open(uri, options)
        query(data)
        found[name] = data.stats.n_requests, data.stats.n_bytes
    return found


def assert_near(told: int, real: int, factor: float, slack: int, what: str) -> None:
    assert real / factor - slack <= told <= real * factor + slack, f"{what}: predicted {told:,}, really {real:,}"


@pytest.mark.parametrize("layout", ["v3", "v2", "tiny", "one chunk", "csc", "dense", "ours"])
def test_what_is_predicted_now_is_what_is_read(
    layout: str, plain: Path, copy: Path, ours: Path, adata: ad.AnnData, tmp_path: Path
) -> None:
    path = {"v3": plain, "ours": ours}.get(layout, copy)
    if layout == "v2":
        path = write(adata, tmp_path / "v2.zarr", 2)
    elif layout in {"tiny", "one chunk"}:
        rewrite(copy, chunks=(2_000,) if layout == "tiny" else (10**6,))
    elif layout in {"csc", "dense"}:
        x = counts().tocsc() if layout == "csc" else counts().toarray()
        path = write(cells(x), tmp_path / "other.zarr")
    told = {p.query: p.now for p in lz.doctor(path).predictions}
    # Where chunks are small, it matters that cells and genes differ; a gene may lie in two chunks.
    factor, slack = (1.25, 2) if layout in {"ours", "tiny", "csc", "dense"} else (1.05, 0)
    for name, (n_requests, n_bytes) in asked(path).items():
        assert told[name] is not None
        assert_near(told[name].n_requests, n_requests, 1.1, slack, f"{name}: requests")
        assert_near(told[name].n_bytes, n_bytes, factor, 1_000, f"{name}: bytes")


@pytest.mark.parametrize("layout", ["v3", "v2", "uncompressed", "dense"])
def test_what_is_predicted_after_is_what_the_converted_store_takes(
    layout: str, plain: Path, copy: Path, ours: Path, adata: ad.AnnData, tmp_path: Path
) -> None:
    path = plain if layout == "v3" else copy
    if layout == "v2":
        path = write(adata, tmp_path / "v2.zarr", 2)
    elif layout == "uncompressed":
        rewrite(copy, chunks=(20_000,), compressors=None)
    elif layout == "dense":
        path = write(cells(counts().toarray()), tmp_path / "dense.zarr", chunks=(500, N_VARS))
    before = lz.doctor(path)
    done = repair(before, tmp_path / "after.zarr")
    report, after = done.report, done.after
    assert after.healthy
    assert (report.sort_by, report.gene_major) == (("cell_type",), () if layout == "dense" else ("X",))
    told = {p.query: p.after for p in before.predictions}
    for name, (n_requests, n_bytes) in asked(tmp_path / "after.zarr").items():
        assert told[name] is not None
        assert_near(told[name].n_requests, n_requests, 1.5, 2, f"{name}: requests")
        # Of dense counts the doctor knows no ratio: it tells what they take now, which is more.
        assert_near(told[name].n_bytes, n_bytes, 3 if layout == "dense" else 1.5, 3_000, f"{name}: bytes")
    opened = before.predictions[0].after
    assert opened is not None
    assert_near(opened.n_bytes, (tmp_path / "after.zarr" / "zarr.json").stat().st_size, 1.5, 0, "open")


@pytest.mark.parametrize("compression", ["gzip", None])
def test_an_h5ad_as_it_is(adata: ad.AnnData, tmp_path: Path, compression: Any) -> None:
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path, compression=compression)
    found = lz.doctor(path)
    expected = {"not-by-gene", "unsorted", NOTES, "weak-codec" if compression else "uncompressed"}
    assert set(kinds(found)) == expected
    assert found.arguments[3] == str(tmp_path / "a.zarr")
    told, opening = {p.query: p for p in found.predictions}, found.predictions[0].now
    assert opening is not None
    done = repair(found, tmp_path / "a.zarr")
    assert done.after.healthy
    assert done.report.gene_major == ("X",)
    for name, (n_requests, n_bytes) in asked(path).items():
        now = told[name].now
        assert now is not None
        # What lies beside the metadata came with it: of so small a file, much.
        assert n_bytes / 1.5 <= now.n_bytes <= 1.5 * n_bytes + opening.n_bytes, f"{name}: {now.n_bytes:,} {n_bytes:,}"
        assert n_requests / 2.5 <= now.n_requests <= 2.5 * n_requests + 40, f"{name}: {now.n_requests} {n_requests}"
    for name, (_, n_bytes) in asked(tmp_path / "a.zarr").items():
        then = told[name].after
        assert then is not None
        assert_near(then.n_bytes, n_bytes, 1.5, 5_000, f"{name}: bytes")
    requests, n_bytes = run_coroutine(after_conversion(lz.open(path).reader, 200, None))
    then = told["a category, all genes"].after
    assert then is not None
    assert_near(n_bytes, then.n_bytes, 1.2, 5_000, "after_conversion")
    assert_near(requests, then.n_requests, 1.5, 2, "after_conversion")


def test_conversion_saves_what_matters(plain: Path) -> None:
    for prediction in lz.doctor(plain).predictions:
        assert prediction.now is not None
        assert prediction.after is not None
        if prediction.query in {"a category, all genes", "one gene, all cells", "50 genes of a category"}:
            assert prediction.after.n_bytes < prediction.now.n_bytes / 10
            assert prediction.after.seconds < prediction.now.seconds


def test_seconds_are_those_of_the_network(plain: Path) -> None:
    slow, quick = (
        lz.doctor(plain, network=lz.Network(latency_seconds=s, bandwidth_bytes=b)) for s, b in ((1, 1e5), (1e-3, 1e9))
    )
    for a, b in zip(slow.predictions, quick.predictions, strict=True):
        assert a.now is not None
        assert b.now is not None
        assert a.now.seconds > 10 * b.now.seconds


@pytest.mark.parametrize(("n_rows", "n_genes"), [(200, None), (None, 1), (200, 50), (None, None)])
def test_after_conversion_by_itself(plain: Path, ours: Path, n_rows: int | None, n_genes: int | None) -> None:
    reader = lz.open(plain).reader
    reader.fetcher.stored_bytes = {}  # as of a store that notes nothing: assumed from the codecs
    told = run_coroutine(after_conversion(reader, n_rows, n_genes))
    assert reader.fetcher.stats.n_requests == 0
    data = lz.open(ours)
    rows = None if n_rows is None else {"cell_type": "type 7"}
    genes = None if n_genes is None else [f"gene-{7 * i}" for i in range(n_genes)]
    selection = data.query(rows, genes, order="storage" if n_rows is None else "source", **X_ONLY)
    selection.to_memory()
    assert_near(told[0], selection.stats.n_requests, 1.5, 2, "requests")
    assert_near(told[1], selection.stats.n_bytes, 1.6, 3_000, "bytes")


def test_nothing_of_a_matrix_is_read(ours: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(ours, tmp_path / "bare.zarr"))
    whole = lz.doctor(bare).to_dict()
    for chunk in bare.rglob("c/*"):
        if chunk.is_file():
            chunk.unlink()
    assert lz.doctor(bare).to_dict() == whole


def test_more_objects_than_one_listing_names_are_assumed(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = lz.doctor(plain)
    assert any("listed" in a for a in listed.assumptions)
    monkeypatch.setattr("lobster_zarr.inventory.LOCAL_KEYS", 10)
    assumed = lz.doctor(plain)
    assert any("assumed" in a for a in assumed.assumptions)
    assert set(kinds(assumed)) == set(kinds(listed))
    for a, b in zip(assumed.predictions, listed.predictions, strict=True):
        assert a.now is not None
        assert b.now is not None
        assert_near(a.now.n_bytes, b.now.n_bytes, 3, 30_000, a.query)


_numbers = itertools.count()


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.data(), made=strategies.anndatas())
def test_whatever_is_stored_is_predicted(drawn: st.DataObject, made: ad.AnnData) -> None:
    where = f"memory://doctor-{next(_numbers)}"
    lz.convert(made, where, sort_by=drawn.draw(strategies.sort_keys(made.obs)), progress=False)
    told = lz.doctor(where).predictions[-1]
    data = lz.open(where)
    data.to_memory()
    assert told.query == "everything"
    assert told.now is not None
    assert (told.now.n_requests, told.now.n_bytes) == (data.stats.n_requests, data.stats.n_bytes)
    model = run_coroutine(model_of(data.tree, {}, {}, lz.Network(), strict=True))
    for sort_by in (None, "", *made.obs.columns):
        after = run_coroutine(converted(model, sort_by))
        assert run_coroutine(after.cost(Question(columns=True, whole=True))).n_requests >= 0


# ---------------------------------------------------------------- elsewhere


def modalities() -> mudata.MuData:
    rna, other = cells(), cells()[:, :5].copy()
    del other.obs["cell_type"]
    other.X = other.X.toarray()
    other.var_names = [f"protein-{i}" for i in range(5)]
    return mudata.MuData({"rna": rna, "prot": other})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["m.zarr", "m.h5mu"])
def test_a_mudata_by_modality(tmp_path: Path, name: str) -> None:
    mdata = modalities()
    if name == "m.zarr":
        mdata.write_zarr(tmp_path / name)
    else:
        mdata.write_h5mu(tmp_path / name, compression="gzip")
    found = lz.doctor(tmp_path / name)
    assert kinds(found)["not-by-gene"] == ["mod/rna/X"]
    assert kinds(found)["unsorted"] == ["mod/rna/obs"]
    assert ("unconsolidated" in kinds(found)) == (name == "m.zarr")
    assert found.options is not None
    assert found.options["sort_by"] == ["rna:cell_type"]
    assert {p.modality for p in found.predictions} == {"", "rna", "prot"}
    assert all(len(line) <= WIDTH for line in str(found).splitlines() if str(tmp_path) not in line)
    after = repair(found, tmp_path / "after.zarr").after
    assert after.healthy
    told = {(p.modality, p.query): p.after for p in found.predictions}
    for p in after.predictions:
        assert p.now is not None
        expected = told[p.modality, p.query]
        assert expected is not None
        # Dense counts in a file are assumed to compress to the half; these do to less.
        factor = 2 if (p.modality, name) == ("prot", "m.h5mu") else 1.5
        assert_near(expected.n_bytes, p.now.n_bytes, factor, 3_000, f"{p.modality}: {p.query}")


def test_on_s3(s3: S3Server, plain: Path) -> None:
    bucket = s3.bucket("doctor")
    for file in plain.rglob("*"):
        if file.is_file():
            s3.client().upload_file(str(file), "doctor", f"plain.zarr/{file.relative_to(plain)}")
    found, local = lz.doctor(f"{bucket}/plain.zarr", s3.storage_options), lz.doctor(plain)
    assert kinds(found) == kinds(local)
    assert found.predictions == local.predictions
    assert found.command.endswith(f"--sort-by cell_type --endpoint-url {s3.endpoint}")
    reader, blind = s3.user("reader", "s3:GetObject"), s3.user("blind")
    with s3.enforced_access():
        told = lz.doctor(f"{bucket}/plain.zarr", {**s3.storage_options, **reader})
        assert any("assumed" in a for a in told.assumptions), "who may not list is told all the same"
        for name in ("plain.zarr", "plain.h5ad"):
            with pytest.raises(AccessDeniedError):
                lz.doctor(f"{bucket}/{name}", {**s3.storage_options, **blind})


def test_what_is_no_store_is_refused_as_opening_it(tmp_path: Path) -> None:
    for name in ("absent.zarr", "absent.h5ad.gz", "no/such/folder/a.h5ad.gz"):
        with pytest.raises(NotFoundError):
            lz.doctor(tmp_path / name)
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3).create_array("a", shape=(3,), dtype="i4")
    with pytest.raises(FormatError):
        lz.doctor(tmp_path / "other.zarr")


# ---------------------------------------------------------------- looks


def test_the_report_fits_a_terminal(plain: Path) -> None:
    found = lz.doctor(plain)
    lines = str(found).splitlines()
    assert lines[0].endswith("(4,000 × 500): 5 findings")
    assert all(len(line) <= WIDTH for line in lines[1:] if str(plain.parent) not in line)
    for word in ("Cost:", "Do:", "now", "after", "one gene, all cells", "Remedy:", "--sort-by cell_type"):
        assert word in str(found)
    html = found._repr_html_()
    assert html.count("<details") == len(found.findings) + 3  # the queries, the remedy and the assumptions
    assert "--sort-by cell_type" in html


def test_a_name_cannot_break_the_report_or_the_command(adata: ad.AnnData, tmp_path: Path) -> None:
    made = adata.copy()
    made.obs = made.obs.rename(columns={"cell_type": "cell_type <b> 'x'"})
    found = lz.doctor(write(made, tmp_path / "a b.zarr"))
    assert "<b>" not in found._repr_html_()
    assert "'cell_type <b> '\"'\"'x'\"'\"''" in found.command
    assert found.arguments[2:5] == [str(tmp_path / "a b.zarr"), str(tmp_path / "a b-converted.zarr"), "--sort-by"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_the_command(run: Callable[..., tuple[int, str, str]], plain: Path, ours: Path) -> None:
    assert run(plain) == (0, f"{lz.doctor(plain)}\n", "")
    status, out, err = run(plain, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(lz.doctor(plain).to_dict()))
    told = json.loads(out)
    assert not told["healthy"]
    assert told["command"].startswith("lobster-zarr convert ")
    assert HEALTHY in run(ours)[1]


def test_the_command_repairs(run: Callable[..., tuple[int, str, str]], plain: Path, ours: Path, tmp_path: Path) -> None:
    dest = tmp_path / "fixed.zarr"
    status, out, err = run(plain, "--fix", dest)
    assert (status, err) == (0, "")
    assert f"$ lobster-zarr convert {plain} {dest} --sort-by cell_type\n" in out
    assert f"{dest.name} (4,000 × 500): {HEALTHY}" in out
    assert (lz.open(dest).to_memory().X != lz.open(plain).to_memory().X).nnz == 0
    status, out, err = run(plain, "--fix", dest)
    assert (status, out) == (2, "")
    assert str(dest) in err
    with pytest.raises(ConflictError):
        repair(lz.doctor(plain), dest)
    told = json.loads(run(plain, "--fix", tmp_path / "again.zarr", "--json")[1])
    assert (told["before"]["healthy"], told["after"]["healthy"]) == (False, True)
    assert HEALTHY in run(ours, "--fix", tmp_path / "unneeded.zarr")[1]
    assert not (tmp_path / "unneeded.zarr").exists()
    assert run(tmp_path / "absent.zarr")[0] == 2
