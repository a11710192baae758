"""One attribute, from estimate to test: which direction, how far along it, and whether a judge then sees it.

    fit part     -> directions, judges
    choose part  -> the direction and the amount that do it
    test part    -> the figures: images that nothing was fitted to or chosen on

A judge looks at pixels: an edited latent is decoded first. `linear` is a linear probe of what the encoder makes of
them; `picture`, where there is one, has never seen a latent. Knows nothing of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.attributes import directions, probe
from training.attributes.directions import Direction
from training.attributes.probe import Probe
from training.errors import DataError

AMOUNTS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
GOAL = 0.9  # of the edits on the choose part: the least amount, and the plainest direction, that reaches it is taken
_MOST_TRIED = 200  # images with the attribute, and as many without, that an amount is tried on
_LEAST = {"fit": 20, "choose": 5, "test": 5}  # images with the attribute, and without
_WITHIN = 0.95  # of the images to fit to lie inside what counts as the latents' own region
_STAY = 0.9  # of the edited latents that must stay there
_FARTHEST, _STEP = 10.0, 0.05

Latents = NDArray[np.float32]  # (N, Z)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Images as their posterior means: `latents` (N, Z), `has` (N, A) with 1, 0 or -1 for unknown, and the classes
    (N,) that a conditional model was told."""

    latents: Latents
    has: NDArray[np.int8]
    labels: NDArray[np.int64] | None = None

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Encoded:
        return Encoded(self.latents[chosen], self.has[chosen], None if self.labels is None else self.labels[chosen])

    def those(self, column: int, value: int, most: int | None = None) -> Encoded:
        """The images of which that is known, at most so many of them, evenly spread."""
        found = np.flatnonzero(self.has[:, column] == value)
        if most is not None and len(found) > most:
            found = found[np.linspace(0, len(found) - 1, most).astype(np.intp)]
        return self.take(found)


Pixels = NDArray[np.uint8]  # (N, H, W, C)
Labels = NDArray[np.int64] | None
Judge = Callable[[Pixels, Labels], NDArray[np.bool_]]  # whether each image shows the attribute


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts of the images, the pixels (N, H, W, C) of the last, and the decoder: latents, and the classes if
    there are any, to pixels."""

    fit: Encoded
    choose: Encoded
    test: Encoded
    test_pixels: Pixels
    decode: Callable[[Latents, Labels], Pixels]


@dataclass(frozen=True, slots=True)
class Attribute:
    """`way` is how `direction` was estimated, `figures` what was measured on the test part. Times `amount` it adds the
    attribute, times -`amount` it removes it."""

    name: str
    way: str
    direction: Direction
    amount: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Edits:
    """Shares of edits that a judge sees."""

    added: float
    removed: float


def study(name: str, column: int, parts: Parts, judges: Mapping[str, Judge]) -> Attribute:
    """The attribute of `column`, whose direction and amount are chosen by the last of the `judges`."""
    *_, chooser = judges.values()
    way, direction, amount = _chosen(parts, column, chooser)
    known = np.flatnonzero(parts.test.has[:, column] >= 0)
    test, pixels = parts.test.take(known), parts.test_pixels[known]
    truth = test.has[:, column] == 1
    unedited = parts.decode(test.latents, test.labels)
    edits = _edits(test, column, judges, amount * direction, parts)
    figures = {"amount": amount, "amount_limit": max(amount, limit(parts.fit, column, direction))}
    for judge, says in judges.items():
        right, drawn = says(pixels, test.labels) == truth, says(unedited, test.labels)
        figures |= {
            f"{judge}_accuracy": float(right.mean()),
            f"{judge}_balanced_accuracy": float((right[truth].mean() + right[~truth].mean()) / 2),
            f"{judge}_accuracy_decoded": float((drawn == truth).mean()),
            f"{judge}_kept": float(drawn[truth].mean()),  # of images with it; removing what is not drawn is no feat
            f"{judge}_added": edits[judge].added,
            f"{judge}_removed": edits[judge].removed,
        }
    figures |= {"test_images_with": float(truth.sum()), "test_images_without": float((~truth).sum())}
    return Attribute(name, way, direction, amount, figures)


def fit_probe(name: str, column: int, parts: Parts) -> Probe:
    """A probe for the attribute of `column`. Raises `DataError` if too few images have it, or are without it."""
    for part, least in _LEAST.items():
        has = getattr(parts, part).has[:, column]
        for value, what in ((1, "with"), (0, "without")):
            if (count := int((has == value).sum())) < least:
                raise DataError(f"{name}: got {count} images {what} it to {part}, wanted at least {least}")
    fitted, choosing = (part.take(part.has[:, column] >= 0) for part in (parts.fit, parts.choose))
    to_choose = (choosing.latents, choosing.has[:, column] == 1)
    return probe.fit(fitted.latents, fitted.has[:, column] == 1, to_choose)


def limit(fit: Encoded, column: int, direction: Direction) -> float:
    """The largest amount that leaves nine of ten edited latents no farther from the mean of all than the 95th of 100
    images is, measured by the latents' covariance. Well beyond it a decoder draws what it has never learnt to."""
    z = fit.latents.astype(np.float64)
    covariance = np.atleast_2d(np.cov(z, rowvar=False))
    covariance += np.eye(len(covariance)) * 1e-6 * np.trace(covariance) / len(covariance)  # latents that say nothing
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    radius = np.quantile(np.linalg.norm((z - z.mean(0)) @ whiten, axis=1), _WITHIN)
    sides = [(fit.those(column, value, 1000).latents - z.mean(0)) @ whiten for value in (0, 1)]
    step = direction @ whiten
    reached = 0.0
    for amount in np.arange(_STEP, _FARTHEST + _STEP / 2, _STEP):
        edited = np.concatenate([sides[0] + amount * step, sides[1] - amount * step])
        if (np.linalg.norm(edited, axis=1) <= radius).mean() < _STAY:
            break
        reached = round(float(amount), 2)
    return reached


def _chosen(parts: Parts, column: int, judge: Judge) -> tuple[str, Direction, float]:
    """The first direction and the least amount that reach the goal on the choose part, or else the best."""
    best, found = -1.0, None
    for way, direction in directions.candidates(parts.fit.latents, parts.fit.has, column).items():
        for amount in AMOUNTS:
            edits = _edits(parts.choose, column, {"": judge}, amount * direction, parts, _MOST_TRIED)[""]
            worse = min(edits.added, edits.removed)
            if worse > best:
                best, found = worse, (way, direction, amount)
            if worse >= GOAL:
                return way, direction, amount
    assert found is not None  # noqa: S101 - a share is above -1
    return found


def _edits(
    part: Encoded,
    column: int,
    judges: Mapping[str, Judge],
    step: Direction,
    parts: Parts,
    most: int | None = None,
) -> dict[str, _Edits]:
    """What the judges say of images without the attribute moved by `step`, and of images with it moved back."""
    without, having = part.those(column, 0, most), part.those(column, 1, most)
    with_it = parts.decode((without.latents + step).astype(np.float32), without.labels)
    rid_of_it = parts.decode((having.latents - step).astype(np.float32), having.labels)
    return {
        name: _Edits(float(says(with_it, without.labels).mean()), float((~says(rid_of_it, having.labels)).mean()))
        for name, says in judges.items()
    }
