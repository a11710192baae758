"""The ELBO, once: log p(x|z) less KL(q(z|x) ‖ p(z)), in nats, summed over pixels and latents, a mean over the batch."""

from __future__ import annotations

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

    def objective(self, beta: float) -> Tensor:
        """What training makes small: the negative ELBO with the KL weighed by beta (Higgins et al. 2017)."""
        return beta * self.kl - self.reconstruction


def elbo(x: Tensor, output: Tensor, mean: Tensor, logvar: Tensor, likelihood: Likelihood) -> Elbo:
    """The ELBO of images x (N, C, H, W) under the decoder's `output` (N, C, H, W) for one z of q = (mean, logvar)."""
    reconstruction = likelihood.log_prob(x, output.float()).mean()
    return Elbo(reconstruction, kl_to_standard_normal(mean.float(), logvar.float()).mean())


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, I)), summed over latents: (N,) (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + torch.exp(logvar) - 1 - logvar).sum(1)
