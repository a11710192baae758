"""The run folder: where a run keeps its config, checkpoints, log and pictures.

RUN/config.toml  RUN/checkpoints/  RUN/log.jsonl  RUN/tensorboard/  RUN/figures/  RUN/evaluation.json
RUN/prior.ckpt     if a prior was fitted          RUN/snapshots/     if weights were kept for animations
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import config_file, lock
from training.config import Config
from training.disk import write_atomically
from training.errors import ConfigError, RunError

CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
FIGURES = "figures"
EVALUATION = "evaluation.json"
PRIOR = "prior.ckpt"
SNAPSHOTS = "snapshots"
LOCK = ".lock"


def writing(folder: Path, warn: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Hold the run folder, made if need be, for the one training that writes to it.

    Raises `RunError` naming the process that holds it, if there is one, or if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error
    return lock.held(folder / LOCK, folder, "training", RunError, warn)


def create(folder: Path, config: Config) -> None:
    """Make the folder of a new run. Raises `RunError` if it holds a run already or cannot be made."""
    if (folder / CONFIG).exists():
        raise RunError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out")
    if has_begun(folder):
        raise RunError(f"{folder} holds what is left of a run without its {CONFIG}: choose another --out")
    try:
        for name in (CHECKPOINTS, FIGURES):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error
    write_atomically(folder / CONFIG, config_file.to_toml(config).encode())


def has_begun(folder: Path) -> bool:
    """Whether the run has a checkpoint, or a log, which it has only after its first checkpoint."""
    log = folder / LOG
    return any((folder / CHECKPOINTS).glob("step-*.ckpt")) or (log.exists() and log.stat().st_size > 0)


def read_config(folder: Path) -> Config:
    """The config that a run was started with. Raises `RunError` if `folder` holds no run."""
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} holds no run: it has no {CONFIG}")
    return config_file.read(folder / CONFIG)


def moved(folder: Path, config: Config) -> None:
    """Record where the run's images and their cache are now, once they have been found to be the run's own."""
    recorded = read_config(folder)
    here = replace(recorded, data=replace(recorded.data, path=config.data.path, cache=config.data.cache))
    if here != recorded:
        write_atomically(folder / CONFIG, config_file.to_toml(here).encode())


def resumed_config(folder: Path, overrides: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config to resume with: the run's own. The images may have moved, but all else must be as it was.

    Raises `ConfigError` naming a flag that asks for something else.
    """
    recorded = read_config(folder)
    asked = config_file.override(recorded, overrides)
    if (asked.data.path, asked.data.cache) != (recorded.data.path, recorded.data.cache):
        recorded = replace(recorded, data=replace(recorded.data, path=asked.data.path, cache=asked.data.cache))
    here = {name: getattr(asked.run, name) for name in ("device", "devices", "nodes")}
    recorded = replace(recorded, run=replace(recorded.run, **here))
    before, after = config_file.to_dict(recorded), config_file.to_dict(asked)
    for section, values in after.items():
        for key, value in values.items():
            if before[section].get(key) != value:
                raise ConfigError(
                    f"{section}.{key}: got {value}, wanted {before[section].get(key)}: a run resumes as it was begun"
                )
    return recorded
