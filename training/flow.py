"""A prior learnt with the model: a normalising flow of affine couplings (RealNVP: Dinh et al. 2017).

    density    z -> noise, log|det dnoise/dz|         log p(z) = log N(noise; 0, I) + log|det|
    sampling   noise -> z                             the exact inverse

A flexible prior is to a diagonal posterior what an inverse autoregressive flow would be to N(0, I) (Chen et al. 2017,
"Variational lossy autoencoder", section 3.2), and leaves the encoder's contract, a mean and a logvar, as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.loss import log_standard_normal

_LOG_SCALE_LIMIT = 2.0  # of one coupling: e^2 at most, so that no step can blow up


class Flow(nn.Module):
    """p(z) over latents (N, Z): `layers` couplings, each with two hidden layers of `width`. Starts as N(0, I)."""

    def __init__(self, latent_dim: int, layers: int, width: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(latent_dim, width, parity=index % 2) for index in range(layers))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (N,)."""
        log_det = z.new_zeros(z.shape[0])
        for coupling in self.couplings:
            z, change = coupling(z)
            log_det = log_det + change
        return log_standard_normal(z) + log_det

    def latents(self, noise: Tensor) -> Tensor:
        """Draws of p(z) made of standard normal noise (N, Z)."""
        for coupling in reversed(self.couplings):
            noise = coupling.inverse(noise)  # type: ignore[operator]
        return noise


class Coupling(nn.Module):
    """Half of the latents, every other one, scaled and shifted by a function of the other half."""

    mask: Tensor

    def __init__(self, latent_dim: int, width: int, parity: int) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(latent_dim) % 2 == parity).float(), persistent=False)
        self.net = nn.Sequential(
            nn.Linear(latent_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2 * latent_dim),
        )
        last = self.net[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z)
        return z * torch.exp(log_scale) + shift, log_scale.sum(1)

    def inverse(self, noise: Tensor) -> Tensor:
        log_scale, shift = self._affine(noise)
        return (noise - shift) * torch.exp(-log_scale)

    def _affine(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Zero where the mask is one: these latents pass unchanged, and decide what becomes of the others."""
        log_scale, shift = self.net(z * self.mask).chunk(2, 1)
        free = 1 - self.mask
        return _LOG_SCALE_LIMIT * torch.tanh(log_scale / _LOG_SCALE_LIMIT) * free, shift * free
