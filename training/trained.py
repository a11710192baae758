"""A run's model as it is evaluated and exported: the averaged weights of its newest checkpoint, in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, config_file, data, prior, run, state
from training.config import Config
from training.data import Dataset
from training.ema import calibrate
from training.errors import CheckpointError
from training.images import Images
from training.model import VAE
from training.prior import FittedPrior
from training.progress import say

_LEAST_IMAGES, _MOST_IMAGES = 512, 8192  # to calibrate with: statistics of few are no good, of more no better
_ENOUGH_PIXELS = 1 << 24
_MAY_CHANGE = (("data", "path"), ("data", "cache"), ("run", "device"), ("run", "devices"), ("run", "nodes"))


@dataclass(frozen=True, slots=True)
class Trained:
    """`model` is in evaluation mode, its statistics measured on training images. `step` is how far it was trained.
    `prior` was fitted afterwards, if one was. `written` is when the checkpoint was."""

    config: Config
    dataset: Dataset
    model: VAE
    step: int
    prior: FittedPrior | None = None
    written: datetime | None = None


def load(folder: Path, data_path: str | None = None) -> Trained:
    """The model of the run in `folder`; `data_path` says where its images are now, if they have moved.

    Raises `RunError`, `CheckpointError` or `DataError` if the run, a whole checkpoint or its images are not there.
    """
    config = run.read_config(folder)
    if data_path is not None:
        config = replace(config, data=replace(config.data, path=data_path))
    saved = checkpoint.load(folder / run.CHECKPOINTS, warn=say)
    dataset = data.load(config.data, config.run.seed)
    check(saved, config, dataset)
    model = state.build_model(config, dataset)
    model.load_state_dict(saved["average"])
    here = replace(config.run, device="auto", precision="fp32", devices=1, nodes=1)  # wherever the run was trained
    model = model.to(state.build_fabric(here).device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate(model.requires_grad_(False), to_calibrate(dataset))
    written = checkpoint.written(folder / run.CHECKPOINTS, saved["step"])
    return Trained(config, dataset, model, saved["step"], _fitted_prior(folder, saved["step"]), written)


def to_calibrate(dataset: Dataset) -> Images:
    """The training images that statistics are measured on."""
    enough = _ENOUGH_PIXELS // math.prod(dataset.image_shape[:2])
    return dataset.train.spread(min(_MOST_IMAGES, max(_LEAST_IMAGES, enough)))


def _fitted_prior(folder: Path, step: int) -> FittedPrior | None:
    path = folder / run.PRIOR
    if not path.exists():
        return None
    saved = checkpoint.read(path)
    if saved["step"] != step:
        raise CheckpointError(f"{path}: got a prior of step {saved['step']}, wanted one of step {step}")
    fitted = prior.from_state(saved)
    return None if fitted.module is None else fitted


def check(saved: Mapping[str, Any], config: Config, dataset: Dataset) -> None:
    """Raises `CheckpointError` unless the checkpoint `saved` is of this config and of these images.

    Where the images are, and on which device to train, may have changed.
    """
    if saved.get("format") != state.FORMAT:
        raise CheckpointError(f"checkpoint format: got {saved.get('format')}, wanted {state.FORMAT}")
    now = config_file.to_dict(config)
    for section, values in saved["config"].items():
        for key, value in values.items():
            if (section, key) not in _MAY_CHANGE and now.get(section, {}).get(key) != value:
                got = now.get(section, {}).get(key)
                raise CheckpointError(f"config.toml: {section}.{key}: got {got}, the run was trained with {value}")
    labels_sha256 = saved.get("labels_sha256") if config.model.conditional else None
    if how := dataset.differs(saved["data_sha256"], labels_sha256):
        raise CheckpointError(f"{dataset.name}: these are other images or labels than the run was begun with: {how}")
