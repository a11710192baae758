"""Which images a model is scored on: those that it was not trained on, found again from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentry.manifest import Manifest
from training import config_file, data, idx
from training.config import Config
from training.data import Dataset
from training.errors import ConfigError, DataError
from training.images import Images, in_memory

PARTS = ("test", "validation", "train")
_KEYS = ("image_size", "channels", "holdout", "max_bad_share", "validation")  # of [data]: all that changes the parts
_OWN_SPLIT = "the source's own"  # as `data.load` calls it


class Parts:
    """The images `scored`, those the model was trained on (None where they are not here), and a `warning` or ""."""

    def __init__(self, name: str, scored: Images, train: Images | None, warning: str = "") -> None:
        self.name, self.scored, self.train, self.warning = name, scored, train, warning


def find(manifest: Manifest, path: Path, part: str) -> Parts:
    """The `part` of the images at `path`, split as when the model was trained.

    Raises `DataError` if there are none or if they do not fit the model. Other images than the model's own are taken,
    with a warning.
    """
    config = config_of(manifest)
    if tests_alone(manifest, path):
        if part != "test":
            raise DataError(f"--part: got {part}, but {path} holds only test images")
        read = idx.read(path, "t10k", in_memory)
        scored = read.fitted(config.data.image_size, config.data.channels, in_memory)
        warning = f"{path} holds the test images alone: what needs training images is left out"
        return checked(manifest, Parts(path.resolve().name, scored, None, warning))
    dataset = load(manifest, path)
    parts = of_dataset(dataset, part)
    parts.warning = others(manifest, dataset)
    return checked(manifest, parts)


def load(manifest: Manifest, path: Path, **changes: Any) -> Dataset:
    """The images at `path`, split as when the model was trained; `changes` are of keys of [data]."""
    config = config_of(manifest)
    return data.load(replace(config.data, path=str(path.expanduser()), **changes), config.run.seed)


def tests_alone(manifest: Manifest, path: Path) -> bool:
    """Whether `path` holds test images, and none of those that the model was trained on."""
    own_split = _mapping(manifest.provenance, "data").get("split") == _OWN_SPLIT
    return own_split and path.is_dir() and idx.parts(path) == ["t10k"]


def others(manifest: Manifest, dataset: Dataset) -> str:
    """What is to be said if `dataset` is not what the model was trained on; "" if it is."""
    own = _mapping(manifest.provenance, "data")
    if "sha256" not in own:
        return f"{manifest.name} does not say what it was trained on: perhaps on some of these images"
    labels_sha256 = own.get("labels_sha256") if manifest.classes else None
    how = dataset.differs(str(own["sha256"]), labels_sha256)
    return how and f"{dataset.name}: these are other images or labels than {manifest.name} was trained on: {how}"


def of_dataset(dataset: Dataset, part: str) -> Parts:
    """The `part` of images that have been read. Raises `DataError` if it is empty."""
    found: Images | None = getattr(dataset, part, None)
    if found is None or not len(found):
        raise DataError(f"--part: got {part}, but {dataset.name} has no such images")
    return Parts(dataset.name, found, dataset.train)


def config_of(manifest: Manifest) -> Config:
    """The data section and the seed that the model was trained with, as far as the manifest says."""
    recorded = _mapping(manifest.provenance, "config")
    section = {key: value for key, value in _mapping(recorded, "data").items() if key in _KEYS}
    seed = _mapping(recorded, "run").get("seed", 0)
    try:
        return config_file.from_dict({"data": section, "run": {"seed": seed}})
    except ConfigError as error:
        raise ConfigError(f"manifest.json: provenance.config: {error}") from error


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, Mapping) else {}


def checked(manifest: Manifest, parts: Parts) -> Parts:
    shape = parts.scored.pixels.shape[1:]
    if tuple(shape) != tuple(manifest.image_shape):
        raise DataError(
            f"{parts.name}: got images of shape {list(shape)}, wanted {list(manifest.image_shape)}, as the model takes"
        )
    if manifest.classes:
        _check_labels(manifest.classes, parts.scored, parts.name)
    return parts


def _check_labels(classes: int, images: Images, name: str) -> None:
    if images.labels is None:
        raise DataError(f"{name}: got no labels, wanted the class of each image: the model is conditional")
    top = int(np.max(images.labels))
    if top >= classes:
        raise DataError(f"{name}: got class {top}, wanted classes below {classes}, as the model knows")
