"""Runs and subjects that the tests of drawing share, each made once; tests only read them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from training_fixtures import FASHION, small_set, tiny

from latentry.manifest import embedded_models
from training.config import Config, PriorConfig
from training.drawing.from_folder import from_folder
from training.drawing.from_run import from_run
from training.drawing.subject import Subject
from training.fit import fit

_MIXTURE = PriorConfig(fit="mixture", components=2)
SHIPPED = embedded_models() / "fashion" / "1"


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="latentry-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def run_of(kind: str, *, conditional: bool = False) -> Path:
    """A finished run of a model of that kind with two latents, of 3 epochs, each of which left a snapshot."""
    return _run(kind, conditional)


@functools.cache
def _run(kind: str, conditional: bool) -> Path:
    folder = _folder()
    images = small_set(folder, 120)
    out = folder / f"{kind}{'-conditional' * conditional}"
    fit(_with(tiny(images, epochs=3), kind, conditional=conditional), out, resume=False)
    return out


def _with(config: Config, kind: str, **model: Any) -> Config:
    shape = replace(config.model, kind=kind, latent_dim=2, hidden=(32, 16), **model)
    return replace(config, model=shape, run=replace(config.run, snapshots=True), prior=_MIXTURE)


def run_subject(kind: str = "dense", *, conditional: bool = False) -> Subject:
    return from_run(run_of(kind, conditional=conditional))


@functools.cache
def shipped_subject() -> Subject:
    """The model that comes with the repository, from its graphs, with the images that come with it."""
    return from_folder(SHIPPED, str(FASHION))
