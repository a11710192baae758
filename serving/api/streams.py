"""Long answers in parts: how large each is, and how far ahead of its reader the next one may be."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from serving.errors import QueueFull, QuotaExceeded

T = TypeVar("T")

_PATIENCE_S = 60.0  # with a queue that is full, or a quota that is used up
_LEAST_PAUSE_S = 0.005


def parts(first: int, end: int, chunk_items: int, default: int) -> Iterator[tuple[int, int]]:
    """Where each part of the items `first` to `end` begins, and how many items it has: `chunk_items`, or if that is 0
    one, so that there is something to show at once, and then `default`."""
    at, size = first, chunk_items or 1
    while at < end:
        yield at, min(size, end - at)
        at, size = at + size, chunk_items or default


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What comes of it, tried again while there is no room in the queue or the quota: a stream that has begun slows
    down to what there is. Raises `QueueFull` or `QuotaExceeded` if that takes more than a minute."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE_S
    while True:
        try:
            return await attempt()
        except (QueueFull, QuotaExceeded) as refusal:
            left = give_up - loop.time()
            if refusal.retry_after_s > left:
                raise
            pause = max(refusal.retry_after_s, _LEAST_PAUSE_S) * random.uniform(1.0, 1.5)  # noqa: S311 - apart
        await asyncio.sleep(min(pause, left))


async def one_ahead(
    work: Iterable[Coroutine[Any, Any, T]], room: Callable[[], Awaitable[None]] | None = None
) -> AsyncGenerator[T, None]:
    """The results in order. While one is with the reader the next one is worked on, but no more: a reader that is slow,
    or has gone, makes no work. The second, which may be many times as large as the first, waits until that is taken.
    Later ones wait for `room`.
    """
    running: deque[asyncio.Task[T]] = deque()
    ahead = 0
    try:
        for each in work:
            if room is not None and ahead:
                await _or_close(room(), each)
            running.append(asyncio.ensure_future(each))
            if len(running) > ahead:
                yield await running.popleft()
                ahead = 1
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _or_close(wait: Awaitable[None], work: Coroutine[Any, Any, T]) -> None:
    """Wait; work that is not begun then is closed."""
    try:
        await wait
    except BaseException:
        work.close()
        raise
