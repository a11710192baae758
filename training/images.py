"""A set of equally large images with their labels, and the one way in which images are made to fit a size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
        pixels = np.empty((len(self), *size, channels), np.uint8)
        for index, image in enumerate(self.pixels):
            pixels[index] = fit(Image.fromarray(image.squeeze(2) if got_channels == 1 else image), size, channels)
        return replace(self, pixels=pixels)


def fit(image: Image.Image, size: Size | None, channels: int) -> NDArray[np.uint8]:
    """`image` as uint8 (H, W, C): scaled to cover `size` (H, W), its middle cut out, grey (1) or RGB (3)."""
    image = _opaque(image).convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def is_grey(mode: str) -> bool:
    """Whether a Pillow mode has no colour."""
    return mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")


def check_sides(height: int, width: int, least: int) -> None:
    """Raises `DataError` if a side is shorter than `least` pixels."""
    if min(height, width) < least:
        raise DataError(f"images: got {height}x{width} pixels, wanted sides of at least {least}; --image-size enlarges")


def _opaque(image: Image.Image) -> Image.Image:
    """8 bits a channel, and what is transparent on white, as a page shows it."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which Pillow's convert would clip
        deep, clear = np.asarray(image).astype(np.uint32), image.info.get("transparency")
        upper = (deep >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(upper if clear is None else np.where(deep == clear, 255, upper).astype(np.uint8))
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image
