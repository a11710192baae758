"""Every setting does something that can be seen from outside; and none is without a test that says so."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import linear_model
import pytest
from conftest import ROOT, running_service, settings_for
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_process import free_ports, server_process
from test_devices import FakeGpus, gpus  # noqa: F401 - a fixture
from test_metrics import decode_request, scrape
from test_servicer import photos, tensor
from test_statuses import decoder, until
from test_tracing import collector  # noqa: F401 - a fixture

from latentry.v1 import admin_pb2 as apb
from latentry.v1 import admin_pb2_grpc, vae_pb2_grpc
from latentry.v1 import vae_pb2 as pb
from serving import processors, slices
from serving.devices import CUDA, TENSORRT
from serving.server import Service
from serving.settings import Settings

Code = grpc.StatusCode

# Each key of Settings, and the test that shows that it does something: a function here, or file (without .py).function.
TESTS = {
    "models": "test_reloader.test_the_newest_version_serves_unless_told_otherwise",
    "versions": "test_reloader.test_listed_versions_serve_and_each_model_has_its_policy",
    "labels": "test_reloader.test_a_label_names_a_version_and_keeps_it_loaded",
    "default_model": "test_reloader.test_the_default_model_is_as_configured_and_a_new_model_does_not_take_its_place",
    "reload_s": "test_reloader.test_new_versions_are_noticed_without_being_told",
    "host": "test_only_the_address_that_is_named_is_listened_on",
    "port": "test_each_port_is_the_one_that_is_named",
    "metrics_port": "test_each_port_is_the_one_that_is_named",
    "admin_port": "test_each_port_is_the_one_that_is_named",
    "reflection": "test_reflection_is_answered_unless_switched_off",
    "channelz": "test_channelz_is_answered_only_when_switched_on",
    "device": "test_devices.test_every_bucket_of_every_gpu_is_warm_before_the_first_call",
    "precision": "test_precisions.test_the_precision_that_is_named_answers",
    "threads": "test_graphs_run_in_as_many_threads_as_told_or_as_there_are_processors",
    "gpu_memory_mib": "test_what_a_gpu_is_told_comes_from_the_settings",
    "cuda_graphs": "test_what_a_gpu_is_told_comes_from_the_settings",
    "tensorrt_cache": "test_what_a_gpu_is_told_comes_from_the_settings",
    "frontends": "test_frontends.test_the_processes_are_three_and_say_what_they_are",
    "max_batch_size": "test_a_batch_has_no_more_items_than_told",
    "max_queue_delay_ms": "test_a_lone_call_waits_for_company_as_long_as_told",
    "max_queue_items": "test_servicer.test_a_full_queue_says_when_to_come_back",
    "max_model_share": "test_a_model_leaves_the_rest_of_the_queue_to_others",
    "max_request_items": "test_a_call_of_more_items_than_told_is_refused",
    "quota_items_per_s": "test_quotas.test_a_caller_over_its_quota_is_told_when_to_come_back",
    "quota_burst_items": "test_quotas.test_without_identities_an_address_is_a_caller_whatever_its_connection",
    "insecure": "test_all_addresses_are_listened_on_when_that_is_said_to_be_meant",
    "tls_certificate": "test_security.test_each_token_opens_what_its_roles_say_and_nothing_else",
    "tls_key": "test_security.test_each_token_opens_what_its_roles_say_and_nothing_else",
    "tls_client_ca": "test_security.test_with_a_client_ca_alone_a_certificate_opens_all_but_administration",
    "identities": "test_security.test_each_token_opens_what_its_roles_say_and_nothing_else",
    "drain_grace_s": "test_kills.test_calls_are_taken_during_the_grace_and_refused_after_it",
    "drain_s": "test_kills.test_what_still_runs_after_the_drain_is_cut_off",
    "log_level": "test_what_is_logged_and_how_is_as_told",
    "log_format": "test_what_is_logged_and_how_is_as_told",
    "request_log_level": "test_what_is_logged_and_how_is_as_told",
    "reconstruct_share": "test_as_many_items_are_decoded_again_as_told",
    "trace_endpoint": "test_tracing.test_two_calls_in_one_batch_of_a_service_are_traced_apart_and_linked",
    "trace_share": "test_calls_are_traced_or_not_as_told",
}


def test_every_setting_has_a_test() -> None:
    assert set(TESTS) == set(Settings.model_fields), "a new setting wants a test, here or elsewhere"


@pytest.mark.parametrize("key", TESTS)
def test_every_test_that_is_named_exists_and_names_its_setting(key: str) -> None:
    file, _, function = ("test_settings_work." + TESTS[key]).rpartition(".")
    source = (ROOT / "tests" / f"{file.rpartition('.')[2]}.py").read_text()
    tree = ast.parse(source)
    assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    flag = f"--{key.replace('_', '-')}"
    assert key in {"models"} or key in source or flag in source


@contextlib.contextmanager
def stub_to(service: Service, host: str = "localhost") -> Iterator[Any]:
    with grpc.insecure_channel(f"{host}:{service.port}", [("grpc.enable_retries", 0)]) as channel:
        yield vae_pb2_grpc.VaeServiceStub(channel)


def code_of(call: Any) -> Code:
    """How a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


