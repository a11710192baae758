"""Normal noise from seeds. Pure numpy; knows neither models nor requests.

The noise is addressable: vector k of a seed is a function of (seed, k, dimensions) alone, whatever else is drawn beside
it. Counter-based generation (Philox 4x64-10, Salmon et al. 2011, whose raw output numpy keeps stable) gives the bits;
each normal number takes exactly one 64-bit word, through the inverse of the (truncated) normal distribution function.
That function is written here in additions, multiplications, divisions and square roots, which IEEE 754 rounds
correctly, and no library's log or cos: so every machine draws the same bits.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from serving.latents.elementary import Float64s, log, polynomial

Float32s = npt.NDArray[np.float32]

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
    return standard(uniforms(seed, first, count, dim))


def truncated_normals(seed: int, first: int, count: int, dim: int, bound: float, clamp: bool) -> Float32s:
    """As `standard_normals`, from the same words, but within -bound to bound, where `bound` is a float32, 0.01 to 10.

    With `clamp`, numbers beyond the bound become the bound and the others stay. Without, each is the inverse of the
    truncated normal distribution's function at its word, as if it had been drawn again until within: P(|z| <= x) =
    P(|N(0, 1)| <= x) / P(|N(0, 1)| <= bound).
    """
    return truncated(uniforms(seed, first, count, dim), bound, clamp)


def standard(u: Float64s) -> Float32s:
    """The standard normal number of each of `uniforms`, each by itself: those of several seeds may go together."""
    return normal_quantile(u).astype(np.float32)


def truncated(u: Float64s, bound: float, clamp: bool) -> Float32s:
    """The same within -bound to bound, as `truncated_normals` says."""
    limit = np.float32(bound)
    if clamp:
        return np.clip(standard(u), -limit, limit)
    beyond = _below(-float(limit))
    # The nearer tail's probability: a number close to 1 would keep less of it.
    z = normal_quantile(beyond + np.minimum(u, 1.0 - u) * (1.0 - 2.0 * beyond))
    return np.clip(np.copysign(z, u - 0.5).astype(np.float32), -limit, limit)


def normal_quantile(p: Float64s) -> Float64s:
    """The z with P(N(0, 1) <= z) = p, for p strictly between 0 and 1 (AS 241, PPND16)."""
    q = p - 0.5
    r = 0.180625 - q * q
    z = q * _ratio(_CENTRE, r)
    tails = r < 0.0
    if tails.any():
        q, p = q[tails], p[tails]
        r = np.sqrt(-log(np.where(q < 0.0, p, 1.0 - p)))
        magnitude = _ratio(_MIDDLE, r - 1.6)
        far = r > 5.0  # one in 36 thousand million
        if far.any():
            magnitude[far] = _ratio(_FAR, r[far] - 5.0)
        z[tails] = np.copysign(magnitude, q)
    return z


def uniforms(seed: int, first: int, count: int, dim: int) -> Float64s:
    """One number in (0, 1) from each 64-bit word, [count, dim]."""
    counts_per_vector = -(-dim // _WORDS_PER_COUNT)
    start = first * counts_per_vector
    limbs = [(start >> (64 * i)) & MAX_SEED for i in range(4)]
    philox = np.random.Philox(counter=np.array(limbs, np.uint64), key=np.array([seed, 0], np.uint64))
    words_per_vector = counts_per_vector * _WORDS_PER_COUNT
    words = philox.random_raw(count * words_per_vector).reshape(count, words_per_vector)[:, :dim]
    return _unit(words)


def _unit(words: npt.NDArray[np.uint64]) -> Float64s:
    """The middles of 2^53 equal parts of (0, 1); those above a half are rounded to a neighbouring edge, 1 excluded."""
    middles = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.minimum(middles, 1.0 - 2.0**-53)


@functools.lru_cache(maxsize=1024)
def _below(z: float) -> float:
    """P(N(0, 1) <= z) for z from -10 to 0: where `normal_quantile` is z, found by cutting an interval again and again.

    Takes about a millisecond; relative error below 1e-13.
    """
    low, high = 0.0, 0.5
    cuts = np.arange(1.0, 256.0) / 256.0
    for _ in range(17):  # 8 bits each: 77 zeros to 1e-23, and 53 bits that count
        p = low + (high - low) * cuts
        under = int(np.count_nonzero(normal_quantile(p) <= z))
        low, high = (p[under - 1] if under else low), (p[under] if under < len(p) else high)
    return float(low)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64s) -> Float64s:
    above, below = coefficients
    return polynomial(above, x) / polynomial(below, x)
