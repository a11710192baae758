"""A graph in 8 bits: static quantisation by ONNX Runtime, QDQ, one scale for each output channel of a weight.

What is left in float32 is what 8 bits spoil and what costs least: the decoder's first layer, because latents far from
the calibration would be cut off; the layers that give the posterior and the last convolution's logits. Pixels are
8 bits already: the encoder's input is read as it is. On activations the range holds all but one value in 100,000:
a single outlier would cost all others their resolution.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType

from latentry import __version__, graph_notes
from training.graph_passes import drop_unused_constants

Feed = Mapping[str, NDArray[Any]]

_COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTISED = ("Add", "Conv", "DepthToSpace", "Gemm", "Mul", "Reshape", "Resize", "Sigmoid", "Slice", "Transpose")
_LEVEL = np.array(1 / 255, np.float32)
_NO_OFFSET = np.array(0, np.uint8)


def quantised(data: bytes, batches: Sequence[Feed], metadata: Mapping[str, str]) -> bytes:
    """The ONNX file `data` in int8, calibrated on `batches` of its inputs, with `metadata` in its `metadata_props`."""
    proto = onnx.load_from_string(data)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"
    exact = _with_exact_pixels(proto)
    _round_by_quantising(proto)
    layers = [node for node in proto.graph.node if node.op_type in _COMPUTE]
    if len(layers) == 1 and not exact:
        _quantise_weight(proto, layers[0])
    else:
        first, last = _bounds(proto, layers)
        left_in_float = [node.name for node in proto.graph.node[:first]]
        tail = _cut_off(proto, last)
        proto = _statically(proto, batches, left_in_float, exact)
        _put_back(proto, tail)
    proto.producer_name, proto.producer_version = "latentry", __version__
    graph_notes.describe(proto, metadata)
    return proto.SerializeToString(deterministic=True)


def _statically(proto: ModelProto, batches: Sequence[Feed], excluded: list[str], exact: Sequence[str]) -> ModelProto:
    helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it advises to do that
    level = {"quant_type": QuantType.QUInt8, "scale": _LEVEL, "zero_point": _NO_OFFSET}
    with tempfile.TemporaryDirectory(prefix="latentry-") as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            onnx.shape_inference.infer_shapes(proto),
            path,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibStridedMinMax": 1,  # a histogram after each batch: else all of their activations are kept
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": {name: [level] for name in exact},
            },
        )
        return onnx.load(path)


def _bounds(proto: ModelProto, layers: Sequence[NodeProto]) -> tuple[int, int]:
    """Which nodes are quantised: not those before the decoder's second layer, nor those from the last layer on. A
    decoder's last linear layer is the bulk of a dense model: there only what follows on it stays."""
    nodes = list(proto.graph.node)
    is_decoder = any(value.name == "latents" for value in proto.graph.input)
    first = nodes.index(layers[1]) if is_decoder else 0
    last = nodes.index(layers[-1])
    if (is_decoder and layers[-1].op_type == "Gemm") or len(layers) == 1:
        last += 1
    return first, last


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a graph: its nodes, the constants that they read, and the graph's outputs."""

    nodes: list[NodeProto]
    constants: list[TensorProto]
    outputs: list[ValueInfoProto]


def _cut_off(proto: ModelProto, last: int) -> _Tail:
    """Take the nodes from `last` on out of the graph. What they read of the rest becomes its output. Calibration would
    else take the range of their tensors too, some of which are constant but for rounding."""
    graph = proto.graph
    nodes = list(graph.node)
    kept, cut = nodes[:last], nodes[last:]
    made = {output for node in kept for output in node.output}
    read = list(dict.fromkeys(name for node in cut for name in node.input))
    tail = _Tail(cut, [each for each in graph.initializer if each.name in read], list(graph.output))
    outputs = [*(name for name in read if name in made), *(each.name for each in tail.outputs if each.name in made)]
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in dict.fromkeys(outputs))
    drop_unused_constants(graph)
    return tail


def _put_back(proto: ModelProto, tail: _Tail) -> None:
    graph = proto.graph
    there = {each.name for each in graph.initializer}
    graph.node.extend(tail.nodes)
    graph.initializer.extend(each for each in tail.constants if each.name not in there)
    del graph.output[:], graph.value_info[:]
    graph.output.extend(tail.outputs)


def _with_exact_pixels(proto: ModelProto) -> list[str]:
    """Read the pixels as the 8-bit numbers that they are, in place of a division of floats. The names of the tensors
    that then hold exact levels; none for a graph without pixels."""
    graph = proto.graph
    start = list(graph.node[:3])
    kinds = [node.op_type for node in start]
    if graph.input[0].name != "images" or kinds != ["Transpose", "Cast", "Div"]:
        return []
    transpose, _, divide = start
    inputs = ["images", *_add_levels(graph)]
    new = [
        helper.make_node("DequantizeLinear", inputs, ["levels"], name="levels"),
        helper.make_node("Transpose", ["levels"], [divide.output[0]], name=transpose.name, perm=[0, 3, 1, 2]),
    ]
    rest = list(graph.node[3:])
    del graph.node[:]
    graph.node.extend([*new, *rest])
    drop_unused_constants(graph)
    return ["levels", divide.output[0]]


def _round_by_quantising(proto: ModelProto) -> None:
    """The 256 levels of the images that come out are a quantisation too: one node in place of three."""
    graph = proto.graph
    last = list(graph.node[-3:])
    if [node.op_type for node in last] != ["Mul", "Round", "Cast"] or last[2].output[0] != "images":
        return
    for node in last:
        graph.node.remove(node)
    inputs = ["mean", *_add_levels(graph)]
    graph.node.append(helper.make_node("QuantizeLinear", inputs, ["images"], name="images"))
    drop_unused_constants(graph)


def _add_levels(graph: GraphProto) -> tuple[str, str]:
    """The scale and the offset of the 256 levels, as constants of the graph; their names."""
    graph.initializer.append(numpy_helper.from_array(_LEVEL, "level"))
    graph.initializer.append(numpy_helper.from_array(_NO_OFFSET, "no_offset"))
    return "level", "no_offset"


def _quantise_weight(proto: ModelProto, layer: NodeProto) -> None:
    """One linear map of latents: its weight alone, one scale for each row, and arithmetic in float32."""
    graph, name = proto.graph, layer.input[1]
    weight = next(each for each in graph.initializer if each.name == name)
    values: NDArray[np.float32] = numpy_helper.to_array(weight)
    scale = np.maximum(np.abs(values).max(1), np.finfo(np.float32).tiny) / np.float32(127)
    small = np.rint(values / scale[:, None]).astype(np.int8)
    graph.initializer.remove(weight)
    graph.initializer.append(numpy_helper.from_array(small, f"{name}.int8"))
    graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
    inputs = [f"{name}.int8", f"{name}.scale"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], name=f"widen_{name}", axis=0))


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Batches as ONNX Runtime reads them: in order, in ranges."""

    def __init__(self, batches: Sequence[Feed]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> Feed | None:
        return next(self._left, None)
