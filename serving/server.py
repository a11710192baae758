"""Wires the parts in one process: load, verify, warm, listen, follow the repository, drain, stop.

    pages ─ entrance ─ calls ──────────┐
                     └ administration ─┴ backend

Starts fully or not at all: health says SERVING once every model has answered a warm-up call, and whatever is wrong
before that raises `StartError`.
"""

from __future__ import annotations

import logging

import grpc

from serving import addresses, draining, logs, rereading
from serving.administration import Administration
from serving.backend import Backend
from serving.calls import Calls
from serving.catalog import Catalog
from serving.entrance import entrance, pages_context
from serving.health import Health
from serving.interceptor import SERVICE
from serving.metrics import Metrics
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.oip.statistics import OwnStatistics
from serving.pages import Pages
from serving.quotas import quotas_of
from serving.reloader import Reloader
from serving.settings import Settings

log = logging.getLogger(__name__)


class Service:
    """A running service. `start` raises `StartError`; `catalog` and the ports are there then. `stop` ends it, however
    far it got.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._configured = settings  # as it was read last
        self.port = self.metrics_port = self.admin_port = 0
        self.metrics = Metrics()
        self.metrics.count_lost_lines(lambda: logs.lost)
        self._entrance = entrance(settings, self.metrics)
        self._backend = Backend(settings, self.metrics, self._look, lambda: self._calls.gate.alone)
        self.catalog: Catalog = self._backend.catalog
        self.health = Health(self.catalog, SERVICE, OIP_SERVICE)
        self._statistics = OwnStatistics()
        self._calls = Calls(self._entrance, self.catalog, self.health, quotas_of(settings), self._statistics)
        self._gates = [self._calls.gate]
        self._servers: list[grpc.aio.Server] = []

    @property
    def reloader(self) -> Reloader:
        """Who changes the catalog."""
        return self._backend.reloader

    async def start(self) -> None:
        """Load the models, listen, and say SERVING. /livez and /metrics answer meanwhile."""
        settings = self.settings
        await self._open_pages()
        for port in (settings.port, settings.admin_port):
            if port:
                addresses.check_free(settings.host, port)
        most_bytes = await self._start_models()
        self.port = await self._calls.open(settings.port, most_bytes)
        self._servers.append(self._calls.port.server)
        await self._open_admin()
        self.health.accepting = True
        self.health.look()
        self.metrics.ready.set_function(lambda: float(self.health.serving))
        self.metrics.frontends.set(1)
        self._backend.follow()
        log.info("%s", addresses.where(settings.host, self.port, self.metrics_port, self.admin_port))

    async def reconfigure(self, settings: Settings) -> bool:
        """Take over what may change while serving, the log level and the labels, and look at the repository, which is
        done then."""
        before, self._configured = self._configured, settings
        rereading.take_over(before, settings)
        await self._backend.reconfigure(settings)
        return True

    async def ended(self) -> None:
        """Returns if a gRPC server ends that nobody has told to."""
        await draining.one_ended(self._servers)

    async def drain(self) -> None:
        """Say NOT_SERVING, wait for load balancers to notice, refuse new calls, and let those that came finish."""
        log.info("draining")
        await draining.drain(self.health, self._gates, self.settings)

    async def stop(self) -> None:
        """End everything; what still runs, or comes, is cancelled."""
        for server in self._servers:
            await server.stop(None)
        await self._backend.close()
        await self._pages.close()
        self._calls.close()
        await self.end()

    async def end(self) -> None:
        """What is left to do where the process ends without `stop`."""
        self.end_traces()

    def end_traces(self) -> None:
        """Send what is left of the traces."""
        self._entrance.end_traces()

    def _look(self) -> None:
        """The catalog has changed, or the state of an engine."""
        self.health.look()

    async def _start_models(self) -> int:
        return await self._backend.start()

    async def _open_pages(self) -> None:
        context = pages_context(self._entrance.certificates, self.metrics)
        self._pages = Pages(self.metrics.registry, self._entrance.access, lambda: self.health.serving, context)
        self.metrics_port = await self._pages.start(self.settings.host, self.settings.metrics_port)

    async def _open_admin(self) -> None:
        if self.settings.admin_port is None:
            return
        admin = Administration(self._entrance, self.catalog, self.health, self._statistics, self.reloader)
        self.admin_port = await admin.open(self.settings.admin_port)
        self._gates.append(admin.gate)
        self._servers.append(admin.port.server)
