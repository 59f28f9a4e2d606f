"""Finds AWS credentials along boto3's chain, and hands them to obstore while they last.

Knows profiles, SSO, roles, instance and container metadata by what botocore calls
their failures. Must not know of URIs or stores.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from lobster_zarr import errors
from lobster_zarr.redact import keep_out_of_logs

if TYPE_CHECKING:
    from collections.abc import Callable

NO_CREDENTIALS = (
    "No usable AWS credentials, expected key and secret in storage_options, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or a profile. `aws sts get-caller-identity` tells what is found, `aws configure` sets "
    "them up. For a public bucket pass anon=True in storage_options."
)
_HANDED_SECONDS = 360
"""obstore asks anew once less than 300 s are left: every minute, which is cheap while botocore's own are good."""


class Keys(NamedTuple):
    """What signs a request."""

    key: str
    secret: str
    token: str | None


def session(keys: Keys | None, region: str | None, profile: str | None) -> Any:
    """Return a boto3 session of these keys, else of a profile, else of whatever the chain finds.

    Raises
    ------
    CredentialsError
        There is no such profile.
    """
    import boto3
    import botocore.session
    from botocore.exceptions import ProfileNotFound

    profile = None if keys else profile
    core = botocore.session.get_session()
    try:
        made = boto3.Session(*(keys or ()), region_name=region, profile_name=profile, botocore_session=core)
        core.register_component("data_loader", _models(core.get_config_variable("data_path")))
    except ProfileNotFound as error:
        name = profile or os.environ.get("AWS_PROFILE", "")
        raise errors.CredentialsError(
            f"No AWS profile {name!r}, expected one of the AWS configuration or credentials file. "
            "Run `aws configure --profile NAME`, or pass key and secret in storage_options."
        ) from error
    keep_out_of_logs(keys or ())
    return made


@functools.cache
def _models(folders: str | None) -> Any:
    """Return what reads botocore's descriptions of AWS: once for all sessions (90 ms, of 100 for a client)."""
    from botocore.loaders import create_loader

    return create_loader(folders)


def chain(made: Any) -> Callable[[], Keys]:
    """Return what gives a session's credentials, renewed whenever they are about to expire.

    Raises
    ------
    CredentialsError
        There are none; of the returned function, that they could not be renewed.
    """
    profile = made.profile_name
    found = _explained(made.get_credentials, profile)
    if found is None:
        raise errors.CredentialsError(NO_CREDENTIALS)

    def frozen() -> Keys:
        now = _explained(found.get_frozen_credentials, profile)
        keys = Keys(now.access_key, now.secret_key, now.token)
        keep_out_of_logs(keys)
        return keys

    return frozen


def _explained(ask: Callable[[], Any], profile: str) -> Any:
    from botocore import exceptions as refusals

    try:
        return ask()
    except (refusals.SSOError, refusals.TokenRetrievalError) as error:
        raise errors.CredentialsError(
            f"The SSO session of the profile {profile!r} is missing or has expired. "
            f"Run `aws sso login --profile {profile}`."
        ) from error
    except refusals.LoginError as error:
        raise errors.CredentialsError(
            f"The login of the profile {profile!r} is missing or has expired. Run `aws login --profile {profile}`."
        ) from error
    except refusals.ClientError as error:  # of STS or SSO: nothing was asked of S3 yet
        code = error.response["Error"]["Code"]
        raise errors.CredentialsError(
            f"AWS does not give the credentials of the profile or role ({error.operation_name}: {code}). "
            "Check its trust policy and its token with `aws sts get-caller-identity`."
        ) from error
    except refusals.NoCredentialsError as error:
        raise errors.CredentialsError(NO_CREDENTIALS) from error
    except refusals.PartialCredentialsError as error:
        raise errors.CredentialsError(
            f"The credentials of the environment or of the profile {profile!r} are not whole, expected "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or both keys in the profile. `aws sts get-caller-identity` "
            "tells what is found, `aws configure` sets them up."
        ) from error
    except (refusals.BotoCoreError, RuntimeError) as error:  # RuntimeError: those renewed had expired as well
        raise errors.CredentialsError(
            f"The credentials of the profile {profile!r}, or of the role of this machine, could not be had or renewed. "
            "`aws sts get-caller-identity` tells more."
        ) from error


@dataclass
class Provider:
    """Gives obstore credentials whenever it asks, and remembers which."""

    find: Callable[[], Keys] = field(repr=False)
    handed: Keys | None = field(default=None, repr=False)

    def __call__(self) -> dict[str, Any]:
        """Return credentials in obstore's form."""
        self.handed = self.find()
        return {
            "access_key_id": self.handed.key,
            "secret_access_key": self.handed.secret,
            "token": self.handed.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_HANDED_SECONDS),
        }
