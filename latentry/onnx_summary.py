"""An ONNX file in short: what goes in and comes out, its operators, weights and versions. The file is only parsed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentry.onnx_parts import OnnxError, nodes, parse, short, tensors, text

if TYPE_CHECKING:
    from onnx import ValueInfoProto

_TYPES = {"float": "float32", "double": "float64"}  # the others are called as numpy calls them


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output. An axis is a length, a name, or `?`; a `shape` of None is not said."""

    name: str
    type: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        return f"{self.name} {self.type} [{'...' if self.shape is None else ', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Summary:
    """`opsets` is by domain. `operators` counts them by kind, also in subgraphs and functions, the most frequent first;
    `weights` counts numbers by type. `bytes` is the size of the file."""

    bytes: int
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    metadata: Mapping[str, str]


def summary(data: bytes, file: str) -> Summary:
    """Look at a file. Raises `OnnxError` if it is not ONNX."""
    try:
        return _summary(data, file)
    except UnicodeError as error:
        raise OnnxError(f"{file}: not ONNX: {error}; export it again") from error


def _summary(data: bytes, file: str) -> Summary:
    model = parse(data, file)
    operators = Counter(_operator(node.domain, node.op_type) for node, _ in nodes(model))
    weights: Counter[str] = Counter()
    for held in tensors(model):
        weights[_type(held.tensor.data_type)] += math.prod(held.tensor.dims)
    constants = {tensor.name for tensor in model.graph.initializer}
    return Summary(
        bytes=len(data),
        ir_version=model.ir_version,
        opsets={short(each.domain) or "ai.onnx": each.version for each in model.opset_import},
        producer=f"{short(model.producer_name)} {short(model.producer_version)}".strip(),
        inputs=_ports([value for value in model.graph.input if value.name not in constants]),
        outputs=_ports(model.graph.output),
        operators=dict(sorted(operators.items(), key=lambda each: (-each[1], each[0]))),
        weights=dict(weights.most_common()),
        metadata={short(each.key): text(each.value) for each in model.metadata_props},
    )


def _ports(values: Sequence[ValueInfoProto]) -> tuple[Port, ...]:
    return tuple(_port(value) for value in values)


def _port(value: ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(short(value.name), "no tensor", None)
    tensor = value.type.tensor_type
    axes = tuple(
        axis.dim_value if axis.HasField("dim_value") else short(axis.dim_param) or "?" for axis in tensor.shape.dim
    )
    return Port(short(value.name), _type(tensor.elem_type), axes if tensor.HasField("shape") else None)


def _type(number: int) -> str:
    from onnx import TensorProto

    known = number in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(TensorProto.DataType.ValueType(number)).lower() if known else f"type {number}"
    return _TYPES.get(name, name)


def _operator(domain: str, kind: str) -> str:
    return short(kind if domain in ("", "ai.onnx") else f"{domain}.{kind}")
