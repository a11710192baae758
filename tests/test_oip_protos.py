"""The schema of the Open Inference Protocol is Triton's own, and the stubs are what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import oip_fixtures
import pytest
from conftest import ROOT
from generated_stubs import described

NAMES = ("model_config.proto", "grpc_service.proto")

ROUND_TRIP = """
import google.protobuf
from serving.inference import grpc_service_pb2 as oip, grpc_service_pb2_grpc, model_config_pb2
made = oip.ModelInferRequest(model_name="fashion_sample", raw_input_contents=[b"x"])
made.parameters["seed"].uint64_param = 2**64 - 1
made.inputs.add(name="count", datatype="INT64", shape=[-1]).contents.int64_contents.append(-5)
assert oip.ModelInferRequest.FromString(made.SerializeToString()) == made
config = oip.ModelConfigResponse(config=model_config_pb2.ModelConfig(name="a", max_batch_size=3))
assert oip.ModelConfigResponse.FromString(config.SerializeToString()).config.max_batch_size == 3
assert grpc_service_pb2_grpc.GRPCInferenceServiceStub
print(google.protobuf.__version__)
"""


@pytest.fixture
def tritonclient(pytestconfig: pytest.Config) -> Path:
    return oip_fixtures.tritonclient(pytestconfig)


def test_the_checked_in_stubs_are_what_protoc_makes(tmp_path: Path) -> None:
    """But for the imports: protoc makes them for a folder that is on the path, whose names would be anybody's."""
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos' / 'inference'}"]
    subprocess.run([*command, *outs, *NAMES], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    del made["model_config_pb2_grpc.py"]  # there is no service in that file
    for name, text in made.items():
        made[name] = re.sub(
            r"^import (model_config|grpc_service)_pb2 as", r"from serving.inference import \1_pb2 as", text, flags=re.M
        )
    kept = {path.name: path.read_text() for path in (ROOT / "serving" / "inference").glob("*_pb2*.py*")}
    assert made == kept, "run `make protos`"


def test_the_schema_is_the_one_that_tritonclient_carries(tritonclient: Path) -> None:
    """Its files' names too, so that both can be loaded into one process."""
    for name, module in zip(NAMES, ("model_config_pb2.py", "service_pb2.py"), strict=True):
        theirs = described((tritonclient / "tritonclient" / "grpc" / module).read_text())
        ours = described((ROOT / "serving" / "inference" / name.replace(".proto", "_pb2.py")).read_text())
        assert ours.name == theirs.name == name
        assert ours == theirs


@pytest.mark.parametrize("version", ["6.30.2", "7.36.2"])
def test_protobuf_6_and_7_both_run_the_stubs(tmp_path: Path, version: str) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*install, f"protobuf=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"protobuf {version} cannot be installed here: {done.stderr[-200:]}")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{ROUND_TRIP}"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == (version, "")
