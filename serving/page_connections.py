"""Bounds what clients can do to the HTTP pages with connections alone: many, idle, slow, or speaking something else.

    connection ─ at most N, the longest idle one goes ─ headers within seconds ─ page ─ idle for seconds ─ closed

Knows nothing of the pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)

# Every scraper and prober of one process; more connections than this are somebody's mistake or malice.
_MOST_CONNECTIONS = 256
_LINGER_S = 1.0  # for a body that nobody asked for

HEADERS = {"Server": "latentry", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def line(status: int, text: str, **headers: str) -> web.Response:
    """A reply of one line that tells nothing of what answers."""
    return web.Response(status=status, text=text + "\n", headers={**HEADERS, **headers})


class Connections(web.Server):
    """Keeps the connections few and busy.

    One that has had no request for `idle_s` goes, also if it is still sending the headers of one; and when there are
    too many, the one goes that has waited longest.
    """

    def __init__(self, answer: Answer, idle_s: float) -> None:
        super().__init__(self._answer_in_time)
        self._answer = answer
        self._idle_s = idle_s
        self._busy = 0
        self._waiting: dict[RequestHandler, _Deadline] = {}  # the one that has waited longest is first

    def __call__(self) -> RequestHandler:
        loop = asyncio.get_running_loop()
        no_log = logging.getLogger(f"{__name__}.access")
        no_log.disabled = True
        idle_s = 2 * self._idle_s  # ours comes first
        return _Handler(self, loop=loop, access_log=no_log, lingering_time=_LINGER_S, keepalive_timeout=idle_s)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._wait(handler, transport)
        if len(self._waiting) + self._busy > _MOST_CONNECTIONS:
            _, deadline = next(iter(self._waiting.items()))
            deadline.now()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._stop_waiting(handler)
        super().connection_lost(handler, exc)

    async def _answer_in_time(self, request: web.BaseRequest) -> web.StreamResponse:
        handler, transport = request.protocol, request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        self._stop_waiting(handler)
        self._busy += 1
        try:
            return await self._answer(request)
        finally:
            self._busy -= 1
            if not transport.is_closing():
                self._wait(handler, transport)

    def _wait(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        def close() -> None:
            self._stop_waiting(handler)
            transport.abort()

        self._waiting[handler] = _Deadline(asyncio.get_running_loop().call_later(self._idle_s, close), close)

    def _stop_waiting(self, handler: RequestHandler) -> None:
        deadline = self._waiting.pop(handler, None)
        if deadline is not None:
            deadline.timer.cancel()


@dataclass(frozen=True, slots=True)
class _Deadline:
    timer: asyncio.TimerHandle
    now: Callable[[], None]


class _Handler(RequestHandler):
    """Answers what is no HTTP as tersely as everything else, and does not log it: anybody can send it."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500 and not isinstance(exc, ConnectionError):
            log.error("a page failed", exc_info=exc)
        reply = line(status, "bad request" if status < 500 else "internal error")
        reply.force_close()
        return reply
