"""Normal pixels: with one variance that is the best for the data, with one that is given, or with each its own.

All three are densities over the reals, so that log p(x|z) can be above 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.likelihoods.contract import Likelihood
from training.likelihoods.link import to_mean

_LOG_SIGMA_FLOOR = -6.0  # below one grey level in 255 a smaller sigma would only reward the rounding of pixels
_LOGVAR_FLOOR = -2 * math.log(255)  # a sigma of one grey level: each pixel chooses its own, and black ones would sink
_LOGVAR_CEILING = 2.0  # a sigma of e, wider than any image
_MOMENTUM = 0.05


class Gaussian(Likelihood):
    """N(mean, sigma²) with one sigma for all pixels, the best for the data (σ-VAE, Rybkin et al. 2021, section 3.2).

    In training mode sigma is the batch's own optimum, which has a closed form, and `mean_squared_error` follows it;
    in evaluation mode sigma is what that running figure says.
    """

    name = "gaussian"
    has_statistic = True
    mean_squared_error: Tensor

    def __init__(self, link: str = "sigmoid") -> None:
        super().__init__()
        self.link = link
        self.register_buffer("mean_squared_error", torch.tensor(1.0))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return self.log_prob_of_mean(x, self.mean(output))

    def log_prob_of_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        squares = (x - mean).square().flatten(1)
        if self.training:
            error = squares.detach().mean()
            self.mean_squared_error.lerp_(error, _MOMENTUM)
            return _log_normal(squares, 2 * _log_sigma(error)).sum(1)
        return _log_normal(squares, 2 * _log_sigma(self.mean_squared_error)).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return to_mean(output, self.link)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), which may fall outside [0, 1]."""
        return self.mean(output) + torch.exp(_log_sigma(self.mean_squared_error)) * _noise(output, generator)

    def parameters_by_name(self) -> dict[str, float]:
        return {"sigma": math.exp(_log_sigma(self.mean_squared_error).item())}

    def statistic(self, x: Tensor, output: Tensor) -> Tensor:
        """The sum of squared errors."""
        return (x - self.mean(output)).double().square().sum()

    def set_statistic(self, mean: float) -> None:
        self.mean_squared_error.fill_(mean)


class GaussianFixed(Likelihood):
    """N(mean, c·I) with a c that is chosen beforehand: ‖x - mean‖² / 2c and a constant. A small c weighs the
    reconstruction against the KL."""

    name = "gaussian-fixed"

    def __init__(self, variance: float = 1.0, link: str = "sigmoid") -> None:
        super().__init__()
        self.variance = variance
        self.link = link

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return self.log_prob_of_mean(x, self.mean(output))

    def log_prob_of_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        squares = (x - mean).square().flatten(1)
        return _log_normal(squares, torch.full_like(squares[:1, :1], math.log(self.variance))).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return to_mean(output, self.link)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), which may fall outside [0, 1]."""
        return self.mean(output) + math.sqrt(self.variance) * _noise(output, generator)

    def parameters_by_name(self) -> dict[str, float]:
        return {"variance": self.variance}


class GaussianPredicted(Likelihood):
    """N(mean, variance) with a variance for each pixel, which the decoder predicts: the first C channels of its output
    are the logits of the means, the C after them log-variances, bounded softly from one grey level to e."""

    name = "gaussian-predicted"
    outputs_per_channel = 2
    needs_parameters = True

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return _log_normal((x - self.mean(output)).square(), self._logvar(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output.chunk(2, 1)[0])

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), which may fall outside [0, 1]."""
        mean = self.mean(output)
        return mean + torch.exp(0.5 * self._logvar(output)) * _noise(mean, generator)

    def _logvar(self, output: Tensor) -> Tensor:
        """Between the bounds, and close to the output well inside them (the soft bounds of Chua et al. 2018, A.1)."""
        logvar = _LOGVAR_CEILING - functional.softplus(_LOGVAR_CEILING - output.chunk(2, 1)[1])
        return _LOGVAR_FLOOR + functional.softplus(logvar - _LOGVAR_FLOOR)


def _log_normal(squares: Tensor, logvar: Tensor) -> Tensor:
    """The log density of values whose squared distances from their means are `squares`."""
    return -0.5 * (squares * torch.exp(-logvar) + logvar + math.log(2 * math.pi))


def _log_sigma(mean_squared_error: Tensor) -> Tensor:
    """log of the root of the error, which is the best sigma; above the floor even for a perfect model."""
    return (0.5 * torch.log(mean_squared_error)).clamp_min(_LOG_SIGMA_FLOOR)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)
