"""Folders and .zip files of pictures: which files there are, their sizes, and their pixels.

Two passes: the headers first, so that a set that cannot be used is refused before an hour of decoding.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from latentry.pixels import turn, upright
from training.errors import DataError
from training.images import Allocate, Images, Size, fit, in_memory, is_grey

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_FILE_BYTES = 256 << 20
_MAX_NAMED = 5
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
_BAR_FROM = 2000  # a set that decodes in a second needs no progress bar
_QUARTERS = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
# What Pillow and zipfile raise for files that are broken, too large, encrypted, or not what their names say
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_Opener = Callable[[str], IO[bytes]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: Size  # (H, W) as shown, after the EXIF orientation
    grey: bool


@dataclass(slots=True)
class _Unreadable:
    """The files that could not be read, and why; raises `DataError` as soon as they are more than `share` of `n`."""

    path: Path
    n: int
    share: float
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, error: BaseException) -> None:
        self.reasons[name] = str(error) or type(error).__name__

    def check(self) -> None:
        count = len(self.reasons)
        if count > self.n * self.share or count == self.n:
            raise DataError(f"{self} (--max-bad-share is {self.share:g})")

    def __str__(self) -> str:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:_MAX_NAMED])
        more = "; ..." if len(self.reasons) > _MAX_NAMED else ""
        return f"{self.path}: {len(self.reasons)} of {self.n} files cannot be read: {first}{more}"


def read(
    path: Path, size: Size | None, channels: int | None, max_bad_share: float, allocate: Allocate = in_memory
) -> Images:
    """The pictures under `path`, a folder or a .zip; subfolders, where each picture lies in one, are the classes.

    `size` (H, W) scales each to cover it and cuts out the middle; without it all must be equally large. `channels`
    is 1 (grey), 3 (RGB), or None for what the files are. Unreadable files are left out
    and named in `Images.unreadable`.

    Raises `DataError` if there are no pictures, if more than `max_bad_share` of the files are unreadable, or if
    their sizes differ and `size` is None.
    """
    with _opened(path) as (names, open_file):
        if not names:
            raise DataError(f"{path}: no images found; wanted files that end in {', '.join(SUFFIXES)}")
        bad = _Unreadable(path, len(names), max_bad_share)
        headers = [header for name in _progress(names, "headers") if (header := _header(name, open_file, bad))]
        bad.check()
        size = size or _common_size(headers)
        channels = channels or (1 if all(header.grey for header in headers) else 3)
        pixels = allocate((len(headers), *size, channels))
        kept = _decode_all(headers, open_file, pixels, bad)
        bad.check()
    labels, class_names = _classes(kept)
    unreadable = tuple(f"{name}: {reason}" for name, reason in bad.reasons.items())
    return Images(pixels[: len(kept)], labels, class_names, tuple(kept), unreadable)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], _Opener]]:
    """The names of the pictures, sorted, and a function that opens one. Nothing is ever written."""
    if path.is_dir():
        files = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        yield sorted(filter(_is_picture, files)), lambda name: (path / name).open("rb")
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .zip: {error}") from error
    with archive:
        yield sorted(filter(_is_picture, archive.namelist())), lambda name: _open_entry(archive, name)


def _open_entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    size = archive.getinfo(name).file_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes unpacked, more than {MAX_FILE_BYTES}")
    return io.BytesIO(archive.read(name))


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def _header(name: str, open_file: _Opener, bad: _Unreadable) -> _Header | None:
    try:
        with warnings.catch_warnings(), open_file(name) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                turned = turn(image) in _QUARTERS
                size = (image.width, image.height) if turned else (image.height, image.width)
                return _Header(name, size, is_grey(image.mode))
    except _UNREADABLE as error:
        bad.add(name, error)
        return None


def _decode_all(
    headers: Sequence[_Header], open_file: _Opener, pixels: NDArray[np.uint8], bad: _Unreadable
) -> list[str]:
    """Decode into the first of `pixels` (N, H, W, C); returns the names of the pictures that are there."""
    _, height, width, channels = pixels.shape
    kept: list[str] = []
    for header in _progress(headers, "images"):
        try:
            with open_file(header.name) as file, Image.open(file) as image:
                pixels[len(kept)] = fit(upright(image), (height, width), channels)
        except _UNREADABLE as error:
            bad.add(header.name, error)
        else:
            kept.append(header.name)
    return kept


def _common_size(headers: Sequence[_Header]) -> Size:
    first = headers[0]
    for other in headers:
        if other.size != first.size:
            sizes = [f"{header.name} is {header.size[0]}x{header.size[1]}" for header in (first, other)]
            raise DataError(f"images differ in size (HxW): {' and '.join(sizes)}; --image-size HxW makes them equal")
    return first.size


def _classes(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels and class names from the first folders in which the pictures' ways differ, if each lies in such a one."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    common = 0  # folders around all of them, as an archive often has
    while len(here := {parts[common : common + 1] for parts in folders}) == 1 and here != {()}:
        common += 1
    images_of = defaultdict(list)
    for index, parts in enumerate(folders):
        images_of[parts[common] if len(parts) > common else ""].append(index)
    if "" in images_of or len(images_of) < 2:
        return None, ()
    if {name.lower() for name in images_of} <= _PARTS:
        raise DataError(
            f"images: got the folders {', '.join(sorted(images_of))}, which are no classes: name one of them as "
            "the data, of which test images are held out"
        )
    labels = np.empty(len(names), np.int64)
    for label, class_name in enumerate(sorted(images_of)):
        labels[images_of[class_name]] = label
    return labels, tuple(sorted(images_of))


def _progress(items: Sequence[_T], what: str) -> Iterator[_T]:
    yield from tqdm(items, desc=f"reading {what}", unit=" files", disable=None if len(items) > _BAR_FROM else True)
