"""`latentry serve --frontends 2`: several processes that nobody can tell from one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import linear_model
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess, free_ports, server_process
from test_hostile import wait_for
from test_kills import rehearsal_of
from test_statuses import details

from latentry.v1 import admin_pb2 as apb
from latentry.v1 import admin_pb2_grpc, vae_pb2_grpc
from latentry.v1 import vae_pb2 as pb
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc

Code = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
CHECK = health_pb2.HealthCheckRequest()
SMALL = pb.SampleRequest(count=1, seed=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two front ends, with an administration and a quota that no test reaches but the one that means to."""
    models = tmp_path_factory.mktemp("several") / "models"
    linear_model.write(models)
    linear_model.write(models, version=2)
    (admin,) = free_ports(1)
    flags = ("--admin-port", str(admin), "--reload-s", "0", "--quota-items-per-s", "0.001")
    with server_process(models, *flags, "--quota-burst-items", "1500", frontends=2) as it:
        it.admin = f"127.0.0.1:{admin}"  # type: ignore[attr-defined]
        yield it


@contextlib.contextmanager
def on_both(server: ServerProcess) -> Iterator[list[grpc.Channel]]:
    """Connections of which each front end has some: who of them gets one is chance."""
    ends = {name: pid for name, pid in server.children().items() if "-fe-" in name}
    before = {name: _sockets(pid) for name, pid in ends.items()}
    with contextlib.ExitStack() as stack:
        channels: list[grpc.Channel] = []
        while not all(_sockets(pid) > before[name] for name, pid in ends.items()):
            assert len(channels) < 64, before
            channels.append(stack.enter_context(server.channel()))
            grpc.channel_ready_future(channels[-1]).result(20)
            assert health_pb2_grpc.HealthStub(channels[-1]).Check(CHECK, timeout=20).status == SERVING
        yield channels


