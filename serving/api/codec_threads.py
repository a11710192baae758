"""Threads in which image files are read and written, so that the event loop does not wait for them.

Bounded in bytes: what would wait beyond that is refused. Work that nobody waits for any more is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from serving.errors import QueueFull

T = TypeVar("T")
Stopped = Callable[[], bool]  # whether nobody waits for the result any more

MAX_BYTES = 256 << 20  # of requests and replies that are in these threads or wait for them
_RETRY_AFTER_S = 1.0


class CodecThreads:
    """So many threads, shared by all calls of one event loop."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="latentry-codec")
        self._bytes = 0

    async def run(self, work: Callable[[Stopped], T], size_bytes: int) -> T:
        """The result of `work(stopped)`, which asks `stopped()` now and then and ends early if it is true.

        Raises `QueueFull` at once if more than `MAX_BYTES` would be in hand.
        """
        if self._bytes and self._bytes + size_bytes > MAX_BYTES:
            raise QueueFull(f"codec full: {self._bytes} bytes are in hand of at most {MAX_BYTES}", _RETRY_AFTER_S)
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        job = self._pool.submit(work, stop.is_set)
        self._bytes += size_bytes

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(self._forget, size_bytes)

        job.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            stop.set()
            raise

    def close(self) -> None:
        """Drop what waits, wait for what runs, end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _forget(self, size_bytes: int) -> None:
        self._bytes -= size_bytes
