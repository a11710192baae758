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

from latentry.fitting import Fitting
from latentry.messages import write_tensor
from latentry.pictures import Array, Float32s
from latentry.v1 import vae_pb2 as pb

# An array [N, H, W, C] or (grey) [N, H, W]; or one or more Pillow images, paths of image files, or their bytes.
OneImage: TypeAlias = "Image.Image | Path | str | bytes"
ImageInput: TypeAlias = "npt.NDArray[Any] | OneImage | Sequence[OneImage]"
# Such images, or latents: an array [N, Z], or several arrays or lists [Z].
Input: TypeAlias = "ImageInput | Sequence[npt.NDArray[Any]] | Sequence[Sequence[float]]"

_OVERHEAD_BYTES = 32 << 10  # names, shapes and tags of a request
_ITEM_OVERHEAD_BYTES = 8  # tag and length of one image
_SMALL_BYTES = 1 << 20
_IMAGES = "images as an array [N, H, W, C] or [N, H, W], or as Pillow images, paths or bytes"
# Modes that PNG does not hold, and those that say the same. What it holds, 16 bits included, the server reads.
_PNG_MODES = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}


@dataclass(frozen=True)
class Images:
    """Images as an array [N, H, W, C], or as files with the paths that they are from, empty where there is none."""

    items: Array | list[bytes]
    paths: tuple[str, ...] = ()

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
        most = room(info) - reserved
        parts, start, total = [], 0, 0
        for at, size in enumerate(self._sizes()):
            if size > most:
                raise ValueError(f"images{self.place(at)}: got {size} bytes, wanted at most {most}; make it smaller")
            if at - start == info.limits.max_items or total + size > most:
                parts.append(slice(start, at))
                start, total = at, 0
            total += size + _ITEM_OVERHEAD_BYTES
        return [*parts, slice(start, len(self))]

    def size(self) -> int:
        """Bytes of all of them in a request."""
        return sum(self._sizes()) + _ITEM_OVERHEAD_BYTES * len(self)

    def place(self, at: int) -> str:
        """How errors point to one of them: by its index, and its path if it has one."""
        path = self.paths[at] if at < len(self.paths) else ""
        return f"[{at}] ({path})" if path else f"[{at}]"

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
        count, item_bytes = len(self), max(4 * self.items.shape[1] + _ITEM_OVERHEAD_BYTES, 1)
        fit = max((room(info) - reserved) // item_bytes, 1)
        most = min(info.limits.max_items, fit)
        if count <= most:
            return [slice(0, count)]
        return [slice(at, min(at + most, count)) for at in range(0, count, most)]

    def size(self) -> int:
        """Bytes of all of them in a request."""
        return 4 * self.items.size

    def place(self, at: int) -> str:
        """How errors point to one of them."""
        return f"[{at}]"


def at_hand(*given: object) -> bool:
    """Whether reading these takes no longer than passing them to a thread: small arrays do, and what is None."""
    return all(each is None or (isinstance(each, np.ndarray) and each.nbytes <= _SMALL_BYTES) for each in given)


def room(info: pb.ModelInfo) -> int:
    """How many bytes of images or latents a request can hold."""
    return info.limits.max_message_bytes - _OVERHEAD_BYTES


def read(given: Input, name: str, fitting: Fitting) -> Images | Latents:
    """An array of two dimensions, or several of one, as latents; all else as images. Raises as `read_images`."""
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return read_latents(given, name)
    if isinstance(given, list | tuple) and given and all(isinstance(each, np.ndarray | list | tuple) for each in given):
        return read_latents(given, name)
    return read_images(given, name, fitting)  # type: ignore[arg-type]  # what may be latents has been read


def read_latents(latents: npt.ArrayLike, name: str = "latents") -> Latents:
    """Latents as float32 [N, Z]; raises `ValueError` if they are no real numbers or there are not two dimensions."""
    try:
        array = np.asarray(latents)
    except ValueError:
        raise ValueError(f"{name}: got rows of several lengths, wanted [N, Z]") from None
    if array.ndim != 2:
        raise ValueError(f"{name}: got shape {list(array.shape)}, wanted [N, Z]")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: got numbers of type {array.dtype}, wanted real ones")
    return Latents(array.astype(np.float32, copy=False))


def read_images(images: ImageInput, name: str, fitting: Fitting) -> Images:
    """An array [N, H, W, C], or image files as bytes (Pillow images become PNG), large ones fitted as they are read.

    Raises `ValueError` for what is no image, and `OSError` for a file that cannot be read.
    """
    if isinstance(images, np.ndarray):
        return Images(_pixels(images, name))
    if isinstance(images, Image.Image | Path | str | bytes):
        images = [images]
    try:
        each = list(images)
    except TypeError:
        raise ValueError(f"{name}: got a {type(images).__name__}, wanted {_IMAGES}") from None
    files = [fitting.large(_file_bytes(image, f"{name}[{at}]")) for at, image in enumerate(each)]
    return Images(files, tuple(str(image) if isinstance(image, Path | str) else "" for image in each))


def write_images(items: Array | list[bytes]) -> pb.Images:
    """Items of `Images`, as a message."""
    if isinstance(items, list):
        return pb.Images(encoded=pb.EncodedImages(images=items))
    return pb.Images(tensor=write_tensor(items))


def _pixels(array: Array, name: str) -> Array:
    pixels = array[..., None] if array.ndim == 3 else array
    if pixels.ndim != 4:
        raise ValueError(f"{name}: got an array of shape {list(array.shape)}, wanted [N, H, W, C] or [N, H, W]")
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise ValueError(f"{name}: got an array of {array.dtype}, wanted uint8, or floats from 0 to 1")
    return pixels


def _file_bytes(image: object, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if not isinstance(image, Image.Image):
        got = type(image).__name__
        raise ValueError(f"{name}: got a {got}, wanted a Pillow image, a path or bytes")  # noqa: TRY004 - as all else is refused
    buffer = io.BytesIO()
    plain = image.convert(_PNG_MODES[image.mode]) if image.mode in _PNG_MODES else image
    plain.save(buffer, "PNG", compress_level=1, exif=image.getexif())
    return buffer.getvalue()
