"""Between Pillow images and pixels: one rule for what training learns from, serving reads and clients draw."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

Uint8s = npt.NDArray[np.uint8]

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # what such files begin with
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_file(data: bytes) -> Image.Image:
    """The header of a PNG, JPEG or WebP file, told apart by its content. Not by `Image.open`, whose own limit of pixels
    warns and whose list of formats is longer. Raises `ValueError` for other files, and what Pillow raises.
    """
    if data.startswith(PNG):
        return PngImageFile(io.BytesIO(data))
    if data.startswith(JPEG):
        return JpegImageFile(io.BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(io.BytesIO(data))
    raise ValueError("neither PNG, JPEG nor WebP")


def upright(image: Image.Image) -> Image.Image:
    """`image` as its EXIF orientation says that it is to be shown."""
    quarter = turn(image)
    return image if quarter is None else image.transpose(quarter)


def turn(image: Image.Image) -> Image.Transpose | None:
    """What sets `image` upright, as its EXIF orientation says; None if it is, or if that cannot be read."""
    try:
        exif = Image.Exif() if image.format == "PNG" else image.getexif()
        if image.format == "PNG":  # of its eXIf chunk alone: Pillow also looks into texts, which may be megabytes
            exif.load(image.info.get("exif") or b"")
        return _TURNS.get(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises a dozen kinds; viewers show an image whose EXIF is broken
        return None


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


def stretch(image: Image.Image, height: int, width: int) -> Image.Image:
    """`image` with each side scaled by itself."""
    if image.width < width and image.height > height:  # Pillow before 12.2 would widen first, rows without number
        image = image.resize((image.width, height), Image.Resampling.LANCZOS)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> Uint8s:
    """A plain image as uint8 [H, W, C]."""
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def to_pillow(pixels: npt.NDArray[Any]) -> Image.Image:
    """uint8 [H, W, C] as an image, grey or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_file(pixels: npt.NDArray[Any], kind: str, quality: int) -> bytes:
    """uint8 [H, W, C] as a file, "PNG", "JPEG" or "WEBP"; `quality` 1 to 100, of a WebP 100 keeps each pixel."""
    options: dict[str, Any] = {"compress_level": 1} if kind == "PNG" else {"quality": quality}
    if kind == "WEBP" and quality == 100:
        options = {"lossless": True}
    buffer = io.BytesIO()
    to_pillow(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
