"""How each package converts the H5AD and is asked the questions, each as its documentation says.

Runs as a process of its own, under the interpreter of an environment that has the package: one line of JSON on
standard input is one run, one line of JSON back says what it took, and a second one what came. Imports are
done before. Must not know the true answers, or how requests are counted (`benchmarks.asking`). Linux only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.steps import CELL_TYPE, digest_rest, digest_x, digested, memory_bytes, stored, timed

if TYPE_CHECKING:
    from collections.abc import Callable

PREDICATE = f"cell_type == '{CELL_TYPE}'"
OBSM = ["X_pca", "X_umap"]
BLOCK_BYTES = 8 << 20  # of the cache between h5py and S3
SOMA_BUFFER_BYTES = 1 << 30  # what CELLxGENE Census gives its readers


@dataclass(frozen=True)
class Asked:
    """One question about one store: where that is, which cells, which genes, what of them."""

    endpoint: str
    bucket: str
    name: str
    line: list[float]
    cells: str
    genes: list[str] | None
    verb: str
    options: dict[str, Any]
    mask: np.ndarray
    names: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether all genes are asked for, and with them obs and obsm."""
        return self.genes is None

    def remote(self) -> Any:
        """Return an obstore on the bucket."""
        from obstore.store import S3Store

        keys: Any = {"access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
        client: Any = {"allow_http": True}
        prefix = self.name if self.name.endswith(".zarr") else None
        return S3Store(self.bucket, prefix=prefix, endpoint=self.endpoint, client_options=client, **keys)


class Answer(NamedTuple):
    """X and the names of its rows; the AnnData, where more than X was read; what was read by array."""

    x: Any
    names: Any
    adata: Any = None
    by_array: Any = None


def ask_lobster(asked: Asked) -> Any:
    """Ask this package."""
    import lobster_zarr as lz

    options = {"key": "x", "secret": "x", "endpoint_url": asked.endpoint}
    network = lz.Network(asked.line[0], asked.line[1] / 8)
    data = lz.open(f"s3://{asked.bucket}/{asked.name}", storage_options=options, network=network)
    if asked.verb == "open":
        return data
    cells: Any = {"all": None, "T": PREDICATE, "5%": asked.mask}[asked.cells]
    selection: Any = data.query(cells, asked.genes, **asked.options)
    answer = getattr(selection, asked.verb)()
    return answer if asked.verb == "count" else (answer, selection.stats.by_array)


def rows_of(obs: Any, asked: Asked) -> Any:
    """Which cells, found by what the store says of them; a slice where that is all of them."""
    if asked.cells == "all":
        return slice(None)
    return np.asarray(obs["cell_type"] == CELL_TYPE) if asked.cells == "T" else asked.mask


def of_adata(adata: Any) -> Answer:
    """Return an AnnData as an answer."""
    return Answer(adata.X, adata.obs_names, adata)


def ask_download(asked: Asked) -> Any:
    """Download the H5AD, read it, slice it."""
    import anndata as ad

    with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
        file.writelines(asked.remote().get(asked.name).stream())
        file.flush()
        source = ad.read_h5ad(file.name)
    rows = rows_of(source.obs, asked)
    return int(rows.sum()) if asked.verb == "count" else of_adata(source[rows, asked.genes or slice(None)].copy())


def ask_h5py(asked: Asked) -> Any:
    """Read the H5AD where it is: h5py on s3fs, X backed, the rest in memory."""
    import anndata as ad
    import h5py
    import s3fs

    fs = s3fs.S3FileSystem(key="x", secret="x", endpoint_url=asked.endpoint, skip_instance_cache=True)
    opened = fs.open(f"{asked.bucket}/{asked.name}", block_size=BLOCK_BYTES, cache_type="blockcache")
    with opened as remote, h5py.File(remote) as file:
        if asked.verb == "count":
            return int((ad.io.read_elem(file["obs/cell_type"]) == CELL_TYPE).sum())
        parts = {name: ad.io.read_elem(file[name]) for name in ("obs", "var", "uns")}
        parts |= {"obsm": ad.io.read_elem(file["obsm"])} if asked.whole else {}
        backed = ad.AnnData(ad.io.sparse_dataset(file["X"]), **parts)
        return of_adata(backed[rows_of(backed.obs, asked), asked.genes or slice(None)].to_memory())


def group_of(asked: Asked) -> Any:
    """Open a store with zarr, its metadata in one request."""
    import zarr

    return zarr.open_group(zarr.storage.ObjectStore(asked.remote(), read_only=True), mode="r", zarr_format=3)


def ask_read_lazy(asked: Asked) -> Any:
    """Ask anndata's `read_lazy`."""
    from anndata.experimental import read_lazy

    lazy: Any = read_lazy(group_of(asked))
    rows = rows_of(lazy.obs, asked)
    if asked.verb == "count":
        return int(rows.sum())
    if asked.whole:
        return of_adata(lazy[rows].to_memory() if asked.cells != "all" else lazy.to_memory())
    return Answer(lazy[rows, asked.genes].X.compute(), None)


def ask_sparse_dataset(asked: Asked) -> Any:
    """Ask anndata's `sparse_dataset`: X alone."""
    import anndata as ad
    import pandas as pd

    group = group_of(asked)
    types = ad.io.read_elem(group["obs/cell_type"]) if asked.cells == "T" else None
    rows = rows_of({"cell_type": types}, asked)
    if asked.verb == "count":
        return int(rows.sum())
    wanted = None if asked.whole else pd.Index(ad.io.read_elem(group["var/_index"])).get_indexer(asked.genes)
    return Answer(ad.io.sparse_dataset(group["X"])[rows, slice(None) if wanted is None else wanted], None)


def ask_soma(asked: Asked) -> Any:
    """Ask TileDB-SOMA by an axis query; the whole experiment by its exporter."""
    import tiledbsoma
    import tiledbsoma.io

    config = {
        "vfs.s3.endpoint_override": asked.endpoint.removeprefix("http://"),
        "vfs.s3.scheme": "http",
        "vfs.s3.region": "us-east-1",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.aws_access_key_id": "x",
        "vfs.s3.aws_secret_access_key": "x",
        "soma.init_buffer_bytes": SOMA_BUFFER_BYTES,
    }
    context = tiledbsoma.SOMATileDBContext(tiledb_config=config)
    by_value = {"value_filter": PREDICATE} if asked.cells == "T" else {"coords": (np.flatnonzero(asked.mask),)}
    cells = None if asked.cells == "all" else tiledbsoma.AxisQuery(**by_value)
    genes = None if asked.whole else tiledbsoma.AxisQuery(value_filter=f"var_id in {asked.genes!r}")
    with tiledbsoma.Experiment.open(f"s3://{asked.bucket}/{asked.name}", context=context) as experiment:
        if cells is genes is None:
            return of_adata(tiledbsoma.io.to_anndata(experiment, "RNA"))
        with experiment.axis_query("RNA", obs_query=cells, var_query=genes) as query:
            if asked.verb == "count":
                return query.n_obs
            if asked.options:  # X alone, and the names
                columns: Any = {"obs": ["obs_id"], "var": ["var_id"]}
                adata = query.to_anndata("data", column_names=columns)
                return Answer(adata.X, adata.obs_names)
            return of_adata(query.to_anndata("data", obsm_layers=OBSM))


def ask_slaf(asked: Asked) -> Any:
    """Ask SLAF: cells as a submatrix, a gene and everything by SQL; a table of cell, gene and value."""
    from slaf import SLAFArray

    array = SLAFArray(f"s3://{asked.bucket}/{asked.name}")
    if asked.verb == "count":
        return int(array.query(f"SELECT count(*) AS n FROM cells WHERE {PREDICATE}")["n"][0])  # noqa: S608 - fixed text
    ids, wanted = "e.cell_integer_id AS cell, e.gene_integer_id AS gene, e.value AS value", asked.genes or []
    if asked.cells == "all" and asked.whole:
        return array, array.query(f"SELECT {ids} FROM expression e")  # noqa: S608 - as above
    if asked.cells == "all":
        listed = ", ".join(f"'{gene}'" for gene in wanted)
        join = f"expression e JOIN genes g ON e.gene_integer_id = g.gene_integer_id WHERE g.gene_id IN ({listed})"
        return array, array.query(f"SELECT {ids} FROM {join}")  # noqa: S608 - as above
    obs, var = array.obs, array.var
    rows = (obs["cell_type"] == CELL_TYPE).to_numpy() if asked.cells == "T" else asked.mask
    genes = None if asked.whole else var["gene_id"].is_in(wanted).arg_true().to_list()
    return array, array.get_submatrix(cell_selector=rows, gene_selector=genes)


def matrix_of_slaf(asked: Asked, array: Any, found: Any) -> Answer:
    """Make of SLAF's table the matrix that it stands for; no part of what is measured."""
    import pandas as pd
    import scipy.sparse as sp

    genes = asked.genes or array.var["gene_id"].to_list()
    if "cell_id" in found.columns:
        rows = pd.Index(asked.names).get_indexer(found["cell_id"].to_pandas())
        columns = pd.Index(genes).get_indexer(found["gene_id"].to_pandas())
    else:
        rows = found["cell"].to_numpy()
        columns = pd.Index(genes).get_indexer(array.var["gene_id"].to_pandas())[found["gene"].to_numpy()]
    values = found["value"].to_numpy().astype(np.float32)
    return Answer(sp.csr_matrix((values, (rows, columns)), shape=(len(asked.names), len(genes))), asked.names)


def digest(asked: Asked, answer: Any) -> dict[str, Any]:
    """Digest what came back, in the order of genes that was asked for."""
    if isinstance(answer, int):
        return digested(answer)
    if asked.verb == "open":
        return {"n_obs": answer.n_obs}
    if isinstance(answer, tuple) and not isinstance(answer, Answer):
        if isinstance(answer[1], dict):
            import anndata as ad

            whole = ad.AnnData(obs=answer[0]) if asked.verb == "to_pandas" else answer[0]
            return digested(whole, ordered=asked.options.get("order") != "storage")
        answer = matrix_of_slaf(asked, *answer)
    x, names, adata, _ = answer
    if adata is None:
        return {"n_obs": x.shape[0], "x": digest_x(x, asked.names if names is None else names)}
    for frame in (adata.obs, adata.var):
        if "soma_joinid" in frame:
            del frame["soma_joinid"]
    adata = adata if asked.whole else adata[:, asked.genes]
    found = {"n_obs": adata.n_obs, "x": digest_x(adata.X, adata.obs_names)}
    return found | ({"rest": digest_rest(adata)} if asked.whole else {})


def convert_lobster(source: Path, dest: Path) -> None:
    """Convert with both layouts, sorted."""
    import lobster_zarr as lz

    lz.convert(source, dest, sort_by=["cell_type"], gene_major=True, progress=False)


def convert_anndata(source: Path, dest: Path) -> None:
    """Read and write with anndata."""
    import anndata as ad

    ad.read_h5ad(source).write_zarr(dest)


def convert_soma(source: Path, dest: Path) -> None:
    """Ingest with TileDB-SOMA."""
    import tiledbsoma.io

    tiledbsoma.io.from_h5ad(str(dest), str(source), "RNA")


def convert_soma_sorted(source: Path, dest: Path) -> None:
    """Sort in memory, then ingest: what a user of TileDB-SOMA can do by hand."""
    import anndata as ad
    import tiledbsoma.io

    adata = ad.read_h5ad(source)
    order = np.argsort(adata.obs["cell_type"].cat.codes.to_numpy(), kind="stable")
    tiledbsoma.io.from_anndata(str(dest), adata[order].copy(), "RNA")


def convert_slaf(source: Path, dest: Path) -> None:
    """Convert with SLAF."""
    from slaf.data import SLAFConverter

    SLAFConverter().convert(str(source), str(dest))


class Reader(NamedTuple):
    """How one package is asked, what it must have imported before, and whose version counts."""

    ask: Callable[[Asked], Any]
    modules: tuple[str, ...]
    package: str


OURS, LAZY, SPARSE, H5AD, H5PY = "lobster_zarr", "read_lazy", "sparse_dataset", "download H5AD", "h5py on s3fs"
SOMA, SLAF = "TileDB-SOMA", "SLAF"
READERS = {
    OURS: Reader(ask_lobster, ("lobster_zarr", "lobster_zarr.query"), "lobster-zarr"),
    H5AD: Reader(ask_download, ("anndata", "obstore"), "anndata"),
    H5PY: Reader(ask_h5py, ("anndata", "h5py", "s3fs"), "s3fs"),
    LAZY: Reader(ask_read_lazy, ("anndata.experimental", "obstore", "zarr"), "anndata"),
    SPARSE: Reader(ask_sparse_dataset, ("anndata", "obstore", "zarr"), "anndata"),
    SOMA: Reader(ask_soma, ("tiledbsoma", "tiledbsoma.io"), "tiledbsoma"),
    SLAF: Reader(ask_slaf, ("slaf",), "slafdb"),
}
CONVERTERS: dict[str, tuple[Callable[[Path, Path], None], tuple[str, ...]]] = {
    "sorted": (convert_lobster, ("lobster_zarr", "lobster_zarr.convert")),
    "anndata": (convert_anndata, ("anndata", "zarr")),
    "soma": (convert_soma, ("tiledbsoma.io",)),
    "soma_sorted": (convert_soma_sorted, ("tiledbsoma.io",)),
    "slaf": (convert_slaf, ("slaf.data",)),
}


def written_bytes() -> int:
    """Return the bytes that this process has handed to the system to write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar:")).split()[1])


def converted(store: str, source: Path, dest: Path) -> dict[str, Any]:
    """Convert, and say what it took."""
    convert, modules = CONVERTERS[store]
    for module in modules:
        import_module(module)
    before = written_bytes()
    _, figures = timed(lambda: convert(source, dest), 0, 1)
    return figures | {"written_bytes": written_bytes() - before} | stored(dest)


def answer_lines(reader: Reader, asked: Asked, say: Callable[[Any], None]) -> None:
    """Answer a line of standard input with what a run took, then with what came of it."""
    for module in reader.modules:
        import_module(module)
    say({"version": metadata.version(reader.package)})
    for _ in sys.stdin:
        start = time.perf_counter()
        answer = reader.ask(asked)
        seconds = time.perf_counter() - start
        by_array = answer[1] if isinstance(answer, tuple) and isinstance(answer[1], dict) else {}
        say({"seconds": seconds, "peak_bytes": memory_bytes("VmHWM"), "by_array": by_array})
        say(digest(asked, answer))


def main() -> None:
    """Run what the first argument, a JSON object, asks for."""
    request = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print is not an answer

    def say(answer: Any) -> None:
        print(json.dumps(answer, default=float), file=out, flush=True)

    if "convert" in request:
        say(converted(request["convert"], Path(request["source"]), Path(request["dest"])))
        return
    with np.load(request.pop("known")) as known:
        asked = Asked(**request.pop("asked"), mask=known["mask"], names=known["names"])
    with contextlib.suppress(BrokenPipeError):
        answer_lines(READERS[request["reader"]], asked, say)


if __name__ == "__main__":
    main()
