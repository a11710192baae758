"""log p(x|z) of images, in nats, from what a decoder's graph gives: its `mean`, or its `parameters` where the mean and
the manifest's numbers do not determine p(x|z).

The formulas are those that models are trained with, rearranged where that saves a logarithm, in float64: images score
the same here as in training's float32, give or take its rounding. Pure numpy; knows neither graphs nor messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from latentry.manifest import Likelihood

Uint8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Float64s = npt.NDArray[np.float64]

PARAMETERS_PER_CHANNEL: Mapping[str, int] = {
    "gaussian-predicted": 2,
    "continuous-bernoulli": 1,
    "discretised-logistic": 1,
}
"""Numbers that the decoder's `parameters` [N, H, W, C * numbers] hold, of the likelihoods that are told by them."""

_NUMBERS = {"gaussian": "sigma", "gaussian-fixed": "variance", "laplace": "scale", "discretised-logistic": "scale"}
_LEAST, _MOST = 1e-9, 1e9  # pixel values are in [0, 1]: no number that measures their spread lies outside
_BLOCK = 1 << 13  # values scored at a time: arrays this small lie in the cache, and their pages are not new each time

_RESOLUTION = 2.0**-24  # of float32 just below 1: what a graph's mean cannot tell from 0 or 1
_LEVEL = 1 / 255
_VARIANCE_FLOOR, _PRECISION_FLOOR = _LEVEL**2, math.exp(-2)  # gaussian-predicted: a sigma of one grey level to e


def outputs(likelihood: Likelihood, has_parameters: bool) -> Literal["mean", "parameters"] | None:
    """Which output of the decoder `log_prob` needs; None if log p(x|z) cannot be told: the likelihood's name is not
    known (a model from elsewhere may have any), its number is missing or out of range, or it is told by `parameters`
    and the decoder has none.
    """
    name = likelihood.name
    if name not in _SCORES:
        return None
    if name in _NUMBERS and not _LEAST < likelihood.parameters.get(_NUMBERS[name], 0.0) < _MOST:
        return None
    if name not in PARAMETERS_PER_CHANNEL:
        return "mean"
    return "parameters" if has_parameters else None


def log_prob(likelihood: Likelihood, images: Uint8s, output: Floats) -> Float64s:
    """log p(x|z) [N] of images [N, H, W, C] as x = pixels / 255, summed over pixels and channels, for the decoder's
    `output` [N, H, W, C or more]: the one that `outputs` says, which is not to be None.

    Binary likelihoods give grey images the expectation of log p over binarised ones, white with probability x.
    What is finite scores finitely. Raises `ValueError` if `output` has not the shape that the likelihood wants.
    """
    n, height, width, channels = images.shape
    wanted = (n, height, width, channels * PARAMETERS_PER_CHANNEL.get(likelihood.name, 1))
    if output.shape != wanted:
        raise ValueError(f"{likelihood.name}: got a decoder's output {list(output.shape)}, wanted {list(wanted)}")
    score = _SCORES[likelihood.name]
    number = float(likelihood.parameters[_NUMBERS[likelihood.name]]) if likelihood.name in _NUMBERS else 1.0
    pixels, decoded = images.reshape(n, height * width, channels), output.reshape(n, height * width, wanted[3])
    total = np.zeros(n)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # exp of large logits is inf; NaN in, NaN out
        for block in _blocks(n, height * width, channels):
            x = np.divide(pixels[block], 255, dtype=np.float64)
            total[block[0]] += score(x, decoded[block].astype(np.float64), number).sum((1, 2))
    return total


def _blocks(n: int, pixels: int, channels: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of their pixels: many whole images at a time, or part of one."""
    at_once = max(1, _BLOCK // channels)
    rows = max(1, at_once // pixels)
    for first in range(0, n, rows):
        for start in range(0, pixels, at_once):
            yield slice(first, first + rows), slice(start, start + at_once)


# ---- log p of each value: x [N, P, C] in [0, 1], the decoder's output [N, P, C or 2 C], the manifest's number --------


def _bernoulli(x: Float64s, mean: Float64s, _: float) -> Float64s:
    """The mean is kept from 0 and 1 by float32's resolution, as in training: no value costs more than 16.6 nats."""
    mean = np.clip(mean, _RESOLUTION, 1 - _RESOLUTION)
    return x * np.log(mean) + (1 - x) * np.log1p(-mean)


def _continuous_bernoulli(x: Float64s, logits: Float64s, _: float) -> Float64s:
    """exp(t x) t / (exp(t) - 1) for logits t (Loaiza-Ganem & Cunningham 2019), with s = |t|; 0/0 at 0 is a limit."""
    s = np.maximum(np.abs(logits), 1e-12)
    return logits * (x - (logits > 0)) - np.log(-np.expm1(-s) / s)


def _gaussian(x: Float64s, mean: Float64s, sigma: float) -> Float64s:
    return -0.5 * np.square((x - mean) / sigma) - math.log(sigma * math.sqrt(2 * math.pi))


def _gaussian_fixed(x: Float64s, mean: Float64s, variance: float) -> Float64s:
    return _gaussian(x, mean, math.sqrt(variance))


def _gaussian_predicted(x: Float64s, parameters: Float64s, _: float) -> Float64s:
    """The first C parameters of a pixel are the logits of its means, the C after them log-variances r, softly bounded:
    with floor f and ceiling c, f + softplus(c - softplus(c - r) - f) = log(exp(f) + 1 / (exp(-c) + exp(-r)))."""
    logits, raw = parameters[..., : x.shape[2]], parameters[..., x.shape[2] :]
    variance = _VARIANCE_FLOOR + 1 / (_PRECISION_FLOOR + np.exp(-raw))
    squares = np.square(x - 1 / (1 + np.exp(-logits)))
    return -0.5 * (squares / variance + np.log(2 * math.pi * variance))


def _laplace(x: Float64s, mean: Float64s, scale: float) -> Float64s:
    return -np.abs(x - mean) / scale - math.log(2 * scale)


def _discretised_logistic(x: Float64s, output: Float64s, scale: float) -> Float64s:
    """P(level) = F(b) (1 - F(a)) (1 - exp(a - b)) for a bin from a to b, in scales from the location 1/2 + output / 4;
    F is the sigmoid, and the first and the last bin reach to infinity (Kingma et al. 2016, section 4)."""
    centred, half = (x - 0.5 - output / 4) / scale, 0.5 * _LEVEL / scale
    low, high = -centred - half, centred - half
    np.copyto(low, -np.inf, where=x == 1)
    np.copyto(high, -np.inf, where=x == 0)
    # log of 1 / (F(b) (1 - F(a))): two softplus with one logarithm
    cost = np.maximum(low, 0) + np.maximum(high, 0) + np.log((1 + np.exp(-np.abs(low))) * (1 + np.exp(-np.abs(high))))
    log_p: Float64s = math.log(-math.expm1(-2 * half)) * ((x > 0) & (x < 1)) - cost
    return log_p


_SCORES: Mapping[str, Callable[[Float64s, Float64s, float], Float64s]] = {
    "bernoulli": _bernoulli,
    "continuous-bernoulli": _continuous_bernoulli,
    "discretised-logistic": _discretised_logistic,
    "gaussian": _gaussian,
    "gaussian-fixed": _gaussian_fixed,
    "gaussian-predicted": _gaussian_predicted,
    "laplace": _laplace,
}
