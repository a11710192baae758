"""Gathers the rows of concurrent calls into batches and hands each call its own results.

    submit ─ queue of one graph ─┐          ┌─ device 0: one thread, one batch at a time
                                 ├─ pool ───┤
    submit ─ queue of another ───┘          └─ device 1: the same

A batch starts at once when a device is idle; while all are busy, calls gather. Devices take from the queues whenever
they are free, so the least loaded one gets the next batch. A call of more rows than a batch holds is split, and its
rest goes to the back of its queue, so that small calls are not starved. Interactive calls go before background ones,
but every eighth batch goes to whoever has waited, so that nothing starves. Calls that were cancelled, or that cannot
meet their deadline any more, are dropped before they run. What may wait is bounded in rows, in all and for each model.

An engine that fails takes its batch's calls down with `EngineFailed`, which callers may try again, is restarted in its
device's thread, and is left out until that succeeds.

Knows neither images nor gRPC nor ONNX: rows are arrays, an engine is a function, deadlines are times of the
monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from serving.batches import Array, Batch, Job, Results, Room, Run, Tell, gather, join, tell_nobody
from serving.errors import DeadlinePassed, EngineFailed, QueueFull, Unloaded
from serving.pool import Pool, Taken, Waiting

log = logging.getLogger(__name__)


class Engine(Protocol):
    """One graph on one device."""

    def run(self, rows: Array, outputs: frozenset[str]) -> Results:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...]."""

    def bucket(self, rows: int) -> int:
        """The batch size that `rows` rows run as."""

    def restart(self) -> None:
        """Begin anew after a failure; raises if that fails too."""


class Observer(Protocol):
    """What a batcher tells of itself."""

    def ran(self, run: Run, queue_s: Sequence[float]) -> None:
        """A batch ran; its calls had waited `queue_s` seconds each."""

    def failed(self, device: int) -> None:
        """The engine of a device has failed, and is restarted."""

    def up(self, device: int, up: bool) -> None:
        """The engine of a device works again, or does not."""


