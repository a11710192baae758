"""The exponential moving average of the weights: what is evaluated, drawn and exported.

Averaged weights need batch statistics and a sigma of their own: `calibrate` measures both on training images.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training import batches
from training.images import Images
from training.model import VAE

_BATCH_SIZE = 128
_SEED = 1  # of the posterior samples that the statistics are measured with


class WeightAverage:
    """`model` is a copy of the model that is trained, `update` makes its parameters follow that one's."""

    def __init__(self, trained: VAE, decay: float) -> None:
        self.model = copy.deepcopy(trained).requires_grad_(False).eval()
        self.decay = decay
        # listed once: to find them anew takes as long as to average them
        self._averaged: list[Tensor] = list(self.model.parameters())
        self._trained: list[Tensor] = list(trained.parameters())

    def update(self, step: int) -> None:
        """Move towards what is trained: quickly at first, while the average still holds the initial weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)


@torch.no_grad()
def calibrate(model: VAE, images: Images) -> None:
    """Measure BatchNorm's statistics, then the likelihood's own, on `images`; leaves evaluation mode on.

    The same images and weights give the same statistics.
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    generator = torch.Generator(device).manual_seed(_SEED)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.eval()  # dropout and corruption are off when the model is used, so also when its statistics are measured
    for norm in norms:
        norm.train()
    for x, labels in batches.in_order(images, _BATCH_SIZE, model, device):
        # a small last batch would weigh as much as a full one
        if len(x) * 2 > _BATCH_SIZE or len(images) < _BATCH_SIZE:
            model(model.likelihood.observe(x, generator), generator, labels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    _calibrate_likelihood(model, images, generator)


def _calibrate_likelihood(model: VAE, images: Images, generator: torch.Generator) -> None:
    """Its statistic's mean over all pixels, with one posterior sample for each image: best for the ELBO."""
    likelihood, total = model.likelihood, 0.0
    if not likelihood.has_statistic:
        return
    for x, labels in batches.in_order(images, _BATCH_SIZE, model, generator.device):
        total += likelihood.statistic(x, model(x, generator, labels).output).item()
    likelihood.set_statistic(total / images.pixels.size)
