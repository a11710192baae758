"""Binary pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.likelihoods.contract import Likelihood

RESOLUTION = 2.0**-24  # of float32 just below 1: what a graph's mean cannot tell from 0 or 1


class Bernoulli(Likelihood):
    """Black or white, by logits. Grey values in [0, 1] are taken as probabilities and drawn anew each time they are
    seen (dynamic binarisation): cross-entropy on grey values is no likelihood."""

    name = "bernoulli"

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the model is shown and scored on: a binary draw of the grey values x (N, C, H, W)."""
        return (torch.rand(x.shape, generator=generator, device=x.device) < x).to(x.dtype)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return -functional.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def log_prob_of_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """log p(x|z) (N,), the mean kept from 0 and 1 by float32's resolution: no pixel costs more than 16.6 nats."""
        mean = mean.clamp(RESOLUTION, 1 - RESOLUTION)
        return (x * torch.log(mean) + (1 - x) * torch.log1p(-mean)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z): 0 or 1."""
        return torch.bernoulli(self.mean(output), generator=generator)
