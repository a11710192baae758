"""The devices: each has one thread, which runs one piece of work at a time.

Batches come from the queues that have told the pool that they have rows; a device that is free takes the next one.
While nobody else calls, a batch that will not take long is run in the loop itself: waking a thread and being woken by
it takes longer. Knows nothing of what a batch is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from serving.device_thread import DeviceThread

log = logging.getLogger(__name__)

T = TypeVar("T")
Deliver = Callable[[], None]

_FAIR_TURN = 8  # every so many batches, whoever has waited longest goes before whoever is interactive
_RESTART_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MOST_TAKES = 1000  # that may come to nothing, in one turn of the loop
_BRIEF_S = 0.0005  # how long the loop may be held by a batch


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a queue has for a device: from when on it may take it, whether an interactive call is among it, and since
    when the oldest call has waited; times of the monotonic clock.
    """

    at: float
    interactive: bool
    since: float


class Taken(NamedTuple):
    """A batch: what runs it, and returns what delivers it in the loop; and how many seconds that may take."""

    run: Callable[[], Deliver]
    seconds: float


class Queue(Protocol):
    """What the pool needs of a queue."""

    def waiting(self, device: int) -> Waiting | None:
        """What there is for `device`."""

    def take(self, device: int, background_first: bool) -> Taken | None:
        """The next batch."""


class Pool:
    """So many devices, shared by all queues. For one event loop. `alone` says whether no other call than that of a
    batch is there, so that nobody minds the loop being held for a moment."""

    def __init__(self, devices: int, alone: Callable[[], bool] = lambda: False) -> None:
        self._threads = [DeviceThread(f"latentry-device-{number}") for number in range(devices)]
        self._alone = alone
        self._idle = set(range(devices))
        self._errands: list[deque[Callable[[], Deliver]]] = [deque() for _ in range(devices)]
        self._ready: deque[Queue] = deque()
        self._turn = 0
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def devices(self) -> range:
        """Their numbers."""
        return range(len(self._threads))

    def wake(self, queue: Queue, at_once: bool = False) -> None:
        """`queue` has rows to run. Takes effect at the end of this turn of the loop, with all that it brought; or
        `at_once`, if no other call is there that could bring more."""
        if queue not in self._ready:
            self._ready.append(queue)
        if at_once and self._idle and not self._asked and self._alone():
            Context().run(self._assign)
        else:
            self._assign_soon()

    async def call(self, device: int, work: Callable[[], T]) -> T:
        """Run `work` in the device's thread, between batches."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._errand(device, partial(_settled, work, result))
        return await result

    def restart(self, device: int, work: Callable[[], bool], ended: Callable[[int, bool], bool]) -> None:
        """Run `work` in the device's thread, and again after longer and longer pauses, until `ended` says enough."""
        self._errand(device, partial(self._restarted, device, work, ended, 0))

    def close(self) -> None:
        """Wait for the batches that are running, then end the threads."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for thread in self._threads:
            thread.close()

    def _errand(self, device: int, work: Callable[[], Deliver]) -> None:
        self._errands[device].append(work)
        self._assign_soon()

    def _restarted(
        self, device: int, work: Callable[[], bool], ended: Callable[[int, bool], bool], tries: int
    ) -> Deliver:
        restarted = work()

        def deliver() -> None:
            if not ended(device, restarted):
                pause = _RESTART_PAUSES_S[min(tries, len(_RESTART_PAUSES_S) - 1)]
                again = partial(self._restarted, device, work, ended, tries + 1)
                asyncio.get_running_loop().call_later(pause, self._errand, device, again)

        return deliver

    def _assign_soon(self) -> None:
        if self._idle and not self._asked:
            self._asked = True
            # In a context of its own: what follows is not part of the call that happened to come first.
            asyncio.get_running_loop().call_soon(self._assign, context=Context())

    def _assign(self) -> None:
        self._asked = False
        for device in sorted(self._idle):
            taken = None if self._closed else self._next(device)
            if taken is not None:
                self._start(device, taken)

    def _next(self, device: int) -> Taken | None:
        if self._errands[device]:
            return Taken(self._errands[device].popleft(), math.inf)
        for _ in range(_MOST_TAKES):
            fair = self._turn % _FAIR_TURN == _FAIR_TURN - 1
            queue = self._choose(device, fair)
            if queue is None:
                return None
            taken = queue.take(device, fair)
            if taken is not None:
                self._turn += 1
                return taken
        return None

    def _choose(self, device: int, fair: bool) -> Queue | None:
        """The queue whose turn it is; it goes to the back. Those that are empty leave."""
        now = time.monotonic()
        there: list[tuple[Queue, Waiting]] = []
        for queue in list(self._ready):
            waiting = queue.waiting(device)
            if waiting is not None:
                there.append((queue, waiting))
            elif all(queue.waiting(other) is None for other in self.devices):
                self._ready.remove(queue)
        due = [(queue, waiting) for queue, waiting in there if waiting.at <= now]
        if not due:
            if there:
                self._look_again_at(min(waiting.at for _, waiting in there))
            return None
        if fair:
            chosen = min(due, key=lambda each: each[1].since)[0]
        else:
            chosen = next((queue for queue, waiting in due if waiting.interactive), due[0][0])
        self._ready.remove(chosen)
        self._ready.append(chosen)
        return chosen

    def _look_again_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), self._assign)

    def _start(self, device: int, taken: Taken) -> None:
        self._idle.discard(device)
        if taken.seconds <= _BRIEF_S and self._alone():
            self._deliver(device, *_outcome(taken.run))
            self._assign_soon()  # what is next may have come meanwhile, and the loop gets its turn first
            return
        loop = asyncio.get_running_loop()
        self._threads[device].run(partial(_run, taken.run, loop, partial(self._delivered, device)))

    def _delivered(self, device: int, deliver: Deliver | None, error: BaseException | None) -> None:
        self._deliver(device, deliver, error)
        self._assign()

    def _deliver(self, device: int, deliver: Deliver | None, error: BaseException | None) -> None:
        self._idle.add(device)
        try:
            if deliver is None:
                raise RuntimeError("its thread could not run it") from error
            deliver()
        except (Exception, asyncio.CancelledError):  # whoever waits for it has its own bound
            log.exception("a device's work could not be delivered")


def _outcome(work: Callable[[], Deliver]) -> tuple[Deliver | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _run(
    work: Callable[[], Deliver],
    loop: asyncio.AbstractEventLoop,
    done: Callable[[Deliver | None, BaseException | None], None],
) -> None:
    """In a device's thread: the work; then in the loop what is to be done with its outcome."""
    outcome = _outcome(work)
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(done, *outcome)


def _settled(work: Callable[[], T], result: asyncio.Future[T]) -> Deliver:
    """Run `work`; what is returned hands its result, or what it raised, to `result`."""
    try:
        value = work()
    except BaseException as error:
        return partial(_unless_done, result.set_exception, result, error)
    return partial(_unless_done, result.set_result, result, value)


def _unless_done(settle: Callable[[Any], None], result: asyncio.Future[Any], value: Any) -> None:
    if not result.done():
        settle(value)
