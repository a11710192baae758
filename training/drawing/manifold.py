"""The manifold of a model with two latents: the images at a grid of points that is even in the prior's probability.

The grid's coordinates are the normal distribution's quantiles 0.05 to 0.95 (Kingma & Welling 2013, appendix A).
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from PIL import Image

from training.drawing.canvas import labelled
from training.drawing.subject import Latents, Subject, decode_all, encoded

SIDE = 15


def quantiles(side: int = SIDE) -> Latents:
    """`side` quantiles of N(0, 1), from that of 0.05 to that of 0.95."""
    return np.array([NormalDist().inv_cdf(share) for share in np.linspace(0.05, 0.95, side)], np.float32)


def grid(subject: Subject, side: int = SIDE) -> Latents:
    """(side, side, 2): latent 0 grows to the right, latent 1 upwards.

    An autoencoder's latents are nothing like N(0, 1): its grid has their own mean and standard deviation.
    """
    along = quantiles(side)
    z = np.stack(np.broadcast_arrays(along[None, :], along[::-1, None]), axis=2).astype(np.float32)
    if subject.pixels is not None:
        seen = encoded(subject)
        if seen.are_points:
            z = seen.centre + seen.spread * z
    return z


def manifold(subject: Subject, side: int = SIDE) -> Image.Image:
    """The decoded grid, with the coordinates of its middle and ends. Of a conditional model: of class 0."""
    z = grid(subject, side).reshape(-1, 2)
    labels = np.zeros(len(z), np.int64) if subject.classes else None
    images = decode_all(subject, z, labels)
    across, up = z.reshape(side, side, 2)[0, :, 0], z.reshape(side, side, 2)[:, 0, 1]
    return labelled(images, side, _few(up), _few(across))


def _few(coordinates: Latents) -> list[str]:
    shown = {0, len(coordinates) // 2, len(coordinates) - 1}
    return [f"{round(float(value), 2) + 0:.2f}" if index in shown else "" for index, value in enumerate(coordinates)]
