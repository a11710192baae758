"""A service whose front end and models know each other only by a hand-over socket, as in several processes, but in this
process and its one event loop: so that what tests look into is there."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from serving.calls import Calls
from serving.catalog import Catalog
from serving.errors import QuotaExceeded
from serving.handover import Back, Remote
from serving.health import Health
from serving.interceptor import SERVICE
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.processes.quotas import AskedQuotas
from serving.quotas import quotas_of
from serving.server import Service
from serving.settings import Settings


def service_of(settings: Settings) -> Service:
    """A service as LATENTRY_TEST_FRONTENDS wants it: split if it is set to 1 or more."""
    return SplitService(settings) if int(os.environ.get("LATENTRY_TEST_FRONTENDS") or 0) else Service(settings)


class SplitService(Service):
    """`catalog` is that of the models' side; what the front end shows of it comes a little later."""

    def __init__(self, settings: Settings) -> None:
        self._back: Back | None = None
        super().__init__(settings)
        self._quotas = quotas_of(settings)
        self._asked = AskedQuotas(settings.quota_items_per_s > 0)
        self._replica = Catalog(lambda: self.health.look())
        self.health = Health(self._replica, SERVICE, OIP_SERVICE)
        self._calls = Calls(self._entrance, self._replica, self.health, self._asked, self._statistics)
        self._gates = [self._calls.gate]

    async def stop(self) -> None:
        """End everything; what still runs, or comes, is cancelled."""
        await super().stop()
        if self._back is not None:
            self._back.close()

    def _look(self) -> None:
        super()._look()
        if self._back is not None:
            self._back.changed()

    async def _start_models(self) -> int:
        most_bytes = await super()._start_models()
        self._back = Back(self.catalog, devices=self._backend.devices, on_ask={"spend": self._spend})
        ours, theirs = socket.socketpair()
        self._serving = asyncio.ensure_future(self._back.serve(theirs))
        self._asked.remote = Remote(ours, self._replica, changed=self.health.look)
        await self._asked.remote.start()
        return most_bytes

    def _spend(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            self._quotas.spend(body["caller"], body["items"])
        except QuotaExceeded as error:
            return {"message": str(error), "retry_after_s": error.retry_after_s}
        return {}
