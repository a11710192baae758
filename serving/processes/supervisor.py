"""Starts the engine process and the front ends, watches them, starts again what died, and shows them as one.

It takes no part in any call: it keeps the port, the counts and the pages, and says to each what has become of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from serving import addresses, logs, processors, rereading
from serving.entrance import access_of, certificates_of, pages_context
from serving.errors import StartError
from serving.metrics import Metrics
from serving.pages import Pages
from serving.processes import control, descriptors, statistics
from serving.processes.child import BEAT_S, ENGINE, FRONTEND
from serving.processes.control import Body, Gone
from serving.processes.page import Page
from serving.processes.slot import Slot
from serving.settings import Settings
from serving.tasks import Tasks

log = logging.getLogger(__name__)

_GAUGES_S = 1.0  # that a scrape waits for a child's gauges
_TRY_AGAIN_S = 1.0  # what the system had no room for
_AFTER_DRAIN_S = 5.0  # for a child to end that has been told to


class Supervisor:
    """`start` raises `StartError`; the ports are there then. Like a `Service` to the process around it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._configured = settings
        self.port = self.metrics_port = self.admin_port = 0
        self.metrics = Metrics()
        self.metrics.count_lost_lines(lambda: logs.lost)
        self._level = settings.log_level
        self._most_bytes: int | None = None
        self._stopping = False
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answers = {"statistics": lambda of: statistics.totals(self._ledgers(), of)}
        self._engine = Slot("latentry-engine", self._begin_engine, self._heard, self._ended, answers)
        self._frontends = [
            Slot(f"latentry-fe-{number}", self._begin_frontend, self._heard, self._ended, answers)
            for number in range(settings.frontends)
        ]
        self._slots = [self._engine, *self._frontends]
        self._engine_drained = asyncio.Event()
        self._tasks = Tasks()
        self._pages: Pages | None = None

    async def start(self) -> None:
        """Start all processes; they take calls once all are ready. /livez and /metrics answer meanwhile."""
        settings = self.settings
        descriptors.open_standard()
        descriptors.raise_limit(settings.frontends)
        if settings.frontends > processors.available():
            log.warning("%d front ends share %d processors", settings.frontends, processors.available())
        await self._open_pages()
        self._port = addresses.keep(settings.host, settings.port)
        self.port = int(self._port.getsockname()[1])
        if settings.admin_port:
            addresses.check_free(settings.host, settings.admin_port)
        for slot in self._slots:
            self._start(slot)
        self._tasks.start(self._watch())
        await self._started
        log.info("%s", addresses.where(settings.host, self.port, self.metrics_port, self.admin_port))

    async def reconfigure(self, settings: Settings) -> bool:
        """Take over what may change while serving, the log level and the labels, and look at the repository. False if
        there is no engine process now: the next one begins with them."""
        before, self._configured = self._configured, settings
        if rereading.take_over(before, settings):
            self._set_level(settings.log_level)
        if self._engine.control is None:
            return False
        try:
            await self._engine.control.ask("reconfigure", {"settings": settings.model_dump(mode="json")})
        except Gone:
            return False
        return True

    async def ended(self) -> None:
        """Never returns: what ends is started again."""
        await asyncio.Event().wait()

    async def drain(self) -> None:
        """Let the front ends finish what came, then end the engine process."""
        log.info("draining")
        self._stopping = True
        for slot in self._slots:
            slot.send("drain") if slot.up else slot.kill()
        if not self._engine.up:
            self._engine_drained.set()
        loop, settings = asyncio.get_running_loop(), self.settings
        give_up = loop.time() + settings.drain_grace_s + settings.drain_s + _AFTER_DRAIN_S
        await self._end(self._frontends, give_up - loop.time())
        with contextlib.suppress(asyncio.TimeoutError):  # the administration's calls
            await asyncio.wait_for(self._engine_drained.wait(), give_up - loop.time())
        self._engine.send("end")
        await self._end([self._engine], _AFTER_DRAIN_S)

    async def stop(self) -> None:
        """End everything at once."""
        self._tasks.cancel()
        await self.end()
        if self._pages is not None:
            await self._pages.close()

    async def end(self) -> None:
        """No process is left."""
        self._stopping = True
        await self._end(self._slots, 0.0)

    # ---- the page ----

    async def _open_pages(self) -> None:
        context = pages_context(certificates_of(self.settings), self.metrics)
        self.metrics.ready.set_function(lambda: float(self._is_ready()))
        self.metrics.frontends.set_function(lambda: sum(slot.serving for slot in self._frontends))
        for process in (ENGINE, FRONTEND):
            self.metrics.process_restarts.labels(process)  # there from the start, so that the first one is a rise
        self._page = Page(self.metrics.registry, self._ledgers(), self._pids)
        access = access_of(self.settings)
        self._pages = Pages(self._page, access, self._is_ready, context, before=self._ask_gauges)
        self.metrics_port = await self._pages.start(self.settings.host, self.settings.metrics_port)

    def _is_ready(self) -> bool:
        return not self._stopping and self._engine.up and any(slot.serving for slot in self._frontends)

    def _ledgers(self) -> list[int]:
        return [slot.ledger for slot in self._slots]

    def _pids(self) -> list[int]:
        return [slot.pid for slot in self._slots if slot.pid is not None]

    async def _ask_gauges(self) -> None:
        """Those of the children that answer soon."""

        async def ask(slot: Slot) -> list[Any]:
            if slot.control is None:
                return []
            try:
                answer = await asyncio.wait_for(slot.control.ask("gauges"), _GAUGES_S)
            except (Gone, asyncio.TimeoutError):
                return []
            return list(answer["gauges"])

        self._page.heard = [gauge for said in await asyncio.gather(*map(ask, self._slots)) for gauge in said]

    # ---- the children ----

    def _start(self, slot: Slot) -> None:
        slot.start()
        if slot is self._engine:
            for frontend in self._frontends:
                self._connect(frontend)
        else:
            self._connect(slot)
            self._open(slot)

    def _connect(self, frontend: Slot) -> None:
        """Give the front end and the engine process a socket between them."""
        if frontend.control is None or self._engine.control is None:
            return
        try:
            one, other = control.pair()
            with one, other:
                frontend.send("engine", {"process": self._engine.pid}, (one.fileno(),))
                self._engine.send("frontend", descriptors=(other.fileno(),))
        except OSError as error:
            log.error("%s cannot be connected, and is tried again: %s", frontend.name, error.strerror)  # noqa: TRY400
            self._tasks.start(self._connect_later(frontend))

    def _open(self, frontend: Slot) -> None:
        """Let it open the port, if it is known how."""
        if self._most_bytes is not None:
            frontend.send("open", {"port": self.port, "max_message_bytes": self._most_bytes})

    def _begin(self, role: str) -> Body:
        # As it was started, but for what may change while serving.
        labels = self._configured.labels
        settings = self.settings.model_copy(update={"labels": labels})
        return {"role": role, "settings": settings.model_dump(mode="json"), "level": self._level}

    def _begin_engine(self) -> Body:
        admin_port = None if self.settings.admin_port is None else self.admin_port or self.settings.admin_port
        return {**self._begin(ENGINE), "max_message_bytes": self._most_bytes, "admin_port": admin_port}

    def _begin_frontend(self) -> Body:
        return self._begin(FRONTEND)

    def _heard(self, slot: Slot, kind: str, body: Body) -> None:
        if kind == "refused":
            self._refused(slot, body)
        elif kind == "level":
            self._set_level(body["level"])
        elif kind == "drained":
            self._engine_drained.set()
        elif kind == "disconnected":
            self._connect(slot)  # nothing happens if there is no engine process: the next one is connected to all
        elif kind == "ready" and slot is self._engine:
            self._engine_ready(body)
        elif kind == "ready" and self._started.done():
            slot.send("accept")
        elif kind == "ready" and all(each.up for each in self._frontends):
            for each in self._frontends:
                each.send("accept")
            # Not when all have said that they serve: the first may have calls in hand by then, and is to be drained.
            self._started.set_result(None)

    def _engine_ready(self, body: Body) -> None:
        self.admin_port = body["admin_port"]
        if self._most_bytes is None:
            self._most_bytes = body["max_message_bytes"]
            for frontend in self._frontends:
                self._open(frontend)

    def _refused(self, slot: Slot, body: Body) -> None:
        if self._started.done():
            log.error("%s cannot start: %s", slot.name, body["message"])
            return
        error = StartError(body["message"])
        error.exit_code = body["status"]
        self._started.set_exception(error)

    def _ended(self, slot: Slot, status: int) -> None:
        if slot is self._engine:
            self._engine_drained.set()
        if self._stopping:
            return
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        if not self._started.done():
            self._started.set_exception(StartError(f"{slot.name} ended {how} while it started"))
        if self._started.exception() is not None:
            return
        pause_s = slot.pause_s()
        log.error("%s ended %s; another starts %s", slot.name, how, f"in {pause_s:g} s" if pause_s else "now")
        self.metrics.process_restarts.labels(ENGINE if slot is self._engine else FRONTEND).inc()
        self._tasks.start(self._start_later(slot, pause_s))

    async def _start_later(self, slot: Slot, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        while not self._stopping:
            try:
                self._start(slot)
            except OSError as error:  # no descriptor, no process, no memory: there may be some later
                log.error("%s cannot be started, and is tried again: %s", slot.name, error.strerror)  # noqa: TRY400
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                return

    async def _connect_later(self, frontend: Slot) -> None:
        await asyncio.sleep(_TRY_AGAIN_S)
        if not self._stopping:
            self._connect(frontend)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(BEAT_S)
            for slot in self._slots:
                slot.look(trust=loop.time() - before > 2 * BEAT_S)

    def _set_level(self, level: Any) -> None:
        self._level = level
        logs.set_level(level)
        for slot in self._slots:
            slot.send("level", {"level": level})

    async def _end(self, slots: list[Slot], patience_s: float) -> None:
        """Wait for these, and kill those that are still there then."""
        waiting = asyncio.gather(*(slot.wait() for slot in slots))
        try:
            await asyncio.wait_for(asyncio.shield(waiting), patience_s)
        except asyncio.TimeoutError:
            for slot in slots:
                slot.kill()
            await waiting
