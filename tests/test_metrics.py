"""What /metrics says is what happened: n calls, n counted."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.server import Service

SERVICE = {"grpc_type": "unary", "grpc_service": "latentry.v1.VaeService"}


def scrape(service: Service) -> Callable[..., float]:
    """The page, as a function from a sample's name and labels to its value (0 if there is none)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics") as reply:
        text = reply.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return lambda name, **labels: samples.get((name, frozenset(labels.items())), 0.0)


def decode_request(items: int) -> pb.DecodeRequest:
    z = np.zeros((items, 5), "<f4")
    return pb.DecodeRequest(latents=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes()))


def test_after_n_calls_the_metrics_say_n_by_code(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)

        def call(i: int) -> None:
            if i % 4 == 3:
                with pytest.raises(grpc.RpcError):
                    stub.Sample(pb.SampleRequest(count=-1))
            elif i % 4 == 2:
                with pytest.raises(grpc.RpcError):
                    stub.Decode(pb.DecodeRequest(model=pb.ModelSelector(name=f"none-{i}")))
            else:
                stub.Decode(decode_request(3))

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(call, range(400)))
        stub.Sample(pb.SampleRequest(count=7))
    value = scrape(service)
    linear = {"model": "linear", "version": "1"}
    assert value("latentry_requests_total", rpc="Decode", code="OK", **linear) == 200
    assert value("latentry_requests_total", rpc="Decode", code="NOT_FOUND", model="", version="") == 100
    assert value("latentry_requests_total", rpc="Sample", code="INVALID_ARGUMENT", **linear) == 100
    assert value("latentry_requests_total", rpc="Sample", code="OK", **linear) == 1
    assert value("grpc_server_started_total", grpc_method="Decode", **SERVICE) == 300
    assert value("grpc_server_handled_total", grpc_method="Decode", grpc_code="OK", **SERVICE) == 200
    assert value("grpc_server_handled_total", grpc_method="Decode", grpc_code="NotFound", **SERVICE) == 100
    assert value("grpc_server_handled_total", grpc_method="Sample", grpc_code="InvalidArgument", **SERVICE) == 100
    assert value("grpc_server_handling_seconds_count", grpc_method="Decode", **SERVICE) == 300
    assert value("latentry_request_seconds_count", rpc="Decode") == 300
    decoder = {**linear, "graph": "decoder"}
    assert value("latentry_items_total", **decoder) == 200 * 3 + 7
    assert value("latentry_batch_items_sum", **decoder) == 200 * 3 + 7
    assert value("latentry_batch_items_count", **decoder) == value("latentry_inference_seconds_count", **decoder)
    assert value("latentry_queue_seconds_count", **decoder) >= 201
    assert value("latentry_queue_items", **decoder) == 0
    assert value("latentry_in_flight") == 0
    assert value("latentry_ready") == 1


def test_the_model_is_described(linear_service: Service) -> None:
    value = scrape(linear_service)
    (model,) = linear_service.catalog.all()
    labels = {"digest": model.digest, "provider": "CPUExecutionProvider", "precision": "fp32"}
    assert value("latentry_model_info", model="linear", version="1", **labels) == 1
    assert value("latentry_model_load_seconds", model="linear", version="1") > 0
    assert value("latentry_model_warmup_seconds", model="linear", version="1") > 0
    assert value("process_resident_memory_bytes") > 1 << 20


def test_a_fault_of_ours_is_internal_and_tells_nothing(
    serve: Any, linear_repository: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(linear_repository)

    def fail(*args: Any) -> Any:
        raise RuntimeError("the secret of /root")

    monkeypatch.setattr("serving.latents.noise.uniforms", fail)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(pb.SampleRequest(count=1))
        assert len(stub.ListModels(pb.ListModelsRequest()).models) == 1
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "the secret of /root" in caplog.text, "the log has the particulars"
    assert scrape(service)("latentry_requests_total", rpc="Sample", code="INTERNAL", model="linear", version="1") == 1
