"""Whether live traffic still looks like what the model was trained on.

`Drift` keeps the running moments of the encoded means and holds them against those of the training set;
`Reconstruction` chooses some of the encoded images to be decoded again and measures how much of them was lost.
Both are for the event loop's thread alone. Knows nothing of graphs, queues or metrics: figures go to a callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentry.manifest import AggregatePosterior
from serving.scores import squared_errors

Floats = npt.NDArray[np.floating[Any]]
Uint8s = npt.NDArray[np.uint8]

# A latent whose mean varies by less than this over a data set is unused (Burda et al., "Importance Weighted
# Autoencoders", 2016); its posterior is the prior's, and the decoder sees noise of variance 1 in its place.
UNUSED_VARIANCE = 0.01
_GATHERED = 64  # rows that are merged at once: moments of one row at a time would cost as much as its inference


@dataclass(frozen=True, slots=True)
class Figures:
    """How far live traffic is from the training set. For the same data: 0, 0 and 1, give or take chance.

    `nats` is KL(live || training) of diagonal Gaussians with the moments of the encoded means, summed over latents.
    `mean_shift` is the root mean square over latents of the shift of the mean in training standard deviations.
    `variance_ratio` is the geometric mean over latents of live variance by training variance.

    Both sides are blurred by `UNUSED_VARIANCE` first. What is smaller than that means nothing to the decoder, but
    divided by the tiny training variance of an unused latent it would drown the rest; a latent that was unused and
    is no longer still counts in full. Blurring can only lower a KL divergence (data processing inequality).
    """

    nats: float
    mean_shift: float
    variance_ratio: float


def compare(mean: Floats, variance: Floats, training: AggregatePosterior) -> Figures:
    """Live moments [Z] against the manifest's.

    With v + 0.01 written v: KL = sum of (v1 / v0 + (m1 - m0)^2 / v0 - 1 - log(v1 / v0)) / 2, the divergence of two
    Gaussians (Kingma and Welling 2014, appendix B, has the case m0 = 0, v0 = 1). From n items of the training
    set's own distribution it comes out at about Z / n nats instead of 0.
    """
    ratio = (variance + UNUSED_VARIANCE) / (np.asarray(training.variance) + UNUSED_VARIANCE)
    shift = (mean - np.asarray(training.mean)) ** 2 / (np.asarray(training.variance) + UNUSED_VARIANCE)
    nats = 0.5 * float(np.sum(ratio + shift - 1 - np.log(ratio)))
    nats = float(np.maximum(nats, 0.0))  # rounding; Python's own `max` would make 0 of NaN
    return Figures(nats, float(np.sqrt(shift.mean())), float(np.exp(np.log(ratio).mean())))


class Drift:
    """Exponentially weighted moments of the encoded means: an item counts half as much as one `half_life` later.

    Weights are normalised by their sum and the variance by what estimating the mean takes off it, so that early
    values are as unbiased as late ones. Items that come together weigh the same, whatever their order. Nothing is
    reported before `least` items were seen, and then each time that about 64 more have come.
    """

    def __init__(
        self,
        training: AggregatePosterior,
        report: Callable[[Figures], object],
        *,
        half_life: float = 10_000,
        least: int = 256,
    ) -> None:
        self._training = training
        self._report = report
        self._decay = 0.5 ** (1 / half_life)
        self._least = least
        self._gathered: list[Floats] = []
        self._gathered_rows = 0
        self._seen = 0
        self._weight = self._weight_of_squares = 0.0  # sums of the weights and of their squares
        self._mean = np.zeros(len(training.mean))
        self._squares = np.zeros(len(training.mean))  # weighted sum of squared distances from the mean

    def observe(self, mean: Floats) -> None:
        """Encoded means [N, Z] of one call."""
        self._gathered.append(mean)
        self._gathered_rows += len(mean)
        if self._gathered_rows < _GATHERED:
            return
        rows = np.concatenate(self._gathered).astype(np.float64)
        self._gathered, self._gathered_rows = [], 0
        rows = rows[np.isfinite(rows).all(1)]  # one NaN would stay for ever
        if len(rows):
            self._merge(rows)
        if self._seen >= self._least:
            self._report(self.figures())

    def figures(self) -> Figures:
        """The comparison as it stands; needs two items at least."""
        freedom = self._weight - self._weight_of_squares / self._weight
        return compare(self._mean, self._squares / freedom, self._training)

    def _merge(self, rows: Floats) -> None:
        """Add `rows` [N, Z], each with the mean of the weights that N items in a row would have.

        Moments are merged as Chan, Golub and LeVeque do ("Updating Formulae", 1979), which loses no digits where the
        mean is large beside the spread.
        """
        n = len(rows)
        faded = self._decay**n
        added = (1 - faded) / (1 - self._decay)
        mean = rows.mean(0)
        before = self._weight * faded
        self._weight = before + added
        self._weight_of_squares = self._weight_of_squares * faded**2 + added**2 / n
        distance = mean - self._mean
        self._mean += distance * (added / self._weight)
        spread = ((rows - mean) ** 2).sum(0) * (added / n)
        self._squares = self._squares * faded + spread + distance**2 * (before * added / self._weight)
        self._seen += n


class Reconstruction:
    """Chooses a `share` of the encoded images and measures what the model loses of them.

    The choice is the same for the same sequence of images: image k if the fractional part of k times the golden ratio
    is below `share`. So the share is kept evenly, and no regular pattern of traffic hides from it as it could from
    every hundredth.
    """

    _GOLDEN = 0x9E3779B97F4A7C15  # (sqrt(5) - 1) / 2 of 2^64
    _CYCLE = 1 << 64

    def __init__(self, share: float, report: Callable[[float], object]) -> None:
        self._threshold = round(share * self._CYCLE)
        self._report = report
        self._next = 0

    def pick(self, n: int) -> list[int]:
        """Which of the next `n` images to decode again, ascending; mostly none."""
        first, self._next = self._next, (self._next + n) % self._CYCLE
        if not self._threshold:
            return []
        return [i for i in range(n) if (first + i) * self._GOLDEN % self._CYCLE < self._threshold]

    def observe(self, images: Uint8s, reconstructed: Floats) -> None:
        """Pixels [K, H, W, C] that were encoded, and the decoder's mean of p(x|z) at their encoded means, in [0, 1]."""
        for error in squared_errors(images, reconstructed):
            if math.isfinite(error):
                self._report(float(error))
