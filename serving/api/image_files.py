"""Reads image files: PNG, JPEG and WebP, told apart by their content, whatever a stranger makes them say.

Headers first: a few bytes can claim many pixels, and none is unpacked before all files of a request are known to be
small enough. Knows nothing of messages.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry import pixels
from serving.api.codec_threads import Stopped
from serving.errors import InvalidArgument

Uint8s = npt.NDArray[np.uint8]
Fit = Callable[[Image.Image, int, int], Image.Image]  # image, height, width

MAX_PIXELS = 32 << 20  # of one image
MAX_SIDE = 1 << 17  # Lanczos needs 48 bytes of weights for each row or column, and Pillow a pointer for each row
MAX_REQUEST_PIXELS = 64 << 20  # of all images of a request together
MAX_SCANS = 500  # of a JPEG: each is a pass over all of its pixels, for ten bytes of file; cameras write ten
_NAMED = 10  # images that one error names
_PNG_HEADER = pixels.PNG + b"\0\0\0\x0dIHDR"
_PNG_ESSENTIAL = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
_filters = threading.Lock()  # of warnings: they are the whole process's


class Allowance:
    """How many pixels the files of one request may still have, in all its fields together."""

    def __init__(self) -> None:
        self._left = MAX_REQUEST_PIXELS

    def spend(self, pixels: int, field: str) -> None:
        """Raises `InvalidArgument` if there are not so many left."""
        self._left -= pixels
        if self._left < 0:
            got = f"{MAX_REQUEST_PIXELS - self._left} pixels in all"
            raise InvalidArgument(field, got, f"at most {MAX_REQUEST_PIXELS} a request")


def read(
    files: Sequence[bytes],
    shape: tuple[int, int, int],
    max_items: int,
    fit: Fit | None,
    stopped: Stopped,
    field: str,
    allowance: Allowance,
) -> Uint8s:
    """1 to `max_items` files as uint8 [N, H, W, C] of the model's `shape`; `fit` resizes those of another size.

    Raises `InvalidArgument` that names the file, `field`[i], if one is broken or too large, or of another size and
    there is no `fit`; `CancelledError` once `stopped()`.
    """
    _check_headers(files, shape, max_items, fit, field, allowance)
    images = np.empty((len(files), *shape), np.uint8)
    sizes = []
    for i, data in enumerate(files):
        if stopped():
            raise CancelledError
        with _reading(data, f"{field}[{i}]"):
            image = _unpack(data, shape[2])
        if fit is not None:
            image = fit(image, *shape[:2])
        sizes.append((image.height, image.width))
        if sizes[i] == shape[:2]:
            images[i] = pixels.to_array(image)
    _check_sizes(sizes, shape, field)
    return images


def _check_headers(
    files: Sequence[bytes],
    shape: tuple[int, int, int],
    max_items: int,
    fit: Fit | None,
    field: str,
    allowance: Allowance,
) -> None:
    if not 1 <= len(files) <= max_items:
        raise InvalidArgument(field, f"{len(files)} images", f"1 to {max_items}")
    sizes = [_size(data, f"{field}[{i}]") for i, data in enumerate(files)]
    allowance.spend(sum(height * width for height, width in sizes), field)
    if fit is None:
        lying = shape[1::-1]  # these may fit once they are upright
        _check_sizes([shape[:2] if size == lying else size for size in sizes], shape, field)


def _check_sizes(sizes: Sequence[tuple[int, int]], shape: tuple[int, int, int], field: str) -> None:
    wrong = [(i, f"{height}x{width}") for i, (height, width) in enumerate(sizes) if (height, width) != shape[:2]]
    if not wrong:
        return
    (first, got), *others = wrong
    named = [f"[{i}] {size}" for i, size in others[: _NAMED - 1]]
    if len(others) > len(named):
        named.append(f"{len(others) - len(named)} more")
    also = f" (also {', '.join(named)})" if named else ""
    wanted = f"{shape[0]}x{shape[1]} (height x width), or a `resize`"
    raise InvalidArgument(f"{field}[{first}]", f"{got}{also}", wanted)


def _size(data: bytes, field: str) -> tuple[int, int]:
    """Height and width of a file, as its header says."""
    with _reading(data, field):
        if data.startswith(_PNG_HEADER):
            width, height = struct.unpack_from(">II", data, 16)
        else:
            with _open(data) as image:
                width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        wanted = f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise InvalidArgument(field, f"{height}x{width}", wanted)
    return height, width


def _unpack(data: bytes, channels: int) -> Image.Image:
    """The first image in a file, upright, grey (1) or RGB (3)."""
    with _open(_essential_png(data) if data.startswith(pixels.PNG) else data) as image:
        image.load()
        with _silence():
            turn = pixels.turn(image)
        plain = pixels.plain(image, channels)
    return plain if turn is None else plain.transpose(turn)


def _open(data: bytes) -> Image.Image:
    """The file's header."""
    if data.startswith(pixels.JPEG) and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError("too many scans")
    with _silence():
        return pixels.open_file(data)


def _essential_png(data: bytes) -> bytes:
    """A PNG's still image: without animation, texts and profiles, which Pillow would unpack, and in one IDAT.

    Raises `ValueError` if a checksum is wrong or the file is cut short: Pillow would draw zeros for what it misses.
    """
    view, at = memoryview(data), len(pixels.PNG)
    chunks: list[bytes | memoryview] = [pixels.PNG]
    packed: list[memoryview] = []
    name = b""
    while name != b"IEND":
        if len(data) < at + 12:
            raise ValueError("cut short")
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        if len(data) < end or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"{name!r} is broken")
        if name == b"IDAT":
            packed.append(view[at + 8 : end - 4])
        elif name in _PNG_ESSENTIAL:
            chunks.append(view[at:end])
        at = end
    return b"".join([*chunks, _png_chunk(b"IDAT", b"".join(packed)), _png_chunk(b"IEND", b"")])


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What Pillow has to say of odd metadata is neither an error nor for the log, which strangers would fill."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _reading(data: bytes, field: str) -> Iterator[None]:
    """Pillow raises OSError, ValueError, SyntaxError, struct.error and more for a broken file: one refusal for all."""
    try:
        yield
    except Exception as error:
        got = f"{len(data)} bytes that cannot be read ({type(error).__name__})"
        raise InvalidArgument(field, got, "a whole PNG, JPEG or WebP file") from error
