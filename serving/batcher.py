"""Gathers the rows of concurrent calls into batches and hands each call its own results.

    submit ─ queue of one graph ─┐
                                 ├─ device: one thread, one batch at a time, the queues in turn
    submit ─ queue of another ───┘

A batch starts at once when the device is idle; while it is busy, calls gather. There is no artificial wait. A call of
more rows than a batch holds is split, and its rest goes to the back of the queue, so that small calls are not starved.
Calls that were cancelled or whose deadline has passed are dropped before they run. The queue is bounded in rows.

Knows neither images nor gRPC nor ONNX: rows are arrays, a runner is a function, deadlines are times of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.errors import DeadlinePassed, QueueFull

Array = npt.NDArray[Any]
Results = Mapping[str, Array]
Runner = Callable[[Array, frozenset[str]], Results]


class Observer(Protocol):
    """What a batcher tells of itself."""

    def waiting(self, rows: int) -> None:
        """So many rows are in the queue now."""

    def ran(self, rows: int, queue_s: list[float], run_s: float) -> None:
        """A batch of `rows` ran for `run_s` seconds; its calls had waited `queue_s` seconds each."""


@dataclass(slots=True, eq=False)
class _Job:
    rows: Array
    outputs: frozenset[str]
    deadline: float | None
    future: asyncio.Future[Results]
    submitted: float
    begun: int = 0  # rows that have been put into a batch
    parts: list[Results] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    jobs: list[tuple[_Job, int]]  # each with its number of rows in this batch
    rows: Array
    outputs: frozenset[str]


class Device:
    """One device's executor: a thread that runs one batch at a time, shared by the queues of all its graphs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latentry-device")
        self._ready: deque[Batcher] = deque()
        self._busy = False

    def wake(self, batcher: Batcher) -> None:
        """`batcher` has rows to run. Takes effect at the end of this turn of the loop, with all that it brought."""
        if batcher not in self._ready:
            self._ready.append(batcher)
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ready:
            batcher = self._ready.popleft()
            batch = batcher.take()
            if batcher.rows_waiting:
                self._ready.append(batcher)
            if batch is not None:
                running = loop.run_in_executor(self._thread, batcher.runner, batch.rows, batch.outputs)
                running.add_done_callback(partial(self._deliver, batcher, batch, loop.time()))
                return
        self._busy = False

    def _deliver(self, batcher: Batcher, batch: _Batch, started: float, done: asyncio.Future[Results]) -> None:
        try:
            batcher.deliver(batch, started, done)
        finally:
            self._next()

    def close(self) -> None:
        """Wait for the batch that is running, then end the thread."""
        self._thread.shutdown()


class Batcher:
    """The queue of one graph. `runner(rows, outputs)` runs in the device's thread and returns arrays by output name."""

    def __init__(self, runner: Runner, device: Device, observer: Observer, *, max_batch: int, max_waiting: int) -> None:
        self.runner = runner
        self.rows_waiting = 0
        self._device = device
        self._observer = observer
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._jobs: deque[_Job] = deque()
        self._seconds_a_row = 0.001  # a running estimate, for the advice to callers that find the queue full

    async def submit(self, rows: Array, outputs: frozenset[str], deadline: float | None = None) -> Results:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...].

        Raises `QueueFull` at once if more than `max_waiting` rows would wait, `DeadlinePassed` if the loop's time
        passes `deadline` before all rows have begun, or whatever the runner raised.
        """
        if self.rows_waiting + len(rows) > self._max_waiting:
            self._forget_done()
        waiting = self.rows_waiting + len(rows)
        if waiting > self._max_waiting:
            message = f"queue full: {self.rows_waiting} items are waiting of at most {self._max_waiting}; try again"
            raise QueueFull(message, self.rows_waiting * self._seconds_a_row)
        loop = asyncio.get_running_loop()
        job = _Job(rows, outputs, deadline, loop.create_future(), loop.time())
        self._jobs.append(job)
        self._set_waiting(waiting)
        self._device.wake(self)
        return await job.future

    def take(self) -> _Batch | None:
        """The next batch, or None if all that waited was cancelled or late."""
        now = asyncio.get_running_loop().time()
        chosen: list[tuple[_Job, int]] = []
        unfinished: list[_Job] = []
        room = self._max_batch
        waiting = self.rows_waiting
        while self._jobs and room:
            job = self._jobs.popleft()
            left = len(job.rows) - job.begun
            if job.deadline is not None and now >= job.deadline and not job.future.done():
                job.future.set_exception(DeadlinePassed())
            if job.future.done():
                waiting -= left
                continue
            n = min(left, room)
            chosen.append((job, n))
            room -= n
            waiting -= n
            if n < left:
                unfinished.append(job)
        self._jobs.extend(unfinished)
        self._set_waiting(waiting)
        try:
            return _gather(chosen) if chosen else None
        except Exception as error:  # no memory for the batch: its calls fail, the queue goes on
            _fail(chosen, error)
            return None

    def deliver(self, batch: _Batch, started: float, done: asyncio.Future[Results]) -> None:
        """Hand the results of `batch`, or its error, to the calls that wait for them: each is answered once."""
        try:
            results = done.result()
            for name in batch.outputs:
                if len(results[name]) != len(batch.rows):
                    raise RuntimeError(f"output {name}: {len(results[name])} rows for {len(batch.rows)}")
            self._hand_out(batch, started, results)
        except (Exception, asyncio.CancelledError) as error:
            _fail(batch.jobs, error)

    def _hand_out(self, batch: _Batch, started: float, results: Results) -> None:
        run_s = asyncio.get_running_loop().time() - started
        self._seconds_a_row += 0.1 * (run_s / len(batch.rows) - self._seconds_a_row)
        self._observer.ran(len(batch.rows), [started - job.submitted for job, _ in batch.jobs], run_s)
        at = 0
        for job, n in batch.jobs:
            job.parts.append({name: results[name][at : at + n] for name in job.outputs})
            at += n
            if job.begun == len(job.rows) and not job.future.done():
                job.future.set_result(_join(job.parts))

    def _forget_done(self) -> None:
        """Drop the calls that were cancelled while they waited, so that they take nobody's place."""
        self._jobs = deque(job for job in self._jobs if not job.future.done())
        self._set_waiting(sum(len(job.rows) - job.begun for job in self._jobs))

    def _set_waiting(self, rows: int) -> None:
        self.rows_waiting = rows
        self._observer.waiting(rows)


def _gather(chosen: list[tuple[_Job, int]]) -> _Batch:
    pieces = []
    for job, n in chosen:
        pieces.append(job.rows[job.begun : job.begun + n])
        job.begun += n
    rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return _Batch(chosen, rows, frozenset().union(*(job.outputs for job, _ in chosen)))


def _fail(jobs: list[tuple[_Job, int]], error: BaseException) -> None:
    for job, _ in jobs:
        if not job.future.done():
            job.future.set_exception(error)


def _join(parts: list[Results]) -> Results:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
