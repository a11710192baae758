"""A client without our stubs: reflection alone is enough to list the service and call it."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.server import Service


def test_a_stranger_lists_the_service_and_calls_sample(linear_service: Service) -> None:
    with grpc.insecure_channel(f"localhost:{linear_service.port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "latentry.v1.VaeService",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("latentry.v1.VaeService")
        assert [method.name for method in service.methods] == [
            *("Encode", "Decode", "Sample", "StreamSample", "Interpolate", "StreamInterpolate", "Reconstruct"),
            *("Edit", "Neighbours", "ListModels", "GetModel"),
        ]
        sample = service.methods_by_name["Sample"]
        request = message_factory.GetMessageClass(sample.input_type)(count=2, seed=5)
        call = channel.unary_unary(
            f"/{service.full_name}/{sample.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(sample.output_type).FromString,
        )
        reply = call(request, timeout=20)
    assert list(reply.images.tensor.shape) == [2, 12, 10, 1]
    assert len(reply.images.tensor.data) == 240
    assert reply.model.name == "linear"


@pytest.mark.parametrize("name", ["", "latentry.v1.VaeService", "inference.GRPCInferenceService", "linear"])
def test_health_knows_what_is_served(linear_service: Service, name: str) -> None:
    with grpc.insecure_channel(f"localhost:{linear_service.port}") as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
