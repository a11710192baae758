"""p(x|z): what the decoder's output means. Each likelihood gives log p(x|z), the mean of p(x|z) and a sample.

The decoder's output (N, C, H, W) is unbounded; both likelihoods here take it as the logits of the pixels' means.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_LOG_SIGMA_FLOOR = -6.0  # below one grey level in 255 a smaller sigma would only reward the rounding of pixels
_MOMENTUM = 0.05


class Bernoulli(nn.Module):
    """Binary pixels. Grey values in [0, 1] are taken as probabilities and drawn anew each time they are seen
    (dynamic binarisation): cross-entropy on grey values is no likelihood."""

    name = "bernoulli"

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the model is shown and scored on: a binary draw of the grey values x (N, C, H, W)."""
        return (torch.rand(x.shape, generator=generator, device=x.device) < x).to(x.dtype)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over pixels: (N,)."""
        return -functional.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z), in [0, 1]."""
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z): 0 or 1."""
        return torch.bernoulli(self.mean(output), generator=generator)

    def parameters_by_name(self) -> dict[str, float]:
        """The likelihood's numbers, for the manifest."""
        return {}


class Gaussian(nn.Module):
    """N(mean, sigma²) with one sigma for all pixels, the best for the data (σ-VAE, Rybkin et al. 2021, section 3.2).

    In training mode sigma is the batch's own optimum, which has a closed form, and `mean_squared_error` follows it;
    in evaluation mode sigma is what that running figure says.
    """

    name = "gaussian"
    mean_squared_error: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_squared_error", torch.tensor(1.0))

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the model is shown and scored on: x as it is."""
        return x

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over pixels: (N,). A density, so it can be above 0."""
        squares = (x - self.mean(output)).square().flatten(1)
        if self.training:
            error = squares.detach().mean()
            self.mean_squared_error.lerp_(error, _MOMENTUM)
            log_sigma = _log_sigma(error)
        else:
            log_sigma = _log_sigma(self.mean_squared_error)
        constant = log_sigma + 0.5 * math.log(2 * math.pi)
        return -(0.5 * squares * torch.exp(-2 * log_sigma) + constant).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z), in [0, 1]."""
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), which may fall outside [0, 1]."""
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        return self.mean(output) + torch.exp(_log_sigma(self.mean_squared_error)) * noise

    def parameters_by_name(self) -> dict[str, float]:
        """The likelihood's numbers, for the manifest."""
        return {"sigma": math.exp(_log_sigma(self.mean_squared_error).item())}


Likelihood = Bernoulli | Gaussian


def build(name: str) -> Likelihood:
    """The likelihood called `gaussian` or `bernoulli`."""
    return Bernoulli() if name == Bernoulli.name else Gaussian()


def _log_sigma(mean_squared_error: Tensor) -> Tensor:
    """log of the root of the error, which is the best sigma; above the floor even for a perfect model."""
    return (0.5 * torch.log(mean_squared_error)).clamp_min(_LOG_SIGMA_FLOOR)
