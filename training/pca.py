"""PCA as a model like the others: probabilistic PCA, whose weights have a closed form (Tipping & Bishop 1999).

    p(x|z) = N(W z + mu, s² I)      p(z) = N(0, I)      p(x) = N(mu, W Wᵀ + s² I)

With eigenvectors U and eigenvalues L of the images' covariance, the likeliest W is U (L - s² I)^½ and the likeliest s²
the mean of the eigenvalues left out. Then WᵀW is diagonal, hence the posterior p(z|x) too, and the encoder gives it
exactly: the ELBO is log p(x), but for the mean's being kept in [0, 1] when the model is exported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import ModelConfig, ObjectiveConfig
from training.errors import ConfigError
from training.likelihood import Gaussian
from training.model import VAE, build
from training.networks import LinearDecoder, LinearEncoder

_BYTES = 64 << 20  # of pixels that are held as float64 at a time
_COVARIANCE_UP_TO = 2048  # pixels: a larger covariance matrix costs more than passes over the images
_PASSES = 12  # over the images, to find the subspace of larger ones
_OVERSAMPLING = 16
_SEED = 3

_Matrix = NDArray[np.float64]


def fit_pca(pixels: NDArray[np.uint8], latent_dim: int) -> VAE:
    """Probabilistic PCA of images `pixels` (N, H, W, C), in evaluation mode; the first latent varies most.

    Images of more than 2,048 pixels are not given a covariance matrix; the leading subspace is found by iteration, to
    some digits less. Raises `ConfigError` if the images cannot tell so many directions from noise.
    """
    shape = pixels.shape[1:]
    images = pixels.reshape(len(pixels), -1)
    most = min(images.shape) - 1
    if latent_dim > most:
        raise ConfigError(f"model.latent_dim: got {latent_dim}, wanted at most {most}")
    mean = sum((chunk.sum(0) for chunk in _chunks(images, None)), np.zeros(images.shape[1])) / len(images)
    exact = images.shape[1] <= _COVARIANCE_UP_TO
    values, vectors, total = (_exact if exact else _iterated)(images, mean, latent_dim)
    model = build(ModelConfig(kind="pca", latent_dim=latent_dim), ObjectiveConfig(likelihood="gaussian"), shape).eval()
    left_out = max(total - values.sum(), 0.0) / (images.shape[1] - latent_dim)
    likelihood = cast(Gaussian, model.likelihood)
    likelihood.set_statistic(left_out)
    _set(model, _by_channel(vectors, shape), _by_channel(mean[:, None], shape)[:, 0], values, _variance(likelihood))
    return model


@torch.no_grad()
def _set(model: VAE, vectors: _Matrix, mean: _Matrix, values: _Matrix, variance: float) -> None:
    """W = U (L - s²)^½; the posterior has the precision L / s² and the mean L⁻¹ Wᵀ (x - mu)."""
    values = np.maximum(values, variance)  # a direction without more variance than the noise has a weight of zero
    weight = vectors * np.sqrt(values - variance)
    backward = weight.T / values[:, None]
    encoder, decoder = cast(LinearEncoder, model.encoder), cast(LinearDecoder, model.decoder)
    decoder.layer.weight.copy_(torch.from_numpy(weight))
    decoder.layer.bias.copy_(torch.from_numpy(mean))
    encoder.layer.weight.copy_(torch.from_numpy(backward))
    encoder.layer.bias.copy_(torch.from_numpy(-backward @ mean))
    encoder.latent_logvar.copy_(torch.from_numpy(np.log(variance / values)))


def exact_log_likelihood(model: VAE, x: Tensor) -> Tensor:
    """log p(x) in nats, float64 (N,), of images x (N, C, H, W) under a linear model with a Gaussian likelihood:
    that of N(mu, W Wᵀ + s² I), by way of the small matrix WᵀW + s² I."""
    decoder = cast(LinearDecoder, model.decoder)
    weight, mean = decoder.layer.weight.double(), decoder.layer.bias.double()
    variance = _variance(cast(Gaussian, model.likelihood))
    pixels, latent_dim = weight.shape
    factor = torch.linalg.cholesky(weight.T @ weight + variance * torch.eye(latent_dim, device=weight.device))
    centred = x.flatten(1).double() - mean
    explained = torch.linalg.solve_triangular(factor, weight.T @ centred.T, upper=False).square().sum(0)
    distance = (centred.square().sum(1) - explained) / variance
    log_det = 2 * factor.diagonal().log().sum() + (pixels - latent_dim) * math.log(variance)
    return cast(Tensor, -0.5 * (distance + log_det + pixels * math.log(2 * math.pi)))


def _variance(likelihood: Gaussian) -> float:
    """s² as the likelihood counts with it, which keeps it above a floor."""
    return likelihood.parameters_by_name()["sigma"] ** 2


def _exact(images: NDArray[np.uint8], mean: _Matrix, latent_dim: int) -> tuple[_Matrix, _Matrix, float]:
    """The largest eigenvalues (Z,), their eigenvectors (D, Z), and the sum of all eigenvalues."""
    covariance = np.zeros((len(mean), len(mean)))
    for chunk in _chunks(images, mean):
        covariance += chunk.T @ chunk
    covariance /= len(images)
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1][:latent_dim], vectors[:, ::-1][:, :latent_dim], float(np.trace(covariance))


def _iterated(images: NDArray[np.uint8], mean: _Matrix, latent_dim: int) -> tuple[_Matrix, _Matrix, float]:
    """The same by subspace iteration from random directions (Halko, Martinsson & Tropp 2011, algorithm 4.4)."""
    count = min(latent_dim + _OVERSAMPLING, *images.shape)
    basis = np.random.default_rng(_SEED).standard_normal((len(mean), count))
    total = 0.0
    for _ in range(_PASSES):
        basis = np.linalg.qr(basis).Q
        product, small, total = np.zeros_like(basis), np.zeros((count, count)), 0.0
        for chunk in _chunks(images, mean):
            projected = chunk @ basis
            product += chunk.T @ projected
            small += projected.T @ projected
            total += float(np.square(chunk).sum())
        start, basis = basis, product
    values, rotation = np.linalg.eigh(small / len(images))
    return values[::-1][:latent_dim], (start @ rotation)[:, ::-1][:, :latent_dim], total / len(images)


def _chunks(images: NDArray[np.uint8], mean: _Matrix | None) -> Iterator[_Matrix]:
    """Rows of `images` (N, D), scaled to [0, 1] and less their mean, some at a time."""
    rows = max(_BYTES // (8 * images.shape[1]), 1)
    for start in range(0, len(images), rows):
        chunk = images[start : start + rows] / 255
        yield chunk if mean is None else chunk - mean


def _by_channel(columns: _Matrix, shape: tuple[int, ...]) -> _Matrix:
    """(H*W*C, K) as pixels lie in a file -> (C*H*W, K) as they lie in torch."""
    return columns.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(columns.shape)
