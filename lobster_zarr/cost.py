"""What a store on S3 costs a month: its storage, and a use that is described, against downloading it whole.

What a query reads is what its plan says. Must not know the prices themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from lobster_zarr.byterange import Network
from lobster_zarr.doctor import cost_of_opening
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from lobster_zarr.listing import named_objects
from lobster_zarr.location import Access
from lobster_zarr.loop import run
from lobster_zarr.multimodal import MultimodalDataset
from lobster_zarr.multimodal import open as open_store
from lobster_zarr.place import place
from lobster_zarr.placement import BILLED_FROM_BYTES, INFREQUENT, NOT_AT_ONCE
from lobster_zarr.prices import Prices
from lobster_zarr.refusal import LIST
from lobster_zarr.report import human_bytes
from lobster_zarr.s3client import s3_client
from lobster_zarr.typeset import aligned, titled, wrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

_ARCHIVED_BYTES, _ARCHIVED_STANDARD_BYTES = 32 << 10, 8 << 10
"""Of an object in an archive its index is billed too: so much there, and so much as STANDARD."""


@dataclass(frozen=True)
class Holding:
    """Objects of one storage class.

    Parameters
    ----------
    storage_class
        As S3 names it.
    n_objects, n_bytes
        How many, and their sizes in all.
    billed_bytes
        What S3 bills of that: an object in an infrequent-access class as 128 KiB at least.
    n_monitored
        Of ``INTELLIGENT_TIERING``: objects of 128 KiB and more, which are charged for one by one.
    """

    storage_class: str
    n_objects: int
    n_bytes: int
    billed_bytes: int
    n_monitored: int = 0

    @classmethod
    def of(cls, storage_class: str, sizes: Iterable[int]) -> Holding:
        """Add up objects of the given sizes."""
        least = BILLED_FROM_BYTES if storage_class in INFREQUENT else 0
        more = _ARCHIVED_BYTES if storage_class in NOT_AT_ONCE else 0
        n_objects = n_bytes = billed = monitored = 0
        for size in sizes:
            n_objects, n_bytes, billed = n_objects + 1, n_bytes + size, billed + max(size, least) + more
            monitored += storage_class == "INTELLIGENT_TIERING" and size >= BILLED_FROM_BYTES
        return cls(storage_class, n_objects, n_bytes, billed, monitored)


@dataclass(frozen=True)
class Use:
    """Something that is done so many times a month.

    Parameters
    ----------
    per_month
        How often.
    query
        Which cells, as of ``Dataset.query``; it is planned. None where requests and bytes are given.
    var
        Which genes, of a query; all by default.
    n_requests, n_bytes
        What it takes once, where it is not planned.
    """

    per_month: float
    query: Any = None
    var: Any = None
    n_requests: int | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class StorageCost:
    """What objects of one class cost a month, and cost to write once."""

    storage_class: str
    n_objects: int
    n_bytes: int
    billed_bytes: int
    dollars: float
    written_dollars: float


@dataclass(frozen=True)
class UseCost:
    """What a use costs a month; requests and bytes are those of one time."""

    label: str
    per_month: float
    n_requests: int
    n_bytes: int
    request_dollars: float
    retrieval_dollars: float
    egress_dollars: float

    @property
    def dollars(self) -> float:
        """All of it."""
        return self.request_dollars + self.retrieval_dollars + self.egress_dollars


@dataclass(frozen=True)
class CostReport:
    """What is stored, what is done with it, and what both cost a month.

    Parameters
    ----------
    uri
        What it is about.
    prices_of
        Month and region of the list prices.
    storage
        By storage class.
    uses
        One by one.
    download
        The same as often, each time by downloading the whole: a request an object.
    notes
        What is not in it, and what a reader should know.
    """

    uri: str
    prices_of: str
    storage: tuple[StorageCost, ...]
    uses: tuple[UseCost, ...]
    download: UseCost | None
    notes: tuple[str, ...] = ()

    @property
    def storage_dollars(self) -> float:
        """Storage, a month."""
        return sum(held.dollars for held in self.storage)

    @property
    def use_dollars(self) -> float:
        """All uses, a month."""
        return sum(use.dollars for use in self.uses)

    @property
    def dollars(self) -> float:
        """A month, in all."""
        return self.storage_dollars + self.use_dollars

    @property
    def written_dollars(self) -> float:
        """The requests that wrote it, once."""
        return sum(held.written_dollars for held in self.storage)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        names = ("storage_dollars", "use_dollars", "dollars", "written_dollars")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        lines = [*titled("Cost a month", self.uri), f"  at prices of {self.prices_of}"]
        held = [
            (h.storage_class, f"{h.n_objects:,}", *map(human_bytes, (h.n_bytes, h.billed_bytes))) for h in self.storage
        ]
        rows = [(*row, _money(h.dollars)) for row, h in zip(held, self.storage, strict=True)]
        lines += aligned([("storage", "objects", "size", "billed", "a month"), *rows], {1, 2, 3, 4}, (0,))
        uses = [*self.uses, *([self.download] if self.download else [])]
        if uses:
            heads = ("use", "times", "requests", "bytes", "requests $", "egress $", "a month")
            told = [
                (
                    use.label,
                    f"{use.per_month:g}",
                    f"{use.n_requests:,}",
                    human_bytes(use.n_bytes),
                    _money(use.request_dollars + use.retrieval_dollars),
                    _money(use.egress_dollars),
                    _money(use.dollars),
                )
                for use in uses
            ]
            lines += aligned([heads, *told], {1, 2, 3, 4, 5, 6}, (0,))
        lines.append(f"  {_money(self.dollars)} a month in all; {_money(self.written_dollars)} to write it, once")
        return "\n".join([*lines, *(line for note in self.notes for line in wrapped(f"  {note}", 4))])


def _money(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 0.1 or not dollars else f"${dollars:.2g}"


def cost(
    uri: str | os.PathLike[str],
    queries: Mapping[str, float] | Sequence[Use] = (),
    storage_options: Mapping[str, Any] | None = None,
    *,
    whole_bytes: int | None = None,
    egress: bool = True,
    prices: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> CostReport:
    """Price a store, a file or all below a prefix, and a use of it.

    One request for 1,000 objects; a query is planned as from cold, opening included, which reads what
    its plan needs.

    Parameters
    ----------
    uri
        ``s3://bucket/key`` or ``s3://bucket/prefix``.
    queries
        How often a month each condition is asked: ``{"cell_type == 'T cell'": 100}``; or `Use` of anything else.
    storage_options
        As for :func:`lobster_zarr.open`.
    whole_bytes
        Size of the file that would be downloaded instead; by default of all that lies there.
    egress
        Whether it is read from outside AWS. Within the region of the bucket bytes cost nothing.
    prices
        What to put in the place of the list prices: see `Prices.of`.

    Returns
    -------
    CostReport
        Of list prices without discounts of volume, nor what AWS gives for nothing.

    Raises
    ------
    NotFoundError
        There is nothing.
    InvalidArgumentError
        A use that is none, or prices that are none.
    StorageError
        S3 refused or failed.
    """
    table, where, access = Prices.of(prices), place(uri), Access.of(storage_options)
    if where.scheme != "s3":
        raise UnsupportedError(f"Cannot price {where}, expected s3://bucket/key.")
    asked = [Use(n, query) for query, n in queries.items()] if isinstance(queries, Mapping) else list(queries)
    for use in asked:
        _check(use)
    sizes: dict[str, list[int]] = defaultdict(list)
    with s3_client(where, access, LIST) as client:
        for entry in named_objects(client, where, access):
            sizes[entry.get("StorageClass", "STANDARD")].append(entry["Size"])
    if not sizes:
        raise NotFoundError(f"There is nothing at {where}. Check the path.")
    holdings = [Holding.of(name, found) for name, found in sizes.items()]
    planned = [_planned(str(where), use, storage_options) for use in asked]
    return estimate(str(where), holdings, planned, table, whole_bytes=whole_bytes, egress=egress)


def _check(use: object) -> None:
    if not isinstance(use, Use) or (use.n_requests is not None and use.n_bytes is not None) == (use.query is not None):
        raise InvalidArgumentError(f"{use!r} is no use, expected a query, or n_requests and n_bytes of one time.")
    for name in ("per_month", "n_requests", "n_bytes"):
        value = getattr(use, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value < inf):
            raise InvalidArgumentError(f"{name} of a use is {value!r}, expected a number, zero or more.")


def _planned(uri: str, use: Use, storage_options: Mapping[str, Any] | None) -> tuple[str, Use]:
    if use.query is None:
        return "as given", use
    data = open_store(uri, storage_options)  # a fresh one: what others have read would cost nothing
    root = data.reader.root if isinstance(data, MultimodalDataset) else data.reader
    opening, _ = run(cost_of_opening(root, Network()))
    plan = data.query(use.query, use.var).explain()
    n_requests = opening.n_requests + data.stats.n_requests + plan.n_requests
    n_bytes = opening.n_bytes + data.stats.n_bytes + plan.n_bytes
    return str(use.query), Use(use.per_month, use.query, use.var, n_requests, n_bytes)


def estimate(
    uri: str,
    holdings: Sequence[Holding],
    uses: Sequence[tuple[str, Use]],
    prices: Prices,
    *,
    whole_bytes: int | None = None,
    egress: bool = True,
) -> CostReport:
    """Price what is held and done. No request.

    Parameters
    ----------
    uri
        What it is about.
    holdings
        What is stored, by class.
    uses
        What is done, each with a name; with requests and bytes. Both are shared out to the classes by their bytes.
    prices
        The table.
    whole_bytes, egress
        As of `cost`.
    """
    storage = tuple(_stored(held, prices) for held in sorted(holdings, key=lambda held: -held.n_bytes))
    priced = tuple(_used(label, use, holdings, prices, egress=egress) for label, use in uses)
    times = sum(use.per_month for _, use in uses)
    held_bytes = sum(held.n_bytes for held in holdings)
    n_objects = 1 if whole_bytes is not None else sum(held.n_objects for held in holdings)
    whole = Use(times, None, None, n_objects, held_bytes if whole_bytes is None else whole_bytes)
    download = _used("(download of all)", whole, holdings, prices, egress=egress) if uses else None
    classes = {held.storage_class for held in holdings}
    notes = []
    if "INTELLIGENT_TIERING" in classes:
        notes.append("INTELLIGENT_TIERING at its frequent tier: what is not read for 30 days costs less.")
    if classes & NOT_AT_ONCE:
        notes.append("What is in an archive has to be restored before it is read, at the price of requests of its own.")
    return CostReport(uri, f"{prices.region}, {prices.as_of}", storage, priced, download, tuple(notes))


def _stored(held: Holding, prices: Prices) -> StorageCost:
    price = prices.classes[held.storage_class]
    dollars = held.billed_bytes / prices.gb_bytes * price.storage_gb + held.n_monitored / 1000 * prices.monitoring_1000
    if held.storage_class in NOT_AT_ONCE:
        index_bytes = held.n_objects * _ARCHIVED_STANDARD_BYTES
        dollars += index_bytes / prices.gb_bytes * prices.classes["STANDARD"].storage_gb
    written = held.n_objects / 1000 * price.put_1000
    return StorageCost(held.storage_class, held.n_objects, held.n_bytes, held.billed_bytes, dollars, written)


def _used(label: str, use: Use, holdings: Sequence[Holding], prices: Prices, *, egress: bool) -> UseCost:
    n_requests, n_bytes = use.n_requests or 0, use.n_bytes or 0
    total = sum(held.n_bytes for held in holdings) or 1
    shares = [(prices.classes[held.storage_class], held.n_bytes / total) for held in holdings]
    read_gb = use.per_month * n_bytes / prices.gb_bytes
    return UseCost(
        label=label,
        per_month=use.per_month,
        n_requests=n_requests,
        n_bytes=n_bytes,
        request_dollars=use.per_month * n_requests / 1000 * sum(price.get_1000 * share for price, share in shares),
        retrieval_dollars=read_gb * sum(price.retrieval_gb * share for price, share in shares),
        egress_dollars=read_gb * prices.egress_gb if egress else 0.0,
    )
