"""A set of equally large images with their labels, and the one way in which images are made to fit a size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentry import pixels
from training.errors import DataError

Size = tuple[int, int]
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]  # where the pixels of a shape are to lie


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` is uint8 (N, H, W, C), in memory or mapped from a file and then read-only; `labels` int64 (N,) or None;
    `class_names` in the order of the labels; `names` of the files that the images come from, each with its folders, or
    () where they have none. `unreadable` names the files that were left out, each with the reason."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: NDArray[np.intp]) -> Images:
        """The images at `indices`, in memory."""
        return replace(
            self,
            pixels=self.pixels[indices],
            labels=None if self.labels is None else self.labels[indices],
            names=tuple(self.names[index] for index in indices) if self.names else (),
        )

    def part(self, start: int, stop: int) -> Images:
        """The images from `start` to before `stop`, without a copy of their pixels."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, pixels=self.pixels[start:stop], labels=labels, names=self.names[start:stop])

    def spread(self, n: int) -> Images:
        """At most `n` of the images, evenly spread over the set."""
        return self if len(self) <= n else self.take(spread(len(self), n))

    def fitted(self, size: Size | None, channels: int | None, allocate: Allocate) -> Images:
        """The images at `size` (H, W) with `channels`; None leaves either as it is."""
        _, height, width, got_channels = self.pixels.shape
        size, channels = size or (height, width), channels or got_channels
        if (*size, channels) == (height, width, got_channels):
            return self
        fitted = allocate((len(self), *size, channels))
        for index, image in enumerate(self.pixels):
            fitted[index] = fit(pixels.to_pillow(image), size, channels)
        return replace(self, pixels=fitted)


@dataclass(frozen=True, slots=True)
class Split:
    """Images to train on and images held out; `sha256` of their pixels. `own`: the source itself told them apart.
    `notes` are for whoever runs this to read."""

    train: Images
    test: Images
    sha256: str
    own: bool
    notes: tuple[str, ...] = ()


def spread(n: int, most: int) -> NDArray[np.intp]:
    """At most `most` of `n` indices, evenly spread, in growing order."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.intp)


def in_memory(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Pixels of a shape, still unset, in memory."""
    return np.empty(shape, np.uint8)


def digest(*parts: Images) -> str:
    """The SHA-256 of the parts' pixels and shapes, in hexadecimal."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(str(part.pixels.shape).encode())
        sha256.update(np.ascontiguousarray(part.pixels).data)  # no copy: parts are whole stretches
    return sha256.hexdigest()


def fit(image: Image.Image, size: Size | None, channels: int) -> NDArray[np.uint8]:
    """`image` as uint8 (H, W, C): scaled to cover `size` (H, W), its middle cut out, grey (1) or RGB (3).

    Raises `ValueError` for an image of floats that holds NaN or an infinity.
    """
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("got NaN or infinite values, wanted finite ones")
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
