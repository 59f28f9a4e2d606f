"""What a URI and its `storage_options` say: where a store is, and with whose credentials.

Knows schemes, s3fs's option names and the AWS environment. No secret appears in
a text that it makes. Must not open anything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lobster_zarr import credentials, errors
from lobster_zarr.cache import user_folder
from lobster_zarr.credentials import Keys, Provider
from lobster_zarr.placement import Placement
from lobster_zarr.redact import keep_out_of_logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_REGION = "us-east-1"
_SCHEMES = ("s3", "gs", "az", "http", "https", "memory", "file")
# Two letters at least, so that a Windows drive is a path; one slash is enough, as pathlib.Path leaves one.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
_CONNECT_SECONDS, _STALL_SECONDS, _ATTEMPTS = 5, 30, 6


@dataclass(frozen=True)
class Location:
    """A parsed URI; `root` is a path, a bucket, a host, or the name of a memory store."""

    scheme: str
    root: str
    prefix: str = ""
    userinfo: str = field(default="", repr=False)
    query: str = field(default="", repr=False)

    @classmethod
    def of(cls, uri: str | os.PathLike[str]) -> Self:
        """Parse a URI of any kind; `check` judges it."""
        text = os.fsdecode(uri)
        match = _URI.fullmatch(text)
        scheme = match[1].lower() if match else ""
        scheme = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
        if match is None or (scheme not in _SCHEMES and match[2] == "/"):
            return cls("file", str(Path(text).expanduser()) if text else "")
        if scheme == "file":
            return cls("file", url2pathname("/" + match[3].removeprefix("localhost/").lstrip("/")))
        rest, _, query = match[3].partition("?")
        if scheme == "memory":
            return cls(scheme, rest.strip("/"), query=query)
        authority, _, path = rest.partition("/")
        userinfo, _, root = authority.rpartition("@")
        return cls(scheme, root, path.strip("/"), userinfo, query)

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.root
        return f"{self.scheme}://{self.root}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def url(self) -> str:
        """The URI in full, secrets and all."""
        login, query = f"{self.userinfo}@" if self.userinfo else "", f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{login}{self.root}/{self.prefix}{query}"

    @property
    def is_secret(self) -> bool:
        """Whether the URI in full holds a password or a signature."""
        return bool(self.query or self.userinfo)

    def check(self) -> None:
        """Refuse what cannot be opened, and credentials where they would be shown."""
        if self.scheme not in _SCHEMES:
            raise errors.InvalidArgumentError(
                f"Cannot open a {self.scheme!r} URI, expected a local path or one of {', '.join(_SCHEMES)}."
                f"{errors.did_you_mean(self.scheme, _SCHEMES)}"
            )
        if not self.root:
            raise errors.InvalidArgumentError(f"The URI {str(self)!r} is not whole, expected s3://bucket/name.")
        if self.scheme not in {"http", "https"} and (self.userinfo or self.query):
            raise errors.InvalidArgumentError(
                f"The URI of {self} holds credentials or a query, expected {self.scheme}://bucket/name. "
                "Pass credentials in storage_options or the environment."
            )
        if self.prefix:
            check_key(self.prefix)


@dataclass(frozen=True)
class Access:
    """`storage_options`, with the environment's endpoint and region. Fields without repr are secret."""

    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    anon: bool = False
    profile: str | None = None
    requester_pays: bool = False
    region: str | None = None
    verify: bool | str = True
    allow_http: bool = False
    sse: str | None = None
    sse_kms_key_id: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None
    accelerate: bool = False
    connect_timeout: float | None = None
    read_timeout: float | None = None
    max_attempts: int | None = None
    cache: str | None = None
    cache_max_bytes: int | None = None
    offline: bool = False

    @classmethod
    def of(cls, storage_options: Mapping[str, Any] | None) -> Self:
        """Read and check `storage_options`."""
        given = {name: value for name, value in (storage_options or {}).items() if value is not None}
        client = dict(given.pop("client_kwargs", {}))
        _check_names("storage_options", given, [f.name for f in fields(cls)] + ["client_kwargs"])
        _check_names("client_kwargs", client, ["region_name", "endpoint_url", "verify"])
        if "region_name" in client:
            client["region"] = client.pop("region_name")
        env = os.environ.get
        found = {
            "endpoint_url": env("AWS_ENDPOINT_URL_S3") or env("AWS_ENDPOINT_URL"),
            "region": env("AWS_REGION") or env("AWS_DEFAULT_REGION"),
        }
        access = cls(**found | client | given | _cache(given))
        if bool(access.key) != bool(access.secret):
            raise errors.InvalidArgumentError("storage_options has one of key and secret, expected both.")
        access.placement.check()
        access._check_patience()
        return access

    def _check_patience(self) -> None:
        for name in ("connect_timeout", "read_timeout", "max_attempts"):
            value = getattr(self, name)
            whole = name != "max_attempts" or isinstance(value, int)
            if value is not None and not (isinstance(value, int | float) and value > 0 and whole):
                expected = "a count of at least 1" if name == "max_attempts" else "seconds, more than 0"
                raise errors.InvalidArgumentError(f"{name} in storage_options is {value!r}, expected {expected}.")

    @property
    def placement(self) -> Placement:
        """How objects are to be written."""
        return Placement(self.sse, self.sse_kms_key_id, self.bucket_key, self.storage_class)

    @property
    def connect_seconds(self) -> float:
        """How long a connection may take."""
        return self.connect_timeout or _CONNECT_SECONDS

    @property
    def stall_seconds(self) -> float:
        """How long an answer may stand still."""
        return self.read_timeout or _STALL_SECONDS

    @property
    def attempts(self) -> int:
        """How often a request is made before it has failed."""
        return self.max_attempts or _ATTEMPTS

    def public(self) -> dict[str, Any]:
        """The fields that may be shown and sent."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}

    def secrets(self) -> dict[str, str]:
        """The fields that were given and may not be."""
        secret = {f.name: getattr(self, f.name) for f in fields(self) if not f.repr}
        return {name: value for name, value in secret.items() if value is not None}

    def check_endpoint(self) -> None:
        """Refuse what is no endpoint, or would send secrets in the clear."""
        parts = urlsplit(self.endpoint_url or "https://aws")
        shown = display_uri(self.endpoint_url or "")
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
            raise errors.InvalidArgumentError(f"The endpoint is {shown!r}, expected https://host[:port].")
        if parts.scheme == "http" and not (self.allow_http or _is_loopback(parts.hostname)):
            raise errors.InvalidArgumentError(
                f"The endpoint {shown!r} would carry everything unencrypted, expected https. "
                "If the network is your own, pass allow_http=True in storage_options."
            )

    def check_accelerated(self, bucket: str) -> None:
        """Refuse transfer acceleration where there is none."""
        if self.accelerate and (self.endpoint_url or "." in bucket):
            what = "another endpoint" if self.endpoint_url else f"{bucket!r}, whose name has a dot"
            raise errors.InvalidArgumentError(f"Transfer acceleration is not for {what}. Leave out accelerate.")

    def keys(self) -> Keys | None:
        """Those of the options, else of the environment, else None (boto3 is to find them)."""
        if self.key and self.secret:
            return Keys(self.key, self.secret, self.token)
        env = os.environ.get
        key, secret = env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")
        return Keys(key, secret, env("AWS_SESSION_TOKEN")) if key and secret and not self.profile else None

    def session(self) -> Any:
        """A boto3 session of these credentials; what it writes has the bucket key that `bucket_key` says."""
        session = credentials.session(self.keys(), self.region, self.profile)
        self.placement.ask_for_bucket_key(session.events)
        return session

    def provider(self) -> tuple[Provider, str | None]:
        """A credential provider for obstore, and the region that the profile names.

        Fixed keys go this way too: in its config, obstore would join them to
        the session token of the environment.
        """
        keys, session = self.keys(), self.session()
        return Provider((lambda: keys) if keys else credentials.chain(session)), session.region_name

    def client(self, *, attempts: int | None = None) -> Any:
        """A boto3 S3 client with all that these options say; the caller closes it.

        Parameters
        ----------
        attempts
            How often a request is made, where not as `max_attempts` says.

        Raises
        ------
        CredentialsError
            There are no credentials, or they could not be renewed.
        """
        from botocore import UNSIGNED
        from botocore.config import Config

        session = self.session()
        if not self.anon:
            credentials.chain(session)()  # renewed here if need be, where the failure is explained
        style = {"use_accelerate_endpoint": True} if self.accelerate else {}
        config = Config(
            connect_timeout=self.connect_seconds,
            read_timeout=self.stall_seconds,
            retries={"total_max_attempts": attempts or self.attempts, "mode": "standard"},
            s3={"addressing_style": "path" if self.endpoint_url else "auto", **style},
            signature_version=UNSIGNED if self.anon else None,
        )
        client = session.client(
            "s3",
            region_name=session.region_name or DEFAULT_REGION,
            endpoint_url=self.endpoint_url,
            verify=self.verify,
            config=config,
        )
        keep_out_of_logs()
        return client

    def put_arguments(self, n_bytes: int | None = None) -> dict[str, Any]:
        """What boto3's `put_object` and `upload_file` (as ``ExtraArgs``) need besides bucket, key and content.

        `bucket_key` is not among them, as `upload_file` refuses it: clients of `session` send it by themselves.

        Parameters
        ----------
        n_bytes
            Size of the object: below 128 KiB an infrequent-access class costs more than STANDARD, which is then used.
        """
        payer = {"RequestPayer": "requester"} if self.requester_pays else {}
        return self.placement.for_boto3(n_bytes) | payer


def _cache(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say where bytes are kept: a folder of this machine, True for the user's own, or False."""
    cache: Any = given.get("cache", os.environ.get("LOBSTER_ZARR_CACHE"))
    if cache is None or cache is False or cache == "":
        return {"cache": None}
    if cache is True:
        cache = str(user_folder())
    if not isinstance(cache, str | os.PathLike) or Location.of(cache).scheme != "file":
        shown = display_uri(cache) if isinstance(cache, str) else repr(cache)
        raise errors.InvalidArgumentError(f"The cache is {shown!r}, expected a folder of this machine, True or False.")
    path = os.fsdecode(cache)
    n_bytes = getattr(cache, "max_bytes", given.get("cache_max_bytes"))
    if n_bytes is not None and (type(n_bytes) is not int or n_bytes < 1):
        msg = f"cache_max_bytes is {n_bytes!r}, expected bytes; lobster_zarr.Cache(path, max_bytes='20GB') takes text."
        raise errors.InvalidArgumentError(msg)
    # The home of whoever it is sent to, on another machine.
    return {"cache": path if path.startswith("~") else str(Path(path).absolute()), "cache_max_bytes": n_bytes}


def _check_names(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            hint = errors.did_you_mean(name, known)
            raise errors.InvalidArgumentError(f"Unknown {where} {name!r}, expected {', '.join(known)}.{hint}")


def check_key(key: str) -> None:
    """Refuse a key that is not names joined by slashes."""
    if "\\" in key or any(segment in {"", ".", ".."} for segment in key.split("/")):
        raise errors.InvalidArgumentError(
            f"The key {key!r} may leave its store, expected names joined by single slashes, without '..'."
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def display_uri(uri: str | os.PathLike[str]) -> str:
    """The URI as fit for messages: no user, password, query (presigned signatures) or trailing slash."""
    return str(Location.of(uri))


def is_local(uri: str | os.PathLike[str]) -> bool:
    """Whether the URI is a path of this machine."""
    return Location.of(uri).scheme == "file"


def local_path(uri: str | os.PathLike[str]) -> Path:
    """The path of a local URI, ``~`` expanded.

    Raises
    ------
    InvalidArgumentError
        The URI is not local.
    """
    where = Location.of(uri)
    if where.scheme != "file":
        raise errors.InvalidArgumentError(f"{where} is not a local path, expected one. Copy it here first.")
    return Path(where.root)
