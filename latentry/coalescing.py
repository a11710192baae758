"""Sends the pieces of calls from several threads together, and gives each call its part of the reply.

A call that finds few requests under way sends its own, in its own thread. What gathers meanwhile is sent by whichever
thread brings a reply: that of such a call, or gRPC's. Knows neither plans nor what a piece holds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc

from latentry import lanes, pieces
from latentry.lanes import Lane
from latentry.pieces import Answer, Piece
from latentry.target import LatentryError
from latentry.v1 import vae_pb2 as pb

Refusal = Callable[[grpc.StatusCode, str], LatentryError]


class _Waiter:
    """A call that waits for its part: its thread holds on to `told` until somebody lets go."""

    __slots__ = ("answer", "deadline", "error", "gone", "piece", "told")

    def __init__(self, piece: Piece, deadline: float) -> None:
        self.piece = piece
        self.deadline = deadline  # of time.monotonic
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.gone = False
        self.told = threading.Lock()
        self.told.acquire()

    def tell(self, answer: Answer | None, error: BaseException | None) -> None:
        """How it ended; only the first time counts."""
        if self.answer is None and self.error is None:
            self.answer, self.error = answer, error
            with contextlib.suppress(RuntimeError):  # told by two threads at once
                self.told.release()


class _Flight:
    """A request under way, for these; for none of them if a call sends it itself."""

    __slots__ = ("waiters",)

    def __init__(self, waiters: Sequence[_Waiter] = ()) -> None:
        self.waiters = waiters


class Coalescer:
    """`send(pieces, timeout_s)` sends one request and returns its reply, or raises `LatentryError`; `start` sends one
    and returns gRPC's future of it; `refusal` makes the error that a call raises. Unless they are to `merge`, pieces go
    one by one."""

    def __init__(
        self,
        send: Callable[[Sequence[Piece], float], Any],
        start: Callable[[Sequence[Piece], float], Any],
        refusal: Refusal,
        *,
        merge: bool,
    ) -> None:
        self._send = send
        self._start = start
        self._refusal = refusal
        self._merge = merge
        self._lock = threading.Lock()
        self._lanes: dict[Any, Lane[_Waiter]] = {}

    def ask(self, piece: Piece, info: pb.ModelInfo, timeout_s: float) -> Answer:
        """What comes of the piece, sent alone or with others. Raises `LatentryError`."""
        if not self._merge or not piece.sociable():
            return self._alone(piece, timeout_s)
        lane: Lane[_Waiter] | None = None
        flight, waiter = _Flight(), _Waiter(piece, time.monotonic() + timeout_s)
        in_main = threading.current_thread() is threading.main_thread()
        landed = self._landed_in_main if in_main else self._landed
        flies = False
        try:  # from here on an interrupt must not leave the lane as if this call were under way
            with self._lock:
                lane = self._lanes.get(piece.alike)
                if lane is None:
                    lane = self._lanes[piece.alike] = Lane(piece.alike, info)
                lane.info = info
                flies = len(lane.flying) < lanes.AT_ONCE
                if flies:
                    lane.flying.add(flight)
                else:
                    lane.waiting.append(waiter)
            return self._alone(piece, timeout_s) if flies else self._wait(waiter, lane)
        finally:
            if flies and lane is not None:
                try:
                    landed(lane, flight)
                except BaseException:  # Python interrupts where a function begins, too
                    landed(lane, flight)
                    raise

    def close(self) -> None:
        """What is not sent yet fails; what is, fails with the channel."""
        with self._lock:
            waiting = [waiter for lane in self._lanes.values() for waiter in lane.waiting]
            for lane in self._lanes.values():
                lane.waiting.clear()
        self._fail(waiting, grpc.StatusCode.CANCELLED, "the client was closed")

    def _alone(self, piece: Piece, timeout_s: float) -> Answer:
        return pieces.answer(self._send([piece], timeout_s), piece)

    def _wait(self, waiter: _Waiter, lane: Lane[_Waiter]) -> Answer:
        try:
            left = min(waiter.deadline - time.monotonic(), threading.TIMEOUT_MAX)
            if not waiter.told.acquire(timeout=max(left, 0.0)):
                raise self._refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        except BaseException:
            waiter.gone = True  # what is under way ends at the deadline of the last one that it is for
            with self._lock, contextlib.suppress(ValueError):
                lane.waiting.remove(waiter)
            raise
        if waiter.answer is None:
            raise waiter.error or RuntimeError("told nothing")
        return waiter.answer

    def _landed(self, lane: Lane[_Waiter], flight: _Flight) -> None:
        """A request of the lane has ended: send what waits. Nothing changes if it is called again."""
        departing: list[_Flight] = []
        with self._lock:
            lane.flying.discard(flight)
            while lane.waiting and len(lane.flying) < lanes.AT_ONCE:
                taken = lane.take(lanes.AT_ONCE - len(lane.flying))
                if taken:
                    departing.append(_Flight(taken))
                    lane.flying.add(departing[-1])
            if not lane.flying:
                self._lanes.pop(lane.alike, None)
        for each in departing:
            self._depart(each.waiters, partial(self._landed, lane, each))

    def _landed_in_main(self, lane: Lane[_Waiter], flight: _Flight) -> None:
        """The same, where Python may interrupt at any moment, and would lose what is about to go: a thread sends it."""
        with self._lock:
            lane.flying.discard(flight)
            others_wait = bool(lane.waiting)
            if not lane.flying and not others_wait:
                self._lanes.pop(lane.alike, None)
        if others_wait:
            threading.Thread(target=self._landed, args=(lane, flight), daemon=True).start()

    def _depart(self, waiters: Sequence[_Waiter], landed: Callable[[], None]) -> None:
        """Send one request for all of them; `landed` is called when it has ended."""
        try:
            timeout_s = max(waiter.deadline for waiter in waiters) - time.monotonic()
            call = self._start([waiter.piece for waiter in waiters], timeout_s)
        except LatentryError as error:
            self._fail(waiters, error.code, error.message, error.__cause__)
            landed()
            return
        except Exception as error:  # of what one call gave, such as text that no message holds
            landed()
            self._apart(waiters, error)
            return
        call.add_done_callback(partial(self._arrived, waiters, landed))

    def _arrived(self, waiters: Sequence[_Waiter], landed: Callable[[], None], call: Any) -> None:
        """In gRPC's thread."""
        try:
            landed()  # first, so that what waits is under way while these are told
            self._tell(waiters, call)
        except Exception as error:
            self._apart(waiters, error)

    def _tell(self, waiters: Sequence[_Waiter], call: Any) -> None:
        together = [waiter.piece for waiter in waiters]
        try:
            parts = pieces.answers(call.result(), together)
        except grpc.FutureCancelledError:
            self._fail(waiters, grpc.StatusCode.CANCELLED, "the client was closed")
            return
        except grpc.RpcError as error:
            if len(waiters) > 1 and error.code() in lanes.APART:
                self._apart(waiters, error)
            else:
                self._fail(waiters, error.code(), error.details() or "", error)
            return
        if parts is None:
            self._apart(waiters, None)
            return
        for waiter, part in zip(waiters, parts, strict=True):
            waiter.tell(part, None)

    def _apart(self, waiters: Sequence[_Waiter], error: Exception | None) -> None:
        """Send each alone. One that was alone has failed with `error`."""
        if len(waiters) == 1 and error is not None:
            self._fail_with(waiters, error)
            return
        for waiter in waiters:
            if not waiter.gone:
                self._depart([waiter], _nothing)

    def _fail(
        self, waiters: Sequence[_Waiter], code: grpc.StatusCode, message: str, cause: BaseException | None = None
    ) -> None:
        for waiter in waiters:
            error = self._refusal(code, message)
            error.__cause__ = cause
            self._fail_with([waiter], error)

    def _fail_with(self, waiters: Sequence[_Waiter], error: Exception) -> None:
        for waiter in waiters:
            waiter.tell(None, error)


def _nothing() -> None:
    """What has to be done when a call that was sent alone has ended: it took no place in its lane."""
