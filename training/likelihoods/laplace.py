"""Laplace pixels: the likelihood of absolute errors, which forgives outliers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.likelihoods.contract import Likelihood
from training.likelihoods.link import to_mean

_LOG_SCALE_FLOOR = -6.0  # below one grey level in 255, as for the Gaussian
_MOMENTUM = 0.05


class Laplace(Likelihood):
    """exp(-|x - mean| / b) / 2b with one scale b for all pixels, the best for the data: the mean absolute error.

    In training mode b is the batch's own optimum, and `mean_absolute_error` follows it; in evaluation mode b is what
    that running figure says. A density over the reals.
    """

    name = "laplace"
    has_statistic = True
    mean_absolute_error: Tensor

    def __init__(self, link: str = "sigmoid") -> None:
        super().__init__()
        self.link = link
        self.register_buffer("mean_absolute_error", torch.tensor(1.0))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return self.log_prob_of_mean(x, self.mean(output))

    def log_prob_of_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        errors = (x - mean).abs().flatten(1)
        if self.training:
            error = errors.detach().mean()
            self.mean_absolute_error.lerp_(error, _MOMENTUM)
            log_scale = _log_scale(error)
        else:
            log_scale = _log_scale(self.mean_absolute_error)
        return -(errors * torch.exp(-log_scale) + log_scale + math.log(2)).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return to_mean(output, self.link)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), which may fall outside [0, 1]: the difference of two exponentials."""
        draws = torch.empty((2, *output.shape), device=output.device).exponential_(generator=generator)
        return self.mean(output) + torch.exp(_log_scale(self.mean_absolute_error)) * (draws[0] - draws[1])

    def parameters_by_name(self) -> dict[str, float]:
        return {"scale": math.exp(_log_scale(self.mean_absolute_error).item())}

    def statistic(self, x: Tensor, output: Tensor) -> Tensor:
        """The sum of absolute errors."""
        return (x - self.mean(output)).double().abs().sum()

    def set_statistic(self, mean: float) -> None:
        self.mean_absolute_error.fill_(mean)


def _log_scale(mean_absolute_error: Tensor) -> Tensor:
    """log of the error, which is the best scale; above the floor even for a perfect model."""
    return torch.log(mean_absolute_error).clamp_min(_LOG_SCALE_FLOOR)
