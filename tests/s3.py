"""An S3 server of the test's own: moto's, on loopback, in a process of its own.

Knows how to start one, fill it and turn its access control on. The server
ends with the block that started it; where that is killed, with its standard
input; and in any case after `LIFETIME_SECONDS`. Must not know of lobster_zarr.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

LIFETIME_SECONDS = 3600
_REGION = "us-east-1"
_PROGRAM = f"""
import logging, os, sys, threading
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # an unread pipe of request lines would fill and block
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
watchdog = threading.Timer({LIFETIME_SECONDS}, os._exit, [1])
watchdog.daemon = True
watchdog.start()
sys.stdin.read()
os._exit(0)
"""


@dataclass(frozen=True)
class S3Server:
    """A running server; any key is accepted unless `enforced_access` is on."""

    endpoint: str
    key: str = "test-key"
    secret: str = "test-secret"

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": _REGION},
        }

    def client(self, service: str = "s3") -> Any:
        """A boto3 client, the oracle of what is in the server."""
        return _client(self, service)

    def bucket(self, name: str) -> str:
        """Make a bucket, if need be, and give back its ``s3://`` URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def user(self, name: str, *actions: str) -> dict[str, str]:
        """Make a user who may do these actions (as IAM names them) anywhere: its key and secret."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        if actions:
            allowed = '","'.join(actions)
            statement = f'{{"Effect": "Allow", "Action": ["{allowed}"], "Resource": "*"}}'
            policy = f'{{"Version": "2012-10-17", "Statement": [{statement}]}}'
            iam.put_user_policy(UserName=name, PolicyName="allowed", PolicyDocument=policy)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return {"key": made["AccessKeyId"], "secret": made["SecretAccessKey"]}

    @contextlib.contextmanager
    def enforced_access(self) -> Iterator[None]:
        """Within the block keys, signatures and policies are checked, as S3 does."""
        self._unchecked_actions("0")
        try:
            yield
        finally:
            self._unchecked_actions("inf")

    def _unchecked_actions(self, count: str) -> None:
        request = urllib.request.Request(  # noqa: S310  loopback
            f"{self.endpoint}/moto-api/reset-auth",
            data=count.encode(),
            headers={"Content-Type": "text/plain"},  # as a form, the server would read no body
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@functools.cache
def _client(server: S3Server, service: str) -> Any:
    """One for all that ask: making it takes longer than most of what it is asked for."""
    return boto3.client(
        service,
        endpoint_url=server.endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name=_REGION,
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server on a free port of 127.0.0.1; it has ended when the block is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"moto's server did not start (status {process.wait(10)})")
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate(timeout=10)
