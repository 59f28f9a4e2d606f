"""The window of bytes: never more than fits, first come first served, and nothing lost when a reader gives up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.traffic import Stats, Window, counting, observed


@given(st.lists(st.integers(0, 30), max_size=30))
def test_no_more_is_held_than_fits(sizes: list[int]) -> None:
    async def main() -> list[int]:
        window, held, served = Window(20), [0], []

        async def read(at: int, n_bytes: int) -> None:
            async with window.room(n_bytes):
                assert held[0] == 0 or held[0] + n_bytes <= 20
                held[0] += n_bytes
                served.append(at)
                await asyncio.sleep(0)
                held[0] -= n_bytes

        await asyncio.wait_for(asyncio.gather(*(read(i, n) for i, n in enumerate(sizes))), 10)
        assert window.used_bytes == 0
        return served

    assert asyncio.run(main()) == list(range(len(sizes)))


@pytest.mark.parametrize("given_up", ["waiting", "inside"])
def test_who_gives_up_leaves_room_for_the_others(given_up: str) -> None:
    async def main() -> None:
        window = Window(10)
        release = asyncio.Event()

        async def read(n_bytes: int) -> None:
            async with window.room(n_bytes):
                await release.wait()

        first, second, third = (asyncio.create_task(read(n)) for n in (8, 8, 2))
        await asyncio.sleep(0.01)
        (second if given_up == "waiting" else first).cancel()
        await asyncio.sleep(0.01)
        release.set()
        done = await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 5)
        assert sum(isinstance(d, asyncio.CancelledError) for d in done) == 1
        assert window.used_bytes == 0

    asyncio.run(main())


def test_what_is_read_is_counted_by_whoever_watches() -> None:
    own, watching = Stats(), Stats()
    with observed(watching):
        for stats in counting(own):
            stats.add("X/data", 7)
    for stats in counting(own):
        stats.add("X/data", 5)
    assert (own.n_requests, own.n_bytes, own.by_array) == (2, 12, {"X/data": (2, 12)})
    assert (watching.n_requests, watching.n_bytes) == (1, 7)
