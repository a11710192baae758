"""From the decoder's unbounded output to the mean of a pixel, which lies in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

LINKS = ("sigmoid", "identity")


def to_mean(output: Tensor, link: str) -> Tensor:
    """sigmoid(output), or by `identity` the output itself, cut to [0, 1].

    What a gradient is wanted of is not cut. A pixel beyond the cut could never come back; and a linear model that is
    scored with the cut would be no linear one: it could send all that is black far below zero at no cost.
    """
    if link == "sigmoid":
        return torch.sigmoid(output)
    return output if torch.is_grad_enabled() and output.requires_grad else output.clamp(0, 1)
