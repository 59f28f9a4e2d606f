"""The command ``lobster-zarr migrate``: one call of the Python interface. Must not hold logic of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lobster_zarr.cli_options import (
    AsJson,
    Codec,
    CodecProfile,
    Endpoint,
    GeneMajor,
    MemoryLimit,
    Sse,
    SseKey,
    StorageClass,
    options_of,
    placement_of,
)


def migrate(
    folder: Annotated[Path, typer.Argument(help="A local folder of .h5ad, .h5mu and Zarr stores.")],
    dest: Annotated[str, typer.Argument(help="Where to: s3://bucket/prefix.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy each file as it is instead of converting it.")] = False,
    others: Annotated[bool, typer.Option("--others", help="Copy other files too.")] = False,
    sort_by: Annotated[
        list[str] | None, typer.Option(help="Group the rows by this obs column where there is one; repeatable.")
    ] = None,
    gene_major: GeneMajor = None,
    codec: CodecProfile = Codec.small,
    memory_limit: MemoryLimit = "2GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there and is not it.")] = False,
    delete_local: Annotated[
        bool, typer.Option("--delete-local", help="Delete each local copy once it was verified; asks on a terminal.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    sse: Sse = None,
    sse_kms_key_id: SseKey = None,
    storage_class: StorageClass = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Move a folder to S3: convert or copy each file, compare it, and do the rest when run again."""
    import lobster_zarr as lz

    if delete_local and not (dry_run or yes) and sys.stdin.isatty():
        typer.confirm(f"Delete each file of {folder} once what arrived was compared with it?", abort=True, err=True)
    try:
        report = lz.migrate(
            folder,
            dest,
            convert=not copy,
            others=others,
            sort_by=sort_by or [],
            gene_major="auto" if gene_major is None else gene_major,
            codec=codec.value,
            memory_limit=memory_limit,
            overwrite=overwrite,
            delete_local=delete_local,
            dry_run=dry_run,
            storage_options=options_of(endpoint_url) | placement_of(sse, sse_kms_key_id, storage_class),
        )
    except KeyboardInterrupt as stopped:
        typer.echo("\n".join(getattr(stopped, "__notes__", ())), err=True)
        raise
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if report.failed:
        names = ", ".join(file.name for file in report.failed)
        typer.echo(f"lobster-zarr: {len(report.failed):,} of {len(report.files):,} failed: {names}.", err=True)
        raise typer.Exit(2)
