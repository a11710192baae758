"""Distances between images that see what a sum over pixels does not: blur, and where it is.

All take a and b (N, C, H, W) in [0, 1] and give (N,), with a gradient. Knows nothing of likelihoods.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # Burt & Adelson 1983
_COARSEST = 4  # pixels of the smaller side of the last level of a pyramid
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
_LEAST_SIMILARITY = 1e-3  # a scale's similarity can be negative, and its root is steep at 0


def distance(name: str, a: Tensor, b: Tensor) -> Tensor:
    """The distance that configs call `laplacian` or `ms-ssim`."""
    return laplacian(a, b) if name == "laplacian" else 1 - multi_scale_ssim(a, b)


def laplacian(a: Tensor, b: Tensor) -> Tensor:
    """The L1 distance of the Laplacian pyramids, where level j weighs 2^(2j): so every level counts as much, though it
    has a quarter of the pixels of the one before (Bojanowski et al. 2018, section 3.2). A sum over pixels."""
    rest = a - b  # the pyramid is linear: that of the difference is the difference of the two
    total, weight = rest.new_zeros(len(rest)), 1.0
    while min(rest.shape[2:]) > _COARSEST:
        low = _blur(rest)
        total = total + weight * (rest - low).abs().flatten(1).sum(1)
        rest, weight = functional.avg_pool2d(low, 2, ceil_mode=True), weight * 4
    return total + weight * rest.abs().flatten(1).sum(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, 1 for like images (Wang et al. 2004): a Gaussian window of 11x11 pixels and sigma 1.5,
    only where it lies within the image, a mean over pixels and channels. Images smaller than 11 get a smaller one."""
    luminance, structure = _similarities(a, b)
    return (luminance * structure).flatten(1).mean(1)


def multi_scale_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity at several scales (Wang, Simoncelli & Bovik 2003): contrast and structure at each,
    luminance at the coarsest. Of their five scales as many as leave the window room, the weights' sum kept at 1."""
    weights = _SCALE_WEIGHTS[: _scales(min(a.shape[2:]))]
    product = a.new_ones(len(a))
    for scale, weight in enumerate(weights):
        luminance, structure = _similarities(a, b)
        last = scale + 1 == len(weights)
        similarity = (luminance * structure if last else structure).flatten(1).mean(1)
        product = product * similarity.clamp_min(_LEAST_SIMILARITY) ** (weight / sum(weights))
        if not last:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return product


def _scales(side: int) -> int:
    """How many times, counting the first, a side can be halved and still hold the window: 2 for 28, 3 for 64."""
    return max(1, min(len(_SCALE_WEIGHTS), 1 + int(math.log2(max(side / _WINDOW, 1)))))


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at each place of the window: each (N, C, h, w)."""
    mean_a, mean_b, square_a, square_b, product = _windowed(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a.square() + mean_b.square() + _K1**2)
    return luminance, (2 * covariance + _K2**2) / (variances + _K2**2)


def _windowed(x: Tensor) -> Tensor:
    side = min(_WINDOW, *x.shape[2:])
    side -= 1 - side % 2  # an odd window has a centre
    places = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    taps = torch.exp(-0.5 * (places / _SIGMA).square())
    return _separable(x, taps / taps.sum())


def _blur(x: Tensor) -> Tensor:
    taps = torch.tensor(_BINOMIAL, dtype=x.dtype, device=x.device)
    edge = len(_BINOMIAL) // 2
    return _separable(functional.pad(x, (edge,) * 4, mode="replicate"), taps)


def _separable(x: Tensor, taps: Tensor) -> Tensor:
    """x (N, C, H, W) under the window taps·tapsᵀ, where that lies within x. As matrix products, which at the sides of
    images that VAEs are trained on are several times as quick on a CPU as convolutions of single planes."""
    return _band(taps, x.shape[2]) @ x @ _band(taps, x.shape[3]).T


def _band(taps: Tensor, side: int) -> Tensor:
    """The matrix that moves the taps along a line of `side` pixels: (side - len(taps) + 1, side)."""
    places = side - len(taps) + 1
    return torch.stack([functional.pad(taps, (place, places - 1 - place)) for place in range(places)])
