"""Conversion as a whole: real S3, what it costs in requests, memory, scratch disk.

What each kind of element looks like when it comes back is `test_roundtrip.py`'s.
"""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from oracle import assert_equal, sliced, stored
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.scratch import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

ROOT = Path(__file__).parents[1]
_numbers = itertools.count()


def cells(n_obs: int = 60, n_vars: int = 20, *, seed: int = 0) -> ad.AnnData:
    """A small experiment with every element, a cell type that is sometimes missing, rows unsorted."""
    rng = np.random.default_rng(seed)

    def counts(shape: tuple[int, int], dtype: str = "float32") -> sparse.csr_matrix:
        return sparse.csr_matrix(rng.poisson(0.4, shape).astype(dtype))

    codes = rng.integers(-1, 3, n_obs)
    codes[:4] = [-1, 0, 1, 2]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(codes, ["B cell", "NK", "T cell"]),
            "donor": pd.Categorical.from_codes(rng.integers(0, 2, n_obs), ["d1", "d2"]),
            "n_counts": rng.gamma(2, 300, n_obs).astype("float32"),
            "n_genes": rng.integers(0, 100, n_obs),
            "doublet": rng.random(n_obs) < 0.1,
            "note": pd.array([f"note {i % 7}" for i in range(n_obs)], dtype="str"),
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(
        {"symbol": [f"G{i}" for i in range(n_vars)], "variable": rng.random(n_vars) < 0.5},
        index=[f"gene{i}" for i in range(n_vars)],
    )
    adata = ad.AnnData(
        counts((n_obs, n_vars)),
        obs=obs,
        var=var,
        layers={"counts": counts((n_obs, n_vars), "int32"), "scaled": rng.normal(size=(n_obs, n_vars))},
        obsm={"X_umap": rng.normal(size=(n_obs, 2)).astype("float32")},
        varm={"PCs": rng.normal(size=(n_vars, 3))},
        obsp={"distances": counts((n_obs, n_obs), "float64"), "dense": rng.normal(size=(n_obs, n_obs))},
        uns={"version": 1, "cell_type_colors": ["#00f", "#0f0", "#f00"], "pca": {"variance": np.ones(3)}},
    )
    adata.raw = ad.AnnData(counts((n_obs, n_vars + 5)), obs=obs[[]])
    return adata


def convert(source: Any, dest: Any, **options: Any) -> lz.ConversionReport:
    return lz.convert(source, dest, progress=False, **options)


