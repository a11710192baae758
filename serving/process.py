"""The process around the service: signals, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from serving import event_loop, logs
from serving.errors import StartError
from serving.settings import Settings

log = logging.getLogger(__name__)


async def serve(settings: Settings, again: Callable[[], Settings] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, drain, exit with status 0; a second signal exits at once.

    SIGHUP looks at the repository, and takes over log level and labels of `again()`, the settings read anew.
    """
    asked, at_once, reread = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (at_once if asked.is_set() else asked).set())
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    service = _service(settings)
    starting = asyncio.ensure_future(service.start())
    told = asyncio.ensure_future(asked.wait())
    await asyncio.wait([starting, told], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if starting.done():
        try:
            starting.result()
        except BaseException:
            await service.stop()
            raise
        event_loop.settle()
        rereading = asyncio.ensure_future(_reread(service, reread, again or (lambda: settings)))
        await _first(told, asyncio.ensure_future(service.ended()))
        rereading.cancel()
        if asked.is_set():
            await _first(asyncio.ensure_future(service.drain()), asyncio.ensure_future(at_once.wait()))
        else:
            log.error("a gRPC server has ended that nobody told to; a new process has to take over")
            status = 1
    await service.end()
    log.info("stopped")
    # Not `Service.stop`: grpc's own end answers calls that are arriving with CANCELLED, which no client tries again.
    # When the sockets close, they fail with UNAVAILABLE.
    with contextlib.suppress(OSError):
        logging.shutdown()
    os._exit(status)


def _service(settings: Settings) -> Any:
    """One process, or the supervisor of several, which is spared ONNX Runtime."""
    if settings.frontends > 1:
        from serving.processes.supervisor import Supervisor

        return Supervisor(settings)
    from serving.server import Service

    return Service(settings)


async def _first(*steps: asyncio.Future[Any]) -> None:
    await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)


async def _reread(service: Any, asked: asyncio.Event, again: Callable[[], Settings]) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            settings = again()
        except StartError as error:
            log.error("SIGHUP: %s; what was configured before stays", error)  # noqa: TRY400 # one line is enough
            continue
        looked = await service.reconfigure(settings)
        repository = "was looked at" if looked else "will be looked at when there is an engine process"
        log.info("SIGHUP: the repository %s, log level %s", repository, logs.level())
