"""A mixture of Gaussians with full covariances as the prior of latents, fitted by expectation-maximisation.

    noise (N, Z + 1) -> component (first column), its mean + Cholesky factor · the other columns -> latents (N, Z)
    latents (N, Z)   -> log-density in nats, exact (N,)

Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4: the density to draw from is better
fitted after training. Knows nothing of images, nor of the model whose latents these are.
"""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import RunError
from training.progress import Progress, say

_DRAWS_PER_LATENT = 5  # latents that each component needs on average, times Z + 1, to tell its covariance from noise
_REGULARISATION = 1e-4  # added to variances of 1: no direction is thinner than a hundredth of its latent's spread
_ITERATIONS = 100
_AT_A_TIME = 5  # iterations between two steps of the progress bar
_TOLERANCE = 1e-3  # nats of mean log-density that an iteration must gain
_LEAST_WEIGHT = 1e-9
_AGREEMENT = 1e-4  # of |difference| / (1 + |value|), between log-densities in float32 and in float64
_CHECKED = 2000  # latents
_CHUNK = 256

_Matrix = NDArray[np.float64]


class Mixture(nn.Module):
    """`components` Gaussians over Z latents; all zero until `of` or `load_state_dict` fills it."""

    thresholds: Tensor
    means: Tensor
    factors: Tensor
    precisions: Tensor
    log_scales: Tensor

    def __init__(self, components: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, latent_dim))
        self.register_buffer("factors", torch.zeros(components, latent_dim, latent_dim))
        self.register_buffer("precisions", torch.zeros(components, latent_dim, latent_dim))
        self.register_buffer("log_scales", torch.zeros(components))

    @classmethod
    def of(cls, weights: _Matrix, means: _Matrix, covariances: _Matrix) -> Mixture:
        """The mixture with `weights` (K,) that sum to 1, `means` (K, Z) and `covariances` (K, Z, Z), in float64.

        Components of no weight are left out.
        """
        kept = weights > _LEAST_WEIGHT
        weights, means, covariances = weights[kept] / weights[kept].sum(), means[kept], covariances[kept]
        factors = np.linalg.cholesky(covariances)
        precisions = np.linalg.inv(factors).transpose(0, 2, 1)
        log_det = np.log(np.diagonal(precisions, axis1=1, axis2=2)).sum(1)
        cumulative = torch.from_numpy(np.append(np.cumsum(weights)[:-1].clip(0, 1), 1.0))
        mixture = cls(*means.shape).double()
        filled = {
            "thresholds": torch.special.ndtri(cumulative),  # the last is infinite: nothing is above it
            "means": torch.from_numpy(means),
            "factors": torch.from_numpy(factors),
            "precisions": torch.from_numpy(precisions),
            "log_scales": torch.from_numpy(np.log(weights) + log_det - means.shape[1] / 2 * math.log(2 * math.pi)),
        }
        mixture.load_state_dict(filled)
        return mixture.eval()

    @property
    def components(self) -> int:
        return len(self.means)

    @property
    def noise_dim(self) -> int:
        """Z + 1."""
        return self.means.shape[1] + 1

    def forward(self, noise: Tensor) -> Tensor:
        return self.latents(noise)

    def latents(self, noise: Tensor) -> Tensor:
        """Draws (N, Z) made of standard normal noise (N, Z + 1).

        The first column chooses the component: by the cumulative weights, as its normal CDF would lie among them. The
        weights' quantiles are compared instead, so that no runtime's erf decides, and only the chosen components'
        factors are gathered.
        """
        chosen = (noise[:, :1] > self.thresholds).sum(1)
        factors = self.factors.index_select(0, chosen)
        moved = torch.matmul(factors, noise[:, 1:].unsqueeze(2)).squeeze(2)
        return self.means.index_select(0, chosen) + moved

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (N,), of z (N, Z). Takes 8·K·Z bytes for each row."""
        whitened = torch.matmul(z - self.means.unsqueeze(1), self.precisions)  # (K, N, Z)
        by_component = self.log_scales.unsqueeze(1) - 0.5 * whitened.square().sum(2)
        return torch.logsumexp(by_component, 0)


class Density(nn.Module):
    """A mixture's log-density of latents, for export."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, latents: Tensor) -> Tensor:
        return self.mixture.log_prob(latents)


def fit_mixture(z: Tensor, components: int, seed: int) -> Mixture:
    """The mixture that EM finds for latents z (N, Z), from k-means; the same for the same seed.

    Latents are brought to mean 0 and variance 1 first, so that the regularisation means the same for all. Where the
    latents are too few for so many covariances, fewer components are fitted, and this is said. Raises `RunError` if a
    latent never varies or if float32 cannot hold the mixture.
    """
    n, latent_dim = z.shape
    most = max(1, n // (_DRAWS_PER_LATENT * (latent_dim + 1)))
    if components > most:
        say(f"prior.components: {components} are too many for {n} images and {latent_dim} latents: {most} fitted")
    shift, scale = (moment.double().numpy() for moment in spread_of(z))
    standard = (z.double().numpy() - shift) / scale
    weights, means, covariances = _expectation_maximisation(standard, min(components, most), seed)
    exact = Mixture.of(weights, means * scale + shift, covariances * np.outer(scale, scale))
    return _in_float32(exact, z[:: math.ceil(n / _CHECKED)])


def spread_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent of z (N, Z), each (Z,). Raises `RunError` for one that never varies,
    which no density can fit."""
    mean, deviation = z.double().mean(0), z.double().std(0, correction=0)
    constant = torch.nonzero(deviation <= 1e-6 * (1e-30 + z.double().abs().amax(0))).flatten().tolist()
    if constant:
        raise RunError(f"prior: latent {constant[0]} is the same for all {len(z)} images, wanted latents that vary")
    return mean.float(), deviation.float()


def _expectation_maximisation(z: _Matrix, components: int, seed: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Weights, means and covariances for standardised z (N, Z)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(
        components,
        reg_covar=_REGULARISATION,
        tol=_TOLERANCE,
        max_iter=_AT_A_TIME,
        warm_start=True,
        random_state=seed,
    )
    with (
        warnings.catch_warnings(),
        # k-means adds up what its threads found in whichever order they end, so that its last bits would differ
        threadpool_limits(1, "openmp"),
        Progress(f"mixture of {components}", _ITERATIONS, "iterations") as progress,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(_ITERATIONS // _AT_A_TIME):
            mixture.fit(z)
            progress.add(_AT_A_TIME)
            if mixture.converged_:
                break
    return mixture.weights_, mixture.means_, mixture.covariances_


def _in_float32(exact: Mixture, z: Tensor) -> Mixture:
    """`exact` in float32; raises `RunError` unless its log-densities of latents z (N, Z) are those of float64."""
    mixture = copy.deepcopy(exact).float()
    worst = 0.0
    for part in torch.split(z.double(), _CHUNK):
        wanted, got = exact.log_prob(part), mixture.log_prob(part.float()).double()
        worst = max(worst, ((got - wanted).abs() / (1 + wanted.abs())).nan_to_num(math.inf).max().item())
    if worst > _AGREEMENT:
        raise RunError(
            f"prior: relative difference of the mixture's log-densities in float32: got {worst:.3g}, wanted at most "
            f"{_AGREEMENT:g}; prior.components: fewer may do"
        )
    return mixture
