"""Foreign graphs between nodes that keep the contract of the model folder.

encoder   images uint8 [N,H,W,C]   -> scaled, laid out -> foreign graph -> mean, logvar float32 [N,Z]
decoder   latents float32 [N,Z]    -> shaped -> foreign graph -> laid out, scaled -> images uint8, mean float32 in [0,1]

All names of the foreign graph get a prefix, so that none meets one of ours. What of it is not needed is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from latentry import graph_notes, onnx_file
from latentry.onnx_parts import short
from training.importing import batch, graph
from training.importing.foreign import Foreign
from training.importing.images import CHANNELS_FIRST, ImagePort
from training.importing.options import LOGSTD, LOGVAR, STD
from training.importing.plan import Plan
from training.importing.posterior import LEAST_SPREAD, POINT_LOGVAR, Posterior

_PREFIX, _OURS = "foreign/", "latentry/"
_FLOAT, _UINT8, _DOUBLE = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.DOUBLE


def unprefixed(text: str) -> str:
    """A message about a wrapped graph, with the names that the foreign file has."""
    return text.replace(_PREFIX, "")


class _Nodes:
    """Nodes in the order in which they run, and the constants that they take."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns the name of its output."""
        name = f"{_OURS}{len(self.nodes)}/{operator}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, kind: type[np.generic] = np.float32) -> str:
        """A constant tensor; returns its name."""
        name = f"{_OURS}constant {len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def call(self, value: str, name: str) -> None:
        """Give a value the name that others know it by."""
        if not value.startswith(_OURS):
            self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{_OURS}{name}"))
            return
        for node in self.nodes:  # the foreign graph's take none of ours but by its own names
            for names in (node.input, node.output):
                names[:] = [name if each == value else each for each in names]

    def cast(self, value: str, kind: int, wanted: int) -> str:
        return value if kind == wanted else self.add("Cast", value, to=wanted)

    def reshape(self, value: str, item: Sequence[int]) -> str:
        """Items in another shape, as many as there are."""
        return self.add("Reshape", value, self.constant([-1, *item], np.int64))


