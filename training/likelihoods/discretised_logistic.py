"""Pixels as one of 256 levels: a logistic distribution cut into as many bins (Kingma et al. 2016, section 4).

    P(level k) = F((k + 1/2) / 255) - F((k - 1/2) / 255)      F(v) = sigmoid((v - location) / scale)

The first and the last bin reach to infinity, so that the levels' probabilities sum to 1, and log p(x|z) is at most 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.likelihoods.contract import Likelihood

_LEVEL = 1 / 255
_LOG_SCALE_FLOOR = math.log(_LEVEL)
_LOG_SCALE_START = math.log(0.1)


class DiscretisedLogistic(Likelihood):
    """One scale for all pixels, learnt with the weights and softly kept above one level.

    The location is 1/2 + output/4, the sigmoid's tangent: a black pixel's location can move below 0, where all its
    probability is on level 0.
    """

    name = "discretised-logistic"
    needs_parameters = True

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        start = _LOG_SCALE_START if scale is None else math.log(scale)
        self.log_scale = nn.Parameter(torch.tensor(_unbounded(start)))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log P(x|z) in nats, (N,); values of x between two levels count as the nearer one."""
        scale = self._scale()
        level = (x * 255).round()
        centred = level * _LEVEL - _location(output)
        # F(b) - F(a) = F(b) (1 - F(a)) (1 - exp(a - b)): no difference of two numbers that are nearly alike
        below = functional.logsigmoid((centred + _LEVEL / 2) / scale)
        above = functional.logsigmoid((_LEVEL / 2 - centred) / scale)
        width = torch.log(-torch.expm1(-_LEVEL / scale))
        first, last = level <= 0, level >= 255
        log_prob = torch.where(last, 0.0, below) + torch.where(first, 0.0, above)
        return (log_prob + torch.where(first | last, 0.0, width)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean over the 256 levels: the sum over k of P(level > k), which is a midpoint rule for the integral of
        sigmoid((location - v) / scale) over v in [0, 1]. The Euler-Maclaurin series gives their difference; with a
        scale above one level two terms of it reach float32's resolution, without 256 numbers for each pixel."""
        scale = self._scale()
        beside = _location(output) - 0.5
        location = 0.5 - beside.abs()  # of the mirror image, if need be: there small numbers are what is subtracted
        low, high = location / scale, (location - 1) / scale
        integral = scale * (functional.softplus(low) - functional.softplus(high))
        ratio = _LEVEL / scale
        mean = (integral - _LEVEL * (_edge(low, ratio) - _edge(high, ratio))).clamp(0, 1)
        return torch.where(beside > 0, 1 - mean, mean)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z): one of the levels k/255."""
        uniform = torch.rand(output.shape, generator=generator, device=output.device)
        value = _location(output) + self._scale() * torch.logit(uniform, eps=1e-7)
        return (value * 255).round().clamp(0, 255) / 255

    def parameters_by_name(self) -> dict[str, float]:
        return {"scale": self._scale().item()}

    def _scale(self) -> Tensor:
        return torch.exp(_LOG_SCALE_FLOOR + functional.softplus(self.log_scale - _LOG_SCALE_FLOOR))


def _location(output: Tensor) -> Tensor:
    return 0.5 + output / 4


def _edge(u: Tensor, ratio: Tensor) -> Tensor:
    """One end's terms of the series, from the 1st and 3rd derivatives of the sigmoid at u; `ratio` is the level's width
    in scales. The next term is below 1e-7."""
    slope = torch.sigmoid(u) * torch.sigmoid(-u)
    return slope * (ratio / 24 - 7 * ratio**3 / 5760 * (1 - 6 * slope))


def _unbounded(log_scale: float) -> float:
    """What the soft floor takes to `log_scale`, which is above it."""
    above = max(log_scale - _LOG_SCALE_FLOOR, 1e-6)
    return _LOG_SCALE_FLOOR + math.log(math.expm1(above))
