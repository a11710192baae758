"""Between messages and images: every check of a request's images, and the writing of replies.

Images are uint8 [N, H, W, C] arrays inside, whatever they were outside. Knows nothing of models but their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import features

from latentry import animation, pixels
from latentry.v1 import vae_pb2 as pb
from serving.api import image_files
from serving.api.codec_threads import Stopped
from serving.api.image_files import Allowance
from serving.api.tensors import read_latents, read_tensor, write_tensor
from serving.errors import InvalidArgument

__all__ = [
    "check_output",
    "count_images",
    "needs_time",
    "read_images",
    "read_latents",
    "read_tensor",
    "wants_files",
    "wants_floats",
    "write_files",
    "write_tensor",
]

Array = npt.NDArray[Any]
Uint8s = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]

_AT_ONCE = 1 << 16  # floats that are rounded together: what lies between stays in the processor's cache
_FITS: dict[int, image_files.Fit | None] = {
    pb.RESIZE_UNSPECIFIED: None,
    pb.RESIZE_CROP: pixels.cover,
    pb.RESIZE_STRETCH: pixels.stretch,
}
_ARRAYS = {pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_RAW_UINT8, pb.IMAGE_FORMAT_RAW_FLOAT32}
_FILES: dict[int, str] = {pb.IMAGE_FORMAT_PNG: "PNG", pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_WEBP: "WEBP"}
_ANIMATIONS: dict[int, str] = {pb.IMAGE_FORMAT_GIF: "gif", pb.IMAGE_FORMAT_ANIMATED_WEBP: "webp"}
_WEBPS = (pb.IMAGE_FORMAT_WEBP, pb.IMAGE_FORMAT_ANIMATED_WEBP)


# ---- requests ----


def read_images(
    images: pb.Images,
    shape: tuple[int, int, int],
    max_items: int,
    resize: int,
    stopped: Stopped = lambda: False,
    field: str = "images",
    allowance: Allowance | None = None,
) -> Uint8s:
    """Images [N, H, W, C] of the model's `shape`, resized if the request says so. Ends early once `stopped()`.

    `allowance` is the request's, if it has images in more than one field.
    """
    if resize not in pb.Resize.values():
        raise InvalidArgument("resize", resize, "RESIZE_UNSPECIFIED (0), RESIZE_CROP (1) or RESIZE_STRETCH (2)")
    fit = _FITS[resize]
    kind = images.WhichOneof("kind")
    if kind == "tensor":
        return _from_tensor(images.tensor, shape, max_items, fit, stopped, f"{field}.tensor")
    if kind == "encoded":
        files = images.encoded.images
        allowance = allowance or Allowance()
        return image_files.read(files, shape, max_items, fit, stopped, f"{field}.encoded.images", allowance)
    raise InvalidArgument(field, "none", "a tensor or encoded images")


def count_images(images: pb.Images) -> int:
    """How many images the request says that it holds."""
    if images.WhichOneof("kind") == "tensor":
        return max(0, images.tensor.shape[0]) if images.tensor.shape else 0
    return len(images.encoded.images)


def needs_time(images: pb.Images, resize: int) -> bool:
    """Whether reading these images takes so long that the event loop should not wait for it."""
    return images.WhichOneof("kind") == "encoded" or resize != pb.RESIZE_UNSPECIFIED


def check_output(output: pb.ImageOutput, animated: bool = False) -> None:
    """The wanted form of the reply's images, refused before any work is done if there is no such form.

    `animated`: whether the call's images are a sequence, which an animation can hold.
    """
    if output.format in _ARRAYS and not output.quality and not output.frame_ms:
        return
    if output.format not in pb.ImageFormat.values():
        raise InvalidArgument("output.format", output.format, f"0 to {max(pb.ImageFormat.values())}")
    name = f"{pb.ImageFormat.Name(output.format)} ({output.format})"
    if output.format in _ANIMATIONS and not animated:
        raise InvalidArgument("output.format", name, "an array or a file an image: here they are no animation")
    if output.format in _WEBPS and not features.check("webp"):
        raise InvalidArgument("output.format", name, "another format: this server's Pillow has no WebP")
    if not 0 <= output.quality <= 100:
        raise InvalidArgument("output.quality", output.quality, "1 to 100, or 0 for the default")
    least, most = animation.MIN_FRAME_MS, animation.MAX_FRAME_MS
    if output.frame_ms and not least <= output.frame_ms <= most:
        raise InvalidArgument("output.frame_ms", output.frame_ms, f"{least} to {most}, or 0 for the default")


def _from_tensor(
    tensor: pb.Tensor,
    shape: tuple[int, int, int],
    max_items: int,
    fit: image_files.Fit | None,
    stopped: Stopped,
    field: str,
) -> Uint8s:
    height, width, channels = shape
    most = image_files.MAX_SIDE
    sides = f"{height}, {width}" if fit is None else "H, W"
    wanted = f"[N, {sides}, {channels}] with N from 1 to {max_items}"
    array = read_tensor(tensor, field, wanted)
    if array.ndim != 4 or array.shape[3] != channels or len(array) > max_items:
        raise InvalidArgument(f"{field}.shape", list(array.shape), wanted)
    if array.shape[1:3] != (height, width) and fit is None:
        raise InvalidArgument(f"{field}.shape", list(array.shape), f"{wanted}, or a `resize`")
    if max(array.shape[1:3]) > most:
        raise InvalidArgument(f"{field}.shape", list(array.shape), f"{wanted}, H and W at most {most}")
    images = array if array.dtype == np.uint8 else _quantise(array, field)
    if fit is None or array.shape[1:3] == (height, width):
        return images
    resized = [pixels.to_array(fit(pixels.to_pillow(image), height, width)) for image in _until(images, stopped)]
    return np.stack(resized)


def _quantise(array: Float32s, field: str) -> Uint8s:
    low, high = float(array.min()), float(array.max())  # NaN if any is NaN
    if not (low >= 0.0 and high <= 1.0):
        got = "NaN" if math.isnan(low) or math.isnan(high) else f"{low:g} to {high:g}"
        raise InvalidArgument(f"{field}.data", got, "FLOAT32 pixels from 0 to 1")
    rounded = np.empty(array.shape, np.uint8)
    levels = np.empty(min(array.size, _AT_ONCE), np.float32)
    given, made = array.reshape(-1), rounded.reshape(-1)
    for at in range(0, array.size, _AT_ONCE):
        some = given[at : at + _AT_ONCE]
        level = levels[: len(some)]
        np.multiply(some, np.float32(255.0), out=level)
        np.rint(level, out=level)
        np.copyto(made[at : at + _AT_ONCE], level, casting="unsafe")
    return rounded


# ---- replies ----


def write_files(images: Array, output: pb.ImageOutput, stopped: Stopped = lambda: False) -> pb.Images:
    """Images [N, H, W, C] as the files that the caller asked for. Ends early once `stopped()`."""
    quality = output.quality or animation.DEFAULT_QUALITY
    if output.format in _FILES:
        kind = _FILES[output.format]
        files = [pixels.to_file(image, kind, quality) for image in _until(images, stopped)]
    else:
        frame_ms = output.frame_ms or animation.DEFAULT_FRAME_MS
        files = [animation.write(_until(images, stopped), _ANIMATIONS[output.format], frame_ms, quality)]
    return pb.Images(encoded=pb.EncodedImages(images=files))


def wants_files(output: pb.ImageOutput) -> bool:
    """Whether the reply holds image files, which take time to write."""
    return output.format in _FILES or output.format in _ANIMATIONS


def wants_floats(output: pb.ImageOutput) -> bool:
    """Whether the reply holds the mean of p(x|z) rather than rounded images."""
    return output.format == pb.IMAGE_FORMAT_RAW_FLOAT32


def _until(images: Uint8s, stopped: Stopped) -> Iterator[Uint8s]:
    """One image after the other. Raises `CancelledError` once `stopped()`."""
    for image in images:
        if stopped():
            raise CancelledError
        yield image
