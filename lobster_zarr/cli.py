"""The command line: ``lobster-zarr convert | info | query | sql | export | verify | doctor | migrate | demo``.

Every failure is one line on standard error and exit status 2. Must not hold
logic of its own: each command is one call of the Python interface.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobster_zarr.cli_migrate import migrate
from lobster_zarr.cli_options import (
    AsJson,
    Codec,
    CodecProfile,
    Endpoint,
    GeneMajor,
    MemoryLimit,
    Scheduler,
    Sse,
    SseKey,
    StorageClass,
    cluster_of,
    options_of,
    placement_of,
)
from lobster_zarr.errors import InvalidArgumentError, LobsterZarrError
from lobster_zarr.output import OUTPUTS, TABLES, check_kind, check_output, drawn, save
from lobster_zarr.report import human_bytes
from lobster_zarr.typeset import WIDTH, shortened
from lobster_zarr.wholefile import whole_file

if TYPE_CHECKING:
    from lobster_zarr.muquery import MultimodalSelection
    from lobster_zarr.query import Selection

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, of which newer versions of typer hold a copy
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

app = typer.Typer(
    name="lobster-zarr",
    help="Single-cell data on S3, read by the cell and the gene.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class RowOrder(StrEnum):
    """Orders of a result."""

    source = "source"
    storage = "storage"


class Join(StrEnum):
    """Which cells of a MuData."""

    outer = "outer"
    inner = "inner"


class Compression(StrEnum):
    """Compressions of an exported H5AD."""

    gzip = "gzip"
    lzf = "lzf"
    none = "none"


def _source(text: str) -> Any:
    """Return a path or URI, or of ``rna=a.h5ad,prot=b.h5ad`` a dict of modalities."""
    pairs = [part.partition("=") for part in re.split(r",(?=[^=,/]+=)", text)]
    if not all(sign and "/" not in name for name, sign, _ in pairs) or os.path.exists(text):  # noqa: PTH110 - or a URI
        return text
    return {name: path for name, _, path in pairs}


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="An .h5ad, .h5mu or Zarr store: path or URI; or rna=a.h5ad,prot=b.h5ad.")],
    dest: Annotated[str, typer.Argument(help="The store to write: path or URI.")],
    *,
    sort_by: Annotated[
        list[str] | None, typer.Option(help="Group the rows by this obs column, of MuData also rna:COL; repeatable.")
    ] = None,
    gene_major: GeneMajor = None,
    codec: CodecProfile = Codec.small,
    memory_limit: MemoryLimit = "2GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there.")] = False,
    axis: Annotated[
        int | None, typer.Option(help="What rna=…,prot=… share: 0, cells (by default); 1, genes; -1, both.")
    ] = None,
    sse: Sse = None,
    sse_kms_key_id: SseKey = None,
    storage_class: StorageClass = None,
    endpoint_url: Endpoint = None,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
) -> None:
    """Convert an H5AD or H5MU to a chunked store, once."""
    import lobster_zarr as lz

    with cluster_of(scheduler) as client:
        report = lz.convert(
            _source(src),
            dest,
            sort_by=sort_by or [],
            gene_major="auto" if gene_major is None else gene_major,
            codec=codec.value,
            memory_limit=memory_limit,
            overwrite=overwrite,
            storage_options=options_of(endpoint_url) | placement_of(sse, sse_kms_key_id, storage_class),
            client=client,
            axis=axis,  # type: ignore[arg-type]  # checked there
        )
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))


@app.command()
def info(
    uri: Annotated[str, typer.Argument(help="A store: path or URI.")],
    *,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds: one request."""
    import lobster_zarr as lz

    told = lz.open(uri, options_of(endpoint_url)).info()
    typer.echo(json.dumps(told.to_dict()) if as_json else str(told))


