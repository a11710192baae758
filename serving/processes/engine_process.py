"""The engine process: the models and their queues, who follows the repository, and the administration's port."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from serving import draining, event_loop, logs
from serving.administration import Administration
from serving.backend import Backend
from serving.entrance import entrance
from serving.errors import QuotaExceeded
from serving.handover import Back
from serving.health import Health
from serving.interceptor import ADMIN_SERVICE
from serving.metrics import Metrics
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.processes import page
from serving.processes.control import Body, Control
from serving.processes.ledger import Ledger
from serving.processes.statistics import AskedStatistics
from serving.quotas import quotas_of
from serving.settings import Settings
from serving.tasks import Tasks

log = logging.getLogger(__name__)

# What other processes tell, and what is the supervisor's to add up.
_NOT_OURS = {"latentry_ready", "latentry_in_flight", "latentry_frontends", "python_info"}
_NOT_OURS |= {"latentry_certificate_expiry_timestamp_seconds"}
_NOT_OURS |= {f"process_{name}" for name in ("virtual_memory_bytes", "resident_memory_bytes", "open_fds")}
_NOT_OURS |= {f"process_{name}" for name in ("start_time_seconds", "max_fds")}


class EngineProcess:
    """`begin` is what the supervisor said first."""

    def __init__(self, settings: Settings, begin: Body, control: Control, book: Ledger, metrics: Metrics) -> None:
        self._settings = settings
        self._begin = begin
        self._control = control
        self._metrics = metrics
        self._statistics = AskedStatistics(control, book)
        self._backend = Backend(settings, metrics, self._look, self._is_alone)
        self._health = Health(self._backend.catalog, ADMIN_SERVICE, OIP_SERVICE)
        self._quotas = quotas_of(settings)
        self._back: Back | None = None
        self._loaded = asyncio.Event()
        self._waiting: list[int] = []  # sockets of front ends that came before there was a catalog
        self._tasks = Tasks()
        self._administration: Administration | None = None

    async def run(self) -> None:
        """Load the models, then run what the front ends hand over."""
        most_bytes = await self._backend.start(self._begin["max_message_bytes"])
        self._loaded.set()
        self._back = Back(self._backend.catalog, devices=self._backend.devices, on_ask={"spend": self._spend})
        self._backend.reloader.followed = self._back.followed
        self._serve()
        admin_port = await self._open_admin()
        self._health.accepting = True
        self._look()
        self._backend.follow()
        event_loop.settle()
        self._control.send("ready", {"max_message_bytes": most_bytes, "admin_port": admin_port})
        servers = [] if self._administration is None else [self._administration.port.server]
        await (draining.one_ended(servers) if servers else asyncio.Event().wait())

    def hear(self, kind: str, body: Body, descriptors: list[int]) -> None:
        """A new front end, or the end of the administration."""
        if kind == "frontend":
            self._waiting += descriptors
            self._serve()
        elif kind == "drain":
            self._tasks.start(self._drain())

    def gauges(self) -> list[Any]:
        """Those of models and devices."""
        return page.gauges(self._metrics.registry, without=_NOT_OURS)

    async def reconfigure(self, settings: Settings) -> None:
        """Take over the labels, and look at the repository: when it has been read for the first time."""
        await self._loaded.wait()
        await self._backend.reconfigure(settings)

    async def _drain(self) -> None:
        """Let the administration's calls finish; front ends may have work for us still."""
        gates = [] if self._administration is None else [self._administration.gate]
        await draining.drain(self._health, gates, self._settings)
        self._control.send("drained")

    def _look(self) -> None:
        self._health.look()
        if self._back is not None:
            self._back.changed()

    def _is_alone(self) -> bool:
        """Whether at most one call is being answered."""
        return self._back is not None and self._back.calls <= 1

    def _serve(self) -> None:
        """All front ends that wait, once there is something to serve them."""
        if self._back is None:
            return
        while self._waiting:
            self._tasks.start(self._back.serve(socket.socket(fileno=self._waiting.pop())))

    def _spend(self, body: Body) -> Body:
        try:
            self._quotas.spend(body["caller"], body["items"])
        except QuotaExceeded as error:
            return {"message": str(error), "retry_after_s": error.retry_after_s}
        return {}

    async def _open_admin(self) -> int:
        wanted = self._begin["admin_port"]
        if wanted is None:
            return 0
        self._administration = Administration(
            entrance(self._settings, self._metrics),
            self._backend.catalog,
            self._health,
            self._statistics,
            self._backend.reloader,
            self._set_level,
        )
        return await self._administration.open(wanted)

    def _set_level(self, level: str) -> None:
        logs.set_level(level)
        self._control.send("level", {"level": level})
