"""A bucket behind a gate, stores and files in it, and a cache: what is asked of the one for what is in the other.

Knows moto's server, the gate, and how each kind is written. Must not know how anything is cached.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from layouts import tiny_chunks
from oracle import sliced, stored
from scipy import sparse

import lobster_zarr as lz
from tests.gates import gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gates import Asked, Gate
    from tests.s3 import S3Server

T_CELLS = "cell_type == 'T cell'"
KINDS = ("a.zarr", "foreign.zarr", "a.h5ad")
"""A store of this package, one that anndata wrote, and a file."""
BUCKET = "cached"
N_OBS, N_VARS = 600, 60


def cells(seed: int = 0, name: str = "") -> ad.AnnData:
    """Make an AnnData to be written as `name`: for a file, so large that not all is read when it is opened."""
    rng = np.random.default_rng(seed)
    n_pcs = 500 if name == "a.h5ad" else 2
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(rng.choice(["T cell", "B cell"], N_OBS)), "n_counts": rng.integers(0, 9, N_OBS)},
        index=[f"c{i}" for i in range(N_OBS)],
    )
    values = sparse.random(N_OBS, N_VARS, 0.3, "csr", np.float32, rng)
    names = [f"g{i}" for i in range(N_VARS)]
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=names), obsm={"X_pca": rng.random((N_OBS, n_pcs))})


def t_cells(adata: ad.AnnData) -> ad.AnnData:
    return stored(sliced(adata, np.flatnonzero(adata.obs["cell_type"] == "T cell"), slice(None)))


@dataclass
class Lab:
    """A bucket behind a gate, a cache, and what was asked of the one."""

    s3: S3Server
    gate: Gate
    cache: Path
    prefix: str

    @property
    def options(self) -> dict[str, Any]:
        return self.s3.storage_options | {"endpoint_url": self.gate.endpoint, "max_attempts": 1}

    def uri(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}"

    def open(self, name: str, **options: Any) -> Any:
        return lz.open(self.uri(name), self.options, **{"cache": self.cache, **options})

    def put(self, key: str, body: bytes) -> None:
        self.s3.client().put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=body)

    def body(self, key: str) -> bytes:
        return self.s3.client().get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")["Body"].read()

    def write(self, name: str, adata: ad.AnnData, tmp_path: Path) -> None:
        """Write one of `KINDS`, over what is there."""
        if name == "a.zarr":
            with tiny_chunks(chunk=64, shard_chunks=64):
                lz.convert(
                    adata, self.uri(name), storage_options=self.s3.storage_options, overwrite=True, progress=False
                )
            return
        path = tmp_path / f"{time.monotonic_ns()}-{name}"
        if name == "a.h5ad":
            adata.write_h5ad(path, compression="gzip")
            self.put(name, path.read_bytes())
            return
        adata.write_zarr(path)
        for file in filter(Path.is_file, path.rglob("*")):
            self.put(f"{name}/{file.relative_to(path).as_posix()}", file.read_bytes())

    @contextmanager
    def asking(self) -> Iterator[list[Asked]]:
        """Tell what is asked in the block."""
        asked: list[Asked] = []
        before = len(self.gate.asked)
        yield asked
        asked += self.gate.asked[before:]


def data_requests(asked: list[Asked]) -> list[str]:
    """Requests that may bring content: no listing, and no question whether something is as it was."""
    plain = [a for a in asked if "list-type" not in a.path and a.method == "GET"]
    return [a.path for a in plain if not a.path.endswith(".lobster_zarr.json")]  # an index that is not there


@contextmanager
def lab_of(s3: S3Server, folder: Path) -> Iterator[Lab]:
    """Give a lab whose objects have a prefix of their own, named after a folder of the test's own."""
    s3.bucket(BUCKET)
    with gate(s3.endpoint) as running:
        yield Lab(s3, running, folder / "cache", folder.name)
