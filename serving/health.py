"""What grpc.health tells: of the server as a whole, of our service, and of each model by its name.

A model serves while one of its loaded versions has an engine that works. grpc's own servicer forgets all watchers of a
service when one of them leaves, so that the others never hear of the end (grpc#43403); hence this one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from serving.catalog import Catalog

_SERVING: int = pb.HealthCheckResponse.SERVING
_NOT_SERVING: int = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The state of `catalog`; `look` tells the watchers that it may have changed. `services` are the names of ours."""

    def __init__(self, catalog: Catalog, *services: str) -> None:
        self.accepting = False  # whether the server as a whole takes calls
        self._catalog = catalog
        self._whole = ("", *services)
        self._known: set[str] = set()
        self._watchers: set[asyncio.Event] = set()

    @property
    def serving(self) -> bool:
        """Whether calls for the default model are taken and answered."""
        return self.accepting and self._is_up(self._catalog.default)

    def status(self, name: str) -> int:
        """Of the server, a service of ours, or a model; SERVICE_UNKNOWN for what was never here."""
        if name in self._whole:
            return _SERVING if self.serving else _NOT_SERVING
        if self._is_up(name):
            return _SERVING if self.accepting else _NOT_SERVING
        return _NOT_SERVING if name in self._known else _UNKNOWN

    def look(self) -> None:
        """Something may have changed."""
        self._known.update(model.manifest.name for model in self._catalog.all())
        for watcher in self._watchers:
            watcher.set()

    async def wait(self, changed: asyncio.Event) -> None:
        """Until `look` is called the next time."""
        self._watchers.add(changed)
        try:
            await changed.wait()
        finally:
            self._watchers.discard(changed)
            changed.clear()

    def _is_up(self, name: str) -> bool:
        return any(model.up for model in list(self._catalog.versions(name).values()))  # a scrape's thread asks too


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # it has no types
    """`grpc.health.v1.Health` from `health`."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:  # noqa: N802
        status = self._health.status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Writes the status now and whenever it has changed; a slow reader misses what did not last."""
        last: int | None = None
        changed = asyncio.Event()
        while True:
            status = self._health.status(request.service)
            if status != last:
                last = status
                await context.write(pb.HealthCheckResponse(status=status))
            if status == self._health.status(request.service):
                await self._health.wait(changed)
