"""What a MuData costs on S3: converted, opened, and one modality filtered by another, against mudata's own ways.

Knows the questions and how this package and mudata answer them. Must not know how the line is shaped
(`benchmarks.network`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import synthetic
from benchmarks.network import ShapedS3, shaped_s3
from benchmarks.steps import stored

if TYPE_CHECKING:
    from collections.abc import Callable

    import mudata

LATENCY_SECONDS, BANDWIDTH_BITS = 0.02, 100e6
N_OBS = 20_000
N_GENES, N_PROTEINS, N_PEAKS = 15_000, 150, 30_000
FILE, OWN, THEIRS = "cells.h5mu", "own.zarr", "mudata.zarr"


def make(folder: Path, n_obs: int) -> mudata.MuData:
    """Make three modalities: rna, proteins of all cells, and peaks of 80 % of them in another order."""
    import anndata as ad
    import mudata
    import numpy as np
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(0)
    synthetic.make(folder / "rna.h5ad", n_obs, N_GENES)
    rna = ad.read_h5ad(folder / "rna.h5ad")
    proteins = ad.AnnData(
        rng.poisson(rng.gamma(1, 20, N_PROTEINS), (n_obs, N_PROTEINS)).astype(np.float32),
        obs=pd.DataFrame({"n_counts": rng.integers(0, 5_000, n_obs)}, index=rna.obs_names),
        var=pd.DataFrame(index=[f"CD{i}" for i in range(N_PROTEINS)]),
    )
    seen = rng.permutation(n_obs)[: n_obs * 4 // 5]
    peaks = ad.AnnData(
        sparse.random(len(seen), N_PEAKS, 0.03, "csr", np.float32, rng, lambda n: rng.integers(1, 3, n)),
        obs=pd.DataFrame({"tss": rng.random(len(seen))}, index=rna.obs_names[seen]),
        var=pd.DataFrame(index=[f"chr1-{i * 500}-{i * 500 + 400}" for i in range(N_PEAKS)]),
    )
    made = mudata.MuData({"rna": rna, "prot": proteins, "atac": peaks})
    made.write_h5mu(folder / FILE, compression="gzip")
    return made


def write(folder: Path, made: mudata.MuData) -> dict[str, Any]:
    """Convert, and write with mudata, what is in the file."""
    import zarr

    import lobster_zarr as lz

    for name in (OWN, THEIRS):
        shutil.rmtree(folder / name, ignore_errors=True)
    start = time.perf_counter()
    lz.convert(folder / FILE, folder / OWN, sort_by="rna:cell_type", progress=False)
    own = time.perf_counter() - start
    start = time.perf_counter()
    made.write_zarr(folder / THEIRS)
    theirs = time.perf_counter() - start
    zarr.consolidate_metadata(folder / THEIRS)  # mudata does not; without, a reader lists every group
    seconds = {OWN: own, THEIRS: theirs}
    return {name: stored(folder / name) | {"seconds": seconds.get(name)} for name in (FILE, OWN, THEIRS)}


@dataclass(frozen=True)
class Question:
    """What is asked, of this package and of a MuData in memory."""

    obs: str
    options: dict[str, Any]
    mask: Callable[[mudata.MuData], Any]


QUESTIONS = {
    "proteins of the T cells": Question(
        "rna:cell_type == 'T cell'", {"modalities": ["prot"]}, lambda m: m["rna"].obs["cell_type"] == "T cell"
    ),
    "rna and proteins of the T cells": Question(
        "rna:cell_type == 'T cell'", {"modalities": ["rna", "prot"]}, lambda m: m["rna"].obs["cell_type"] == "T cell"
    ),
    "proteins of cells by CD3 and rna": Question(
        "prot:CD3 > 40 and rna:n_counts > 6000",
        {"modalities": ["prot"]},
        lambda m: (m["prot"][:, "CD3"].X.ravel() > 40) & (m["rna"].obs["n_counts"] > 6000),
    ),
}


def ask(server: ShapedS3, bucket: str, name: str) -> dict[str, dict[str, Any]]:
    """Answer one question in three ways, each from cold; the answers agree."""
    import mudata
    import numpy as np
    from zarr.storage import ObjectStore

    import lobster_zarr as lz

    question, network = QUESTIONS[name], lz.Network(LATENCY_SECONDS, BANDWIDTH_BITS / 8)

    def own() -> Any:
        data = lz.open(f"s3://{bucket}/{OWN}", server.storage_options, network=network)
        return data.query(question.obs, **question.options).to_memory()

    def of_file() -> Any:
        path = Path(bucket).with_suffix(".h5mu")
        path.write_bytes(server.store(bucket).get(FILE).bytes())
        whole = mudata.read_h5mu(path)
        path.unlink()
        return whole[np.asarray(question.mask(whole))].copy()

    def of_zarr() -> Any:
        whole = mudata.read_zarr(ObjectStore(server.store(bucket, THEIRS), read_only=True))
        return whole[np.asarray(question.mask(whole))].copy()

    ways, figures, digests = {"lobster_zarr": own, "whole .h5mu": of_file, "mudata.read_zarr": of_zarr}, {}, set()
    for way, run in ways.items():
        server.reset()
        start = time.perf_counter()
        found = run()
        seconds, seen = time.perf_counter() - start, server.counters()
        proteins = found["prot"]
        digests.add((proteins.n_obs, float(proteins.X.sum()), tuple(sorted(proteins.obs_names))[:3]))
        figures[way] = {"seconds": seconds, "requests": seen.n_requests, "bytes": seen.body_bytes}
    if len(digests) > 1:
        raise AssertionError(f"the answers to {name!r} differ: {digests}")
    return figures


def measure(data: Path, n_obs: int) -> dict[str, Any]:
    """Make the file, write it both ways, ask every question in three ways."""
    warnings.simplefilter("ignore")
    folder = data / f"multimodal_{n_obs}"
    folder.mkdir(parents=True, exist_ok=True)
    written = write(folder, make(folder, n_obs))
    with shaped_s3(data, LATENCY_SECONDS, BANDWIDTH_BITS) as server:
        return {"stored": written, "asked": {name: ask(server, folder.name, name) for name in QUESTIONS}}


def tables(report: dict[str, Any], n_obs: int) -> list[Table]:
    """Return what was written and what was asked as tables."""
    sizes = Table("", "objects", "MB", "seconds to write", title=f"{n_obs:,} cells, three modalities")
    for name, f in report["stored"].items():
        sizes.add_row(name, f"{f['n_objects']:,}", f"{f['stored_bytes'] / 1e6:,.1f}", f"{f['seconds'] or 0:.1f}")
    questions = Table("question", "way", "seconds", "requests", "MB", title="20 ms, 100 Mbit/s")
    for name, ways in report["asked"].items():
        for way, f in ways.items():
            questions.add_row(name, way, f"{f['seconds']:.2f}", f"{f['requests']:,}", f"{f['bytes'] / 1e6:,.2f}")
    return [sizes, questions]


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the files")
    parser.add_argument("--n-obs", type=int, default=N_OBS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure(options.data, options.n_obs)
    Console().print(*tables(report, options.n_obs))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
