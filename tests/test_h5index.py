"""Files that are opened in place: which requests that takes, kept indexes, and files that change meanwhile."""

from __future__ import annotations

import json
import pickle
from uuid import uuid4

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import errors, h5store
from lobster_zarr.sidecar import SUFFIX
from tests import oracle

N_OBS, N_VARS = 6_000, 200  # more than is read around the metadata
T_CELLS = "cell_type == 'T cell'"


@pytest.fixture(scope="module")
def adata(tmp_path_factory):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["T cell", "B cell"], N_OBS)),
            "n_counts": rng.integers(0, 900, N_OBS),
            "is_good": rng.random(N_OBS) < 0.5,
        },
        index=[f"cell-{i}" for i in range(N_OBS)],
    )
    made = ad.AnnData(
        sparse.random(N_OBS, N_VARS, 0.3, "csr", dtype=np.float32, rng=rng),
        obs=obs,
        var=pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)]),
        obsm={"X_pca": rng.normal(size=(N_OBS, 5))},
        uns={"colors": np.asarray(["#000000", "#ffffff"]), "n": 3},
    )
    path = tmp_path_factory.mktemp("made") / "x.h5ad"
    made.write_h5ad(path)
    return ad.read_h5ad(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bucket(s3):
    name = f"raw-{uuid4().hex[:12]}"
    s3.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def on_s3(s3, bucket, adata, tmp_path):
    """The file on S3: its URI, the options, and how to replace it."""
    uri = f"s3://{bucket}/a/x.h5ad"

    def put(data: ad.AnnData) -> None:
        data.write_h5ad(tmp_path / "x.h5ad", compression="gzip")
        s3.client().upload_file(str(tmp_path / "x.h5ad"), bucket, "a/x.h5ad")

    put(adata)
    return uri, s3.storage_options, put


@pytest.fixture
def requests(monkeypatch):
    """What is asked of obstore: keys and options."""
    import obstore

    seen, original = [], obstore.get_async

    async def get_async(store, path, *, options=None):
        seen.append((path, options or {}))
        return await original(store, path, options=options)

    monkeypatch.setattr(obstore, "get_async", get_async)
    return seen


def expected(adata):
    return adata[adata.obs["cell_type"] == "T cell"].copy()


def test_a_file_on_s3_is_queried_in_place(on_s3, adata, requests):
    uri, options, _ = on_s3
    ds = lz.open(uri, options)
    assert len(requests) <= 12
    assert (ds.n_obs, ds.n_vars, ds.obsm) == (N_OBS, N_VARS, ["X_pca"])
    oracle.assert_equal(ds.query(T_CELLS).to_memory(), expected(adata))
    after_first = [options for path, options in requests if path == "x.h5ad"][1:]
    assert after_first
    assert all("if_match" in options for options in after_first)


def test_a_plan_of_numbers_is_what_is_fetched(on_s3):
    uri, options, _ = on_s3
    selection = lz.open(uri, options).query(slice(1_000, 2_000), obs_columns=["n_counts"])
    plan, before = selection.explain(), dict(selection.stats.by_array)
    assert "X, once converted and sorted so that these cells lie together: about" in str(plan)
    selection.to_memory()
    assert {array.path for array in plan.arrays if not array.exact} == {
        "obs/_index/values",
        "var/_index/values",
        "uns/colors",
    }
    read = {
        path: (n - before.get(path, (0, 0))[0], b - before.get(path, (0, 0))[1])
        for path, (n, b) in selection.stats.by_array.items()
    }
    for array in plan.arrays:
        if array.exact:
            assert read.get(array.path, (0, 0)) == (array.n_requests, array.n_bytes)
    assert any(array.n_requests for array in plan.arrays if array.path == "X/data")


@pytest.mark.parametrize("local", [False, True])
def test_with_a_kept_index_a_file_opens_in_one_request(on_s3, adata, requests, local):
    uri, options, _ = on_s3
    report = lz.index(uri, options, local=local)
    assert report.n_bytes > 0
    assert report.index in str(report)
    requests.clear()
    ds = lz.open(uri, options)
    assert [path for path, _ in requests] == ([] if local else [f"x.h5ad{SUFFIX}"])
    requests.clear()
    assert ds.query(T_CELLS).count() == len(expected(adata))
    n_chunks = -(-N_OBS // ds.tree.array("obs/cell_type/codes").grid.chunk[0])
    assert len(requests) <= n_chunks  # the categories came with the index
    oracle.assert_equal(ds.to_memory(), lz.open(uri, options).to_memory())
    oracle.assert_equal(ds.query(T_CELLS).to_memory(), expected(adata))


@pytest.mark.parametrize("local", [False, True])
def test_a_file_that_was_replaced_is_not_read_by_its_old_index(on_s3, adata, local):
    uri, options, put = on_s3
    lz.index(uri, options, local=local)
    other = adata[::-1].copy()
    put(other)
    stale = lz.open(uri, options)
    with pytest.raises(errors.ConflictError, match=r"x\.h5ad was replaced.*lobster-zarr index"):
        stale.query(T_CELLS).count()
    oracle.assert_equal(lz.open(uri, options).query(T_CELLS).to_memory(), expected(other))  # reads the file itself
    h5store._replaced.clear()  # as another process
    lz.index(uri, options, local=local)
    oracle.assert_equal(lz.open(uri, options).query(T_CELLS).to_memory(), expected(other))


def test_a_file_that_is_replaced_while_it_is_open_is_an_error(on_s3, adata, tmp_path):
    uri, options, put = on_s3
    remote = lz.open(uri, options)
    put(adata[: N_OBS // 2].copy())
    with pytest.raises(errors.ConflictError, match="replaced"):
        remote.query(T_CELLS).to_memory()
    path = tmp_path / "x.h5ad"
    local = lz.open(path)
    adata[::2].copy().write_h5ad(path)
    with pytest.raises(errors.ConflictError, match=str(path)):
        local.to_memory()


def test_a_file_that_is_gone_is_an_error(on_s3, s3, bucket):
    uri, options, _ = on_s3
    ds = lz.open(uri, options)
    s3.client().delete_object(Bucket=bucket, Key="a/x.h5ad")
    with pytest.raises(errors.ConflictError, match="replaced"):
        ds.to_memory()
    with pytest.raises(errors.NotFoundError, match=r"a/x\.h5ad"):
        lz.open(uri, options)
    with pytest.raises(errors.BucketNotFoundError, match="no-such-bucket"):
        lz.open("s3://no-such-bucket-here/x.h5ad", options)


@pytest.mark.parametrize(
    "damage", ["not json", "{}", '{"lobster_zarr_index": 99}', "cut", "bytes", "extents", "chunks"]
)
def test_a_damaged_index_is_named(tmp_path, adata, damage):
    path = tmp_path / "x.h5ad"
    adata.write_h5ad(path)
    lz.index(path)
    kept = path.with_name(path.name + SUFFIX)
    entries = json.loads(kept.read_text())
    if damage == "cut":
        kept.write_text(kept.read_text()[:-100])
    elif damage in entries:
        kept.write_text(json.dumps(entries | {damage: "AAAA" if damage == "bytes" else 3}))
    else:
        kept.write_text(damage)
    with pytest.raises(errors.FormatError, match=r"x\.h5ad\.lobster_zarr\.json.*lobster-zarr index"):
        lz.open(path)


def test_an_index_that_points_beyond_the_file_is_an_error(tmp_path, adata):
    path = tmp_path / "x.h5ad"
    adata.write_h5ad(path, compression="gzip")
    lz.index(path)
    ds = lz.open(path)
    ds.tree.array("X/data").index.places[0, 0] = path.stat().st_size - 4
    with pytest.raises(errors.FormatError, match=r"ends at byte .* truncated or damaged"):
        ds.query(slice(0, 3)).to_memory()


def test_what_has_no_index_is_refused(tmp_path, adata):
    lz.convert(adata[:9].copy(), tmp_path / "x.zarr", progress=False)
    with pytest.raises(errors.InvalidArgumentError, match="no HDF5 file"):
        lz.index(tmp_path / "x.zarr")
    with pytest.raises(errors.NotFoundError, match=r"no\.h5ad"):
        lz.index(tmp_path / "no.h5ad")
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        for table in ("obs", "var"):
            file[table] = np.asarray([("a", 1)], [("index", "S1"), ("n", "i4")])
    with pytest.raises(errors.UnsupportedError, match=r"before anndata 0\.7"):
        lz.index(tmp_path / "old.h5ad")


def test_a_local_index_lies_in_the_cache_of_the_user(tmp_path, adata):
    path = tmp_path / "x.h5ad"
    adata.write_h5ad(path)
    report = lz.index(path, local=True)
    assert report.index.startswith(str(tmp_path / "cache"))
    assert not path.with_name(path.name + SUFFIX).exists()


def test_an_open_file_travels_to_other_processes(on_s3, adata):
    uri, options, _ = on_s3
    ds = lz.open(uri, options)
    sent = pickle.dumps(ds)
    assert len(sent) < 5_000
    assert options["secret"].encode() not in sent
    oracle.assert_equal(pickle.loads(sent).query(T_CELLS).to_memory(), expected(adata))  # noqa: S301


def test_a_file_that_was_replaced_is_not_opened_for_a_pickle(on_s3, adata):
    uri, options, put = on_s3
    sent = pickle.dumps(lz.open(uri, options))
    put(adata[::-1].copy())
    with pytest.raises(errors.ConflictError, match="overwritten"):
        pickle.loads(sent).query(T_CELLS).count()  # noqa: S301
