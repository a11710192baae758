"""What a caller hands to a client, as items that go into requests: image files or arrays, or latents; and the parts
that they are split into where one request cannot hold them all. Knows nothing of gRPC's channels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry.messages import write_tensor
from latentry.pictures import Array, Float32s
from latentry.v1 import vae_pb2 as pb

# An array [N, H, W, C] or (grey) [N, H, W]; or one or more Pillow images, paths of image files, or their bytes.
OneImage: TypeAlias = "Image.Image | Path | str | bytes"
ImageInput: TypeAlias = "npt.NDArray[Any] | OneImage | Sequence[OneImage]"
# Such images, or latents: an array [N, Z], or several arrays [Z].
Input: TypeAlias = "ImageInput | Sequence[npt.NDArray[Any]]"

_OVERHEAD_BYTES = 32 << 10  # names, shapes and tags of a request
_ITEM_OVERHEAD_BYTES = 8  # tag and length of one image

# Modes that PNG does not hold, and those that say the same. What it holds, 16 bits included, the server reads.
_PNG_MODES = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}


@dataclass(frozen=True)
class Images:
    """Images as an array [N, H, W, C], or as files."""

    items: Array | list[bytes]

    def __len__(self) -> int:
        return len(self.items)

    def fields(self, part: slice, prefix: str = "") -> dict[str, Any]:
        """The field of a request that holds this part of them."""
        return {f"{prefix}images": write_images(self.items[part])}

    def parts(self, info: pb.ModelInfo, reserved: int = 0) -> list[slice]:
        """The parts that requests can hold, in items and in bytes, of which `reserved` are for something else; one
        part at least, so that the server can say what is wrong with none.

        Raises `ValueError` for one image that is too large for a message of its own.
        """
        most = info.limits.max_message_bytes - _OVERHEAD_BYTES - reserved
        parts, start, total = [], 0, 0
        for at, size in enumerate(self._sizes()):
            if size > most:
                raise ValueError(f"images[{at}]: got {size} bytes, wanted at most {most}; make it smaller first")
            if at - start == info.limits.max_items or total + size > most:
                parts.append(slice(start, at))
                start, total = at, 0
            total += size + _ITEM_OVERHEAD_BYTES
        return [*parts, slice(start, len(self))]

    def _sizes(self) -> list[int]:
        item_bytes = 1 if isinstance(self.items, list) or self.items.dtype == np.uint8 else 4
        return [len(i) if isinstance(i, bytes) else i.size * item_bytes for i in self.items]


@dataclass(frozen=True)
class Latents:
    """Latents, float32 [N, Z]."""

    items: Float32s

    def __len__(self) -> int:
        return len(self.items)

    def fields(self, part: slice, prefix: str = "") -> dict[str, Any]:
        """The field of a request that holds this part of them."""
        return {f"{prefix}latents": write_tensor(self.items[part])}

    def parts(self, info: pb.ModelInfo, reserved: int = 0) -> list[slice]:
        """The parts that requests can hold; one part at least, so that the server can say what is wrong with none."""
        item_bytes = max(4 * self.items.shape[1] + _ITEM_OVERHEAD_BYTES, 1)
        fit = max((info.limits.max_message_bytes - _OVERHEAD_BYTES - reserved) // item_bytes, 1)
        most = min(info.limits.max_items, fit)
        return [slice(at, min(at + most, len(self))) for at in range(0, max(len(self), 1), most)]


def read(given: Input) -> Images | Latents:
    """An array of two dimensions, or several of one, as latents; all else as images. Raises as `read_images`."""
    if isinstance(given, list | tuple) and given and all(isinstance(each, np.ndarray) for each in given):
        return read_latents(np.stack(given))
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return read_latents(given)
    return read_images(given)  # type: ignore[arg-type]  # the arrays among what `Input` may be have been read


def read_latents(latents: npt.ArrayLike) -> Latents:
    """Latents as float32 [N, Z]; raises `ValueError` if there are not two dimensions."""
    array = np.asarray(latents, np.float32)
    if array.ndim != 2:
        raise ValueError(f"latents: got shape {list(array.shape)}, wanted [N, Z]")
    return Latents(array)


def read_images(images: ImageInput) -> Images:
    """An array [N, H, W, C], or image files as bytes (Pillow images become PNG). Raises `ValueError` for an array of
    another shape, `TypeError` for what is no image, and `OSError` for a file that cannot be read."""
    if isinstance(images, np.ndarray):
        array = images[..., None] if images.ndim == 3 else images
        if array.ndim != 4:
            raise ValueError(f"images: got an array of shape {list(images.shape)}, wanted [N, H, W, C] or [N, H, W]")
        return Images(array)
    each = [images] if isinstance(images, Image.Image | Path | str | bytes) else list(images)
    return Images([_file_bytes(image) for image in each])


def write_images(items: Array | list[bytes]) -> pb.Images:
    """Items of `Images`, as a message."""
    if isinstance(items, list):
        return pb.Images(encoded=pb.EncodedImages(images=items))
    return pb.Images(tensor=write_tensor(items))


def _file_bytes(image: OneImage) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if not isinstance(image, Image.Image):
        raise TypeError(f"images: got a {type(image).__name__}, wanted Pillow images, paths or bytes")
    buffer = io.BytesIO()
    plain = image.convert(_PNG_MODES[image.mode]) if image.mode in _PNG_MODES else image
    plain.save(buffer, "PNG", compress_level=1, exif=image.getexif())
    return buffer.getvalue()
