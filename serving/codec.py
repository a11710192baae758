"""Between messages and arrays: every check of a request's shapes, sizes and numbers, and the writing of replies.

Images are uint8 [N, H, W, C] arrays inside, whatever they were outside. Knows nothing of models but their shapes.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from latentry import pixels
from latentry.v1 import vae_pb2 as pb
from serving.codec_threads import Stopped
from serving.errors import InvalidArgument

Array = npt.NDArray[Any]
Uint8s = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]

MAX_PIXELS = 32 << 20  # of one encoded image; larger ones are refused before they are unpacked
MAX_REQUEST_PIXELS = 64 << 20  # of all encoded images of a request together
MAX_LATENT = 1e6  # a latent's magnitude: far beyond any prior, and far from where float32 overflows
MAX_TEMPERATURE = 10.0
_READ_FORMATS = ("PNG", "JPEG", "WEBP")
_WRITE_FORMATS = {pb.IMAGE_FORMAT_PNG: "PNG", pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_WEBP: "WEBP"}
_DTYPES: dict[int, type[np.generic]] = {pb.DATA_TYPE_UINT8: np.uint8, pb.DATA_TYPE_FLOAT32: np.float32}
_NAMES: dict[type[np.generic], str] = {np.uint8: "UINT8", np.float32: "FLOAT32"}


# ---- requests ----


def read_tensor(tensor: pb.Tensor, field: str, shape: str) -> Array:
    """The array that `tensor` holds, of any shape; `shape` says in words what is wanted.

    Raises `InvalidArgument` if the type is unknown or the bytes are not those of dtype and shape.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(f"{field}.dtype", tensor.dtype, "DATA_TYPE_UINT8 (1) or DATA_TYPE_FLOAT32 (2)")
    if len(tensor.shape) > 8 or any(side < 1 for side in tensor.shape):
        raise InvalidArgument(f"{field}.shape", list(tensor.shape[:9]), shape)
    wanted = math.prod(tensor.shape) * np.dtype(dtype).itemsize
    if len(tensor.data) != wanted:
        what = f"{wanted} bytes, as {_NAMES[dtype]} {list(tensor.shape)} takes"
        raise InvalidArgument(f"{field}.data", f"{len(tensor.data)} bytes", what)
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(tensor.data, little).astype(dtype, copy=False).reshape(tuple(tensor.shape))


def read_latents(tensor: pb.Tensor, latent_dim: int, max_items: int, field: str = "latents") -> Float32s:
    """Latents [N, Z], checked: float32, finite, Z as the model's, N from 1 to `max_items`."""
    wanted = f"[N, {latent_dim}] with N from 1 to {max_items}"
    latents = read_tensor(tensor, field, wanted)
    if latents.dtype != np.float32:
        raise InvalidArgument(f"{field}.dtype", "DATA_TYPE_UINT8", "DATA_TYPE_FLOAT32")
    if latents.ndim != 2 or latents.shape[1] != latent_dim or len(latents) > max_items:
        raise InvalidArgument(f"{field}.shape", list(latents.shape), wanted)
    sane = np.abs(latents) <= MAX_LATENT  # NaN is not
    if not sane.all():
        item, latent = (int(i) for i in np.argwhere(~sane)[0])
        got = f"{latents[item, latent]} at [{item}, {latent}]"
        raise InvalidArgument(f"{field}.data", got, f"finite numbers from -{MAX_LATENT:g} to {MAX_LATENT:g}")
    return latents


def read_images(
    images: pb.Images, shape: tuple[int, int, int], max_items: int, resize: int, stopped: Stopped = lambda: False
) -> Uint8s:
    """Images [N, H, W, C] of the model's `shape`, resized if the request says so. Ends early once `stopped()`."""
    if resize not in pb.Resize.values():
        raise InvalidArgument("resize", resize, "RESIZE_UNSPECIFIED (0), RESIZE_CROP (1) or RESIZE_STRETCH (2)")
    kind = images.WhichOneof("kind")
    if kind == "tensor":
        return _from_tensor(images.tensor, shape, max_items, resize)
    if kind == "encoded":
        return _from_files(images.encoded.images, shape, max_items, resize, stopped)
    raise InvalidArgument("images", "none", "a tensor or encoded images")


