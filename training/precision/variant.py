"""The graphs of a model in another precision: made, measured against fp32 on held-out images, and refused if too far.

Knows nothing of how a precision is made (that is next door), nor of model folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentry.manifest import Manifest
from training.binarise import seen_by
from training.differences import decibels
from training.errors import ExportError
from training.evaluation import bound
from training.evaluation.bound import Scored
from training.evaluation.densities import log_prob_of
from training.evaluation.graphs import Graphs
from training.images import Images
from training.loss import log_standard_normal

MEASURED_ON = 1000  # held-out images
_SEED = 11


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a precision may be from fp32: PSNR lost by reconstructions at most, PSNR between the two decoders'
    images at least, both in dB, and the ELBO's change in nats for each value of a pixel at most."""

    psnr_db_lost: float
    psnr_db: float
    elbo_per_value: float


TOLERANCES = {
    "fp16": Tolerance(psnr_db_lost=0.01, psnr_db=55.0, elbo_per_value=0.001),
    "bf16": Tolerance(psnr_db_lost=0.05, psnr_db=45.0, elbo_per_value=0.005),
    "int8": Tolerance(psnr_db_lost=0.2, psnr_db=30.0, elbo_per_value=0.05),
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What graphs make of images: their posteriors, the means and the images that the decoder gives for the fp32
    posteriors' means, reconstructions by their own, and the ELBO."""

    posterior: tuple[Tensor, Tensor]
    means: NDArray[np.float32]
    images: NDArray[np.uint8]
    reconstructions: NDArray[np.uint8]
    elbo: float


class Reference:
    """The fp32 graphs of a model on at most `MEASURED_ON` of some held-out images."""

    def __init__(self, about: Manifest, fp32: Graphs, images: Images) -> None:
        images = images.spread(MEASURED_ON)
        self._observed = seen_by(about.likelihood.name, images.pixels)
        self._labels = images.labels if about.classes else None
        self._fp32 = self._see(fp32, None)

    def measure(self, variant: Graphs) -> dict[str, float]:
        """How far `variant` is from fp32: the figures of `Manifest.variants`."""
        fp32 = self._fp32
        other = self._see(variant, fp32.posterior[0])
        return {
            "encoder_relative": max(map(_relative, other.posterior, fp32.posterior)),
            "decoder_mean": float(np.abs(other.means - fp32.means).max()),
            "decoder_levels": float(np.abs(other.images.astype(int) - fp32.images).max()),
            "psnr_db": _psnr(fp32.images, other.images),
            "psnr_db_lost": _psnr(self._observed, fp32.reconstructions) - _psnr(self._observed, other.reconstructions),
            "elbo_change": other.elbo - fp32.elbo,
        }

    def _see(self, graphs: Graphs, latents: Tensor | None) -> _Seen:
        """`latents` are what to decode; None: the means of these graphs' own posteriors."""
        labels = self._labels
        mean, logvar = graphs.encode(self._observed, labels)
        reconstructions = graphs.images(mean, labels)
        return _Seen(
            (mean, logvar),
            graphs.means(mean if latents is None else latents, labels),
            reconstructions if latents is None else graphs.images(latents, labels),
            reconstructions,
            _elbo(graphs, Scored(self._observed, mean, logvar, labels)),
        )


def check(precision: str, figures: Mapping[str, float], values: int) -> None:
    """Raises `ExportError` with the first of `figures` that is outside the tolerance of `precision`, for images of so
    many `values`."""
    most = TOLERANCES[precision]
    change = most.elbo_per_value * values
    within = {
        "psnr_db_lost": (figures["psnr_db_lost"] <= most.psnr_db_lost, f"at most {most.psnr_db_lost:g} dB"),
        "psnr_db": (figures["psnr_db"] >= most.psnr_db, f"at least {most.psnr_db:g} dB"),
        "elbo_change": (abs(figures["elbo_change"]) <= change, f"at most {change:g} nats either way"),
    }
    for name, value in figures.items():
        ok, wanted = within.get(name, (True, "a finite number"))
        if not (ok and math.isfinite(value)):
            raise ExportError(
                f"{precision}: {name} against fp32: got {value:.4g}, wanted {wanted}; nothing was published: leave "
                f"{precision} out"
            )


def _elbo(graphs: Graphs, images: Scored) -> float:
    """Nats for each image, one posterior sample for each; the same noise whatever the precision."""
    about = graphs.manifest
    log_prob = log_prob_of(about.likelihood, about.image_shape[2], graphs.parameters)
    learnt = about.prior is not None and about.prior.learnt
    priors = {"p": graphs.log_density if learnt else log_standard_normal}
    parts = bound.elbo(graphs, log_prob, images, priors, _SEED, lambda n: None)
    return float((parts.reconstruction - parts.kl["p"]).mean())


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs() / (1 + wanted.abs())).max())


def _psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """In dB; of equal images, 120."""
    error = np.mean(np.square((one.astype(np.float32) - other) / 255), dtype=np.float64)
    return decibels(float(error))
