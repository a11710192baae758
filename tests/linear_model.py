"""A linear VAE as a model folder, written with onnx.helper in milliseconds: for tests that are about serving.

Its numbers can be worked out by hand: mean = x @ w, logvar = x @ v, image mean = sigmoid(z @ u), x = pixels / 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentry.manifest import DECODER_FILE, ENCODER_FILE, FP32, MANIFEST_FILE, Likelihood, Manifest, sha256

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class LinearModel:
    """The weights, and the folder that was written."""

    folder: Path
    shape: tuple[int, int, int]
    w: Array
    v: Array
    u: Array

    def encode(self, images: Array) -> tuple[Array, Array]:
        x = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
        return x @ self.w, x @ self.v

    def decode(self, latents: Array) -> Array:
        return (1 / (1 + np.exp(-(latents @ self.u)))).reshape(-1, *self.shape)


def write(
    repository: Path, name: str = "linear", version: int = 1, shape: tuple[int, int, int] = (12, 10, 1), z: int = 5
) -> LinearModel:
    """Write `repository/name/version` with weights drawn from a fixed seed."""
    rng = np.random.default_rng(version)
    pixels = int(np.prod(shape))
    w, v = (rng.normal(0, 0.1, (pixels, z)).astype(np.float32) for _ in range(2))
    u = rng.normal(0, 1, (z, pixels)).astype(np.float32)
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    graphs = {ENCODER_FILE: encoder(shape, w, v), DECODER_FILE: decoder(shape, u)}
    save(folder, graphs, manifest(name, version, shape, z))
    return LinearModel(folder, shape, w, v, u)


def manifest(name: str, version: int, shape: tuple[int, int, int], z: int) -> Manifest:
    """A manifest whose digests are still to be filled in by `save`."""
    files = {ENCODER_FILE: "0" * 64, DECODER_FILE: "0" * 64}
    return Manifest(name, version, shape, z, Likelihood("bernoulli"), files, evaluation={"elbo": -1.5})


def save(folder: Path, graphs: dict[str, onnx.ModelProto], about: Manifest, *, metadata: bool = True) -> None:
    """Write graphs and manifest with the right digests (and the right metadata, unless told otherwise)."""
    digests = {}
    for file, graph in graphs.items():
        if metadata:
            kind, _, precision = file.removesuffix(".onnx").partition(".")
            helper.set_model_props(graph, about.graph_metadata(kind, precision or FP32))
        data = graph.SerializeToString()
        (folder / file).write_bytes(data)
        digests[file] = sha256(data)
    fields = {name: getattr(about, name) for name in about.__dataclass_fields__}
    (folder / MANIFEST_FILE).write_text(Manifest(**{**fields, "files": digests}).to_json())


def make_endless(model: LinearModel) -> None:
    """Make the decoder one whose run never comes to an end."""
    slow = onnx.load(model.folder / DECODER_FILE)
    port, node = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [node("Identity", ["go_on"], ["still"]), node("Neg", ["before"], ["after"])],
        "body",
        [
            port("i", TensorProto.INT64, []),
            port("go_on", TensorProto.BOOL, []),
            port("before", TensorProto.FLOAT, None),
        ],
        [port("still", TensorProto.BOOL, []), port("after", TensorProto.FLOAT, None)],
    )
    constants = {"times": np.array(2**62), "yes": np.array(True)}
    slow.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    slow.graph.node[0].input[0] = "looped"
    slow.graph.node.insert(0, node("Loop", ["times", "yes", "latents"], ["looped"], body=body))
    about = manifest(model.folder.parent.name, int(model.folder.name), model.shape, model.w.shape[1])
    save(model.folder, {ENCODER_FILE: onnx.load(model.folder / ENCODER_FILE), DECODER_FILE: slow}, about)


def encoder(shape: tuple[int, int, int], w: Array, v: Array, batch: int | str = "N") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["mean"]),
        helper.make_node("MatMul", ["flat", "v"], ["logvar"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, *shape])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, w.shape[1]]) for n in ("mean", "logvar")]
    return _model(nodes, inputs, outputs, {"scale": np.float32(255), "w": w, "v": v})


def decoder(shape: tuple[int, int, int], u: Array, batch: int | str = "N") -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["latents", "u"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["mean"]),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["images"], to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("latents", TensorProto.FLOAT, [batch, u.shape[0]])]
    outputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, *shape]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch, *shape]),
    ]
    constants = {"u": u, "scale": np.float32(255), "shape": np.array([-1, *shape], np.int64)}
    return _model(nodes, inputs, outputs, constants)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
