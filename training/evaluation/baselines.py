"""What as many latents buy a linear model: PCA and a trained linear autoencoder, on the same images.

A model worth its cost reconstructs better than both, though it is also held to its prior. Images are uint8
(N, H, W, C), errors mean squares of pixel values in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.images import spread
from training.progress import Progress

_MOST_IMAGES = 20_000
_MOST_VALUES = 1 << 27  # numbers of training images that are held as float32
_COVARIANCE_UP_TO = 2048  # pixel values; larger images are decomposed by random projections
_STEPS = 1000
_BATCH = 256
_RATE = 1e-3


def most_latents(train: NDArray[np.uint8]) -> int:
    """The largest latent size that the training images determine."""
    return min(len(_chosen(train)) - 1, math.prod(train.shape[1:]))


def pca_error(train: NDArray[np.uint8], test: NDArray[np.uint8], latent_dim: int) -> float:
    """The mean squared error on `test` of the projection on the first `latent_dim` components of `train`."""
    from sklearn.decomposition import PCA

    known = _flat(_chosen(train))
    solver = "covariance_eigh" if known.shape[1] <= _COVARIANCE_UP_TO else "randomized"
    pca = PCA(latent_dim, svd_solver=solver, random_state=0).fit(known)
    squares = sum(
        float(np.square(pca.inverse_transform(pca.transform(x)) - x, dtype=np.float64).sum()) for x in _blocks(test)
    )
    return squares / test.size


def linear_autoencoder_error(train: NDArray[np.uint8], test: NDArray[np.uint8], latent_dim: int, seed: int) -> float:
    """The mean squared error on `test` of a linear encoder and decoder, trained by gradient (Adam); at its optimum it
    spans PCA's subspace (Baldi & Hornik 1989), which a thousand steps come near."""
    known = torch.from_numpy(_flat(_chosen(train)))
    mean = known.mean(0)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn((latent_dim, known.shape[1]), generator=generator) / math.sqrt(known.shape[1])
    encoder, decoder = weights.T.clone().requires_grad_(), weights.clone().requires_grad_()  # tied to begin with
    optimiser = torch.optim.Adam([encoder, decoder], _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    with Progress("linear autoencoder", _STEPS, "steps") as progress:
        for _ in range(_STEPS):
            x = known[torch.randint(len(known), (min(_BATCH, len(known)),), generator=generator)] - mean
            optimiser.zero_grad()
            torch.autograd.backward((x @ encoder @ decoder - x).square().sum(1).mean())
            optimiser.step()
            schedule.step()
            progress.add(1)
    with torch.inference_mode():
        squares = sum(_squares(torch.from_numpy(x) - mean, encoder, decoder) for x in _blocks(test))
    return squares / test.size


def _squares(x: Tensor, encoder: Tensor, decoder: Tensor) -> float:
    return (x @ encoder @ decoder - x).double().square().sum().item()


def _chosen(train: NDArray[np.uint8]) -> NDArray[np.uint8]:
    most = min(_MOST_IMAGES, max(2, _MOST_VALUES // math.prod(train.shape[1:])))
    chosen: NDArray[np.uint8] = train[spread(len(train), most)]
    return chosen


def _blocks(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    return [_flat(part) for part in np.array_split(pixels, math.ceil(len(pixels) / 1000))]


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(pixels.reshape(len(pixels), -1), np.float32(255), dtype=np.float32)
