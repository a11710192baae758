"""One gRPC port: who may call and how that is counted, what clients may do to it with connections and messages, TLS,
health and reflection, and who else listens there.

Knows nothing of its services but their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.access import Role
from serving.access_interceptor import AccessInterceptor
from serving.addresses import bracketed
from serving.entrance import Entrance
from serving.errors import PortTaken
from serving.gate import Gate
from serving.health import Health, HealthServicer
from serving.interceptor import CallInterceptor
from serving.wrapped_handlers import wrap

_OPTIONS: Sequence[tuple[str, Any]] = [
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


class GrpcPort:
    """A server of one port, for `services` of ours, which are to be added to `server`: they need `role`, pass the
    `gate`, and take requests of `max_request_bytes()`; what gRPC itself lets in and out has `max_message_bytes`.
    `shared`: other processes of ours listen on the same port; else a port that is taken is an error.
    """

    def __init__(
        self,
        entrance: Entrance,
        services: Sequence[str],
        role: Role,
        gate: Gate,
        max_request_bytes: Callable[[], int],
        max_message_bytes: int,
        shared: bool = False,
    ) -> None:
        self._entrance = entrance
        self._services = services
        options = [
            *_OPTIONS,
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        ]
        self.server = grpc.aio.server(options=options)
        access, metrics = entrance.access, entrance.metrics
        calls = CallInterceptor(services, role, access, gate, metrics, max_request_bytes, entrance.listeners)
        wrap(self.server, [calls.wrap, AccessInterceptor(access, role).wrap])

    async def open(self, wanted: int, health: Health) -> int:
        """Listen, with `health` beside the services, which reflection names; returns the port, which is another if 0
        was wanted. Raises `PortTaken`."""
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), self.server)
        if self._entrance.settings.reflection:
            name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection((*self._services, name, reflection.SERVICE_NAME), self.server)
        port = self._listen(wanted)
        await self.server.start()
        return port

    def add_channelz(self) -> None:
        """Tell of connections."""
        from grpc_channelz.v1 import channelz  # here, because nearly nobody asks for it

        channelz.add_channelz_servicer(self.server)  # type: ignore[arg-type] # it takes both kinds

    def _listen(self, wanted: int) -> int:
        address = f"{bracketed(self._entrance.settings.host)}:{wanted}"
        certificates = self._entrance.certificates
        try:
            if certificates is None:
                port = self.server.add_insecure_port(address)
            else:
                port = self.server.add_secure_port(address, certificates.server_credentials())
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {address}: {error}") from error
        if port == 0:
            raise PortTaken(f"cannot listen on {address}")
        return port
