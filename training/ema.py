"""The exponential moving average of the weights: what is evaluated, drawn and exported.

Averaged weights need batch statistics and a sigma of their own: `calibrate` measures both on training images.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training import batches
from training.likelihood import Gaussian
from training.model import VAE

_BATCH_SIZE = 128
_SEED = 1  # of the posterior samples that the statistics are measured with


class WeightAverage:
    """`model` is a copy whose parameters follow those that `update` is given."""

    def __init__(self, model: VAE, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def update(self, model: VAE, step: int) -> None:
        """Move towards `model`: quickly at first, while the average still holds the initial weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def calibrate(model: VAE, pixels: NDArray[np.uint8]) -> None:
    """Measure BatchNorm's statistics, then the likelihood's sigma, on `pixels` (N, H, W, C); leaves evaluation mode on.

    The same images and weights give the same statistics.
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    generator = torch.Generator(device).manual_seed(_SEED)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for x in batches.in_order(pixels, _BATCH_SIZE, device):
        if (
            len(x) * 2 > _BATCH_SIZE or len(pixels) < _BATCH_SIZE
        ):  # a small last batch would weigh as much as a full one
            model(model.likelihood.observe(x, generator), generator)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    if isinstance(model.likelihood, Gaussian):
        model.likelihood.mean_squared_error.fill_(_squared_error(model, pixels, generator))


def _squared_error(model: VAE, pixels: NDArray[np.uint8], generator: torch.Generator) -> float:
    """The mean over all pixels, with one posterior sample for each image: sigma squared at the ELBO's optimum."""
    total = 0.0
    for x in batches.in_order(pixels, _BATCH_SIZE, generator.device):
        output, _, _ = model(x, generator)
        total += (x - model.likelihood.mean(output)).double().square().sum().item()
    return total / pixels.size
