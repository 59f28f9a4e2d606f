"""The commands ``bucket create | describe | iam-policy | lifecycle | restrict | log-to | …``.

Must not hold logic of its own: each command is one call of `lobster_zarr.bucket`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobster_zarr.cli_options import AsJson, Endpoint, options_of
from lobster_zarr.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(name="bucket", help="Make, configure, watch and copy buckets of S3.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A bucket: its name, or s3://name.")]
Target = Annotated[str, typer.Argument(help="The other bucket.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would change, and change nothing.")]


class Actions(StrEnum):
    """What a policy is for."""

    read = "read"
    write = "write"
    admin = "admin"


def _tell(report: Any, *, as_json: bool) -> None:
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))


@app.command()
def create(
    name: Name,
    *,
    region: Annotated[
        str | None, typer.Option(help="Where it is to lie; that of the environment by default.", metavar="NAME")
    ] = None,
    kms_key: Annotated[str | None, typer.Option(help="Encrypt by this KMS key, not by AES256.", metavar="ARN")] = None,
    tls_only: Annotated[bool, typer.Option("--tls-only", help="Refuse requests over plain http.")] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Make a bucket that is encrypted, versioned and closed to the public."""
    from lobster_zarr import bucket

    options = options_of(endpoint_url)
    _tell(
        bucket.create(name, region, kms_key=kms_key, tls_only=tls_only, storage_options=options),
        as_json=as_json,
    )


@app.command()
def describe(name: Name, *, endpoint_url: Endpoint = None, as_json: AsJson = False) -> None:
    """Tell how a bucket is configured, and what of that is unsafe."""
    from lobster_zarr import bucket

    _tell(bucket.describe(name, options_of(endpoint_url)), as_json=as_json)


@app.command()
def iam_policy(
    name: Name,
    *,
    prefix: Annotated[str | None, typer.Option(help="Only what lies below it.", metavar="PREFIX")] = None,
    actions: Annotated[Actions, typer.Option(help="What it allows; write reads too.")] = Actions.read,
    versions: Annotated[bool, typer.Option("--versions", help="Old versions too.")] = False,
    kms_key: Annotated[str | None, typer.Option(help="The KMS key that encrypts.", metavar="ARN")] = None,
) -> None:
    """Print the IAM policy with exactly the actions that are needed, as JSON. No request."""
    from lobster_zarr import bucket

    policy = bucket.iam_policy(name, prefix, actions.value, versions=versions, kms_key=kms_key)
    typer.echo(json.dumps(policy, indent=2))


