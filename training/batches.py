"""Batches: which images come when, and how pixels become what the model takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.images import Images
from training.model import VAE


def to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1], channels last in memory as convolutions like it."""
    if not pixels.flags.writeable:  # a stretch of a mapped file, which torch would share without knowing that
        pixels = pixels.copy()
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(255)


def in_order(images: Images, size: int, model: VAE, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """All images in batches of `size`, the last one smaller if need be, with their labels if the model takes any."""
    for start in range(0, len(images), size):
        yield batch(images, np.arange(start, min(start + size, len(images))), model, device)


def batch(images: Images, chosen: NDArray[np.int64], model: VAE, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The images at `chosen`, and their labels int64 (N,) if the model is conditional."""
    x = to_tensor(images.pixels[chosen], device)
    if not model.classes or images.labels is None:
        return x, None
    return x, torch.from_numpy(images.labels[chosen]).to(device)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A shuffle of 0 to n - 1 that depends on the seed and the epoch alone, so that resuming needs no state for it."""
    return np.random.default_rng((seed, epoch)).permutation(n)
