"""ONNX Runtime: the bytes of a graph become a function from arrays to arrays on one device.

The only file that imports onnxruntime. Knows nothing of gRPC, requests or queues. A `Graph` is not for two threads at
once: its device's one thread runs it.

Where shapes are costly (CUDA searches algorithms and plans memory for each new one), rows are padded to one of a few
batch sizes, the buckets, and input and output buffers are allocated once for each bucket and reused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from latentry.manifest import ModelFolder
from serving.errors import StartError

Array = npt.NDArray[Any]
_Ports = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]  # of a graph, by name: type and shape of one item

_DTYPES: Mapping[str, type[np.generic]] = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where graphs run: ONNX Runtime's `provider`, which device of its kind, threads on a CPU, and the reason."""

    provider: str
    ordinal: int
    threads: int
    reason: str

    @property
    def is_cuda(self) -> bool:
        """Whether this is an NVIDIA GPU."""
        return self.provider == "CUDAExecutionProvider"


class BadGraph(ValueError):
    """A graph that cannot be loaded, or is not what its manifest says."""


def choose_device(wanted: str, threads: int) -> DeviceChoice:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device.

    `cuda` is strict: raises `StartError` when ONNX Runtime cannot use the GPU. `auto` takes a GPU if one works and
    otherwise the CPU, and the reason says which and why.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", wanted):
        raise StartError(f"--device: got {wanted!r}, wanted auto, cpu, cuda or cuda:N")
    if wanted == "cpu":
        return DeviceChoice("CPUExecutionProvider", 0, threads, "as asked")
    kind, _, ordinal = wanted.partition(":")
    choice = DeviceChoice("CUDAExecutionProvider", int(ordinal or 0), threads, "as asked")
    problem = _why_no_cuda(choice)
    if problem is None:
        return choice
    if kind == "cuda":
        raise StartError(f"--device {wanted}: {problem}")
    return DeviceChoice("CPUExecutionProvider", 0, threads, f"auto: {problem}")


def _why_no_cuda(choice: DeviceChoice) -> str | None:
    if choice.provider not in ort.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider (install latentry[cuda])"
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
        return "no NVIDIA driver on this machine"
    ort.preload_dlls()
    try:  # the smallest graph there is: one that hands its input on
        _session(_IDENTITY, choice)
    except Exception as error:
        return f"ONNX Runtime cannot use CUDA: {str(error).splitlines()[0]}"
    return None


# An ONNX file of one node, y = Identity(x), x float [1]; IR version 8, opset 17.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08"
    "080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)


def _session(model: bytes, choice: DeviceChoice) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: ONNX Runtime's warnings concern its developers
    options.intra_op_num_threads = choice.threads
    options.inter_op_num_threads = 1
    # Threads that spin between batches take the processor from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A graph's weights are inside it, where its digest vouches for them: what points to another file finds none.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    provider: str | tuple[str, dict[str, Any]] = choice.provider
    if choice.is_cuda:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = (choice.provider, {"device_id": choice.ordinal, "cudnn_conv_algo_search": "HEURISTIC"})
    session = ort.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != choice.provider:
        raise BadGraph(f"ONNX Runtime fell back to {session.get_providers()[0]}, wanted {choice.provider}")
    return session


