"""The functions that an ONNX file defines, and how large its graph is once they are in the place of their calls.

A function may call others: 26 of two nodes each can stand for 2^26 nodes. ONNX Runtime puts them in, and ends when the
memory does, so that who parses a file bounds this first. What the nodes compute is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from latentry.printable import plain

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

Key = tuple[str, str, str]  # domain, name and overload

MAX_NODES = 100_000  # of a file, and of its graph with all functions put in: looking at them takes seconds
_MAX_DEPTH = 100  # of functions that call functions
_LONGEST = 100  # characters of a name that a message repeats


def check_size(model: ModelProto) -> None:
    """Raises `ValueError`, whose message says what is wrong and what to do, for a model of too many nodes and for
    functions that are defined twice or that call themselves."""
    _Sizes(model).check()


def defined(model: ModelProto) -> set[Key]:
    """What nodes call the file's functions by: what `called` says of them."""
    return {_key(function) for function in model.functions}


def called(node: NodeProto) -> Key:
    """What the node calls, be it an operator or a function."""
    return node.domain, node.op_type, node.overload


def subgraphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    """The graphs that attributes hold: branches, and bodies of loops."""
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


class _Sizes:
    """Every function's size is worked out once, however often it is called."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._functions = {_key(function): function for function in model.functions}
        self._known: dict[Key, tuple[int, int]] = {}  # nodes, and how deep calls go in it
        self._open: list[Key] = []
        self._written = 0

    def check(self) -> None:
        if len(self._functions) < len(self._model.functions):
            raise ValueError("a function that is defined twice; export it again")
        for key in self._functions:
            self._of(key)
        self._count([self._model.graph.node])

    def _of(self, key: Key) -> tuple[int, int]:
        if key in self._known:
            return self._known[key]
        name = plain(str(key[1]), _LONGEST)
        if key in self._open:
            raise ValueError(f"a function that calls itself: {name}; wanted functions that end: export it again")
        if len(self._open) > _MAX_DEPTH:
            raise _deep(name)
        self._open.append(key)
        function = self._functions[key]
        total, depth = self._count([function.node, *(each.node for each in subgraphs(function.attribute_proto))])
        if depth >= _MAX_DEPTH:
            raise _deep(name)
        self._known[key] = total, depth + 1
        self._open.pop()
        return self._known[key]

    def _count(self, waiting: list[Iterable[NodeProto]]) -> tuple[int, int]:
        """The nodes, those of subgraphs, and those of the functions that they call; and how deep such calls go."""
        total = deepest = 0
        while waiting:
            for node in waiting.pop():
                self._written += 1
                key = called(node)
                size, depth = self._of(key) if key in self._functions else (1, 0)
                total, deepest = total + size, max(deepest, depth)
                if max(total, self._written) > MAX_NODES:
                    got = f"too many nodes: more than {MAX_NODES:,}, with the functions in the place of their calls"
                    raise ValueError(f"{got}; export a smaller graph")
                if node.attribute:
                    waiting += [graph.node for graph in subgraphs(node.attribute)]
        return total, deepest


def _deep(name: str) -> ValueError:
    return ValueError(f"functions within functions: {name} goes more than {_MAX_DEPTH} deep; export it with fewer")


def _key(function: FunctionProto) -> Key:
    return function.domain, function.name, function.overload
