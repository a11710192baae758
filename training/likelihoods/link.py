"""From the decoder's unbounded output to the mean of a pixel, which lies in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

LINKS = ("sigmoid", "identity")


def to_mean(output: Tensor, link: str) -> Tensor:
    """sigmoid(output), or by `identity` the output itself, cut to [0, 1].

    The gradient passes straight through the cut: a pixel beyond it could otherwise never come back.
    """
    if link == "sigmoid":
        return torch.sigmoid(output)
    cut = output.clamp(0, 1)
    if not (torch.is_grad_enabled() and output.requires_grad):
        return cut
    return cut.detach() + (output - output.detach())  # the bracket is zero, and so is no rounding error
