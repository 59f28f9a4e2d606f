"""Reduces the blocks of a selection on the workers of a dask.distributed cluster.

Knows how partial results are put together there. Must not know what is computed.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SPLIT_EVERY = 8
"""Partial results that one task puts together."""


def reduce_on[T](
    client: Any,
    shared: Any,
    cuts: Sequence[tuple[int, int]],
    reduce_block: Callable[[Any, int, int], T],
    join: Callable[[Sequence[T]], T],
) -> T:
    """Reduce every block in a task, and put the partial results together on the workers.

    Parameters
    ----------
    client
        To compute with.
    shared
        What every task needs; sent to a worker once.
    cuts
        Start and stop of each block.
    reduce_block
        From `shared`, start and stop to a partial result.
    join
        From some partial results, in the order of their blocks, to one.

    Raises
    ------
    Exception
        Whatever a task raised; what is under way is cancelled then, and on an interrupt.
    """
    from dask.delayed import delayed

    token = uuid.uuid4().hex
    sent: Any = delayed(shared, name=f"shared-{token}", traverse=False)
    reduced, joined = delayed(reduce_block, traverse=False), delayed(join)
    parts = [reduced(sent, *cut, dask_key_name=f"block-{token}-{cut[0]}") for cut in cuts]
    while len(parts) > 1:
        parts = [joined(parts[i : i + SPLIT_EVERY]) for i in range(0, len(parts), SPLIT_EVERY)]
    future = client.compute(parts[0])
    try:
        result: T = future.result()
    except BaseException:  # an interrupt too: nobody waits for the result any more
        future.cancel()
        raise
    return result
