"""What an imported model does with images: its latents over them, and how well it gives them back.

Without torch; the ELBO and all that wants a likelihood are `latentry evaluate`'s to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentry.manifest import AggregatePosterior
from training.data import Dataset
from training.differences import decibels
from training.errors import ExportError
from training.importing.parity import Pair

MOST_IMAGES = 5000  # of either part: moments and PSNR have settled by then
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """`psnr_db` is that of the means of p(x|z) at the posterior's mean, over all pixels of `images` held-out images;
    `mean_image_db` is that of the mean training image in their place, what a model has to beat."""

    posterior: AggregatePosterior
    psnr_db: float
    mean_image_db: float
    images: int

    def figures(self) -> dict[str, float]:
        """As the manifest's evaluation names them."""
        return {"psnr_db": self.psnr_db, "mean_image_psnr_db": self.mean_image_db, "images": float(self.images)}

    @property
    def note(self) -> str | None:
        """What is to be said of a model that knows nothing of these images; None if it does."""
        if self.psnr_db > self.mean_image_db:
            return None
        return (
            f"reconstructions have {self.psnr_db:.1f} dB, and one mean image in place of them all "
            f"{self.mean_image_db:.1f}: the model is of other images, or one of --range, --layout, --posterior and "
            "--decoder-output is wrong"
        )


def measure(pair: Pair, dataset: Dataset) -> Measured:
    """Encode at most `MOST_IMAGES` images of each part. Raises `ExportError` if what comes out is not finite."""
    train, test = dataset.train.spread(MOST_IMAGES).pixels, dataset.test.spread(MOST_IMAGES).pixels
    encoded = np.concatenate([pair.encode(images)[0] for images in _batches(train)]).astype(np.float64)
    mean, variance = encoded.mean(0), encoded.var(0)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise ExportError("encoder: got latents that are not finite for real images, wanted numbers")
    average = train.mean(0) / 255
    error = plain = 0.0
    for images in _batches(test):
        x = images / 255
        error += float(np.square(pair.decode(pair.encode(images)[0])[1] - x).sum())
        plain += float(np.square(average - x).sum())
    moments = AggregatePosterior(tuple(mean.tolist()), tuple(variance.tolist()))
    return Measured(moments, decibels(error / test.size), decibels(plain / test.size), len(test))


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), _BATCH):
        yield np.ascontiguousarray(images[start : start + _BATCH])