def count_images(images: pb.Images) -> int:
    """How many images the request says that it holds."""
    if images.WhichOneof("kind") == "tensor":
        return max(0, images.tensor.shape[0]) if images.tensor.shape else 0
    return len(images.encoded.images)


def needs_time(images: pb.Images, resize: int) -> bool:
    """Whether reading these images takes so long that the event loop should not wait for it."""
    return images.WhichOneof("kind") == "encoded" or resize != pb.RESIZE_UNSPECIFIED


def read_count(count: int, max_items: int) -> int:
    """The number of images wanted."""
    if not 1 <= count <= max_items:
        raise InvalidArgument("count", count, f"1 to {max_items}")
    return count


def read_first_index(first: int, count: int) -> int:
    """Where in a seed's sequence to begin."""
    if not 0 <= first <= 2**63 - count:
        raise InvalidArgument("first_index", first, "0 or more, with the last index below 2^63")
    return first


def read_temperature(request: pb.SampleRequest | pb.EncodeRequest) -> float:
    """The scale of the noise."""
    if not request.HasField("temperature"):
        return 1.0
    if not 0.0 <= request.temperature <= MAX_TEMPERATURE:  # NaN is not, either
        raise InvalidArgument("temperature", request.temperature, f"0 to {MAX_TEMPERATURE:g}")
    return request.temperature


def read_steps(steps: int, keys: int, max_items: int) -> int:
    """Images from one key frame to the next, with a reply that keeps within `max_items`."""
    most = (max_items - 1) // (keys - 1) + 1
    if not 2 <= steps <= most:
        raise InvalidArgument("steps", steps, f"2 to {most}, as {keys} key frames and {max_items} images a reply allow")
    return steps


def check_output(output: pb.ImageOutput) -> None:
    """The wanted form of the reply's images, refused before any work is done if there is no such form."""
    if output.format not in pb.ImageFormat.values():
        raise InvalidArgument("output.format", output.format, f"0 to {max(pb.ImageFormat.values())}")
    if not 0 <= output.quality <= 100:
        raise InvalidArgument("output.quality", output.quality, "1 to 100, or 0 for the default")


def _from_tensor(tensor: pb.Tensor, shape: tuple[int, int, int], max_items: int, resize: int) -> Uint8s:
    height, width, channels = shape
    sides = f"{height}, {width}" if resize == pb.RESIZE_UNSPECIFIED else "H, W"
    wanted = f"[N, {sides}, {channels}] with N from 1 to {max_items}"
    array = read_tensor(tensor, "images.tensor", wanted)
    if array.ndim != 4 or array.shape[3] != channels or len(array) > max_items:
        raise InvalidArgument("images.tensor.shape", list(array.shape), wanted)
    if array.shape[1:3] != (height, width) and resize == pb.RESIZE_UNSPECIFIED:
        raise InvalidArgument("images.tensor.shape", list(array.shape), f"{wanted}, or a `resize`")
    images = array if array.dtype == np.uint8 else _quantise(array)
    if array.shape[1:3] == (height, width):
        return images
    return np.stack([_fit(pixels.to_pillow(image), shape, resize) for image in images])


def _quantise(array: Float32s) -> Uint8s:
    low, high = float(array.min()), float(array.max())  # NaN if any is NaN
    if not (low >= 0.0 and high <= 1.0):
        got = "NaN" if math.isnan(low) or math.isnan(high) else f"{low:g} to {high:g}"
        raise InvalidArgument("images.tensor.data", got, "FLOAT32 pixels from 0 to 1")
    rounded: Uint8s = np.rint(array * np.float32(255.0)).astype(np.uint8)
    return rounded