# ---- models ----


def test_the_default_model_stays_whatever_becomes_of_its_folder(serve: Any, tmp_path: Path) -> None:
    """Calls without a name are never answered by another model than the one that was configured."""
    root = tmp_path / "models"
    for name in ("aardvark", "linear"):
        linear_model.write(root, name)
    service = serve(root, default_model="linear", admin_port=0)
    with stub_to(service) as stub, grpc.insecure_channel(f"localhost:{service.admin_port}") as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)

        def answers() -> str:
            return str(stub.Sample(pb.SampleRequest(count=1), timeout=20).model.name)

        unload = apb.UnloadModelRequest(name="linear", version=1)
        assert code_of(lambda: admin.UnloadModel(unload, timeout=20)) is Code.FAILED_PRECONDITION
        (root / "linear").rename(tmp_path / "aside")
        admin.Scan(apb.ScanRequest(), timeout=60)
        assert answers() == "linear"
        (tmp_path / "aside").rename(root / "linear")
        linear_model.write(root, "linear", 2)
        admin.Scan(apb.ScanRequest(), timeout=60)
        assert answers() == "linear"
        assert stub.GetModel(pb.GetModelRequest()).model.model.version == 2


# ---- listening ----


def reached(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def test_only_the_address_that_is_named_is_listened_on(serve: Any, linear_repository: Path) -> None:
    ports = free_ports(3)  # those that the system gives, another test may have at the other address
    named = dict(zip(("port", "metrics_port", "admin_port"), ports, strict=True))
    serve(linear_repository, host="127.0.0.2", **named)
    for port in ports:
        assert (reached("127.0.0.2", port), reached("127.0.0.1", port)) == (True, False)


def test_all_addresses_are_listened_on_when_that_is_said_to_be_meant(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository, host="0.0.0.0", insecure=True)  # noqa: S104 - that is the test
    for host in ("127.0.0.1", "127.0.0.2"):
        with stub_to(service, host) as stub:
            assert code_of(lambda stub=stub: stub.Sample(pb.SampleRequest(count=1), timeout=10)) is Code.OK


def test_each_port_is_the_one_that_is_named(linear_repository: Path) -> None:
    port, metrics_port, admin_port = free_ports(3)
    settings = settings_for(linear_repository, port=port, metrics_port=metrics_port, admin_port=admin_port)
    with running_service(settings):
        for each, kind, request in (
            (port, vae_pb2_grpc.VaeServiceStub, ("ListModels", pb.ListModelsRequest())),
            (admin_port, admin_pb2_grpc.AdminServiceStub, ("ListVersions", apb.ListVersionsRequest())),
        ):
            with grpc.insecure_channel(f"127.0.0.1:{each}") as channel:
                assert getattr(kind(channel), request[0])(request[1], timeout=10) is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as page:
            assert b"latentry_ready 1.0" in page.read()


@pytest.mark.parametrize("on", [True, False])
def test_reflection_is_answered_unless_switched_off(serve: Any, linear_repository: Path, on: bool) -> None:
    service = serve(linear_repository, reflection=on, admin_port=0)
    for port in (service.port, service.admin_port):
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            expected = Code.OK if on else Code.UNIMPLEMENTED
            assert code_of(lambda ask=ask, request=request: list(ask(iter([request]), timeout=10))) is expected
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("on", [True, False])
def test_channelz_is_answered_only_when_switched_on(serve: Any, linear_repository: Path, on: bool) -> None:
    service = serve(linear_repository, channelz=on)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        ask = channelz_pb2_grpc.ChannelzStub(channel).GetServers
        expected = Code.OK if on else Code.UNIMPLEMENTED
        assert code_of(lambda: ask(channelz_pb2.GetServersRequest(), timeout=10)) is expected


# ---- devices ----


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), (0, processors.available())])
def test_graphs_run_in_as_many_threads_as_told_or_as_there_are_processors(
    serve: Any, linear_repository: Path, monkeypatch: pytest.MonkeyPatch, threads: int, expected: int
) -> None:
    seen: set[int] = set()

    def run(work: slices.Work, rows: slices.Array, threads: int) -> dict[str, slices.Array]:
        seen.add(threads)
        return dict(work(rows))

    monkeypatch.setattr(slices, "run", run)
    serve(linear_repository, threads=threads)
    assert seen == {expected}