def _sockets(pid: int) -> int:
    count = 0
    for link in Path("/proc", str(pid), "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            count += "socket" in str(link.readlink())
    return count


def ready(server: ServerProcess) -> int:
    """The status of /readyz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/readyz", timeout=10) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_processes_are_three_and_say_what_they_are(server: ServerProcess) -> None:
    assert set(server.children()) == {"latentry-engine", "latentry-fe-0", "latentry-fe-1"}
    assert server.metric("latentry_frontends") == 2
    assert ready(server) == 200


def test_both_front_ends_answer_the_same_and_their_counts_are_one(server: ServerProcess) -> None:
    before = server.metrics()
    with on_both(server) as channels:
        answers = {vae_pb2_grpc.VaeServiceStub(each).Sample(SMALL, timeout=20).images.tensor.data for each in channels}
        after = server.metrics()
    assert len(answers) == 1

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('latentry_requests_total{code="OK",model="linear",rpc="Sample",version="2"}') == len(channels)
    assert more('latentry_request_seconds_count{rpc="Sample"}') == len(channels)
    assert more('latentry_request_seconds_bucket{le="+Inf",rpc="Sample"}') == len(channels)
    assert more('latentry_items_total{graph="decoder",model="linear",version="2"}') == len(channels)
    assert after["latentry_in_flight"] == 0
    assert after["latentry_ready"] == 1


def test_what_the_administration_has_changed_both_front_ends_know_at_once(server: ServerProcess) -> None:
    with on_both(server) as channels, grpc.insecure_channel(server.admin) as admin:  # type: ignore[attr-defined]
        stubs = [vae_pb2_grpc.VaeServiceStub(each) for each in channels]
        administration = admin_pb2_grpc.AdminServiceStub(admin)

        def known(versions: set[int], labels: list[str]) -> bool:
            lists = [stub.ListModels(pb.ListModelsRequest(), timeout=20).models for stub in stubs]
            return all(
                {model.model.version for model in models} == versions
                and all(list(model.version_labels) == labels for model in models if model.model.version == 1)
                for models in lists
            )

        assert known({2}, [])
        for _ in range(4):
            administration.LoadModel(apb.LoadModelRequest(name="linear", version=1), timeout=60)
            assert known({1, 2}, [])
            administration.SetLabel(apb.SetLabelRequest(name="linear", label="old", version=1), timeout=20)
            assert known({1, 2}, ["old"])
            request = pb.SampleRequest(model=pb.ModelSelector(label="old"), count=1, seed=1)
            assert {stub.Sample(request, timeout=20).model.version for stub in stubs} == {1}
            administration.SetLabel(apb.SetLabelRequest(name="linear", label="old", version=0), timeout=20)
            assert known({1, 2}, [])
            administration.UnloadModel(apb.UnloadModelRequest(name="linear", version=1), timeout=20)
            assert known({2}, [])
        assert not [name for name in server.metrics() if name.startswith("latentry_items") and 'version="1"' in name]


def test_the_log_level_is_that_of_all_processes(server: ServerProcess) -> None:
    with on_both(server) as channels, grpc.insecure_channel(server.admin) as admin:  # type: ignore[attr-defined]
        level = admin_pb2_grpc.AdminServiceStub(admin).SetLogLevel
        level(apb.SetLogLevelRequest(level="debug"), timeout=20)
        try:
            for each in channels:  # the level comes to the front ends a little later than the answer to us
                wait_for(partial(_logs, server, vae_pb2_grpc.VaeServiceStub(each)), "a call is logged", 30)
        finally:
            level(apb.SetLogLevelRequest(level="info"), timeout=20)


def _logs(server: ServerProcess, stub: Any) -> bool:
    before = server.log.count('"event": "request"')
    stub.Sample(SMALL, timeout=20)
    return server.log.count('"event": "request"') > before


def test_the_statistics_of_the_inference_protocol_are_those_of_all(server: ServerProcess) -> None:
    request = oip.ModelInferRequest(model_name="linear-sample")
    with on_both(server) as channels, grpc.insecure_channel(server.admin) as admin:  # type: ignore[attr-defined]
        stubs = [grpc_service_pb2_grpc.GRPCInferenceServiceStub(each) for each in channels]
        names = {index.name for index in stubs[0].RepositoryIndex(oip.RepositoryIndexRequest(), timeout=20).models}
        (request.model_name,) = [name for name in names if "sample" in name]
        for stub in stubs:
            stub.ModelInfer(request, timeout=20)
        asked = oip.ModelStatisticsRequest(name=request.model_name)
        for each in (*stubs, grpc_service_pb2_grpc.GRPCInferenceServiceStub(admin)):
            (told,) = each.ModelStatistics(asked, timeout=20).model_stats
            assert told.inference_count == told.inference_stats.success.count == len(stubs)
            assert told.inference_stats.compute_infer.ns > 0


def test_the_quota_is_one_for_all_front_ends(server: ServerProcess) -> None:
    """Each alone would let 1,500 items pass; so many are there for both together."""
    with on_both(server) as channels:
        stubs = [vae_pb2_grpc.VaeServiceStub(each) for each in channels]
        calls = [stub.Sample.future(pb.SampleRequest(count=500, seed=1), timeout=60) for stub in stubs * 4]
        codes = Counter(call.code() for call in calls)
    assert set(codes) == {Code.OK, Code.RESOURCE_EXHAUSTED}
    assert codes[Code.OK] == 2  # other tests have had a few items
    assert details(calls[-1], error_details_pb2.RetryInfo).retry_delay.seconds > 60
    assert server.metric("latentry_quota_refusals_total") == codes[Code.RESOURCE_EXHAUSTED]


def test_sighup_reads_again_and_looks_at_the_repository(tmp_path: Path) -> None:
    linear_model.write(tmp_path / "models")
    config = tmp_path / "latentry.toml"
    config.write_text('log_level = "info"\nreload_s = 0\n')
    with (
        server_process(tmp_path / "models", "--config", str(config), frontends=2) as server,
        on_both(server) as channels,
    ):
        linear_model.write(tmp_path / "models", version=2)
        config.write_text('log_level = "debug"\nlabels = ["linear:new=2"]\nreload_s = 0\n')
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP: the repository was looked at, log level debug" in server.log, "it is read", 60)
        named = pb.SampleRequest(model=pb.ModelSelector(label="new"), count=1)
        for each in channels:
            assert vae_pb2_grpc.VaeServiceStub(each).Sample(named, timeout=20, wait_for_ready=True).model.version == 2
        # A new engine process begins with what was taken over; one that is killed in between is no end of that.
        engine = server.children()["latentry-engine"]
        os.kill(engine, signal.SIGSTOP)
        server.process.send_signal(signal.SIGHUP)
        os.kill(engine, signal.SIGKILL)
        stub = vae_pb2_grpc.VaeServiceStub(channels[0])
        wait_for(lambda: version_of(stub, named) == 2, "the label is there again", 60)
        config.write_text('log_level = "info"\nlabels = ["linear:new=1"]\nreload_s = 0\n')
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: version_of(stub, named) == 1, "the label is moved", 60)
        assert server.stop() == 0


def version_of(stub: Any, request: pb.SampleRequest) -> int | None:
    """Which version answers; None while none does."""
    try:
        return int(stub.Sample(request, timeout=20).model.version)
    except grpc.RpcError:
        return None


def test_sigterm_lets_what_came_finish_and_leaves_nothing(linear_repository: Path) -> None:
    flags = ("--max-batch-size", "1", "--max-queue-items", "1000000", "--drain-grace-s", "0.3")
    with server_process(linear_repository, *flags, frontends=2) as server:
        children = server.children()
        with on_both(server) as channels:
            watches = [health_pb2_grpc.HealthStub(each).Watch(CHECK, timeout=60) for each in channels]
            assert {next(watch).status for watch in watches} == {SERVING}
            calls = [
                vae_pb2_grpc.VaeServiceStub(each).Sample.future(pb.SampleRequest(count=500, seed=1), timeout=60)
                for each in channels * 2
            ]
            wait_for(lambda: server.metric("latentry_in_flight") == len(calls) or calls[0].done(), "they have come", 30)
            server.process.send_signal(signal.SIGTERM)
            assert {next(watch).status for watch in watches} == {NOT_SERVING}
            assert {call.code() for call in calls} == {Code.OK}
            assert server.process.wait(30) == 0
        assert not [name for name, pid in children.items() if Path("/proc", str(pid)).exists()]
        assert "Traceback" not in server.log


def test_sigterm_lets_what_an_administrator_asked_for_finish(tmp_path: Path) -> None:
    linear_model.write(tmp_path / "models")
    (port,) = free_ports(1)
    flags = ("--admin-port", str(port), "--reload-s", "0")
    with (
        server_process(tmp_path / "models", *flags, frontends=2) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        linear_model.write(tmp_path / "models", version=2)
        request = apb.LoadModelRequest(name="linear", version=2)
        loading = admin_pb2_grpc.AdminServiceStub(channel).LoadModel.future(request, timeout=60)
        rehearsal = rehearsal_of(server.engine)
        os.kill(rehearsal, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log, "it drains")
        time.sleep(1.0)  # long after the front ends have ended
        os.kill(rehearsal, signal.SIGCONT)
        assert loading.result().status.version == 2
        assert server.process.wait(30) == 0


def test_a_second_sigterm_ends_all_at_once(linear_repository: Path) -> None:
    with server_process(linear_repository, "--drain-grace-s", "60", frontends=2) as server:
        children = server.children()
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log, "it drains")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        assert not [name for name, pid in children.items() if Path("/proc", str(pid)).exists()]
