"""How far samples are from real images, in any features: Fréchet and kernel distance, precision and recall.

Features are float arrays (N, D). Knows nothing of what made them, so that none of these is the published FID or KID,
which are those of one certain network.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEIGHBOURS = 3  # of the balls that cover a set (Kynkäänniemi et al. 2019, section 3)
LEAST_IMAGES = NEIGHBOURS + 1
_SEED = 0
_SUBSET = 1000  # images in each estimate of the kernel distance
_BLOCK = 512

Floats = NDArray[np.float64]


def frechet(real: Floats, fake: Floats) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) between the sets' moments (Dowson & Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of S1^½ S2 S1^½, which is symmetric: nothing
    complex, and a covariance without full rank does no harm.
    """
    difference = real.mean(0) - fake.mean(0)
    covariance_real, covariance_fake = _covariance(real), _covariance(fake)
    root = _root(covariance_real)
    eigenvalues = np.linalg.eigvalsh(root @ covariance_fake @ root).clip(0)
    traces = np.trace(covariance_real) + np.trace(covariance_fake)
    return float(max(difference @ difference + traces - 2 * np.sqrt(eigenvalues).sum(), 0.0))


def _covariance(features: Floats) -> Floats:
    centred = features - features.mean(0)
    return np.asarray(centred.T @ centred / max(len(features) - 1, 1))


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(values.clip(0)) @ vectors.T)


def kernel(real: Floats, fake: Floats) -> tuple[float, float]:
    """The squared maximum mean discrepancy under (x·y / D + 1)³, unbiased (Bińkowski et al. 2018, section 4), as a
    mean over disjoint subsets of 1,000 images, with its standard error (NaN for one subset). Can be below 0."""
    n = min(len(real), len(fake))
    subsets = max(1, n // _SUBSET)
    shuffle = np.random.default_rng(_SEED)  # images often come class by class: a stretch of them is no fair subset
    real, fake = real[shuffle.permutation(len(real))], fake[shuffle.permutation(len(fake))]
    estimates = [
        _discrepancy(a, b)
        for a, b in zip(np.array_split(real[:n], subsets), np.array_split(fake[:n], subsets), strict=True)
    ]
    error = np.std(estimates, ddof=1) / math.sqrt(subsets) if subsets > 1 else math.nan
    return float(np.mean(estimates)), float(error)


def _discrepancy(real: Floats, fake: Floats) -> float:
    n, m = len(real), len(fake)
    within_real, within_fake, across = _kernel(real, real), _kernel(fake, fake), _kernel(real, fake)
    within = (within_real.sum() - np.trace(within_real)) / (n * (n - 1))
    within += (within_fake.sum() - np.trace(within_fake)) / (m * (m - 1))
    return float(within - 2 * across.mean())


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def precision_recall(real: Floats, fake: Floats) -> tuple[float, float]:
    """Precision, the share of `fake` inside the union of balls around `real`, each as wide as the third neighbour
    is far, and recall, the same the other way round (Kynkäänniemi et al. 2019, eq. 1 and 2)."""
    a, b = torch.from_numpy(real), torch.from_numpy(fake)
    return _covered(b, a), _covered(a, b)


def _covered(points: Tensor, centres: Tensor) -> float:
    radii = torch.cat(
        [_distances(block, centres).kthvalue(NEIGHBOURS + 1).values for block in torch.split(centres, _BLOCK)]
    )  # the nearest of all is the point itself
    inside = [(_distances(block, centres) <= radii).any(1) for block in torch.split(points, _BLOCK)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # exact: a point is at 0 from itself
