"""The plain convolutional encoder and decoder: strided convolutions there, transposed convolutions back.

The scales are those of the residual network, so that the two can be compared.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.networks.conv import ConvEncoder
from training.networks.labels import with_labels
from training.networks.scales import Shape, Size, scale_sizes, strides, widths
from training.networks.start import centre_bias, start_bias


def plain_encoder(shape: Shape, config: ModelConfig, classes: int = 0) -> ConvEncoder:
    """The encoder with nothing but a strided convolution at each scale."""

    def scale(before: int, after: int, stride: Size) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]

    return ConvEncoder(shape, config, classes, scale, nn.ReLU)


class PlainDecoder(nn.Module):
    """z (N, Z) -> output (N, C * outputs_per_channel, H, W), unbounded."""

    def __init__(self, shape: Shape, config: ModelConfig, classes: int = 0, outputs_per_channel: int = 1) -> None:
        super().__init__()
        self.classes = classes
        sizes = scale_sizes(shape[1:])
        inner = widths(sizes, config)
        self.smallest = (inner[-1], *sizes[-1])
        self.head = nn.Sequential(
            nn.Linear(config.latent_dim + classes, config.head),
            nn.ReLU(),
            nn.Linear(config.head, math.prod(self.smallest)),
            nn.ReLU(),
        )
        outer = [shape[0] * outputs_per_channel, *inner[:-1]]
        layers: list[nn.Module] = []
        for scale in range(len(inner) - 1, -1, -1):
            layers += [Enlarge(inner[scale], outer[scale], sizes[scale + 1], sizes[scale]), nn.ReLU()]
        self.features = nn.Sequential(*layers[:-1])  # the last layer is linear
        start_bias(self._bias(), shape[0])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        smallest = self.head(with_labels(z, labels, self.classes)).unflatten(1, self.smallest)
        return cast(Tensor, self.features(smallest.contiguous(memory_format=torch.channels_last)))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: its logit becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        centre_bias(self._bias(), mean_image.mean((1, 2)))

    def _bias(self) -> Tensor:
        return cast(Tensor, cast(Enlarge, self.features[-1]).conv.bias)


class Enlarge(nn.Module):
    """A transposed convolution to twice the size, along the sides that the encoder halved at this scale, less the
    pixel that rounding up added. Its kernel is a multiple of its stride, so that it leaves no chequered pattern."""

    def __init__(self, inner: int, outer: int, small: Size, large: Size) -> None:
        super().__init__()
        self.large = large
        stride = strides(large, small)
        kernel = (4 if stride[0] == 2 else 3, 4 if stride[1] == 2 else 3)
        self.conv = nn.ConvTranspose2d(inner, outer, kernel, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        enlarged: Tensor = self.conv(x)
        return enlarged[:, :, : self.large[0], : self.large[1]]