class Batcher:
    """The queue of one graph, with one engine for each device of the pool."""

    def __init__(
        self,
        engines: Sequence[Engine],
        pool: Pool,
        observer: Observer,
        *,
        rooms: Sequence[Room],
        max_batch: int,
        max_delay_s: float = 0.0,
    ) -> None:
        self._engines = engines
        self._pool = pool
        self._observer = observer
        self._rooms = (*rooms, Room(0))  # the last is this queue's own count
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._interactive: deque[Job] = deque()
        self._background: deque[Job] = deque()
        self._restarting: set[int] = set()  # devices whose engine has failed, and is tried for the first time
        self._down: set[int] = set()  # devices whose engine has failed, and did not come back at once
        self._closed = False
        self._seconds_a_row = 0.001  # a running estimate, for the advice to callers that find the queue full
        self._fastest_s = 0.0  # of all runs: what any batch takes at least

    @property
    def rows_waiting(self) -> int:
        """Rows in the queue."""
        return self._rooms[-1].rows

    @property
    def up(self) -> bool:
        """Whether at least one engine works."""
        return len(self._down) < len(self._engines)

    def works_on(self, device: int) -> bool:
        """Whether the engine of this device works."""
        return device not in self._down

    async def submit(
        self,
        rows: Array,
        outputs: frozenset[str],
        deadline: float | None = None,
        *,
        background: bool = False,
        tell: Tell = tell_nobody,
    ) -> Results:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...].

        `tell(queue_s, run)` is called for every batch that had rows of this call. Raises `QueueFull` at once if too
        many rows would wait, `DeadlinePassed` if the time is so near `deadline` before all rows have begun that
        they cannot be ready in time, `EngineFailed` if the engine does.
        """
        job = self.enqueue(rows, outputs, deadline, background=background, tell=tell, at_once=True)
        del rows  # the job has them: what is raised here must not keep them
        try:
            return await job.future
        except asyncio.CancelledError:
            self.withdraw(job)
            raise

    def enqueue(
        self,
        rows: Array,
        outputs: frozenset[str],
        deadline: float | None = None,
        *,
        background: bool = False,
        tell: Tell = tell_nobody,
        at_once: bool = False,
    ) -> Job:
        """What `submit` does before it waits: the job's `future` will have the results, or what went wrong. Unless it
        is to run `at_once`, more may follow in this turn of the loop, and go into the same batch.
        """
        if not len(rows):
            raise ValueError("rows: got none, wanted one at least")
        if self._closed:
            raise Unloaded
        if not self.up:
            raise EngineFailed
        for room in self._rooms[:-1]:
            if room.lacks(len(rows), background):
                message = f"queue full: {room.rows} items are waiting of at most {room.limit}; try again"
                raise QueueFull(message, room.rows * self._seconds_a_row)
        loop = asyncio.get_running_loop()
        job = Job(rows, outputs, deadline, tell, loop.create_future(), time.monotonic())
        (self._background if background else self._interactive).append(job)
        self._count(len(rows))
        self._pool.wake(self, at_once)
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody waits for it any more: it takes nobody's place from now on, and no memory."""
        job.future.cancel()
        self._forget(job)
        for queue in (self._interactive, self._background):
            with contextlib.suppress(ValueError):  # it is in the other, or in a batch already
                queue.remove(job)

    def close(self) -> None:
        """Run nothing any more; calls that still wait fail."""
        self._closed = True
        self._down.update(self._pool.devices)
        self._fail_waiting()

    # ---- what the pool calls ----

    def waiting(self, device: int) -> Waiting | None:
        """What there is for `device`."""
        if not self.rows_waiting or device in self._down or device in self._restarting:
            return None
        for queue in (self._interactive, self._background):
            while queue and queue[0].future.done():  # cancelled: they make nobody's time
                self._forget(queue.popleft())
        since = min((queue[0].submitted for queue in (self._interactive, self._background) if queue), default=None)
        if since is None:
            return None
        at = since if self.rows_waiting >= self._max_batch else since + self._max_delay_s
        return Waiting(at, bool(self._interactive), since)

    def take(self, device: int, background_first: bool) -> Taken | None:
        """The next batch, or None if all that waited was cancelled or late."""
        chosen = self._choose(background_first)
        if not chosen:
            return None
        try:
            batch = gather(chosen)
        except Exception as error:  # no memory for the batch: its calls fail, the queue goes on
            self._fail(chosen, error)
            return None
        alone = len(chosen) == 1 and not self.rows_waiting
        seconds = len(batch.rows) * self._seconds_a_row if alone else math.inf
        return Taken(partial(self._run, device, batch, time.monotonic()), seconds)

    def _choose(self, background_first: bool) -> list[tuple[Job, int]]:
        now = time.monotonic()
        chosen: list[tuple[Job, int]] = []
        room = self._max_batch
        queues = [self._interactive, self._background]
        for queue in reversed(queues) if background_first else queues:
            unfinished = []
            while queue and room:
                job = queue.popleft()
                if not self._worth_running(job, now):
                    continue
                n = min(job.left, room)
                chosen.append((job, n))
                room -= n
                self._count(-n)
                if n < job.left:
                    unfinished.append(job)
            queue.extend(unfinished)
        return chosen

    def _worth_running(self, job: Job, now: float) -> bool:
        """False for a call that is cancelled or that will be late whatever is done, which is told so."""
        if not job.future.done() and job.deadline is not None:
            batches = -(-job.left // self._max_batch)
            if now + batches * self._fastest_s >= job.deadline:
                job.future.set_exception(DeadlinePassed())
        if job.future.done():
            self._forget(job)  # who waits for it hears of its end a turn later; until then it would seem to wait
        return not job.future.done()

    # ---- in the device's thread ----

    def _run(self, device: int, batch: Batch, taken: float) -> Callable[[], None]:
        engine = self._engines[device]
        wall, started = time.time_ns(), time.perf_counter()
        try:
            results = engine.run(batch.rows, batch.outputs)
            for name in batch.outputs:
                if len(results[name]) != len(batch.rows):
                    raise RuntimeError(f"output {name}: {len(results[name])} rows for {len(batch.rows)}")
            padding = engine.bucket(len(batch.rows)) - len(batch.rows)
        except Exception as error:
            log.exception("an engine failed under a batch of %d", len(batch.rows))
            return partial(self._failed, device, batch, error)
        run = Run(len(batch.rows), padding, wall, time.perf_counter() - started)
        return partial(self._hand_out, batch, taken, run, results)

    # ---- in the loop ----

    def _hand_out(self, batch: Batch, taken: float, run: Run, results: Results) -> None:
        try:
            self._answer(batch, taken, run, results)
        except Exception as error:
            self._fail(batch.jobs, error)  # each call is answered, whatever happens
            raise

    def _answer(self, batch: Batch, taken: float, run: Run, results: Results) -> None:
        self._seconds_a_row += 0.1 * (run.seconds / run.rows - self._seconds_a_row)
        self._fastest_s = min(self._fastest_s or run.seconds, run.seconds)
        self._observer.ran(run, [taken - job.submitted for job, _ in batch.jobs])
        at = 0
        for (job, n), part in zip(batch.jobs, batch.parts, strict=True):
            rows = slice(at, at + n)
            at += n
            results_of_job = {name: results[name][rows] for name in job.outputs}
            job.tell(taken - job.submitted, run)
            if job.future.done():
                continue
            if n == len(job.rows):
                job.future.set_result(results_of_job)
                continue
            job.parts[part] = results_of_job
            # Of two devices, the one with the later part may be done first.
            if job.begun == len(job.rows) and None not in job.parts:
                job.future.set_result(join([each for each in job.parts if each is not None]))

    def _failed(self, device: int, batch: Batch, error: Exception) -> None:
        """Tell the calls of the batch at once; then restart the engine. What waits, waits for that."""
        failure = EngineFailed()
        failure.__cause__ = error
        self._fail(batch.jobs, failure)
        if not self._closed:
            self._observer.failed(device)
            self._restarting.add(device)
            self._pool.restart(device, partial(_restarted, self._engines[device]), self._restart_ended)

    def _restart_ended(self, device: int, restarted: bool) -> bool:
        """Whether it is to be tried no more."""
        self._restarting.discard(device)
        if self._closed:
            return True
        if not restarted:
            self._set_down(device)
        elif device in self._down:
            self._down.discard(device)
            self._observer.up(device, True)
        self._pool.wake(self)
        return restarted

    def _set_down(self, device: int) -> None:
        if device in self._down:
            return
        self._down.add(device)
        self._observer.up(device, False)
        if not self.up:
            self._fail_waiting()

    def _fail_waiting(self) -> None:
        for queue in (self._interactive, self._background):
            while queue:
                self._fail([(queue.popleft(), 0)], Unloaded() if self._closed else EngineFailed())

    def _fail(self, jobs: list[tuple[Job, int]], error: Exception) -> None:
        for job, _ in jobs:
            with contextlib.suppress(asyncio.InvalidStateError):  # answered, or cancelled
                job.future.set_exception(error)
            self._forget(job)

    def _forget(self, job: Job) -> None:
        """Count the rows that will not run any more out of the queue, once; the job itself falls out when reached."""
        self._count(-job.left)
        job.rows = np.empty((0, *job.rows.shape[1:]), job.rows.dtype)  # not a view: it would keep the rows
        job.begun = 0

    def _count(self, change: int) -> None:
        for room in self._rooms:
            room.rows += change


def _restarted(engine: Engine) -> bool:
    try:
        engine.restart()
    except Exception:
        log.exception("an engine could not be restarted")
        return False
    return True
