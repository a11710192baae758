"""Lower bounds of log p(x), in nats: the ELBO and its parts, and the importance-weighted bound for any k.

The noise of image i is a stream of its own, seeded by (seed, i), so that the figures depend neither on how the images
are cut into chunks nor on which other images are scored beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.evaluation.densities import LogProb
from training.evaluation.graphs import Graphs
from training.loss import kl_by_latent, log_standard_normal

Prior = Callable[[Tensor], Tensor]
"""z (M, Z) -> log p(z) in nats, (M,)."""
Added = Callable[[int], None]
"""Told of each number of draws that have been scored."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """Images with their posteriors: `observed` uint8 (N, H, W, C), what the encoder saw and p(x|z) is asked for;
    `mean` and `logvar` (N, Z) of q(z|x), on the CPU; `labels` int64 (N,) for a conditional model."""

    observed: NDArray[np.uint8]
    mean: Tensor
    logvar: Tensor
    labels: NDArray[np.int64] | None = None

    def first(self, n: int) -> Scored:
        """The first `n` of them."""
        return self.take(np.arange(min(n, len(self))))

    def take(self, chosen: NDArray[np.intp]) -> Scored:
        """Those at `chosen`."""
        labels = None if self.labels is None else self.labels[chosen]
        return Scored(self.observed[chosen], self.mean[chosen], self.logvar[chosen], labels)

    def __len__(self) -> int:
        return len(self.observed)


@dataclass(frozen=True, slots=True)
class Elbo:
    """Per image, (N,): `reconstruction` is log p(x|z) for one z of q(z|x), and for each prior its KL, in closed form
    for N(0, I) and else log q(z|x) - log p(z) at that z, which is right on average."""

    reconstruction: Floats
    kl: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Bound:
    """Per image, (N,): log 1/k Σ p(x, z_i) / q(z_i|x), a lower bound of log p(x) on average (Burda et al. 2016,
    eq. 8), and the effective sample size (Σ w)² / Σ w² of its k weights (Kong 1992)."""

    values: Floats
    effective_samples: Floats


@dataclass(frozen=True, slots=True)
class Draws:
    """S draws z (B, S, Z) of q(z|x) for each of the images `rows`, with log p(x|z) and log q(z|x), each (B, S)."""

    rows: slice
    z: Tensor
    log_likelihood: Tensor
    log_posterior: Tensor


def kl_per_latent(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each latent of each image, (N, Z), in float64."""
    return kl_by_latent(mean.double(), logvar.double())


def mean_and_error(values: Floats) -> tuple[float, float]:
    """The mean over images and its standard error, which for one image is NaN."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def elbo(
    graphs: Graphs, log_prob: LogProb, images: Scored, priors: Mapping[str, Prior], seed: int, added: Added
) -> Elbo:
    """The ELBO's parts with one draw of the posterior for each image."""
    reconstruction = np.empty(len(images))
    kl = {name: np.empty(len(images)) for name in priors}
    for draws in _draws(graphs, log_prob, images, 1, seed, added):
        reconstruction[draws.rows] = draws.log_likelihood[:, 0].cpu()
        for name, prior in priors.items():
            kl[name][draws.rows] = (draws.log_posterior - _log_prior(prior, draws))[:, 0].cpu()
    if log_standard_normal in priors.values():
        name = next(name for name, prior in priors.items() if prior is log_standard_normal)
        kl[name] = kl_per_latent(images.mean, images.logvar).sum(1).numpy()
    return Elbo(reconstruction, kl)


def importance_weighted(
    graphs: Graphs, log_prob: LogProb, images: Scored, k: int, priors: Mapping[str, Prior], seed: int, added: Added
) -> dict[str, Bound]:
    """The bound with `k` draws of the posterior for each image, under each of `priors`, from the same draws."""
    weights = {name: _Weights(len(images)) for name in priors}
    for draws in _draws(graphs, log_prob, images, k, seed, added):
        ratio = draws.log_likelihood.double() - draws.log_posterior.double()
        for name, prior in priors.items():
            weights[name].add(draws.rows, (ratio + _log_prior(prior, draws).double()).cpu().numpy())
    return {name: each.bound(k) for name, each in weights.items()}


