"""The devices: each has one thread, which runs one piece of work at a time.

Batches come from the queues that have told the pool that they have rows; a device that is free takes the next one.
Knows nothing of what a batch is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Deliver = Callable[[], None]

_FAIR_TURN = 8  # every so many batches, whoever has waited goes before whoever is interactive
_RESTART_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Queue(Protocol):
    """What the pool needs of a queue."""

    def ready_at(self, device: int) -> tuple[float, bool] | None:
        """When `device` may take a batch, and whether an interactive call waits; None if there is nothing for it."""

    def take(self, device: int, background_first: bool) -> Callable[[], Deliver] | None:
        """The next batch, for the device's thread; what it returns is called in the loop."""


class Pool:
    """So many devices, shared by all queues. For one event loop."""

    def __init__(self, devices: int) -> None:
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"latentry-device-{i}") for i in range(devices)]
        self._idle = set(range(devices))
        self._ready: deque[Queue] = deque()
        self._turn = 0
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def devices(self) -> range:
        """Their numbers."""
        return range(len(self._threads))

    @property
    def _fair(self) -> bool:
        return self._turn % _FAIR_TURN == _FAIR_TURN - 1

    def wake(self, queue: Queue) -> None:
        """`queue` has rows to run. Takes effect at the end of this turn of the loop, with all that it brought."""
        if queue not in self._ready:
            self._ready.append(queue)
        if self._idle and not self._asked:
            self._asked = True
            # In a context of its own: what follows is not part of the call that happened to come first.
            asyncio.get_running_loop().call_soon(self._assign, context=Context())

    async def call(self, device: int, work: Callable[[], T]) -> T:
        """Run `work` in the device's thread, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._threads[device], work)

    def restart_later(self, device: int, work: Callable[[], bool], ended: Callable[[int, bool], bool]) -> None:
        """Run `work` in the device's thread after a pause, and again after longer ones, until `ended` says enough."""
        asyncio.get_running_loop().call_later(_RESTART_PAUSES_S[0], self._restart, device, work, ended, 0)

    def close(self) -> None:
        """Wait for the batches that are running, then end the threads."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for thread in self._threads:
            thread.shutdown()

    def _assign(self) -> None:
        self._asked = False
        for device in sorted(self._idle):
            for _ in range(len(self._ready)):  # each queue once
                queue = None if self._closed else self._choose(device)
                if queue is None:
                    break
                work = queue.take(device, self._fair)
                if work is not None:
                    self._start(device, work)
                    break

    def _choose(self, device: int) -> Queue | None:
        """The queue whose turn it is; it goes to the back. Those that are empty leave."""
        now = asyncio.get_running_loop().time()
        chosen: Queue | None = None
        soonest = float("inf")
        fair = self._fair
        for queue in list(self._ready):
            state = queue.ready_at(device)
            if state is None:
                if all(queue.ready_at(other) is None for other in self.devices):
                    self._ready.remove(queue)
                continue
            at, interactive = state
            if at > now:
                soonest = min(soonest, at)
            elif chosen is None or (interactive and not fair):
                chosen = queue
                if interactive or fair:
                    break
        if chosen is not None:
            self._ready.remove(chosen)
            self._ready.append(chosen)
        elif soonest < float("inf"):
            self._look_again_at(soonest)
        return chosen

    def _look_again_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._assign)

    def _start(self, device: int, work: Callable[[], Deliver]) -> None:
        self._idle.discard(device)
        self._turn += 1
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._threads[device], work).add_done_callback(partial(self._deliver, device))

    def _deliver(self, device: int, done: asyncio.Future[Deliver]) -> None:
        self._idle.add(device)
        try:
            done.result()()
        except (Exception, asyncio.CancelledError):  # whoever waits for it has its own bound
            log.exception("a batch could not be delivered")
        finally:
            self._assign()

    def _restart(self, device: int, work: Callable[[], bool], ended: Callable[[int, bool], bool], tries: int) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()

        def done(result: asyncio.Future[bool]) -> None:
            if not result.cancelled() and not ended(device, result.result()):
                pause = _RESTART_PAUSES_S[min(tries + 1, len(_RESTART_PAUSES_S) - 1)]
                loop.call_later(pause, self._restart, device, work, ended, tries + 1)

        loop.run_in_executor(self._threads[device], work).add_done_callback(done)
