"""A store that was overwritten while it was open is noticed: never old offsets with new values."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from layouts import tiny_chunks
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr import identity
from lobster_zarr.errors import ChunkDecodeError, ConflictError

if TYPE_CHECKING:
    from pathlib import Path


def cells(seed: int, kinds: str = "ab") -> ad.AnnData:
    rng = np.random.default_rng(seed)
    return ad.AnnData(
        sparse.random(200, 30, 0.3, "csr", "float32", rng),
        obs=pd.DataFrame({"kind": pd.Categorical(rng.choice(list(kinds), 200))}, index=[f"c{i}" for i in range(200)]),
    )


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every store had been opened long ago."""
    monkeypatch.setattr(identity, "FRESH_SECONDS", 0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("ask", ["count", "to_memory", "explain", "sql"])
def test_an_overwritten_store_is_noticed(tmp_path: Path, ask: str) -> None:
    path = tmp_path / "a.zarr"
    lz.convert(cells(0), path, progress=False)
    data = lz.open(path)

    def answer() -> object:
        if ask == "sql":
            return data.sql("SELECT count(*) AS n FROM obs WHERE kind = 'a'")
        return getattr(data.query("kind == 'a'"), ask)()

    answer()
    lz.convert(cells(1, "bc"), path, overwrite=True, progress=False)
    for _ in range(2):
        with pytest.raises(ConflictError, match="open it again"):
            answer()
    assert lz.open(path).query("kind == 'c'").count() > 0
    shutil.rmtree(path)
    with pytest.raises(ConflictError, match="removed"):
        answer()


def test_damage_that_is_another_store_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with tiny_chunks():
        lz.convert(cells(0), path, progress=False)
        data = lz.open(path)
        lz.convert(cells(1), path, overwrite=True, progress=False)
    with pytest.raises(ConflictError, match="overwritten"):
        data.query([3, 5, 7]).to_memory()


@pytest.mark.usefixtures("at_once")
def test_damage_of_the_same_store_is_still_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    lz.convert(cells(0), path, progress=False)
    data = lz.open(path)
    chunk = path / "X/data/c/0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ChunkDecodeError):
        data.to_memory()


def test_a_store_that_was_just_opened_is_not_looked_at_again(tmp_path: Path) -> None:
    lz.convert(cells(0), tmp_path / "a.zarr", progress=False)
    data = lz.open(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").unlink()
    assert data.query("kind == 'a'").count() > 0
