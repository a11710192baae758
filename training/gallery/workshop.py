"""The small runs that the gallery is drawn from. A run that is finished, with an equal config, is not made again."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training import checkpoint, config_file, data, run
from training.config import Config, DataConfig
from training.data import Dataset
from training.drawing.curves import read_events
from training.drawing.from_run import from_run
from training.drawing.subject import Subject
from training.fit import fit
from training.progress import say

Number = float | int
Changes = Mapping[str, Mapping[str, Any]]  # sections of the config
_FASHION = "fashion"  # in the name of a data set whose classes the preset `demo` names


@dataclass(frozen=True, slots=True)
class Chapter:
    """What a part of the page is made of: figures by name, and the contents of picture files by name."""

    numbers: Mapping[str, Number] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """Runs on the images at `data_path` are kept in `folder`. `share` of the epochs, for trying it out."""

    data_path: Path
    folder: Path
    share: float = 1.0

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The images, split as in all runs."""
        return data.load(self._config("", {}, 1).data, 0)

    def subject(self, name: str, changes: Changes, epochs: int) -> Subject:
        """The model of the run `name`, trained if need be; `changes` are sections of the config."""
        self.train(name, changes, epochs)
        return from_run(self.folder / name)

    def scores(self, name: str) -> dict[str, float]:
        """The held-out figures after the last epoch of the run `name`, by their names in its log."""
        events = [event for event in read_events(self.folder / name / run.LOG) if event["event"] == "epoch"]
        return {key: value for key, value in events[-1].items() if isinstance(value, int | float)}

    def train(self, name: str, changes: Changes, epochs: int) -> None:
        """Train the run `name`, go on with it, or leave it as it is."""
        folder, config = self.folder / name, self._config(name, changes, epochs)
        if (folder / run.CONFIG).exists() and run.read_config(folder) != config:
            say(f"{name}: its config has changed, so it is made anew")
            shutil.rmtree(folder)
        if _is_finished(folder, config):
            return
        say(f"{name}: {config.model.kind}, {config.model.latent_dim} latents, {config.run.epochs} epochs")
        fit(config, folder, resume=(folder / run.CONFIG).exists())

    def _config(self, name: str, changes: Changes, epochs: int) -> Config:
        base = config_file.read_preset("demo")
        path = self.data_path.resolve()
        labels = base.data.labels if _FASHION in path.name else ()
        whole = {
            "model": {"kind": "dense", "hidden": [256, 128]},
            "run": {"epochs": max(1, round(epochs * self.share)), "precision": "fp32", "checkpoint_steps": 10_000},
        }
        config = config_file.override(replace(base, data=DataConfig(path=str(path), labels=labels)), whole)
        return config_file.override(config, changes)


def _is_finished(folder: Path, config: Config) -> bool:
    log = folder / run.LOG
    events = read_events(log) if log.exists() else []
    epochs = 1 if config.model.kind == "pca" else config.run.epochs
    ended = [event["step"] for event in events if event.get("event") == "epoch" and event["epoch"] == epochs]
    return bool(ended) and checkpoint.newest_step(folder / run.CHECKPOINTS) == ended[-1]
