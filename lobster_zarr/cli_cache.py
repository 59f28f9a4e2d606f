"""The commands of the cache: ``lobster-zarr cache info | clear | prefetch``.

Must not hold logic of its own: each command is one call of the Python interface.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lobster_zarr.cli_options import AsJson, CacheFolder, Endpoint, options_of

cache_app = typer.Typer(name="cache", help="What is kept on this machine of what was read.", no_args_is_help=True)


Size = Annotated[str, typer.Option("--max-bytes", help="What it may hold.", metavar="SIZE")]


@cache_app.command()
def info(*, cache: CacheFolder = None, max_bytes: Size = "10GB", as_json: AsJson = False) -> None:
    """Show what is in the cache."""
    import lobster_zarr as lz

    told = lz.Cache(cache, max_bytes).info()
    typer.echo(json.dumps(told.to_dict()) if as_json else str(told))


@cache_app.command()
def clear(
    uri: Annotated[str | None, typer.Argument(help="A store or file; everything without.")] = None,
    *,
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Drop what the cache has of a store or file, or everything; show what is left."""
    import lobster_zarr as lz

    told = lz.Cache(cache).clear(uri)
    typer.echo(json.dumps(told.to_dict()) if as_json else str(told))


@cache_app.command()
def prefetch(
    uri: Annotated[str, typer.Argument(help="A store or file: URI.")],
    *,
    where: Annotated[str | None, typer.Option(help="Which cells; all of it without.", metavar="EXPR")] = None,
    var: Annotated[str | None, typer.Option(help="Genes, comma separated.", metavar="A,B")] = None,
    cache: CacheFolder = None,
    max_bytes: Size = "10GB",
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Bring a query, or a whole store or file, into the cache."""
    import lobster_zarr as lz

    names = [v.strip() for v in var.split(",") if v.strip()] if var is not None else None
    told = lz.prefetch(uri, where, names, cache=lz.Cache(cache, max_bytes), storage_options=options_of(endpoint_url))
    typer.echo(json.dumps(told.to_dict()) if as_json else str(told))
