"""Sheets of images: reconstructions, samples, walks between images, and what each latent does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.drawing.canvas import labelled
from training.drawing.subject import Encoded, Labels, Latents, Subject, chosen_classes, decode_all, encoded
from training.figures import Grid, tile
from training.images import spread

_SEED = 3
_SIDE = 8
_STEPS = 9  # of a walk, ends included
_SIGMAS = np.linspace(-3, 3, 7)
_MOST_TRAVERSED = 64


def reconstructions(subject: Subject) -> Grid:
    """Held-out images, each row above the row of what the model makes of them."""
    assert subject.pixels is not None  # noqa: S101
    chosen = spread(len(subject.pixels), _SIDE * 4)
    originals, labels = subject.pixels[chosen], _taken(subject, chosen)
    again = decode_all(subject, subject.encode(originals, labels)[0], labels)
    pairs = [part[start : start + _SIDE] for start in range(0, len(chosen), _SIDE) for part in (originals, again)]
    return tile(np.concatenate(pairs), min(_SIDE, len(chosen)))


def samples(subject: Subject) -> Grid:
    """Images decoded from draws of N(0, I), which is what a VAE's latents are trained towards."""
    z = normal_latents(_SIDE * _SIDE, subject.latent_dim)
    return tile(decode_all(subject, z, chosen_classes(subject, len(z))), _SIDE)


def prior_samples(subject: Subject) -> Grid:
    """Images decoded from draws of the model's own prior, learnt with it or fitted to its latents."""
    assert subject.draw_prior is not None  # noqa: S101
    z = subject.draw_prior(_SIDE * _SIDE)
    return tile(decode_all(subject, z, chosen_classes(subject, len(z))), _SIDE)


def normal_latents(n: int, latent_dim: int) -> Latents:
    """(n, latent_dim) standard normal numbers, the same each time."""
    return np.random.default_rng(_SEED).standard_normal((n, latent_dim), np.float32)


@dataclass(frozen=True, slots=True)
class Walks:
    """`latents` (R, S, Z): R straight walks of S steps from the mean of one image's posterior to that of another.
    `ends` are the two images of each, (R, 2, H, W, C)."""

    latents: Latents
    ends: NDArray[np.uint8]
    labels: Labels | None  # (R, S): each step has the label of the nearer end


def walks(subject: Subject, rows: int = 8, steps: int = _STEPS) -> Walks:
    """Straight walks between pairs of held-out images."""
    assert subject.pixels is not None  # noqa: S101
    chosen = np.random.default_rng(_SEED).choice(len(subject.pixels), 2 * rows, replace=len(subject.pixels) < 2 * rows)
    images, labels = subject.pixels[chosen], _taken(subject, chosen)
    mean = subject.encode(images, labels)[0].reshape(rows, 2, 1, -1)
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    latents = mean[:, 0] * (1 - share) + mean[:, 1] * share
    if labels is not None:
        labels = np.where(share[:, 0] < 0.5, labels.reshape(rows, 2)[:, :1], labels.reshape(rows, 2)[:, 1:])
    return Walks(latents, images.reshape(rows, 2, *images.shape[1:]), labels)


def interpolations(subject: Subject) -> Image.Image:
    """Each row: an image, the walk to another through latent space, and that other image."""
    found = walks(subject)
    rows, steps, latent_dim = found.latents.shape
    labels = None if found.labels is None else found.labels.ravel()
    drawn = decode_all(subject, found.latents.reshape(-1, latent_dim), labels).reshape(
        rows, steps, *subject.image_shape
    )
    whole = np.concatenate([found.ends[:, :1], drawn, found.ends[:, 1:]], axis=1)
    names = ["image", *(f"{share:.0%}" for share in np.linspace(0, 1, steps)), "image"]
    return labelled(whole.reshape(-1, *subject.image_shape), steps + 2, column_names=names)


@dataclass(frozen=True, slots=True)
class Traversal:
    """`latents` (R, S, Z): row r moves latent `order[r]` over `sigmas` standard deviations and leaves all others at
    the aggregate posterior's mean, at which the middle column is too."""

    latents: Latents
    order: NDArray[np.intp]
    sigmas: NDArray[np.float64]


def traversal(seen: Encoded, most: int = _MOST_TRAVERSED) -> Traversal:
    """The `most` active latents, the most active first."""
    order = np.argsort(-seen.activity, kind="stable")[:most]
    latents = np.tile(seen.centre, (len(order), len(_SIGMAS), 1))
    for row, latent in enumerate(order):
        latents[row, :, latent] += seen.spread[latent] * _SIGMAS.astype(np.float32)
    return Traversal(latents, order, _SIGMAS)


def traversals(subject: Subject) -> Image.Image:
    """A row for each latent, from three standard deviations below its mean to three above."""
    seen = encoded(subject)
    found = traversal(seen)
    flat = found.latents.reshape(-1, subject.latent_dim)
    kind = np.zeros(len(flat), np.int64) if subject.classes else None
    rows = [f"z{latent}, variance {seen.activity[latent]:.2g}" for latent in found.order]
    columns = [f"{sigma:+.0f}σ" if sigma else "mean" for sigma in found.sigmas]
    return labelled(decode_all(subject, flat, kind), len(found.sigmas), rows, columns)


def classes(subject: Subject, columns: int = 10) -> Image.Image:
    """A row of samples for each class of a conditional model; the latents are the same in each row."""
    z = np.tile(normal_latents(columns, subject.latent_dim), (subject.classes, 1))
    wanted = np.repeat(np.arange(subject.classes), columns)
    return labelled(decode_all(subject, z, wanted), columns, row_names=_class_names(subject))


def style_transfer(subject: Subject) -> Image.Image:
    """Each row: a held-out image, then its latents decoded as every class: what the label does not say is kept."""
    assert subject.pixels is not None  # noqa: S101
    assert subject.labels is not None  # noqa: S101
    firsts = [np.flatnonzero(subject.labels == label)[:1] for label in range(subject.classes)]
    chosen = np.concatenate(firsts)
    originals, labels = subject.pixels[chosen], subject.labels[chosen]
    z = np.repeat(subject.encode(originals, labels)[0], subject.classes, axis=0)
    drawn = decode_all(subject, z, np.tile(np.arange(subject.classes), len(chosen)))
    drawn = drawn.reshape(len(chosen), subject.classes, *subject.image_shape)
    whole = np.concatenate([originals[:, None], drawn], axis=1).reshape(-1, *subject.image_shape)
    names = _class_names(subject)
    return labelled(whole, subject.classes + 1, [names[label] for label in labels], ["image", *names])


def _class_names(subject: Subject) -> list[str]:
    named = dict(enumerate(subject.class_names))
    return [named.get(label, str(label)) for label in range(subject.classes)]


def _taken(subject: Subject, chosen: NDArray[np.intp]) -> Labels | None:
    return None if subject.labels is None else subject.labels[chosen]
