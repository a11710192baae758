"""IDX files, the format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist), gzipped or not."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.images import Allocate, Images, in_memory

_PARTS = ("train", "t10k")
_UINT8 = 0x08
_CHUNK_BYTES = 2 << 20


def parts(folder: Path) -> list[str]:
    """Which of `train` and `t10k` the folder holds."""
    return [part for part in _PARTS if _find(folder, f"{part}-images", 3)]


def read(folder: Path, part: str, allocate: Allocate = in_memory) -> Images:
    """The images of `part`, with their labels where the folder has them. Raises `DataError` if a file is not whole."""
    path = _find(folder, f"{part}-images", 3)
    if path is None:
        raise DataError(f"{folder}: no file {part}-images-idx3-ubyte or {part}-images-idx3-ubyte.gz")
    pixels = _read_array(path, 3, allocate)[..., np.newaxis]
    labels_path = _find(folder, f"{part}-labels", 1)
    if labels_path is None:
        return Images(pixels)
    labels = _read_array(labels_path, 1, in_memory).astype(np.int64)
    if len(labels) != len(pixels):
        raise DataError(f"{labels_path}: got {len(labels)} labels, wanted {len(pixels)}, one for each image of {path}")
    return Images(pixels, labels)


def _find(folder: Path, stem: str, dimensions: int) -> Path | None:
    for joint in ("-", "."):  # both spellings are about
        for suffix in ("", ".gz"):
            path = folder / f"{stem}{joint}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _read_array(path: Path, dimensions: int, allocate: Allocate) -> NDArray[np.uint8]:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            return _parse(cast(io.BufferedIOBase, file), path, dimensions, allocate)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole IDX file: {error}") from error


def _parse(file: io.BufferedIOBase, path: Path, dimensions: int, allocate: Allocate) -> NDArray[np.uint8]:
    header = file.read(4 * (1 + dimensions))
    if len(header) < 4 * (1 + dimensions) or header[:4] != bytes([0, 0, _UINT8, dimensions]):
        raise DataError(f"{path}: got {header[:4]!r}, wanted the header of uint8 IDX with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise DataError(f"{path}: got shape {shape}, wanted at least one of each")
    array = allocate(shape)
    got = _fill(array, file)
    if got != array.nbytes:
        raise DataError(f"{path}: cut short: got {got} bytes after the header, wanted {array.nbytes} for {shape}")
    return array


def _fill(array: NDArray[np.uint8], file: io.BufferedIOBase) -> int:
    """Read the file into the array; returns the bytes that there were."""
    room = array.reshape(-1).data
    got = 0
    while got < len(room) and (read := file.readinto(room[got : got + _CHUNK_BYTES])):
        got += read
    return got
