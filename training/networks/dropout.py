"""Dropout whose noise comes from a given generator, so that a resumed run is bit for bit the unbroken one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """In training, each number is 0 with probability `rate` and else divided by 1 - rate; otherwise the identity.

    torch's own draws from the global generator, whose state no checkpoint of ours holds. Whoever runs the network in
    training mode sets `generator` before, as `VAE.forward` does.
    """

    generator: torch.Generator | None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.generator is None:
            raise ValueError("dropout: got no generator in training mode, wanted that of the run")
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)
