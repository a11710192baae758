"""Model folders to time a server with, made in milliseconds with random weights: no torch, no training.

`conv` is a plain convolutional VAE of 28x28 grey images with 32 latents and 0.85 million parameters in its decoder,
what all servers are compared on. `linear` has the same ports and next to no work, so that what a call itself costs
stands out. `broad` has images of 512x512 whose graphs only copy, for calls whose cost is their bytes. Knows nothing
of servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentry.manifest import DECODER_FILE, ENCODER_FILE, MANIFEST_FILE, Likelihood, Manifest, sha256

Shape = tuple[int, int, int]
Weights = dict[str, npt.NDArray[Any]]
Nodes = list[onnx.NodeProto]

_FILTER: dict[str, Any] = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a folder is made of: the shape of its images, how many latents, and what makes the nodes of its graphs."""

    shape: Shape
    latent_dim: int
    encoder: Callable[[Kind], tuple[Nodes, Weights]]
    decoder: Callable[[Kind], tuple[Nodes, Weights]]


def write(repository: Path, kind: str = "conv", name: str = "bench", version: int = 1) -> Path:
    """Write `repository/name/version`, and return it."""
    made = KINDS[kind]
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    files = dict.fromkeys((ENCODER_FILE, DECODER_FILE), "0" * 64)
    about = Manifest(name, version, made.shape, made.latent_dim, Likelihood("bernoulli"), files)
    images = {"images": (TensorProto.UINT8, made.shape)}
    mean = {"mean": (TensorProto.FLOAT, made.shape)}
    latents = [(port, (TensorProto.FLOAT, (made.latent_dim,))) for port in ("latents", "mean", "logvar")]
    graphs = {
        ENCODER_FILE: _graph(*made.encoder(made), images, dict(latents[1:])),
        DECODER_FILE: _graph(*made.decoder(made), dict(latents[:1]), {**images, **mean}),
    }
    for file, graph in graphs.items():
        helper.set_model_props(graph, about.graph_metadata(file.removesuffix(".onnx")))
        data = graph.SerializeToString()
        (folder / file).write_bytes(data)
        files[file] = sha256(data)
    about = Manifest(name, version, made.shape, made.latent_dim, Likelihood("bernoulli"), files)
    (folder / MANIFEST_FILE).write_text(about.to_json())
    return folder


def _conv_encoder(kind: Kind) -> tuple[Nodes, Weights]:
    weights = {
        "levels": np.array(255, np.float32),
        "grey": np.array([-1, 1, 28, 28]),
        **_random(conv1=(32, 1, 4, 4), conv2=(64, 32, 4, 4), dense1=(64 * 49, 256), dense2=(256, 2 * kind.latent_dim)),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "levels"], ["unit"]),
        helper.make_node("Reshape", ["unit", "grey"], ["x0"]),  # one channel: NHWC and NCHW are the same bytes
        *_layers("x0", [("Conv", "conv1", _FILTER), ("Conv", "conv2", _FILTER)]),
        helper.make_node("Flatten", ["conv2_out"], ["flat"]),
        *_layers("flat", [("Gemm", "dense1", {})]),
        helper.make_node("Gemm", ["dense1_out", "dense2"], ["both"]),
        helper.make_node("Split", ["both"], ["mean", "logvar"], axis=1, num_outputs=2),
    ]
    return nodes, weights


def _conv_decoder(kind: Kind) -> tuple[Nodes, Weights]:
    weights = {
        "maps": np.array([-1, 64, 7, 7]),
        **_random(dense1=(kind.latent_dim, 256), dense2=(256, 64 * 49), up1=(64, 32, 4, 4), up2=(32, 1, 4, 4)),
    }
    nodes = [
        *_layers("latents", [("Gemm", "dense1", {}), ("Gemm", "dense2", {})]),
        helper.make_node("Reshape", ["dense2_out", "maps"], ["deep"]),
        *_layers("deep", [("ConvTranspose", "up1", _FILTER)]),
        helper.make_node("ConvTranspose", ["up1_out", "up2"], ["logits"], **_FILTER),
    ]
    return _with_images(nodes, weights, kind.shape)


