"""The Open Inference Protocol is served as our own API is: the same tokens, quotas, metrics and end."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import oip_fixtures
import pytest
from oip_fixtures import request
from test_access import ADMIN, APP, USUAL, write

from serving.inference import grpc_service_pb2 as oip
from serving.server import Service

Code = grpc.StatusCode
Serve = Callable[..., Service]


def refusal(call: Any, request: Any, token: str = "") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, metadata=[("authorization", f"Bearer {token}")] if token else [])
    return caught.value.code()


def test_tokens_open_what_their_roles_say(serve: Serve, linear_repository: Path, tmp_path: Path) -> None:
    service = serve(linear_repository, identities=write(tmp_path, USUAL), admin_port=0)
    asked, loaded = request("linear_sample"), oip.RepositoryModelLoadRequest(model_name="linear")
    with oip_fixtures.calls(service.port) as main, oip_fixtures.calls(service.admin_port) as admin:
        assert main.ModelInfer(asked, metadata=[("authorization", f"Bearer {APP}")]).outputs
        assert refusal(main.ModelInfer, asked) == Code.UNAUTHENTICATED
        assert refusal(main.ModelMetadata, oip.ModelMetadataRequest(name="linear_sample")) == Code.UNAUTHENTICATED
        assert refusal(admin.RepositoryModelLoad, loaded, APP) == Code.PERMISSION_DENIED
        admin.RepositoryModelLoad(loaded, metadata=[("authorization", f"Bearer {ADMIN}")])
        with pytest.raises(grpc.RpcError) as caught:
            list(main.ModelStreamInfer(iter([asked])))
    assert caught.value.code() == Code.UNAUTHENTICATED


def test_a_callers_quota_counts_over_both(serve: Serve, linear_repository: Path) -> None:
    service = serve(linear_repository, quota_items_per_s=0.001, quota_burst_items=4)
    with oip_fixtures.calls(service.port) as stub:
        asked = [request("linear_sample", parameters={"count": count}) for count in (3, 2, 1)]
        first, second, third = stub.ModelStreamInfer(iter(asked))
        assert (first.error_message, third.error_message) == ("", "")
        assert second.error_message.startswith("quota: got 2 items, wanted at most 1 now")
        assert refusal(stub.ModelInfer, asked[2]) == Code.RESOURCE_EXHAUSTED


def test_calls_are_counted(serve: Serve, linear_repository: Path) -> None:
    service = serve(linear_repository)
    with oip_fixtures.calls(service.port) as stub:
        for seed in (1, 2, -1):
            if seed > 0:
                stub.ModelInfer(request("linear_sample", parameters={"seed": seed}))
            else:
                refusal(stub.ModelInfer, request("linear_sample", parameters={"seed": seed}))
        refusal(stub.ModelInfer, request("invented_sample"))
        list(stub.ModelStreamInfer(request("linear_sample") for _ in range(5)))
    value = service.metrics.registry.get_sample_value

    def counted(rpc: str, model: str, version: str, code: str) -> float | None:
        labels = {"rpc": rpc, "model": model, "version": version, "code": code}
        return value("latentry_requests_total", labels)

    assert counted("ModelInfer", "linear", "1", "OK") == 2
    assert counted("ModelInfer", "linear", "1", "INVALID_ARGUMENT") == 1
    assert counted("ModelInfer", "", "", "NOT_FOUND") == 1  # what callers invent makes no series
    assert counted("ModelStreamInfer", "linear", "1", "OK") == 1
    labels = {"model": "linear", "version": "1", "graph": "decoder"}
    assert value("latentry_items_total", labels) == 7


def test_a_call_of_many_batches_is_told_of_as_it_was(serve: Serve, linear_repository: Path) -> None:
    """Each batch counts, and time that its rows wait or run at once counts once."""
    service = serve(linear_repository, max_batch_size=1)
    images = np.zeros((300, 12, 10, 1), np.uint8)
    with oip_fixtures.calls(service.port) as stub:
        told = stub.ModelInfer(request("linear_reconstruct", {"images": images})).parameters
        (streamed,) = stub.ModelStreamInfer(iter([request("linear_reconstruct", {"images": images})]))
        (stats,) = stub.ModelStatistics(oip.ModelStatisticsRequest(name="linear_reconstruct")).model_stats
    assert (stats.inference_count, stats.execution_count) == (600, 1200)
    assert [(each.batch_size, each.compute_infer.count) for each in stats.batch_stats] == [(1, 1200)]
    spent = stats.inference_stats
    parts = [getattr(spent, part).ns for part in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert sum(parts) <= spent.success.ns
    assert spent.compute_infer.ns > 0.1 * spent.success.ns
    for each in (told, streamed.infer_response.parameters):
        spans = [each[f"{part}_ns"].int64_param for part in ("queue", "inference", "codec", "total")]
        assert sum(spans[:3]) <= spans[3]


def test_a_stream_ends_when_the_server_does(serve: Serve, linear_repository: Path) -> None:
    """What came is answered; an open stream that nothing is sent on does not hold the server up."""
    service = serve(linear_repository, drain_s=10.0, drain_grace_s=0.0)
    loop: Any = service._servers[0]._loop  # type: ignore[attr-defined]
    asked: queue.Queue[Any] = queue.Queue()
    with oip_fixtures.calls(service.port) as stub:
        answers = stub.ModelStreamInfer(iter(asked.get, None))
        asked.put(request("linear_decoder", {"latents": np.zeros((1, 5), np.float32)}))
        assert next(answers).infer_response.outputs
        assert stub.ServerReady(oip.ServerReadyRequest()).ready
        drained = asyncio.run_coroutine_threadsafe(service.drain(), loop)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        asked.put(None)
        drained.result(5)
        assert caught.value.code() == Code.UNAVAILABLE
        assert refusal(stub.ModelInfer, request("linear_sample")) == Code.UNAVAILABLE
