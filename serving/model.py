"""A loaded model: its manifest, the queues of its graphs, and what one call may ask of it.

Composes what the calls are made of: draw, encode, decode. Knows arrays, not messages, and not where its graphs run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from latentry.manifest import Manifest, Prior
from serving import call, labelled
from serving.batches import Array, Results, Tell, tell_nobody
from serving.drift import Drift, Reconstruction
from serving.errors import ServiceError
from serving.labelled import Classes
from serving.tasks import Tasks

log = logging.getLogger(__name__)

Float32s = npt.NDArray[np.float32]

_MEBIBYTE = 1 << 20
MAX_MESSAGE = 64 * _MEBIBYTE
_MIN_MESSAGE = 16 * _MEBIBYTE  # a photo that is to be resized fits, however small the model's images
_MESSAGE_OVERHEAD = 64 << 10  # names, shapes, digests and field tags

ENCODER, DECODER, PRIOR, DENSITY = "encoder", "decoder", "prior", "density"
_MIXTURE = "mixture"
_POSTERIOR = frozenset({"mean", "logvar"})
_PIXELS = frozenset({"images"})
_MEANS = frozenset({"mean"})
_LATENTS = frozenset({"latents"})
_LOG_PROB = frozenset({"log_prob"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask: items, and bytes of one message."""

    max_items: int
    max_message_bytes: int


