"""A loaded model: its manifest, its graphs behind their queues, and what one call may ask of it.

Composes what the calls are made of: draw, encode, decode. Knows arrays, not messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from latentry.manifest import Manifest, ModelFolder
from serving import call
from serving.batcher import Batcher
from serving.batches import Array
from serving.drift import Drift, Reconstruction
from serving.engine import Graph
from serving.errors import ServiceError

log = logging.getLogger(__name__)

Float32s = npt.NDArray[np.float32]

_MEBIBYTE = 1 << 20
MAX_MESSAGE = 64 * _MEBIBYTE
_MIN_MESSAGE = 16 * _MEBIBYTE  # a photo that is to be resized fits, however small the model's images
_MESSAGE_OVERHEAD = 64 << 10  # names, shapes, digests and field tags

ENCODER, DECODER, PRIOR = "encoder", "decoder", "prior"
_POSTERIOR = frozenset({"mean", "logvar"})
_PIXELS = frozenset({"images"})
_MEANS = frozenset({"mean"})
_LATENTS = frozenset({"latents"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask: items, and bytes of one message."""

    max_items: int
    max_message_bytes: int


def limits_of(manifest: Manifest, max_request_items: int) -> Limits:
    """Limits that follow from a model's size: float32 images and latents of `max_items` items fit into a message."""
    noise_dim = 0 if manifest.prior is None else manifest.prior.noise_dim
    item_bytes = 4 * (int(np.prod(manifest.image_shape)) + 2 * max(manifest.latent_dim, noise_dim))
    max_items = max(1, min(max_request_items, (MAX_MESSAGE - _MESSAGE_OVERHEAD) // item_bytes))
    return Limits(max_items, max(_MIN_MESSAGE, max_items * item_bytes + _MESSAGE_OVERHEAD))


class Model:
    """A version that is loaded and warm. `graphs` and `batchers` are by `ENCODER`, `DECODER` and perhaps `PRIOR`, the
    first two in `precision`.
    """

    def __init__(
        self,
        folder: ModelFolder,
        limits: Limits,
        provider: str,
        precision: str,
        graphs: Mapping[str, Sequence[Graph]],
        batchers: Mapping[str, Batcher],
        drift: Drift | None,
        reconstruction: Reconstruction,
    ) -> None:
        self.manifest = folder.manifest
        self.digest = folder.digest
        self.limits = limits
        self.provider = provider
        self.precision = precision
        self.batchers = batchers
        self._graphs = graphs
        self._drift = drift
        self._reconstruction = reconstruction
        self._checks: set[asyncio.Task[None]] = set()
        self._users = 0
        self.retiring = False  # nothing is told of its traffic any more
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def up(self) -> bool:
        """Whether every graph has an engine that works."""
        return all(batcher.up for batcher in self.batchers.values())

    def works_on(self, device: int) -> bool:
        """Whether all graphs' engines of this device work."""
        return all(batcher.works_on(device) for batcher in self.batchers.values())

    @contextlib.contextmanager
    def used(self) -> Iterator[Model]:
        """One call's use of it: it is not freed before the last has ended."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    @property
    def noise_dim(self) -> int:
        """How many standard normal numbers a draw of the prior is made of."""
        prior = self.manifest.prior
        return prior.noise_dim if prior is not None and PRIOR in self.batchers else self.manifest.latent_dim

    async def draw(self, noise: Float32s, deadline: float | None) -> Float32s:
        """Latents of the model's prior, float32 [N, Z], made of standard normal noise [N, `noise_dim`]."""
        if PRIOR not in self.batchers:
            return noise
        drawn = (await self._submit(PRIOR, noise, _LATENTS, deadline))["latents"]
        if not np.isfinite(drawn).all():
            raise ValueError(f"{self.manifest.name}: its prior gave latents that are not finite")
        return drawn

    async def encode(self, images: Array, deadline: float | None) -> tuple[Float32s, Float32s]:
        """uint8 [N, H, W, C] to the mean and logvar of q(z|x), float32 [N, Z] each."""
        posterior = await self._submit(ENCODER, images, _POSTERIOR, deadline)
        self._watch(images, posterior["mean"])
        return posterior["mean"], posterior["logvar"]

    async def decode(self, latents: Float32s, floats: bool, deadline: float | None) -> Array:
        """float32 [N, Z] to uint8 images [N, H, W, C], or with `floats` to float32 in [0, 1]."""
        outputs = _MEANS if floats else _PIXELS
        (images,) = (await self._submit(DECODER, latents, outputs, deadline)).values()
        return images

    async def retire(self, timeout_s: float) -> bool:
        """Wait for the calls that use it, then free its graphs. False if some still did after `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._unused.wait(), timeout_s)
        in_time = self._users == 0
        for check in self._checks:
            check.cancel()
        for batcher in self.batchers.values():
            batcher.close()
        for graphs in self._graphs.values():
            for graph in graphs:
                graph.close()
        return in_time

    async def _submit(
        self, graph: str, rows: Array, outputs: frozenset[str], deadline: float | None
    ) -> Mapping[str, Array]:
        record = call.current()
        background = record.priority == call.BACKGROUND
        tell = partial(record.ran, graph)
        return await self.batchers[graph].submit(rows, outputs, deadline, background=background, tell=tell)

    def _watch(self, images: Array, mean: Float32s) -> None:
        """Hold what was encoded against the training set, and decode a share of it again, beside the call."""
        if self.retiring:
            return
        if self._drift is not None:
            self._drift.observe(mean)
        picked = self._reconstruction.pick(len(mean))
        if picked and not self._checks:  # one at a time: it is a sample, and must not become the load
            task = asyncio.ensure_future(self._reconstruct(images[picked], mean[picked]))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _reconstruct(self, images: Array, mean: Float32s) -> None:
        try:
            results = await self.batchers[DECODER].submit(mean, _MEANS, background=True)
            if not self.retiring:
                await asyncio.to_thread(self._reconstruction.observe, images, results["mean"])
        except ServiceError:  # a full queue or an engine's failure is told to calls, and counted there
            pass
        except Exception:
            log.exception("an image could not be held against its reconstruction")
