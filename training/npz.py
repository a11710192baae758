"""A .npz file with `images` and, where they are known, `labels`."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from training.disk import write_atomically
from training.errors import DataError
from training.images import Images


def read(path: Path) -> Images:
    """`images` [N, H, W] or [N, H, W, C], uint8 or floats in [0, 1]; `labels` whole numbers [N].

    Raises `DataError` if they are anything else, or if the file cannot be read without pickle.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "images" not in arrays:
                raise DataError(f"{path}: got the arrays {sorted(arrays)}, wanted one named images")
            pixels = _pixels(arrays["images"], path)
            labels = _labels(arrays["labels"], len(pixels), path) if "labels" in arrays else None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
    return Images(pixels, labels)


def write(path: Path, images: Images) -> None:
    """Write `images` so that `read` gives them back. Raises `RunError` if the disk does not take the file."""
    arrays: dict[str, Any] = {"images": images.pixels}
    if images.labels is not None:
        arrays["labels"] = images.labels
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _pixels(images: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path}: images: got shape {images.shape}, wanted [N, H, W] or [N, H, W, C] with C 1 or 3")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{path}: images: got {images.dtype}, wanted uint8 or floats in [0, 1]")
    if not np.isfinite(images).all():
        count = int((~np.isfinite(images)).sum())
        raise DataError(f"{path}: images: got {count} NaN or infinite values, wanted finite values in [0, 1]")
    if images.min() < 0 or images.max() > 1:
        raise DataError(f"{path}: images: got values {images.min():g} to {images.max():g}, wanted floats in [0, 1]")
    return cast(NDArray[np.uint8], np.rint(images * 255).astype(np.uint8))


def _labels(labels: NDArray[Any], n: int, path: Path) -> NDArray[np.int64]:
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (n,) and (n == 0 or labels.min() >= 0)
    if not whole:
        raise DataError(
            f"{path}: labels: got {labels.dtype} {labels.shape}, wanted whole numbers from 0 of shape ({n},)"
        )
    return labels.astype(np.int64)
