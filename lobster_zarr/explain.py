"""What a query will cost, before it is run: requests, bytes, seconds, money, memory.

Pure: renders a plan as a table, a picture of the chunks that are touched, and
plain values. What it counts is what is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from lobster_zarr.fetch import WINDOW_BYTES
from lobster_zarr.report import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lobster_zarr.byterange import Network

BAR_WIDTH = 32
ROUND_TRIPS = 3
"""Metadata; what the plan needs; the chunks."""
GET_DOLLARS = 0.0004 / 1000
"""S3 Standard, us-east-1, list price of 2026-11 for a GET request."""
EGRESS_DOLLARS = 0.09 / 1e9
"""To the internet, the same list, for each byte; nothing within the region."""
EXCESS = 3
"""So many times the bytes that are asked for are worth a note, if they are more than EXCESS_BYTES."""
EXCESS_BYTES = 1_000_000


def excess(path: str, n_bytes: int, asked_bytes: int, reasons: Sequence[str]) -> Iterator[str]:
    """Say, where much is read in vain, how much and why.

    Parameters
    ----------
    path
        Of the element.
    n_bytes, asked_bytes
        What is read, and about how much of it is asked for.
    reasons
        What the store lacks.
    """
    if reasons and n_bytes > max(EXCESS * asked_bytes, EXCESS_BYTES):
        times = f"{n_bytes / max(asked_bytes, 1):,.0f} times"
        yield f"{path}: {human_bytes(n_bytes)} for about {human_bytes(asked_bytes)} ({times}): {'; '.join(reasons)}"


@dataclass(frozen=True, eq=False)
class ArrayPlan:
    """What a query reads of one array.

    Parameters
    ----------
    path
        Of the array.
    n_requests, n_bytes
        What will be read; bytes are exact where `exact`.
    exact
        Whether the sizes of all that is read are known.
    chunk_ids : ndarray of int64
        Chunks that are touched.
    n_chunks
        Of the array in all.
    result_bytes
        Decoded size of what is wanted.
    """

    path: str
    n_requests: int
    n_bytes: int
    exact: bool
    chunk_ids: np.ndarray
    n_chunks: int
    result_bytes: int

    def bar(self) -> str:
        """Draw the array's chunks from first to last: ``█`` all touched, ``▒`` some, ``·`` none."""
        width = min(BAR_WIDTH, max(self.n_chunks, 1))
        edges = np.linspace(0, self.n_chunks, width + 1)
        touched = np.histogram(self.chunk_ids, bins=edges)[0]
        share = touched / np.maximum(np.diff(edges), 1e-9)
        return "".join("·" if s == 0 else "█" if s > 0.99 else "▒" for s in share)


