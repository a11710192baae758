"""The figures of a trained model on images that it was not trained on, all at beta = 1 and in float32.

The ELBO is a bound on log p(x) with one posterior sample for each image, drawn from a fixed seed, so that the same
model and images give the same figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import batches
from training.loss import elbo
from training.model import VAE

BATCH_SIZE = 256
_SEED = 777
_ACTIVE_ABOVE = 0.01  # Var(E[z|x]) of a latent that says something of x (Burda et al. 2016, appendix C)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Nats for each image: `elbo` = `reconstruction` - `kl`. `psnr_db` is that of the means of p(x|z) at the
    posterior's mean, over all pixels. `active_units` of the latents vary with the image."""

    elbo: float
    reconstruction: float
    kl: float
    psnr_db: float
    active_units: int
    images: int


@torch.inference_mode()
def evaluate(model: VAE, pixels: NDArray[np.uint8]) -> Evaluation:
    """Score a model on `pixels` (N, H, W, C)."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(_SEED)
    reconstruction = kl = squared_error = 0.0
    means = []
    for x in batches.in_order(pixels, BATCH_SIZE, device):
        observed = model.likelihood.observe(x, generator)
        output, mean, logvar = model(observed, generator)
        terms = elbo(observed, output, mean, logvar, model.likelihood)
        reconstruction += terms.reconstruction.item() * len(x)
        kl += terms.kl.item() * len(x)
        squared_error += (model.likelihood.mean(model.decoder(mean)) - x).double().square().sum().item()
        means.append(mean)
    n = len(pixels)
    psnr = -10 * math.log10(max(squared_error / pixels.size, 1e-12))
    active = int((torch.cat(means).var(0, correction=0) > _ACTIVE_ABOVE).sum())
    return Evaluation((reconstruction - kl) / n, reconstruction / n, kl / n, psnr, active, n)


@torch.inference_mode()
def encoded_moments(model: VAE, pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and variance of the encoded means of `pixels`, one figure for each latent: the aggregate posterior's.

    The encoder sees what it will see in service: the images as they are.
    """
    device = next(model.parameters()).device
    means: list[Tensor] = [model.encoder(x)[0] for x in batches.in_order(pixels, BATCH_SIZE, device)]
    encoded = torch.cat(means).double()
    return encoded.mean(0).tolist(), encoded.var(0, correction=0).tolist()
