"""What grpc.health tells: of the server as a whole, of our service, and of each model by its name.

Kept in step with the catalog: a model serves while one of its loaded versions has an engine that works.
"""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from serving.catalog import Catalog
from serving.interceptor import SERVICE

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """`servicer` answers; `look` says that something may have changed."""

    def __init__(self, catalog: Catalog) -> None:
        self.servicer = HealthServicer()
        self.accepting = False  # whether the server as a whole takes calls
        self._catalog = catalog
        self._known: set[str] = set()
        self._pending: asyncio.Task[None] | None = None
        self._again = False

    @property
    def serving(self) -> bool:
        """Whether calls for the default model are taken and answered."""
        versions = self._catalog.versions(self._catalog.default)
        return self.accepting and any(model.up for model in versions.values())

    def look(self) -> None:
        """Tell of the new state soon, from the event loop."""
        self._again = True
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._tell_until_still())

    async def tell(self) -> None:
        """Tell of the state as it is now."""
        up = {model.manifest.name for model in self._catalog.all() if model.up}
        self._known |= up | {model.manifest.name for model in self._catalog.all()}
        for name in ("", SERVICE):
            await self.servicer.set(name, _SERVING if self.serving else _NOT_SERVING)
        for name in sorted(self._known):
            await self.servicer.set(name, _SERVING if self.accepting and name in up else _NOT_SERVING)

    async def _tell_until_still(self) -> None:
        try:
            while self._again:
                self._again = False
                await self.tell()
        finally:
            self._pending = None
