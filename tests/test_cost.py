"""What a store costs: by hand, by S3's listing, and by what a query really reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gates import gate
from scipy import sparse
from test_cli import run

import lobster_zarr as lz
from lobster_zarr import errors
from lobster_zarr.cost import Holding, Use, estimate
from lobster_zarr.prices import Prices

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

__all__ = ["run"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

MB, GB = 10**6, 10**9


@pytest.fixture(scope="module")
def store(s3: S3Server) -> str:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"cell_type": pd.Categorical(["T", "B"] * 1000)}, index=[f"c{i}" for i in range(2000)])
    X = sparse.random(2000, 300, 0.3, format="csr", dtype="float32", rng=rng)
    adata = ad.AnnData(X, obs=obs)
    uri = s3.bucket("cost") + "/a.zarr"
    lz.convert(adata, uri, sort_by=["cell_type"], storage_options=s3.storage_options, progress=False)
    return uri


def test_the_guides_worked_example() -> None:
    """100 data sets of 200 MB, analysed monthly: $5.86, by the guide's own numbers.

    They are off in four ways: it counts 300 downloads, where each data set analysed once a month is 100; the
    uploads are paid once, not monthly; at its own 10 MB parts they are 22 requests each, not one; and AWS gives the
    first 100 GB of an account's egress a month for nothing, which is all of it.
    """
    held = [Holding.of("STANDARD", [200 * MB] * 100)]
    told = estimate("s3://lab", held, [("download", Use(300, n_requests=1, n_bytes=200 * MB))], Prices.of())
    assert told.storage_dollars == pytest.approx(0.46)
    assert told.written_dollars == pytest.approx(0.0005)
    assert told.uses[0].request_dollars == pytest.approx(0.00012)
    assert told.uses[0].egress_dollars == pytest.approx(5.40)
    assert told.dollars + told.written_dollars == pytest.approx(5.86, abs=0.005)
    once = estimate("s3://lab", held, [("download", Use(100, n_requests=1, n_bytes=200 * MB))], Prices.of())
    assert once.use_dollars == pytest.approx(1.80, abs=0.001)


def test_a_query_is_priced_by_what_it_reads(s3: S3Server, store: str) -> None:
    told = lz.cost(store, {"cell_type == 'T'": 1000}, s3.storage_options)
    with gate(s3.endpoint) as line:
        read = lz.open(store, {**s3.storage_options, "endpoint_url": line.endpoint})
        read.query("cell_type == 'T'").to_memory()
    (use,) = told.uses
    root = s3.client().head_object(Bucket="cost", Key="a.zarr/zarr.json")["ContentLength"]
    assert (use.n_requests, use.n_bytes) == (len(line.asked), root + read.stats.n_bytes)
    assert use.dollars == pytest.approx(1000 * (use.n_requests * 0.0004 / 1000 + use.n_bytes * 0.09 / GB))
    listed = s3.client().list_objects_v2(Bucket="cost", Prefix="a.zarr/")["Contents"]
    (held,) = told.storage
    assert (held.n_objects, held.n_bytes) == (len(listed), sum(entry["Size"] for entry in listed))
    assert held.dollars == pytest.approx(held.n_bytes / GB * 0.023)
    assert told.download is not None
    assert (told.download.n_bytes, told.download.n_requests) == (held.n_bytes, held.n_objects)
    assert told.download.per_month == 1000
    one = lz.cost(store, [Use(10, "cell_type == 'T'", ["0"])], s3.storage_options, whole_bytes=5 * GB, egress=False)
    assert one.uses[0].n_bytes < use.n_bytes
    assert one.uses[0].egress_dollars == 0
    assert (one.download.n_requests, one.download.n_bytes) == (1, 5 * GB)


def test_classes_bill_small_objects_and_retrievals(s3: S3Server) -> None:
    client, large = s3.client(), bytes(200 << 10)
    s3.bucket("cost-classes")
    for name, storage_class, body in (
        ("a/big", "STANDARD_IA", large),
        ("a/small", "STANDARD_IA", b"x"),
        ("a/plain", "STANDARD", large),
        ("a/auto", "INTELLIGENT_TIERING", large),
        ("a/tiny", "INTELLIGENT_TIERING", b"x"),
        ("a/cold", "DEEP_ARCHIVE", large),
        ("ab/other", "STANDARD", large),
    ):
        client.put_object(Bucket="cost-classes", Key=name, Body=body, StorageClass=storage_class)
    told = lz.cost("s3://cost-classes/a", [Use(2, n_requests=10, n_bytes=1000)], s3.storage_options)
    by_class = {held.storage_class: held for held in told.storage}
    assert sum(held.n_objects for held in told.storage) == 6
    kept = by_class["STANDARD_IA"]
    assert (kept.n_bytes, kept.billed_bytes) == ((200 << 10) + 1, (200 + 128) << 10)
    assert kept.dollars == pytest.approx(((200 + 128) << 10) / GB * 0.0125)
    assert by_class["INTELLIGENT_TIERING"].dollars == pytest.approx(((200 << 10) + 1) / GB * 0.023 + 0.0025 / 1000)
    archived = ((200 + 32) << 10) / GB * 0.00099 + (8 << 10) / GB * 0.023
    assert by_class["DEEP_ARCHIVE"].dollars == pytest.approx(archived)
    assert len(told.notes) == 2
    total = sum(held.n_bytes for held in told.storage)
    retrieved = 0.01 * kept.n_bytes + 0.02 * by_class["DEEP_ARCHIVE"].n_bytes
    assert told.uses[0].retrieval_dollars == pytest.approx(2 * 1000 / GB * retrieved / total)


def test_prices_can_be_replaced(s3: S3Server, store: str, tmp_path: Path) -> None:
    own = {"egress_gb": 1.0, "gb_bytes": 2**30, "as_of": "2026-11", "classes": {"STANDARD": {"storage_gb": 2.0}}}
    (tmp_path / "p.json").write_text(json.dumps(own))
    (tmp_path / "p.toml").write_text(
        'egress_gb = 1.0\ngb_bytes = 1073741824\nas_of = "2026-11"\n[classes.STANDARD]\nstorage_gb = 2.0\n'
    )
    by_mapping, *by_file = (
        lz.cost(store, [Use(1, n_requests=0, n_bytes=2**30)], s3.storage_options, prices=given)
        for given in (own, tmp_path / "p.json", str(tmp_path / "p.toml"))
    )
    assert by_file == [by_mapping, by_mapping]
    assert by_mapping.uses[0].dollars == pytest.approx(1.0)
    assert by_mapping.storage_dollars == pytest.approx(by_mapping.storage[0].n_bytes / 2**30 * 2)
    assert by_mapping.prices_of == "us-east-1, 2026-11"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"egres_gb": 1}, "Did you mean 'egress_gb'"),
        ({"egress_gb": -1}, "expected a number"),
        ({"gb_bytes": 0}, "expected a number"),
        ({"classes": {"STANDRD": {}}}, "Did you mean 'STANDARD'"),
        ({"classes": {"STANDARD": {"storage": 1}}}, "storage_gb"),
        ({"classes": {"STANDARD": {"storage_gb": "1"}}}, "storage_gb of STANDARD"),
        ({"classes": {"STANDARD": 1}}, "expected fields"),
        ({"classes": 1}, "by storage class"),
    ],
)
def test_prices_that_are_none(given: dict[str, Any], told: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=told):
        Prices.of(given)


def test_files_of_prices_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError):
        Prices.of(tmp_path / "none.json")
    for name, text in (("p.json", "{"), ("p.toml", "a ="), ("l.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(errors.FormatError, match=r"expected fields|are no"):
            Prices.of(tmp_path / name)


def test_uses_and_places_that_are_none(s3: S3Server, store: str) -> None:
    wrong: list[Any] = [Use(1), Use(1, "a == 1", n_requests=1, n_bytes=1), Use(1, n_requests=1), Use(-1, "a == 1")]
    wrong += [Use(float("nan"), "a == 1"), Use(float("inf"), "a == 1")]
    for use in [*wrong, "a == 1"]:
        with pytest.raises(errors.InvalidArgumentError):
            lz.cost(store, [use], s3.storage_options)
    with pytest.raises(errors.NotFoundError):
        lz.cost(f"{store}x", storage_options=s3.storage_options)
    with pytest.raises(errors.UnsupportedError):
        lz.cost("a.zarr")


def test_the_command(s3: S3Server, store: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    arguments = ["cost", store, "--query", "cell_type == 'T'", "--per-month", 30, "--endpoint-url", s3.endpoint]
    told = json.loads(run(*arguments, "--json").out)
    assert told == json.loads(json.dumps(lz.cost(store, {"cell_type == 'T'": 30}, s3.storage_options).to_dict()))
    shown = run(*arguments, "--requests", 5, "--bytes", "10MB", "--whole-bytes", "300MB").out
    assert "us-east-1, 2025-01" in shown
    assert "(download of all)" in shown
    assert max(map(len, shown.splitlines())) <= 80
    failed = run("cost", store, "--requests", 5)
    assert (failed.status, failed.err.count("\n")) == (2, 1)
