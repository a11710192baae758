"""Grey pixels in [0, 1] by what looks like cross-entropy, with the normaliser that makes it a density.

Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli". With logits t it is p(x) = exp(t x) t / (exp(t) - 1) on
[0, 1]; their lambda is sigmoid(t), which is not the mean. Where t is near 0 the formulas are 0/0, and their Taylor
series are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.likelihoods.contract import Likelihood

_NEAR_ZERO = 0.5  # of t; the terms left out of the series are below float32's resolution


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1]; the decoder's output are the logits of its lambda."""

    name = "continuous-bernoulli"
    needs_parameters = True

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        # t x less the larger of t and 0, in one product: two large numbers would not cancel to the last digit
        return (output * (x - (output > 0).to(x.dtype)) - _log_normaliser(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        near = output.abs() < _NEAR_ZERO
        t = torch.where(near, output, 0.0)
        series = 0.5 + t / 12 - t**3 / 720 + t**5 / 30240
        t = torch.where(near, 1.0, output)  # the branch not taken must not divide by zero: its gradient would be NaN
        return torch.where(near, series, 0.5 + 0.5 / torch.tanh(0.5 * t) - 1 / t).clamp(0, 1)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), in [0, 1], by the inverse of the distribution function."""
        uniform = torch.rand(output.shape, generator=generator, device=output.device)
        slope = output.abs().clamp_min(1e-6)
        falling = -torch.log1p(uniform * torch.expm1(-slope)) / slope  # a draw for t = -slope
        return torch.where(output > 0, 1 - falling, falling).clamp(0, 1)


def _log_normaliser(output: Tensor) -> Tensor:
    """log of the integral of exp(t x) over [0, 1], less the larger of t and 0: at most 0."""
    slope = output.abs()
    near = slope < _NEAR_ZERO
    t = torch.where(near, slope, 0.0)
    series = -t / 2 + t**2 / 24 - t**4 / 2880 + t**6 / 181440
    t = torch.where(near, 1.0, slope)
    return torch.where(near, series, torch.log(-torch.expm1(-t)) - torch.log(t))
