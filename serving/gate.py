"""Lets calls in until it is shut, and knows when the last one has gone, with its reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from serving.errors import Draining

T = TypeVar("T")


class Gate:
    """For the calls of one event loop."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._outgoing = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._shut = asyncio.Event()

    @property
    def shut(self) -> bool:
        """Whether no more calls come in."""
        return self._shut.is_set()

    @property
    def in_flight(self) -> int:
        """How many calls have come and are not answered yet."""
        return self._in_flight

    @property
    def alone(self) -> bool:
        """Whether no call is there beside the one that asks, nor a reply on its way: under load there always is, even
        if calls are answered one after the other."""
        return self._in_flight <= 1 and not self._outgoing

    def close(self) -> None:
        """Let no more calls in."""
        self._shut.set()

    def enter(self) -> None:
        """A call begins its stay, which `leave` ends; raises `Draining` when the gate is shut."""
        if self._shut.is_set():
            raise Draining
        self._in_flight += 1
        self._empty.clear()

    def leave(self) -> None:
        """A call is answered."""
        self._in_flight -= 1
        if not self._in_flight and not self._outgoing:
            self._empty.set()

    def reply_leaves(self) -> None:
        """The reply of a call that leaves now is on its way until `reply_left`, and waited for like a call."""
        self._outgoing += 1

    def reply_left(self) -> None:
        """A reply has gone."""
        self._outgoing -= 1
        if not self._in_flight and not self._outgoing:
            self._empty.set()

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
        """Whether every call has gone within `timeout_s`, and every reply."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._empty.is_set()
