"""Graphs of ONNX as they lie in memory: their nodes and names at every depth. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper


def nodes(graph: GraphProto | Iterable[NodeProto]) -> Iterator[NodeProto]:
    """All nodes, those of the bodies of If, Loop and Scan among them."""
    for node in graph.node if isinstance(graph, GraphProto) else graph:
        yield node
        for body in bodies(node):
            yield from nodes(body)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def takes(node: NodeProto) -> set[str]:
    """The names that a node needs, those that its bodies take from outside among them."""
    return {name for each in nodes([node]) for name in each.input if name} | {
        port.name for body in bodies(node) for each in graphs(body) for port in each.output
    }


def prefixed(graph: GraphProto, prefix: str) -> None:
    """Put `prefix` before all names of values and nodes, at every depth, so that none meets one of another graph."""
    for each in graphs(graph):
        for tensor in [*each.initializer, *(sparse.values for sparse in each.sparse_initializer)]:
            tensor.name = prefix + tensor.name
        for port in [*each.input, *each.output, *each.value_info]:
            port.name = prefix + port.name
        for node in each.node:
            node.name = prefix + node.name if node.name else ""  # only names have to differ
            for names in (node.input, node.output):
                names[:] = [prefix + name if name else "" for name in names]


def pruned(graph: GraphProto, outputs: Iterable[str]) -> None:
    """Leave only what the values `outputs` are made of: other nodes and weights go."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):  # they stand in the order in which they run
        if needed & set(node.output):
            kept.append(node)
            needed |= takes(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for weights in (graph.initializer, graph.sparse_initializer):
        used = [each for each in weights if (each if isinstance(each, TensorProto) else each.values).name in needed]
        del weights[:]
        weights.extend(used)  # type: ignore[arg-type]


def reached(graph: GraphProto, start: Iterable[str]) -> set[str]:
    """The values that depend on those in `start`, these among them."""
    found = set(start)
    for node in graph.node:
        if takes(node) & found:
            found |= set(node.output)
    return found


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors of a graph by the names under which its nodes take them."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def integers(tensor: TensorProto) -> list[int]:
    """The numbers of an integer tensor, in order."""
    return [int(number) for number in numpy_helper.to_array(tensor).reshape(-1)]


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else int(helper.get_attribute_value(found))
