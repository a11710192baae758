"""How near reconstructions are to their images, and samples to real ones, as they are served: uint8 pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import perceptual
from training.differences import decibels
from training.errors import RunError
from training.evaluation import distances
from training.evaluation.features import Features
from training.evaluation.graphs import Graphs

_BLOCK = 256
_ROUNDING = 1e-3

Pixels = NDArray[np.uint8]


def reconstruction(graphs: Graphs, pixels: Pixels, mean: Tensor, labels: NDArray[np.int64] | None) -> dict[str, float]:
    """PSNR over all pixels, and SSIM as a mean over images, of the means of p(x|z) at the posteriors' `mean` (N, Z)."""
    squares, similarities = 0.0, []
    for start in range(0, len(pixels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        decoded = graphs.means(mean[rows], None if labels is None else labels[rows])
        if decoded.min() < -_ROUNDING or decoded.max() > 1 + _ROUNDING:
            got = f"{decoded.min():g} to {decoded.max():g}"
            raise RunError(f"the decoder's mean: got {got}, wanted values in [0, 1]: the model is broken")
        truth = torch.from_numpy(np.array(pixels[rows])).float().div_(255)
        squares += (torch.from_numpy(decoded).double() - truth).square().sum().item()
        similarities.append(perceptual.ssim(_channels_first(decoded), truth.permute(0, 3, 1, 2)).double())
    error = squares / pixels.size
    return {"psnr_db": decibels(error), "mean_squared_error": error, "ssim": float(torch.cat(similarities).mean())}


def _channels_first(decoded: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)


def samples(graphs: Graphs, n: int, labels: NDArray[np.int64] | None, seed: int, *, fitted: bool) -> Pixels:
    """`n` images drawn from N(0, I), or from the model's own prior; of the classes `labels` if it is conditional."""
    noise_dim = graphs.noise_dim if fitted else graphs.manifest.latent_dim
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, noise_dim), np.float32))
    return graphs.images(graphs.prior_latents(noise).cpu() if fitted else noise, labels)


def compare(features: Features, real: Pixels, fake: Mapping[str, Pixels]) -> dict[str, float]:
    """The distances of each set of `fake` images from `real` ones; a set's name is put behind theirs."""
    figures: dict[str, float] = {}
    described = features.of(real)
    for name, pixels in fake.items():
        other = features.of(pixels)
        discrepancy, error = distances.kernel(described, other)
        precision, recall = distances.precision_recall(described, other)
        figures |= {
            f"frechet_distance{name}": distances.frechet(described, other),
            f"kernel_distance{name}": discrepancy,
            f"kernel_distance{name}_standard_error": error,
            f"precision{name}": precision,
            f"recall{name}": recall,
        }
    return figures
