"""The gRPC port that answers calls: our own service, the Open Inference Protocol, health and reflection.

Where the models of the catalog are run is their affair.
"""

from __future__ import annotations

from latentry.v1 import vae_pb2_grpc
from serving import processors
from serving.access import Role
from serving.api.codec_threads import CodecThreads
from serving.api.servicer import VaeServicer
from serving.catalog import Catalog
from serving.entrance import Entrance
from serving.gate import Gate
from serving.grpc_port import GrpcPort
from serving.health import Health
from serving.inference import grpc_service_pb2_grpc
from serving.interceptor import SERVICE
from serving.oip.servicer import SERVICE as OIP_SERVICE
from serving.oip.servicer import OipServicer
from serving.oip.statistics import Statistics
from serving.quotas import Accounts


class Calls:
    """Answers from `catalog`. `gate` counts the calls inside."""

    port: GrpcPort

    def __init__(
        self, entrance: Entrance, catalog: Catalog, health: Health, quotas: Accounts, statistics: Statistics
    ) -> None:
        self.gate = Gate()
        entrance.metrics.in_flight.set_function(lambda: float(self.gate.in_flight))
        self._entrance = entrance
        self._catalog = catalog
        self._health = health
        self._quotas = quotas
        self._statistics = statistics
        self._codec_threads = CodecThreads(processors.available())

    async def open(self, port: int, max_message_bytes: int, shared: bool = False) -> int:
        """Listen; messages of more than so many bytes are let in for no model. Returns the port; raises `PortTaken`."""
        entrance, settings = self._entrance, self._entrance.settings
        self.port = GrpcPort(
            entrance,
            (SERVICE, OIP_SERVICE),
            Role.INFER,
            self.gate,
            lambda: self._catalog.max_message_bytes,
            max_message_bytes,
            shared,
        )
        vae = VaeServicer(self._catalog, self._codec_threads, self._quotas, settings.max_batch_size)
        oip = OipServicer(vae, self._catalog, lambda: self._health.serving, self._statistics)
        vae_pb2_grpc.add_VaeServiceServicer_to_server(vae, self.port.server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip, self.port.server)
        if settings.channelz:
            self.port.add_channelz()
        return await self.port.open(port, self._health)

    def close(self) -> None:
        """End the threads."""
        self._codec_threads.close()
