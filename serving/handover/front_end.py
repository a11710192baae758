"""One front end, as the engine process sees it: its calls, and the models that it may still use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from mmap import mmap
from typing import cast

from serving.batcher import Batcher
from serving.batches import Array, Results, Run
from serving.handover.arena import attach
from serving.handover.link import Data, Link
from serving.handover.plans import Outputs, Plan
from serving.handover.questions import OnAsk, Questions
from serving.handover.records import (
    BACKGROUND,
    CANCEL,
    CATALOG,
    FOLLOWED,
    HEAD,
    HELLO,
    OUTPUTS_PLACED,
    RELEASE,
    ROWS_PLACED,
    RUN,
    RUNS,
    SUBMIT,
    VERSION,
    Head,
    Malformed,
    heard,
    said,
)
from serving.handover.running import Queue, Running, refusal
from serving.handover.state import GRAPHS, State, about
from serving.model import ENCODER, Model


class FrontEnd:
    """`hello` is done when it has begun, with False if it went instead; `gone` when it has."""

    def __init__(self, sock: socket.socket, on_ask: OnAsk, most_unsent: int) -> None:
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[bool] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._handlers = {HELLO: self._hello}
        self._link = Link(sock, self._handlers, self.close, most_unsent)
        self.put = self._link.put
        self._questions = Questions(on_ask, self.put)
        self._memory: mmap | None = None
        self._used: dict[int, ExitStack] = {}  # by the numbers of models
        self._queues: dict[int, Queue] = {}
        self._calls: dict[int, Running] = {}
        self._runs: dict[Run, int] = {}  # the slots of those that it was told last
        self._slots: list[Run | None] = [None] * RUNS
        self._next_slot = 0
        self._told = 0  # states
        self._followed = 0
        self._following: list[asyncio.Future[None]] = []  # of those who wait until it follows

    @property
    def calls(self) -> int:
        """How many it waits for."""
        return len(self._calls)

    def start(self) -> None:
        """Begin to listen to it."""
        self._link.start(descriptors=True)

    def follow(self, state: State, models: Mapping[int, Model]) -> None:
        """Tell it of this state, whose models are these; those that are new to it are kept until it releases them."""
        new = {number: model for number, model in models.items() if number not in self._used}
        for number, model in new.items():
            self._use(number, model)
        self._told += 1
        about_new = {number: about(model) for number, model in new.items()}
        self.put(said(CATALOG, {**state, "new": about_new}, number=self._told))

    async def follows(self) -> None:
        """Until it has taken over what it was told, or has gone."""
        told = self._told
        while self._followed < told and not self.gone.done():
            self._following.append(asyncio.get_running_loop().create_future())
            await self._following[-1]

    def close(self) -> None:
        """It has gone, or is to go: nobody waits for its calls, and it uses nothing."""
        if self.gone.done():
            return
        self.gone.set_result(None)
        if not self.hello.done():
            self.hello.set_result(False)
        self._link.close()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.withdraw()
        self._questions.close()
        for used in self._used.values():
            used.close()
        self._used.clear()
        self._queues.clear()
        self._memory = None
        self._wake()

    def _use(self, number: int, model: Model) -> None:
        self._used[number] = stack = ExitStack()
        stack.enter_context(model.used())
        for kind, batcher in model.batchers.items():
            plan = Plan(model.manifest, kind, model.parameters)
            queue = Queue(cast(Batcher, batcher), plan, model if kind == ENCODER else None)
            self._queues[len(GRAPHS) * number + GRAPHS.index(kind)] = queue

    # ---- what it says ----

    def _hello(self, head: Head, data: Data, at: int) -> None:
        hello = heard(head, data, at)
        if hello["version"] != VERSION:
            raise Malformed(f"version: got {hello['version']}, wanted {VERSION}")
        if hello["arena"]:
            self._memory = attach(self._link.take_descriptor(), hello["arena"])
        del self._handlers[HELLO]
        self._handlers |= {
            SUBMIT: self._submit,
            CANCEL: self._cancel,
            RELEASE: self._release,
            FOLLOWED: self._heard_of,
            **self._questions.handlers,
        }
        self.hello.set_result(True)

    def _submit(self, head: Head, data: Data, at: int) -> None:
        length, _, flags, mask, number, place, deadline, queue_number, n = head
        queue = self._queues.get(queue_number)
        if queue is None or not n or number in self._calls:
            raise Malformed(f"submit: got call {number} of {n} rows for queue {queue_number}")
        outputs = queue.plan.masked(mask)
        rows = self._rows(queue.plan, n, flags, data, at, length - HEAD.size, place)
        if flags & OUTPUTS_PLACED:
            self._check_place(place, outputs.size(n))
        call = Running(self, number, queue, outputs, n, place if flags & OUTPUTS_PLACED else -1, rows)
        background = bool(flags & BACKGROUND)
        try:
            job = queue.batcher.enqueue(rows, outputs.names, deadline or None, background=background, tell=call.heard)
        except Exception as error:
            self.put(refusal(number, error))
            return
        self._calls[number] = call
        call.job = job
        job.future.add_done_callback(call.done)

    def _rows(self, plan: Plan, n: int, flags: int, data: Data, at: int, there: int, place: int) -> Array:
        size = n * plan.row_bytes
        if not flags & ROWS_PLACED:
            if there < size:
                raise Malformed(f"rows: got {there} bytes, wanted {size}")
            return plan.rows(n, data, at)
        # A copy: the front end has the place again when it has its answer, and a cancelled call's batch may still run.
        return plan.rows(n, self._check_place(place, size), place).copy()

    def _check_place(self, place: int, size: int) -> mmap:
        if self._memory is None or place + size > len(self._memory):
            raise Malformed(f"place: got {size} bytes from {place} on, wanted them inside the arena")
        return self._memory

    def _cancel(self, head: Head, data: Data, at: int) -> None:
        call = self._calls.get(head[4])
        if call is not None:  # else its answer is on its way
            call.withdraw()

    def _release(self, head: Head, data: Data, at: int) -> None:
        number = head[4]
        used = self._used.pop(number, None)
        if used is None:
            raise Malformed(f"release: got model {number}, which it does not use")
        for k in range(len(GRAPHS)):
            self._queues.pop(len(GRAPHS) * number + k, None)
        used.close()

    def _heard_of(self, head: Head, data: Data, at: int) -> None:
        self._followed = head[4]
        self._wake()

    def _wake(self) -> None:
        following, self._following = self._following, []
        for each in following:
            if not each.done():
                each.set_result(None)

    # ---- what its calls say ----

    def slot(self, run: Run) -> int:
        """Where it finds this run, of which it is told if it was not."""
        slot = self._runs.get(run)
        if slot is None:
            slot = self._next_slot
            self._next_slot = (slot + 1) % RUNS
            forgotten = self._slots[slot]
            if forgotten is not None:
                del self._runs[forgotten]
            self._slots[slot], self._runs[run] = run, slot
            self.put(HEAD.pack(HEAD.size, RUN, 0, 0, run.started_ns, slot, run.seconds, run.padding, run.rows))
        return slot

    def ended(self, number: int) -> bool:
        """Whether this call is still to be answered; it is not any more."""
        return self._calls.pop(number, None) is not None

    def write(self, outputs: Outputs, rows: int, results: Results, place: int) -> None:
        """Put results into the arena."""
        if self._memory is not None:
            outputs.write(rows, results, self._memory, place)
