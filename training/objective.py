"""What training makes small, and the figures that are reported whatever is made small.

    log p(x|z), z, q's mean and logvar, log p(z)  ->  estimator, beta, free bits, perceptual distance  ->  loss
                                                  ->  elbo, reconstruction, kl, bound, always at beta = 1

All is summed over pixels and latents, a mean over the batch, in nats and in float32; the caller sees to it that
autocast is off. S samples for each of N images come in rows s*N + n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training import perceptual
from training.config import ObjectiveConfig
from training.likelihood import Likelihood
from training.loss import importance_bound, kl_by_latent, log_normal

_THROUGH_Z_ALONE = ("stl", "dreg")  # estimators in which q's parameters have no gradient but that of z


class Model(Protocol):
    """What the objective asks of a model; `prior` is None for N(0, I)."""

    @property
    def likelihood(self) -> Likelihood: ...

    @property
    def prior(self) -> object | None: ...

    @property
    def gives_point(self) -> bool: ...

    def log_prior(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """`loss` is a scalar to call backward on. `figures` are scalars without a gradient: `elbo`, `reconstruction` and
    `kl`; with several samples also `bound`, on log p(x) by importance weights; with a perceptual term its `perceptual`
    distance. A point posterior has no KL and bounds nothing: there `elbo` and `kl` are NaN."""

    loss: Tensor
    figures: dict[str, Tensor]


def loss(
    config: ObjectiveConfig,
    model: Model,
    x: Tensor,
    output: Tensor,
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    beta: float,
) -> Objective:
    """The objective of images x (N, C, H, W), from the decoder's `output` (S*N, ...) for z (S*N, Z) of q = (mean,
    logvar), each (N, Z).

    z must be float32 and the very tensor that the decoder was given: the gradients of stl and dreg run through it.
    """
    output, mean, logvar = output.float(), mean.float(), logvar.float()
    samples = len(z) // len(mean)
    targets = x.repeat(samples, 1, 1, 1) if samples > 1 else x
    log_likelihood = model.likelihood.log_prob(targets, output).view(samples, -1)
    if model.gives_point:
        result = _of_point(log_likelihood)
    else:
        result = _of_distribution(config, model, log_likelihood, z, mean, logvar, beta)
    if not config.perceptual or config.perceptual_weight == 0:
        return result
    distance = perceptual.distance(config.perceptual, model.likelihood.mean(output), targets).mean()
    figures = {**result.figures, "perceptual": distance.detach()}
    return Objective(result.loss + config.perceptual_weight * distance, figures)


def _of_point(log_likelihood: Tensor) -> Objective:
    reconstruction = log_likelihood.mean()
    undefined = torch.full_like(reconstruction, math.nan)
    return Objective(
        -reconstruction, {"elbo": undefined, "reconstruction": reconstruction.detach(), "kl": undefined.clone()}
    )


def _of_distribution(
    config: ObjectiveConfig,
    model: Model,
    log_likelihood: Tensor,
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    beta: float,
) -> Objective:
    ratios = _log_ratios(model, z, mean, logvar, through_z_alone=config.estimator in _THROUGH_Z_ALONE)
    summed = ratios.sum(1).view_as(log_likelihood)
    kl = ratios.mean(0) if model.prior is not None else kl_by_latent(mean, logvar).mean(0)
    figures = _figures(log_likelihood.detach(), kl.detach().sum(), summed.detach())
    if config.estimator in ("iwae", "dreg"):
        log_weights = log_likelihood - beta * summed
        if config.estimator == "dreg":
            _weigh_gradient(z, log_weights)
        return Objective(-importance_bound(log_weights).mean(), figures)
    if config.estimator == "stl":
        kl = ratios.mean(0)
    cost = _with_free_bits(kl, config.free_bits * z.shape[1] / len(kl))
    return Objective(beta * cost - log_likelihood.mean(), figures)


def _log_ratios(model: Model, z: Tensor, mean: Tensor, logvar: Tensor, *, through_z_alone: bool) -> Tensor:
    """log q(z|x) - log p(z): of each latent (S*N, Z) for N(0, I), else of all together (S*N, 1).

    `through_z_alone` takes q's mean and logvar for constants ("sticking the landing", Roeder et al. 2017): what is
    left out of the gradient is zero on average, and what is left vanishes once q is the true posterior.
    """
    if through_z_alone:
        mean, logvar = mean.detach(), logvar.detach()
    samples = len(z) // len(mean)
    log_posterior = log_normal(z, mean.repeat(samples, 1), logvar.repeat(samples, 1))
    if model.prior is not None:
        return log_posterior.sum(1, keepdim=True) - model.log_prior(z).unsqueeze(1)
    zero = torch.zeros_like(z)
    return log_posterior - log_normal(z, zero, zero)


def _figures(log_likelihood: Tensor, kl: Tensor, log_ratios: Tensor) -> dict[str, Tensor]:
    reconstruction = log_likelihood.mean()
    figures = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
    if len(log_likelihood) > 1:
        figures["bound"] = importance_bound(log_likelihood - log_ratios).mean()
    return figures


def _weigh_gradient(z: Tensor, log_weights: Tensor) -> None:
    """Make the bound's gradient doubly reparameterised (DReG, Tucker et al. 2019, equation 8).

    There q's parameters have a gradient through z alone, each sample's weighed with the square of its normalised
    weight. One factor is the bound's own; the other is put on the gradient of z, where it leaves the gradients of
    decoder and prior as they are.
    """
    weights = torch.softmax(log_weights.detach(), 0).view(-1, 1)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * weights)  # type: ignore[no-untyped-call]


def _with_free_bits(kl: Tensor, free: float) -> Tensor:
    """The sum of the batch's KLs, each costing no less than `free` nats: up to these a latent may say what it likes
    (Kingma et al. 2016, equation 15)."""
    return kl.clamp_min(free).sum() if free > 0 else kl.sum()
