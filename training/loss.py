"""The parts of a variational bound, each written once: in nats, float32, summed over latents.

`training.objective` puts them together for training. Knows nothing of configs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.likelihood import Likelihood


@dataclass(frozen=True, slots=True)
class Elbo:
    """`reconstruction` is E[log p(x|z)] with one sample of z, `kl` is KL(q(z|x) ‖ N(0, I)). Scalars, in nats."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def value(self) -> Tensor:
        """The ELBO proper, at beta = 1."""
        return self.reconstruction - self.kl


def elbo(x: Tensor, output: Tensor, mean: Tensor, logvar: Tensor, likelihood: Likelihood) -> Elbo:
    """The ELBO of images x (N, C, H, W) under the decoder's `output` for one z of q = (mean, logvar), where the prior
    is N(0, I): log p(x|z) less KL(q(z|x) ‖ p(z)), a mean over the images."""
    reconstruction = likelihood.log_prob(x, output.float()).mean()
    return Elbo(reconstruction, kl_to_standard_normal(mean.float(), logvar.float()).mean())


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, I)), summed over latents: (N,) (Kingma & Welling 2013, appendix B)."""
    return kl_by_latent(mean, logvar).sum(1)


def kl_by_latent(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each latent: (N, Z)."""
    return 0.5 * (mean.square() + torch.exp(logvar) - 1 - logvar)


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) of each latent: (N, Z)."""
    return -0.5 * ((z - mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi))


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of latents z (N, Z): (N,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """The bound on log p(x) of S samples, log of the mean of p(x, z) / q(z|x), in nats: (S, N) -> (N,)
    (Burda et al. 2016, equation 8)."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
