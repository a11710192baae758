"""Directions in latent space that add an attribute, estimated from encoded images. Amount 1 is the gap between those
with it and those without, as each way measures it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

Direction = NDArray[np.float64]  # (Z,)


def candidates(latents: NDArray[np.float32], has: NDArray[np.int8], column: int) -> Mapping[str, Direction]:
    """Ways to add the attribute of `column`, from latents (N, Z) and what is known of each image, (N, A) with 1, 0 and
    -1 for unknown; the plainest first."""
    known = has[:, column] >= 0
    z, about = latents[known].astype(np.float64), has[known]
    found = {"means": means(z, about[:, column] == 1)}
    if has.shape[1] > 1:
        found["adjusted"] = adjusted(z, about, column)
    found["discriminant"] = discriminant(z, about[:, column] == 1)
    return found


def means(z: NDArray[np.float64], has: NDArray[np.bool_]) -> Direction:
    """The mean of the latents with the attribute, less the mean of those without."""
    return np.asarray(z[has].mean(0) - z[~has].mean(0))


def adjusted(z: NDArray[np.float64], has: NDArray[np.int8], column: int) -> Direction:
    """The difference that the attribute makes where all others are equal: its coefficients in the least-squares
    regression of the latents on all attributes, unknown ones standing half-way. Who wears glasses is older than most;
    this leaves the age out, if a column tells of it."""
    given = np.where(has < 0, 0.5, has)
    design = np.column_stack([np.ones(len(given)), given])
    coefficients, *_ = np.linalg.lstsq(design, z, rcond=None)
    return np.asarray(coefficients[1 + column])


def discriminant(z: NDArray[np.float64], has: NDArray[np.bool_]) -> Direction:
    """The direction that tells the two best apart (Fisher's, its covariance shrunk after Ledoit and Wolf), as long as
    it takes to get from the one mean to the other along it."""
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z, has)
    normal = np.asarray(model.coef_[0])
    return normal * float(normal @ means(z, has)) / float(normal @ normal)
