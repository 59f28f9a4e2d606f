"""A shaped loopback S3 in a process of its own, and the figures that show its shaping is true.

Knows how to start, ask and stop `benchmarks.server`. Must not know what is read from it.

>>> with shaped_s3(root, latency_seconds=0.02, bandwidth_bits=100e6) as server:  # doctest: +SKIP
...     lz.open("s3://bucket/atlas.zarr", storage_options=server.storage_options)
...     server.counters().n_requests
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.origin import Nginx
from benchmarks.verdict import judge, print_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import S3Store


@dataclass(frozen=True)
class Counters:
    """What the server saw: requests of any kind, bytes of bodies sent and received, its own CPU time.

    `log` holds (method, ``bucket/key``, range header or None) in the order of arrival.
    """

    n_requests: int
    body_bytes: int
    received_bytes: int
    cpu_seconds: float
    log: list[tuple[str, str, str | None]] = field(repr=False)


class ShapedS3:
    """A running server; made by `shaped_s3`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{self._read()['port']}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for `lobster_zarr.open`; the server checks no signature."""
        return {"key": "x", "secret": "x", "endpoint_url": self.endpoint}

    def store(self, bucket: str, prefix: str | None = None) -> S3Store:
        """Return an obstore S3Store on a bucket, that is a directory under the root."""
        from obstore.store import S3Store

        return S3Store(
            bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            access_key_id="x",
            secret_access_key="x",
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def reset(self) -> None:
        """Set every counter to nought."""
        self._ask("reset")

    def counters(self) -> Counters:
        """Return what was seen since the last `reset`; asking is not a request."""
        seen = self._ask("counters")
        return Counters(**seen | {"log": [tuple(entry) for entry in seen["log"]]})

    def _ask(self, command: str) -> dict[str, Any]:
        print(command, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise ConnectionError(f"the benchmark server ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def shaped_s3(
    root: str | Path,
    latency_seconds: float = 0.0,
    bandwidth_bits: float = math.inf,
    *,
    writable: bool = False,
    nginx: bool | None = None,
) -> Iterator[ShapedS3]:
    """Serve ``root/bucket/key`` as S3 while the block runs.

    Parameters
    ----------
    root
        Directory whose sub-directories are the buckets.
    latency_seconds
        From the request's arrival to the first byte of its answer.
    bandwidth_bits
        Bits a second that the bodies of all connections share, each way.
    writable
        Whether objects can be put and deleted.
    nginx
        Whether an nginx reads the files, of one that is not writable; None: where there is one.

    Yields
    ------
    ShapedS3
        The running server. It ends with the block, or with this process however that ends.
    """
    nginx = Nginx.found() is not None if nginx is None else nginx
    module = f"benchmarks.{'writable' if writable else 'relay' if nginx else 'server'}"
    with subprocess.Popen(
        [sys.executable, "-m", module, str(Path(root).resolve()), str(latency_seconds), str(bandwidth_bits)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield ShapedS3(process)
        finally:
            process.communicate()  # the end of its input ends it, and its nginx


@dataclass(frozen=True)
class Load:
    """One measurement: so many ranged GETs of so many bytes, so many at once, on such a line."""

    name: str
    latency_seconds: float
    bandwidth_bits: float
    connections: int
    n_requests: int
    request_bytes: int


LOADS = (
    Load("20 ms, 100 Mbit/s, 64 at once", 0.02, 100e6, 64, 256, 256 * 1024),
    Load("20 ms, 100 Mbit/s, 8 at once", 0.02, 100e6, 8, 64, 1024 * 1024),
    Load("20 ms, 100 Mbit/s, 1 at once", 0.02, 100e6, 1, 4, 8 * 1024 * 1024),
    Load("20 ms, 1 Gbit/s, 64 at once", 0.02, 1e9, 64, 512, 1024 * 1024),
    Load("20 ms, tiny ranges, 1 at once", 0.02, 100e6, 1, 50, 16),
    Load("unshaped, tiny ranges, 64 at once", 0.0, math.inf, 64, 10_000, 16),
    Load("unshaped, 4 MiB ranges, 16 at once", 0.0, math.inf, 16, 512, 4 * 1024 * 1024),
)
OBJECT_BYTES = 64 * 1024 * 1024


async def _read_ranges(store: S3Store, load: Load) -> None:
    import obstore

    starts = iter(range(load.n_requests))

    async def connection() -> None:
        for i in starts:
            start = i * load.request_bytes % (OBJECT_BYTES - load.request_bytes)
            await obstore.get_range_async(store, "object", start=start, length=load.request_bytes)

    await asyncio.gather(*(connection() for _ in range(load.connections)))


def measure(root: Path, load: Load, *, nginx: bool) -> dict[str, float]:
    """Run one load against a fresh server over ``root/bench/object``, after one warm-up request."""
    with shaped_s3(root, load.latency_seconds, load.bandwidth_bits, nginx=nginx) as server:
        store = server.store("bench")
        store.get_range("object", start=0, length=1)
        server.reset()
        start = time.perf_counter()
        asyncio.run(_read_ranges(store, load))
        seconds = time.perf_counter() - start
        seen = server.counters()
    return {
        "seconds": seconds,
        "megabits_per_second": seen.body_bytes * 8 / seconds / 1e6,
        "requests_per_second": seen.n_requests / seconds,
        "milliseconds_per_request": seconds / seen.n_requests * load.connections * 1e3,
        "server_cpu_percent": seen.cpu_seconds / seconds * 100,
    }


def main() -> int:
    """Print the throughput, the time of a request and the server's CPU share; status 1 if it is not what was set."""
    headings = ("s", "Mbit/s", "requests/s", "ms a request", "server CPU %")
    table = Table(title="The shaped loopback S3")
    table.add_column("load", no_wrap=True)
    table.add_column("files by", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    bars: list[tuple[str, float, str, float]] = []
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "bench", "object")
        path.parent.mkdir()
        path.write_bytes(os.urandom(OBJECT_BYTES))
        for load, nginx in product(LOADS, (True, False) if Nginx.found() else (False,)):
            figures = measure(Path(root), load, nginx=nginx)
            by = "nginx" if nginx else "asyncio"
            table.add_row(load.name, by, *(f"{figure:,.2f}" for figure in figures.values()))
            if load is LOADS[0]:
                bars += [
                    (f"Mbit/s, {by}", figures["megabits_per_second"], *bound) for bound in ((">=", 95), ("<=", 105))
                ]
    console = Console()
    # Piped output has no width of its own; 80 columns would cut the figures.
    console.width = max(console.width, 100)
    console.print(table)
    judged = judge(bars)
    print_bars(console, judged)
    return int(not all(bar["passed"] for bar in judged))


if __name__ == "__main__":
    sys.exit(main())
