"""A model as the files of a Triton model repository: Triton Inference Server serves them with its onnxruntime backend.

    NAME_encoder/config.pbtxt, NAME_encoder/VERSION/model.onnx      and so for decoder, prior and density
    NAME_reconstruct/config.pbtxt                                   an ensemble: the encoder's mean into the decoder

Names, types and shapes are read from the graphs, which go in byte for byte, so that a config cannot differ from what it
configures. Knows nothing of torch, nor of how files get to a disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import TensorProto, ValueInfoProto

from latentry import manifest as manifests
from latentry.manifest import FP32, Manifest, sha256
from latentry.onnx_parts import parse, short
from training import pbtxt
from training.errors import ExportError
from training.pbtxt import Message, Symbol

MAX_BATCH_SIZE = 64  # as of our own server
MOST_MAX_BATCH_SIZE = 4096  # the same
GRAPHS = ("encoder", "decoder", "prior", "density")
ENSEMBLE = "reconstruct"

_TYPES: Mapping[int, str] = {
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.INT64: "TYPE_INT64",
}
HEADER = (
    "# Written by `latentry export --format triton`; Triton's user guide explains each field: Model Configuration.\n"
)
_KEEP = ".keep"  # an ensemble's version folder has no file, and neither git nor an object store keeps an empty folder


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of a graph: `dims` are the axes behind the batch."""

    name: str
    data_type: Symbol
    dims: tuple[int, ...]

    @property
    def offered(self) -> Message:
        """It as an ensemble's input or output: Triton wants an axis behind the batch at least, so that one number for
        each row comes and goes as [N, 1]."""
        return [("name", self.name), ("data_type", self.data_type), ("dims", self.dims or (1,))]

    @property
    def config(self) -> Message:
        """It as a graph's ModelInput or ModelOutput: the graph sees one number for each row as [N]."""
        return [*self.offered, *([] if self.dims else [("reshape", [("shape", ())])])]

    @property
    def zeros(self) -> Message:
        """It as an input of a ModelWarmup."""
        return [
            ("key", self.name),
            ("value", [("data_type", self.data_type), ("dims", self.dims or (1,)), ("zero_data", Symbol("true"))]),
        ]


@dataclass(frozen=True, slots=True)
class Ports:
    """What a graph, called `file` in messages, takes and gives, by name."""

    file: str
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    @classmethod
    def of(cls, file: str, data: bytes) -> Ports:
        """Read from an ONNX file. Raises `OnnxError` for what is none, `ExportError` for ports that Triton cannot
        batch."""
        graph = parse(data, file).graph
        constants = {each.name for each in graph.initializer}
        inputs = [each for each in graph.input if each.name not in constants]
        return cls(file, _ports(file, inputs), _ports(file, graph.output))

    def output(self, name: str, renamed: str) -> Port:
        """The output of that name under another. Raises `ExportError` if there is none."""
        if name not in self.outputs:
            raise ExportError(f"{self.file}: got outputs {', '.join(self.outputs) or 'none'}, wanted {name}")
        port = self.outputs[name]
        return Port(renamed, port.data_type, port.dims)


def _ports(file: str, values: Iterable[ValueInfoProto]) -> dict[str, Port]:
    ports = {}
    for value in values:
        tensor, where = value.type.tensor_type, f"{file}: {short(value.name)}"
        if tensor.elem_type not in _TYPES:
            raise ExportError(f"{where}: got ONNX's type {tensor.elem_type}, wanted uint8, float32 or int64")
        dims = [each.dim_value for each in tensor.shape.dim]  # 0 for an axis of any size
        if not dims or dims[0] or not all(dims[1:]):
            raise ExportError(f"{where}: got shape {dims}, wanted a free batch axis first and fixed axes behind it")
        ports[value.name] = Port(value.name, Symbol(_TYPES[tensor.elem_type]), tuple(dims[1:]))
    return ports