@app.command()
def lifecycle(
    name: Name,
    *,
    file: Annotated[
        Path | None, typer.Option(help="Rules as S3 has them, as JSON; in place of what follows.", metavar="JSON")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Name of a rule.", metavar="ID")] = None,
    prefix: Annotated[str, typer.Option(help="Of the keys that it is for.", metavar="PREFIX")] = "",
    tier: Annotated[
        list[str] | None, typer.Option(help="Move to a class after days; repeatable.", metavar="CLASS=DAYS")
    ] = None,
    expire: Annotated[int | None, typer.Option(help="Delete after days.", metavar="DAYS")] = None,
    noncurrent: Annotated[int | None, typer.Option(help="Delete old versions after days.", metavar="DAYS")] = None,
    abort: Annotated[int | None, typer.Option(help="Delete parts of unfinished uploads.", metavar="DAYS")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Allow GLACIER and DEEP_ARCHIVE.")] = False,
    dry_run: DryRun = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Move to cheaper classes and delete, by age; rules of other names stay."""
    from lobster_zarr import bucket

    if (file is None) == (rule is None):
        msg = "A lifecycle needs --file with rules, or --rule with the name of one and what it does."
        raise InvalidArgumentError(msg)
    rules = _document(file) if file else bucket.Rule(rule or "", prefix, _days(tier or ()), expire, noncurrent, abort)
    options = options_of(endpoint_url)
    _tell(bucket.lifecycle(name, rules, archive=archive, dry_run=dry_run, storage_options=options), as_json=as_json)


def _days(tiers: Sequence[str]) -> dict[str, int]:
    pairs = [text.partition("=") for text in tiers]
    for text, (_, _, days) in zip(tiers, pairs, strict=True):
        if not days.isdecimal():
            msg = f"--tier is {text!r}, expected CLASS=DAYS, such as STANDARD_IA=30."
            raise InvalidArgumentError(msg)
    if len({storage_class for storage_class, _, _ in pairs}) < len(pairs):
        msg = f"--tier is given twice for a class ({', '.join(tiers)}), expected once for each."
        raise InvalidArgumentError(msg)
    return {storage_class: int(days) for storage_class, _, days in pairs}


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"The rules in {path} cannot be read ({error}); expected JSON such as {{'Rules': […]}}."
        raise InvalidArgumentError(msg) from error


@app.command()
def restrict(
    name: Name,
    *,
    tls_only: Annotated[bool, typer.Option("--tls-only", help="Refuse requests over plain http.")] = False,
    ip: Annotated[
        list[str] | None, typer.Option(help="Refuse requests from outside this network; repeatable.", metavar="CIDR")
    ] = None,
    caller_ip: Annotated[str | None, typer.Option(help="Your address, as S3 sees it.", metavar="ADDRESS")] = None,
    lock_out: Annotated[bool, typer.Option("--lock-out", help="Also where it may lock you out.")] = False,
    dry_run: DryRun = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Refuse requests without TLS, or from elsewhere than some networks."""
    from lobster_zarr import bucket

    change = bucket.restrict(
        name,
        tls_only=tls_only,
        ip_ranges=ip or (),
        caller_ip=caller_ip,
        lock_out=lock_out,
        dry_run=dry_run,
        storage_options=options_of(endpoint_url),
    )
    _tell(change, as_json=as_json)


@app.command()
def log_to(
    name: Name,
    target: Target,
    *,
    prefix: Annotated[str, typer.Option(help="Of the logs' keys.", metavar="PREFIX")] = "access-logs/",
    dry_run: DryRun = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Have S3 log the requests to a bucket into another one."""
    from lobster_zarr import bucket

    options = options_of(endpoint_url)
    _tell(bucket.log_to(name, target, prefix, dry_run=dry_run, storage_options=options), as_json=as_json)


@app.command()
def analyze_logs(
    source: Annotated[str, typer.Argument(help="S3's access logs: s3://bucket/prefix, a folder or a file.")],
    *,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Add up access logs: requests, bytes and errors by operation, requester, store and day."""
    from lobster_zarr import bucket

    _tell(bucket.analyze_logs(source, options_of(endpoint_url)), as_json=as_json)


@app.command()
def replicate_to(
    name: Name,
    target: Target,
    *,
    role: Annotated[str, typer.Option(help="The IAM role that S3 takes on to copy.", metavar="ARN")],
    prefix: Annotated[str, typer.Option(help="Of the keys that are copied.", metavar="PREFIX")] = "",
    storage_class: Annotated[str | None, typer.Option(help="Of the copies.", metavar="CLASS")] = None,
    dry_run: DryRun = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Have S3 copy what is written from now on to another bucket."""
    from lobster_zarr import bucket

    change = bucket.replicate_to(
        name,
        target,
        role,
        prefix=prefix,
        storage_class=storage_class,
        dry_run=dry_run,
        storage_options=options_of(endpoint_url),
    )
    _tell(change, as_json=as_json)


@app.command()
def replicate(
    source: Annotated[str, typer.Argument(help="A store, a prefix or a file: s3://bucket/…")],
    destination: Annotated[str, typer.Argument(help="The name of the copy: s3://bucket/…")],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there and differs.")] = False,
    region: Annotated[str | None, typer.Option(help="Of the destination.", metavar="NAME")] = None,
    storage_class: Annotated[str | None, typer.Option(help="Of the copy.", metavar="CLASS")] = None,
    dry_run: DryRun = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Copy what is there now, compare it, and go on where a copy broke off."""
    from lobster_zarr import bucket

    options = options_of(endpoint_url)
    report = bucket.replicate(
        source,
        destination,
        options,
        destination_options=options | {"region": region, "storage_class": storage_class},
        overwrite=overwrite,
        dry_run=dry_run,
    )
    _tell(report, as_json=as_json)