@app.command()
def index(
    uri: Annotated[str, typer.Argument(help="An .h5ad or .h5mu: path or URI.")],
    *,
    local: Annotated[bool, typer.Option("--local", help="Keep it in your cache, not beside the file.")] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Keep where the chunks of a file lie: it then opens in one request."""
    import lobster_zarr as lz

    report = lz.index(uri, options_of(endpoint_url), local=local)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))


@app.command()
def query(
    uri: Annotated[str, typer.Argument(help="A store: path or URI.")],
    expr: Annotated[str, typer.Argument(help="Which cells: \"cell_type == 'T cell' and n_counts > 500\", or SQL.")],
    *,
    var: Annotated[
        str | None,
        typer.Option(help="Genes, comma separated; all by default. Of a MuData: rna:A,prot:B.", metavar="A,B"),
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Of a MuData, what to bring; repeatable.")] = None,
    join: Annotated[Join | None, typer.Option(help="Of a MuData: cells in any modality, or in all.")] = None,
    order: Annotated[RowOrder, typer.Option(help="Row order of the result.")] = RowOrder.source,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="out.h5ad (of a MuData out.h5mu), .zarr, .parquet or .csv; the count without."
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Tell what it would cost, and fetch nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    endpoint_url: Endpoint = None,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the cells that match, and nothing else."""
    import lobster_zarr as lz

    if out is not None:
        check_output(out, OUTPUTS, overwrite=overwrite)
    if var is not None and out is None and not explain:
        msg = "--var selects the genes of an output: it needs -o or --explain."
        raise InvalidArgumentError(msg)
    data = lz.open(uri, options_of(endpoint_url))
    names = [v.strip() for v in var.split(",") if v.strip()] if var is not None else None
    selection: Selection | MultimodalSelection
    if isinstance(data, lz.MultimodalDataset):
        genes, cells = _by_modality(names, list(data)), Join.outer if join is None else join
        selection = data.query(expr, genes, modalities=modality or None, join=cells.value, order=order.value)
    elif modality or join:
        msg = f"--modality and --join are for MuData stores; {data.uri} is an AnnData store."
        raise InvalidArgumentError(msg)
    else:
        selection = data.query(expr, names, order=order.value)
    if out is not None:
        check_kind(out, is_mudata=isinstance(data, lz.MultimodalDataset))
    if explain:
        plan = selection.explain()
        typer.echo(json.dumps(plan.to_dict()) if as_json else str(plan))
        return
    told: dict[str, Any] = {"uri": data.uri, "expr": expr}
    if out is None:
        told["n_obs"] = selection.count()
    else:
        with cluster_of(scheduler) as client:
            told |= {"n_obs": save(selection, out, client, overwrite=overwrite), "out": str(out)}
    told |= {"requests": data.stats.n_requests, "bytes": data.stats.n_bytes}
    if as_json:
        typer.echo(json.dumps(told))
        return
    for note in selection.notes:
        typer.echo(note, err=True)
    found, read = f"{told['n_obs']:,} cells", f"({told['requests']:,} requests, {human_bytes(told['bytes'])})"
    where = f" → {shortened(str(out), WIDTH - len(found) - len(read) - 5)}" if out else ""
    typer.echo(f"{found}{where}  {read}")


def _by_modality(names: list[str] | None, modalities: list[str]) -> Any:
    """Share out genes that name their modality: ``rna:CD3D``."""
    owned = [name.partition(":") for name in names or () if name.partition(":")[0] in modalities]
    if not owned:
        return names
    if len(owned) < len(names or ()):
        msg = f"--var names genes with their modality and without; expected all of them as one of {modalities}:NAME."
        raise InvalidArgumentError(msg)
    return {owner: [name for o, _, name in owned if o == owner] for owner in dict.fromkeys(o for o, _, _ in owned)}


@app.command()
def sql(
    uri: Annotated[str, typer.Argument(help="A store: path or URI.")],
    query: Annotated[str, typer.Argument(help="SQL over obs and var.")],
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="out.parquet or out.csv; a table without.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    endpoint_url: Endpoint = None,
) -> None:
    """Run SQL over obs and var, reading only the columns that it names."""
    import lobster_zarr as lz

    if out is not None:
        check_output(out, TABLES, overwrite=overwrite)
    table = lz.open(uri, options_of(endpoint_url)).sql(query)
    if out is None:
        shown, n_left = drawn(table, shutil.get_terminal_size((WIDTH, 24)).columns)
        typer.echo(shown)
        if n_left:
            typer.echo(f"{n_left} more columns do not fit; -o out.csv writes all.", err=True)
        return
    with whole_file(out) as part:
        table.write_csv(part) if out.suffix == ".csv" else table.write_parquet(part)
    found = f"{table.height:,} rows"
    typer.echo(f"{found} → {shortened(str(out), WIDTH - len(found) - 3)}")


@app.command()
def export(
    uri: Annotated[str, typer.Argument(help="A store: path or URI.")],
    out: Annotated[Path, typer.Argument(help="The .h5ad or .h5mu to write.")],
    *,
    modality: Annotated[str | None, typer.Option(help="The one to write, of a MuData store.", metavar="NAME")] = None,
    compression: Annotated[Compression, typer.Option(help="Of the file.")] = Compression.gzip,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    endpoint_url: Endpoint = None,
) -> None:
    """Write a whole store back to an H5AD or H5MU."""
    import lobster_zarr as lz

    if out.suffix not in {".h5ad", ".h5mu"}:
        msg = f"cannot export to {out.name!r}: expected a name that ends in .h5ad or .h5mu."
        raise InvalidArgumentError(msg)
    path = lz.export(
        uri,
        out,
        modality=modality,
        compression=compression.value,
        overwrite=overwrite,
        storage_options=options_of(endpoint_url),
    )
    typer.echo(f"{shortened(str(path), WIDTH - 12)} ({human_bytes(path.stat().st_size)})")


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="A store: path or URI.")],
    *,
    against: Annotated[str | None, typer.Option(help="The source to compare with.", metavar="SRC")] = None,
    endpoint_url: Endpoint = None,
    scheduler: Scheduler = None,
) -> None:
    """Read every chunk of a store and check it; with --against, compare it with its source."""
    import lobster_zarr as lz

    with cluster_of(scheduler) as client:
        report = lz.verify(
            uri, None if against is None else _source(against), storage_options=options_of(endpoint_url), client=client
        )
    typer.echo(str(report))


