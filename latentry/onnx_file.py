"""What an ONNX file of a model folder may be, judged from its bytes: nothing is run, nothing outside them is read.

    bytes ─ parse ─ versions ─ operators ─ batch ─ weights ─> nothing, or an `OnnxError`: file, node, remedy

A graph is the same function of every row of its batch, whenever it runs: it draws nothing at random, its batch is free,
its weights are inside the file and are numbers, and every runtime knows its operators. Control flow is allowed. What
names, types and shapes a graph has to have is not judged here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from latentry import onnx_functions, onnx_runtime, weights
from latentry.manifest import ModelFolder
from latentry.onnx_parts import Constants, OnnxError, attributes, called, nodes, parse, short, tensors

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
# Of these a runtime has operators of its own, and runs those in the place of a file's function of the same name.
_TAKEN = ("ai.onnx", "com.microsoft", "com.ms", "org.pytorch")

_RANDOM = {"Bernoulli", "Multinomial", "Sampling"}  # and all whose names begin with Random
_DROPOUTS = {"Dropout": 2, "BitmaskDropout": 2, "BiasDropout": 4, "BitmaskBiasDropout": 4}  # which input says training
# Of com.microsoft: a compiled blob for one GPU, and doors to code that is not in the file.
_OPAQUE = {"EPContext", "PythonOp", "PythonOpGrad", "ATen", "ATenGrad", "TritonOp", "ExternalOp"}
# What multiplies by its weights, of which none may be infinite. Elsewhere infinity is a bound: of Clip, of a search.
_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "DequantizeLinear"}
_EVAL = "export the model in evaluation mode: model.eval()"


def check_folder(folder: ModelFolder) -> None:
    """`check` every graph of a verified folder, also those that this machine would not run."""
    for file, data in folder.graphs.items():
        check(data, str(folder.path / file))


def check(data: bytes, file: str) -> None:
    """Raises `OnnxError` with the first thing that is wrong. `file` is what messages call it."""
    try:
        model = parse(data, file)
        _check_versions(model, file)
        _check_operators(model, file)
        _check_batch(model.graph, file)
        _check_weights(model, file)
    except UnicodeError as error:
        raise OnnxError(f"{file}: not ONNX: {error}; export it again") from error


def _check_versions(model: ModelProto, file: str) -> None:
    if (why := onnx_runtime.too_old_for(model)) is not None:
        raise OnnxError(f"{file}: newer than the installed ONNX Runtime: {why}")


def _check_operators(model: ModelProto, file: str) -> None:
    for function in model.functions:
        domain = short(function.domain)
        if not domain or any(f"{domain}.".startswith(f"{taken}.") for taken in _TAKEN):
            what = f"a function in a runtime's own domain: {short(function.name)} of {domain or 'ai.onnx'}"
            raise OnnxError(f"{file}: {what}; export it with functions of a domain of their own, or inlined")
    local = onnx_functions.defined(model)
    for node, constants in nodes(model):
        problem = None if onnx_functions.called(node) in local else _problem(node, constants)
        if problem is not None:
            what, remedy = problem
            raise OnnxError(f"{file}: {what}: {called(node)}; {remedy}")


def _problem(node: NodeProto, constants: Constants) -> tuple[str, str] | None:
    """What is wrong with a node, and the remedy."""
    kind = node.op_type
    if node.domain not in DOMAINS:
        allowed = ", ".join(domain for domain in DOMAINS if domain)
        what = f"a custom operator, of the domain {short(node.domain)}"
        return what, f"wanted one of {allowed}, or a function that the file itself defines"
    if kind in _OPAQUE and node.domain == "com.microsoft":
        return "code that is not ONNX", "export the graph as plain operators"
    if kind.startswith("Random") or kind in _RANDOM:
        return "draws at random", "leave noise out of the graph: give mean and logvar, and let the caller draw"
    if kind in _DROPOUTS and not _is_off(node, _DROPOUTS[kind], constants):
        return "draws at random", f"dropout in training mode; {_EVAL}"
    if kind == "BatchNormalization" and _trains(node):
        return "training-mode batch normalisation", f"rows would depend on their batch; {_EVAL}"
    return None


def _is_off(node: NodeProto, position: int, constants: Constants) -> bool:
    """Whether `training_mode`, the input at `position`, is absent or false whatever happens."""
    name = node.input[position] if position < len(node.input) else ""
    if not name:
        return True
    tensor = constants.get(name)
    if tensor is None or tensor.data_type != tensor.BOOL:
        return False
    return not any(tensor.raw_data) and not any(tensor.int32_data)


def _trains(node: NodeProto) -> bool:
    modes = [each for each in node.attribute if each.name == "training_mode"]
    return any(each.i or each.ref_attr_name for each in modes) or any(node.output[1:])


def _check_batch(graph: GraphProto, file: str) -> None:
    weights_too = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights_too]
    for side, values in (("input", inputs), ("output", graph.output)):
        for value in values:
            if (shape := _fixed(value)) is not None:
                got = f"{side} {short(value.name)} {shape}"
                raise OnnxError(f"{file}: fixed batch: {got}; wanted a free first axis: export it with dynamic shapes")


def _fixed(value: ValueInfoProto) -> str | None:
    """The shape in words, unless its first axis is of any length."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return "without a shape"
    dims = kind.shape.dim
    if dims and not dims[0].HasField("dim_value"):
        return None
    return f"[{', '.join(short(dim.dim_param) or str(dim.dim_value) for dim in dims)}]"


def _check_weights(model: ModelProto, file: str) -> None:
    factors = {name for node, _ in nodes(model) if node.op_type in _LINEAR for name in node.input}
    for where, name, tensor in tensors(model):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            place = next((each.value for each in tensor.external_data if each.key == "location"), "another file")
            what, remedy = f"weights outside the file: {where}, in {short(place)}", "save it without external data"
            raise OnnxError(f"{file}: {what}; {remedy}, as the manifest vouches for this file alone")
        if (sick := weights.not_finite(tensor, infinite_too=name in factors)) is not None:
            remedy = "export an earlier checkpoint, or train again at a lower learning rate"
            raise OnnxError(f"{file}: weights that are no numbers: {where} holds {sick}; {remedy}")
    for said in attributes(model):
        if any(math.isnan(number) for number in (said.attribute.f, *said.attribute.floats)):
            raise OnnxError(f"{file}: weights that are no numbers: {said.where} holds NaN; export it again")
