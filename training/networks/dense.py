"""The dense encoders and decoders: the VAEs of the textbooks and the deep autoencoders, which give a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from training.config import ModelConfig
from training.networks.dropout import Dropout
from training.networks.labels import with_labels
from training.networks.posterior import mean_and_logvar, point
from training.networks.scales import Shape
from training.networks.start import centre_bias, start_bias

DROPOUT = 0.3  # of dense-norm
_SLOPE = 0.3  # of dense-norm's leaky ReLU


class DenseEncoder(nn.Module):
    """x (N, C, H, W) in [0, 1] -> mean and logvar of q(z|x), each (N, Z); for a digit 784-256-128-Z.

    With `gives_point` the last layer gives the mean alone. With `norm` each hidden layer has a leaky ReLU, batch norm
    and dropout; otherwise ReLU.
    """

    def __init__(
        self, shape: Shape, config: ModelConfig, classes: int = 0, *, norm: bool = False, gives_point: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.gives_point = classes, gives_point
        statistics = config.latent_dim if gives_point else 2 * config.latent_dim
        self.layers = _layers([math.prod(shape) + classes, *config.hidden, statistics], norm=norm)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        statistics = self.layers(with_labels(x.flatten(1), labels, self.classes))
        return point(statistics) if self.gives_point else mean_and_logvar(statistics)


class DenseDecoder(nn.Module):
    """z (N, Z) -> output (N, C * outputs_per_channel, H, W), unbounded. The encoder's mirror image."""

    def __init__(
        self,
        shape: Shape,
        config: ModelConfig,
        classes: int = 0,
        outputs_per_channel: int = 1,
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.shape = (shape[0] * outputs_per_channel, *shape[1:])
        sizes = [config.latent_dim + classes, *reversed(config.hidden), math.prod(self.shape)]
        self.layers = _layers(sizes, norm=norm)
        start_bias(self._bias(), math.prod(shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.layers(with_labels(z, labels, self.classes)).unflatten(1, self.shape))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: its logit becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        centre_bias(self._bias(), mean_image.flatten())

    def _bias(self) -> Tensor:
        return cast(nn.Linear, self.layers[-1]).bias


def _layers(sizes: Sequence[int], *, norm: bool) -> nn.Sequential:
    """Linear layers of these sizes, and after each but the last what makes them more than one."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes[:-1]):
        layers += [nn.Linear(inner, outer)]
        layers += [nn.LeakyReLU(_SLOPE), nn.BatchNorm1d(outer), Dropout(DROPOUT)] if norm else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
