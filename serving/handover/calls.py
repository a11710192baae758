"""A front end's calls that are in the engine process: hands them over, and their results to who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np

from serving.batches import Array, Results, Run, Tell
from serving.errors import DeadlinePassed, EngineFailed, QueueFull, ServiceError, Unloaded
from serving.handover.arena import Arena
from serving.handover.link import Data, Handler, Link
from serving.handover.plans import Outputs
from serving.handover.records import (
    BACKGROUND,
    CANCEL,
    CANCELLED,
    DEADLINE_PASSED,
    DONE,
    ENGINE_FAILED,
    HEAD,
    HEARD,
    MOST_BYTES,
    OUTPUTS_PLACED,
    QUEUE_FULL,
    ROWS_PLACED,
    RUN,
    RUNS,
    SUBMIT,
    UNLOADED,
    Head,
    Malformed,
    pad,
    record,
)

INLINE_BYTES = 4096  # what is not larger costs less in the socket than in the arena
_MOST_INLINE = MOST_BYTES - (1 << 16)
_MOST_UNSENT = 256 << 20
_NOWHERE = -1
_NONE = Run(0, 0, 0, 0.0)


@dataclass(slots=True, eq=False)
class Waiting:
    """A call in the engine process: who waits for it, and where its outputs will be."""

    number: int
    future: asyncio.Future[Results]
    tell: Tell
    outputs: Outputs
    rows: int
    place: int  # in the arena, or nowhere
    placed: bool  # whether the outputs will be there


class Calls:
    """Those of one connection. `alive` until the engine process has gone."""

    def __init__(self, arena: Arena | None) -> None:
        self.alive = False
        self._arena = arena
        self._numbers = count(1)
        self._waiting: dict[int, Waiting] = {}
        self._runs = [_NONE] * RUNS
        self._results: dict[int, Callable[[Waiting, Head, Data, int], None]] = {}

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """Of the records that are about calls."""
        return {RUN: self._run, HEARD: self._heard, DONE: self._done}

    def start(self, link: Link) -> None:
        """From now on calls go to this link."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self.alive = True

    def end(self) -> None:
        """The engine process has gone, and with it all that it had of calls."""
        self.alive = False
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            if not each.future.done():
                each.future.set_exception(EngineFailed())

    def submit(
        self,
        queue: int,
        rows: Array,
        outputs: Outputs,
        deadline: float | None,
        background: bool,
        tell: Tell,
    ) -> Waiting:
        """Hand `rows` over; the `future` will have what they give. Raises `QueueFull` if they cannot be kept here."""
        if self._link.unsent > _MOST_UNSENT:
            raise QueueFull("the engine process is behind; try again", 1.0)
        n, size, results_size = len(rows), rows.nbytes, outputs.size(len(rows))
        place, flags, body = _NOWHERE, BACKGROUND if background else 0, b""
        if size > INLINE_BYTES or results_size > INLINE_BYTES:
            place = self._take(max(size, results_size))
        if place != _NOWHERE and size > INLINE_BYTES:
            flags |= ROWS_PLACED
            self._write(rows, place)
        else:
            body = pad(rows.tobytes())
        placed = place != _NOWHERE and results_size > INLINE_BYTES
        if placed:
            flags |= OUTPUTS_PLACED
        number = next(self._numbers)
        length = HEAD.size + len(body)
        head = HEAD.pack(
            length, SUBMIT, flags, outputs.mask, number, max(place, 0), deadline or 0.0, queue, n
        )  # fmt: skip
        waiting = Waiting(number, self._loop.create_future(), tell, outputs, n, place, placed)
        self._waiting[number] = waiting
        self._link.put(head + body)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """Nobody waits for it any more. Its place is free once the engine process has said that it is done with it."""
        if self.alive and waiting.number in self._waiting:
            self._link.put(record(CANCEL, number=waiting.number))

    def _take(self, size: int) -> int:
        place = _NOWHERE if self._arena is None else self._arena.take(size)
        if place == _NOWHERE and size > _MOST_INLINE:
            raise QueueFull("the memory that is shared with the engine process is full; try again", 1.0)
        return place

    def _write(self, rows: Array, place: int) -> None:
        if self._arena is not None:
            np.ndarray(rows.shape, rows.dtype, self._arena.memory, place)[...] = rows

    # ---- what the engine process says ----

    def _run(self, head: Head, data: Data, at: int) -> None:
        _, _, _, _, started_ns, slot, seconds, padding, rows = head
        self._runs[slot] = Run(rows, padding, started_ns, seconds)

    def _heard(self, head: Head, data: Data, at: int) -> None:
        waiting = self._waiting.get(head[4])
        if waiting is not None:  # else it was withdrawn while a batch with rows of it ran
            waiting.tell(head[6], self._runs[head[5]])

    def _done(self, head: Head, data: Data, at: int) -> None:
        _, _, status, _, number, run, when, _, size = head
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            raise Malformed(f"call: got number {number}, which does not wait")
        try:
            if waiting.future.done():  # it was cancelled
                return
            if status:
                message = bytes(data[at : at + size]).decode()
                waiting.future.set_exception(_error(status, when, message))
                return
            waiting.tell(when, self._runs[run])
            waiting.future.set_result(self._results_of(waiting, data, at))
        finally:
            if waiting.place != _NOWHERE and self._arena is not None:
                self._arena.give(waiting.place)

    def _results_of(self, waiting: Waiting, data: Data, at: int) -> Results:
        if not waiting.placed or self._arena is None:
            return waiting.outputs.views(waiting.rows, data, at)
        lent = self._arena.lend(waiting.place, waiting.outputs.size(waiting.rows))
        waiting.place = _NOWHERE  # it is given back when the results are let go
        return waiting.outputs.views(waiting.rows, lent, 0)


def _error(status: int, retry_after_s: float, message: str) -> Exception:
    """What the engine process's batcher raised."""
    errors: dict[int, Callable[[], ServiceError]] = {
        QUEUE_FULL: lambda: QueueFull(message, retry_after_s),
        DEADLINE_PASSED: DeadlinePassed,
        ENGINE_FAILED: lambda: EngineFailed(retry_after_s),
        UNLOADED: Unloaded,
        CANCELLED: EngineFailed,  # not by us: the engine process is ending
    }
    return errors[status]() if status in errors else RuntimeError(f"in the engine process: {message}")
