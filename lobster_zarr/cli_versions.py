"""The commands ``versions`` and ``rollback``."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from lobster_zarr.cli_options import AsJson, Endpoint, options_of
from lobster_zarr.errors import ConflictError, InvalidArgumentError


def versions(
    uri: Annotated[str, typer.Argument(help="A store, .h5ad or .h5mu on S3: URI.")],
    *,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a store or file, in a bucket that keeps versions."""
    import lobster_zarr as lz

    found = lz.versions(uri, options_of(endpoint_url))
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))


def rollback(
    uri: Annotated[str, typer.Argument(help="A store, .h5ad or .h5mu on S3: URI.")],
    version: Annotated[str, typer.Argument(help="As `versions` lists it.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and change nothing.")] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the current one again; what is current stays as a version."""
    import lobster_zarr as lz

    options = options_of(endpoint_url)
    if not yes and not dry_run:
        if not sys.stdin.isatty():
            msg = "rollback asks before it changes anything, and here is nobody to ask: pass --yes or --dry-run."
            raise InvalidArgumentError(msg)
        typer.echo(str(lz.rollback(uri, version, options, dry_run=True)), err=True)
        if not typer.confirm("Roll back?", err=True):
            typer.echo("nothing was changed.", err=True)
            raise typer.Exit(1)
    try:
        report = lz.rollback(uri, version, options, dry_run=dry_run)
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", ()):  # it had begun
            raise ConflictError(f"interrupted: {note}") from error
        raise
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
