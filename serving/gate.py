"""Lets calls in until it is shut, and knows when the last one has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from serving.errors import Draining

T = TypeVar("T")


class Gate:
    """`count(n)` is told how many calls are inside, whenever that changes."""

    def __init__(self, count: Callable[[int], object] = lambda n: None) -> None:
        self._tell = count
        self._in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._shut = asyncio.Event()

    @property
    def shut(self) -> bool:
        """Whether no more calls come in."""
        return self._shut.is_set()

    def close(self) -> None:
        """Let no more calls in."""
        self._shut.set()

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """One call's stay; raises `Draining` when the gate is shut."""
        if self.shut:
            raise Draining
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    async def unless_shut(self, awaited: Awaitable[T]) -> T:
        """What is awaited; raises `Draining` if the gate is shut before it comes."""
        coming = asyncio.ensure_future(awaited)
        shut = asyncio.ensure_future(self._shut.wait())
        try:
            await asyncio.wait({coming, shut}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise Draining
            return coming.result()
        finally:
            coming.cancel()
            shut.cancel()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Whether every call has gone within `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._in_flight == 0

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._tell(self._in_flight)
        (self._empty.clear if self._in_flight else self._empty.set)()
