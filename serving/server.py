"""Wires the parts: load, verify, warm, listen, follow the repository, drain, stop.

Starts fully or not at all: health says SERVING once every model has answered a warm-up call, and whatever is wrong
before that raises `StartError`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from latentry.v1 import admin_pb2_grpc, vae_pb2_grpc
from serving import devices, engine, logs, processors
from serving.access import Access, Role
from serving.access_interceptor import AccessInterceptor
from serving.admin import AdminServicer
from serving.api.codec_threads import CodecThreads
from serving.api.servicer import VaeServicer
from serving.catalog import Catalog
from serving.errors import PortTaken
from serving.gate import Gate
from serving.health import Health, HealthServicer
from serving.inference import grpc_service_pb2_grpc
from serving.interceptor import ADMIN_SERVICE, SERVICE, CallInterceptor, Listener
from serving.loading import Loader
from serving.logs import RequestLog
from serving.metrics import Metrics
from serving.model import MAX_MESSAGE
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.oip.servicer import OipServicer
from serving.oip.statistics import Statistics
from serving.pages import Pages
from serving.pool import Pool
from serving.quotas import Quotas
from serving.reloader import Reloader
from serving.settings import Settings
from serving.tls import Certificates

log = logging.getLogger(__name__)

_LAST_REPLIES_S = 0.25  # for replies that are on their way out when every call has been answered
_LAST_TRACES_S = 2.0
_ADMIN_BYTES = 1 << 20  # of a request to the administration

_RELOADABLE = {"log_level", "labels"}

_OPTIONS: Sequence[tuple[str, Any]] = [
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share
    ("grpc.max_concurrent_streams", 1024),  # of one connection
    ("grpc.server_handshake_timeout_ms", 10_000),  # who does not come to the point goes
    ("grpc.max_metadata_size", 16 << 10),
    # None: 60 kB of gzip are 60 MB of zeros, before anybody is asked who calls.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Connections whose other end has gone without a word are found out and closed; clients may ask as often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


class Service:
    """A running service. `start` raises `StartError`; `catalog` and the ports are there then. `stop` ends it, however
    far it got.
    """

    catalog: Catalog
    reloader: Reloader

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._configured = settings  # as it was read last
        self.port = self.metrics_port = self.admin_port = 0
        self.metrics = Metrics()
        self.metrics.count_lost_lines(lambda: logs.lost)
        self._access = Access(settings.identities, settings.tls_client_ca is not None)
        self._certificates = _certificates(settings)
        self._listeners: list[Listener] = [RequestLog(settings.request_log_level)]
        self._tracing = _tracing(settings, self.metrics)
        if self._tracing is not None:
            self._listeners.append(self._tracing)
        self._oip_statistics = Statistics()
        self._gate = Gate(self.metrics.in_flight.set)
        self._admin_gate = Gate()
        self._servers: list[grpc.aio.Server] = []
        self._following: asyncio.Task[None] | None = None
        self._closers: list[Callable[[], object]] = []

    async def start(self) -> None:
        """Load the models, listen, and say SERVING. /livez and /metrics answer meanwhile."""
        settings = self.settings
        await self._open_pages()
        for port in (settings.port, settings.admin_port):
            if port:
                _check_free(settings.host, port)
        self.catalog = Catalog(lambda: self.health.look())
        loader = self._make_loader()
        self.health = Health(self.catalog, SERVICE, OIP_SERVICE)
        self.reloader = Reloader(settings, self.catalog, loader, self.metrics)
        await self.reloader.start()
        log.info("the default model is %s", self.catalog.default)
        await self._open_calls()
        await self._open_admin()
        self.health.accepting = True
        self.health.look()
        self.metrics.ready.set_function(lambda: float(self.health.serving))
        if settings.reload_s:
            self._following = asyncio.ensure_future(self._follow(settings.reload_s))
        where = f"gRPC on {settings.host}:{self.port}, metrics on port {self.metrics_port}"
        log.info("%s%s", where, f", administration on port {self.admin_port}" if self.admin_port else "")

    async def reconfigure(self, settings: Settings) -> None:
        """Take over what may change while serving, the log level and the labels, and look at the repository."""
        before, self._configured = self._configured, settings
        if settings.log_level != before.log_level:
            logs.set_level(settings.log_level)
        self.reloader.relabel(settings.label_map)
        changed = {key for key in type(settings).model_fields if getattr(settings, key) != getattr(before, key)}
        if changed - _RELOADABLE:
            log.warning("these settings need a restart: %s", ", ".join(sorted(changed - _RELOADABLE)))
        await self._scan()
        self.reloader.say_what_is_missing()

    async def ended(self) -> None:
        """Returns if a gRPC server ends that nobody has told to."""
        waiting = [asyncio.ensure_future(server.wait_for_termination()) for server in self._servers]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def drain(self) -> None:
        """Say NOT_SERVING, wait for load balancers to notice, refuse new calls, and let those that came finish."""
        log.info("draining")
        self.health.accepting = False
        self.health.look()
        await asyncio.sleep(self.settings.drain_grace_s)
        for gate in (self._gate, self._admin_gate):
            gate.close()
        gone = [gate.wait_empty(self.settings.drain_s) for gate in (self._gate, self._admin_gate)]
        if not all(await asyncio.gather(*gone)):
            log.warning("calls were still running after %g s", self.settings.drain_s)
        await asyncio.sleep(_LAST_REPLIES_S)

    async def stop(self) -> None:
        """End everything; what still runs, or comes, is cancelled."""
        if self._following is not None:
            self._following.cancel()
        for server in self._servers:
            await server.stop(None)
        if hasattr(self, "reloader"):
            await self.reloader.close()
            for model in self.catalog.all():
                await model.retire(0.0)
        await self._pages.close()
        for close in self._closers:
            close()
        self.end_traces()

    def end_traces(self) -> None:
        """Send what is left of the traces."""
        if self._tracing is not None:
            self._tracing.close(_LAST_TRACES_S)

    # ---- the parts ----

    async def _open_pages(self) -> None:
        context = None if self._certificates is None else self._certificates.ssl_context()
        self._pages = Pages(self.metrics.registry, self._access, self._is_ready, context)
        if self._certificates is not None:
            certificates = self._certificates
            self.metrics.certificate_expiry.set_function(lambda: certificates.expires.timestamp())
        self.metrics_port = await self._pages.start(self.settings.host, self.settings.metrics_port)

    def _is_ready(self) -> bool:
        return hasattr(self, "health") and self.health.serving

    def _all_work_on(self, device: int) -> float:
        return float(all(model.works_on(device) for model in self.catalog.all()))

    def _make_loader(self) -> Loader:
        settings = self.settings
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
            up = self.metrics.device_up.labels(device.name, device.provider)
            up.set_function(partial(self._all_work_on, number))
            self.metrics.engine_restarts.labels(device.name)  # there from the start, so that the first one is a rise
        pool = Pool(len(chosen))
        loader = Loader(settings, chosen, pool, self.metrics, lambda: self.health.look())
        self._closers += [loader.close, pool.close]
        return loader

    async def _open_calls(self) -> None:
        settings = self.settings
        codec_threads = CodecThreads(processors.available())
        self._closers.append(codec_threads.close)
        # What gRPC itself lets in: models that come later may need more than those that are here.
        most = max(2 * self._most_bytes(), MAX_MESSAGE)
        self.reloader.max_message_bytes = most
        interceptors = [
            CallInterceptor(
                {SERVICE, OIP_SERVICE},
                Role.INFER,
                self._access,
                self._gate,
                self.metrics,
                self._most_bytes,
                self._listeners,
            ),
            AccessInterceptor(self._access),
        ]
        server = self._make_server(interceptors, most)
        quotas = Quotas(settings.quota_items_per_s, settings.quota_burst_items or settings.max_request_items)
        self._vae = VaeServicer(self.catalog, codec_threads, quotas, settings.max_batch_size)
        vae_pb2_grpc.add_VaeServiceServicer_to_server(self._vae, server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._oip(), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.health), server)
        self._add_reflection(server, SERVICE, OIP_SERVICE)
        if settings.channelz:
            channelz.add_channelz_servicer(server)  # type: ignore[arg-type] # it takes both kinds
        self.port = self._listen(server, settings.port)
        await server.start()

    async def _open_admin(self) -> None:
        if self.settings.admin_port is None:
            return
        interceptors = [
            CallInterceptor(
                {ADMIN_SERVICE, OIP_SERVICE},
                Role.ADMIN,
                self._access,
                self._admin_gate,
                self.metrics,
                lambda: _ADMIN_BYTES,
                self._listeners,
            ),
            AccessInterceptor(self._access, Role.ADMIN),
        ]
        server = self._make_server(interceptors, 1 << 22)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(self.catalog, self.reloader), server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._oip(self.reloader), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.health), server)
        self._add_reflection(server, ADMIN_SERVICE, OIP_SERVICE)
        self.admin_port = self._listen(server, self.settings.admin_port)
        await server.start()

    def _oip(self, reloader: Reloader | None = None) -> OipServicer:
        return OipServicer(self._vae, self.catalog, self._is_ready, self._oip_statistics, reloader)

    def _make_server(self, interceptors: Sequence[Any], max_message_bytes: int) -> grpc.aio.Server:
        limits = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        ]
        server = grpc.aio.server(interceptors=interceptors, options=[*_OPTIONS, *limits])
        self._servers.append(server)
        return server

    def _add_reflection(self, server: grpc.aio.Server, *services: str) -> None:
        if self.settings.reflection:
            health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection((*services, health, reflection.SERVICE_NAME), server)

    def _listen(self, server: grpc.aio.Server, wanted: int) -> int:
        address = f"{_bracketed(self.settings.host)}:{wanted}"
        try:
            if self._certificates is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._certificates.server_credentials())
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {address}: {error}") from error
        if port == 0:
            raise PortTaken(f"cannot listen on {address}")
        return port

    def _most_bytes(self) -> int:
        return max(each.limits.max_message_bytes for each in self.catalog.all())

    async def _follow(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            await self._scan()

    async def _scan(self) -> None:
        try:
            await self.reloader.scan()
        except Exception:
            log.exception("looking at the model repository failed; what is loaded goes on serving")


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _tracing(settings: Settings, metrics: Metrics) -> Any:
    if not settings.trace_endpoint:
        return None
    from serving.tracing import Tracing  # here, because it needs an extra that others do without

    return Tracing(settings.trace_endpoint, settings.trace_share, metrics.trace_spans_lost.inc)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_free(host: str, port: int) -> None:
    """Raises `PortTaken` before anything is loaded, and with a better reason than gRPC gives."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise PortTaken(f"cannot listen on {_bracketed(host)}:{port}: {error.strerror or error}") from error
