"""p(x|z): what the decoder's output means. Chooses a likelihood by the name that configs and manifests give it."""

from __future__ import annotations

from collections.abc import Mapping

from training.config import LIKELIHOODS
from training.errors import ExportError
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.continuous_bernoulli import ContinuousBernoulli
from training.likelihoods.contract import Likelihood
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.gaussian import Gaussian, GaussianFixed, GaussianPredicted
from training.likelihoods.laplace import Laplace

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "GaussianFixed",
    "GaussianPredicted",
    "Laplace",
    "Likelihood",
    "build",
    "from_manifest",
]


def build(name: str, *, variance: float = 1.0, link: str = "sigmoid") -> Likelihood:
    """The likelihood `name`, one of `config.LIKELIHOODS`; `variance` is gaussian-fixed's c. By the `link` identity the
    decoder's output is the mean itself; only gaussian, gaussian-fixed and laplace know another than the sigmoid."""
    if name == Gaussian.name:
        return Gaussian(link)
    if name == GaussianFixed.name:
        return GaussianFixed(variance, link)
    if name == Laplace.name:
        return Laplace(link)
    others = (GaussianPredicted, Bernoulli, ContinuousBernoulli, DiscretisedLogistic)
    return {other.name: other for other in others}[name]()


_LEAST = 1e-9  # pixel values are in [0, 1]: no scale of theirs is smaller, or larger than its inverse


def from_manifest(name: str, parameters: Mapping[str, float]) -> Likelihood:
    """The likelihood of an exported model, in evaluation mode, from the numbers that `parameters_by_name` wrote.

    Raises `ExportError` if there is no such likelihood, or if a number is absent or not positive.
    """
    if name not in LIKELIHOODS:
        raise ExportError(f"likelihood.name: got {name}, wanted {' or '.join(LIKELIHOODS)}")
    if name == GaussianFixed.name:
        return GaussianFixed(_positive(parameters, "variance")).eval()
    if name == DiscretisedLogistic.name:
        return DiscretisedLogistic(_positive(parameters, "scale")).requires_grad_(False).eval()
    likelihood = build(name)
    if isinstance(likelihood, Gaussian):
        likelihood.set_statistic(_positive(parameters, "sigma") ** 2)
    if isinstance(likelihood, Laplace):
        likelihood.set_statistic(_positive(parameters, "scale"))
    return likelihood.eval()


def _positive(parameters: Mapping[str, float], key: str) -> float:
    value = parameters.get(key)
    if value is None or not _LEAST < value < 1 / _LEAST:
        raise ExportError(
            f"likelihood.parameters.{key}: got {value}, wanted a number from {_LEAST:g} to {1 / _LEAST:g}"
        )
    return value
