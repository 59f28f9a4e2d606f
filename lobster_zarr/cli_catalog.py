"""The command ``ls``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lobster_zarr.cli_options import AsJson, Endpoint, options_of


def ls(
    uri: Annotated[str, typer.Argument(help="s3://bucket, s3://bucket/prefix or a local folder.")],
    *,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """List the stores and files below a prefix or folder, and what they hold."""
    import lobster_zarr as lz

    found = lz.catalog(uri, options_of(endpoint_url))
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))
