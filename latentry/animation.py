"""Images that follow each other as one file, GIF or animated WebP, which repeats for ever. Knows nothing of models.

Pillow compresses each frame; the containers are written here. Pillow's own writers join frames that are alike, so that
a walk that stands still would come back with fewer frames than images, and GIF's cannot hold a joined one above 655 s.
Here each image is a frame of its own with a time of its own, and one at a time is in memory beside what is written.

Sources: CompuServe, Graphics Interchange Format, version 89a (1990); Google, WebP Container Specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry import pixels

Uint8s = npt.NDArray[np.uint8]

KINDS = ("gif", "webp")
MIN_FRAME_MS, MAX_FRAME_MS = 20, 10_000
DEFAULT_FRAME_MS, DEFAULT_QUALITY = 80, 90
_GREYS = bytes(level for level in range(256) for _ in "RGB")
_REPEAT = b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", 0) + b"\0"  # 0 times: without end


def write(
    images: Iterable[Uint8s], kind: str, frame_ms: int = DEFAULT_FRAME_MS, quality: int = DEFAULT_QUALITY
) -> bytes:
    """The file of `images`, uint8 [H, W, C] each (an array [N, H, W, C] is such), grey or RGB, all of one shape.

    Each is shown for `frame_ms` milliseconds, 20 to 10000, which a GIF rounds to tens. A GIF holds greys exactly and
    256 colours of its own for each RGB image; `quality` is a WebP's: 1 to 100, lossy below 100. The same images give
    the same bytes. Raises `ValueError` for no images, another shape, kind or time.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(repr(k) for k in KINDS)}")
    if not MIN_FRAME_MS <= frame_ms <= MAX_FRAME_MS:
        raise ValueError(f"frame_ms: got {frame_ms}, wanted {MIN_FRAME_MS} to {MAX_FRAME_MS}")
    frames = _alike(images)
    return _gif(frames, frame_ms) if kind == "gif" else _webp(frames, frame_ms, quality)


def _alike(images: Iterable[Uint8s]) -> Iterator[Uint8s]:
    shape: tuple[int, ...] | None = None
    for image in images:
        if image.ndim != 3 or image.shape[2] not in (1, 3) or image.shape != (shape or image.shape):
            wanted = f"{list(shape)}, as the first" if shape else "[H, W, C] with C 1 or 3"
            raise ValueError(f"images: got {list(image.shape)}, wanted {wanted}")
        shape = image.shape
        yield image
    if shape is None:
        raise ValueError("images: got none, wanted one or more")


# ---- GIF ----


def _gif(frames: Iterator[Uint8s], frame_ms: int) -> bytes:
    delay = (frame_ms + 5) // 10  # hundredths of a second; viewers take 0 and 1 for "no time given"
    parts: list[bytes] = []
    for frame in frames:
        if not parts:
            height, width, channels = frame.shape
            table = _GREYS if channels == 1 else b""
            parts.append(b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7 if table else 0x70, 0, 0) + table)
            parts.append(_REPEAT)
        parts.append(struct.pack("<4sHBB", b"\x21\xf9\x04\x04", delay, 0, 0))  # leave it there for the next one
        parts.append(_gif_image(frame))
    return b"".join([*parts, b"\x3b"])


def _gif_image(frame: Uint8s) -> bytes:
    """Image descriptor, colours and LZW blocks of one frame."""
    height, width, channels = frame.shape
    image, colours = pixels.to_pillow(frame), b""
    if channels == 3:
        image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # nearer than MEDIANCUT
        colours = bytes(image.getpalette() or ()).ljust(768, b"\0")
    descriptor = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0x87 if colours else 0)
    return descriptor + colours + b"\x08" + image.tobytes("gif", image.mode, 8, 0) + b"\0"


# ---- WebP ----


def _webp(frames: Iterator[Uint8s], frame_ms: int, quality: int) -> bytes:
    chunks: list[bytes] = []
    for frame in frames:
        if not chunks:
            height, width, _ = frame.shape
            sides = _three_bytes(width - 1) + _three_bytes(height - 1)
            chunks.append(_chunk(b"VP8X", b"\x02\0\0\0" + sides))  # 2: an animation, without transparency
            chunks.append(_chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0)))  # on white; 0 times: without end
        place = _three_bytes(0) + _three_bytes(0) + sides + _three_bytes(frame_ms)
        chunks.append(_chunk(b"ANMF", place + b"\x02" + _webp_image(frame, quality)))  # 2: it replaces the one before
    body = b"WEBP" + b"".join(chunks)
    return _chunk(b"RIFF", body)


def _webp_image(frame: Uint8s, quality: int) -> bytes:
    """The chunk of one frame's picture, out of the file that Pillow writes of it alone."""
    data, at = pixels.to_file(frame, "WEBP", quality), 12
    while data[at : at + 4] not in (b"VP8 ", b"VP8L"):
        at += 8 + _even(struct.unpack_from("<I", data, at + 4)[0])
    return data[at : at + 8 + _even(struct.unpack_from("<I", data, at + 4)[0])]


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _even(size: int) -> int:
    return size + size % 2


def _three_bytes(number: int) -> bytes:
    return struct.pack("<I", number)[:3]
