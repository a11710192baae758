"""The picture beside a model card: originals above their reconstructions, and samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from latentry.pixels import to_pillow
from training import figures
from training.drawing.canvas import labelled, png
from training.trained import Trained

MOST_CLASSES = 8  # that have a row of samples
_COLUMNS = 8
_GAP = 16  # pixels of white between the halves
_SEED = 3


def preview(trained: Trained) -> bytes:
    """A PNG: originals above their reconstructions on the left, samples on the right; of a conditional model a row of
    samples for each of its first classes, named, from the same noise.

    Samples are of the model's prior: the one learnt with it, or else the one fitted to what it encoded, or N(0, I).
    """
    left = to_pillow(figures.reconstructions(trained.model, trained.dataset.test))
    classes = min(trained.model.classes, MOST_CLASSES)
    rows = classes or _COLUMNS
    names = [dict(enumerate(trained.dataset.labels)).get(label, str(label)) for label in range(classes)]
    return png(_beside(left, labelled(_samples(trained, rows), _COLUMNS, row_names=names)))


@torch.inference_mode()
def _samples(trained: Trained, rows: int) -> NDArray[np.uint8]:
    """`rows` times so many images, uint8 (N, H, W, C); row r is of class r and all of the same noise, if there are
    classes."""
    model = trained.model
    device = next(model.parameters()).device
    if model.classes:
        z = _latents(trained, _COLUMNS).to(device).repeat(rows, 1)
        labels = torch.arange(rows, device=device).repeat_interleave(_COLUMNS)
    else:
        z, labels = _latents(trained, rows * _COLUMNS).to(device), None
    return figures.to_pixels(model.likelihood.mean(model.decoder(z, labels)))


def _latents(trained: Trained, n: int) -> torch.Tensor:
    """Draws (n, Z) of the model's prior, the same each time."""
    model, fitted = trained.model, trained.prior
    noise_dim = trained.config.model.latent_dim if fitted is None else fitted.noise_dim
    noise = torch.randn(n, noise_dim, generator=torch.Generator().manual_seed(_SEED))
    if model.prior is not None:
        return model.prior.latents(noise.to(next(model.parameters()).device))
    return noise if fitted is None else fitted.latents(noise)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Both on white, at the top."""
    height = max(left.height, right.height)
    whole = Image.new(left.mode, (left.width + _GAP + right.width, height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + _GAP, 0))
    return whole
