"""Text from elsewhere, on a line of a terminal or a log."""

from __future__ import annotations

import pytest

from latentry.manifest import ManifestError
from latentry.onnx_runtime import said
from latentry.printable import plain
from serving.bad_graph import BadGraph


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Σ plain text, 日本", "Σ plain text, 日本"),
        ("a\nb\r\t\x1b[2J\x07\x9b", r"a\nb\r\t\x1b[2J\x07\x9b"),
        ("left\u202eright\u2028", r"left\u202eright\u2028"),  # turns what follows round, and ends a line
        ("Σ\n", "Σ\\n"),
    ],
)
def test_what_is_not_printable_is_escaped_and_nothing_else(text: str, wanted: str) -> None:
    assert plain(text) == wanted
    assert plain(wanted) == wanted


def test_what_is_too_long_is_cut() -> None:
    assert plain("x" * 11, 10) == "x" * 10 + "..."
    assert plain("x" * 10, 10) == "x" * 10
    assert len(plain("\x1b" * 10**6, 10)) < 50


@pytest.mark.parametrize("kind", [ManifestError, BadGraph])
def test_errors_are_fit_to_be_printed(kind: type[ValueError]) -> None:
    assert str(kind("a\n\x1b[2J")) == r"a\n\x1b[2J"


_SOURCES = "/onnxruntime_src/onnxruntime/core"


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from /proc/self/fd/3 failed:"
            f"{_SOURCES}/graph/model.cc:340 onnxruntime::Model::Model(onnx::ModelProto&&, "
            "const onnxruntime::PathString&, const onnxruntime::ModelOptions&) "
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Model local function "
            "definitions must not be recursive. Cycle detected: foo:F -> foo:F\n",
            "Model local function definitions must not be recursive. Cycle detected: foo:F -> foo:F",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from  failed:This is an invalid model. Error: the graph is not "
            "acyclic.",
            "This is an invalid model. Error: the graph is not acyclic",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'a\x1b[2J' "
            f"Status Message: {_SOURCES}/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::"
            "ReshapeHelper(const onnxruntime::TensorShape&, bool) input_shape_size == requested_shape_size was false. "
            "The input tensor cannot be reshaped to the requested shape. Input shape:{1,32}\n",
            r"Non-zero status code returned while running Reshape node. Name:'a\x1b[2J' Status Message: The input "
            "tensor cannot be reshaped to the requested shape. Input shape:{1,32}",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : tensorprotoutils.cc:1461 GetSizeInBytesFromTensorProto Out of bounds "
            "dimensions in TypeProto_Tensor",
            "Out of bounds dimensions in TypeProto_Tensor",
        ),
        ("", "RuntimeError"),
    ],
)
def test_of_what_onnx_runtime_says_its_own_affairs_are_left_out(raised: str, wanted: str) -> None:
    assert said(RuntimeError(raised)) == wanted
