"""How far apart two arrays of numbers are. Loads no torch, as imports make do without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_ERROR = 1e-12  # what is the same in every pixel has 120 dB rather than infinitely many


def largest(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference of two values; infinity if any is NaN."""
    return _nan_is_infinite(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max())


def relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest |difference| / (1 + |wanted|); infinity if any is NaN."""
    return _nan_is_infinite((np.abs(got.astype(np.float64) - wanted) / (1 + np.abs(wanted))).max())


def decibels(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of pixel values in [0, 1]."""
    return -10 * math.log10(max(mean_squared_error, _LEAST_ERROR))


def _nan_is_infinite(value: float) -> float:
    """max() may lose a NaN; it never loses an infinity."""
    return float("inf") if np.isnan(value) else float(value)
