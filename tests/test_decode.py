"""Responses that are decoded while they arrive, over the S3 protocol: the same answers, counts and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from oracle import assert_equal, stored
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.errors import LobsterZarrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3 import S3Server

ROWS = slice(100, 900)


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    return ad.AnnData(
        sparse.random(1_000, 200, 0.3, "csr", "float32", rng),
        obs=pd.DataFrame({"n": rng.integers(0, 9, 1_000)}, index=[f"c{i}" for i in range(1_000)]),
        obsm={"X_pca": rng.normal(size=(1_000, 10))},
    )


@pytest.fixture(scope="module")
def uri(s3: S3Server) -> str:
    where = f"{s3.bucket('decode')}/a.zarr"
    with tiny_chunks(chunk=128, shard_chunks=1_024):
        lz.convert(cells(), where, storage_options=s3.storage_options, progress=False)
    return where


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every response of over 200 bytes as a long one, and arriving in small pieces."""
    monkeypatch.setattr("lobster_zarr.fetch.STREAM_BYTES", 200)
    monkeypatch.setattr("lobster_zarr.store._PIECE_BYTES", 1_000)
    monkeypatch.setattr("lobster_zarr.decode.BATCH", 4)


def test_answers_and_counts_are_the_same(uri: str, s3: S3Server, request: pytest.FixtureRequest) -> None:
    whole = lz.open(uri, s3.storage_options).query(ROWS)
    expected = whole.to_memory()
    request.getfixturevalue("streaming")
    streamed = lz.open(uri, s3.storage_options).query(ROWS)
    assert_equal(streamed.to_memory(), expected)
    assert_equal(expected, stored(cells())[ROWS].copy())
    assert streamed.stats == whole.stats
    genes = lz.open(uri, s3.storage_options).query(ROWS, [3, 5]).to_memory()
    assert_equal(genes, stored(cells())[ROWS, [3, 5]].copy())


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda body: body[: (at := len(body) // 2)] + bytes([body[at] ^ 4]) + body[at + 1 :],
    "cut": lambda body: body[: len(body) // 2],
    "lost": lambda _: None,
}


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_an_error(uri: str, s3: S3Server, kind: str) -> None:
    client, key = s3.client(), "a.zarr/X/data/c/0"
    body = client.get_object(Bucket="decode", Key=key)["Body"].read()
    damaged = DAMAGE[kind](body)
    if damaged is None:
        client.delete_object(Bucket="decode", Key=key)
    else:
        client.put_object(Bucket="decode", Key=key, Body=damaged)
    try:
        with pytest.raises(LobsterZarrError, match=r"X/data"):
            lz.open(uri, s3.storage_options).query(ROWS).to_memory()
    finally:
        client.put_object(Bucket="decode", Key=key, Body=body)
    assert lz.open(uri, s3.storage_options).query(ROWS).to_memory().n_obs == 800
