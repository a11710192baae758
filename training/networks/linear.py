"""One linear map each way: the linear autoencoder, and PCA, which is one whose weights have a closed form.

The decoder's output is the mean of p(x|z) itself, not its logit.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from training.networks.posterior import POINT_LOGVAR
from training.networks.scales import Shape


class LinearEncoder(nn.Module):
    """x (N, C, H, W) -> mean (N, Z), linear in x, and logvar (N, Z), the same for every x.

    `latent_logvar` (Z,) starts at `POINT_LOGVAR`, and stays there for an autoencoder.
    """

    latent_logvar: Tensor

    def __init__(self, shape: Shape, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(shape), latent_dim)
        self.register_buffer("latent_logvar", torch.full((latent_dim,), POINT_LOGVAR))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean = self.layer(x.flatten(1))
        return mean, self.latent_logvar.to(mean.dtype).expand_as(mean)


class LinearDecoder(nn.Module):
    """z (N, Z) -> the mean of p(x|z) (N, C, H, W), linear in z and unbounded."""

    def __init__(self, shape: Shape, latent_dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.Linear(latent_dim, math.prod(shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.layer(z).unflatten(1, self.shape))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: it becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        self.layer.bias.data.copy_(mean_image.flatten())
