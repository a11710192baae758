"""What pictures are drawn of: a model that encodes and decodes, and images that it was not trained on.

A subject hides whether torch or ONNX Runtime computes. Knows nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.images import spread

Pixels = NDArray[np.uint8]  # (N, H, W, C)
Latents = NDArray[np.float32]  # (N, Z)
Labels = NDArray[np.int64]  # (N,)

_POINT_LOGVAR = -9.99  # an encoder that says so of all is an autoencoder's: it gives points, not distributions
_ENCODED = 10_000  # images at most: more would change no picture
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The model as it was after `epoch`; `open` reads it."""

    epoch: int
    open: Callable[[], Subject]


@dataclass(frozen=True, slots=True)
class Subject:
    """`encode` gives mean and logvar of q(z|x); `decode` the mean of p(x|z), rounded to pixels. Both take the labels,
    which a model with `classes` above 0 needs and others do not look at. `pixels` and `labels` are held out;
    None where there are none. `draw_prior(n)` draws latents from a prior other than N(0, I), if the model has one.
    `snapshots` and `log` come from a run's folder."""

    name: str
    image_shape: tuple[int, int, int]
    latent_dim: int
    encode: Callable[[Pixels, Labels | None], tuple[Latents, Latents]]
    decode: Callable[[Latents, Labels | None], Pixels]
    classes: int = 0
    class_names: tuple[str, ...] = ()
    pixels: Pixels | None = None
    labels: Labels | None = None
    draw_prior: Callable[[int], Latents] | None = None
    snapshots: tuple[Snapshot, ...] = ()
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """The held-out images in latent space: `mean` and `logvar` (N, Z), and their labels (N,) if they have any."""

    mean: Latents
    logvar: Latents
    labels: Labels | None

    @property
    def are_points(self) -> bool:
        """Whether the encoder knows no uncertainty, as an autoencoder's: its latents then need not be like N(0, I)."""
        return bool((self.logvar <= _POINT_LOGVAR).all())

    @property
    def centre(self) -> Latents:
        """The mean of the aggregate posterior, (Z,)."""
        centre: Latents = self.mean.mean(0, dtype=np.float64).astype(np.float32)
        return centre

    @property
    def spread(self) -> Latents:
        """The aggregate posterior's standard deviation for each latent, (Z,): the means' and the noise around them."""
        noise = 0.0 if self.are_points else np.exp(self.logvar.astype(np.float64)).mean(0)
        spread: Latents = np.sqrt(self.mean.var(0, dtype=np.float64) + noise).astype(np.float32)
        return spread

    @property
    def activity(self) -> NDArray[np.float64]:
        """Var(E[z|x]) of each latent, (Z,): how much of the images it says (Burda et al. 2016, appendix C)."""
        activity: NDArray[np.float64] = self.mean.var(0, dtype=np.float64)
        return activity


def encoded(subject: Subject) -> Encoded:
    """The held-out images of `subject`, which must have some, through its encoder; `_ENCODED` of them at most."""
    assert subject.pixels is not None  # noqa: S101 - the catalogue leaves out what needs images where there are none
    chosen = spread(len(subject.pixels), _ENCODED)
    labels = None if subject.labels is None else subject.labels[chosen]
    parts = [
        subject.encode(subject.pixels[chosen[start : start + _BATCH]], _part(labels, start))
        for start in range(0, len(chosen), _BATCH)
    ]
    return Encoded(np.concatenate([mean for mean, _ in parts]), np.concatenate([logvar for _, logvar in parts]), labels)


def decode_all(subject: Subject, latents: Latents, labels: Labels | None = None) -> Pixels:
    """Decode any number of latents, in batches."""
    latents = np.ascontiguousarray(latents, np.float32)
    parts = [
        subject.decode(latents[start : start + _BATCH], _part(labels, start))
        for start in range(0, len(latents), _BATCH)
    ]
    return np.concatenate(parts)


def chosen_classes(subject: Subject, n: int) -> Labels | None:
    """A class for each of `n` draws, all in turn; None for a model without classes."""
    return np.arange(n, dtype=np.int64) % subject.classes if subject.classes else None


def _part(labels: Labels | None, start: int) -> Labels | None:
    return None if labels is None else labels[start : start + _BATCH]
