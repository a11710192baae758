"""Processes that are killed, stopped, told to end and cut off from their disks: they recover or exit, and say so."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess, server_process
from test_hostile import wait_for
from test_statuses import details

import latentry
from latentry.v1 import admin_pb2 as apb
from latentry.v1 import admin_pb2_grpc, vae_pb2_grpc
from latentry.v1 import vae_pb2 as pb
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc

Code = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SMALL = pb.SampleRequest(count=1, seed=1)


@contextmanager
def callers(server: ServerProcess, threads: int = 4) -> Iterator[Counter[str]]:
    """Clients that call all the time until the end of the block; how their calls ended. A wrong answer is `wrong`."""
    outcomes: Counter[str] = Counter()
    stopped = threading.Event()
    truth: dict[int, bytes] = {}
    lock = threading.Lock()

    def call() -> None:
        with latentry.Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            seed = 0
            while not stopped.is_set():
                seed = (seed + 1) % 10
                try:
                    images = client.sample(2, seed=seed).images.tobytes()
                except latentry.LatentryError as error:
                    ended = error.code.name
                    stopped.wait(0.05)
                else:
                    ended = "OK" if truth.setdefault(seed, images) == images else "wrong"
                with lock:
                    outcomes[ended] += 1

    running = [threading.Thread(target=call) for _ in range(threads)]
    for each in running:
        each.start()
    try:
        wait_for(lambda: outcomes["OK"] > 20, "the load is on")
        yield outcomes
    finally:
        stopped.set()
        for each in running:
            each.join()


def more_answers(outcomes: Counter[str]) -> None:
    """Calls are answered again, or still."""
    before = outcomes["OK"]
    wait_for(lambda: outcomes["OK"] > before + 50, "calls are answered", 30)


def rehearsals_of(pid: int) -> list[int]:
    """The processes in which a server tries a new version."""
    found = []
    for child in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):  # gone again
            pids = child.read_text().split()
            found += [int(n) for n in pids if b"serving.rehearsal" in Path("/proc", n, "cmdline").read_bytes()]
    return found


def rehearsal_of(pid: int) -> int:
    wait_for(lambda: rehearsals_of(pid), "a rehearsal has begun", 30)
    return rehearsals_of(pid)[0]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"serving.rehearsal" in Path("/proc", str(pid), "cmdline").read_bytes()
    return False


def publish_looping(root: Path, version: int) -> None:
    """A version that never ends its first run, put in place by a rename."""
    model = linear_model.write(root.with_name("new"), version=version)
    linear_model.make_endless(model)
    model.folder.rename(root / "linear" / str(version))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One that the test changes."""
    linear_model.write(tmp_path / "models")
    return tmp_path / "models"


# ---- SIGKILL and SIGSTOP ----


@pytest.mark.usefixtures("impatient")
def test_a_rehearsal_that_is_killed_refuses_its_version_and_nothing_else(repository: Path) -> None:
    with server_process(repository, "--reload-s", "0.1") as server, callers(server) as outcomes:
        publish_looping(repository, 2)
        os.kill(rehearsal_of(server.engine), signal.SIGKILL)
        wait_for(lambda: server.metric("latentry_refused_versions") == 1, "the version is refused")
        more_answers(outcomes)
        with server.channel() as channel:
            info = vae_pb2_grpc.VaeServiceStub(channel).GetModel(pb.GetModelRequest()).model
        assert [(each.version, each.reason) for each in info.refused_versions] == [
            (2, "loading it ended a process with SIGKILL")
        ]
        assert info.model.version == 1
        assert rehearsals_of(server.engine) == [], "it is not tried again at once"
        assert server.stop() == 0
        assert "refused linear version 2: loading it ended a process with SIGKILL" in server.log
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}, outcomes


