"""What a query will cost, before it is run: requests, bytes, seconds, money, memory.

Pure: renders a plan as a table, a picture of the chunks that are touched, and
plain values. What it counts is what is fetched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lobster_zarr.errors import UnsupportedError
from lobster_zarr.fetch import WINDOW_BYTES
from lobster_zarr.markup import bar, body, box, figures, heading, name, notes, section, table, tag
from lobster_zarr.report import human_bytes
from lobster_zarr.touched import Lane, draw, line, strip
from lobster_zarr.typeset import aligned, human_seconds, shortened, titled, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from matplotlib.axes import Axes

    from lobster_zarr.byterange import Network
    from lobster_zarr.markup import Markup

ROUND_TRIPS = 3
"""Metadata; what the plan needs; the chunks."""
GET_DOLLARS = 0.0004 / 1000
"""S3 Standard, us-east-1, list price of 2026-11 for a GET request."""
EGRESS_DOLLARS = 0.09 / 1e9
"""To the internet, the same list, for each byte; nothing within the region."""
EXCESS = 3
"""So many times the bytes that are asked for are worth a note, if they are more than EXCESS_BYTES."""
EXCESS_BYTES = 1_000_000
MOST_SHOWN = 12
"""Of more arrays those that cost least are told together."""
MOST_LANES = 24
"""As many arrays does a figure show, those that cost most."""


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
    chunks_per_axis
        Of the array's grid; empty of a scalar.
    result_bytes
        Decoded size of what is wanted.
    """

    path: str
    n_requests: int
    n_bytes: int
    exact: bool
    chunk_ids: np.ndarray
    chunks_per_axis: tuple[int, ...]
    result_bytes: int

    @property
    def n_chunks(self) -> int:
        """Chunks of the array in all."""
        return math.prod(self.chunks_per_axis)

    def bar(self) -> str:
        """Draw the array's chunks from first to last: ``█`` all touched, ``▒`` some, ``·`` none."""
        return line(self.chunk_ids, self.chunks_per_axis)

    def told(self) -> str:
        """Say how many chunks are touched, and how many bytes that is."""
        about = "" if self.exact else "about "
        chunks = f"{len(self.chunk_ids):,} of {self.n_chunks:,} chunks"
        return f"{chunks}, {about}{human_bytes(self.n_bytes)}"


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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw which chunks are touched: a lane for each array, from its first chunk to its last. Needs matplotlib.

        Parameters
        ----------
        ax
            Where to draw; None for a new figure (``plan.plot().figure``).

        Returns
        -------
        matplotlib.axes.Axes
            Of an array of several axes the chunks along the first run across, the others lie under them. Of more
            than 24 arrays those that cost most are drawn.

        Raises
        ------
        UnsupportedError
            matplotlib is not installed.
        """
        lanes = [Lane(shortened(a.path, 40), a.told(), a.chunk_ids, a.chunks_per_axis) for a in self._read(MOST_LANES)]
        try:
            drawn = draw(lanes, ax)
        except ModuleNotFoundError as error:
            msg = "plan.plot() needs matplotlib, which is not installed; install it with: pip install matplotlib"
            raise UnsupportedError(msg) from error
        n_left = len(self._read()) - len(lanes)
        left = f"; {n_left:,} more arrays not drawn" if n_left else ""
        title = f"{self.n_obs:,} cells × {self.n_vars:,} genes: {self._cost()}{left}"
        drawn.set_title(title, loc="left", fontsize="medium")
        return drawn

    def _read(self, most: int | None = None) -> list[ArrayPlan]:
        """Return the arrays that cost something, of more than `most` the dearest; others lie in the metadata."""
        read = [a for a in self.arrays if a.n_requests or a.n_bytes]
        dearest = set(map(id, sorted(read, key=lambda a: -a.n_bytes)[:most]))
        return [a for a in read if id(a) in dearest]

    def _network(self) -> str:
        return f"{self.network.latency_seconds * 1000:.0f} ms, {self.network.bandwidth_bytes * 8 / 1e6:.0f} Mbit/s"

    def _cost(self) -> str:
        about = "" if self.exact else "about "
        return f"{about}{self.n_requests:,} requests, {human_bytes(self.n_bytes)}, {human_seconds(self.seconds)}"

    def _layout_lines(self) -> list[str]:
        lines = []
        for path, ways in self.layouts.items():
            if len(ways) > 1:
                priced = ", ".join(f"{way} {human_bytes(size)}" for way, size in ways.items())
                lines.append(f"{path}: {priced} → {next(iter(ways))}")
        return lines

    def _spent(self) -> str:
        return f"Planning read {human_bytes(self.spent_bytes)} in {self.spent_requests:,} requests"

    def __str__(self) -> str:
        lines = titled(f"{self.n_obs:,} cells × {self.n_vars:,} genes", self.uri)
        more = f"at {self._network()}, ${self.dollars:.6f}, memory {human_bytes(self.memory_bytes)}"
        lines += wrapped(f"  {self._cost()} {more}", 2)
        shown, rest = self._read(MOST_SHOWN), self._rest()
        told = [(a.path, f"{a.n_requests:,}", ("" if a.exact else "~") + human_bytes(a.n_bytes)) for a in shown]
        told += [_together(rest)] if rest else []
        pictures = [*(a.bar() for a in shown), *([""] if rest else [])]
        lines += aligned([(*t, p) for t, p in zip(told, pictures, strict=True)], {1, 2}, (0,)) if told else []
        remarks = *self._layout_lines(), *self.notes, f"({self._spent()})"
        return "\n".join([*lines, *(line for remark in remarks for line in wrapped(f"  {remark}", 4))])

    def _rest(self) -> list[ArrayPlan]:
        shown = set(map(id, self._read(MOST_SHOWN)))
        return [a for a in self._read() if id(a) not in shown]

    def _repr_html_(self) -> str:
        about = "" if self.exact else "~"
        told = figures(
            (f"{about}{self.n_requests:,}", "requests"),
            (f"{about}{human_bytes(self.n_bytes)}", "to read"),
            (human_seconds(self.seconds), f"at {self._network()}"),
            (f"${self.dollars:.6f}" if self.dollars < 0.01 else f"${self.dollars:,.2f}", "requests and egress"),
            (human_bytes(self.memory_bytes), "memory at most"),
        )
        rest, in_metadata = self._rest(), len(self.arrays) - len(self._read())
        parts = [self._rows(self._read(MOST_SHOWN), named=True)]
        if rest:
            note = f"{sum(a.n_requests for a in rest):,} requests, {human_bytes(sum(a.n_bytes for a in rest))}"
            names = [a.path for a in rest]
            parts.append(section(f"{len(rest):,} more arrays", note, self._rows(rest), is_open=False, names=names))
        parts += [self._layouts_html(path, ways) for path, ways in self.layouts.items() if len(ways) > 1]
        free = f"; {in_metadata:,} arrays lie in the metadata" if in_metadata else ""
        remarks = notes(self.notes), notes([f"{self._spent()}{free}."], "plain")
        head = heading("QueryPlan", f"{self.n_obs:,} cells × {self.n_vars:,} genes", self.uri)
        return box(str(self), head, told, body(*parts, *remarks))

    def _rows(self, arrays: Sequence[ArrayPlan], *, named: bool = False) -> Markup:
        most = max((a.n_bytes for a in self.arrays), default=0)
        rows = [
            (
                name(a.path),
                strip(a.chunk_ids, a.chunks_per_axis),
                f"{len(a.chunk_ids):,} of {a.n_chunks:,}",
                f"{a.n_requests:,}",
                f"{'' if a.exact else '~'}{human_bytes(a.n_bytes)}",
                bar(a.n_bytes / max(most, 1)),
            )
            for a in arrays
        ]
        heads = ("array", "chunks touched, from first to last", "chunks", "requests", "bytes", "")
        return table(heads if named else [""] * 6, (26, 34, 14, 9, 10, 8), rows, {2, 3, 4}) if rows else tag("div")

    def _layouts_html(self, path: str, ways: dict[str, int]) -> Markup:
        chosen, most = next(iter(ways)), max(*ways.values(), 1)
        rows = [
            (
                name(path) if way == chosen else "",
                f"{way}, chosen" if way == chosen else way,
                human_bytes(n_bytes),
                bar(n_bytes / most, "good" if way == chosen else "warm"),
            )
            for way, n_bytes in ways.items()
        ]
        return section("layouts", f"of {path}", table([""] * 4, (25, 21, 12, 42), rows, {2}), is_open=True)


def _together(arrays: Sequence[ArrayPlan]) -> tuple[str, str, str]:
    n_requests, n_bytes = sum(a.n_requests for a in arrays), sum(a.n_bytes for a in arrays)
    return f"({len(arrays):,} more)", f"{n_requests:,}", human_bytes(n_bytes)
