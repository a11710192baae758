"""What a model makes of an image, in numbers: how much of it was lost, and how many nats it takes to say it.

Pure numpy, one figure an image; knows neither likelihoods nor graphs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Uint8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Float64s = npt.NDArray[np.float64]


def squared_errors(images: Uint8s, mean: Floats) -> Floats:
    """Mean squared error of each image [N] of [N, H, W, C], over its pixels in [0, 1], from p(x|z)'s `mean` of the same
    shape; the manifest's PSNR is -10 log10 of it."""
    difference = images.astype(np.float32) / np.float32(255) - mean
    errors: Floats = (difference.reshape(len(difference), -1) ** 2).mean(1)
    return errors


def kl_to_standard_normal(mean: Floats, logvar: Floats) -> Float64s:
    """KL(q(z|x) || N(0, I)) [N] in nats, of q = N(mean, exp(logvar)) with both [N, Z]: the sum over latents of
    (mean^2 + exp(logvar) - 1 - logvar) / 2 (Kingma and Welling 2014, appendix B). Infinite if exp(logvar) is."""
    mean, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    with np.errstate(over="ignore"):
        kl: Float64s = 0.5 * (np.square(mean) + np.expm1(logvar) - logvar).sum(1)  # expm1: near 0 both terms cancel
    return kl


def entropy(logvar: Floats) -> Float64s:
    """The differential entropy [N] in nats of a Gaussian with independent latents, logvar [N, Z]: the sum over latents
    of (log(2 pi e) + logvar) / 2 (Cover and Thomas, "Elements of Information Theory", theorem 8.4.1)."""
    nats: Float64s = 0.5 * (math.log(2 * math.pi * math.e) + logvar.astype(np.float64)).sum(1)
    return nats


def log_density(z: Floats, mean: Floats, logvar: Floats) -> Float64s:
    """log q(z|x) [N] in nats of latents [N, Z] under Gaussians with independent latents, mean and logvar [N, Z]."""
    scaled = np.square(z.astype(np.float64) - mean) * np.exp(-logvar.astype(np.float64))
    nats: Float64s = -0.5 * (math.log(2 * math.pi) + logvar + scaled).sum(1, dtype=np.float64)
    return nats