@app.command()
def doctor(
    uri: Annotated[str, typer.Argument(help="A store or file: path or URI.")],
    *,
    fix: Annotated[
        str | None,
        typer.Option(help="Convert it to this place as proposed; tell before and after.", metavar="DEST"),
    ] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Tell what in the layout of a store makes queries slow, and what converting it would save."""
    import lobster_zarr as lz
    from lobster_zarr.doctor import repair

    options = options_of(endpoint_url)
    found = lz.doctor(uri, options)
    told = found if fix is None or found.healthy else repair(found, fix, options)
    typer.echo(json.dumps(told.to_dict()) if as_json else str(told))


app.command()(migrate)


@app.command()
def demo() -> None:
    """See the main job: an embedded S3, a real data set, one cell type and three genes."""
    from lobster_zarr.demo import run_demo

    run_demo()


def main() -> None:
    """Run the command line. Exit status 0; 2 with one line on standard error; 130 on Ctrl-C."""
    try:
        status = app(standalone_mode=False) or 0
    except USAGE_ERROR as error:
        status = _failed(error.format_message(), 2)
    except LobsterZarrError as error:
        status = _failed(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    if status == INTERRUPTED:  # also what typer makes of a KeyboardInterrupt
        _failed("interrupted; nothing half-written was left.", status)
        sys.stdout.flush()
        # A request that was cut off may yet end on a thread of the client's, and take Python's own end with it.
        os._exit(status)
    sys.exit(status)


def _failed(message: str, status: int) -> int:
    typer.echo(f"lobster-zarr: {' '.join(message.split())}", err=True)
    return status
