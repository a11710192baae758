"""What every likelihood promises. Knows nothing of any one of them, nor of the networks.

    decoder's output -> log_prob, mean, sample

The output (N, C * outputs_per_channel, H, W) is unbounded; what it means is the likelihood's to say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Likelihood(nn.Module):
    """p(x|z) of images x (N, C, H, W) in [0, 1]. What is not overridden here holds for most likelihoods.

    With `needs_parameters` the mean and the numbers of `parameters_by_name` do not determine p(x|z): whoever wants
    log p(x|z) needs the decoder's output itself. With `has_statistic` a running figure goes with the weights, and is
    to be measured anew when these are averaged.
    """

    name: str
    outputs_per_channel: int = 1
    needs_parameters: bool = False
    has_statistic: bool = False

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the model is shown and scored on: x as it is."""
        return x

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over pixels and channels: (N,)."""
        raise NotImplementedError

    def log_prob_of_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """log p(x|z) (N,) where all that is known is the mean (N, C, H, W), unless `needs_parameters`."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z), (N, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x|z), (N, C, H, W)."""
        raise NotImplementedError

    def parameters_by_name(self) -> dict[str, float]:
        """The likelihood's numbers, for the manifest."""
        return {}

    def statistic(self, x: Tensor, output: Tensor) -> Tensor:
        """The sum over all values of x of what the running figure is the mean of: a float64 scalar."""
        raise NotImplementedError

    def set_statistic(self, mean: float) -> None:
        """Set the running figure to the `mean` of `statistic` over all values of all images."""
        raise NotImplementedError
