"""A child of the supervisor: it hears what it is to be, becomes that, and ends when it is told to or when nobody is
there any more to tell it.

Signals are the supervisor's affair: a terminal or a service manager may send them to all processes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from serving import event_loop, logs, swift_metrics
from serving.errors import StartError
from serving.metrics import Metrics
from serving.processes.control import Body, Control
from serving.processes.ledger import Ledger
from serving.settings import Settings

log = logging.getLogger(__name__)

BEAT_S = 1.0  # how often a child says that its event loop turns
ENGINE, FRONTEND = "engine", "frontend"

_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends
_PR_SET_NAME = 15  # Linux: what `ps` and `top` call it; 15 bytes


class Role(Protocol):
    """What a child is."""

    def hear(self, kind: str, body: Body, descriptors: list[int]) -> None:
        """The supervisor says something; the descriptors are this one's own."""

    def gauges(self) -> list[Any]:
        """What it measures of itself now."""

    async def reconfigure(self, settings: Settings) -> None:
        """Take over what may change while serving."""

    async def run(self) -> None:
        """Be it; returns if it cannot go on. Raises `StartError` if it cannot begin."""


def main(descriptor: str) -> int:
    """`descriptor` is this end of the control socket."""
    gc.disable()  # imports make little garbage; `settle` enables it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # no such call, no such library: the socket's end will do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    event_loop.run(_Child(socket.socket(fileno=int(descriptor))).run())
    return 0


class _Child:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._said: asyncio.Queue[tuple[str, Body, list[int]]] = asyncio.Queue()
        self._count_lost: Callable[[], None] = lambda: None
        self._role: Role | None = None

    async def run(self) -> None:
        answers: Mapping[str, Any] = {"gauges": self._gauges, "reconfigure": self._reconfigure}
        control = Control(self._sock, lambda *said: self._said.put_nowait(said), lambda: os._exit(1), answers)
        beating = asyncio.ensure_future(self._beat(control))
        _, body, (counts,) = await self._said.get()
        _call_itself(body["name"])
        settings = Settings(**body["settings"])
        logs.configure(body["level"], settings.log_format)
        status = 1
        try:
            book = Ledger(counts)
            self._role = _role(settings, body, control, book, self._metrics(book))
            hearing = asyncio.ensure_future(self._hear(self._role))
            running = asyncio.ensure_future(self._role.run())
            for ended in (await asyncio.wait({hearing, running}, return_when=asyncio.FIRST_COMPLETED))[0]:
                ended.result()
            log.error("a gRPC server has ended that nobody told to; a new process has to take over")
        except StartError as error:
            status = error.exit_code
            control.send("refused", {"message": str(error), "status": status})
        except Exception as error:  # what nobody thought of; the log has the particulars
            log.exception("it cannot go on")
            control.send("refused", {"message": f"{type(error).__name__}: {error}", "status": status})
        beating.cancel()
        os._exit(status)

    def _metrics(self, book: Ledger) -> Metrics:
        """They are kept in `book`."""
        swift_metrics.keep_in(book.place)
        metrics = Metrics()
        metrics.forgotten = book.take_away
        lost, at = book.place("latentry_log_lines_lost", "latentry_log_lines_lost_total", {})
        before = lost[at]

        def count_lost() -> None:
            lost[at] = before + logs.lost

        self._count_lost = count_lost
        return metrics

    async def _hear(self, role: Role) -> None:
        while True:
            kind, body, descriptors = await self._said.get()
            if kind == "level":
                logs.set_level(body["level"])
            elif kind == "end":
                os._exit(0)
            else:
                role.hear(kind, body, descriptors)

    async def _beat(self, control: Control) -> None:
        while True:
            self._count_lost()
            control.send("beat")
            await asyncio.sleep(BEAT_S)

    def _gauges(self, body: Body) -> Body:
        self._count_lost()
        return {"gauges": [] if self._role is None else self._role.gauges()}

    async def _reconfigure(self, body: Body) -> Body:
        if self._role is not None:
            await self._role.reconfigure(Settings(**body["settings"]))
        return {}


def _role(settings: Settings, body: Body, control: Control, book: Ledger, metrics: Metrics) -> Role:
    if body["role"] == ENGINE:
        from serving.processes.engine_process import EngineProcess  # here: it alone needs ONNX Runtime

        return EngineProcess(settings, body, control, book, metrics)
    from serving.processes.frontend_process import FrontendProcess

    return FrontendProcess(settings, body, control, book, metrics)


def _call_itself(name: str) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
