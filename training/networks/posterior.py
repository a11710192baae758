"""What an encoder's last layer says of q(z|x)."""

from __future__ import annotations

import torch
from torch import Tensor

LOGVAR_LIMIT = 10.0  # exp(10) dwarfs a unit Gaussian; beyond it lies only overflow
POINT_LOGVAR = -10.0  # of an encoder that gives a point: as sure as `LOGVAR_LIMIT` lets any encoder be


def mean_and_logvar(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2 Z) -> mean, logvar, each (N, Z), the latter kept where exp is finite."""
    mean, logvar = statistics.chunk(2, dim=1)
    return mean, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)


def point(mean: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of an encoder without one: `mean` (N, Z) and `POINT_LOGVAR` everywhere."""
    return mean, torch.full_like(mean, POINT_LOGVAR)
