"""The residual convolutional encoder and decoder, whose depth follows from the image size."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ModelConfig
from training.networks.labels import with_labels
from training.networks.posterior import mean_and_logvar
from training.networks.scales import Shape, Size, scale_sizes, strides, widths
from training.networks.start import centre_bias, start_bias

Scale = Callable[[int, int, Size], list[nn.Module]]
"""Channels before and after, and the stride -> the layers of one scale."""


def residual_encoder(shape: Shape, config: ModelConfig, classes: int = 0) -> ConvEncoder:
    """The encoder with a strided convolution and residual blocks at each scale."""

    def scale(before: int, after: int, stride: Size) -> list[nn.Module]:
        return [
            *_conv_norm(before, after, 3, stride),
            nn.SiLU(),
            *(ResidualBlock(after) for _ in range(config.blocks)),
        ]

    return ConvEncoder(shape, config, classes, scale, nn.SiLU)


class ConvEncoder(nn.Module):
    """x (N, C, H, W) in [0, 1] -> mean and logvar of q(z|x), each (N, Z): a `scale` after the other, then two dense
    layers with an `activation` between them."""

    def __init__(
        self, shape: Shape, config: ModelConfig, classes: int, scale: Scale, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.classes = classes
        sizes = scale_sizes(shape[1:])
        outer = widths(sizes, config)
        layers: list[nn.Module] = []
        for (large, small), (before, after) in zip(pairwise(sizes), pairwise([shape[0], *outer]), strict=True):
            layers += scale(before, after, strides(large, small))
        self.features = nn.Sequential(*layers)
        flat = outer[-1] * math.prod(sizes[-1])
        self.head = nn.Sequential(
            nn.Linear(flat + classes, config.head), activation(), nn.Linear(config.head, 2 * config.latent_dim)
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.features(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        return mean_and_logvar(self.head(with_labels(features, labels, self.classes)))


class ConvDecoder(nn.Module):
    """z (N, Z) -> output (N, C * outputs_per_channel, H, W), unbounded."""

    def __init__(self, shape: Shape, config: ModelConfig, classes: int = 0, outputs_per_channel: int = 1) -> None:
        super().__init__()
        self.classes = classes
        sizes = scale_sizes(shape[1:])
        inner = widths(sizes, config)
        self.smallest = (inner[-1], *sizes[-1])
        self.head = nn.Sequential(
            nn.Linear(config.latent_dim + classes, config.head),
            nn.SiLU(),
            nn.Linear(config.head, math.prod(self.smallest)),
        )
        layers: list[nn.Module] = []
        for scale in range(len(inner) - 1, 0, -1):
            layers += [ResidualBlock(inner[scale]) for _ in range(config.blocks)]
            layers += [Upsample(sizes[scale + 1], sizes[scale])]
            layers += [*_conv_norm(inner[scale], inner[scale - 1], 3), nn.SiLU()]
        layers += [ResidualBlock(inner[0]) for _ in range(config.blocks)]
        layers += [Upsample(sizes[1], sizes[0])]
        self.features = nn.Sequential(*layers)
        self.output = nn.Conv2d(inner[0], shape[0] * outputs_per_channel, 3, padding=1)
        start_bias(cast(Tensor, self.output.bias), shape[0])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        smallest = self.head(with_labels(z, labels, self.classes)).unflatten(1, self.smallest)
        return cast(Tensor, self.output(self.features(smallest.contiguous(memory_format=torch.channels_last))))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: its logit becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        centre_bias(cast(Tensor, self.output.bias), mean_image.mean((1, 2)))


class ResidualBlock(nn.Module):
    """x + bottleneck(x), the shape kept. Its norms are folded into its convolutions when it is exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.bottleneck = nn.Sequential(
            *_conv_norm(width, inner, 1),
            nn.SiLU(),
            *_conv_norm(inner, inner, 3),
            nn.SiLU(),
            *_conv_norm(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x + self.bottleneck(x))


class Upsample(nn.Module):
    """Doubles the sides that the encoder halved at this scale, and crops the pixel that rounding up added.

    Whole factors, because ONNX Runtime's nearest resize is quickest with them.
    """

    def __init__(self, small: Size, large: Size) -> None:
        super().__init__()
        self.large = large
        self.factors = tuple(float(stride) for stride in strides(large, small))
        self.is_whole = (2 * small[0], 2 * small[1]) == large  # both sides doubled, and nothing cropped

    def forward(self, x: Tensor) -> Tensor:
        doubled = functional.interpolate(x, scale_factor=self.factors, mode="nearest")
        return doubled[:, :, : self.large[0], : self.large[1]]


def _conv_norm(inner: int, outer: int, kernel: int, stride: Size = (1, 1)) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outer)]
