"""What an ONNX file is made of: its nodes and its tensors, also those of subgraphs and of functions.

The file is parsed and looked at, never run; nothing outside it is read. Whether it is any good is not judged here.
Imports protobuf when first used.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from latentry import onnx_message
from latentry.manifest import ManifestError
from latentry.onnx_functions import check_size, subgraphs
from latentry.printable import plain

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Constants = ChainMap[str, "TensorProto | None"]  # None: a name that something else has here

_LONGEST = 100  # characters of a name that a message repeats


class Held(NamedTuple):
    """A tensor, what nodes know it by, and where it is in words: `initializer NAME` or `OPERATOR (node NAME)`."""

    where: str
    name: str
    tensor: TensorProto


class Said(NamedTuple):
    """An attribute, where it is in words, and what its value is known by, if that is a tensor."""

    where: str
    name: str
    attribute: AttributeProto


class OnnxError(ManifestError):
    """An ONNX file that no model folder may hold; the message is one line: the file, the node and the remedy."""


def parse(data: bytes, file: str) -> ModelProto:
    """The file as it is, with versions, a node and an output at least. `file` is what messages call it.

    Raises `OnnxError` if it is not ONNX, cut short, or of more nodes than can be looked at in seconds.
    """
    from google.protobuf.message import DecodeError

    what = f"{file}: not ONNX, or cut short: got {len(data)} bytes"
    try:
        model = onnx_message.model_type().FromString(data)
    except DecodeError as error:
        raise OnnxError(f"{what} that are no message; export or copy it again") from error
    if not (model.ir_version and model.opset_import and model.graph.node and model.graph.output):
        raise OnnxError(f"{what} without versions, nodes or outputs; export or copy it again")
    try:
        check_size(model)
    except ValueError as error:
        raise OnnxError(f"{file}: {error}") from error
    return model


def text(name: object) -> str:
    """A name from a file: protobuf hands out `bytes` in place of what is not UTF-8. Raises `UnicodeError` then."""
    if not isinstance(name, str):
        raise UnicodeError("a name is not UTF-8")
    return name


def short(name: object) -> str:
    """The same, fit to print: on one line, and not too long."""
    return plain(text(name), _LONGEST)


def called(node: NodeProto) -> str:
    """The operator and the node's name, or if it has none that of what it makes."""
    name = node.name or next(iter(node.output), "") or "without a name"
    return f"{short(node.op_type)} (node {short(name)})"


def nodes(model: ModelProto) -> Iterator[tuple[NodeProto, Constants]]:
    """Every node, and the constants that it can see, by name. Raises `UnicodeError` for one whose names are no text."""
    waiting = [(model.graph.node, _constants(model.graph))]
    for function in model.functions:
        waiting.append((function.node, ChainMap(_made(function.node, function.input))))
        waiting += [(graph.node, _constants(graph)) for graph in subgraphs(function.attribute_proto)]
    while waiting:
        some, known = waiting.pop()
        for node in some:
            for name in (node.op_type, node.domain, *node.input, *node.output):
                text(name)
            yield node, known
            if node.attribute:
                waiting += [(graph.node, _constants(graph, known)) for graph in subgraphs(node.attribute)]


def attributes(model: ModelProto) -> Iterator[Said]:
    """Every attribute of every node, and what functions have for those that a call leaves out."""
    for node, _ in nodes(model):
        if node.attribute:
            where, name = called(node), next(iter(node.output), "")
            yield from (Said(where, name, attribute) for attribute in node.attribute)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield Said(f"attribute {short(attribute.name)} of the function {short(function.name)}", "", attribute)


def tensors(model: ModelProto) -> Iterator[Held]:
    """Every tensor that the file holds."""
    for graph in _graphs(model):
        for tensor in graph.initializer:
            yield Held(f"initializer {short(tensor.name)}", tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            for tensor in (sparse.values, sparse.indices):
                yield Held(f"initializer {short(sparse.values.name)}", sparse.values.name, tensor)
    for said in attributes(model):
        for tensor in _held(said.attribute):
            yield Held(said.where, said.name, tensor)


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
    for said in attributes(model):
        yield from subgraphs([said.attribute])


def _constants(graph: GraphProto, outer: Constants | None = None) -> Constants:
    """What a graph knows by name, each name that it uses itself hiding what the graph around it calls so."""
    bound = _made(graph.node, [value.name for value in graph.input])
    for tensor in graph.initializer:  # one that is an input as well may be another value when it runs
        bound[tensor.name] = None if tensor.name in bound else tensor
    bound.update(dict.fromkeys(sparse.values.name for sparse in graph.sparse_initializer))
    return (ChainMap() if outer is None else outer).new_child(bound)


def _made(some: Sequence[NodeProto], inputs: Iterable[str]) -> dict[str, TensorProto | None]:
    """What Constant nodes make, and None for the names of all else: in doubt it is no constant."""
    bound: dict[str, TensorProto | None] = dict.fromkeys(inputs)
    for node in some:
        for name in node.output:
            bound[name] = None if name in bound else _constant(node)
    return bound


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    (held,) = node.attribute
    return held.t if held.HasField("t") and not held.ref_attr_name else None
