"""The figures of a trained model on images that it was not trained on, all at beta = 1 and in float32.

The ELBO is a bound on log p(x) with one posterior sample for each image, drawn from a fixed seed, so that the same
model and images give the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training import batches
from training.differences import decibels
from training.images import Images
from training.loss import kl_to_standard_normal, log_normal
from training.model import VAE, reparameterize

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
def evaluate(model: VAE, images: Images) -> Evaluation:
    """Score a model on images; those of a conditional model need their labels."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(_SEED)
    reconstruction = kl = squared_error = 0.0
    means = []
    for x, labels in batches.in_order(images, BATCH_SIZE, model, device):
        observed = model.likelihood.observe(x, generator)
        mean, logvar = model.encoder(observed, labels)
        z = reparameterize(mean, logvar, generator)
        reconstruction += model.likelihood.log_prob(observed, model.decoder(z, labels)).sum().item()
        kl += _kl(model, z, mean, logvar).sum().item()
        decoded = model.likelihood.mean(model.decoder(mean, labels))
        squared_error += (decoded - x).double().square().sum().item()
        means.append(mean)
    n = len(images)
    psnr = decibels(squared_error / images.pixels.size)
    active = int((torch.cat(means).var(0, correction=0) > _ACTIVE_ABOVE).sum())
    return Evaluation((reconstruction - kl) / n, reconstruction / n, kl / n, psnr, active, n)


def _kl(model: VAE, z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p(z)) of each image (N,): in closed form for N(0, I), else of the one sample z (N, Z)."""
    if model.prior is None:
        return kl_to_standard_normal(mean, logvar)
    return log_normal(z, mean, logvar).sum(1) - model.log_prior(z)


@torch.inference_mode()
def encoded_moments(model: VAE, images: Images) -> tuple[list[float], list[float]]:
    """Mean and variance of the encoded means of `images`, one figure for each latent: the aggregate posterior's.

    The encoder sees what it will see in service: the images as they are.
    """
    device = next(model.parameters()).device
    means = [model.encoder(x, labels)[0] for x, labels in batches.in_order(images, BATCH_SIZE, model, device)]
    encoded = torch.cat(means).double()
    return encoded.mean(0).tolist(), encoded.var(0, correction=0).tolist()
