"""Wires the parts: load, verify, warm, listen, drain, stop.

Starts fully or not at all: health says SERVING once every model has answered a warm-up call, and whatever is wrong
before that raises `StartError`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from latentry.v1 import vae_pb2_grpc
from serving import engine, model, processors, repository
from serving.batcher import Device
from serving.codec_threads import CodecThreads
from serving.errors import StartError
from serving.interceptor import SERVICE, CallInterceptor, Gate
from serving.metrics import Metrics
from serving.repository import Models
from serving.servicer import VaeServicer
from serving.settings import Settings

log = logging.getLogger(__name__)

_LAST_REPLIES_S = 0.25  # for replies that are on their way out when every call has been answered


class Service:
    """A running service. `start` raises `StartError`; `models`, `port` and `metrics_port` are there then."""

    models: Models

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self.metrics_port = 0
        self.metrics = Metrics()
        self._gate = Gate(self.metrics)
        self._device = Device()
        self._health = HealthServicer()
        self._codec_threads = CodecThreads(processors.available())
        self._closers: list[Callable[[], object]] = [self._device.close, self._codec_threads.close]

    async def start(self) -> None:
        """Load the models, listen, and say SERVING."""
        settings = self.settings
        choice = engine.choose_device(settings.device, processors.available())
        log.info("device %s (%s), %d threads", choice.provider, choice.reason, choice.threads)
        load = partial(model.load, choice=choice, device=self._device, settings=settings, metrics=self.metrics)
        # In a thread, so that a signal is heard meanwhile.
        loop = asyncio.get_running_loop()
        self.models = await loop.run_in_executor(None, repository.load_all, settings.models, load)
        for each in self.models.all():
            about = each.manifest
            shape = "x".join(map(str, about.image_shape))
            log.info("loaded %s version %d: %s, %d latents", about.name, about.version, shape, about.latent_dim)
        log.info("the default model is %s", self.models.default)
        self._server = self._make_server()
        self.port = self._listen(self._server)
        self.metrics_port = self._serve_metrics()
        await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        self.metrics.ready.set(1)
        log.info("gRPC on %s:%d, metrics on port %d", settings.host, self.port, self.metrics_port)

    async def drain(self) -> None:
        """Say NOT_SERVING, refuse new calls, and let those that came finish within `drain_s`."""
        log.info("draining")
        self.metrics.ready.set(0)
        self._gate.shut = True
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        if not await self._gate.wait_empty(self.settings.drain_s):
            log.warning("calls were still running after %g s", self.settings.drain_s)
        await asyncio.sleep(_LAST_REPLIES_S)

    async def stop(self) -> None:
        """End the server; what still runs, or comes, is cancelled."""
        await self._server.stop(None)
        self.close()

    def close(self) -> None:
        """End the threads."""
        for close in self._closers:
            close()

    def _make_server(self) -> grpc.aio.Server:
        most = max(each.limits.max_message_bytes for each in self.models.all())
        server = grpc.aio.server(
            interceptors=[CallInterceptor(self.metrics, self._gate, most)],
            options=[
                # Twice the limit, so that the interceptor sees, counts and explains most of what is too large.
                ("grpc.max_receive_message_length", 2 * most),
                ("grpc.max_send_message_length", most),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share
            ],
        )
        vae_pb2_grpc.add_VaeServiceServicer_to_server(VaeServicer(self.models, self._codec_threads), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _listen(self, server: grpc.aio.Server) -> int:
        address = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        try:
            port = server.add_insecure_port(f"{address}:{self.settings.port}")
        except RuntimeError as error:
            raise StartError(f"cannot listen on {address}:{self.settings.port}: {error}") from error
        if port == 0:
            raise StartError(f"cannot listen on {address}:{self.settings.port}")
        return port

    def _serve_metrics(self) -> int:
        try:
            server, thread = start_http_server(self.settings.metrics_port, self.settings.host, self.metrics.registry)
        except OSError as error:
            where = f"{self.settings.host}:{self.settings.metrics_port}"
            raise StartError(f"cannot serve metrics on {where}: {error.strerror}") from error
        self._closers += [server.shutdown, server.server_close, thread.join]
        return server.server_port

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, drain, exit with status 0; a second signal exits at once."""
    asked, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (at_once if asked.is_set() else asked).set())
    service = Service(settings)
    starting = asyncio.ensure_future(service.start())
    told = asyncio.ensure_future(asked.wait())
    await asyncio.wait([starting, told], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        try:
            starting.result()
        except BaseException:
            service.close()
            raise
        await told
        steps = [asyncio.ensure_future(step) for step in (service.drain(), at_once.wait())]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopped")
    # Not `Service.stop`: grpc's own end answers calls that are arriving with CANCELLED, which no client tries again.
    # When the sockets close, they fail with UNAVAILABLE.
    logging.shutdown()
    os._exit(0)
