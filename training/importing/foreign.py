"""An ONNX file of someone else's, read within bounds and made ready: one graph, with all of its weights inside.

External data is taken from files beside the graph, functions become nodes, and an opset older than `OLDEST_OPSET` is
converted. Knows nothing of what the graph is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from latentry import onnx_parts, onnx_runtime
from latentry.manifest import sha256
from latentry.onnx_parts import short
from training.errors import ExportError
from training.importing import external, graph

OLDEST_OPSET = 13  # since then the operators that wrap a graph have had the inputs that they have
_TARGET_OPSET = 18
_MOST_LISTED = 12  # inputs that a message names
_MAIN_DOMAINS = ("", "ai.onnx")

Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its name, its type in ONNX's numbers, and its shape, None where that is left open. As a text
    it is fit to print, whatever the name."""

    name: str
    kind: int
    shape: Dims

    def __str__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape[1:])
        return f"{short(self.name)} {self.kind_name} [N{', ' if sides else ''}{sides}]"

    @property
    def kind_name(self) -> str:
        """The type in words, as numpy has them."""
        if self.kind not in TensorProto.DataType.values():
            return f"type {self.kind}"
        name = TensorProto.DataType.Name(self.kind).lower()
        return {"float": "float32", "double": "float64"}.get(name, name)


@dataclass(frozen=True, slots=True)
class Foreign:
    """`part` is `encoder` or `decoder`. `digests` has the SHA-256 of `file` and of the files beside it that hold its
    weights. `as_given` is the graph as it came, but with its weights inside and tensors alone as outputs; `model` is
    the same made ready. `others` are the outputs that are no tensors: their names, and what they are."""

    part: str
    file: str
    digests: Mapping[str, str]
    as_given: bytes
    model: ModelProto
    port: Port
    outputs: tuple[Port, ...]
    others: Mapping[str, str]

    @property
    def batch(self) -> int | None:
        """The batch size that the input is fixed to, None if it is free."""
        return self.port.shape[0]

    @property
    def half(self) -> bool:
        """Whether anything in it is of half precision."""
        kinds = {held.tensor.data_type for held in onnx_parts.tensors(self.model)}
        return TensorProto.FLOAT16 in kinds | {self.port.kind, *(port.kind for port in self.outputs)}


def read(path: Path, part: str) -> Foreign:
    """Read an encoder's or decoder's file.

    Raises `ExportError` or `OnnxError`, naming the file, if it is no ONNX file or too large, if its weights lie
    elsewhere than beside it, if it cannot be converted, or if it has not one input.
    """
    data = _bytes(path)
    model = onnx_parts.parse(data, str(path))
    _check_text(model, path)
    if (why := onnx_runtime.too_old_for(model)) is not None:
        raise ExportError(f"{path}: newer than the installed ONNX Runtime: {why}")
    digests = {path.name: sha256(data), **external.take_in(model, path, len(data))}
    others = _tidy(model)
    as_given = model.SerializeToString()
    model = _ready(model, path.name)
    outputs = tuple(_port(each, path) for each in model.graph.output)
    return Foreign(part, path.name, digests, as_given, model, _input(model, path), outputs, others)


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size if path.is_file() else -1
        if size < 0:
            raise ExportError(f"{path}: got {'a folder' if path.is_dir() else 'nothing'}, wanted an ONNX file")
        external.check_size(path, size)
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error


def _check_text(model: ModelProto, path: Path) -> None:
    """Raises `ExportError` for a name or a text that is none."""
    try:
        if all(isinstance(text, str) for text in _texts(model)):  # protobuf hands out bytes for what is not UTF-8
            return
    except UnicodeError:
        pass
    raise ExportError(f"{path}: got a name that is not UTF-8, wanted an ONNX file as an exporter writes it")


def _texts(message: Message) -> Iterator[object]:
    for field, value in message.ListFields():
        values: Any = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_MESSAGE:
            for each in values:
                yield from _texts(each)


def _tidy(model: ModelProto) -> dict[str, str]:
    """Leave sides open that no tensor can have, as some exporters write an open one; remove outputs that are no
    tensors, and return what these are."""
    for port in [*model.graph.input, *model.graph.output]:
        for side in port.type.tensor_type.shape.dim if port.type.HasField("tensor_type") else ():
            if side.HasField("dim_value") and side.dim_value <= 0:
                side.ClearField("dim_value")
    kinds = {port.name: port.type.WhichOneof("value") for port in model.graph.output}
    kept = [port for port in model.graph.output if kinds[port.name] == "tensor_type"]
    if kept:
        del model.graph.output[:]
        model.graph.output.extend(kept)
    return {name: str(kind or "nothing").partition("_")[0] for name, kind in kinds.items() if kind != "tensor_type"}


def _ready(given: ModelProto, file: str) -> ModelProto:
    """The graph without functions, notes or old operators."""
    model = ModelProto()
    model.CopyFrom(_inlined(given, file) if given.functions else given)
    model.ClearField("training_info")
    _strip(model)
    used = {node.domain for node in graph.nodes(model.graph)} | {""}
    opsets = {("" if each.domain in _MAIN_DOMAINS else each.domain): each.version for each in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, opset) for domain, opset in opsets.items() if domain in used)
    if opsets.get("", _TARGET_OPSET) < OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _TARGET_OPSET)
        except Exception as error:  # it raises whatever its adapters do
            raise ExportError(
                f"{file}: cannot be converted from opset {opsets['']} to {_TARGET_OPSET}: "
                f"{short(' '.join(str(error).split()))}; export it again with opset {OLDEST_OPSET} or later"
            ) from error
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))
    return model


def _inlined(model: ModelProto, file: str) -> ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # it raises what its checker and its converter do
        why = short(" ".join(str(error).split()))
        raise ExportError(f"{file}: its functions cannot become nodes: {why}; export it without functions") from error


def _strip(model: ModelProto) -> None:
    """Remove notes, such as stack traces that hold paths of someone's machine."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    for each in graph.graphs(model.graph):
        for holder in [each, *each.node, *each.input, *each.output, *each.value_info, *each.initializer]:
            holder.ClearField("doc_string")
            if "metadata_props" in holder.DESCRIPTOR.fields_by_name:
                holder.ClearField("metadata_props")


def _input(model: ModelProto, path: Path) -> Port:
    weights = {tensor.name for tensor in model.graph.initializer}
    ports = [_port(each, path) for each in model.graph.input if each.name not in weights]
    if len(ports) != 1:
        got = ", ".join(short(port.name) for port in ports[:_MOST_LISTED]) or "none"
        raise ExportError(
            f"{path}: inputs: got {got}, wanted one alone: export the network with what else it takes (labels, "
            "noise, a time step) as constants"
        )
    if len(ports[0].shape) < 2:
        raise ExportError(
            f"{path}: {short(ports[0].name)}: got no shape, wanted one of two axes or more, the batch first"
        )
    return ports[0]


def _port(value: ValueInfoProto, path: Path) -> Port:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ExportError(f"{path}: {short(value.name)}: got {value.type.WhichOneof('value')}, wanted a tensor")
    shape = tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return Port(value.name, tensor.elem_type, shape)
