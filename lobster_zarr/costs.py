"""What the reads of a selection cost, and which of it the layout of the store makes dearer.

Must not send a request.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lobster_zarr.errors import BudgetError
from lobster_zarr.explain import ROUND_TRIPS, ArrayPlan, excess
from lobster_zarr.plan import ArrayRead
from lobster_zarr.prediction import after_conversion
from lobster_zarr.report import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lobster_zarr.element import Layout, StoreReader
    from lobster_zarr.explain import QueryPlan
    from lobster_zarr.fetch import Fetcher
    from lobster_zarr.projection import Axis


def excesses(data: StoreReader, ways: Mapping[str, Sequence[Layout]], rows: Axis, columns: Axis) -> Iterator[str]:
    """Say of each sparse matrix what its layout makes the query read in vain, where that is much."""
    for path, layouts in ways.items():
        reader = data.sparse(path)
        whole = data.fetcher.price([ArrayRead(reader.values), ArrayRead(reader.indices)])[1]
        by_gene = not path.startswith("obsp/")
        shares = [rows.count(reader.shape[0]) / max(reader.shape[0], 1)]
        shares.append(columns.count(reader.shape[1]) / max(reader.shape[1], 1) if by_gene else shares[0])
        n_runs = 1 if rows.runs is None else len(rows.runs.starts)
        lacks = [f"the cells lie in {n_runs:,} places (convert with sort_by)"] if n_runs > 1 else []
        if by_gene and columns.runs is not None and not data.has_companion(path):
            lacks.append("it is not stored by gene (convert with gene_major)")
        if not math.prod(reader.values.grid.chunks_per_shard) > 1 and not data.fetcher.strict:
            lacks.append("its chunks are large (convert it)")
        yield from excess(path, layouts[0].n_bytes, int(whole * shares[0] * shares[1]), lacks)


async def once_converted(data: StoreReader, reads: Sequence[ArrayRead], rows: Axis, columns: Axis) -> list[str]:
    """Say of a raw file what its matrix would take of a converted store, where that is less. No request."""
    own = [read for read in reads if read.node.path.startswith(f"{data.tree.root}X")]
    if data.tree.container != "hdf5" or not own:
        return []
    n_rows, n_genes = (
        None if axis.runs is None else axis.count(table.n_rows)
        for axis, table in ((rows, data.obs), (columns, data.var))
    )
    n_requests, n_bytes = await after_conversion(data, n_rows, n_genes)
    if n_bytes >= data.fetcher.price(own)[1]:
        return []
    seconds = data.fetcher.network.seconds(n_requests, n_bytes, ROUND_TRIPS)
    told = f"about {n_requests} requests, {human_bytes(n_bytes)}, {seconds:.2f} s"
    together = "" if n_rows is None else " and sorted so that these cells lie together"
    return [f"X, once converted{together}: {told} (see `lobster-zarr doctor`)"]


def check_budget(plan: QueryPlan, max_bytes: int | None, memory_limit: int | None) -> None:
    """Refuse a query over budget.

    Raises
    ------
    BudgetError
        It needs more than `max_bytes` or `memory_limit`.
    """
    for name, limit, cost in (
        ("max_bytes", max_bytes, plan.n_bytes),
        ("memory_limit", memory_limit, plan.memory_bytes),
    ):
        if limit is not None and cost > limit:
            msg = (
                f"the query on {plan.uri} would need {human_bytes(cost)}, over {name}={human_bytes(limit)} "
                f"({plan.n_obs:,} cells × {plan.n_vars:,} genes); narrow it, or raise the limit."
            )
            raise BudgetError(msg)


def array_plan(fetcher: Fetcher, read: ArrayRead) -> ArrayPlan:
    """Say what a read costs, as far as it is known."""
    plan = fetcher.plan(read)
    n_bytes, exact = fetcher.expected_bytes(read, plan)
    node = read.node
    n_requests, chunks = len(fetcher.sent(plan)), node.grid.chunks_per_axis
    return ArrayPlan(node.path, n_requests, n_bytes, exact, read.chunk_ids, chunks, read.result_bytes)
