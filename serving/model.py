"""A loaded model: its manifest, its two graphs behind their queues, and what one call may ask of it.

Composes what the calls are made of: encode, decode. Knows arrays, not messages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentry.manifest import Manifest, ModelFolder
from serving.batcher import Array, Batcher, Device
from serving.engine import BadGraph, DeviceChoice, Graph, load_graphs
from serving.metrics import GraphMetrics, Metrics
from serving.settings import Settings

Float32s = npt.NDArray[np.float32]

_MEBIBYTE = 1 << 20
_MAX_MESSAGE = 64 * _MEBIBYTE
_MIN_MESSAGE = 16 * _MEBIBYTE  # a photo that is to be resized fits, however small the model's images
_MESSAGE_OVERHEAD = 64 << 10  # names, shapes, digests and field tags

_GRAPHS = ("encoder", "decoder")
_POSTERIOR = frozenset({"mean", "logvar"})
_PIXELS = frozenset({"images"})
_MEANS = frozenset({"mean"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask: items, and bytes of one message."""

    max_items: int
    max_message_bytes: int


def limits_of(manifest: Manifest, max_request_items: int) -> Limits:
    """Limits that follow from a model's size: float32 images and latents of `max_items` items fit into a message."""
    item_bytes = 4 * (int(np.prod(manifest.image_shape)) + 2 * manifest.latent_dim)
    max_items = max(1, min(max_request_items, (_MAX_MESSAGE - _MESSAGE_OVERHEAD) // item_bytes))
    return Limits(max_items, max(_MIN_MESSAGE, max_items * item_bytes + _MESSAGE_OVERHEAD))


class Model:
    """A model that is loaded and warm."""

    def __init__(self, folder: ModelFolder, limits: Limits, choice: DeviceChoice, encode: Batcher, decode: Batcher):
        self.manifest = folder.manifest
        self.digest = folder.digest
        self.limits = limits
        self.provider = choice.provider
        self._encode = encode
        self._decode = decode

    async def encode(self, images: Array, deadline: float | None) -> tuple[Float32s, Float32s]:
        """uint8 [N, H, W, C] to the mean and logvar of q(z|x), float32 [N, Z] each."""
        posterior = await self._encode.submit(images, _POSTERIOR, deadline)
        return posterior["mean"], posterior["logvar"]

    async def decode(self, latents: Float32s, floats: bool, deadline: float | None) -> Array:
        """float32 [N, Z] to uint8 images [N, H, W, C], or with `floats` to float32 in [0, 1]."""
        if floats:
            return (await self._decode.submit(latents, _MEANS, deadline))["mean"]
        return (await self._decode.submit(latents, _PIXELS, deadline))["images"]


def load(folder: ModelFolder, choice: DeviceChoice, device: Device, settings: Settings, metrics: Metrics) -> Model:
    """Load and warm the graphs of a verified folder.

    Raises `engine.BadGraph` if a graph cannot be loaded or is not what the manifest says.
    """
    name, version = folder.manifest.name, folder.manifest.version
    buckets = _powers_of_two(settings.max_batch_size) if choice.is_cuda else ()
    started = time.perf_counter()
    graphs = load_graphs(folder, choice, buckets)
    loaded = time.perf_counter()
    for graph, kind in zip(graphs, _GRAPHS, strict=True):
        _warm(graph, f"{folder.path / kind}.onnx", (1, settings.max_batch_size))
    metrics.load_seconds.labels(name, str(version)).set(loaded - started)
    metrics.warmup_seconds.labels(name, str(version)).set(time.perf_counter() - loaded)
    metrics.model_info.labels(name, str(version), folder.digest, choice.provider, "fp32").set(1)
    limits = limits_of(folder.manifest, settings.max_request_items)
    encode, decode = (
        Batcher(
            graph.run,
            device,
            _Observer(graph, metrics.graph(name, version, kind)),
            max_batch=settings.max_batch_size,
            max_waiting=settings.max_queue_items,
        )
        for graph, kind in zip(graphs, _GRAPHS, strict=True)
    )
    return Model(folder, limits, choice, encode, decode)


def _warm(graph: Graph, name: str, sizes: Sequence[int]) -> None:
    try:
        graph.warm(sizes)
    except BadGraph as error:
        raise BadGraph(f"{name}: {error}") from error


class _Observer:
    """Adds to what the batcher tells what only the graph knows: the padding."""

    def __init__(self, graph: Graph, metrics: GraphMetrics) -> None:
        self._graph = graph
        self._metrics = metrics
        self.waiting = metrics.waiting

    def ran(self, rows: int, queue_s: list[float], run_s: float) -> None:
        self._metrics.ran(rows, self._graph.bucket(rows) - rows, queue_s, run_s)


def _powers_of_two(top: int) -> list[int]:
    """1, 2, 4, ... and `top`."""
    return sorted({top, *(2**i for i in range(top.bit_length()) if 2**i < top)})
