"""How a simple distribution becomes another by a function alone: g(z) = z/|z| + z/10 makes a ring of N(0, I)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.drawing.canvas import PALETTE, new_figure, png
from training.gallery.workshop import Chapter

_DRAWS = 1500


def to_ring(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """g of each row of z (N, 2)."""
    mapped: NDArray[np.float64] = z / np.linalg.norm(z, axis=1, keepdims=True) + z / 10
    return mapped


def ring() -> Chapter:
    """Draws of N(0, I) and where g takes them. The mean radius is 1 + √(π/2)/10, that of |z|'s distribution."""
    z = np.random.default_rng(0).standard_normal((_DRAWS, 2))
    mapped = to_ring(z)
    figure = new_figure(7.4, 3.8)
    for axes, points, title, reach in zip(
        figure.subplots(1, 2), (z, mapped), ("z from N(0, I)", "g(z) = z/|z| + z/10"), (3.6, 1.7), strict=True
    ):
        axes.plot(points[:, 0], points[:, 1], "o", color=PALETTE[0], markersize=2.2, alpha=0.5, markeredgewidth=0)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
        axes.grid(alpha=0.25)
    radius = np.linalg.norm(mapped, axis=1)
    return Chapter(
        {"ring_radius": float(radius.mean()), "ring_radius_expected": 1 + float(np.sqrt(np.pi / 2)) / 10},
        {"ring.png": png(figure)},
    )
