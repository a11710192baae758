"""Paths through latent space from key frame to key frame. Pure numpy; knows neither models nor requests.

A path has legs, one from each key frame to the next, each walked in equal times. Any part of it is made without the
rest: a point depends on its index alone, and on no other point, so parts are equal to the whole bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.latents.elementary import Float64s, arctan, dot, sin

Float32s = npt.NDArray[np.float32]
Kind = Literal["linear", "spherical", "catmull-rom"]
Easing = Literal["none", "in", "out", "in-out"]

# Points [N, Z] of a curve: on leg legs[n] (integers [N]) at time t[n] (from 0 to 1, [N, 1]).
_Curve = Callable[[npt.NDArray[np.int64], Float64s], Float64s]

_EASINGS: dict[Easing, Callable[[Float64s], Float64s]] = {
    "none": lambda t: t,
    "in": lambda t: t * t,
    "out": lambda t: 1.0 - (1.0 - t) * (1.0 - t),
    "in-out": lambda t: t * t * (3.0 - 2.0 * t),
}


class Opposite(ValueError):
    """Two neighbouring key frames point in opposite ways: no great circle is theirs alone.

    `at` is the index of the first of them; that of the last key frame if it is the way back to the first.
    """

    def __init__(self, at: int) -> None:
        super().__init__(f"key frame {at} and the one after it point in opposite ways")
        self.at = at


@dataclass(frozen=True, eq=False)
class Path:
    """Points through key frames [K, Z], K at least 2: `steps` (at least 2) from each to the next, both included.

    A key frame between two others comes once, and all key frames are in the path unchanged. A `loop` goes on from the
    last key frame to the first, which does not come again. Without `ends`, which a loop has not, the first and the last
    key frame are left out: nothing may remain.

    linear       straight lines
    spherical    great circles (slerp: Shoemake 1985; White 2016 for latents): directions follow the circle, lengths go
                 evenly from one to the other. Key frames that point the same way, or are zero, are joined by the
                 straight line, slerp's limit. Raises `Opposite`.
    catmull-rom  a cubic spline (Catmull & Rom 1974) in its centripetal form, which neither bends back nor crosses
                 itself within a leg (Yuksel, Schaefer & Keyser 2011). Through two key frames it is the straight line.

    Legs between equal key frames stand still.
    """

    keys: Float32s
    steps: int
    kind: Kind
    easing: Easing
    loop: bool = False
    ends: bool = True
    _curve: _Curve = field(init=False, repr=False)

    def __post_init__(self) -> None:
        points = self.keys.astype(np.float64)
        if self.loop:
            points = np.concatenate([points, points[:1]])
        curves = {"linear": _lines, "spherical": _arcs, "catmull-rom": _spline}
        object.__setattr__(self, "_curve", curves[self.kind](points, self.loop))

    def __len__(self) -> int:
        if self.loop:
            return len(self.keys) * (self.steps - 1)
        return (len(self.keys) - 1) * (self.steps - 1) + (1 if self.ends else -1)

    def points(self, first: int, count: int) -> Float32s:
        """The points first .. first + count - 1 of the path: float32 [count, Z]. Raises `IndexError` beyond its end."""
        if not 0 <= first <= first + count <= len(self):
            raise IndexError(f"points: got {first} to {first + count - 1}, wanted 0 to {len(self) - 1}")
        left_out = 0 if self.loop or self.ends else 1
        legs, steps = np.divmod(np.arange(first, first + count) + left_out, self.steps - 1)
        t = _EASINGS[self.easing](steps / (self.steps - 1.0))
        last = len(self.keys) - (1 if self.loop else 2)
        path = self._curve(np.minimum(legs, last), t[:, None]).astype(np.float32)
        at_key = steps == 0
        path[at_key] = self.keys[legs[at_key]]
        return path


def _lines(points: Float64s, loop: bool) -> _Curve:
    return lambda legs, t: (1.0 - t) * points[legs] + t * points[legs + 1]


def _arcs(points: Float64s, loop: bool) -> _Curve:
    lengths = np.sqrt(dot(points, points))[:, None]
    ways = points / np.where(lengths > 0.0, lengths, 1.0)
    zero = (lengths[:-1] == 0.0) | (lengths[1:] == 0.0)
    opposite = ~zero[:, 0] & (dot(ways[:-1], ways[1:]) <= -(1.0 - 1e-6))
    if opposite.any():
        raise Opposite(int(opposite.argmax()))
    angles = _angles(ways[:-1], ways[1:])
    sines = sin(angles)
    straight = zero | (sines < 1e-6)
    lengths, sines = np.where(lengths > 0.0, lengths, 1.0), np.where(straight, 1.0, sines)

    def curve(legs: npt.NDArray[np.int64], t: Float64s) -> Float64s:
        s, angle, a, b = 1.0 - t, angles[legs], lengths[legs], lengths[legs + 1]
        length = (s * a + t * b) / sines[legs]
        from_a = np.where(straight[legs], s, length * sin(s * angle) / a)
        from_b = np.where(straight[legs], t, length * sin(t * angle) / b)
        return from_a * points[legs] + from_b * points[legs + 1]

    return curve


def _angles(a: Float64s, b: Float64s) -> Float64s:
    """Between vectors of length 1 or 0, [L, Z], none opposite: [L, 1]. Exact for small ones too (Kahan 2006)."""
    apart, together = dot(a - b, a - b), dot(a + b, a + b)
    return 2.0 * arctan(np.sqrt(apart / np.where(together > 0.0, together, 1.0)))[:, None]


def _spline(points: Float64s, loop: bool) -> _Curve:
    """In time tau, a leg takes the root of its chord's length; at a key frame the velocity is that of the parabola
    through it and its neighbours, the mean of the chords' velocities v, each weighted by the other's time.

    Put into the cubic of Hermite, that is the chord and, of its length c, the deviation
    c t (1 - t) ((1 - t) turn_a + t turn_b), where turn = (v_before - v_after) / (tau_before + tau_after) at a key
    frame, and zero at an end, whose velocity is the chord's. A leg between equal key frames has c = 0 and stands still.
    """
    chords = points[1:] - points[:-1]
    c = np.sqrt(dot(chords, chords))[:, None]
    tau = np.sqrt(c)
    velocities = chords / np.where(c > 0.0, tau, 1.0)
    around = [-1, *range(len(c)), 0] if loop else [*range(len(c))]
    v, time = velocities[around], tau[around]
    both = time[:-1] + time[1:]
    turns = (v[:-1] - v[1:]) / np.where(both > 0.0, both, 1.0)
    if not loop:
        turns = np.pad(turns, ((1, 1), (0, 0)))

    def curve(legs: npt.NDArray[np.int64], t: Float64s) -> Float64s:
        s = 1.0 - t
        turn = s * turns[legs] + t * turns[legs + 1]
        return s * points[legs] + t * points[legs + 1] + c[legs] * t * s * turn

    return curve
