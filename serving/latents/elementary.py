"""Functions of numbers whose bits are the same on every machine. Knows neither noise nor paths.

Libraries' log, sin and arctan differ in the last bit between processors' vector units, C libraries and even places in
an array. These use only what IEEE 754 rounds correctly: addition, multiplication, division and the square root, each
by itself, in an order that is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

_LOG_2 = 0.6931471805599453
_LOG = tuple(2.0 / n for n in range(23, 0, -2))  # 2 artanh(s) / s in powers of s^2
_SIN = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(12, -1, -1))  # sin(x) / x in powers of x^2
_ARCTAN = tuple((-1.0) ** n / (2 * n + 1) for n in range(12, -1, -1))  # arctan(x) / x in powers of x^2
_HALVINGS = 3  # of the angle, after which its tangent is below 0.2


def polynomial(coefficients: Sequence[float], x: Float64s) -> Float64s:
    """By Horner's rule, the coefficient of the highest power first."""
    total = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= x
    total += coefficients[-1]
    return total


def dot(a: Float64s, b: Float64s) -> Float64s:
    """Sums of products along the last axis, added from the first to the last (`sum` and `@` choose their own order)."""
    total: Float64s = np.cumsum(a * b, axis=-1)[..., -1]
    return total


def log(x: Float64s) -> Float64s:
    """The natural logarithm of x above 0, by log m = 2 artanh((m - 1) / (m + 1)); error below 1e-15."""
    mantissa, exponent = np.frexp(x)  # mantissa in [0.5, 1)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return s * polynomial(_LOG, s * s) + exponent * _LOG_2


def sin(x: Float64s) -> Float64s:
    """The sine of x from 0 to pi, by its Taylor series; error below 3e-16."""
    folded = np.minimum(x, math.pi - x)
    return folded * polynomial(_SIN, folded * folded)


def arctan(x: Float64s) -> Float64s:
    """The angle whose tangent is x, by its Taylor series at an eighth of the angle; error below 1e-15."""
    for _ in range(_HALVINGS):
        x = x / (1.0 + np.sqrt(1.0 + x * x))
    return 2.0**_HALVINGS * (x * polynomial(_ARCTAN, x * x))
