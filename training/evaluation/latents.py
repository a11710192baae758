"""What the latents say: how many are used, how much they tell of the images, how they lie, and what they are good for.

Arithmetic on posteriors (mean, logvar) alone; knows nothing of graphs and images.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ACTIVE_ABOVE = 0.01  # Var(E[z|x]) of a latent that says something of x (Burda et al. 2016, appendix C)
NEIGHBOURS = 10
_BLOCK = 256  # rows of the matrix of all posteriors at all latents
_MOST_STEPS = 1000

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Of q(z) = 1/N Σ q(z|x_n): `mean` and `variance` of each latent, (Z,), and log q(z_n) at one draw z_n of each
    posterior, (N,), beside log q(z_n|x_n). `z` (N, Z) are the draws."""

    mean: Floats
    variance: Floats
    z: Tensor
    log_aggregate: Tensor
    log_posterior: Tensor

    @property
    def mutual_information(self) -> float:
        """I(n; z) in nats between an image's index and its latents (Hoffman & Johnson 2016): E KL(q(z|x) ‖ p) less
        KL(q(z) ‖ p). Of N images it cannot be more than log N, however much the latents say."""
        return float((self.log_posterior - self.log_aggregate).mean())

    def kl(self, log_prior: Tensor) -> float:
        """KL(q(z) ‖ p) in nats, with log p(z_n) (N,) at the draws."""
        return float((self.log_aggregate - log_prior.double()).mean())


def active_units(mean: Tensor) -> int:
    """How many of the latents vary with the image; `mean` is (N, Z)."""
    return int((mean.double().var(0, correction=0) > ACTIVE_ABOVE).sum())


def aggregate(mean: Tensor, logvar: Tensor, seed: int) -> Aggregate:
    """The aggregate posterior of `mean` and `logvar`, each (N, Z); its density is that of all N posteriors at each
    draw, N² of them, so N of some 10,000 is as many as is wise."""
    mean, logvar = mean.double(), logvar.double()
    noise = np.random.default_rng(seed).standard_normal(tuple(mean.shape))
    epsilon = torch.from_numpy(noise)
    z = mean + torch.exp(0.5 * logvar) * epsilon
    constant = math.log(2 * math.pi)
    log_posterior = -0.5 * (epsilon.square() + logvar + constant).sum(1)
    variance = mean.var(0, correction=0) + logvar.exp().mean(0)
    return Aggregate(mean.mean(0).numpy(), variance.numpy(), z, _log_mixture(z, mean, logvar), log_posterior)


def _log_mixture(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log 1/N Σ_n N(z; mean_n, exp(logvar_n)) for each z: the squares are multiplied out, so that two products of
    matrices do the work; float64 bears the cancellation."""
    precision = torch.exp(-logvar)
    weighted = mean * precision
    constants = -0.5 * (mean * weighted + logvar + math.log(2 * math.pi)).sum(1)
    result = torch.empty(len(z), dtype=torch.float64)
    for start in range(0, len(z), _BLOCK):
        rows = z[start : start + _BLOCK]
        log_probs = constants + rows @ weighted.T - 0.5 * rows.square() @ precision.T
        result[start : start + _BLOCK] = torch.logsumexp(log_probs, 1) - math.log(len(mean))
    return result


def neighbour_accuracy(train: Tensor, train_labels: Labels, test: Tensor, labels: Labels) -> float:
    """The share of `test` (M, Z) whose class is what its nearest neighbours among `train` (N, Z) vote for."""
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(min(NEIGHBOURS, len(train))).fit(train.numpy(), train_labels)
    return float(voters.score(test.numpy(), labels))


def probe_accuracy(train: Tensor, train_labels: Labels, test: Tensor, labels: Labels) -> float:
    """The share of `test` whose class a logistic regression on `train`, each latent at unit variance, tells."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping before the very optimum costs nothing here
        return float(probe.fit(train.double().numpy(), train_labels).score(test.double().numpy(), labels))
