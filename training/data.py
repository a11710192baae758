"""Image sets in memory: uint8 (N, H, W, C), split into a part to train on and a part held out.

    IDX folder | folder of images | .zip of images | .npz  ->  Images  ->  train, test

Where the source has test images of its own (MNIST's and Fashion-MNIST's t10k files), those are held out; otherwise
a share of the images, drawn from the seed. Knows nothing of torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import idx, npz, pictures
from training.config import MAX_SIDE, MIN_SIDE, DataConfig
from training.errors import DataError
from training.images import Images, check_sides

MIN_IMAGES = 2  # one to train on, one held out


@dataclass(frozen=True, slots=True)
class Dataset:
    """`digest` is the SHA-256 of both parts' pixels and shapes. `split` says how they came apart. `unreadable`
    names the files that were left out, each with the reason."""

    name: str
    train: Images
    test: Images
    digest: str
    split: str
    labels: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.pixels.shape[1:]
        return height, width, channels

    def provenance(self) -> dict[str, Any]:
        """What the manifest says of the images."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "split": self.split,
            "train_images": len(self.train),
            "test_images": len(self.test),
            "unreadable_files": len(self.unreadable),
        }


def load(config: DataConfig, seed: int) -> Dataset:
    """Read the images that `config.path` names, and hold some out.

    Raises `DataError` if there are none, only one, or if they cannot be used together.
    """
    path = Path(config.path)
    if not config.path:
        raise DataError("data: got nothing, wanted --data PATH (an IDX folder, a folder of images, a .zip or a .npz)")
    try:
        if not path.exists():
            raise DataError(f"data: {path} does not exist")
        parts = _read(path, config)
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, gzip and Pillow raise a dozen kinds for files that are not whole
        raise DataError(f"data: {path} cannot be read: {type(error).__name__}: {error}") from error
    if len(parts) == 2:
        (train, test), split = parts, "the source's own"
    else:
        train, test = hold_out(parts[0], config.holdout, seed)
        split = f"{config.holdout:g} held out, drawn with seed {seed}"
    check_sides(train.pixels.shape[1], train.pixels.shape[2], MIN_SIDE, MAX_SIDE)
    labels = _label_names(config, train, test)
    return Dataset(path.resolve().name, train, test, _digest(train, test), split, labels, train.unreadable)


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """A part to train on and a `share` to hold out, at least one image each; the same for the same seed."""
    n = len(images)
    if n < MIN_IMAGES:
        raise DataError(f"images: got {n}, wanted at least {MIN_IMAGES}: one to train on and one held out")
    held = min(max(round(n * share), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    return images.take(np.sort(order[held:])), images.take(np.sort(order[:held]))


def _read(path: Path, config: DataConfig) -> list[Images]:
    """The source's parts: all its images, or those to train on and those to hold out."""
    if path.is_dir() and idx.parts(path):
        return _idx_parts(path, config)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return [pictures.read(path, config.image_size, config.channels, config.max_bad_share)]
    if path.suffix.lower() == ".npz":
        return [npz.read(path).fitted(config.image_size, config.channels)]
    raise DataError(f"data: got {path}, wanted an IDX folder, a folder of images, a .zip or a .npz")


def _idx_parts(path: Path, config: DataConfig) -> list[Images]:
    parts = [idx.read(path, name).fitted(config.image_size, config.channels) for name in idx.parts(path)]
    shapes = {part.pixels.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: train and t10k differ in image shape: {sorted(shapes)}; --image-size makes them equal"
        )
    return parts


def _label_names(config: DataConfig, train: Images, test: Images) -> tuple[str, ...]:
    if train.class_names:
        for name in train.class_names:
            if not name.isprintable():
                raise DataError(f"class folder {name!r}: wanted a name of printable characters")
        return train.class_names
    top = max((int(part.labels.max()) for part in (train, test) if part.labels is not None), default=-1)
    if config.labels and top >= len(config.labels):
        raise DataError(f"data.labels: got {len(config.labels)} names, wanted {top + 1}: the data has label {top}")
    return config.labels if top >= 0 else ()


def _digest(*parts: Images) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part.pixels.shape).encode())
        digest.update(np.ascontiguousarray(part.pixels).data)
    return digest.hexdigest()
