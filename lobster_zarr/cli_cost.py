"""The command ``cost``. Must not hold logic of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lobster_zarr.cli_options import AsJson, Endpoint, options_of
from lobster_zarr.errors import InvalidArgumentError


def cost(
    uri: Annotated[str, typer.Argument(help="A store, a file or a prefix: s3://bucket/…")],
    *,
    query: Annotated[list[str] | None, typer.Option(help="Which cells are asked for; repeatable.")] = None,
    var: Annotated[
        str | None, typer.Option(help="Their genes, comma separated; all by default.", metavar="A,B")
    ] = None,
    per_month: Annotated[float, typer.Option(help="How often a month each of them is.", metavar="N")] = 1.0,
    requests: Annotated[int | None, typer.Option(help="Of a use that is no query: requests.", metavar="N")] = None,
    n_bytes: Annotated[str | None, typer.Option("--bytes", help="And bytes, as 10MB.", metavar="SIZE")] = None,
    whole_bytes: Annotated[
        str | None, typer.Option(help="Size of the file that would be downloaded instead.", metavar="SIZE")
    ] = None,
    egress: Annotated[bool, typer.Option("--egress/--no-egress", help="Whether it is read from outside AWS.")] = True,
    prices: Annotated[Path | None, typer.Option(help="JSON or TOML with prices of your own.", metavar="FILE")] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a store or prefix costs a month: storage, and a use of it against downloading it."""
    import lobster_zarr as lz
    from lobster_zarr.cost import Use
    from lobster_zarr.report import parse_size

    if (requests is None) != (n_bytes is None):
        msg = "--requests and --bytes describe one use together: pass both."
        raise InvalidArgumentError(msg)
    genes = [name.strip() for name in var.split(",") if name.strip()] if var is not None else None
    uses = [Use(per_month, text, genes) for text in query or ()]
    if requests is not None and n_bytes is not None:
        uses.append(Use(per_month, n_requests=requests, n_bytes=parse_size(n_bytes, "--bytes")))
    report = lz.cost(
        uri,
        uses,
        options_of(endpoint_url),
        whole_bytes=parse_size(whole_bytes, "--whole-bytes") if whole_bytes else None,
        egress=egress,
        prices=prices,
    )
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
