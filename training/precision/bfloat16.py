"""A graph whose weights are stored as bfloat16 and widened where they are read.

ONNX Runtime has no bfloat16 arithmetic for these graphs (1.31: no Gemm and no Conv on the CPU), so that what is gained
is half the file, and what is lost is 16 bits of each weight's mantissa. On loading, the widening is done once.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from onnx import GraphProto, TensorProto, helper, numpy_helper

from latentry import graph_notes

_SUFFIX = ".bf16"


def with_bfloat16_weights(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The ONNX file `data` with its float32 weights of two or more dimensions in bfloat16, rounded to nearest even.
    Biases, which are few, stay as they are. `metadata` goes into its `metadata_props`."""
    proto = onnx.load_from_string(data)
    weights = [each for each in proto.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) > 1]
    for weight in weights:
        _narrow(proto.graph, weight)
    graph_notes.describe(proto, metadata)
    return proto.SerializeToString(deterministic=True)


def _narrow(graph: GraphProto, weight: TensorProto) -> None:
    values = torch.from_numpy(numpy_helper.to_array(weight).copy()).to(torch.bfloat16)
    raw = values.view(torch.int16).numpy().astype("<i2").tobytes()
    name, wide = weight.name + _SUFFIX, weight.name
    graph.initializer.remove(weight)
    graph.initializer.append(helper.make_tensor(name, TensorProto.BFLOAT16, list(values.shape), raw, raw=True))
    graph.node.insert(0, helper.make_node("Cast", [name], [wide], name=f"widen_{wide}", to=TensorProto.FLOAT))
