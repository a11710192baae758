"""A set of equally large images with their labels, and the one way in which images are made to fit a size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentry import pixels
from training.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` is uint8 (N, H, W, C); `labels` int64 (N,) or None; `class_names` in the order of the labels.
    `unreadable` names the files that were left out, each with the reason."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: NDArray[np.intp]) -> Images:
        """The images at `indices`."""
        return replace(self, pixels=self.pixels[indices], labels=None if self.labels is None else self.labels[indices])

    def fitted(self, size: Size | None, channels: int | None) -> Images:
        """The images at `size` (H, W) with `channels`; None leaves either as it is."""
        _, height, width, got_channels = self.pixels.shape
        size, channels = size or (height, width), channels or got_channels
        if (*size, channels) == (height, width, got_channels):
            return self
        fitted = np.empty((len(self), *size, channels), np.uint8)
        for index, image in enumerate(self.pixels):
            fitted[index] = fit(pixels.to_pillow(image), size, channels)
        return replace(self, pixels=fitted)


def fit(image: Image.Image, size: Size | None, channels: int) -> NDArray[np.uint8]:
    """`image` as uint8 (H, W, C): scaled to cover `size` (H, W), its middle cut out, grey (1) or RGB (3)."""
    image = pixels.plain(image, channels)
    return pixels.to_array(image if size is None else pixels.cover(image, *size))


def is_grey(mode: str) -> bool:
    """Whether a Pillow mode has no colour."""
    return mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")


def check_sides(height: int, width: int, least: int, most: int) -> None:
    """Raises `DataError` if a side is shorter than `least` pixels or longer than `most`."""
    if min(height, width) < least:
        raise DataError(f"images: got {height}x{width} pixels, wanted sides of at least {least}; --image-size enlarges")
    if max(height, width) > most:
        raise DataError(f"images: got {height}x{width} pixels, wanted sides of at most {most}; --image-size shrinks")
