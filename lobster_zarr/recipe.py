"""A selection as the tasks of a graph carry it: what was asked, not the positions that this came to.

Small, and without credentials. A process that loads it resolves the axes
once, however many tasks use it. Must not know what a task does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobster_zarr.projection import Axis, Order
    from lobster_zarr.reading import Reading


class Recipe:
    """What a whole selection asks for, to be read by blocks of rows, here or elsewhere.

    Parameters
    ----------
    reading
        Of a selection, not of a part of one.
    order
        Of the rows.
    columns
        Genes of the selection, as an axis of their own; None for all of them.
    """

    def __init__(self, reading: Reading, order: Order, columns: Axis | None = None) -> None:
        self.reading = reading.ordered(order)
        self.columns = columns
        self._settling = asyncio.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recipe, (self.reading.ordered(self.reading.order), self.reading.order, self.columns)

    async def axes(self) -> tuple[Axis, Axis]:
        """Resolve both axes and the order of the rows, once."""
        async with self._settling:
            rows, columns = await self.reading.settled_axes()
        return rows, columns if self.columns is None else self.columns

    async def part(self, rows: slice, columns: slice = slice(None)) -> Reading:
        """Return the reading of some rows and columns, by their positions in the selection."""
        cells, genes = await self.axes()
        reader = self.reading.reader
        return self.reading.part(cells.pick(rows, reader.obs.n_rows), genes.pick(columns, reader.var.n_rows))
