"""Models for tests of the Open Inference Protocol, and what they need to speak it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import conditional_model
import grpc
import linear_model
import numpy as np
import pytest
from conditional_model import ConditionalModel
from linear_model import LinearModel

from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc

DATATYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "uint64": "UINT64", "float32": "FP32"}
DTYPES = {"UINT8": np.uint8, "FP32": np.float32}
Array = np.ndarray[Any, np.dtype[Any]]


LABELS = ("boot", "bag", "coat")
DIRECTION = (1.0, 0.0, 0.0, -2.0, 0.0)  # of the attribute `wide`


@dataclass(frozen=True)
class Models:
    """`plain`, versions 1 and 2; `moved`, which has the attribute `wide`; and `linear`, which is conditional."""

    plain: LinearModel
    second: LinearModel
    moved: LinearModel
    classed: ConditionalModel


def write_models(repository: Path) -> Models:
    """Write them."""
    plain, second = (linear_model.write(repository, "plain", version) for version in (1, 2))
    moved = linear_model.write(repository, "moved", 4)
    graphs = {
        linear_model.ENCODER_FILE: linear_model.encoder(moved.shape, moved.w, moved.v),
        linear_model.DECODER_FILE: linear_model.decoder(moved.shape, moved.u),
    }
    about = linear_model.manifest("moved", 4, moved.shape, 5)
    linear_model.save(moved.folder, graphs, replace(about, attributes={"wide": DIRECTION}))
    classed = conditional_model.write(repository, len(LABELS))
    about = replace(linear_model.manifest("linear", 1, classed.linear.shape, 5), classes=len(LABELS), labels=LABELS)
    linear_model.save(classed.linear.folder, conditional_model.graphs(classed.linear, len(LABELS)), about)
    return Models(plain, second, moved, classed)


@contextlib.contextmanager
def calls(port: int) -> Iterator[Any]:
    """A bare stub of the protocol's."""
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)


@functools.cache
def _passing_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="latentry-packages-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def installed(config: pytest.Config, *packages: str) -> Path:
    """A folder with these packages from PyPI and nothing that they depend on, kept from run to run where pytest keeps
    things. Skips the test if they cannot be had.
    """
    cache = getattr(config, "cache", None)  # none with `-p no:cacheprovider`
    folder = (cache.mkdir("packages") if cache else _passing_folder()) / "-".join(
        re.sub(r"[^a-z0-9.]+", "_", each) for each in packages
    )
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{made}/all", *packages]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr[-200:]}")
        with contextlib.suppress(OSError):  # another process was faster
            Path(made, "all").rename(folder)
    return folder


def tritonclient(config: pytest.Config) -> Path:
    """Where to import it from, where grpcio, protobuf and numpy are: its other dependencies are in there."""
    return installed(config, "tritonclient==2.73.0", "python-rapidjson==1.25", "ml-dtypes==0.5.4")


def request(model: str, tensors: dict[str, Any] | None = None, *, outputs: tuple[str, ...] = (), **more: Any) -> Any:
    """A request with raw tensors: arrays, or lists of bytes. `parameters` may be Python's own values."""
    made = oip.ModelInferRequest(model_name=model, outputs=[{"name": name} for name in outputs])
    for key, value in more.pop("parameters", {}).items():
        set_parameter(made.parameters[key], value)
    for name, value in (tensors or {}).items():
        if isinstance(value, list):
            made.inputs.add(name=name, datatype="BYTES", shape=[len(value)])
            made.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in value))
        else:
            made.inputs.add(name=name, datatype=DATATYPES[str(value.dtype)], shape=value.shape)
            made.raw_input_contents.append(value.tobytes())
    for field, value in more.items():
        setattr(made, field, value)
    return made


def set_parameter(parameter: Any, value: Any) -> None:
    """`value` as the kind of parameter that a Python client makes of it."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    kind = "uint64_param" if type(value) is int and value >= 2**63 else kinds[type(value)]
    setattr(parameter, kind, value)


def arrays(response: Any) -> dict[str, Any]:
    """The outputs of a reply: arrays, or lists of bytes."""
    assert len(response.outputs) == len(response.raw_output_contents)
    found: dict[str, Any] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            found[output.name] = elements(raw)
            assert list(output.shape) == [len(found[output.name])]
        else:
            found[output.name] = np.frombuffer(raw, DTYPES[output.datatype]).reshape(tuple(output.shape))
    return found


def elements(raw: bytes) -> list[bytes]:
    """Those of a BYTES tensor."""
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found