def test_a_version_whose_rehearsal_was_killed_is_tried_again(
    repository: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the pause is over: what killed it may have been another's hunger for memory."""
    monkeypatch.setattr("serving.reloader._TRY_AGAIN_S", 0.0)
    service = serve(repository, admin_port=0)
    publish_looping(repository, 2)
    with grpc.insecure_channel(f"localhost:{service.admin_port}") as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        killed = set()
        for _ in range(2):
            scan = admin.Scan.future(apb.ScanRequest(), timeout=60)
            killed.add(rehearsal_of(os.getpid()))
            os.kill(max(killed), signal.SIGKILL)
            states = {each.version: each.state for each in scan.result().versions}
            assert states == {1: apb.VERSION_STATE_READY, 2: apb.VERSION_STATE_REFUSED}
    assert len(killed) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rehearsal_does_not_outlive_its_server(repository: Path, number: int) -> None:
    with server_process(repository, "--reload-s", "0.1", "--drain-s", "0") as server:
        publish_looping(repository, 2)
        child = rehearsal_of(server.engine)
        assert is_running(child)
        server.stop(number)
        wait_for(lambda: not is_running(child), "the rehearsal ends too")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stood_still_under_load_goes_on(linear_repository: Path) -> None:
    with server_process(linear_repository) as server, callers(server) as outcomes:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.process.send_signal(signal.SIGCONT)
        more_answers(outcomes)
        assert server.stop() == 0
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}, outcomes


def test_clients_go_on_when_a_server_is_killed_and_another_takes_its_place(linear_repository: Path) -> None:
    with server_process(linear_repository) as killed, callers(killed) as outcomes:
        killed.stop(signal.SIGKILL)
        new = ServerProcess(linear_repository, "--port", str(killed.port))
        new.port = killed.port
        try:
            more_answers(outcomes)
            assert new.stop() == 0
        finally:
            new.close()
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}, outcomes


# ---- disks ----


def test_what_a_full_disk_loses_of_the_log_is_counted(linear_repository: Path) -> None:
    """At the level of requests: each is a line."""
    flags = ("--request-log-level", "info")
    with Path("/dev/full").open("wb") as full, server_process(linear_repository, *flags, stderr=full) as server:
        before = server.metric("latentry_log_lines_lost_total")
        assert before > 0, "those of the start"
        with server.channel() as channel:
            for _ in range(10):
                vae_pb2_grpc.VaeServiceStub(channel).Sample(SMALL, timeout=10)
        assert server.metric("latentry_log_lines_lost_total") == before + 10
        assert server.stop() == 0


@contextmanager
def mounted(disk: Path) -> Iterator[Callable[[], object]]:
    """A disk of its own at `disk`, and a function that tears it away; skips where nothing can be mounted."""
    disk.mkdir()

    def run(*command: str) -> int:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode

    def mount() -> None:
        if shutil.which("mount") is None or run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
            pytest.skip("a disk cannot be mounted here")

    mount()
    try:
        yield lambda: run("umount", "-l", str(disk))
    finally:
        while os.path.ismount(disk):
            run("umount", "-l", str(disk))


