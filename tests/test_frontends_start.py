"""How several processes start, or refuse to: with the same exit statuses and one line, as one process does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import linear_model
import pytest
from linear_model import LinearModel
from server_process import ROOT, server_process
from test_frontends import ready
from test_hostile import wait_for

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc


def started(*flags: str, first: str = "true", timeout_s: float = 60) -> tuple[int, str]:
    """The exit status of a server that cannot start, and its last line."""
    command = [sys.executable, "-m", "latentry", "serve", "--port", "0", "--metrics-port", "0", "--frontends", "2"]
    shell = ["/bin/sh", "-c", f'{first} && exec "$@"', "sh", *command, *flags]
    ended = subprocess.run(shell, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("count", ["0", "1000", "two", "-1"])
def test_a_number_of_front_ends_that_makes_no_sense_is_refused(count: str) -> None:
    wanted = "wanted " + ("a whole number, 1 to 128" if count == "two" else "1 to 128")
    assert started("--frontends", count) == (2, f"latentry serve: --frontends: got {count!r}, {wanted}")


@pytest.mark.parametrize("flag", ["--port", "--metrics-port", "--admin-port"])
def test_a_port_that_is_taken_is_one_clear_line(linear_repository: Path, flag: str) -> None:
    """Also by somebody who would share it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, line = started("--models", str(linear_repository), flag, port)
    assert status == 3
    assert line.startswith("latentry serve: cannot ")
    assert port in line


def test_a_bad_model_stops_the_start_with_one_line(linear: LinearModel, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(linear.folder, tmp_path / "models" / "linear" / "1"))
    (copy / "encoder.onnx").unlink()
    status, line = started("--models", str(tmp_path / "models"))
    assert status == 5
    assert line.startswith("latentry serve: bad model: ")
    assert line.endswith("encoder.onnx: No such file or directory")


def test_no_model_and_no_device_have_their_own_statuses(linear_repository: Path, tmp_path: Path) -> None:
    assert started("--models", str(tmp_path / "nowhere"))[0] == 4
    assert started("--models", str(linear_repository), "--device", "cuda:99")[0] == 6


def test_too_few_descriptors_are_said_before_anything_starts(linear_repository: Path) -> None:
    line = "latentry serve: open files (ulimit -n): got 100, wanted 264 or more for 2 front ends"
    assert started("--models", str(linear_repository), first="ulimit -n 100") == (1, line)


def test_the_limit_of_descriptors_is_raised_to_what_the_system_gives(linear_repository: Path) -> None:
    with server_process(linear_repository, frontends=2, first="ulimit -S -n 100") as server:
        for pid in (server.process.pid, *server.children().values()):
            limits = Path("/proc", str(pid), "limits").read_text()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert int(line.split()[3]) > 264


def test_sigterm_while_the_model_loads_ends_the_start(tmp_path: Path) -> None:
    linear_model.make_endless(linear_model.write(tmp_path / "models"))
    command = [sys.executable, "-m", "latentry", "serve", "--models", str(tmp_path / "models"), "--port", "0"]
    command += ["--metrics-port", "0", "--frontends", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "device" not in process.stderr.readline():
                assert process.poll() is None
            children = Path("/proc", str(process.pid), "task", str(process.pid), "children").read_text().split()
            assert len(children) == 3
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            wait_for(lambda: not [pid for pid in children if Path("/proc", pid).exists()], "all have ended")
        finally:
            process.kill()


@pytest.mark.parametrize("closed", ["0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_without_standard_streams_they_serve(linear_repository: Path, closed: str) -> None:
    with server_process(linear_repository, frontends=2, first=f"exec {closed}") as server:
        assert server.metric("latentry_ready") == 1
        assert server.stop() == 0


def test_what_cannot_be_served_any_more_does_not_keep_a_new_engine_from_the_rest(tmp_path: Path) -> None:
    """What is wrong with one version ends a start, not a service."""
    models = tmp_path / "models"
    for version in (1, 2, 3):
        linear_model.write(models, version=version)
    flags = ("--labels", "linear:prod=1", "--versions", "all", "--reload-s", "0", "--default-model", "linear")
    with server_process(models, *flags, frontends=2) as server, server.channel() as channel:
        shutil.rmtree(models / "linear" / "1")
        (models / "linear" / "3" / "decoder.onnx").write_bytes(b"nothing")
        (models / "not a name" / "1").mkdir(parents=True)
        engine = server.children()["latentry-engine"]
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: server.children().get("latentry-engine", engine) != engine, "another engine is there", 30)
        wait_for(lambda: ready(server) == 200, "it serves", 60)
        reply = vae_pb2_grpc.VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=20, wait_for_ready=True)
        assert reply.model.version == 2
        assert "label prod of linear: version 1 is not served" in server.log
        assert "refused linear version 3" in server.log
        assert server.log.count("latentry-engine ended") == 1
