"""A linear autoencoder finds the subspace of PCA, in a basis of its own: by hand on five points, then on images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

from training import trained
from training.drawing.canvas import PALETTE, labelled, new_figure, one_axes, png
from training.drawing.subject import Subject, decode_all
from training.gallery.measures import psnr_db
from training.gallery.workshop import Chapter, Workshop
from training.networks import LinearDecoder

# Their mean is (0, 0) and their scatter matrix [[10, 8], [8, 10]], with the eigenvalues 18 and 2
FIVE_POINTS = np.array([[-2.0, -2.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 2.0], [2.0, 1.0]])
_LATENTS = 10
_STEPS = 4000
_RATE = 0.01
_SHOWN = 10

_Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearAutoencoder:
    """x (N, D) -> x @ encoder (D, Z) -> z @ decoder (Z, D)."""

    encoder: _Matrix
    decoder: _Matrix

    def reconstruct(self, x: _Matrix) -> _Matrix:
        """x through the latents and back."""
        return x @ self.encoder @ self.decoder


def five_points() -> Chapter:
    """PCA and a linear autoencoder with one latent on five points of a plane."""
    values, vectors = principal_components(FIVE_POINTS)
    first = vectors[:, :1]
    pca = FIVE_POINTS @ first @ first.T
    model = descend(FIVE_POINTS, latent_dim=1, seed=3)
    learnt = model.reconstruct(FIVE_POINTS)
    numbers = {
        "five_larger_eigenvalue": values[0],
        "five_smaller_eigenvalue": values[1],
        "five_direction_x": first[0, 0],
        "five_direction_y": first[1, 0],
        "five_pca_error": float(np.square(FIVE_POINTS - pca).sum()),
        "five_linear_error": float(np.square(FIVE_POINTS - learnt).sum()),
        "five_decoder_x": model.decoder[0, 0],
        "five_decoder_y": model.decoder[0, 1],
        "five_encoder_x": model.encoder[0, 0],
        "five_encoder_y": model.encoder[1, 0],
        "five_angle_degrees": angle_degrees(first, model.decoder.T),
    }
    for index, (point, code) in enumerate(zip(FIVE_POINTS @ first, FIVE_POINTS @ model.encoder, strict=True)):
        numbers |= {f"five_pca_code_{index}": float(point[0]), f"five_linear_code_{index}": float(code[0])}
    return Chapter({name: float(value) for name, value in numbers.items()}, {"five-points.png": _drawn(pca, first)})


def principal_components(x: _Matrix) -> tuple[_Matrix, _Matrix]:
    """Eigenvalues (D,) of the scatter matrix xᵀx of centred points (N, D), the largest first, and the eigenvectors
    (D, D) as columns; the first coordinate that is not 0 of each is positive."""
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    return values, vectors * np.where(np.sign(vectors[0]) == 0, 1, np.sign(vectors[0]))


def descend(x: _Matrix, latent_dim: int, seed: int) -> LinearAutoencoder:
    """Plain gradient descent on the squared error of points x (N, D), from small random weights."""
    random = np.random.default_rng(seed)
    encoder = 0.5 * random.standard_normal((x.shape[1], latent_dim))
    decoder = 0.5 * random.standard_normal((latent_dim, x.shape[1]))
    for _ in range(_STEPS):
        error = x @ encoder @ decoder - x
        by_decoder = (x @ encoder).T @ error
        by_encoder = x.T @ error @ decoder.T
        decoder -= _RATE * by_decoder
        encoder -= _RATE * by_encoder
    return LinearAutoencoder(encoder, decoder)


def angle_degrees(a: _Matrix, b: _Matrix) -> float:
    """The largest principal angle between the spaces that the columns of `a` and `b` span."""
    return math.degrees(subspace_angles(a, b).max())


def on_images(workshop: Workshop) -> Chapter:
    """The same for images: PCA in closed form, and a linear autoencoder that was trained like any other model."""
    fixed = {"likelihood": "gaussian"}
    pca = workshop.subject("pca-10", {"model": {"kind": "pca", "latent_dim": _LATENTS}, "objective": fixed}, 1)
    linear = workshop.subject(
        "linear-10", {"model": {"kind": "linear", "latent_dim": _LATENTS}, "objective": fixed}, 40
    )
    pixels = workshop.dataset.test.pixels
    again = {name: _again(subject, pixels) for name, subject in {"PCA": pca, "linear autoencoder": linear}.items()}
    deep = workshop.subject("autoencoder-10", {"model": {"kind": "autoencoder", "latent_dim": _LATENTS}}, 30)
    again["deep autoencoder"] = _again(deep, pixels)
    numbers = {f"subspace_{name.split()[0].lower()}_psnr": psnr_db(found, pixels) for name, found in again.items()}
    ours, theirs = _directions(workshop.folder / "pca-10"), _directions(workshop.folder / "linear-10")
    angles = np.degrees(subspace_angles(ours, theirs))
    numbers |= {"subspace_largest_degrees": float(angles.max()), "subspace_median_degrees": float(np.median(angles))}
    chance = subspace_angles(ours, np.random.default_rng(0).standard_normal(ours.shape))
    numbers["subspace_random_degrees"] = float(np.degrees(np.median(chance)))
    rows = {"image": pixels, **again}
    sheet = np.concatenate([found[:_SHOWN] for found in rows.values()])
    return Chapter(numbers, {"linear.png": png(labelled(sheet, _SHOWN, list(rows)))})


def _again(subject: Subject, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return decode_all(subject, subject.encode(pixels, None)[0])


def _directions(run: Path) -> _Matrix:
    """(D, Z): how the pixels move with each latent of a run's linear decoder."""
    weight: _Matrix = cast(LinearDecoder, trained.load(run).model.decoder).layer.weight.double().numpy()
    return weight


def _drawn(pca: _Matrix, first: _Matrix) -> bytes:
    figure = new_figure(4.2, 4.2)
    axes = one_axes(figure)
    line = np.outer([-3.2, 3.2], first[:, 0])
    axes.plot(line[:, 0], line[:, 1], "-", color=PALETTE[6], label="first principal direction")
    for point, foot in zip(FIVE_POINTS, pca, strict=True):
        axes.plot([point[0], foot[0]], [point[1], foot[1]], ":", color="#666666", linewidth=1.2)
    axes.plot(FIVE_POINTS[:, 0], FIVE_POINTS[:, 1], "o", color=PALETTE[0], label="the five points")
    axes.plot(pca[:, 0], pca[:, 1], "x", color=PALETTE[6], label="what one number keeps of them")
    axes.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal", xlabel="x", ylabel="y")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png(figure)