@pytest.mark.usefixtures("impatient")
def test_a_repository_whose_disk_is_torn_away_goes_on_serving(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as tear_away:
        linear_model.write(tmp_path / "disk")
        with server_process(tmp_path / "disk", "--reload-s", "0.1") as server, callers(server) as outcomes:
            tear_away()
            wait_for(lambda: server.metric("latentry_repository_scan_failures_total") > 2, "it is noticed")
            more_answers(outcomes)
            linear_model.write(tmp_path / "disk", version=2)
            wait_for(lambda: "loaded linear version 2" in server.log, "a new disk is read")
            assert server.stop() == 0
            assert server.log.count("no model any more") == 1, "said once"
            assert server.log.count("the model repository can be read again") == 1
    # Version 2 has other weights, so its answers are others: there is no telling which are wrong.
    assert set(outcomes) <= {"OK", "UNAVAILABLE", "wrong"}, outcomes


# ---- SIGHUP ----


def test_sighup_takes_over_labels_and_log_level_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    for version in (1, 2):
        linear_model.write(tmp_path / "models", version=version)
    file = tmp_path / "latentry.toml"
    file.write_text('versions = ["all"]\nlabels = ["linear:stable=1"]\nrequest_log_level = "debug"\nreload_s = 0\n')
    with server_process(tmp_path / "models", "--config", str(file)) as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)

        def stable() -> int:
            request = pb.SampleRequest(model=pb.ModelSelector(label="stable"), count=1)
            return int(stub.Sample(request, timeout=10).model.version)

        def hang_up(said: str) -> None:
            before = server.log.count(said)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: server.log.count(said) == before + 1, said)

        assert stable() == 1
        assert '"event": "request"' not in server.log
        file.write_text('versions = ["all"]\nlabels = ["linear:stable=2"]\nlog_level = "debug"\nreload_s = 0\n')
        hang_up("SIGHUP: the repository was looked at, log level debug")
        assert stable() == 2
        wait_for(lambda: '"event": "request"' in server.log, "requests are logged now")
        for broken in ("labels = [", 'labels = ["linear:stable"]', "lables = []", 'log_level = "loud"'):
            file.write_text(broken)
            hang_up("what was configured before stays")
            assert stable() == 2
        file.unlink()
        hang_up("what was configured before stays")
        assert stable() == 2
        assert server.stop() == 0
        assert "Traceback" not in server.log


# ---- new versions under streams ----


def endless(chunk_items: int = 8) -> pb.StreamSampleRequest:
    """As long a stream as there is."""
    return pb.StreamSampleRequest(sample=pb.SampleRequest(count=1 << 20, seed=1), chunk_items=chunk_items)


def versions_of(parts: Any, count: int) -> set[int]:
    """The versions that made the next so many parts of a stream; none after a first one of another than 1."""
    versions: set[int] = set()
    while count and versions <= {1}:
        versions.add(next(parts).part.model.version)
        count -= 1
    return versions


def test_a_stream_keeps_its_version_while_others_go_on_to_the_next(repository: Path, serve: Any) -> None:
    """All of it, if it ends within `drain_s` of the switch."""
    service = serve(repository, reload_s=0.05, drain_s=30.0)
    narrow = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]  # most of it is yet to be made
    with grpc.insecure_channel(f"localhost:{service.port}", narrow) as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        asked = [pb.SampleRequest(count=1000, seed=1, first_index=1000 * k) for k in range(10)]
        wanted = b"".join(stub.Sample(each).images.tensor.data for each in asked)
        sample = pb.SampleRequest(count=10_000, seed=1)
        parts = stub.StreamSample(pb.StreamSampleRequest(sample=sample, chunk_items=64))
        first = next(parts).part
        linear_model.write(repository.with_name("new"), version=2).folder.rename(repository / "linear" / "2")
        wait_for(lambda: stub.Sample(SMALL).model.version == 2, "others are answered by the new version")
        assert service.metrics.registry.get_sample_value("latentry_in_flight") == 1
        rest = [each.part for each in parts]
        assert {each.model.version for each in (first, *rest)} == {1}
        assert b"".join(each.images.tensor.data for each in (first, *rest)) == wanted


def test_a_stream_that_outlasts_its_version_is_told_to_come_back(repository: Path, serve: Any) -> None:
    service = serve(repository, reload_s=0.05, drain_s=0.3)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        parts = stub.StreamSample(endless())
        assert versions_of(parts, 3) == {1}
        linear_model.write(repository.with_name("new"), version=2).folder.rename(repository / "linear" / "2")
        with pytest.raises(grpc.RpcError) as ended:
            versions_of(parts, 1 << 20)
        assert ended.value.code() is Code.UNAVAILABLE
        assert details(ended.value, error_details_pb2.RetryInfo).HasField("retry_delay")
        parts = stub.StreamSample(endless())
        assert versions_of(parts, 3) == {2}
        parts.cancel()


# ---- SIGTERM ----


