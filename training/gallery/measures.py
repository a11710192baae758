"""Figures that compare images with images: PSNR and sharpness. Knows nothing of models."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def psnr_db(images: Pixels, wanted: Pixels) -> float:
    """Peak signal to noise ratio over all pixels, in dB."""
    error = np.square(images.astype(np.float64) - wanted).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def mean_absolute_error(images: Pixels, wanted: Pixels) -> float:
    """In grey levels of 255."""
    return float(np.abs(images.astype(np.float64) - wanted).mean())


def sharpness(images: Pixels) -> float:
    """The mean square of the discrete Laplacian, in squared grey levels: the energy of edges and fine detail."""
    x = images.astype(np.float64)
    middle = x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float(np.square(around - 4 * middle).mean())
