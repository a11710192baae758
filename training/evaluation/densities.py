"""log p(x|z) of images under what the decoder's graph gives: its mean, or where that is not enough its parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentry import manifest
from training import likelihood as likelihoods
from training.likelihood import Bernoulli
from training.likelihoods.bernoulli import RESOLUTION

LogProb = Callable[[Tensor, Tensor], Tensor]
"""x (B, 1, H, W, C) in [0, 1], decoded (B, S, H, W, ...) -> log p(x|z) in nats, (B, S). `decoded` is used up."""


def log_prob_of(likelihood: manifest.Likelihood, channels: int, parameters: int) -> LogProb:
    """log p(x|z) for the manifest's likelihood of images of so many `channels`, from a decoder that gives `parameters`
    numbers for each pixel beside the mean, or 0.

    Raises `ExportError` if its name or its numbers are not known, and `ManifestError` if the decoder is not of this
    likelihood.

    What is scored is what the published graph says, in its own rounding: a Bernoulli whose mean is a float32 is still
    a distribution.
    """
    module = likelihoods.from_manifest(likelihood.name, likelihood.parameters)
    wanted = channels * module.outputs_per_channel if module.needs_parameters else 0
    if parameters != wanted:
        raise manifest.ManifestError(
            f"{manifest.DECODER_FILE}: parameters: got {parameters} a pixel, wanted {wanted} for {likelihood.name}"
        )
    if module.name == Bernoulli.name:
        return _bernoulli
    score = module.log_prob if module.needs_parameters else module.log_prob_of_mean

    def log_prob(x: Tensor, decoded: Tensor) -> Tensor:
        images, samples = decoded.shape[:2]
        repeated = x.expand(images, samples, *x.shape[2:]).flatten(0, 1)
        module.to(x.device)
        scores: Tensor = score(_channels_first(repeated), _channels_first(decoded.flatten(0, 1)))
        return scores.view(images, samples)

    return log_prob


def _bernoulli(x: Tensor, mean: Tensor) -> Tensor:
    """As `Bernoulli.log_prob_of_mean`, with one logarithm for each pixel in place of two: of the probability of what
    is seen."""
    seen = torch.where(x > 0.5, mean, 1 - mean)
    return seen.clamp_(RESOLUTION, 1 - RESOLUTION).log_().flatten(2).sum(2)


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)
