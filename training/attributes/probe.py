"""A linear probe: whether an attribute can be read from latents, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: the inverse of the regularisation
_MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Probe:
    """Logistic regression on latents, each latent scaled to variance 1."""

    model: Any

    def says(self, latents: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each of the latents (N, Z) has the attribute."""
        return np.asarray(self.model.predict(latents), np.bool_)

    def accuracy(self, latents: NDArray[np.float32], has: NDArray[np.bool_]) -> float:
        """The share of right answers."""
        return float((self.says(latents) == has).mean())

    def balanced_accuracy(self, latents: NDArray[np.float32], has: NDArray[np.bool_]) -> float:
        """The mean of the shares of right answers among those with and those without the attribute."""
        right = self.says(latents) == has
        return float((right[has].mean() + right[~has].mean()) / 2)


def fit(
    latents: NDArray[np.float32], has: NDArray[np.bool_], to_choose: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> Probe:
    """The probe fitted to `latents` (N, Z), its regularisation chosen by the accuracy on the pair `to_choose`."""
    probes = [Probe(_fitted(strength, latents, has)) for strength in _STRENGTHS]
    return max(probes, key=lambda probe: probe.accuracy(*to_choose))


def _fitted(strength: float, latents: NDArray[np.float32], has: NDArray[np.bool_]) -> Any:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS))
    return model.fit(latents.astype(np.float64), has)
