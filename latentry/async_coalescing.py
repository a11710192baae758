"""Sends the pieces of concurrent asyncio calls together, and gives each call its part of the reply.

One for each channel and event loop. Knows neither plans nor what a piece holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import grpc

from latentry import lanes, pieces
from latentry.lanes import Lane
from latentry.pieces import Answer, Piece
from latentry.target import LatentryError
from latentry.v1 import vae_pb2 as pb

Send = Callable[[Sequence[Piece], float], Awaitable[Any]]
Refusal = Callable[[grpc.StatusCode, str], LatentryError]


class _Flight:
    """A request under way."""

    __slots__ = ("aboard", "deadline", "task")

    def __init__(self, waiters: Sequence[_Waiter], task: asyncio.Task[Any] | None) -> None:
        self.aboard = len(waiters)  # calls that still want it
        self.deadline = max(waiter.deadline for waiter in waiters)
        self.task = task


class _Waiter:
    """A call that waits for its part."""

    __slots__ = ("deadline", "flight", "future", "piece")

    def __init__(self, piece: Piece, deadline: float, future: asyncio.Future[Answer]) -> None:
        self.piece = piece
        self.deadline = deadline  # on the loop's clock
        self.future = future
        self.flight: _Flight | None = None

    @property
    def gone(self) -> bool:
        return self.future.done()


class AsyncCoalescer:
    """`send(pieces, timeout_s)` sends one request and returns its reply, or raises what gRPC does; `refusal` makes the
    error that a call raises. Unless they are to `merge`, pieces go one by one."""

    def __init__(self, send: Send, refusal: Refusal, *, merge: bool) -> None:
        self._send = send
        self._refusal = refusal
        self._merge = merge
        self.loop = asyncio.get_running_loop()
        self._lanes: dict[Any, Lane[_Waiter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: set[_Waiter] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")

    async def ask(self, piece: Piece, info: pb.ModelInfo, timeout_s: float) -> Answer:
        """What comes of the piece, sent alone or with others. Raises `LatentryError`; cancelled, it leaves the others
        as they are."""
        loop = self.loop
        waiter = _Waiter(piece, loop.time() + timeout_s, loop.create_future())
        if self._merge and piece.sociable():
            lane = self._lanes.get(piece.alike)
            if lane is None:
                lane = self._lanes[piece.alike] = Lane(piece.alike, info)
            lane.info = info
            lane.waiting.append(waiter)
            if len(lane.flying) < lanes.AT_ONCE and not lane.boarding:
                self._board(lane)
        else:
            self._fly_apart(waiter)
        self._waiters.add(waiter)
        if waiter.deadline < self._alarm_at:
            self._set_alarm(waiter.deadline)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            _leave(waiter)
            raise
        finally:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """What is not sent yet fails; what is, fails with the channel."""
        self._set_alarm(float("inf"))
        for waiter in [waiter for lane in self._lanes.values() for waiter in lane.waiting]:
            self._fail([waiter], grpc.StatusCode.CANCELLED, "the client was closed")

    def _start(self, flying: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        """`ended` is called when it has, even if it was cancelled before it began."""
        task = self.loop.create_task(flying)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            ended()

        task.add_done_callback(done)

    def _fly_apart(self, waiter: _Waiter) -> None:
        """Send one alone."""
        closed = partial(self._fail, [waiter], grpc.StatusCode.CANCELLED, "the client was closed")
        self._start(self._fly([waiter]), closed)  # which fails nobody who has been told

    def _board(self, lane: Lane[_Waiter]) -> None:
        """Send what is there when those that are about to call, in this turn of the loop, have called too."""
        lane.boarding = True
        request = object()
        lane.flying.add(request)
        begun: list[bool] = []

        def landed() -> None:
            lane.flying.discard(request)
            if not begun:
                lane.boarding = False
            while lane.waiting and lane.waiting[0].gone:
                lane.waiting.popleft()
            if lane.waiting and not lane.boarding:
                self._board(lane)
            elif not lane.flying:
                self._lanes.pop(lane.alike, None)

        self._start(self._next(lane, begun), landed)

    async def _next(self, lane: Lane[_Waiter], begun: list[bool]) -> None:
        begun.append(True)
        lane.boarding = False
        taken = lane.take(lanes.AT_ONCE - len(lane.flying) + 1)
        if lane.waiting and len(lane.flying) < lanes.AT_ONCE:
            self._board(lane)
        if taken:
            await self._fly(taken)

    async def _fly(self, waiters: Sequence[_Waiter]) -> None:
        waiters = [waiter for waiter in waiters if not waiter.gone]
        if not waiters:
            return
        flight = _Flight(waiters, asyncio.current_task())
        for waiter in waiters:
            waiter.flight = flight
        together = [waiter.piece for waiter in waiters]
        parts: list[Answer] | None = None
        try:
            parts = pieces.answers(await self._send(together, flight.deadline - self.loop.time()), together)
        except asyncio.CancelledError:  # by the channel that was closed, or since nobody waits any more
            self._fail(waiters, grpc.StatusCode.CANCELLED, "the client was closed")
            raise
        except grpc.RpcError as error:
            if len(waiters) == 1 or error.code() not in lanes.APART:
                self._fail(waiters, error.code(), error.details() or "", error)
                return
        except LatentryError as error:
            self._fail(waiters, error.code, error.message, error.__cause__)
            return
        except Exception as error:  # of what one call gave, such as text that no message holds
            if len(waiters) == 1:
                if not waiters[0].gone:
                    waiters[0].future.set_exception(error)
                return
        for at, waiter in enumerate(waiters):
            if not waiter.gone:
                if parts is not None:
                    waiter.future.set_result(parts[at])
                else:
                    self._fly_apart(waiter)

    def _fail(
        self, waiters: Sequence[_Waiter], code: grpc.StatusCode, message: str, cause: BaseException | None = None
    ) -> None:
        for waiter in waiters:
            if not waiter.gone:
                error = self._refusal(code, message)
                error.__cause__ = cause
                waiter.future.set_exception(error)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = None if at == float("inf") else self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        """Calls whose time is over leave, but for those that their request's own deadline ends."""
        now, next_ = self.loop.time(), float("inf")
        for waiter in list(self._waiters):
            if waiter.gone or (waiter.flight is not None and waiter.flight.deadline <= waiter.deadline):
                continue
            if waiter.deadline <= now:
                self._fail([waiter], grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
                _leave(waiter)
            else:
                next_ = min(next_, waiter.deadline)
        self._set_alarm(next_)


def _leave(waiter: _Waiter) -> None:
    """It waits no more. A request that nobody waits for is cancelled."""
    waiter.future.cancel()
    if waiter.flight is not None:
        waiter.flight.aboard -= 1
        if not waiter.flight.aboard and waiter.flight.task is not None:
            waiter.flight.task.cancel()