class _Weights:
    """log Σ w and log Σ w² of the weights seen so far, one of each an image, in float64: log w ranges over hundreds
    of nats, so that each sum is kept relative to its largest weight."""

    def __init__(self, images: int) -> None:
        self._top = np.full(images, -np.inf)
        self._sum = np.zeros(images)
        self._squares = np.zeros(images)

    def add(self, rows: slice, log_weights: Floats) -> None:
        """Take in (B, S) more for the images `rows`."""
        before = self._top[rows]
        top = np.maximum(before, log_weights.max(1))
        base = np.where(np.isfinite(top), top, 0.0)  # all weights zero so far: nothing to be relative to
        shrunk = np.exp(before - base)
        weights = np.exp(log_weights - base[:, np.newaxis])
        self._sum[rows] = self._sum[rows] * shrunk + weights.sum(1)
        self._squares[rows] = self._squares[rows] * shrunk**2 + np.square(weights).sum(1)
        self._top[rows] = top

    def bound(self, k: int) -> Bound:
        """What `k` weights for each image amount to."""
        with np.errstate(divide="ignore", invalid="ignore"):  # an image without any weight has the bound -inf
            return Bound(self._top + np.log(self._sum / k), self._sum**2 / self._squares)


def _draws(graphs: Graphs, log_prob: LogProb, images: Scored, k: int, seed: int, added: Added) -> Iterator[Draws]:
    """All images in blocks, each with its `k` draws in pieces: at most `graphs.rows` draws at a time, and few less."""
    per_block = max(1, graphs.rows // k)
    pieces = np.diff(np.linspace(0, k, math.ceil(k / graphs.rows) + 1).astype(int))
    for start in range(0, len(images), per_block):
        rows = slice(start, min(start + per_block, len(images)))
        streams = [_stream(seed, index) for index in range(rows.start, rows.stop)]
        block = _Block(graphs, log_prob, images, rows)
        for samples in pieces.tolist():
            noise = np.stack(
                [stream.standard_normal((samples, images.mean.shape[1]), np.float32) for stream in streams]
            )
            yield block.draw(torch.from_numpy(noise).to(graphs.device))
            added(len(streams) * samples)


def _stream(seed: int, image: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(seed << 64) + image))


class _Block:
    """A few images and their posteriors on the graphs' device."""

    def __init__(self, graphs: Graphs, log_prob: LogProb, images: Scored, rows: slice) -> None:
        self._graphs, self._log_prob, self._rows = graphs, log_prob, rows
        device = graphs.device
        self._x = torch.from_numpy(np.array(images.observed[rows])).to(device).float().div_(255).unsqueeze(1)
        self._mean = images.mean[rows].to(device).unsqueeze(1)
        self._logvar = images.logvar[rows].to(device).unsqueeze(1)
        labels = images.labels
        self._labels = None if labels is None else torch.from_numpy(np.array(labels[rows], np.int64)).to(device)

    @torch.inference_mode()
    def draw(self, noise: Tensor) -> Draws:
        """One draw for each row of `noise` (B, S, Z)."""
        z = self._mean + torch.exp(0.5 * self._logvar) * noise
        labels = None if self._labels is None else self._labels.repeat_interleave(noise.shape[1])
        decoded = self._graphs.decode(z.flatten(0, 1), labels)
        log_likelihood = self._log_prob(self._x, decoded.view(*noise.shape[:2], *decoded.shape[1:]))
        constant = math.log(2 * math.pi)
        log_posterior = -0.5 * (noise.square() + self._logvar + constant).sum(2)
        return Draws(self._rows, z, log_likelihood, log_posterior)


def _log_prior(prior: Prior, draws: Draws) -> Tensor:
    return prior(draws.z.flatten(0, 1)).view(draws.z.shape[:2])
