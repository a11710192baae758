"""The gRPC port of the administration: models are loaded, unloaded and labelled here, and the log level is set."""

from __future__ import annotations

from collections.abc import Callable

from latentry.v1 import admin_pb2_grpc
from serving import logs
from serving.access import Role
from serving.admin import AdminServicer
from serving.catalog import Catalog
from serving.entrance import Entrance
from serving.gate import Gate
from serving.grpc_port import GrpcPort
from serving.health import Health
from serving.inference import grpc_service_pb2_grpc
from serving.interceptor import ADMIN_SERVICE
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.oip.servicer import OipServicer
from serving.oip.statistics import Statistics
from serving.reloader import Reloader

_MOST_BYTES = 1 << 20  # of a request
_MOST_REPLY_BYTES = 1 << 22


class Administration:
    """Shows `catalog`, changes it through `reloader`. `set_level` sets the log level of the whole service."""

    port: GrpcPort

    def __init__(
        self,
        entrance: Entrance,
        catalog: Catalog,
        health: Health,
        statistics: Statistics,
        reloader: Reloader,
        set_level: Callable[[str], None] = logs.set_level,
    ) -> None:
        self.gate = Gate()
        self._entrance = entrance
        self._catalog = catalog
        self._health = health
        self._statistics = statistics
        self._reloader = reloader
        self._set_level = set_level

    async def open(self, port: int) -> int:
        """Listen; returns the port, which is another if 0 was given. Raises `PortTaken`."""
        services = ADMIN_SERVICE, OIP_SERVICE
        self.port = GrpcPort(self._entrance, services, Role.ADMIN, self.gate, lambda: _MOST_BYTES, _MOST_REPLY_BYTES)
        admin = AdminServicer(self._catalog, self._reloader, self._set_level)
        oip = OipServicer(None, self._catalog, lambda: self._health.serving, self._statistics, self._reloader)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self.port.server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip, self.port.server)
        return await self.port.open(port, self._health)