def _from_files(
    files: Sequence[bytes], shape: tuple[int, int, int], max_items: int, resize: int, stopped: Stopped
) -> Uint8s:
    field = "images.encoded.images"
    if not 1 <= len(files) <= max_items:
        raise InvalidArgument(field, f"{len(files)} images", f"1 to {max_items}")
    total = 0
    for i, data in enumerate(files):  # headers first: a few bytes can claim many pixels
        with _reading(data, f"{field}[{i}]"), _open(data) as image:
            total += image.width * image.height
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.height}x{image.width}"
                raise InvalidArgument(f"{field}[{i}]", size, f"at most {MAX_PIXELS} pixels")
    if total > MAX_REQUEST_PIXELS:
        raise InvalidArgument(field, f"{total} pixels in all", f"at most {MAX_REQUEST_PIXELS} a request")
    images = []
    for i, data in enumerate(files):
        if stopped():
            raise CancelledError
        images.append(_from_file(data, f"{field}[{i}]", shape, resize))
    return np.stack(images)


def _from_file(data: bytes, field: str, shape: tuple[int, int, int], resize: int) -> Uint8s:
    with _reading(data, field):
        with _open(data) as image:
            if image.format == "PNG":
                image.verify()  # its checksums; Pillow reads broken pixels otherwise
        with _open(data) as image:
            plain = pixels.plain(ImageOps.exif_transpose(image), shape[2])
    if (plain.height, plain.width) != shape[:2] and resize == pb.RESIZE_UNSPECIFIED:
        wanted = f"{shape[0]}x{shape[1]} (height x width), or a `resize`"
        raise InvalidArgument(field, f"{plain.height}x{plain.width}", wanted)
    return _fit(plain, shape, resize)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_READ_FORMATS)


@contextlib.contextmanager
def _reading(data: bytes, field: str) -> Iterator[None]:
    """Pillow raises OSError, ValueError, SyntaxError, struct.error and more for a broken file: one refusal for all."""
    try:
        yield
    except InvalidArgument:
        raise
    except Exception as error:
        got = f"{len(data)} bytes that cannot be read ({type(error).__name__})"
        raise InvalidArgument(field, got, "a whole PNG, JPEG or WebP file") from error


def _fit(image: Image.Image, shape: tuple[int, int, int], resize: int) -> Uint8s:
    height, width, _ = shape
    if resize == pb.RESIZE_CROP:
        return pixels.to_array(pixels.cover(image, height, width))
    return pixels.to_array(image.resize((width, height), Image.Resampling.LANCZOS))


# ---- replies ----


def write_tensor(array: Array) -> pb.Tensor:
    """`array` (uint8 or float32) as a message."""
    dtype = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return pb.Tensor(dtype=dtype, shape=array.shape, data=little.tobytes())


def write_images(images: Array, output: pb.ImageOutput, stopped: Stopped = lambda: False) -> pb.Images:
    """Images [N, H, W, C] in the form that the caller asked for. Ends early once `stopped()`."""
    name = _WRITE_FORMATS.get(output.format)
    if name is None:
        return pb.Images(tensor=write_tensor(images))
    files = []
    for image in images:
        if stopped():
            raise CancelledError
        files.append(_to_file(image, name, output.quality or 90))
    return pb.Images(encoded=pb.EncodedImages(images=files))


def wants_files(output: pb.ImageOutput) -> bool:
    """Whether the reply holds image files, which take time to write."""
    return output.format in _WRITE_FORMATS


def wants_floats(output: pb.ImageOutput) -> bool:
    """Whether the reply holds the mean of p(x|z) rather than rounded images."""
    return output.format == pb.IMAGE_FORMAT_RAW_FLOAT32


def _to_file(image: Uint8s, name: str, quality: int) -> bytes:
    options: dict[str, Any] = {"compress_level": 1} if name == "PNG" else {"quality": quality}
    if name == "WEBP" and quality == 100:
        options = {"lossless": True}
    buffer = io.BytesIO()
    pixels.to_pillow(image).save(buffer, name, **options)
    return buffer.getvalue()
