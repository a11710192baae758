"""How a process that answers calls comes to its end: told to, or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc

from serving.gate import Gate
from serving.health import Health
from serving.settings import Settings

log = logging.getLogger(__name__)

_LAST_REPLIES_S = 0.25  # for replies that are on their way out when every call has been answered


async def drain(health: Health, gates: Sequence[Gate], settings: Settings) -> None:
    """Say NOT_SERVING, wait for load balancers to notice, refuse new calls, and let those that came finish."""
    health.accepting = False
    health.look()
    await asyncio.sleep(settings.drain_grace_s)
    for gate in gates:
        gate.close()
    if not all(await asyncio.gather(*(gate.wait_empty(settings.drain_s) for gate in gates))):
        log.warning("calls were still running after %g s", settings.drain_s)
    await asyncio.sleep(_LAST_REPLIES_S)


async def one_ended(servers: Sequence[grpc.aio.Server]) -> None:
    """Returns if one of the servers ends."""
    waiting = [asyncio.ensure_future(server.wait_for_termination()) for server in servers]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
