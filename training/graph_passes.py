"""An exported graph with fewer nodes and no constant twice, whose numbers are the same bit for bit.

Knows nothing of models. What is worth doing before the export, with modules at hand, is in `training.folding`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper


def tidy(graph: GraphProto) -> None:
    """Join slices that follow one another, and keep each constant once; in place."""
    _join_slices(graph)
    _share_constants(graph)
    drop_unused_constants(graph)


def _join_slices(graph: GraphProto) -> None:
    """The exporter cuts one axis after the other; one slice of both reads the tensor once."""
    constants = {each.name: each for each in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    for node in list(graph.node):
        first = made_by.get(node.input[0]) if node.op_type == "Slice" else None
        if first is None or first.op_type != "Slice" or readers[first.output[0]] != 1:
            continue
        parts = _cut(first, constants), _cut(node, constants)
        if parts[0] is None or parts[1] is None or set(parts[0]) & set(parts[1]):
            continue
        made = _cut_both(node, first.input[0], {**parts[0], **parts[1]})
        graph.initializer.extend(made)
        constants.update((each.name, each) for each in made)
        made_by[node.output[0]] = node
        graph.node.remove(first)


def _cut(node: NodeProto, constants: Mapping[str, TensorProto]) -> dict[int, tuple[int, int]] | None:
    """Start and end for each axis that a slice cuts in steps of one; None if these are no constants."""
    if len(node.input) < 4 or any(name not in constants for name in node.input[1:]):
        return None
    starts, ends, axes, *steps = (numpy_helper.to_array(constants[name]).tolist() for name in node.input[1:])
    if any(step != 1 for step in (steps[0] if steps else ())):
        return None
    return {axis: (start, end) for axis, start, end in zip(axes, starts, ends, strict=True)}


def _cut_both(node: NodeProto, source: str, cuts: Mapping[int, tuple[int, int]]) -> list[TensorProto]:
    """Make `node` do all of `cuts`, by axis; returns the constants that it reads."""
    axes = sorted(cuts)
    columns = {"starts": [cuts[axis][0] for axis in axes], "ends": [cuts[axis][1] for axis in axes], "axes": axes}
    made = [
        numpy_helper.from_array(np.array(values, np.int64), f"{node.output[0]}_{what}")
        for what, values in columns.items()
    ]
    del node.input[:]
    node.input.extend([source, *(each.name for each in made)])
    return made


def _share_constants(graph: GraphProto) -> None:
    """Make nodes that read equal constants read the same one."""
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    for tensor in graph.initializer:
        array: NDArray[np.generic] = numpy_helper.to_array(tensor)
        key = (tensor.data_type, array.shape, array.tobytes())
        instead[tensor.name] = kept.setdefault(key, tensor.name)
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


def drop_unused_constants(graph: GraphProto) -> None:
    """Leave out the constants that no node reads, in place."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
