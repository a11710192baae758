"""The same call again and again, so many at a time, for so long; in coroutines or in threads. Imports the standard
library alone, so that any interpreter can run what is built on it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

PIXELS = 784  # bytes of the image that every call is to bring
_WARM_S = 0.3


class Count:
    """Calls and their seconds, from `begin` until `end`; calls before that warm up, later ones count no more."""

    def __init__(self, seconds: float) -> None:
        self.begin = time.perf_counter() + _WARM_S
        self.end = self.begin + seconds
        self.calls = 0
        self.seconds = 0.0

    def add(self, started: float, size: int) -> None:
        """A call that began then has ended now, with so many bytes."""
        if size != PIXELS:
            raise SystemExit(f"got {size} bytes, wanted {PIXELS}")
        now = time.perf_counter()
        if started >= self.begin and now <= self.end:
            self.calls += 1
            self.seconds += now - started

    @property
    def over(self) -> bool:
        """Whether no call is to begin any more."""
        return time.perf_counter() >= self.end


def summary(counts: Sequence[Count]) -> str:
    """As `load.Load` has it, in JSON."""
    calls = sum(count.calls for count in counts)
    if not calls:
        raise SystemExit("no call ended within the time")
    seconds = sum(count.seconds for count in counts)
    return json.dumps({"rate": calls / (counts[0].end - counts[0].begin), "mean_s": seconds / calls})


async def in_coroutines(calls: Sequence[Callable[[], Awaitable[int]]], seconds: float) -> str:
    """Each of `calls` one after another, all at once; a call gives the bytes of the image that it brought."""
    count = Count(seconds)

    async def worker(call: Callable[[], Awaitable[int]]) -> None:
        while not count.over:
            started = time.perf_counter()
            count.add(started, await call())

    await asyncio.gather(*map(worker, calls))
    return summary([count])


def in_threads(calls: Sequence[Callable[[], int]], seconds: float) -> str:
    """The same, in a thread for each."""
    counts = [Count(seconds) for _ in calls]

    def worker(call: Callable[[], int], count: Count) -> None:
        while not count.over:
            started = time.perf_counter()
            count.add(started, call())

    threads = [threading.Thread(target=worker, args=each) for each in zip(calls, counts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summary(counts)
