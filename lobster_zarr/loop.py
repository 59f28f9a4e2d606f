"""Runs coroutines for synchronous callers, on one event loop of its own.

Must not know what they do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

LOOK_SECONDS = 0.2
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process id: threads do not survive a fork


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, also where a loop is running already (Jupyter).

    All share one loop on a background thread, made on first use and once per
    process. Interrupting the caller cancels the coroutine.

    Raises
    ------
    RuntimeError
        Called on that thread itself, where waiting would never end.
    """
    loop = _background_loop()
    tasks: list[asyncio.Task[T]] = []
    done = threading.Event()

    def start() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(lambda _: done.set())

    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("run() was called by a coroutine that run() runs; await the other one instead.")
    try:
        loop.call_soon_threadsafe(start)
        while not done.wait(LOOK_SECONDS):  # a signal that comes just before a wait does not end it
            pass
    except BaseException:  # an interrupt can come before the start: callbacks keep their order
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        raise
    return tasks[0].result()


def submit[T](coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on that loop without waiting; one that is run later starts after it."""
    return asyncio.run_coroutine_threadsafe(coroutine, _background_loop())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _background_loop() -> asyncio.AbstractEventLoop:
    if loop := _loops.get(os.getpid()):
        return loop
    fresh = asyncio.new_event_loop()
    loop = _loops.setdefault(os.getpid(), fresh)  # atomic: of two callers, one keeps its loop
    if loop is fresh:
        threading.Thread(target=loop.run_forever, name="lobster-zarr", daemon=True).start()
    else:
        fresh.close()
    return loop