def encoder(foreign: Foreign, plan: Plan, metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The encoder as one ONNX file, and the nodes that held a batch size; `metadata` goes into its `metadata_props`.

    Raises `OnnxError`, naming the foreign file and a node, if the graph is none that a model folder may hold.
    """
    model, changed = _bare(foreign, plan.posterior.outputs)
    nodes = _Nodes()
    nodes.call(_given(nodes, plan.encoder), _PREFIX + foreign.port.name)
    nodes.nodes.extend(model.graph.node)
    mean, logvar = _moments(nodes, plan.posterior, {port.name: port.kind for port in foreign.outputs})
    nodes.call(mean, "mean")
    nodes.call(logvar, "logvar")
    inputs = [_port("images", _UINT8, plan.shape)]
    outputs = [_port(name, _FLOAT, (plan.posterior.size,)) for name in ("mean", "logvar")]
    return _file(model, nodes, inputs, outputs, metadata), changed


def decoder(foreign: Foreign, plan: Plan, metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The same of the decoder."""
    model, changed = _bare(foreign, [plan.decoder.name])
    nodes = _Nodes()
    latents = "latents" if len(plan.latents) == 1 else nodes.reshape("latents", plan.latents)
    nodes.call(nodes.cast(latents, _FLOAT, foreign.port.kind), _PREFIX + foreign.port.name)
    nodes.nodes.extend(model.graph.node)
    images, mean = _pictures(nodes, plan.decoder)
    nodes.call(images, "images")
    nodes.call(mean, "mean")
    inputs = [_port("latents", _FLOAT, (plan.posterior.size,))]
    outputs = [_port("images", _UINT8, plan.shape), _port("mean", _FLOAT, plan.shape)]
    return _file(model, nodes, inputs, outputs, metadata), changed


def _bare(foreign: Foreign, outputs: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """What of the foreign graph makes `outputs`, judged under its own names, then under prefixed ones."""
    model, changed = batch.freed(foreign)
    graph.pruned(model.graph, outputs)
    kinds = {port.name: port for port in foreign.outputs}
    del model.graph.input[:], model.graph.output[:]
    item = foreign.port.shape[1:]
    model.graph.input.append(helper.make_tensor_value_info(foreign.port.name, foreign.port.kind, [batch.BATCH, *item]))
    for name in outputs:
        shape = [batch.BATCH, *kinds[name].shape[1:]]
        model.graph.output.append(helper.make_tensor_value_info(name, kinds[name].kind, shape))
    onnx_file.check(model.SerializeToString(), foreign.file)
    graph.prefixed(model.graph, _PREFIX)
    return model, changed


def _given(nodes: _Nodes, port: ImagePort) -> str:
    """`images` as the port takes them."""
    x = "images"
    if port.kind != _UINT8:
        kind = _DOUBLE if port.kind == _DOUBLE else _FLOAT
        x = nodes.cast(_scaled(nodes, nodes.add("Cast", x, to=kind), port, kind), kind, port.kind)
    if port.layout in CHANNELS_FIRST:
        x = nodes.add("Transpose", x, perm=[0, 3, 1, 2])
    laid_out = _laid_out(port)
    return x if laid_out == port.item else nodes.reshape(x, port.item)


def _scaled(nodes: _Nodes, levels: str, port: ImagePort, kind: int) -> str:
    """Levels of 255 in the port's range."""
    numbers = np.float64 if kind == _DOUBLE else np.float32
    scale = 255 * np.array(port.range.std)
    shift = np.array(port.range.mean) / np.array(port.range.std)
    x = levels if np.allclose(scale, 1) else nodes.add("Div", levels, nodes.constant(scale, numbers))
    return nodes.add("Sub", x, nodes.constant(shift, numbers)) if shift.any() else x


def _laid_out(port: ImagePort) -> tuple[int, ...]:
    height, width, channels = port.shape
    return (channels, height, width) if port.layout in CHANNELS_FIRST else port.shape


def _moments(nodes: _Nodes, posterior: Posterior, kinds: Mapping[str, int]) -> tuple[str, str]:
    """mean and logvar, each float32 [N, Z]."""
    values = [nodes.cast(_PREFIX + name, kinds[name], _FLOAT) for name in posterior.outputs]
    if posterior.axis is not None:
        axis = posterior.axis + 1
        half = posterior.item[posterior.axis]
        values = [_part(nodes, values[0], axis, start, start + half) for start in (0, half)]
    if len(posterior.item) > 1:
        values = [nodes.reshape(value, (posterior.size,)) for value in values]
    mean, *spreads = values
    if not spreads:
        everywhere = helper.make_tensor("value", _FLOAT, [1], [POINT_LOGVAR])
        return mean, nodes.add("ConstantOfShape", nodes.add("Shape", mean), value=everywhere)
    if posterior.kind == LOGVAR:
        return mean, spreads[0]
    spread = spreads[0]
    if posterior.kind != LOGSTD:
        spread = nodes.add("Log", nodes.add("Max", spread, nodes.constant(LEAST_SPREAD)))
    return mean, nodes.add("Mul", spread, nodes.constant(2.0)) if posterior.kind in (STD, LOGSTD) else spread


def _part(nodes: _Nodes, value: str, axis: int, start: int, end: int) -> str:
    return nodes.add("Slice", value, *(nodes.constant([number], np.int64) for number in (start, end, axis)))


def _pictures(nodes: _Nodes, port: ImagePort) -> tuple[str, str]:
    """images uint8 and mean float32 in [0, 1], each [N, H, W, C]."""
    x = _PREFIX + port.name
    laid_out = _laid_out(port)
    if laid_out != port.item:
        x = nodes.reshape(x, laid_out)
    if port.layout in CHANNELS_FIRST:
        x = nodes.add("Transpose", x, perm=[0, 2, 3, 1])
    if port.kind == _UINT8:
        return x, nodes.add("Div", nodes.cast(x, _UINT8, _FLOAT), nodes.constant(255.0))
    x = nodes.cast(x, port.kind, _FLOAT)
    if port.logits:
        x = nodes.add("Sigmoid", x)
    if not np.allclose(port.range.std, 1):
        x = nodes.add("Mul", x, nodes.constant(port.range.std))
    if np.any(port.range.mean):
        x = nodes.add("Add", x, nodes.constant(port.range.mean))
    mean = nodes.add("Clip", x, nodes.constant(0.0), nodes.constant(1.0))
    levels = nodes.add("Round", nodes.add("Mul", mean, nodes.constant(255.0)))
    return nodes.add("Cast", levels, to=_UINT8), mean


def _port(name: str, kind: int, item: Sequence[int]) -> Any:
    return helper.make_tensor_value_info(name, kind, [batch.BATCH, *item])


def _file(
    model: ModelProto, nodes: _Nodes, inputs: Sequence[Any], outputs: Sequence[Any], metadata: Mapping[str, str]
) -> bytes:
    weights = [*model.graph.initializer, *nodes.constants]
    body: GraphProto = helper.make_graph(nodes.nodes, "latentry", list(inputs), list(outputs), weights)
    body.sparse_initializer.extend(model.graph.sparse_initializer)
    whole = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    whole.producer_name, whole.producer_version = short(model.producer_name), short(model.producer_version)
    graph_notes.describe(whole, metadata)
    return whole.SerializeToString(deterministic=True)
