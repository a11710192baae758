"""The models and what runs them: devices, their queues, the catalog, and who follows the repository.

Knows nothing of ports: calls come to the catalog's models from this process or from another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from serving import devices, engine, processors
from serving.catalog import Catalog
from serving.loading import Loader
from serving.metrics import Metrics
from serving.model import MAX_MESSAGE
from serving.pool import Pool
from serving.reloader import Reloader
from serving.settings import Settings

log = logging.getLogger(__name__)


class Backend:
    """`start` raises `StartError`; `catalog` has the models then, for so many `devices`. `changed` is called when the
    catalog or the state of an engine has changed; `alone` says whether at most one call is being answered. `close` ends
    it, however far it got.
    """

    reloader: Reloader

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        changed: Callable[[], None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.catalog = Catalog(changed)
        self.devices = 0
        self._settings = settings
        self._metrics = metrics
        self._changed = changed
        self._alone = alone
        self._following: asyncio.Task[None] | None = None
        self._closers: list[Callable[[], object]] = []

    async def start(self, max_message_bytes: int | None = None) -> int:
        """Load the models; in place of a process that has ended, none that needs messages of more than its
        `max_message_bytes`. Returns how many bytes a message may have that is let in at all: models that come later may
        need more than those that are here."""
        self.reloader = Reloader(self._settings, self.catalog, self._make_loader(), self._metrics)
        self.reloader.max_message_bytes = max_message_bytes
        await self.reloader.start(again=max_message_bytes is not None)
        log.info("the default model is %s", self.catalog.default)
        most = max_message_bytes or max(2 * self.catalog.max_message_bytes, MAX_MESSAGE)
        self.reloader.max_message_bytes = most
        return most

    def follow(self) -> None:
        """Look at the repository from now on, as often as the settings say."""
        if self._settings.reload_s:
            self._following = asyncio.ensure_future(self._follow(self._settings.reload_s))

    async def reconfigure(self, settings: Settings) -> None:
        """Take over the labels, and look at the repository."""
        self.reloader.relabel(settings.label_map)
        await self._scan()
        self.reloader.say_what_is_missing()

    async def close(self) -> None:
        """Free everything; what still runs is cut off."""
        if self._following is not None:
            self._following.cancel()
        if hasattr(self, "reloader"):
            await self.reloader.close()
            for model in self.catalog.all():
                await model.retire(0.0)
        for close in self._closers:
            close()

    def _make_loader(self) -> Loader:
        settings = self._settings
        chosen = devices.choose(
            settings.device,
            engine.why_not,
            threads=settings.threads or processors.available(),
            memory_mib=settings.gpu_memory_mib,
            cuda_graphs=settings.cuda_graphs,
            tensorrt_cache=settings.tensorrt_cache,
        )
        for number, device in enumerate(chosen):
            log.info("device %s: %s (%s), %d threads", device.name, device.provider, device.reason, device.threads)
            up = self._metrics.device_up.labels(device.name, device.provider)
            up.set_function(partial(self._all_work_on, number))
            self._metrics.engine_restarts.labels(device.name)  # there from the start, so that the first one is a rise
        self.devices = len(chosen)
        # A GPU's graphs belong to the thread that runs them.
        pool = Pool(len(chosen)) if any(device.is_gpu for device in chosen) else Pool(len(chosen), self._alone)
        loader = Loader(settings, chosen, pool, self._metrics, self._changed)
        self._closers += [loader.close, pool.close]
        return loader

    def _all_work_on(self, device: int) -> float:
        return float(all(model.works_on(device) for model in self.catalog.all()))

    async def _follow(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            await self._scan()

    async def _scan(self) -> None:
        try:
            await self.reloader.scan()
        except Exception:
            log.exception("looking at the model repository failed; what is loaded goes on serving")
