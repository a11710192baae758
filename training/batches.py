"""Batches: which images come when, and how pixels become what the model takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1], channels last in memory as convolutions like it."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(255)


def in_order(pixels: NDArray[np.uint8], size: int, device: torch.device) -> Iterator[Tensor]:
    """All images in batches of `size`, the last one smaller if need be."""
    for start in range(0, len(pixels), size):
        yield to_tensor(pixels[start : start + size], device)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A shuffle of 0 to n - 1 that depends on the seed and the epoch alone, so that resuming needs no state for it."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def spread(pixels: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """At most `n` of the images, evenly spread over the set."""
    if len(pixels) <= n:
        return pixels
    return pixels[np.linspace(0, len(pixels) - 1, n).astype(np.int64)]
