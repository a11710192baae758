"""A front end: it answers calls on the port that all front ends share, and hands their work over to the engine process.

While there is no engine, it says NOT_SERVING and its calls fail so that their callers may try again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

from serving import draining, event_loop
from serving.calls import Calls
from serving.catalog import Catalog
from serving.entrance import entrance
from serving.handover import ARENA_BYTES, EngineGone, Remote
from serving.health import Health
from serving.interceptor import SERVICE
from serving.metrics import Metrics
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.processes import page
from serving.processes.control import Body, Control
from serving.processes.ledger import Ledger
from serving.processes.quotas import AskedQuotas
from serving.processes.statistics import AskedStatistics
from serving.settings import Settings
from serving.tasks import Tasks

log = logging.getLogger(__name__)

_OURS = {"latentry_in_flight"}
_AGAIN_S = 0.1  # until a front end that has lost its engine process asks for a connection
_MOST_DOUBLINGS = 5  # of that


class FrontendProcess:
    """`begin` is what the supervisor said first."""

    def __init__(self, settings: Settings, begin: Body, control: Control, book: Ledger, metrics: Metrics) -> None:
        self._settings = settings
        self._control = control
        self._metrics = metrics
        self._catalog = Catalog(self._look)
        self._health = Health(self._catalog, SERVICE, OIP_SERVICE)
        self._entrance = entrance(settings, metrics)
        self._quotas = AskedQuotas(settings.quota_items_per_s > 0)
        self._calls = Calls(self._entrance, self._catalog, self._health, self._quotas, AskedStatistics(control, book))
        self._remote: Remote | None = None
        self._connected = asyncio.Event()
        self._order: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._failures = 0  # of connections, one after another
        self._refused_by = 0  # the engine process that took none of the last
        self._told = False
        self._tasks = Tasks()

    async def run(self) -> None:
        """Answer calls once there are models and the supervisor says so."""
        order = await self._order
        await self._connected.wait()
        await self._calls.open(order["port"], order["max_message_bytes"], shared=True)
        event_loop.settle()
        self._control.send("ready")
        await draining.one_ended([self._calls.port.server])

    def hear(self, kind: str, body: Body, descriptors: list[int]) -> None:
        """An engine, when to open the port, when to take calls, and when to end."""
        if kind == "engine" and descriptors:
            self._tasks.start(self._connect(descriptors[0], body["process"]))
        elif kind == "engine":  # there was no room for the socket
            self._tasks.start(self._ask_again(self._remote))
        elif kind == "open":
            self._order.set_result(body)
        elif kind == "accept":
            self._health.accepting = True
            self._health.look()
            self._look()
        elif kind == "drain":
            self._tasks.start(self._drain())

    def gauges(self) -> list[Any]:
        """The calls that are inside."""
        return page.gauges(self._metrics.registry, names=_OURS)

    async def reconfigure(self, settings: Settings) -> None:
        """All that changes comes from the engine process."""

    async def _connect(self, fd: int, process: int) -> None:
        """Work with this engine process at the other end until it has gone, or there is another."""
        # If it did not take us, without the memory that would be shared: it may have no room for that.
        arena_bytes = 0 if process == self._refused_by else ARENA_BYTES
        sock = socket.socket(fileno=fd)
        before, remote = self._remote, Remote(sock, self._catalog, changed=self._look, arena_bytes=arena_bytes)
        self._remote = self._quotas.remote = remote
        if before is not None:
            before.close()
        try:
            await remote.start()
        except EngineGone:
            self._failures += 1
            self._refused_by = process
        else:
            self._failures = 0
            self._connected.set()
            self._look()
            await remote.closed
        await self._ask_again(remote)

    async def _ask_again(self, gone: Remote | None) -> None:
        """For a connection, if none has come since `gone`: it was the connection that went, and not the process."""
        await asyncio.sleep(_AGAIN_S * 2 ** min(self._failures, _MOST_DOUBLINGS))
        if self._remote is gone:
            self._control.send("disconnected")

    async def _drain(self) -> None:
        await draining.drain(self._health, [self._calls.gate], self._settings)
        self._entrance.end_traces()
        os._exit(0)  # the port's sockets close with it: who comes late is told UNAVAILABLE, and may try elsewhere

    def _look(self) -> None:
        self._health.look()
        if self._health.serving != self._told:
            self._told = self._health.serving
            self._control.send("serving", {"serving": self._told})