class Graph:
    """One graph on one device. `buckets` are the batch sizes to pad to; none means that any size runs as it is."""

    def __init__(self, model: bytes, choice: DeviceChoice, buckets: Sequence[int] = ()) -> None:
        try:
            self._session = _session(model, choice)
        except BadGraph:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen kinds, none of them documented
            raise BadGraph(f"ONNX Runtime cannot load it: {error}") from error
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.inputs = {i.name: (_DTYPES.get(i.type), tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = {o.name: (_DTYPES.get(o.type), tuple(o.shape)) for o in self._session.get_outputs()}
        self._input = next(iter(self.inputs), "")
        self._choice = choice
        self._buckets = sorted(buckets)
        self._bound: dict[int, _BoundBatch] = {}

    def bucket(self, rows: int) -> int:
        """The batch size that `rows` rows run as."""
        return next((size for size in self._buckets if size >= rows), rows)

    def run(self, rows: Array, outputs: frozenset[str]) -> dict[str, Array]:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...]."""
        if not self._buckets:
            names = sorted(outputs)
            return dict(zip(names, self._session.run(names, {self._input: rows}), strict=True))
        size = self.bucket(len(rows))
        if size not in self._bound:
            self._bound[size] = _BoundBatch(self, self._session, self._choice, size)
        return self._bound[size].run(rows, outputs)

    def warm(self, sizes: Sequence[int]) -> None:
        """Run once at each bucket, or at each of `sizes` where there are none, so that no caller waits for it.

        Raises `BadGraph` if a run fails, or gives outputs that are not finite or not of the shapes that were declared.
        """
        dtype, shape = self.inputs[self._input]
        for size in self._buckets or sizes:
            try:
                results = self.run(np.zeros((size, *shape[1:]), dtype), frozenset(self.outputs))
            except Exception as error:
                raise BadGraph(f"a batch of {size} fails: {error}") from error
            for name, (_, declared) in self.outputs.items():
                got, wanted = results[name], (size, *declared[1:])
                if got.shape != wanted:
                    raise BadGraph(f"output {name}: got shape {list(got.shape)}, wanted {list(wanted)}")
                if not np.isfinite(got).all():
                    raise BadGraph(f"output {name}: not finite for an input of zeros")


class _BoundBatch:
    """A bucket's buffers on the device, bound to the graph once."""

    def __init__(self, graph: Graph, session: ort.InferenceSession, choice: DeviceChoice, size: int) -> None:
        device = ("cuda", choice.ordinal) if choice.is_cuda else ("cpu", 0)
        ((name, (dtype, shape)),) = graph.inputs.items()
        self._session = session
        self._staging = np.zeros((size, *shape[1:]), dtype)
        self._input = ort.OrtValue.ortvalue_from_numpy(self._staging, *device)
        self._outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type((size, *shape[1:]), dtype, *device)
            for name, (dtype, shape) in graph.outputs.items()
        }
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(name, self._input)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, rows: Array, outputs: frozenset[str]) -> dict[str, Array]:
        self._staging[: len(rows)] = rows  # what is left of an earlier batch pads the rest
        self._input.update_inplace(self._staging)
        self._session.run_with_iobinding(self._binding)
        # A copy: the buffers are written again by the next batch, while these rows are still on their way out.
        return {name: np.array(self._outputs[name].numpy()[: len(rows)]) for name in outputs}


def load_graphs(folder: ModelFolder, choice: DeviceChoice, buckets: Sequence[int]) -> tuple[Graph, Graph]:
    """The encoder and the decoder of a verified folder.

    Raises `BadGraph`, naming the file, if one cannot be loaded or disagrees with the manifest.
    """
    height, width, channels = folder.manifest.image_shape
    images, latents = (np.uint8, (height, width, channels)), (np.float32, (folder.manifest.latent_dim,))
    float_images = (np.float32, (height, width, channels))
    wanted: dict[str, tuple[_Ports, _Ports]] = {
        "encoder": ({"images": images}, {"mean": latents, "logvar": latents}),
        "decoder": ({"latents": latents}, {"images": images, "mean": float_images}),
    }
    graphs = []
    for kind, (inputs, outputs) in wanted.items():
        try:
            graph = Graph(getattr(folder, kind), choice, buckets)
            _compare("input", graph.inputs, inputs)
            _compare("output", graph.outputs, outputs)
            for key, value in folder.manifest.graph_metadata(kind).items():
                if graph.metadata.get(key) != value:
                    raise BadGraph(f"metadata {key}: got {graph.metadata.get(key)}, the manifest says {value}")
        except BadGraph as error:
            raise BadGraph(f"{folder.path / kind}.onnx: {error}") from error
        graphs.append(graph)
    return graphs[0], graphs[1]


def _compare(side: str, got: Mapping[str, Any], wanted: _Ports) -> None:
    if set(got) != set(wanted):
        raise BadGraph(f"{side}s: got {', '.join(got) or 'none'}, wanted {', '.join(wanted)}")
    for name, (dtype, item) in wanted.items():
        got_dtype, got_shape = got[name]
        if got_dtype is not dtype:
            raise BadGraph(f"{side} {name}: got {np.dtype(got_dtype) if got_dtype else 'another type'}, "
                           f"wanted {np.dtype(dtype)}")  # fmt: skip
        if not got_shape or isinstance(got_shape[0], int):
            raise BadGraph(f"{side} {name}: got shape {list(got_shape)}, wanted a free batch dimension first")
        if tuple(got_shape[1:]) != item:
            raise BadGraph(f"{side} {name}: got items of {list(got_shape[1:])}, the manifest says {list(item)}")
