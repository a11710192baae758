"""The models: an encoder, a decoder, the likelihood that reads the decoder's output, and the prior of the latents.

    x (N, C, H, W) -> encoder -> mean, logvar (N, Z) -> reparameterize -> z -> decoder -> output

All kinds of model are these same parts. The networks are in `training.networks`; what the output means is the
likelihood's to say.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training import likelihood as likelihoods
from training import networks
from training.config import ModelConfig, ObjectiveConfig
from training.errors import ConfigError
from training.flow import Flow
from training.likelihood import Likelihood
from training.loss import log_standard_normal
from training.networks import Decoder, Encoder
from training.networks.dropout import Dropout
from training.networks.posterior import LOGVAR_LIMIT, POINT_LOGVAR

__all__ = ["LOGVAR_LIMIT", "POINT_LOGVAR", "VAE", "Decoder", "Encoder", "Pass", "build", "reparameterize"]

_POINTS = ("autoencoder", "denoising", "linear")  # their posterior is a point, and nothing is sampled
_LINEAR = {"linear": ("gaussian", "gaussian-fixed", "laplace"), "pca": ("gaussian",)}  # and the likelihoods they fit
_FLOW_LAYERS = 8
_FLOW_WIDTH = 256


class Pass(NamedTuple):
    """What a forward pass gives, for S samples of q(z|x) for each of N images: row s*N + n is sample s of image n.
    `output` (S*N, C * outputs_per_channel, H, W), `z` (S*N, Z), and q's `mean` and `logvar` (N, Z)."""

    output: Tensor
    z: Tensor
    mean: Tensor
    logvar: Tensor


class VAE(nn.Module):
    """`prior` is None for N(0, I), `classes` is 0 unless encoder and decoder are given labels. With `gives_point` the
    model is an autoencoder: z is the mean, and no KL has a meaning. `corruption` is the standard deviation of the
    noise that the encoder sees in training."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        likelihood: Likelihood,
        prior: Flow | None = None,
        *,
        classes: int = 0,
        gives_point: bool = False,
        corruption: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.classes = classes
        self.gives_point = gives_point
        self.corruption = corruption
        self._dropouts = [module for module in self.modules() if isinstance(module, Dropout)]

    def forward(self, x: Tensor, generator: torch.Generator, labels: Tensor | None = None, samples: int = 1) -> Pass:
        """x (N, C, H, W) in [0, 1], labels int64 (N,) if the model is conditional -> `Pass`.

        All noise comes from `generator`: corruption first, then dropout and the samples in the order of the layers.
        """
        if self.training and self.corruption > 0:
            x = corrupt(x, self.corruption, generator)
        for dropout in self._dropouts:
            dropout.generator = generator
        mean, logvar = self.encoder(x, labels)
        z = self.sample(mean, logvar, generator, samples)
        output = self.decoder(z, None if labels is None else labels.repeat(samples))
        for dropout in self._dropouts:
            dropout.generator = None  # a generator of a run is not to travel with copies of the model
        return Pass(output, z, mean, logvar)

    def sample(self, mean: Tensor, logvar: Tensor, generator: torch.Generator, samples: int = 1) -> Tensor:
        """z (S*N, Z) from q(z|x); its mean S times if q is a point."""
        means = mean.repeat(samples, 1)
        return means.float() if self.gives_point else reparameterize(means, logvar.repeat(samples, 1), generator)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) in nats for z (M, Z): (M,)."""
        if self.prior is not None:
            return self.prior.log_prob(z)
        return log_standard_normal(z)


def reparameterize(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """z = mean + σ·ε with ε standard normal, (N, Z) in float32 (Kingma & Welling 2013, section 2.4)."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean.float() + torch.exp(0.5 * logvar.float()) * noise


def corrupt(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """x (N, C, H, W) with Gaussian noise, kept in [0, 1] (the denoising autoencoder, Vincent et al. 2010)."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + deviation * noise).clamp(0, 1)


def build(config: ModelConfig, objective: ObjectiveConfig, image_shape: tuple[int, int, int], classes: int = 0) -> VAE:
    """The untrained model for images of `image_shape` (H, W, C), of so many `classes` if they are labelled.

    Raises `ConfigError` if kind, likelihood, prior, classes and images do not go together.
    """
    height, width, channels = image_shape
    shape = (channels, height, width)
    _check(config, objective, math.prod(shape), classes)
    classes = classes if config.conditional else 0
    link = "identity" if config.kind in _LINEAR else "sigmoid"
    likelihood = likelihoods.build(objective.likelihood, variance=objective.variance, link=link)
    encoder, decoder = _networks(config, shape, classes, likelihood.outputs_per_channel)
    return VAE(
        encoder,
        decoder,
        likelihood,
        Flow(config.latent_dim, _FLOW_LAYERS, _FLOW_WIDTH) if objective.prior == "flow" else None,
        classes=classes,
        gives_point=config.kind in _POINTS,
        corruption=objective.corruption if config.kind == "denoising" else 0.0,
    )


def _networks(
    config: ModelConfig, shape: tuple[int, int, int], classes: int, outputs_per_channel: int
) -> tuple[Encoder, Decoder]:
    if config.kind in _LINEAR:
        return networks.LinearEncoder(shape, config.latent_dim), networks.LinearDecoder(shape, config.latent_dim)
    if config.kind == "conv":
        encoder: Encoder = networks.residual_encoder(shape, config, classes)
        return encoder, networks.ConvDecoder(shape, config, classes, outputs_per_channel)
    if config.kind == "plain":
        encoder = networks.plain_encoder(shape, config, classes)
        return encoder, networks.PlainDecoder(shape, config, classes, outputs_per_channel)
    norm = config.kind == "dense-norm"
    encoder = networks.DenseEncoder(shape, config, classes, norm=norm, gives_point=config.kind in _POINTS)
    return encoder, networks.DenseDecoder(shape, config, classes, outputs_per_channel, norm=norm)


def _check(config: ModelConfig, objective: ObjectiveConfig, pixels: int, classes: int) -> None:
    if config.latent_dim > pixels:
        raise ConfigError(f"model.latent_dim: got {config.latent_dim}, wanted at most {pixels}, the images' pixels")
    if config.kind in _LINEAR and objective.likelihood not in _LINEAR[config.kind]:
        wanted = " or ".join(_LINEAR[config.kind])
        raise ConfigError(
            f"objective.likelihood: got {objective.likelihood}, wanted {wanted} for model.kind {config.kind}"
        )
    if config.kind in (*_POINTS, "pca") and objective.prior != "normal":
        raise ConfigError(f"objective.prior: got {objective.prior}, wanted normal for model.kind {config.kind}")
    if config.conditional and config.kind in _LINEAR:
        raise ConfigError(f"model.conditional: got true, wanted false for model.kind {config.kind}")
    if config.conditional and classes == 0:
        raise ConfigError("model.conditional: got true for images without labels, wanted labelled images")
