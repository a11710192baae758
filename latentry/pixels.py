"""Between Pillow images and pixels: one rule for what training learns from, serving reads and clients draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def plain(image: Image.Image, channels: int) -> Image.Image:
    """`image` with 8 bits a channel, grey (1) or RGB (3), and what is transparent on white, as a page shows it."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which Pillow's convert would clip
        deep, clear = np.asarray(image).astype(np.uint32), image.info.get("transparency")
        upper = (deep >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(upper if clear is None else np.where(deep == clear, 255, upper).astype(np.uint8))
    elif image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert(mode)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """`image` scaled until it covers the frame, its middle cut out."""
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A plain image as uint8 [H, W, C]."""
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def to_pillow(pixels: npt.NDArray[Any]) -> Image.Image:
    """uint8 [H, W, C] as an image, grey or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
