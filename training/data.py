"""Image sets: uint8 (N, H, W, C), in memory or mapped from a cache, split into parts to train on and held out.

    IDX folder | folder of images | .zip of images | .npz  ->  Images  ->  train, validation, test

Where the source has test images of its own (MNIST's and Fashion-MNIST's t10k files), those are held out; otherwise
a share of the images, drawn from the seed. The last of the images to train on may be set aside to choose by. Knows
nothing of torch.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import idx, npz, pictures, pixel_cache
from training.config import MAX_SIDE, MIN_SIDE, DataConfig
from training.errors import DataError
from training.images import Allocate, Images, Split, check_sides, digest, in_memory

MAX_CLASSES = 10_000
MIN_IMAGES = 2  # one to train on, one held out
_FEW = 100
_CHUNK = 256  # images that are looked at together


@dataclass(frozen=True, slots=True)
class Dataset:
    """`validation` are the images to choose by, if any were to be set aside. `digest` is the SHA-256 of all shapes and
    pixels in their order: training, validation, test. `split` says how train and test came apart. `unreadable` names
    the files that were left out, each with the reason. `warnings` are for whoever trains to read."""

    name: str
    train: Images
    test: Images
    digest: str
    split: str
    labels: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    validation: Images | None = None
    warnings: tuple[str, ...] = ()

    @property
    def labels_digest(self) -> str | None:
        """The SHA-256 of the labels of all parts in order, None if there are none."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        if any(part.labels is None for part in parts):
            return None
        sha256 = hashlib.sha256()
        for part in parts:
            sha256.update(np.asarray(part.labels, np.int64).tobytes())
        return sha256.hexdigest()

    def differs(self, sha256: str, labels_sha256: str | None) -> str:
        """How these images are others than those of the digest `sha256`, or their labels others than those of
        `labels_sha256` where labels matter and were recorded; "" if neither."""
        got, wanted = self.digest, sha256
        if got == wanted and labels_sha256 is not None:
            got, wanted = str(self.labels_digest), labels_sha256
        return "" if got == wanted else f"got SHA-256 {got[:12]}, wanted {wanted[:12]}"

    @property
    def held_out(self) -> Images:
        """The images to look at while a model is trained: those set aside to choose by, or else the test images."""
        return self.test if self.validation is None else self.validation

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.pixels.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """How many classes the labels tell apart; 0 if there are none."""
        parts = [self.train, self.test, *([] if self.validation is None else [self.validation])]
        return _top_label(*parts) + 1

    def provenance(self) -> dict[str, Any]:
        """What the manifest says of the images."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "labels_sha256": self.labels_digest,
            "split": self.split,
            "train_images": len(self.train),
            "validation_images": 0 if self.validation is None else len(self.validation),
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
        split = _split(path, config, seed)
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, gzip and Pillow raise a dozen kinds for files that are not whole
        raise DataError(f"data: {path} cannot be read: {type(error).__name__}: {error}") from error
    how = "the source's own" if split.own else f"{config.holdout:g} held out, drawn with seed {seed}"
    _check(split)
    train, validation = _set_aside(split.train, config.validation)
    return Dataset(
        path.resolve().name,
        train,
        split.test,
        split.sha256,
        how,
        _label_names(config, split.train, split.test),
        split.train.unreadable,
        validation,
        (*split.notes, *_warnings(train)),
    )


def hold_out(images: Images, share: float, seed: int, validation: int = 0) -> tuple[Images, Images]:
    """A part to train on and a `share` to hold out, at least one image each; the same for the same seed. The last
    `validation` of the former are drawn too."""
    kept, held = _drawn(share, seed, validation, len(images))
    return images.take(kept), images.take(held)


def require_labels(dataset: Dataset) -> int:
    """How many classes the images are labelled with. Raises `DataError` unless every image has a label."""
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for name, part in parts.items():
        if part is not None and part.labels is None:
            raise DataError(
                f"data: {dataset.name}: got no labels for the {name} images, wanted a class for each, as the model is "
                "conditional: a subfolder for each class, `labels` in the .npz, or the IDX label files"
            )
    if dataset.classes > MAX_CLASSES:
        raise DataError(
            f"data: {dataset.name}: got the label {dataset.classes - 1}, wanted at most {MAX_CLASSES} classes"
        )
    return dataset.classes


def _split(path: Path, config: DataConfig, seed: int) -> Split:
    own = _has_parts(path)
    held_out = functools.partial(_drawn, config.holdout, seed, config.validation)
    if config.cache:
        settings = {
            "image_size": config.image_size,
            "channels": config.channels,
            "max_bad_share": config.max_bad_share,
            **({} if own else {"holdout": config.holdout, "seed": seed, "validation": config.validation}),
        }
        return pixel_cache.load(Path(config.cache), path, settings, functools.partial(_read, path, config), held_out)
    parts = _read(path, config, in_memory)
    train, test = parts if own else hold_out(parts[0], config.holdout, seed, config.validation)
    return Split(train, test, digest(train, test), own=own)


def _drawn(share: float, seed: int, validation: int, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of `n` images to train on, the `validation` last of them to choose by, and which to hold out: each in
    growing order, and drawn from all, as images often come class by class."""
    if n < MIN_IMAGES:
        raise DataError(f"images: got {n}, wanted at least {MIN_IMAGES}: one to train on and one held out")
    held = min(max(round(n * share), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    held_out, aside, kept = np.split(order, [held, min(held + validation, n)])
    return np.concatenate([np.sort(kept), np.sort(aside)]), np.sort(held_out)


def _has_parts(path: Path) -> bool:
    """Whether the source tells the images to train on from those to hold out."""
    return path.is_dir() and len(idx.parts(path)) == 2


def _read(path: Path, config: DataConfig, allocate: Allocate) -> list[Images]:
    """The source's parts: all its images, or those to train on and those to hold out."""
    if path.is_dir() and idx.parts(path):
        return _idx_parts(path, config, allocate)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return [pictures.read(path, config.image_size, config.channels, config.max_bad_share, allocate)]
    if path.suffix.lower() == ".npz":
        return [npz.read(path).fitted(config.image_size, config.channels, allocate)]
    raise DataError(f"data: got {path}, wanted an IDX folder, a folder of images, a .zip or a .npz")


def _idx_parts(path: Path, config: DataConfig, allocate: Allocate) -> list[Images]:
    names = idx.parts(path)
    parts = [idx.read(path, name, allocate).fitted(config.image_size, config.channels, allocate) for name in names]
    shapes = {part.pixels.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: train and t10k differ in image shape: {sorted(shapes)}; --image-size makes them equal"
        )
    return parts


def _check(split: Split) -> None:
    """Raises `DataError` if the images are too small or too large, or if nothing can be learnt from them."""
    check_sides(split.train.pixels.shape[1], split.train.pixels.shape[2], MIN_SIDE, MAX_SIDE)
    first = split.train.pixels[0]
    for part in (split.train, split.test):
        for start in range(0, len(part), _CHUNK):
            if (part.pixels[start : start + _CHUNK] != first).any():
                return
    raise DataError(f"images: all {len(split.train) + len(split.test)} are the same, wanted images that differ")


def _set_aside(train: Images, n: int) -> tuple[Images, Images | None]:
    """The images to train on, and the last `n`, to choose by."""
    if n == 0:
        return train, None
    if n >= len(train):
        raise DataError(f"data.validation: got {n}, wanted fewer than the {len(train)} images to train on")
    return train.part(0, len(train) - n), train.part(len(train) - n, len(train))


def _warnings(train: Images) -> list[str]:
    if len(train) >= _FEW:
        return []
    return [f"{len(train)} images to train on are few: the model may learn them by heart; thousands are usual"]


def _label_names(config: DataConfig, train: Images, test: Images) -> tuple[str, ...]:
    if train.class_names:
        for name in train.class_names:
            if not name.isprintable():
                raise DataError(f"class folder {name!r}: wanted a name of printable characters")
        return train.class_names
    top = _top_label(train, test)
    if config.labels and top >= len(config.labels):
        raise DataError(f"data.labels: got {len(config.labels)} names, wanted {top + 1}: the data has label {top}")
    return config.labels if top >= 0 else ()


def _top_label(*parts: Images) -> int:
    """The highest label, -1 if there are none."""
    return max((int(part.labels.max()) for part in parts if part.labels is not None and len(part)), default=-1)
