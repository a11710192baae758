"""Latent vectors from seeds and from key frames. Pure numpy; knows neither models nor requests.

The noise is addressable: vector k of a seed is a function of (seed, k, dimensions) alone, whatever else is drawn beside
it. Counter-based generation (Philox 4x64-10, Salmon et al. 2011, whose raw output numpy keeps stable) gives the bits;
each normal number takes exactly one 64-bit word, through the inverse of the normal distribution function. That
function is written here in additions, multiplications, divisions and square roots, which IEEE 754 rounds correctly,
and no library's log or cos: so every machine draws the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

MAX_SEED = 2**64 - 1
MAX_INDEX = 2**63 - 1

_WORDS_PER_COUNT = 4  # 64-bit words that one increment of Philox's counter gives

# Wichura (1988), Algorithm AS 241, PPND16: relative accuracy about 1e-16. Highest power first.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def standard_normals(seed: int, first: int, count: int, dim: int) -> Float32s:
    """The vectors first .. first + count - 1 of `seed`: float32 [count, dim], independent N(0, 1) numbers.

    `seed` is 0 to 2^64 - 1, `first` 0 to 2^63 - 1.
    """
    counts_per_vector = -(-dim // _WORDS_PER_COUNT)
    start = first * counts_per_vector
    limbs = [(start >> (64 * i)) & MAX_SEED for i in range(4)]
    philox = np.random.Philox(counter=np.array(limbs, np.uint64), key=np.array([seed, 0], np.uint64))
    words = philox.random_raw(count * counts_per_vector * _WORDS_PER_COUNT)
    words = words.reshape(count, -1)[:, :dim]
    uniforms = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1), symmetric about a half
    return normal_quantile(uniforms).astype(np.float32)


def normal_quantile(p: Float64s) -> Float64s:
    """The z with P(N(0, 1) <= z) = p, for p strictly between 0 and 1 (AS 241, PPND16)."""
    q = p - 0.5
    r = 0.180625 - q * q
    z = q * _ratio(_CENTRE, r)
    tails = r < 0.0
    if tails.any():
        q, p = q[tails], p[tails]
        r = np.sqrt(-_log(np.where(q < 0.0, p, 1.0 - p)))
        magnitude = np.where(r <= 5.0, _ratio(_MIDDLE, r - 1.6), _ratio(_FAR, r - 5.0))
        z[tails] = np.copysign(magnitude, q)
    return z


def linear_path(keys: Float32s, steps: int) -> Float32s:
    """Straight lines through key frames [K, Z], `steps` points from each to the next, both included.

    Returns [(K - 1) * (steps - 1) + 1, Z]; the key frames themselves are in it unchanged.
    """
    return _path(keys, steps, lambda a, b, t: (1.0 - t) * a + t * b)


def spherical_path(keys: Float32s, steps: int) -> Float32s:
    """As `linear_path`, along great circles (slerp: Shoemake 1985; White 2016 for latents).

    Directions follow the circle, lengths the straight way from one to the other. Key frames that point the same way,
    or are zero, are joined by the straight line, slerp's limit. Raises
    `ValueError` with the index of the first of two neighbours that point in opposite ways: no circle is theirs alone.
    """
    directions = keys.astype(np.float64)
    norms = np.sqrt((directions * directions).sum(axis=1))
    for i in range(len(keys) - 1):
        product = norms[i] * norms[i + 1]
        if product > 0 and float(directions[i] @ directions[i + 1]) <= -product * (1 - 1e-6):
            raise ValueError(i)
    return _path(keys, steps, _slerp)


def _slerp(a: Float64s, b: Float64s, t: Float64s) -> Float64s:
    length_a, length_b = math.sqrt(float(a @ a)), math.sqrt(float(b @ b))
    straight = (1.0 - t) * a + t * b
    if length_a == 0.0 or length_b == 0.0:
        return straight
    angle = math.acos(min(1.0, max(-1.0, float(a @ b) / (length_a * length_b))))
    if math.sin(angle) < 1e-6:
        return straight
    direction = (np.sin((1.0 - t) * angle) * (a / length_a) + np.sin(t * angle) * (b / length_b)) / math.sin(angle)
    return ((1.0 - t) * length_a + t * length_b) * direction


def _path(keys: Float32s, steps: int, between: Callable[[Float64s, Float64s, Float64s], Float64s]) -> Float32s:
    t = np.linspace(0.0, 1.0, steps)[:-1, None]
    wide = keys.astype(np.float64)
    legs = [between(a, b, t) for a, b in itertools.pairwise(wide)]
    path = np.concatenate([*legs, wide[-1:]]).astype(np.float32)
    path[:: steps - 1] = keys
    return path


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64s) -> Float64s:
    above, below = coefficients
    return _polynomial(above, x) / _polynomial(below, x)


def _polynomial(coefficients: tuple[float, ...], x: Float64s) -> Float64s:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total


def _log(x: Float64s) -> Float64s:
    """Natural logarithm by log m = 2 artanh((m - 1) / (m + 1)), for the same bits everywhere; error below 1e-15."""
    mantissa, exponent = np.frexp(x)  # mantissa in [0.5, 1)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(tuple(2.0 / n for n in range(23, 0, -2)), s * s)
    return s * series + exponent * math.log(2.0)
