"""The linear model's graphs in other precisions, written by hand; each is shifted, so that a reply says which one ran.

    encoder   mean = x @ w + shift, logvar = x @ v       decoder   image mean = sigmoid(z @ u + shift)

int8 is QuantizeLinear and DequantizeLinear around the products, one scale for each column of the weights; fp16 computes
in float16; bf16 keeps its weights in bfloat16 and computes in float32, which is what CPUs can run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import linear_model
import numpy as np
import onnx
from linear_model import Array, LinearModel
from onnx import TensorProto, helper, numpy_helper

from latentry import manifest
from latentry.manifest import graph_file

SHIFTS: Mapping[str, float] = {"fp32": 0.0, "fp16": 1.0, "bf16": -1.0, "int8": 2.0}


def add(model: LinearModel, *precisions: str, **changed: onnx.ModelProto) -> LinearModel:
    """Write the folder again with these variants beside what it has; `changed` has graphs to put in their place, such
    as `decoder_int8`.
    """
    before = manifest.read(model.folder)
    graphs = {file: onnx.load_from_string(data) for file, data in before.graphs.items()}
    for precision in precisions:
        encoder, decoder = _pair(model, precision)
        graphs |= {graph_file("encoder", precision): encoder, graph_file("decoder", precision): decoder}
    graphs |= {f"{name.replace('_', '.')}.onnx": graph for name, graph in changed.items()}
    variants = {**before.manifest.variants, **{precision: {"decoder_mean": 0.5} for precision in precisions}}
    files = {**before.manifest.files, **dict.fromkeys(graphs, "0" * 64)}
    linear_model.save(model.folder, graphs, replace(before.manifest, files=files, variants=variants))
    return model


def encode(model: LinearModel, precision: str, images: Array) -> Array:
    """The means that the encoder of this precision gives, but for its rounding."""
    return model.encode(images)[0] + np.float32(SHIFTS[precision])


def decode(model: LinearModel, precision: str, z: Array) -> Array:
    """The image means that the decoder of this precision gives, but for its rounding."""
    logits = (z @ model.u + np.float32(SHIFTS[precision])).reshape(-1, *model.shape)
    return np.asarray(1 / (1 + np.exp(-logits)))


def bf16_throughout(model: LinearModel) -> onnx.ModelProto:
    """The decoder computing in bfloat16, for which CPUs have no kernels."""
    decoder = linear_model.decoder(model.shape, model.u)
    (u,) = [each for each in decoder.graph.initializer if each.name == "u"]
    decoder.graph.initializer.remove(u)
    decoder.graph.initializer.append(helper.make_tensor("u", TensorProto.BFLOAT16, model.u.shape, model.u.ravel()))
    at = next(i for i, node in enumerate(decoder.graph.node) if node.op_type == "MatMul")
    decoder.graph.node[at].input[0], decoder.graph.node[at].output[0] = "narrow", "product"
    decoder.graph.node.insert(at + 1, helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT))
    decoder.graph.node.insert(at, helper.make_node("Cast", ["latents"], ["narrow"], to=TensorProto.BFLOAT16))
    return decoder


def brighten(decoder: onnx.ModelProto, by: float) -> None:
    """Add `by` to the means of its images."""
    _shift(decoder, "mean", by)


def _pair(model: LinearModel, precision: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    encoder = linear_model.encoder(model.shape, model.w, model.v)
    _compute_in(encoder, "flat", "w", model.w, precision, 1.0)
    _shift(encoder, "mean", SHIFTS[precision])
    decoder = linear_model.decoder(model.shape, model.u)
    _compute_in(decoder, "latents", "u", model.u, precision, 5.0)
    _shift(decoder, "logits", SHIFTS[precision])
    return encoder, decoder


def _compute_in(model: onnx.ModelProto, rows: str, weight: str, value: Array, precision: str, largest: float) -> None:
    """Make the product of `rows`, which are up to `largest`, with the initializer `weight` one of this precision."""
    graph = model.graph
    (at,) = [i for i, node in enumerate(graph.node) if node.op_type == "MatMul" and node.input[1] == weight]
    (old,) = [each for each in graph.initializer if each.name == weight]
    graph.initializer.remove(old)
    product = graph.node[at].output[0]
    before, after, constants = _PARTS[precision](rows, value, largest)
    graph.initializer.extend(constants)
    graph.node[at].input[:] = [f"{rows}_in", "weight_in"]
    if after is not None:
        graph.node[at].output[0] = "product"
        graph.node.insert(at + 1, helper.make_node("Cast", ["product"], [product], to=after))
    for node in reversed(before):
        graph.node.insert(at, node)


_Part = tuple[list[onnx.NodeProto], int | None, list[TensorProto]]


def _fp16(rows: str, value: Array, largest: float) -> _Part:
    nodes = [helper.make_node("Cast", [rows], [f"{rows}_in"], to=TensorProto.FLOAT16)]
    return nodes, TensorProto.FLOAT, [numpy_helper.from_array(value.astype(np.float16), "weight_in")]


def _bf16(rows: str, value: Array, largest: float) -> _Part:
    weight = helper.make_tensor("weight", TensorProto.BFLOAT16, value.shape, value.ravel())
    nodes = [
        helper.make_node("Identity", [rows], [f"{rows}_in"]),
        helper.make_node("Cast", ["weight"], ["weight_in"], to=TensorProto.FLOAT),
    ]
    return nodes, None, [weight]


def _int8(rows: str, value: Array, largest: float) -> _Part:
    scales = (np.abs(value).max(0) / 127).astype(np.float32)
    constants: dict[str, Any] = {
        "weight": np.rint(value / scales).astype(np.int8),
        "scales": scales,
        "zeros": np.zeros(len(scales), np.int8),
        "step": np.float32(largest / 127),
        "middle": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", [rows, "step", "middle"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "step", "middle"], [f"{rows}_in"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["weight_in"], axis=1),
    ]
    return nodes, None, [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]


_PARTS = {"fp16": _fp16, "bf16": _bf16, "int8": _int8}


def _shift(model: onnx.ModelProto, name: str, by: float) -> None:
    """Add `by` to the value `name` where it is made."""
    (at,) = [i for i, node in enumerate(model.graph.node) if name in node.output]
    model.graph.node[at].output[0] = "unshifted"
    model.graph.node.insert(at + 1, helper.make_node("Add", ["unshifted", "shift"], [name]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(by), "shift"))