def test_streams_without_end_are_cut_off_after_the_drain(linear_repository: Path) -> None:
    """Whether their readers read or not; and a stream of the protocol's that waits for requests ends at once."""
    with server_process(linear_repository, "--drain-s", "0.5") as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        read, unread = (stub.StreamSample(endless(), timeout=60) for _ in range(2))
        next(unread)
        waiting: queue.SimpleQueue[oip.ModelInferRequest] = queue.SimpleQueue()
        idle = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(waiting.get, None))
        waiting.put(oip.ModelInferRequest(model_name="linear_sample"))
        assert next(idle).error_message == ""
        codes: list[Code] = []

        def read_all() -> None:
            with contextlib.suppress(grpc.RpcError):
                for _ in read:
                    pass
            codes.append(read.code())

        reader = threading.Thread(target=read_all)
        reader.start()
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            next(idle)
        assert (ended.value.code(), ended.value.details()) == (Code.UNAVAILABLE, "the server is shutting down")
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 5
        reader.join()
        assert codes == [Code.UNAVAILABLE]
        assert "calls were still running after 0.5 s" in server.log
        assert "Traceback" not in server.log
        waiting.put(None)  # type: ignore[arg-type] # the end of the requests


def ready(server: ServerProcess) -> int:
    """The status of /readyz."""
    page = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=10)
    with contextlib.closing(page):
        page.request("GET", "/readyz")
        return page.getresponse().status


def test_calls_are_taken_during_the_grace_and_refused_after_it(linear_repository: Path) -> None:
    """Calls that last through it all stand for slow ones: they are answered, and the exit status is 0."""
    flags = ("--drain-grace-s", "0.5", "--max-batch-size", "1", "--max-queue-items", "1000000")
    with server_process(linear_repository, *flags) as server, server.channel() as channel, server.channel() as second:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == SERVING
        assert ready(server) == 200
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert ready(server) == 503
        stub.Sample(SMALL, timeout=10)
        slow = [stub.Sample.future(pb.SampleRequest(count=1024, seed=n), timeout=60) for n in range(20)]
        late = vae_pb2_grpc.VaeServiceStub(second).Sample
        refused = late.future(pb.SampleRequest(), timeout=10)  # of no items: INVALID_ARGUMENT while calls are taken
        while refused.code() is Code.INVALID_ARGUMENT:
            refused = late.future(pb.SampleRequest(), timeout=10)
        assert (refused.code(), refused.details()) == (Code.UNAVAILABLE, "the server is shutting down")
        assert details(refused, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
        assert not all(call.done() for call in slow), "it was refused while others ran"
        assert {call.code() for call in slow} == {Code.OK}
        assert server.process.wait(20) == 0


def test_a_second_sigterm_ends_it_at_once(linear_repository: Path) -> None:
    with server_process(linear_repository, "--drain-grace-s", "60") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log, "it drains")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in server.log


def test_what_still_runs_after_the_drain_is_cut_off(linear_repository: Path) -> None:
    flags = ("--drain-s", "0.2", "--max-batch-size", "1", "--max-queue-items", "1000000")
    with server_process(linear_repository, *flags) as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        calls = [stub.Sample.future(pb.SampleRequest(count=1024, seed=n), timeout=60) for n in range(40)]
        wait_for(lambda: server.metric("latentry_in_flight") == 40, "all have come")
        assert server.stop() == 0
        assert {call.code() for call in calls} == {Code.UNAVAILABLE}
        assert "calls were still running after 0.2 s" in server.log


@pytest.mark.parametrize("closed", ["0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_a_server_without_standard_streams_serves(linear_repository: Path, closed: str) -> None:
    with server_process(linear_repository, first=f"exec {closed}") as server, server.channel() as channel:
        reply = vae_pb2_grpc.VaeServiceStub(channel).Sample(SMALL, timeout=10)
        assert np.frombuffer(reply.images.tensor.data, np.uint8).size == 120
        assert server.metric("latentry_ready") == 1
        assert server.stop() == 0
