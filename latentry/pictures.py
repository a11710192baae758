"""What calls return: arrays, with the way to Pillow images and grids. Knows nothing of gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry.pixels import to_pillow

Array = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model that answered: equal digests are equal models."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """q(z|x) of N images: `mean` and `logvar` float32 [N, Z], and `latents` [N, Z], a draw, if a seed was given."""

    mean: Float32s
    logvar: Float32s
    latents: Float32s | None
    seed: int | None
    model: ModelRef


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Images [N, H, W, C], uint8 or float32 in [0, 1], the `latents` [N, Z] they were decoded from, and the seed."""

    images: Array
    latents: Float32s
    seed: int | None
    model: ModelRef

    def pillow(self) -> list[Image.Image]:
        """The images as Pillow images, mode L or RGB."""
        return [to_pillow(image) for image in _to_uint8(self.images)]

    def grid(self, columns: int | None = None) -> Image.Image:
        """The images as one, row by row; see `grid`."""
        return grid(self.images, columns)


def grid(images: Array, columns: int | None = None, *, gap: int = 2, scale: int = 1) -> Image.Image:
    """Lay images [N, H, W, C] out in rows of `columns` (default: about square), `gap` white pixels between them.

    `scale` enlarges each pixel to a square of that side.
    """
    pixels = _to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = pixels.shape
    across = min(columns or math.ceil(math.sqrt(n)), n)
    down = -(-n // across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // across * (height + gap), i % across * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return to_pillow(sheet)


def _to_uint8(images: Array) -> npt.NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images
    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded
