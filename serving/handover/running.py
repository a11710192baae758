"""A front end's call in the engine process: from its rows in a queue to its answer."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple, Protocol

from serving import labelled
from serving.batcher import Batcher
from serving.batches import Array, Job, Results, Run
from serving.errors import DeadlinePassed, EngineFailed, QueueFull, Unloaded
from serving.handover.plans import Outputs, Plan
from serving.handover.records import (
    CANCELLED,
    DEADLINE_PASSED,
    DONE,
    ENGINE_FAILED,
    FAILED,
    HEAD,
    HEARD,
    OK,
    QUEUE_FULL,
    UNLOADED,
    record,
)
from serving.model import Model

log = logging.getLogger(__name__)


class Queue(NamedTuple):
    """Where a front end's rows go."""

    batcher: Batcher
    plan: Plan
    watched: Model | None  # of an encoder: what is encoded is held against its training set


class Asker(Protocol):
    """The front end that waits for it."""

    def put(self, data: bytes) -> None:
        """Send it a record."""

    def slot(self, run: Run) -> int:
        """Where it finds this run."""

    def ended(self, number: int) -> bool:
        """Whether this call is still to be answered; it is not any more."""

    def write(self, outputs: Outputs, rows: int, results: Results, place: int) -> None:
        """Put results into its arena."""


class Running:
    """One call's job. Answered once, whatever becomes of it. `place` is where in the arena its outputs go, or -1."""

    __slots__ = ("_front_end", "_n", "_number", "_outputs", "_place", "_queue", "_queue_s", "_rows", "_slot", "job")

    job: Job

    def __init__(
        self, front_end: Asker, number: int, queue: Queue, outputs: Outputs, n: int, place: int, rows: Array
    ) -> None:
        self._front_end = front_end
        self._number = number
        self._queue = queue
        self._outputs = outputs
        self._n = n
        self._place = place
        self._rows = None if queue.watched is None else rows
        self._slot = -1
        self._queue_s = 0.0

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        self._queue.batcher.withdraw(self.job)

    def heard(self, queue_s: float, run: Run) -> None:
        """A batch with rows of it ran; of the last one it is told with the answer."""
        if self._slot >= 0:
            self._front_end.put(record(HEARD, number=self._number, place=self._slot, when=self._queue_s))
        self._slot, self._queue_s = self._front_end.slot(run), queue_s

    def done(self, future: asyncio.Future[Results]) -> None:
        """The job has ended."""
        del self.job  # which refers to this one, and has the results
        if not self._front_end.ended(self._number):
            return
        if future.cancelled():
            self._front_end.put(record(DONE, number=self._number, flags=CANCELLED))
            return
        error = future.exception()
        if error is not None:
            self._front_end.put(refusal(self._number, error))
            return
        results = future.result()
        try:
            self._answer(results)
        except Exception as unusable:
            log.exception("results could not be handed over")
            self._front_end.put(refusal(self._number, unusable))
        self._watch(results)

    def _answer(self, results: Results) -> None:
        body = b""
        if self._place >= 0:
            self._front_end.write(self._outputs, self._n, results, self._place)
        else:
            body = self._outputs.bytes_of(self._n, results)
        length = HEAD.size + len(body)
        head = HEAD.pack(length, DONE, OK, 0, self._number, self._slot, self._queue_s, 0, 0)
        self._front_end.put(head + body)

    def _watch(self, results: Results) -> None:
        model = self._queue.watched
        if model is not None and self._rows is not None and "mean" in results:
            images, classes = labelled.split(self._rows)
            model.watch(images, results["mean"], classes)


def refusal(number: int, error: BaseException) -> bytes:
    """A call's end without results."""
    status, retry_after_s, message = FAILED, 0.0, b""
    if isinstance(error, QueueFull):
        status, retry_after_s, message = QUEUE_FULL, error.retry_after_s, str(error).encode()
    elif isinstance(error, DeadlinePassed):
        status = DEADLINE_PASSED
    elif isinstance(error, EngineFailed):
        status, retry_after_s = ENGINE_FAILED, error.retry_after_s
    elif isinstance(error, Unloaded):
        status = UNLOADED
    else:
        log.error("a call failed", exc_info=error)
        message = f"{type(error).__name__}: {error}".encode()
    return record(DONE, message, flags=status, number=number, when=retry_after_s, rows=len(message))
