"""Where a decoder's output starts: at the data's mean, and where there are log-variances, at a modest constant."""

from __future__ import annotations

import torch
from torch import Tensor

_LOGVAR = -2.0  # a standard deviation of 0.37, about that of the pixels of a data set


def logit(mean: Tensor) -> Tensor:
    """The output whose sigmoid is `mean`, for means that may be 0 or 1."""
    return torch.logit(mean, eps=0.01)


@torch.no_grad()
def start_bias(bias: Tensor, means: int) -> None:
    """Set the bias behind the first `means` numbers, those of the log-variances, to their start."""
    bias[means:] = _LOGVAR


@torch.no_grad()
def centre_bias(bias: Tensor, mean: Tensor) -> None:
    """Set the bias of the first numbers, those of the means, to the data's mean `mean` (K,)."""
    bias[: len(mean)] = logit(mean)
