"""The HTTP pages beside gRPC: /metrics for Prometheus, /livez and /readyz for whoever keeps the process running.

Served from the service's event loop, so that /livez answers while the loop turns. Knows nothing of models and calls.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from serving.access import Access, Role, names_of
from serving.errors import PermissionDenied, PortTaken, Unauthenticated
from serving.page_connections import HEADERS, Connections, line

log = logging.getLogger(__name__)

Ready = Callable[[], bool]

_MOST_SCRAPES = 8  # that wait for the thread that renders
_IDLE_S = 15.0  # also what a client gets for its headers; Prometheus scrapes every 15 s or comes anew
_REPLY_S = 10.0  # also what a TLS handshake gets

_GZIP = re.compile(r"gzip(?:\s*;\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?", re.IGNORECASE)  # RFC 9110, 12.4.2
_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_INDEX = """\
<!doctype html><html lang="en"><title>Latentry</title>
<ul><li><a href="/metrics">metrics</a><li><a href="/livez">livez</a><li><a href="/readyz">readyz</a></ul></html>
"""


class Pages:
    """The pages of `registry`; /metrics asks for the role metrics where `access` is enabled, the others for nothing.
    `before` is waited for before metrics are collected.
    """

    def __init__(
        self,
        registry: CollectorRegistry | Collector,
        access: Access,
        ready: Ready,
        ssl_context: ssl.SSLContext | None = None,
        idle_s: float = _IDLE_S,
        reply_s: float = _REPLY_S,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._before = before
        self._registry = registry
        self._access = access
        self._ready = ready
        self._ssl_context = ssl_context
        self._idle_s = idle_s
        self._reply_s = reply_s
        self._scrapes = 0
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._connections: Connections | None = None
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is another if 0 was given. Raises `PortTaken`."""
        self._connections = Connections(self._answer, self._idle_s)
        handshake_s = self._reply_s if self._ssl_context else None
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connections, host, port, ssl=self._ssl_context, ssl_handshake_timeout=handshake_s
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PortTaken(f"cannot serve metrics on {host}:{port}: {reason}") from error
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def open_connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections.connections) if self._connections is not None else 0

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._listener is not None and self._connections is not None:
            self._listener.close()
            self._connections.pre_shutdown()
            await self._connections.shutdown(1.0)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Reply, and see to it that the reply is taken."""
        reply = await self._reply(request)
        try:
            await asyncio.wait_for(_send(reply, request), self._reply_s)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return reply

    async def _reply(self, request: web.BaseRequest) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            return line(405, f"got {request.method[:16]}, wanted GET", Allow="GET, HEAD")
        page = _PAGES.get(request.path)
        if page is None:
            return line(404, f"wanted one of {' '.join(_PAGES)}")
        try:
            return await page(self, request)
        except Unauthenticated as error:
            return line(401, str(error), **{"WWW-Authenticate": "Bearer"})
        except PermissionDenied as error:
            return line(403, str(error))
        except Exception:
            log.exception("%s failed", request.path)
            return line(500, "internal error")

    async def _livez(self, request: web.BaseRequest) -> web.Response:
        return line(200, "ok")

    async def _readyz(self, request: web.BaseRequest) -> web.Response:
        return line(200, "ready") if self._ready() else line(503, "not ready")

    async def _index(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=_INDEX, content_type="text/html", headers=HEADERS)

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        given = ", ".join(request.headers.getall("Authorization", []))
        self._access.authorise(Role.METRICS, given or None, _certificate_names(request))
        if self._scrapes >= _MOST_SCRAPES:
            return line(503, f"{self._scrapes} scrapes are waiting, wanted fewer", **{"Retry-After": "1"})
        open_metrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        zipped = _accepts_gzip(request.headers.get("Accept-Encoding", ""))
        self._scrapes += 1
        try:  # in a thread: a large page takes as long as many calls
            if self._before is not None:
                await self._before()
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(self._thread, _render, self._registry, open_metrics, zipped)
        finally:
            self._scrapes -= 1
        headers = {**HEADERS, "Content-Type": openmetrics.CONTENT_TYPE_LATEST if open_metrics else _PLAIN}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers={**headers, "Vary": "Accept, Accept-Encoding"})


_PAGES: dict[str, Callable[[Pages, web.BaseRequest], Awaitable[web.Response]]] = {
    "/": Pages._index,
    "/metrics": Pages._metrics,
    "/livez": Pages._livez,
    "/readyz": Pages._readyz,
}


async def _send(reply: web.Response, request: web.BaseRequest) -> None:
    await reply.prepare(request)
    await reply.write_eof()


def _render(registry: CollectorRegistry | Collector, open_metrics: bool, zipped: bool) -> bytes:
    page = openmetrics.generate_latest(registry) if open_metrics else generate_latest(registry)
    return gzip.compress(page, compresslevel=1) if zipped else page


def _accepts_gzip(header: str) -> bool:
    """Whether gzip is named with a weight above 0; a weight that is none is no wish for it."""
    found = (_GZIP.fullmatch(each.strip()) for each in header.split(","))
    return any(float(each[1] or 1) > 0 for each in found if each)


def _certificate_names(request: web.BaseRequest) -> tuple[str, ...]:
    """The names in the client's certificate; there is none that TLS has not verified."""
    certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
    dns = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return names_of(dns, common)