def test_graphs_on_a_gpu_have_no_threads_of_their_own(
    gpus: FakeGpus,  # noqa: F811 - the fixture
    serve: Any,
    linear_repository: Path,
) -> None:
    serve(linear_repository, device="cuda", threads=3)
    assert {session.options.intra_op_num_threads for session in gpus.sessions if session.runs} == {1}


def test_what_a_gpu_is_told_comes_from_the_settings(
    gpus: FakeGpus,  # noqa: F811 - the fixture
    serve: Any,
    linear_repository: Path,
    tmp_path: Path,
) -> None:
    """From the settings through the choice of devices to the options of each session, and to the runs."""
    about: dict[str, Any] = {"device": "cuda", "max_batch_size": 2}
    serve(linear_repository, **about)
    (plain,) = {json.dumps(session.providers) for session in gpus.on(0) if session.runs}
    assert "gpu_mem_limit" not in plain
    assert "cuda_graph" not in plain
    gpus.sessions.clear()
    serve(linear_repository, **about, gpu_memory_mib=64, cuda_graphs=True)
    for session in gpus.on(0):
        ((name, options),) = session.providers
        assert (name, options["gpu_mem_limit"], options["enable_cuda_graph"]) == (CUDA, 64 << 20, "1")
    assert {graph for session in gpus.on(0) for _, graph in session.runs} == {"1", "2"}
    gpus.sessions.clear()
    service = serve(linear_repository, **about, tensorrt_cache=tmp_path)
    used = [session.providers for session in gpus.on(0) if session.runs]
    assert [providers[0][0] for providers in used] == [TENSORRT] * 2
    assert {providers[0][1]["trt_engine_cache_path"] for providers in used} == {str(tmp_path)}
    assert {providers[0][1]["trt_profile_max_shapes"] for providers in used} == {"images:2x12x10x1", "latents:2x5"}
    assert scrape(service)("latentry_device_up", device="cuda:0", provider=TENSORRT) == 1


# ---- batching and back-pressure ----


def test_a_batch_has_no_more_items_than_told(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository, max_batch_size=4)
    _, hand = decoder(service)
    with stub_to(service) as stub:
        stub.Decode(decode_request(10), timeout=20)
    assert hand.ran == [4, 4, 2]


def test_a_lone_call_waits_for_company_as_long_as_told(serve: Any, linear_repository: Path) -> None:
    """A second, unless the batch is full before."""
    service = serve(linear_repository, max_batch_size=3, max_queue_delay_ms=1000)
    batcher, hand = decoder(service)
    with stub_to(service) as stub:
        first = stub.Decode.future(decode_request(1), timeout=20)
        until(lambda: batcher.rows_waiting == 1)
        stub.Decode(decode_request(2), timeout=20)
        first.result(20)
        assert hand.ran == [3], "a full batch waits no longer"
        stub.Decode(decode_request(1), timeout=20)
    queue = {"model": "linear", "version": "1", "graph": "decoder"}
    assert 1 <= scrape(service)("latentry_queue_seconds_sum", **queue) < 3


