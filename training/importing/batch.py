"""A batch size that an exporter took for a constant, made free again: 1 in the input's shape, and in Reshapes.

What comes of it is held against the graph as it was given, image by image, by `parity`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from training.importing import graph
from training.importing.foreign import Foreign

BATCH = "batch"


def freed(foreign: Foreign) -> tuple[ModelProto, list[str]]:
    """A copy of the graph that says nothing of its batch size, and the Reshapes that were changed for it, by name."""
    model = ModelProto()
    model.CopyFrom(foreign.model)
    changed = [] if foreign.batch is None else _mend(model, foreign.port.name, foreign.batch)
    for port in [*model.graph.input, *model.graph.output]:
        for side in port.type.tensor_type.shape.dim[:1]:
            side.dim_param = BATCH
    for each in graph.graphs(model.graph):
        del each.value_info[:]  # it may repeat the batch size; whoever runs the graph works it out again
    return model, changed


def _mend(model: ModelProto, port: str, batch: int) -> list[str]:
    body = model.graph
    depends, constants = graph.reached(body, [port]), graph.constants(body)
    shapes = _shapes(model)
    changed = []
    for node in body.node:
        if node.op_type != "Reshape" or len(node.input) != 2:
            continue
        if node.input[0] not in depends or node.input[1] not in constants:
            continue
        try:
            sides = _free_sides(node, graph.integers(constants[node.input[1]]), batch, shapes)
        except (ValueError, TypeError, KeyError):  # a broken constant: ONNX Runtime says what is wrong with it
            continue
        if sides is not None:
            name = f"{node.output[0]}/shape of any batch"
            body.initializer.append(numpy_helper.from_array(np.array(sides, np.int64), name))
            node.input[1] = name
            changed.append(node.name or node.output[0])
    return changed


def _free_sides(
    node: NodeProto, sides: list[int], batch: int, shapes: Mapping[str, list[int | None]]
) -> list[int] | None:
    """The shape that a Reshape asks for with a free first side; None if its first side is not the batch."""
    if not sides or sides[0] != batch:
        return None
    if -1 not in sides:
        return [-1, *sides[1:]]
    known = shapes.get(node.output[0], [])
    if len(known) == len(sides) and None not in known[1:]:
        return [-1, *(side for side in known[1:] if side is not None)]
    if shapes.get(node.input[0], [None])[:1] == [batch] and not graph.attribute(node, "allowzero", 0):
        return [0, *sides[1:]]  # 0 is whatever the input has
    return None


def _shapes(model: ModelProto) -> dict[str, list[int | None]]:
    """What is known of the shapes of the graph's values."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a graph that its checker cannot follow may yet run
        inferred = model.graph
    return {
        value.name: [
            side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim
        ]
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
        if value.type.tensor_type.HasField("shape")
    }