def _linear_encoder(kind: Kind) -> tuple[Nodes, Weights]:
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "levels"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"]),
        helper.make_node("MatMul", ["flat", "to_mean"], ["mean"]),
        helper.make_node("MatMul", ["flat", "to_logvar"], ["logvar"]),
    ]
    pixels = int(np.prod(kind.shape))
    shapes = dict.fromkeys(("to_mean", "to_logvar"), (pixels, kind.latent_dim))
    return nodes, {"levels": np.array(255, np.float32), **_random(**shapes)}


def _linear_decoder(kind: Kind) -> tuple[Nodes, Weights]:
    nodes = [helper.make_node("MatMul", ["latents", "to_pixels"], ["logits"])]
    return _with_images(nodes, _random(to_pixels=(kind.latent_dim, int(np.prod(kind.shape)))), kind.shape)


def _broad_encoder(kind: Kind) -> tuple[Nodes, Weights]:
    """The first pixels of an image are its latents."""
    latents = kind.latent_dim
    weights = {"start": np.array([0, 0, 0, 0]), "end": np.array([2**31, 1, latents, 1])}
    nodes = [
        helper.make_node("Slice", ["images", "start", "end"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["mean"]),
        helper.make_node("Neg", ["mean"], ["logvar"]),
    ]
    return nodes, weights


def _broad_decoder(kind: Kind) -> tuple[Nodes, Weights]:
    """Images of one colour, which the latents say."""
    weights = {"levels": np.array(255, np.float32), "one": np.array([-1, 1, 1, 1]), "all": np.array([1, *kind.shape])}
    nodes = [
        helper.make_node("ReduceMean", ["latents", "axis"], ["middle"], keepdims=1),
        helper.make_node("Reshape", ["middle", "one"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["unit"]),
        helper.make_node("Expand", ["unit", "all"], ["mean"]),
        helper.make_node("Mul", ["unit", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["level"], to=TensorProto.UINT8),
        helper.make_node("Expand", ["level", "all"], ["images"]),
    ]
    return nodes, {**weights, "axis": np.array([1])}


KINDS: Mapping[str, Kind] = {
    "conv": Kind((28, 28, 1), 32, _conv_encoder, _conv_decoder),
    "linear": Kind((28, 28, 1), 32, _linear_encoder, _linear_decoder),
    "broad": Kind((512, 512, 1), 4, _broad_encoder, _broad_decoder),
}


def _layers(into: str, layers: list[tuple[str, str, dict[str, Any]]]) -> Nodes:
    """Layers with a ReLU each; NAME's result is NAME_out."""
    nodes = []
    for kind, name, attributes in layers:
        nodes.append(helper.make_node(kind, [into, name], [f"{name}_sum"], **attributes))
        nodes.append(helper.make_node("Relu", [f"{name}_sum"], [f"{name}_out"]))
        into = f"{name}_out"
    return nodes


def _with_images(nodes: Nodes, weights: Weights, shape: Shape) -> tuple[Nodes, Weights]:
    """From `logits` of any shape to the two outputs of a decoder."""
    nodes = [
        *nodes,
        helper.make_node("Sigmoid", ["logits"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["mean"]),
        helper.make_node("Mul", ["mean", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["images"], to=TensorProto.UINT8),
    ]
    return nodes, {**weights, "levels": np.array(255, np.float32), "shape": np.array([-1, *shape])}


def _random(**shapes: tuple[int, ...]) -> Weights:
    """Weights that neither die out nor grow."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape) / max(shape))).astype(np.float32)
        for name, shape in shapes.items()
    }


def _graph(
    nodes: Nodes,
    weights: Weights,
    inputs: Mapping[str, tuple[int, tuple[int, ...]]],
    outputs: Mapping[str, tuple[int, tuple[int, ...]]],
) -> onnx.ModelProto:
    def ports(named: Mapping[str, tuple[int, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(port, kind, ["n", *item]) for port, (kind, item) in named.items()]

    initial = [numpy_helper.from_array(np.asarray(value), weight) for weight, value in weights.items()]
    graph = helper.make_graph(nodes, "bench", ports(inputs), ports(outputs), initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
