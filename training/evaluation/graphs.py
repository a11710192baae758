"""The ONNX graphs of a model folder, run by ONNX Runtime on torch's tensors, without a copy. Knows no likelihood.

Outputs are written into buffers that the next run of the same graph reuses, because pages that are new each time
cost as much as a small decoder does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded, and else reports home
import onnxruntime

from latentry.manifest import DECODER_FILE, DENSITY_FILE, ENCODER_FILE, PRIOR_FILE, Manifest, ManifestError
from training.errors import ConfigError, RunError

_VALUES_CPU = 400_000  # pixel values decoded at a time: 512 images of 28x28, which fit the cache with what they need
_VALUES_CUDA = 8_000_000
_LEAST_ROWS = 16
_TYPES = {"tensor(float)": (torch.float32, np.float32), "tensor(uint8)": (torch.uint8, np.uint8)}
_NUMPY = {torch.float32: np.float32, torch.uint8: np.uint8, torch.int64: np.int64}


class Graphs:
    """Encoder, decoder and, where the folder has them, prior and density, on `device` (auto, cpu or cuda).

    `files` holds the graphs' bytes by file name. Raises `ManifestError` if a graph cannot be loaded or has not the
    inputs and outputs that the manifest speaks of, and `ConfigError` if there is no CUDA though it was asked for.
    """

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes], device: str = "auto") -> None:
        self.device = _device(device)
        self.manifest = manifest
        shape, latents = manifest.image_shape, manifest.latent_dim
        self._encoder = Graph(files[ENCODER_FILE], ENCODER_FILE, self.device)
        self._encoder.expect({"mean": (latents,), "logvar": (latents,)})
        self._decoder = Graph(files[DECODER_FILE], DECODER_FILE, self.device)
        self._decoder.expect({"images": shape, "mean": shape})
        self._prior = Graph(files[PRIOR_FILE], PRIOR_FILE, self.device) if PRIOR_FILE in files else None
        self._density = Graph(files[DENSITY_FILE], DENSITY_FILE, self.device) if DENSITY_FILE in files else None
        if self._prior:
            self._prior.expect({"latents": (latents,)})
        if self._density:
            self._density.expect({"log_prob": ()})
        labels = {"labels"} if manifest.classes else set()
        self._encoder.check(manifest, {"images"} | labels)
        self._decoder.check(manifest, {"latents"} | labels)
        for graph, wanted in ((self._prior, {"noise"}), (self._density, {"latents"})):
            if graph is not None:
                graph.check(manifest, wanted)
        if self._prior and manifest.prior and self.noise_dim != manifest.prior.noise_dim:
            raise ManifestError(
                f"{PRIOR_FILE}: noise: got {self.noise_dim}, the manifest says {manifest.prior.noise_dim}"
            )

    @property
    def conditional(self) -> bool:
        """Whether the graphs take the class labels of images too."""
        return "labels" in self._decoder.inputs

    @property
    def has_parameters(self) -> bool:
        """Whether the decoder gives more than the mean of p(x|z)."""
        return "parameters" in self._decoder.outputs

    @property
    def parameters(self) -> int:
        """How many numbers for each pixel the decoder gives beside the mean; 0 if there are none."""
        if not self.has_parameters:
            return 0
        height, width, _ = self.manifest.image_shape
        got = tuple(self._decoder.outputs["parameters"])
        if len(got) != 3 or got[:2] != (height, width) or not isinstance(got[2], int):
            raise ManifestError(
                f"{DECODER_FILE}: parameters: got {list(got)}, wanted [{height}, {width}, a whole number]"
            )
        return got[2]

    @property
    def has_prior(self) -> bool:
        return self._prior is not None

    @property
    def has_density(self) -> bool:
        return self._density is not None

    @property
    def rows(self) -> int:
        """How many images to decode at a time."""
        values = _VALUES_CUDA if self.device.type == "cuda" else _VALUES_CPU
        return max(_LEAST_ROWS, values // math.prod(self.manifest.image_shape))

    def encode(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) -> mean and logvar of q(z|x), each (N, Z), on the CPU. Raises `RunError` if they are not
        finite."""
        parts = []
        for start in range(0, len(images), self.rows):
            end = start + self.rows
            batch = torch.from_numpy(np.array(images[start:end])).to(self.device)  # a copy, as a mapped file is no RAM
            feeds = {"images": batch, **self._labels(self._encoder, labels, slice(start, end))}
            run = self._encoder.run(feeds, ["mean", "logvar"])
            parts.append([output.cpu().clone() for output in run])
        means, logvars = map(torch.cat, zip(*parts, strict=True))
        if not (means.isfinite().all() and logvars.isfinite().all()):
            raise RunError("the encoder's output: got NaN or infinity, wanted finite numbers: the model is broken")
        return means, logvars

    def decode(self, latents: Tensor, labels: Tensor | None = None, output: str = "") -> Tensor:
        """(N, Z) -> (N, H, W, ...): `output`, or what the likelihood needs: parameters if there are any, else mean.

        The tensor is on `device`, and good until the next call.
        """
        feeds = {"latents": latents} if labels is None else {"latents": latents, "labels": labels}
        (decoded,) = self._decoder.run(feeds, [output or ("parameters" if self.has_parameters else "mean")])
        return decoded

    def images(self, latents: Tensor, labels: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """(N, Z) -> the images that are served, uint8 (N, H, W, C)."""
        decoded = np.empty((len(latents), *self.manifest.image_shape), np.uint8)
        for rows, part in self._decoded(latents, labels, "images"):
            decoded[rows] = part
        return decoded

    def means(self, latents: Tensor, labels: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(N, Z) -> the means of p(x|z), (N, H, W, C) in [0, 1]."""
        decoded = np.empty((len(latents), *self.manifest.image_shape), np.float32)
        for rows, part in self._decoded(latents, labels, "mean"):
            decoded[rows] = part
        return decoded

    def _decoded(self, latents: Tensor, labels: NDArray[np.int64] | None, output: str) -> Any:
        for start in range(0, len(latents), self.rows):
            rows = slice(start, start + self.rows)
            given = self._labels(self._decoder, labels, rows).get("labels")
            yield rows, self.decode(latents[rows].to(self.device), given, output).cpu().numpy()

    @property
    def noise_dim(self) -> int:
        """How many standard normal numbers the prior makes one latent vector of."""
        return self._prior.width("noise") if self._prior else self.manifest.latent_dim

    def prior_latents(self, noise: Tensor) -> Tensor:
        """Draws of the model's own prior, (N, Z), made of standard normal noise (N, `noise_dim`)."""
        if self._prior is None:
            return noise
        (latents,) = self._prior.run({"noise": noise.to(self.device)}, ["latents"])
        return latents.clone()

    def log_density(self, latents: Tensor) -> Tensor:
        """log p(z) in nats under the model's own prior, (N,)."""
        if self._density is None:
            raise ManifestError(f"{DENSITY_FILE}: got nothing, wanted the density of the model's own prior")
        (log_prob,) = self._density.run({"latents": latents}, ["log_prob"])
        return log_prob.clone()

    def _labels(self, graph: Graph, labels: NDArray[np.int64] | None, rows: slice) -> dict[str, Tensor]:
        if labels is None or "labels" not in graph.inputs:
            return {}
        return {"labels": torch.from_numpy(np.array(labels[rows], np.int64)).to(self.device)}


class Graph:
    """One ONNX graph. `inputs` and `outputs` map their names to their shapes but for the batch."""

    def __init__(self, data: bytes, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        try:
            self._session = onnxruntime.InferenceSession(data, _options(), providers=_providers(device))
        except Exception as error:  # ONNX Runtime raises a dozen kinds for a graph that it cannot run
            raise ManifestError(f"{name}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error
        if device.type == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise ConfigError(f"--device: {name} fell back to {self._session.get_providers()[0]}, wanted CUDA")
        self.inputs = {port.name: port.shape[1:] for port in self._session.get_inputs()}
        self.outputs = {port.name: port.shape[1:] for port in self._session.get_outputs()}
        self._types = {port.name: port.type for port in self._session.get_outputs()}
        self._buffers: dict[str, Tensor] = {}

    def width(self, name: str) -> int:
        """The width of an input of rows; raises `ManifestError` if there is none such."""
        shape = self.inputs.get(name)
        if not shape or len(shape) != 1 or not isinstance(shape[0], int):
            raise ManifestError(f"{self._name}: {name}: got shape {shape}, wanted [N, a whole number]")
        return shape[0]

    def check(self, manifest: Manifest, inputs: set[str]) -> None:
        """Raises `ManifestError` unless the graph takes these `inputs`, and says of itself what the manifest says."""
        if set(self.inputs) != inputs:
            got, wanted = (", ".join(sorted(names)) or "none" for names in (set(self.inputs), inputs))
            raise ManifestError(f"{self._name}: inputs: got {got}, wanted {wanted}")
        said = self._session.get_modelmeta().custom_metadata_map
        for key, value in manifest.graph_metadata(self._name.removesuffix(".onnx")).items():
            if said.get(key) != value:
                raise ManifestError(f"{self._name}: metadata {key}: got {said.get(key)}, the manifest says {value}")

    def expect(self, outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `ManifestError` unless each of `outputs` is there in its shape."""
        for name, shape in outputs.items():
            got = self.outputs.get(name)
            if got is None or tuple(got) != shape or self._types[name] not in _TYPES:
                raise ManifestError(f"{self._name}: {name}: got {got or 'nothing'}, wanted [N, {list(shape)}]")

    def run(self, feeds: Mapping[str, Tensor], outputs: list[str]) -> list[Tensor]:
        """The `outputs` for contiguous `feeds` on this graph's device; good until the next run."""
        binding = self._session.io_binding()
        n = len(next(iter(feeds.values())))
        feeds = {name: tensor.contiguous() for name, tensor in feeds.items()}
        for name, tensor in feeds.items():
            self._bind(binding.bind_input, name, tensor)
        results = [self._buffer(name, n) for name in outputs]
        for name, tensor in zip(outputs, results, strict=True):
            self._bind(binding.bind_output, name, tensor)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime has a stream of its own
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise ManifestError(f"{self._name}: ONNX Runtime cannot run it: {str(error).splitlines()[0]}") from error
        return results

    def _bind(self, bind: Any, name: str, tensor: Tensor) -> None:
        kind, index = self._device.type, self._device.index or 0
        bind(name, kind, index, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())

    def _buffer(self, name: str, n: int) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < n:
            shape = (n, *self.outputs[name])
            buffer = torch.empty(shape, dtype=_TYPES[self._types[name]][0], device=self._device)
            self._buffers[name] = buffer
        return buffer[:n]


def _device(asked: str) -> torch.device:
    there = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if asked == "cuda" and not there:
        raise ConfigError("--device: got cuda, but torch or ONNX Runtime sees none here (install latentry[cuda])")
    return torch.device("cuda", 0) if there and asked != "cpu" else torch.device("cpu")


def _providers(device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    options = {"device_id": device.index or 0, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # what affinity and OMP_NUM_THREADS allow
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch's arithmetic wants the cores too
    options.log_severity_level = 3
    return options
