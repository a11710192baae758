"""The stubs are what the protos say, and both majors of protobuf run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROTOS = sorted((ROOT / "protos" / "latentry").rglob("*.proto"))

ROUND_TRIP = """
import google.protobuf
from latentry.v1 import vae_pb2 as pb, vae_pb2_grpc
request = pb.SampleRequest(count=3, seed=2**64 - 1, model=pb.ModelSelector(name="fashion", version=1))
back = pb.SampleRequest.FromString(request.SerializeToString())
assert back == request and back.HasField("seed") and vae_pb2_grpc.VaeServiceStub
print(google.protobuf.__version__)
"""


def test_the_checked_in_stubs_are_what_protoc_makes(tmp_path: Path) -> None:
    assert PROTOS
    for proto in PROTOS:
        subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"),
                *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
                str(proto),
            ],
            check=True,
        )
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*") if path.is_file()}
    kept = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "latentry").rglob("*_pb2*.py*")}
    kept = {path: data for path, data in kept.items() if path.suffix in (".py", ".pyi")}
    assert made == kept, "run `make protos`"


@pytest.mark.parametrize("version", ["6.30.2", "7.36.2"])
def test_protobuf_6_and_7_both_run_the_stubs(tmp_path: Path, version: str) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*install, f"protobuf=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"protobuf {version} cannot be installed here: {done.stderr[-200:]}")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{ROUND_TRIP}"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == (version, "")


def test_every_field_value_and_call_is_documented() -> None:
    """Each is explained on its own line or on the line above it."""
    undocumented = []
    for proto in PROTOS:
        lines = proto.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            declares = " = " in line.partition("//")[0] and not line.startswith("syntax")
            if (declares or line.startswith("  rpc ")) and "//" not in line and not before.strip().startswith("//"):
                undocumented.append(line.strip())
    assert not undocumented
