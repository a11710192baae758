"""The process: how it starts, how it refuses to, how it stops."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import linear_model
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from linear_model import LinearModel

from latentry.cli import main
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.errors import StartError
from serving.settings import Settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """`latentry serve` as a process of its own."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "latentry", "serve", "--port", "0", "--metrics-port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"gRPC on \S+:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()))
        self._reader.start()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, within half a minute."""
        status = self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextmanager
def _server(*flags: str) -> Iterator[Server]:
    server = Server(*flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


@pytest.fixture
def start(linear_repository: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(_server("--models", str(linear_repository), *flags))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_with_status_0(start: Callable[..., Server], number: int) -> None:
    server = start()
    assert server.port > 0
    assert server.stop(number) == 0
    assert not any("Traceback" in line for line in server.lines)


def test_nothing_reports_home(linear_repository: Path, tmp_path: Path) -> None:
    """ONNX Runtime would: it makes an identity of the machine in the home folder, and asks for its server's address."""
    command = [sys.executable, "-c", "import os, serving.engine; print(os.environ['ORT_DISABLE_TELEMETRY'])"]
    made = subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert made.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_while_the_model_loads_ends_the_start(tmp_path: Path) -> None:
    """A decoder that loops for hours in its warm-up stands for whatever takes long to load."""
    linear_model.make_endless(linear_model.write(tmp_path / "models"))
    command = [sys.executable, "-m", "latentry", "serve", "--models", str(tmp_path / "models"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "device" in process.stderr.readline()
            time.sleep(0.3)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_sigterm_under_load_answers_what_was_accepted_and_refuses_the_rest(start: Callable[..., Server]) -> None:
    """Every call ends OK or UNAVAILABLE, nothing else; then the process exits with 0."""
    server = start()
    outcomes: Counter[grpc.StatusCode] = Counter()
    stopped = threading.Event()
    begun = threading.Barrier(9)

    def load() -> None:
        mine: Counter[grpc.StatusCode] = Counter()
        with grpc.insecure_channel(f"localhost:{server.port}", [("grpc.enable_retries", 0)]) as channel:
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            stub.Sample(pb.SampleRequest(count=1))
            begun.wait()
            refused = 0
            while refused < 20 and not stopped.is_set():
                futures = [stub.Sample.future(pb.SampleRequest(count=64, seed=1), timeout=20) for _ in range(4)]
                codes = [future.code() for future in futures]
                mine.update(codes)
                refused += sum(code is not grpc.StatusCode.OK for code in codes)
        outcomes.update(mine)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    time.sleep(0.5)  # into the middle of the load
    status = server.stop()
    stopped.set()
    for thread in threads:
        thread.join()
    assert status == 0
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, outcomes
    assert outcomes[grpc.StatusCode.OK] > 30
    assert not any("still running" in line or "Traceback" in line for line in server.lines)


def test_a_call_in_the_queue_when_sigterm_comes_is_answered(start: Callable[..., Server]) -> None:
    server = start("--max-batch-size", "1")
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        stub.Sample(pb.SampleRequest(count=1))
        calls = [stub.Sample.future(pb.SampleRequest(count=1000, seed=i), timeout=20) for i in range(4)]
        time.sleep(0.05)
        assert server.stop() == 0
        codes = [call.code() for call in calls]
    assert codes == [grpc.StatusCode.OK] * 4


def test_health_can_be_checked_and_watched_by_name(start: Callable[..., Server]) -> None:
    server = start()
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "latentry.v1.VaeService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
    assert server.wait() == 0


def test_watchers_hear_of_the_end_though_others_have_left(start: Callable[..., Server]) -> None:
    server = start()
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        names = ["", "", "linear", "nothing"]
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30) for name in names]
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert [next(watch).status for watch in watches] == [SERVING, SERVING, SERVING, unknown]
        watches[0].cancel()
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        server.process.send_signal(signal.SIGTERM)
        assert [next(watches[1]).status, next(watches[2]).status] == [NOT_SERVING, NOT_SERVING]
    assert server.wait() == 0


def test_the_health_command_says_it_by_its_exit_status(
    start: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    server = start()
    assert main(["health", "--server", f"localhost:{server.port}"]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert server.stop() == 0
    assert main(["health", "--server", f"localhost:{server.port}"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_clear_line(start: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag in ("--port", "--metrics-port"):
            server = start(flag, str(port))
            assert server.wait() == 3
            assert str(port) in server.lines[-1]
            assert server.lines[-1].startswith("latentry serve: cannot ")
            assert not any("Traceback" in line for line in server.lines)


def spoil(copy: Path, how: str) -> None:
    encoder = copy / "encoder.onnx"
    if how == "missing file":
        encoder.unlink()
    elif how == "changed byte":
        encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    elif how == "link out":
        encoder.rename(copy.parent.parent.parent / "outside.onnx")
        encoder.symlink_to(copy.parent.parent.parent / "outside.onnx")
    elif how == "version":
        copy.rename(copy.parent / "latest")
    elif how == "empty":
        shutil.rmtree(copy)
    elif how == "shape":
        text = (copy / "manifest.json").read_text()
        (copy / "manifest.json").write_text(re.sub(r'"latent_dim": \d+', '"latent_dim": 6', text))


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("missing file", 5, "encoder.onnx: No such file or directory"),
        ("changed byte", 5, "encoder.onnx: SHA-256: got"),
        ("link out", 5, "wanted a file inside the model folder"),
        ("version", 5, "version: got latest, wanted a folder named with a positive integer"),
        ("shape", 5, "encoder.onnx: output mean: got items of [5], the manifest says [6]"),
        ("empty", 4, "no model, wanted <name>/<version>/manifest.json"),
    ],
)
def test_a_bad_model_stops_the_start_with_one_line(
    linear: LinearModel, tmp_path: Path, how: str, status: int, message: str
) -> None:
    copy = Path(shutil.copytree(linear.folder, tmp_path / "models" / "linear" / "1"))
    spoil(copy, how)
    with _server("--models", str(tmp_path / "models")) as server:
        assert server.wait() == status
        assert message in server.lines[-1]
        assert not any("Traceback" in line for line in server.lines)


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with _server("--models", str(tmp_path / "nowhere")) as server:
        assert server.wait() == 4
        assert server.lines[-1].endswith("nowhere: No such file or directory\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": 70000}, "--port: got 70000, wanted 0 to 65535"),
        ({"max_batch_size": 0}, "--max-batch-size: got 0"),
        ({"max_queue_items": 5}, "--max-queue-items: got 5, wanted 1024"),
        ({"drain_s": float("nan")}, "--drain-s: got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(StartError, match=message):
        Settings(models=Path(), **change)  # type: ignore[arg-type]
