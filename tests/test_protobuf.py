"""Our stubs, our client and our server run with protobuf 6 and with protobuf 7, and no warning."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from server_process import server_process

import latentry
from serving.server import Service

STUBS = sorted(path for folder in ("latentry", "serving") for path in (ROOT / folder).rglob("*_pb2*.py"))
OLDEST, NEWEST = "6.30.2", "7.36.2"  # of both majors that pyproject.toml allows

ROUND_TRIPS = """
import importlib, google.protobuf
from google.protobuf import message_factory
for name in {modules}:
    module = importlib.import_module(name)
    file = getattr(module, "DESCRIPTOR", None)
    for message in file.message_types_by_name.values() if file else ():
        kind = message_factory.GetMessageClass(message)
        assert kind.FromString(kind().SerializeToString()) == kind(), message.full_name
from latentry.v1 import vae_pb2 as pb
request = pb.SampleRequest(count=3, seed=2**64 - 1, model=pb.ModelSelector(name="fashion", version=1))
back = pb.SampleRequest.FromString(request.SerializeToString())
assert back == request and back.HasField("seed")
print(google.protobuf.__version__)
"""

CALL = """
import google.protobuf, latentry
with latentry.Client({target!r}) as client:
    sampled = client.sample(3, seed=2**64 - 1)
print(google.protobuf.__version__, sampled.latents.tobytes().hex())
"""


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def protobuf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A version of protobuf, and a folder that holds it."""
    version: str = request.param
    return version, installed(tmp_path_factory.mktemp("protobuf"), f"protobuf=={version}")


def installed(folder: Path, *packages: str) -> Path:
    """The packages alone, in `folder`; skips the test where pip does not get them."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr[-200:]}")
    return folder


def run(code: str, folder: Path) -> str:
    """What the code prints in a process that finds packages in `folder` first, and in which warnings are errors."""
    first = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", first + code], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.strip()


def test_protobuf_6_and_7_both_run_all_stubs(protobuf: tuple[str, Path]) -> None:
    version, folder = protobuf
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in STUBS]
    assert {"latentry.v1.vae_pb2_grpc", "serving.inference.grpc_service_pb2_grpc"} <= {*modules}
    assert run(ROUND_TRIPS.format(modules=modules), folder) == version


def test_clients_of_protobuf_6_and_7_get_the_same_over_the_wire(
    protobuf: tuple[str, Path], linear_service: Service
) -> None:
    version, folder = protobuf
    target = f"localhost:{linear_service.port}"
    with latentry.Client(target) as client:
        wanted = client.sample(3, seed=2**64 - 1).latents
    assert run(CALL.format(target=target), folder) == f"{version} {wanted.tobytes().hex()}"


def test_a_server_of_protobuf_7_serves(linear_repository: Path, linear_service: Service, tmp_path: Path) -> None:
    """With what pip installs beside protobuf 7: the packages of grpcio's own version, which are made for it."""
    beside = (f"grpcio-{package}=={version_of('grpcio')}" for package in ("channelz", "health-checking", "reflection"))
    folder = installed(tmp_path, f"protobuf=={NEWEST}", *beside)
    with latentry.Client(f"localhost:{linear_service.port}") as client:
        wanted = client.sample(3, seed=5)
    with server_process(linear_repository, first=f"export PYTHONPATH='{folder}'") as server:
        loaded = Path("/proc", str(server.process.pid), "maps").read_text()
        assert f"{folder}/google/_upb/" in loaded, "it runs that protobuf"
        with latentry.Client(f"localhost:{server.port}") as client:
            got = client.sample(3, seed=5)
        assert server.stop() == 0
        assert "Warning" not in server.log
    np.testing.assert_array_equal(got.latents, wanted.latents)
    np.testing.assert_array_equal(got.images, wanted.images)