def repository(
    manifest: Manifest, graphs: Mapping[str, bytes], *, precision: str = FP32, max_batch_size: int = MAX_BATCH_SIZE
) -> dict[str, bytes]:
    """The files of the repository by their paths in it, each model's together and the ensemble's last.

    `graphs` are the model folder's by file name. Triton makes batches of up to `max_batch_size` rows. Raises
    `ExportError` or `OnnxError` if the model has no such precision, or a graph that Triton cannot serve.
    """
    if not 1 <= max_batch_size <= MOST_MAX_BATCH_SIZE:
        raise ExportError(f"max_batch_size: got {max_batch_size}, wanted 1 to {MOST_MAX_BATCH_SIZE}")
    if precision not in manifest.precisions:
        raise ExportError(
            f"precision: got {precision}, wanted one that the model has: {', '.join(manifest.precisions)}"
        )
    files: dict[str, bytes] = {}
    ports: dict[str, Ports] = {}
    for graph in GRAPHS:
        file = manifests.graph_file(graph, precision)
        if file not in graphs:
            continue
        ports[graph] = Ports.of(file, graphs[file])
        facts = {**manifest.graph_metadata(graph, precision), "latentry.sha256": sha256(graphs[file])}
        model = _model(manifest, graph, ports[graph], facts, max_batch_size)
        files |= _files(manifest, graph, model, "model.onnx", graphs[file])
    ensemble = _ensemble(manifest, ports["encoder"], ports["decoder"], max_batch_size)
    return files | _files(manifest, ENSEMBLE, ensemble, _KEEP, b"")


def model_name(manifest: Manifest, part: str) -> str:
    """What Triton calls a graph of the model, or the ensemble."""
    return f"{manifest.name}_{part}"


def _files(manifest: Manifest, part: str, config: Message, file: str, data: bytes) -> dict[str, bytes]:
    folder = model_name(manifest, part)
    text = HEADER + pbtxt.text(config)
    return {f"{folder}/config.pbtxt": text.encode(), f"{folder}/{manifest.version}/{file}": data}


def _model(manifest: Manifest, graph: str, ports: Ports, facts: Mapping[str, str], max_batch_size: int) -> Message:
    """The ModelConfig of one graph. Batches of one row and of the most are run before a model counts as ready."""
    return [
        ("name", model_name(manifest, graph)),
        ("platform", "onnxruntime_onnx"),
        ("backend", "onnxruntime"),
        ("version_policy", [("latest", [("num_versions", 1)])]),
        ("max_batch_size", max_batch_size),
        *(("input", port.config) for port in ports.inputs.values()),
        *(("output", port.config) for port in ports.outputs.values()),
        ("dynamic_batching", []),
        *(("model_warmup", _warmup(ports, size)) for size in sorted({1, max_batch_size})),
        *_parameters(manifest, facts),
    ]


def _warmup(ports: Ports, size: int) -> Message:
    inputs: Message = [("inputs", port.zeros) for port in ports.inputs.values()]
    return [("name", f"{size} of zeros"), ("batch_size", size), *inputs]


def _ensemble(manifest: Manifest, encoder: Ports, decoder: Ports, max_batch_size: int) -> Message:
    """The ModelConfig of images -> reconstructions, latents. Its steps name the version, so that it fails rather than
    joins an encoder and a decoder of two versions."""
    gives = [decoder.output("images", "reconstructions"), encoder.output("mean", "latents")]
    return [
        ("name", model_name(manifest, ENSEMBLE)),
        ("platform", "ensemble"),
        ("version_policy", [("latest", [("num_versions", 1)])]),
        ("max_batch_size", max_batch_size),
        *(("input", port.offered) for port in encoder.inputs.values()),
        *(("output", port.offered) for port in gives),
        (
            "ensemble_scheduling",
            [
                ("step", _step(manifest, "encoder", encoder, ("mean", "latents"))),
                ("step", _step(manifest, "decoder", decoder, ("images", "reconstructions"))),
            ],
        ),
        *_parameters(manifest, {}),
    ]


def _step(manifest: Manifest, graph: str, ports: Ports, output: tuple[str, str]) -> Message:
    inputs: Message = [("input_map", [("key", name), ("value", name)]) for name in ports.inputs]
    return [
        ("model_name", model_name(manifest, graph)),
        ("model_version", manifest.version),
        *inputs,
        ("output_map", [("key", output[0]), ("value", output[1])]),
    ]


def _parameters(manifest: Manifest, facts: Mapping[str, str]) -> Message:
    """Key facts, which Triton hands out with the config and does not use."""
    about = {"latentry.model": manifest.name, "latentry.version": str(manifest.version), **facts}
    if manifest.classes:
        about["latentry.labels"] = json.dumps(manifest.labels)
    return [("parameters", [("key", key), ("value", [("string_value", about[key])])]) for key in sorted(about)]