@dataclass(frozen=True, eq=False)
class QueryPlan:
    """The cost of a query, before it is run. Made by ``Selection.explain()``.

    Parameters
    ----------
    uri
        The store.
    n_obs, n_vars
        Cells and genes of the result.
    arrays
        What is read of each array.
    layouts
        For each sparse matrix, the ways to read it and their bytes, the chosen first.
    network
        What the seconds assume.
    spent_requests, spent_bytes
        What planning itself has read: predicate columns and genes, offsets, shard indexes.
    notes
        What a reader should know: why a result is empty, what the store lacks.
    reordered
        Whether what was read in storage order comes back in another.
    """

    uri: str
    n_obs: int
    n_vars: int
    arrays: tuple[ArrayPlan, ...]
    layouts: dict[str, dict[str, int]]
    network: Network
    spent_requests: int
    spent_bytes: int
    notes: tuple[str, ...] = field(default=())
    reordered: bool = False

    @property
    def n_requests(self) -> int:
        """Requests that running the query sends."""
        return sum(a.n_requests for a in self.arrays)

    @property
    def n_bytes(self) -> int:
        """Bytes that running the query reads."""
        return sum(a.n_bytes for a in self.arrays)

    @property
    def exact(self) -> bool:
        """Whether requests and bytes are known, not estimated."""
        return all(a.exact for a in self.arrays)

    @property
    def seconds(self) -> float:
        """Time on the assumed network, for a store that was just opened."""
        total = self.n_bytes + self.spent_bytes
        return self.network.seconds(self.n_requests + self.spent_requests, total, ROUND_TRIPS)

    @property
    def dollars(self) -> float:
        """List price of the requests and of the egress to the internet."""
        return self.n_requests * GET_DOLLARS + self.n_bytes * EGRESS_DOLLARS

    @property
    def memory_bytes(self) -> int:
        """Peak memory: the result, once more where it is reordered, and the encoded bytes under way at once."""
        result_bytes = sum(a.result_bytes for a in self.arrays)
        return result_bytes * (2 if self.reordered else 1) + min(self.n_bytes, WINDOW_BYTES)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "uri": self.uri,
            "n_obs": self.n_obs,
            "n_vars": self.n_vars,
            "n_requests": self.n_requests,
            "n_bytes": self.n_bytes,
            "exact": self.exact,
            "seconds": self.seconds,
            "dollars": self.dollars,
            "memory_bytes": self.memory_bytes,
            "spent_requests": self.spent_requests,
            "spent_bytes": self.spent_bytes,
            "layouts": self.layouts,
            "notes": list(self.notes),
            "arrays": [
                {
                    "path": a.path,
                    "n_requests": a.n_requests,
                    "n_bytes": a.n_bytes,
                    "exact": a.exact,
                    "n_chunks_touched": len(a.chunk_ids),
                    "n_chunks": a.n_chunks,
                }
                for a in self.arrays
            ],
        }

    def _read(self) -> list[ArrayPlan]:
        """Arrays that cost a request; the others lie in the metadata."""
        return [a for a in self.arrays if a.n_requests]

    def _totals(self) -> str:
        network = f"{self.network.latency_seconds * 1000:.0f} ms, {self.network.bandwidth_bytes * 8 / 1e6:.0f} Mbit/s"
        about = "" if self.exact else "about "
        return (
            f"{self.n_obs:,} cells × {self.n_vars:,} genes: {about}{self.n_requests} requests, "
            f"{human_bytes(self.n_bytes)}, {self.seconds:.2f} s at {network}, ${self.dollars:.6f}, "
            f"memory {human_bytes(self.memory_bytes)}"
        )

    def _layout_lines(self) -> list[str]:
        lines = []
        for path, ways in self.layouts.items():
            if len(ways) > 1:
                priced = ", ".join(f"{name} {human_bytes(size)}" for name, size in ways.items())
                lines.append(f"{path}: {priced} → {next(iter(ways))}")
        return lines

    def __str__(self) -> str:
        lines = [self._totals()]
        for a in self._read():
            about = " " if a.exact else "~"
            lines.append(f"  {a.path:<30} {a.n_requests:>4} {about}{human_bytes(a.n_bytes):>9}  {a.bar()}")
        lines += [f"  {line}" for line in (*self._layout_lines(), *self.notes)]
        lines.append(f"  (planning read {human_bytes(self.spent_bytes)} in {self.spent_requests} requests)")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{escape(a.path)}</code></td><td style='text-align:right'>{a.n_requests}</td>"
            f"<td style='text-align:right'>{human_bytes(a.n_bytes)}</td>"
            f"<td style='font-family:monospace;letter-spacing:-1px'>{a.bar()}</td></tr>"
            for a in self._read()
        )
        notes = "".join(f"<div style='opacity:.7'>{escape(n)}</div>" for n in (*self._layout_lines(), *self.notes))
        return (
            f"<div style='font-family:system-ui,sans-serif'><b>{escape(self._totals())}</b>"
            "<table><thead><tr><th>array</th><th>requests</th><th>bytes</th><th>chunks touched</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>{notes}</div>"
        )
