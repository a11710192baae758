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


def measure(about: Manifest, fp32: Graphs, variant: Graphs, images: Images) -> dict[str, float]:
    """How far `variant` is from `fp32` on `images`: the figures of `Manifest.variants`."""
    images = images.spread(MEASURED_ON)
    observed = seen_by(about.likelihood.name, images.pixels)
    labels = images.labels if about.classes else None
    both = [fp32, variant]
    posteriors = [graphs.encode(observed, labels) for graphs in both]
    latents = posteriors[0][0]
    means = [graphs.means(latents, labels) for graphs in both]
    decoded = [graphs.images(latents, labels) for graphs in both]
    whole = [graphs.images(mean, labels) for graphs, (mean, _) in zip(both, posteriors, strict=True)]
    elbos = [_elbo(graphs, Scored(observed, *each, labels)) for graphs, each in zip(both, posteriors, strict=True)]
    return {
        "encoder_relative": max(map(_relative, posteriors[1], posteriors[0])),
        "decoder_mean": float(np.abs(means[1] - means[0]).max()),
        "decoder_levels": float(np.abs(decoded[1].astype(int) - decoded[0]).max()),
        "psnr_db": _psnr(decoded[0], decoded[1]),
        "psnr_db_lost": _psnr(observed, whole[0]) - _psnr(observed, whole[1]),
        "elbo_change": elbos[1] - elbos[0],
    }


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
    return -10 * math.log10(max(float(error), 1e-12))
