"""Two VAEs: the convolutional, whose depth follows from the image size, and the dense one of the textbooks.

Encoder and decoder are modules of their own, because each is exported as it is. Neither draws random numbers, and
neither knows the likelihood: the decoder's output is what the likelihood makes a distribution of.

    images (N, C, H, W) -> encoder -> mean, logvar (N, Z) -> reparameterize -> z -> decoder -> output (N, C, H, W)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ModelConfig
from training.likelihood import Likelihood

LOGVAR_LIMIT = 10.0  # exp(10) dwarfs a unit Gaussian; beyond it lies only overflow
_STRIDE_ABOVE = 4  # a side of at most this many pixels is left to the dense layers

Size = tuple[int, int]


class VAE(nn.Module):
    """An encoder, a decoder and the likelihood that reads the decoder's output; one forward pass through the two."""

    def __init__(self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, C, H, W) in [0, 1] -> the decoder's output (N, C, H, W) for one sample of q(z|x), mean, logvar."""
        mean, logvar = self.encoder(x)
        z = reparameterize(mean, logvar, generator)
        return self.decoder(z), mean, logvar


def reparameterize(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """z = mean + σ·ε with ε standard normal, (N, Z) in float32 (Kingma & Welling 2013, section 2.4)."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean.float() + torch.exp(0.5 * logvar.float()) * noise


def build(config: ModelConfig, likelihood: Likelihood, image_shape: tuple[int, int, int]) -> VAE:
    """The VAE of `config` for images of `image_shape` (H, W, C)."""
    height, width, channels = image_shape
    if config.kind == "dense":
        shape = (channels, height, width)
        return VAE(DenseEncoder(shape, config), DenseDecoder(shape, config), likelihood)
    sizes = scale_sizes((height, width))
    widths = [min(config.width * 2**scale, config.max_width) for scale in range(len(sizes) - 1)]
    encoder = ConvEncoder(channels, sizes, widths, config)
    return VAE(encoder, ConvDecoder(channels, sizes, widths, config), likelihood)


def scale_sizes(size: Size) -> list[Size]:
    """The (H, W) of each scale, largest first: sides above four are halved, rounding up, until none is left."""
    sizes = [size]
    while max(sizes[-1]) > _STRIDE_ABOVE:
        height, width = sizes[-1]
        sizes.append((_halved(height), _halved(width)))
    return sizes


def _halved(side: int) -> int:
    return math.ceil(side / 2) if side > _STRIDE_ABOVE else side


class ConvEncoder(nn.Module):
    """x (N, C, H, W) in [0, 1] -> mean and logvar of q(z|x), each (N, Z)."""

    def __init__(self, channels: int, sizes: Sequence[Size], widths: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (large, small), inner, outer in zip(pairwise(sizes), [channels, *widths], widths, strict=False):
            stride = tuple(2 if a > b else 1 for a, b in zip(large, small, strict=True))
            layers += [*_conv_norm(inner, outer, 3, stride), nn.SiLU()]
            layers += [ResidualBlock(outer) for _ in range(config.blocks)]
        self.features = nn.Sequential(*layers)
        flat = widths[-1] * math.prod(sizes[-1])
        self.head = nn.Sequential(
            nn.Linear(flat, config.head), nn.SiLU(), nn.Linear(config.head, 2 * config.latent_dim)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x.contiguous(memory_format=torch.channels_last))
        return _mean_and_logvar(self.head(features.flatten(1)))


class ConvDecoder(nn.Module):
    """z (N, Z) -> output (N, C, H, W), unbounded: the logits of the pixels' means."""

    def __init__(self, channels: int, sizes: Sequence[Size], widths: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        self.smallest = (widths[-1], *sizes[-1])
        flat = math.prod(self.smallest)
        self.head = nn.Sequential(nn.Linear(config.latent_dim, config.head), nn.SiLU(), nn.Linear(config.head, flat))
        layers: list[nn.Module] = []
        for scale in range(len(widths) - 1, 0, -1):
            layers += [ResidualBlock(widths[scale]) for _ in range(config.blocks)]
            layers += [Upsample(sizes[scale + 1], sizes[scale])]
            layers += [*_conv_norm(widths[scale], widths[scale - 1], 3), nn.SiLU()]
        layers += [ResidualBlock(widths[0]) for _ in range(config.blocks)]
        layers += [Upsample(sizes[1], sizes[0])]
        self.features = nn.Sequential(*layers)
        self.output = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        smallest = self.head(z).unflatten(1, self.smallest).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.output(self.features(smallest)))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: its logit becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        self.output.bias.data.copy_(_logit(mean_image.mean((1, 2))))  # type: ignore[union-attr]


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
        self.factors = tuple(2.0 if b > a else 1.0 for a, b in zip(small, large, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        doubled = functional.interpolate(x, scale_factor=self.factors, mode="nearest")
        return doubled[:, :, : self.large[0], : self.large[1]]


def _conv_norm(inner: int, outer: int, kernel: int, stride: int | tuple[int, ...] = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, bias=False)  # type: ignore[arg-type]
    return [conv, nn.BatchNorm2d(outer)]


def _mean_and_logvar(statistics: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = statistics.chunk(2, dim=1)
    return mean, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)


class DenseEncoder(nn.Module):
    """x (N, C, H, W) in [0, 1] -> mean and logvar of q(z|x), each (N, Z); for a digit 784-256-128-Z, with ReLU."""

    def __init__(self, shape: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        self.layers = _dense([math.prod(shape), *config.hidden, 2 * config.latent_dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _mean_and_logvar(self.layers(x.flatten(1)))


class DenseDecoder(nn.Module):
    """z (N, Z) -> output (N, C, H, W), unbounded: the logits of the pixels' means."""

    def __init__(self, shape: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        self.layers = _dense([config.latent_dim, *reversed(config.hidden), math.prod(shape)])

    def forward(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.layers(z).unflatten(1, self.shape))

    def centre(self, mean_image: Tensor) -> None:
        """Start from the data's mean: its logit becomes the output's bias. `mean_image` is (C, H, W) in [0, 1]."""
        cast(nn.Linear, self.layers[-1]).bias.data.copy_(_logit(mean_image.flatten()))


Encoder = ConvEncoder | DenseEncoder
Decoder = ConvDecoder | DenseDecoder


def _logit(mean: Tensor) -> Tensor:
    return torch.logit(mean, eps=0.01)


def _dense(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # the last layer is linear