def limits_of(manifest: Manifest, max_request_items: int) -> Limits:
    """Limits that follow from a model's size: of `max_items` items, all that goes into one message fits into it: a
    float32 image, three latents (mean, logvar and a draw), three scores and a class. Memory for noise is bounded too.
    """
    noise_dim = 0 if manifest.prior is None else manifest.prior.noise_dim
    item_bytes = 4 * (int(np.prod(manifest.image_shape)) + 3 * max(manifest.latent_dim, noise_dim) + 4)
    max_items = max(1, min(max_request_items, (MAX_MESSAGE - _MESSAGE_OVERHEAD) // item_bytes))
    return Limits(max_items, max(_MIN_MESSAGE, max_items * item_bytes + _MESSAGE_OVERHEAD))


class Queue(Protocol):
    """What a model needs of the queue of one of its graphs: `serving.batcher.Batcher`, or one that hands over to it."""

    @property
    def up(self) -> bool:
        """Whether at least one engine works."""

    def works_on(self, device: int) -> bool:
        """Whether the engine of this device works."""

    async def submit(
        self,
        rows: Array,
        outputs: frozenset[str],
        deadline: float | None = None,
        *,
        background: bool = False,
        tell: Tell = tell_nobody,
    ) -> Results:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...]."""

    def close(self) -> None:
        """Run nothing any more."""


class Model:
    """A version that is loaded and warm. `batchers` are the queues of its graphs by `ENCODER` and `DECODER`, which are
    in `precision`, and perhaps `PRIOR` and `DENSITY`; `close` frees the graphs. `parameters` are the numbers that the
    decoder gives for each pixel beside the mean, if it does. `drift` and `reconstruction` watch what is encoded.

    Where a call takes `classes`, int64 [N], they are the rows' classes: needed by a conditional model, not taken by
    another. Raises `ValueError` for classes that the model cannot take: nobody but our own callers can be to blame.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        limits: Limits,
        provider: str,
        precision: str,
        batchers: Mapping[str, Queue],
        close: Callable[[], object],
        *,
        parameters: int = 0,
        drift: Drift | None = None,
        reconstruction: Reconstruction | None = None,
    ) -> None:
        self.manifest = manifest
        self.version = str(manifest.version)  # as metrics and logs name it
        self.digest = digest
        self.limits = limits
        self.provider = provider
        self.precision = precision
        self.batchers = batchers
        self.parameters = parameters
        self._close = close
        self._drift = drift
        self._reconstruction = reconstruction
        self._checks = Tasks()
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
        self.enter()
        try:
            yield self
        finally:
            self.leave()

    def enter(self) -> None:
        """A use begins, which `leave` ends."""
        self._users += 1
        if self._users == 1:
            self._unused.clear()

    def leave(self) -> None:
        """A use ends."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    @property
    def has_prior(self) -> bool:
        """Whether it has a prior of its own, learnt with it or fitted afterwards."""
        return PRIOR in self.batchers

    @property
    def fitted_by_default(self) -> bool:
        """Whether its own prior is drawn from unasked: if it was learnt with it, N(0, I) is no prior of it at all."""
        prior = self.manifest.prior
        return prior is not None and prior.learnt

    @property
    def has_parameters(self) -> bool:
        """Whether its decoder gives the `parameters` of p(x|z) beside the mean."""
        return self.parameters > 0

    def noise_dim(self, fitted: bool) -> int:
        """How many standard normal numbers a draw is made of: of its own prior if `fitted`, else of N(0, I)."""
        return self._own_prior.noise_dim if fitted else self.manifest.latent_dim

    def selectors(self, fitted: bool) -> int:
        """How many of these, the first ones, choose instead of measure, so that scaling or truncating them would
        change what is chosen: the one that picks a mixture's component.
        """
        return 1 if fitted and self._own_prior.kind == _MIXTURE else 0

    async def draw(self, noise: Float32s, deadline: float | None, fitted: bool) -> Float32s:
        """Latents float32 [N, Z] made of standard normal noise [N, `noise_dim(fitted)`]."""
        if not fitted:
            return noise
        drawn = (await self._submit(PRIOR, noise, _LATENTS, deadline))["latents"]
        if not np.isfinite(drawn).all():
            raise ValueError(f"{self.manifest.name}: its prior gave latents that are not finite")
        return drawn

    async def log_prior(self, latents: Float32s, deadline: float | None) -> Float32s | None:
        """log p(z) in nats, float32 [N], of latents [N, Z] under the prior that the model was trained with; None if
        that is N(0, I), or has no density that its folder can tell.
        """
        if DENSITY not in self.batchers:
            return None
        return (await self._submit(DENSITY, latents, _LOG_PROB, deadline))["log_prob"]

    async def encode(
        self, images: Array, deadline: float | None, classes: Classes | None = None
    ) -> tuple[Float32s, Float32s]:
        """uint8 [N, H, W, C] to the mean and logvar of q(z|x), float32 [N, Z] each."""
        posterior = await self._submit(ENCODER, self._labelled(images, classes), _POSTERIOR, deadline)
        self.watch(images, posterior["mean"], classes)
        return posterior["mean"], posterior["logvar"]

    async def decode(
        self, latents: Float32s, floats: bool, deadline: float | None, classes: Classes | None = None
    ) -> Array:
        """float32 [N, Z] to uint8 images [N, H, W, C], or with `floats` to float32 in [0, 1]."""
        outputs = _MEANS if floats else _PIXELS
        (images,) = (await self._submit(DECODER, self._labelled(latents, classes), outputs, deadline)).values()
        return images

    async def decode_outputs(
        self, latents: Float32s, outputs: frozenset[str], deadline: float | None, classes: Classes | None = None
    ) -> Mapping[str, Array]:
        """float32 [N, Z] to any of `images`, uint8 [N, H, W, C]; `mean` of p(x|z), float32 in [0, 1] of the same shape;
        and, if it `has_parameters`, `parameters` of p(x|z), float32 [N, H, W, P].
        """
        return await self._submit(DECODER, self._labelled(latents, classes), outputs, deadline)

    def watch(self, images: Array, mean: Float32s, classes: Classes | None) -> None:
        """Hold what was encoded against the training set, and decode a share of it again, beside the call."""
        if self.retiring:
            return
        if self._drift is not None:
            self._drift.observe(mean)
        picked = [] if self._reconstruction is None else self._reconstruction.pick(len(mean))
        if picked and not self._checks:  # one at a time: it is a sample, and must not become the load
            rows = self._labelled(mean[picked], None if classes is None else classes[picked])
            self._checks.start(self._reconstruct(images[picked], rows))

    async def retire(self, timeout_s: float | None) -> bool:
        """Wait for the calls that use it, then free its graphs. False if some still did after `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._unused.wait(), timeout_s)
        in_time = self._users == 0
        self._checks.cancel()
        for batcher in self.batchers.values():
            batcher.close()
        self._close()
        return in_time

    async def _submit(
        self, graph: str, rows: Array, outputs: frozenset[str], deadline: float | None
    ) -> Mapping[str, Array]:
        record = call.current()
        background = record.priority == call.BACKGROUND
        tell = partial(record.ran, graph)
        return await self.batchers[graph].submit(rows, outputs, deadline, background=background, tell=tell)

    def _labelled(self, rows: Array, classes: Classes | None) -> Array:
        """The rows as encoder and decoder take them. No graph is run with a class that it does not know."""
        known = self.manifest.classes
        if classes is None and not known:
            return rows
        if classes is None or not known or classes.shape != (len(rows),) or classes.dtype != np.int64:
            got = "none" if classes is None else f"{classes.dtype} {list(classes.shape)}"
            wanted = f"int64 [{len(rows)}]" if known else "none"
            raise ValueError(f"{self.manifest.name}: classes: got {got}, wanted {wanted}")
        if classes.min() < 0 or classes.max() >= known:
            got = f"{classes.min()} to {classes.max()}"
            raise ValueError(f"{self.manifest.name}: classes: got {got}, wanted 0 to {known - 1}")
        return labelled.attach(rows, classes)

    @property
    def _own_prior(self) -> Prior:
        prior = self.manifest.prior
        if prior is None:
            raise ValueError(f"{self.manifest.name}: it has no prior of its own")
        return prior

    async def _reconstruct(self, images: Array, rows: Array) -> None:
        try:
            results = await self.batchers[DECODER].submit(rows, _MEANS, background=True)
            if self._reconstruction is not None and not self.retiring:
                await asyncio.to_thread(self._reconstruction.observe, images, results["mean"])
        except ServiceError:  # a full queue or an engine's failure is told to calls, and counted there
            pass
        except Exception:
            log.exception("an image could not be held against its reconstruction")
