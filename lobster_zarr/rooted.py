"""Where the paths of a backend lie, and with which credentials S3 is asked for them.

Shows no secret: not in its configuration as shown, its text or its pickle. Must
not know what lies there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr.address import KeptOptions
from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.location import Access, Location, display_uri
from lobster_zarr.place import is_s3, place

if TYPE_CHECKING:
    type PathLike = str | os.PathLike[str]

logger = logging.getLogger(__name__)
_MASK = "***"


class Rooted:
    """A base that relative paths are relative to, and the options of S3.

    Parameters
    ----------
    base_path
        A local folder or ``s3://bucket/prefix``. None for the bucket of `configure_s3`, else the
        working directory.
    """

    def __init__(self, base_path: PathLike | None = None) -> None:
        self.base_path = None if base_path is None else os.fspath(base_path)
        self.bucket: str | None = None
        self._options: KeptOptions | None = None

    def configure_s3(
        self,
        bucket: str,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        endpoint_url: str | None = None,
        **storage_options: Any,
    ) -> None:
        """Say which bucket relative paths lie in, and with which credentials S3 is asked.

        Parameters
        ----------
        bucket
            Its name.
        region, access_key, secret_key, session_token, endpoint_url
            None for what the environment, a profile or a role gives.
        **storage_options
            More, as for :func:`lobster_zarr.open`.

        Raises
        ------
        InvalidArgumentError
            What cannot name a bucket, or an option that there is not.
        """
        where = Location.of(f"s3://{bucket}")
        where.check()
        if where.prefix or where.root != bucket:
            msg = f"{bucket!r} does not name a bucket; expected its name alone. A prefix goes into base_path."
            raise InvalidArgumentError(msg)
        named = {
            "region": region,
            "key": access_key,
            "secret": secret_key,
            "token": session_token,
            "endpoint_url": endpoint_url,
        }
        options = storage_options | {key: value for key, value in named.items() if value is not None}
        Access.of(options).check_endpoint()
        self.bucket, self._options = bucket, KeptOptions(options)
        logger.info("S3 bucket %s is configured", bucket)

    @property
    def s3_config(self) -> dict[str, Any]:
        """What is configured; secrets are masked."""
        access = Access.of(self._options.given() if self._options else None)
        shown = access.public()
        endpoint = shown.pop("endpoint_url")
        masked = {
            "access_key": access.key and _MASK,
            "secret_key": access.secret and _MASK,
            "session_token": access.token and _MASK,
        }
        known = {"bucket": self.bucket, "region": shown.pop("region") if self.bucket else None, **masked}
        if self.bucket is None:
            return known
        return {**known, "endpoint_url": endpoint and display_uri(endpoint), **shown}

    def __repr__(self) -> str:
        base = None if self.base_path is None else display_uri(self.base_path)
        return f"{type(self).__name__}(base_path={base!r}, bucket={self.bucket!r})"

    def _is_s3_path(self, path: PathLike) -> bool:
        """Whether a path is an S3 URI by itself."""
        return is_s3(path)

    def _place(self, path: PathLike) -> Location:
        bucket = None if self.bucket is None else f"s3://{self.bucket}"
        return place(path, bucket if self.base_path is None else self.base_path)

    def _storage_options(self, where: Location) -> dict[str, Any] | None:
        return self._options.given() if self._options and where.scheme == "s3" else None

    def _is_cached(self, where: Location) -> bool:
        """Whether what is read there is kept on this machine."""
        return where.scheme == "s3" and bool(Access.of(self._storage_options(where)).cache)

    def validate_path(self, path: PathLike) -> str | Path:
        """Return where a path lies: a local one absolute, any other as a URI.

        Raises
        ------
        InvalidArgumentError
            It is empty, or leaves `base_path` by ``..``.
        """
        where = self._place(path)
        return Path(where.root) if where.scheme == "file" else str(where)
