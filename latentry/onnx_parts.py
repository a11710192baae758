"""What an ONNX file is made of: its nodes and its tensors, also those of subgraphs and of functions.

The file is parsed and looked at, never run; nothing outside it is read. Whether it is any good is not judged here.
Imports `onnx` when first used, as that takes 15 ms.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from latentry.manifest import ManifestError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Constants = ChainMap[str, "TensorProto"]

_LONGEST = 100  # characters of a name that a message repeats


class Held(NamedTuple):
    """A tensor, what nodes know it by, and where it is in words: `initializer NAME` or `OPERATOR (node NAME)`."""

    where: str
    name: str
    tensor: TensorProto


class OnnxError(ManifestError):
    """An ONNX file that no model folder may hold; the message is one line: the file, the node and the remedy."""


def parse(data: bytes, file: str) -> ModelProto:
    """The file as it is, with versions, a node and an output at least. `file` is what messages call it.

    Raises `OnnxError` if it is not ONNX, or cut short.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    what = f"{file}: not ONNX, or cut short: got {len(data)} bytes"
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise OnnxError(f"{what} that are no message; export or copy it again") from error
    if not (model.ir_version and model.opset_import and model.graph.node and model.graph.output):
        raise OnnxError(f"{what} without versions, nodes or outputs; export or copy it again")
    return model


def text(name: object) -> str:
    """A name from a file: protobuf hands out `bytes` in place of what is not UTF-8. Raises `UnicodeError` then."""
    if not isinstance(name, str):
        raise UnicodeError("a name is not UTF-8")
    return name


def short(name: object) -> str:
    """The same, fit to print: on one line, and not too long."""
    shown = text(name) if text(name).isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def called(node: NodeProto) -> str:
    """The operator and the node's name, or if it has none that of what it makes."""
    name = node.name or next(iter(node.output), "") or "without a name"
    return f"{short(node.op_type)} (node {short(name)})"


def nodes(model: ModelProto) -> Iterator[tuple[NodeProto, Constants]]:
    """Every node, and the constants that it can see, by name. Raises `UnicodeError` for one whose names are no text."""
    waiting = [(model.graph.node, _constants(model.graph))]
    waiting += [(function.node, ChainMap(_made(function.node))) for function in model.functions]
    while waiting:
        some, known = waiting.pop()
        for node in some:
            for name in (node.op_type, node.domain, *node.input, *node.output):
                text(name)
            yield node, known
            waiting += [(graph.node, _constants(graph, known)) for graph in _subgraphs(node)]


def tensors(model: ModelProto) -> Iterator[Held]:
    """Every tensor that the file holds."""
    for graph in _graphs(model):
        for tensor in graph.initializer:
            yield Held(f"initializer {short(tensor.name)}", tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            for tensor in (sparse.values, sparse.indices):
                yield Held(f"initializer {short(sparse.values.name)}", sparse.values.name, tensor)
    for node, _ in nodes(model):
        for attribute in node.attribute:
            for tensor in _held(attribute):
                yield Held(called(node), next(iter(node.output), ""), tensor)


def _held(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    lone = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*lone, *attribute.sparse_tensors):
        yield sparse.values
        yield sparse.indices


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    yield model.graph
    for node, _ in nodes(model):
        yield from _subgraphs(node)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _constants(graph: GraphProto, outer: Constants | None = None) -> Constants:
    """What a graph knows by name; an initializer that is an input as well may be another value when it runs."""
    inputs = {value.name for value in graph.input}
    known = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    return (ChainMap() if outer is None else outer).new_child({**known, **_made(graph.node)})


def _made(some: Sequence[NodeProto]) -> dict[str, TensorProto]:
    """What Constant nodes make."""
    constants: dict[str, TensorProto] = {}
    for node in some:
        if node.op_type == "Constant" and node.output:
            held = {node.output[0]: each.t for each in node.attribute if each.name == "value"}  # noqa: B035 - one
            constants.update(held)
    return constants
