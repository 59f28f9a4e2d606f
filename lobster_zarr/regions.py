"""Remembers which region a bucket turned out to be in, for the life of the process.

Knows nothing but names: who asks S3 is another module's matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lobster_zarr.location import Access, Location

_own: dict[tuple[str | None, str], str] = {}  # by endpoint and bucket


def settled(where: Location, access: Access) -> Access:
    """Return the options with the bucket's own region, where a failure has told it before."""
    region = _own.get((access.endpoint_url, where.root)) if where.scheme == "s3" else None
    return replace(access, region=region) if region else access


def learn(where: Location, access: Access, region: str) -> Access:
    """Keep the region of a bucket for all that is opened from now on; return the options with it."""
    _own[access.endpoint_url, where.root] = region
    return settled(where, access)