def by_anndata(adata: ad.AnnData, path: Path, zarr_format: int = 3) -> None:
    """Write a store as anndata does; version 2 is deprecated by it, not by those who have such stores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ad.settings.override(zarr_write_format=zarr_format):
            adata.write_zarr(path, convert_strings_to_categoricals=False)


def memory_uri() -> str:
    return f"memory://convert-{next(_numbers)}"


def read(uri: Any, **options: Any) -> ad.AnnData:
    return lz.open(uri, **options).to_memory()


# ---------------------------------------------------------------- from where to where


def test_a_local_h5ad_to_s3(s3: S3Server, tmp_path: Path) -> None:
    adata, options = cells(), s3.storage_options
    uri = f"{s3.bucket('convert-up')}/atlas.zarr"
    adata.write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    report = convert(tmp_path / "a.h5ad", uri, sort_by="cell_type", storage_options=options)

    listed = s3.client().list_objects_v2(Bucket="convert-up", Prefix="atlas.zarr/")["Contents"]
    assert (report.n_objects, report.stored_bytes) == (len(listed), sum(o["Size"] for o in listed))
    assert (report.n_obs, report.n_vars, report.replaced) == (60, 20, "")
    assert report.source_bytes == (tmp_path / "a.h5ad").stat().st_size
    selected = lz.open(uri, options).query("cell_type == 'T cell'", ["gene3", "gene1"])
    expected = sliced(stored(adata), adata.obs["cell_type"] == "T cell", ["gene3", "gene1"])
    assert_equal(selected.to_memory(), expected)


def test_an_h5ad_on_s3_to_s3(s3: S3Server, tmp_path: Path) -> None:
    adata, options = cells(), s3.storage_options
    bucket = s3.bucket("convert-across")
    adata.write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    s3.client().upload_file(str(tmp_path / "a.h5ad"), "convert-across", "raw/a.h5ad")
    report = convert(f"{bucket}/raw/a.h5ad", f"{bucket}/a.zarr", storage_options=options)

    assert report.source == f"{bucket}/raw/a.h5ad"
    assert report.source_bytes == (tmp_path / "a.h5ad").stat().st_size
    assert_equal(read(f"{bucket}/a.zarr", storage_options=options), stored(adata))


def test_an_anndata_zarr_on_s3_to_memory(s3: S3Server, tmp_path: Path) -> None:
    adata, options = cells(), s3.storage_options
    bucket = s3.bucket("convert-down")
    by_anndata(adata, tmp_path / "a.zarr")
    for file in filter(Path.is_file, (tmp_path / "a.zarr").rglob("*")):
        s3.client().upload_file(str(file), "convert-down", str(file.relative_to(tmp_path)))
    uri = memory_uri()
    convert(f"{bucket}/a.zarr", uri, sort_by=["donor", "cell_type"], storage_options=options)
    assert_equal(read(uri), stored(adata))
    rows = np.flatnonzero(adata.obs["n_counts"] > 600)
    assert_equal(lz.open(uri).query("n_counts > 600").to_memory(), sliced(stored(adata), rows, slice(None)))


# ---------------------------------------------------------------- requests


@contextmanager
def counted(endpoint: str, answers: list[int] | None = None) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Put a proxy before a server; give its endpoint and the log of (method, path) that passed.

    The bytes of each answer are added to `answers`.
    """
    log: list[tuple[str, str]] = []
    upstream = endpoint.removeprefix("http://")

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            log.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(upstream, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            if answers is not None:
                answers.append(len(content))
            connection.close()
            self.send_response_only(answer.status)
            own = {"connection", "transfer-encoding", "content-length"}
            for name, value in answer.getheaders():
                if name.lower() not in own:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("n_categorical", "most_puts"), [(3, 60), (5, 66)])
def test_what_a_small_experiment_costs_in_requests(s3: S3Server, n_categorical: int, most_puts: int) -> None:
    """Two objects an array and one a group: a categorical column is five, another two."""
    rng = np.random.default_rng(0)
    n_obs, n_vars = 3000, 200
    categories = {f"group{i}": pd.Categorical(rng.choice(["a", "b", "c"], n_obs)) for i in range(n_categorical)}
    numbers = {f"score{i}": rng.random(n_obs) for i in range(10 - n_categorical)}
    adata = ad.AnnData(
        sparse.random(n_obs, n_vars, 0.1, "csr", "float32", rng),
        obs=pd.DataFrame(categories | numbers, index=[f"cell{i}" for i in range(n_obs)]),
        var=pd.DataFrame(
            {"highly_variable": rng.random(n_vars) < 0.5, "mean": rng.random(n_vars)},
            index=[f"gene{i}" for i in range(n_vars)],
        ),
        obsm={"X_pca": rng.random((n_obs, 10))},
    )
    uri = f"{s3.bucket(f'convert-cost-{n_categorical}')}/atlas.zarr"
    with counted(s3.endpoint) as (endpoint, log):
        options = s3.storage_options | {"endpoint_url": endpoint}
        report = convert(adata, uri, gene_major=True, storage_options=options)
        methods = [method for method, _ in log]
        assert report.gene_major == ("X",)
        assert methods.count("PUT") == report.n_objects + 1 <= most_puts  # and the marker
        assert methods.count("GET") == 1, "one listing, of the destination"
        assert len(methods) == methods.count("PUT") + 2, "and the marker's deletion"
        assert log[-2][1].endswith("/atlas.zarr/zarr.json"), "the root is the commit point"

        log.clear()
        dataset = lz.open(uri, options)
        assert (dataset.n_obs, dataset.n_vars, len(dataset.obs.columns)) == (n_obs, n_vars, 10)
        dataset.info()
        assert log == [("GET", f"/convert-cost-{n_categorical}/atlas.zarr/zarr.json")]
        assert_equal(dataset.to_memory(), stored(adata))


