"""Tidied graphs give the same bits, with fewer nodes and no constant twice."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from training import graph_passes


def sliced(*cuts: tuple[list[int], list[int], list[int], list[int]], spy: bool = False) -> ModelProto:
    """x [N, 6, 7, 8] through slices of (starts, ends, axes, steps), each with constants of its own; with `spy` the
    first one's result is an output too."""
    nodes, constants, name = [], [], "x"
    for index, cut in enumerate(cuts):
        names = [f"{what}_{index}" for what in ("starts", "ends", "axes", "steps")]
        constants += [numpy_helper.from_array(np.array(v, np.int64), n) for v, n in zip(cut, names, strict=True)]
        nodes.append(helper.make_node("Slice", [name, *names], [f"y{index}"]))
        name = f"y{index}"
    outputs = [name, *(["y0"] if spy else [])]
    graph = helper.make_graph(
        nodes,
        "sliced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 7, 8])],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", None, None, None]) for each in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(proto: ModelProto) -> list[NDArray[np.float32]]:
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 8), np.float32)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def tidied(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    graph_passes.tidy(copy.graph)
    return copy


ROWS, COLUMNS = ([1], [6], [2], [1]), ([2], [2**63 - 1], [3], [1])


@pytest.mark.parametrize(
    "cuts", [(ROWS, COLUMNS), (COLUMNS, ROWS, ([0], [5], [1], [1])), (([1, 0], [-1, 4], [2, 1], [1, 1]), COLUMNS)]
)
def test_slices_that_follow_one_another_become_one(cuts: tuple[tuple[list[int], ...], ...]) -> None:
    before = sliced(*cuts)  # type: ignore[arg-type]
    after = tidied(before)
    assert [node.op_type for node in after.graph.node] == ["Slice"]
    assert np.array_equal(run(before)[0], run(after)[0])


@pytest.mark.parametrize(
    ("cuts", "spy"),
    [
        ((ROWS, ROWS), False),  # of the same axis: the second counts from the first's start
        ((ROWS, ([0], [8], [3], [2])), False),  # a step
        ((ROWS, COLUMNS), True),  # the first one's result is wanted too
    ],
)
def test_other_slices_stay(cuts: tuple[tuple[list[int], ...], ...], spy: bool) -> None:
    before = sliced(*cuts, spy=spy)  # type: ignore[arg-type]
    after = tidied(before)
    assert len(after.graph.node) == 2
    for wanted, got in zip(run(before), run(after), strict=True):
        assert np.array_equal(wanted, got)


def test_a_constant_is_kept_once() -> None:
    after = tidied(sliced(ROWS, ([1], [6], [2], [1])))
    values = [
        (numpy_helper.to_array(each).dtype, numpy_helper.to_array(each).tobytes()) for each in after.graph.initializer
    ]
    assert len(values) == len(set(values)) == 3  # 1 is a start and a step, 6 an end, 2 an axis
    assert len(run(after)) == 1


def test_constants_that_differ_in_type_or_shape_are_no_twins() -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    arrays = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.int32), "c": np.zeros((1, 1), np.float32)}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in arrays]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    graph_passes.tidy(graph)
    assert [node.input[0] for node in graph.node] == ["a", "b", "c"]


def test_a_constant_that_nothing_reads_goes() -> None:
    proto = sliced(ROWS)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3), "forgotten"))
    assert "forgotten" not in {each.name for each in tidied(proto).graph.initializer}