def test_a_model_leaves_the_rest_of_the_queue_to_others(serve: Any, tmp_path: Path) -> None:
    for name in ("busy", "other"):
        linear_model.write(tmp_path, name)
    service = serve(tmp_path, max_request_items=8, max_queue_items=16, max_model_share=0.5)
    batcher, hand = decoder(service)

    def request(name: str, items: int) -> pb.DecodeRequest:
        made = decode_request(items)
        made.model.name = name
        return made

    with stub_to(service) as stub:
        with hand.held():
            calls = [stub.Decode.future(request("busy", 1), timeout=20)]
            until(lambda: hand.ran == [1])
            calls.append(stub.Decode.future(request("busy", 8), timeout=20))
            until(lambda: batcher.rows_waiting == 8)
            refused = stub.Decode.future(request("busy", 1), timeout=20)
            assert refused.code() is Code.RESOURCE_EXHAUSTED
            assert refused.details() == "queue full: 8 items are waiting of at most 8; try again"
            calls.append(stub.Decode.future(request("other", 8), timeout=20))
            until(lambda: service.catalog.get("other").batchers["decoder"].rows_waiting == 8)
        assert [call.code() for call in calls] == [Code.OK] * 3


def test_a_call_of_more_items_than_told_is_refused(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository, max_request_items=5)
    with stub_to(service) as stub:
        assert stub.GetModel(pb.GetModelRequest()).model.limits.max_items == 5
        assert code_of(lambda: stub.Decode(decode_request(5), timeout=20)) is Code.OK
        assert code_of(lambda: stub.Decode(decode_request(6), timeout=20)) is Code.INVALID_ARGUMENT


# ---- observability ----


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 4, 12), (1.0, 16, 16)])
def test_as_many_items_are_decoded_again_as_told(
    serve: Any, linear_repository: Path, share: float, least: int, most: int
) -> None:
    service = serve(linear_repository, reconstruct_share=share)
    about = {"model": "linear", "version": "1"}

    def items() -> float:
        return scrape(service)("latentry_items_total", graph="decoder", **about)

    with stub_to(service) as stub:
        images = pb.Images(tensor=tensor(photos(16, 12, 10, 1)))
        stub.Encode(pb.EncodeRequest(images=images), timeout=20)
        until(lambda: least <= items() <= most)
    until(lambda: scrape(service)("latentry_reconstruction_error_count", **about) == items())


@pytest.mark.parametrize(("share", "spans"), [(0.0, 0), (1.0, 6)])
def test_calls_are_traced_or_not_as_told(
    serve: Any,
    linear_repository: Path,
    collector: Any,  # noqa: F811 - the fixture
    share: float,
    spans: int,
) -> None:
    service = serve(linear_repository, trace_endpoint=collector.endpoint, trace_share=share)
    with stub_to(service) as stub:
        stub.Decode(decode_request(1), timeout=20)
    service.end_traces()
    assert len(collector.spans) == spans


@pytest.mark.parametrize(
    ("flags", "requests", "infos"),
    [
        ((), 0, True),
        (("--request-log-level", "info"), 3, True),
        (("--request-log-level", "warning", "--log-level", "error"), 0, False),
        (("--request-log-level", "error", "--log-level", "error"), 3, False),
        (("--request-log-level", "off", "--log-level", "debug"), 0, True),
        (("--log-level", "debug", "--log-format", "console"), 3, True),
    ],
)
def test_what_is_logged_and_how_is_as_told(
    linear_repository: Path, flags: tuple[str, ...], requests: int, infos: bool
) -> None:
    """Of a real process, to whose standard error lines go: JSON, because it is no terminal, or for people."""
    with server_process(linear_repository, *flags) as server:
        with server.channel() as channel:
            for _ in range(3):
                vae_pb2_grpc.VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=10)
        assert server.stop(signal.SIGTERM) == 0
        lines = server.log.splitlines()
    if "console" in flags:
        assert sum(" serving.requests: request " in line for line in lines) == requests
        assert any(re.search(r" INFO serving[.\w]*: gRPC on 127\.0\.0\.1:", line) for line in lines) is infos
    else:
        events = [json.loads(line) for line in lines]
        assert sum(event["event"] == "request" for event in events) == requests
        assert any(event["level"] == "info" and "gRPC on" in event["event"] for event in events) is infos
