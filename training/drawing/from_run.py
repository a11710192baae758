"""A run's model, its held-out images, its snapshots and its log, as a subject for pictures."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import batches, checkpoint, figures, run, trained
from training.binarise import seen_by
from training.drawing.subject import Labels, Latents, Pixels, Snapshot, Subject
from training.errors import CheckpointError, RunError
from training.model import VAE
from training.trained import Trained

_NAME = re.compile(r"epoch-(\d+)\.pt")
_SEED = 3


def from_run(folder: Path, data_path: str | None = None) -> Subject:
    """The averaged weights of the run's newest checkpoint; `data_path` says where its images are now.

    Raises `RunError`, `CheckpointError` or `DataError` as `trained.load` does.
    """
    source = trained.load(folder, data_path)
    test = source.dataset.test
    subject = Subject(
        name=folder.resolve().name,
        image_shape=source.dataset.image_shape,
        latent_dim=source.config.model.latent_dim,
        encode=_encoder(source.model),
        decode=_decoder(source.model),
        classes=source.model.classes,
        class_names=source.dataset.labels,
        pixels=seen_by(source.model.likelihood.name, test.pixels),
        labels=test.labels,
        draw_prior=_prior(source),
        log=folder / run.LOG if (folder / run.LOG).is_file() else None,
    )
    return replace(subject, snapshots=_snapshots(folder / run.SNAPSHOTS, subject, source.model))


def of_model(subject: Subject, model: VAE) -> Subject:
    """`subject` with `model`, in evaluation mode, in place of its own."""
    return replace(subject, encode=_encoder(model), decode=_decoder(model))


def _encoder(model: VAE) -> Callable[[Pixels, Labels | None], tuple[Latents, Latents]]:
    device = _device(model)

    @torch.inference_mode()
    def encode(pixels: Pixels, labels: Labels | None) -> tuple[Latents, Latents]:
        x = batches.to_tensor(np.ascontiguousarray(pixels), device)
        mean, logvar = model.encoder(x, *_condition(model, labels, device))
        return mean.float().cpu().numpy(), logvar.float().cpu().numpy()

    return encode


def _decoder(model: VAE) -> Callable[[Latents, Labels | None], Pixels]:
    device = _device(model)

    @torch.inference_mode()
    def decode(latents: Latents, labels: Labels | None) -> Pixels:
        z = torch.from_numpy(latents).to(device)
        return figures.to_pixels(model.likelihood.mean(model.decoder(z, *_condition(model, labels, device))))

    return decode


def _condition(model: VAE, labels: Labels | None, device: torch.device) -> tuple[Tensor, ...]:
    """The labels, for a model that wants them."""
    if not model.classes:
        return ()
    if labels is None:
        raise RunError(f"labels: got none, wanted one of {model.classes} classes for each image: it is conditional")
    return (torch.from_numpy(np.ascontiguousarray(labels)).to(device),)


def _prior(source: Trained) -> Callable[[int], Latents] | None:
    """The flow that was learnt with the model, or what was fitted to its latents afterwards; None for N(0, I)."""
    flow, fitted = source.model.prior, source.prior
    if flow is not None:
        latents, noise_dim, device = flow.latents, source.config.model.latent_dim, _device(source.model)
    elif fitted is not None and fitted.module is not None:
        latents, noise_dim, device = fitted.latents, fitted.noise_dim, torch.device("cpu")
    else:
        return None

    @torch.inference_mode()
    def draw(n: int) -> Latents:
        noise = torch.randn(n, noise_dim, generator=torch.Generator().manual_seed(_SEED))
        drawn: Latents = latents(noise.to(device)).float().cpu().numpy()
        return drawn

    return draw


def _device(model: VAE) -> torch.device:
    return next(model.parameters()).device


def _snapshots(folder: Path, subject: Subject, model: VAE) -> tuple[Snapshot, ...]:
    """By epoch. Each is read only when it is drawn, into a model of its own."""
    found = sorted((int(match[1]), path) for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name)))

    def opener(path: Path) -> Callable[[], Subject]:
        return lambda: of_model(subject, _with_weights(model, path))

    return tuple(Snapshot(epoch, opener(path)) for epoch, path in found)


def _with_weights(model: VAE, path: Path) -> VAE:
    saved = checkpoint.read(path)
    then = copy.deepcopy(model)
    try:
        then.load_state_dict(saved["weights"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: got weights of another model than the run's") from error
    return then.eval()
