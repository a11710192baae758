"""Pictures of a model: reconstructions beside originals, samples, and the training curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latentry.pixels import to_pillow
from training import batches
from training.drawing.curves import learning_curves
from training.images import Images
from training.model import VAE

Grid = NDArray[np.uint8]  # (H, W, C)
_GAP = 2  # pixels of white between the images
_SEED = 3


@torch.inference_mode()
def reconstructions(model: VAE, images: Images, columns: int = 8, rows: int = 4) -> Grid:
    """Originals, each row above the row of their reconstructions."""
    device = next(model.parameters()).device
    shown = images.spread(columns * rows)
    labels = torch.from_numpy(shown.labels).to(device) if model.classes and shown.labels is not None else None
    mean, _ = model.encoder(batches.to_tensor(shown.pixels, device), labels)
    drawn = to_pixels(model.likelihood.mean(model.decoder(mean, labels)))
    pairs = []
    for start in range(0, len(shown), columns):
        pairs += [shown.pixels[start : start + columns], drawn[start : start + columns]]
    return tile(np.concatenate(pairs), min(columns, len(shown)))


@torch.inference_mode()
def samples(model: VAE, latent_dim: int, side: int = 8) -> Grid:
    """`side` x `side` images for latents drawn from the prior, of all classes in turn; the same latents each time."""
    device = next(model.parameters()).device
    noise = torch.randn(side * side, latent_dim, generator=torch.Generator().manual_seed(_SEED)).to(device)
    z = noise if model.prior is None else model.prior.latents(noise)
    labels = torch.arange(len(z), device=device) % model.classes if model.classes else None
    return tile(to_pixels(model.likelihood.mean(model.decoder(z, labels))), side)


def tile(images: NDArray[np.uint8], columns: int) -> Grid:
    """Images (N, H, W, C) in rows of `columns` on white, enlarged by whole factors until they can be seen."""
    n, height, width, channels = images.shape
    scale = max(1, 56 // max(height, width))
    images = images.repeat(scale, 1).repeat(scale, 2)
    height, width = height * scale + _GAP, width * scale + _GAP
    grid = np.full((-(-n // columns) * height + _GAP, columns * width + _GAP, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height + _GAP, index % columns * width + _GAP
        grid[top : top + height - _GAP, left : left + width - _GAP] = image
    return grid


def write_png(grid: Grid, path: Path) -> None:
    """Write a grid (H, W, C) as PNG."""
    to_pillow(grid).save(path)


def write_training_curve(log: Path, path: Path) -> None:
    """Draw the ELBO, what it is made of, and the schedules, from the JSON-lines log of a run."""
    learning_curves(log).savefig(path)


def to_pixels(mean: torch.Tensor) -> NDArray[np.uint8]:
    """Means (N, C, H, W) in [0, 1] -> uint8 (N, H, W, C)."""
    return (mean * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
