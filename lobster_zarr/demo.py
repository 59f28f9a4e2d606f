"""The main job on this machine: an embedded S3, a real data set, one cell type and three genes.

Needs the ``demo`` extra: moto's S3 server, and scanpy for the data set that
ships inside it. The server listens on loopback and ends with the demo.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np

from lobster_zarr.convert import convert
from lobster_zarr.errors import NotFoundError, StorageError
from lobster_zarr.multimodal import open as open_dataset
from lobster_zarr.report import human_bytes
from lobster_zarr.store import open_store, run
from lobster_zarr.typeset import WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_OBS = 50_000
CELL_TYPE = "CD56+ NK"
GENES = ("NKG7", "GNLY", "CST3")
BUCKET = "demo"
STARTUP_SECONDS = 30.0


@contextmanager
def embedded_s3() -> Iterator[dict[str, Any]]:
    """Run moto's S3 server on loopback; yield the storage options for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own interpreter
    try:
        deadline = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    msg = f"the embedded S3 server did not start within {STARTUP_SECONDS:.0f} s; try again."
                    raise StorageError(msg) from None
                time.sleep(0.1)
        endpoint = f"http://127.0.0.1:{port}"
        yield {
            "key": "demo",
            "secret": "demo",
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
    finally:
        server.terminate()
        server.wait(timeout=10)


def make_bucket(options: dict[str, Any], name: str) -> None:
    """Create a bucket on the embedded server."""
    import boto3

    boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name="us-east-1",
    ).create_bucket(Bucket=name)


def enlarged_pbmc(n_obs: int = N_OBS, seed: int = 0) -> ad.AnnData:
    """Enlarge scanpy's pbmc68k_reduced (700 cells × 765 genes) to more cells.

    Each new cell is a cell of the data set, drawn with replacement, whose counts
    (recovered from the log-normalised values) are thinned by a tenth.

    Parameters
    ----------
    n_obs
        Cells to draw.
    seed
        Of the draw.
    """
    import scanpy as sc

    rng = np.random.default_rng(seed)
    source = sc.datasets.pbmc68k_reduced().raw.to_adata()
    counts = source.X.expm1()
    counts.data /= np.repeat([row.data.min() for row in counts], np.diff(counts.indptr))
    picked = rng.integers(0, source.n_obs, n_obs)
    cells = counts[picked]
    cells.data = rng.binomial(np.rint(cells.data).astype(np.int64), 0.9).astype(np.float32)
    cells.eliminate_zeros()
    return ad.AnnData(
        cells,
        obs=source.obs.iloc[picked].set_axis([f"cell-{i}" for i in range(n_obs)]),
        var=source.var,
        obsm={"X_umap": source.obsm["X_umap"][picked]},
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = work()
    return value, time.perf_counter() - started


def run_demo() -> None:
    """Run the demo and print its table."""
    from rich.console import Console
    from rich.table import Column, Table

    if find_spec("moto") is None or find_spec("scanpy") is None:
        msg = "the demo needs moto and scanpy; install them with: pip install 'lobster-zarr[demo]'"
        raise NotFoundError(msg)
    console = Console(width=min(WIDTH, Console().width))
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    with tempfile.TemporaryDirectory(prefix="lobster-zarr-demo-") as folder, embedded_s3() as options:
        make_bucket(options, BUCKET)
        h5ad = Path(folder) / "pbmc.h5ad"
        adata = enlarged_pbmc()
        adata.write_h5ad(h5ad, compression="gzip")
        _upload(h5ad, options)
        console.print(f"{adata.n_obs:,} cells × {adata.n_vars:,} genes, as H5AD {human_bytes(h5ad.stat().st_size)}")
        uri = f"s3://{BUCKET}/pbmc.zarr"
        console.print(f"\n[bold]lobster-zarr convert pbmc.h5ad {uri} --sort-by bulk_labels[/]")
        console.print(str(convert(h5ad, uri, sort_by="bulk_labels", storage_options=options, overwrite=True)))
        genes = ",".join(GENES)
        console.print(f"\n[bold]lobster-zarr query {uri} \\\n  \"bulk_labels == '{CELL_TYPE}'\" --var {genes}[/]")
        numbers = [Column(head, justify="right") for head in ("seconds", "requests", "bytes", "cells × genes")]
        table = Table("", *numbers, width=console.width)
        whole, seconds = _timed(lambda: _download(Path(folder) / "copy.h5ad", options))
        expected = whole[whole.obs["bulk_labels"] == CELL_TYPE, list(GENES)]
        size = h5ad.stat().st_size
        table.add_row("download the H5AD and slice", f"{seconds:.2f}", "1", human_bytes(size), _shape(expected))
        for title, wanted in (("this cell type, all genes", None), ("this cell type, three genes", GENES)):
            data = open_dataset(uri, options)
            got, seconds = _timed(data.query({"bulk_labels": CELL_TYPE}, wanted).to_memory)
            cost = data.stats
            table.add_row(title, f"{seconds:.2f}", f"{cost.n_requests + 1}", human_bytes(cost.n_bytes), _shape(got))
        if not np.array_equal(got.X.toarray(), expected.X.toarray()) or not got.obs_names.equals(expected.obs_names):
            msg = "the query and the slice in memory differ: this is a bug, please report it."
            raise AssertionError(msg)
        console.print(table)
        console.print("The three-gene answer equals slicing the downloaded file in memory.")


def _shape(adata: ad.AnnData) -> str:
    return f"{adata.n_obs:,} × {adata.n_vars:,}"


def _upload(path: Path, options: dict[str, Any]) -> None:
    from zarr.core.buffer import default_buffer_prototype

    store = open_store(f"s3://{BUCKET}", options, read_only=False)
    run(store.set(path.name, default_buffer_prototype().buffer.from_bytes(path.read_bytes())))


def _download(path: Path, options: dict[str, Any]) -> ad.AnnData:
    from zarr.core.buffer import default_buffer_prototype

    store = open_store(f"s3://{BUCKET}", options)
    body = run(store.get("pbmc.h5ad", default_buffer_prototype()))
    path.write_bytes(body.to_bytes() if body is not None else b"")
    return ad.read_h5ad(path)