# ---------------------------------------------------------------- memory and scratch disk


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120, env=environment)


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    source, stores = tmp_path / "a.h5ad", [tmp_path / "1.zarr", tmp_path / "2.zarr"]
    cells().write_h5ad(source, convert_strings_to_categoricals=False)
    for seed, store in enumerate(stores):
        code = "import sys, lobster_zarr as lz; lz.convert(sys.argv[1], sys.argv[2], progress=False)"
        assert python(code, source, store, PYTHONHASHSEED=str(seed)).returncode == 0
    first, second = ({p.relative_to(s): p.read_bytes() for p in s.rglob("*") if p.is_file()} for s in stores)
    assert first == second


def big_csc_h5ad(path: Path, n_values: int) -> None:
    """Write an H5AD whose X, by columns, holds this many values (8 bytes each)."""
    n_vars = 1000
    n_obs = n_values // n_vars * 4
    one_in_four = np.arange(0, n_obs, 4, dtype=np.int32)
    ad.AnnData(
        sparse.csc_matrix((n_obs, n_vars), dtype="float32"),
        obs=pd.DataFrame({"half": pd.Categorical(["b", "a"] * (n_obs // 2))}, index=np.arange(n_obs).astype(str)),
    ).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        X = file["X"]
        del X["data"], X["indices"], X["indptr"]
        X["indptr"] = np.arange(n_vars + 1, dtype=np.int64) * len(one_in_four)
        X["indices"] = np.concatenate([one_in_four + gene % 4 for gene in range(n_vars)])
        X["data"] = np.tile(np.arange(len(one_in_four), dtype="float32") % 5, n_vars)


WITHIN = """
import re, sys
import lobster_zarr as lz

report = lz.convert(sys.argv[1], sys.argv[2], sort_by="half", memory_limit=sys.argv[3], progress=False)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(int(peak[1]) * 1024, report.peak_memory_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_under_the_limit_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    n_values, limit = 16_000_000, 500_000_000
    big_csc_h5ad(tmp_path / "big.h5ad", n_values)
    assert (tmp_path / "big.h5ad").stat().st_size > n_values * 8
    done = python(WITHIN, tmp_path / "big.h5ad", tmp_path / "big.zarr", limit)
    peak, reported = map(int, done.stdout.split())
    assert peak < limit, f"{peak / 1e6:.0f} MB"
    assert 0.9 < reported / peak < 1.1
    got = lz.open(tmp_path / "big.zarr").query([0, 63_999, 5], var=[1, 0]).to_memory()
    assert got.X.toarray().tolist() == [[0, 0], [0, 0], [1, 0]]
    assert list(got.obs["half"]) == ["b", "a", "a"]


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make blocks of 64 values; return the number of buckets of each regrouping that took place."""
    module = import_module("lobster_zarr.conversion")
    monkeypatch.setattr(module, "MAX_BLOCK_VALUES", 64)
    monkeypatch.setattr(module, "MIN_BLOCK_VALUES", 64)
    n_buckets: list[int] = []
    take = Exchange.take

    def noted(exchange: Exchange) -> Iterator[Any]:
        n_buckets.append(len(exchange.bounds) - 1)
        return take(exchange)

    monkeypatch.setattr(Exchange, "take", noted)
    return n_buckets


@pytest.mark.parametrize("dense_x", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("column_major", [False, True], ids=["csr", "csc"])
@pytest.mark.parametrize("sort_by", [[], ["cell_type", "donor"]], ids=["as-is", "sorted"])
def test_out_of_core_equals_in_memory(
    tmp_path: Path, tiny_blocks: list[int], scratch: Path, dense_x: bool, column_major: bool, sort_by: list[str]
) -> None:
    adata = cells(130, 40, seed=1)
    if dense_x:
        adata.X = adata.X.toarray()
    if column_major:
        adata.layers["counts"] = adata.layers["counts"].tocsc()
        adata.obsp["distances"] = adata.obsp["distances"].tocsc()
        adata.X = adata.X if dense_x else adata.X.tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", gene_major=True, sort_by=sort_by)

    assert not list(scratch.iterdir())
    companions = 1 + (not dense_x)
    regrouped = 4 - dense_x if sort_by else (3 - dense_x) * column_major  # X, counts, distances, raw/X
    assert len(tiny_blocks) == companions + regrouped
    assert min(tiny_blocks) > 10
    assert_equal(read(tmp_path / "a.zarr"), stored(adata), sparse_layout="any")
    lz.verify(tmp_path / "a.zarr", against=adata, progress=False)
    dataset = lz.open(tmp_path / "a.zarr")
    for gene in range(0, 40, 13):  # by the companion
        got = dataset.query(None, [gene], layers=["counts"]).to_memory()
        for name in ("X", "counts"):
            wanted, found = (a.X if name == "X" else a.layers[name] for a in (adata[:, [gene]], got))
            assert_equal(sparse.csr_matrix(found), sparse.csr_matrix(wanted))


DAMAGES = {
    "a gene that is not there": ("indices", lambda v: np.where(np.arange(len(v)) == 20, 10**6, v)),
    "a negative position": ("indices", lambda v: np.where(np.arange(len(v)) == 20, -1, v)),
    "too few positions": ("indices", lambda v: v[:10]),
    "too few values": ("data", lambda v: v[:-1]),
    "slices that go back": ("indptr", lambda v: np.concatenate([v[:3], v[1:2], v[4:]])),
    "a slice too few": ("indptr", lambda v: v[:-1]),
}


@pytest.mark.parametrize("column_major", [False, True], ids=["csr", "csc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_matrix_is_refused_and_leaves_nothing(
    tmp_path: Path, tiny_blocks: list[int], scratch: Path, damage: str, column_major: bool
) -> None:
    adata = cells()
    if column_major:
        adata.layers["counts"] = adata.layers["counts"].tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    part, change = DAMAGES[damage]
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values = file[f"layers/counts/{part}"][:]
        del file[f"layers/counts/{part}"]
        file[f"layers/counts/{part}"] = change(values).astype(values.dtype)
    with pytest.raises(errors.FormatError, match=r"layers/counts.*a\.h5ad"):
        convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", gene_major=True, sort_by="donor")
    assert not list(scratch.iterdir())
    assert not [p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()]


FULL = """
import resource, sys
import lobster_zarr as lz
from lobster_zarr.errors import StorageError

source, dest, limit, *sort_by = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))  # as a full disk: a part is written, then none
try:
    lz.convert(source, dest, sort_by=sort_by, gene_major=False, memory_limit="1MB", progress=False)
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["sparse scratch", "dense scratch", "destination"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    X: Any = rng.random((400, 400)).astype("float32")  # 640 kB that nothing can make smaller
    if kind != "dense scratch":
        X = sparse.csr_matrix(X)
    obs = pd.DataFrame({"half": pd.Categorical(["b", "a"] * 200)}, index=[f"cell{i}" for i in range(400)])
    ad.AnnData(X, obs=obs).write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    scratch, dest = tmp_path / "scratch", tmp_path / "a.zarr"
    scratch.mkdir()
    sort_by = [] if kind == "destination" else ["half"]
    done = python(FULL, tmp_path / "a.h5ad", dest, 200_000, *sort_by, TMPDIR=str(scratch))

    assert "Traceback" not in done.stderr, done.stderr
    assert str(dest if kind == "destination" else scratch) in done.stdout
    assert "too large" in done.stdout
    assert not list(scratch.iterdir())
    assert not [p for p in dest.rglob("*") if p.is_file()]
