"""Scores against closed forms, torch.distributions and, on real images, against what the shipped models were measured
to give."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.stats
import torch
from conftest import ROOT
from torch import distributions

from latentry import manifest
from latentry.manifest import DECODER_FILE, DENSITY_FILE, ENCODER_FILE, Likelihood, Manifest, ModelFolder
from serving import likelihoods
from serving.scores import entropy, kl_to_standard_normal, log_density, squared_errors
from training import binarise
from training.evaluation import bound
from training.evaluation.densities import log_prob_of
from training.evaluation.graphs import Graphs
from training.loss import log_standard_normal

Array = np.ndarray[Any, np.dtype[Any]]


def test_the_error_of_many_images_is_that_of_each() -> None:
    rng = np.random.default_rng(5)
    images, decoded = rng.integers(0, 256, (9, 5, 4, 3), np.uint8), rng.random((9, 5, 4, 3), np.float32)
    each = [np.mean((image / 255 - mean) ** 2) for image, mean in zip(images, decoded, strict=True)]
    assert squared_errors(images, decoded) == pytest.approx(each, rel=1e-5)


def posteriors(n: int = 50, z: int = 7) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    return rng.normal(0, 2, (n, z)).astype(np.float32), rng.uniform(-9, 3, (n, z)).astype(np.float32)


def normal(mean: Array, logvar: Array) -> distributions.Normal:
    mean, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    return distributions.Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(logvar / 2)))


def test_kl_and_entropy_are_those_of_torch() -> None:
    mean, logvar = posteriors()
    q, p = normal(mean, logvar), distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    kl, nats = kl_to_standard_normal(mean, logvar), entropy(logvar)
    assert kl.dtype == nats.dtype == np.float64
    np.testing.assert_allclose(kl, distributions.kl_divergence(q, p).sum(1).numpy(), rtol=1e-10)
    np.testing.assert_allclose(nats, q.entropy().sum(1).numpy(), rtol=1e-10)


def test_a_posterior_close_to_the_prior_has_the_small_kl_that_it_has() -> None:
    logvar = np.array([[1e-8], [-1e-8], [0.0]], np.float32)
    expected = logvar.astype(np.float64)[:, 0] ** 2 / 4
    assert kl_to_standard_normal(np.zeros((3, 1), np.float32), logvar) == pytest.approx(expected, rel=1e-6, abs=0)


def test_a_variance_that_no_number_can_hold_is_an_infinite_kl() -> None:
    assert kl_to_standard_normal(np.zeros((1, 2), np.float32), np.full((1, 2), 1e30, np.float32)) == np.inf


def test_the_estimate_is_right_on_average() -> None:
    """For N(0, I), whose KL is known. Its log density is quadratic in z: mean - sigma and mean + sigma will do."""
    mean, logvar = posteriors()
    sigma = np.exp(logvar.astype(np.float64) / 2)
    draws = [mean + sign * sigma for sign in (-1, 1)]
    log_priors = [-0.5 * (np.square(z) + math.log(2 * math.pi)).sum(1, dtype=np.float64) for z in draws]
    estimates = [log_density(z, mean, logvar) - log_p for z, log_p in zip(draws, log_priors, strict=True)]
    estimate = (estimates[0] + estimates[1]) / 2
    np.testing.assert_allclose(estimate, kl_to_standard_normal(mean, logvar), rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_under_the_true_posterior_the_elbo_is_the_evidence(sigma: float) -> None:
    """x given z is N(z, sigma²), and z is N(0, 1): the posterior and p(x) are normal, and known."""
    pixels = np.array([0, 77, 255], np.uint8).reshape(3, 1, 1, 1)
    x = pixels.reshape(3, 1) / 255
    variance = sigma**2 / (1 + sigma**2)
    mean, logvar = (x / (1 + sigma**2)).astype(np.float32), np.full((3, 1), math.log(variance), np.float32)
    log_likelihood = np.mean(  # quadratic in z again
        [
            likelihoods.log_prob(Likelihood("gaussian", {"sigma": sigma}), pixels, z.reshape(3, 1, 1, 1))
            for z in (mean - math.sqrt(variance), mean + math.sqrt(variance))
        ],
        axis=0,
    )
    evidence = distributions.Normal(0.0, math.sqrt(1 + sigma**2)).log_prob(torch.from_numpy(x[:, 0])).numpy()
    np.testing.assert_allclose(log_likelihood - kl_to_standard_normal(mean, logvar), evidence, atol=1e-6)


# ---- the shipped models on real images ----

N = 500


@dataclass(frozen=True)
class Shipped:
    """A shipped model, and the scores of N real test images at one draw of each posterior: those of evaluation."""

    about: Manifest
    folder: ModelFolder
    images: Array
    kl: Array
    log_likelihood: Array

    def evaluated(self) -> bound.Elbo:
        """What training's evaluation makes of the same images and draws, in torch."""
        graphs = Graphs(self.about, self.folder.graphs, "cpu")
        log_prob = log_prob_of(self.about.likelihood, 1, graphs.parameters)
        prior = graphs.log_density if graphs.has_density else log_standard_normal
        scored = bound.Scored(self.images, *graphs.encode(self.images))
        return bound.elbo(graphs, log_prob, scored, {"own": prior}, 0, lambda draws: None)


def scored(name: str, images: Array) -> Shipped:
    folder = manifest.read(ROOT / "models" / name / "1")
    about = folder.manifest
    mean, logvar = run(folder, ENCODER_FILE, {"images": images}, ["mean", "logvar"])
    noise = np.stack([bound._stream(0, i).standard_normal(mean.shape[1], np.float32) for i in range(len(images))])
    z = mean + np.exp(logvar / 2) * noise
    wanted = likelihoods.outputs(about.likelihood, has_parameters=False)
    assert wanted == "mean"
    (decoded,) = run(folder, DECODER_FILE, {"latents": z}, [wanted])
    if DENSITY_FILE in folder.graphs:
        log_prior = run(folder, DENSITY_FILE, {"latents": z}, ["log_prob"])[0]
        kl = log_density(z, mean, logvar) - log_prior
    else:
        kl = kl_to_standard_normal(mean, logvar)
    return Shipped(about, folder, images, kl, likelihoods.log_prob(about.likelihood, images, decoded))


def run(folder: ModelFolder, file: str, feeds: dict[str, Array], outputs: list[str]) -> list[Array]:
    session = onnxruntime.InferenceSession(folder.graphs[file], providers=["CPUExecutionProvider"])
    parts = [
        session.run(outputs, {name: rows[start : start + 100] for name, rows in feeds.items()})
        for start in range(0, N, 100)
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def fashion(fashion_images: Array) -> Shipped:
    return scored("fashion", fashion_images[:N])


@pytest.fixture(scope="module")
def mnist(shared_data: Path) -> Shipped:
    """Of black and white digits, drawn as evaluation draws them: what the manifest's figures are of."""
    raw = gzip.decompress((shared_data / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    grey = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return scored("mnist-binary", binarise.binarise(grey[:N], "dynamic"))


def agrees(values: Array, figure: float) -> None:
    """Within four standard errors: these are some of the 10,000 images that the figure is the mean of, and other
    draws."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - figure) < 4 * error, f"got {values.mean():.2f} ± {error:.2f}, the manifest says {figure}"


def agrees_with_its_manifest(model: Shipped) -> None:
    figures = model.about.evaluation
    agrees(model.kl, figures["kl"])
    agrees(model.log_likelihood, figures["reconstruction"])
    agrees(model.log_likelihood - model.kl, figures["elbo"])


def test_clothes_score_what_the_manifest_says(fashion: Shipped) -> None:
    agrees_with_its_manifest(fashion)


def test_clothes_score_what_evaluation_gives_them(fashion: Shipped) -> None:
    evaluated = fashion.evaluated()
    np.testing.assert_allclose(fashion.kl, evaluated.kl["own"], rtol=1e-6)
    np.testing.assert_allclose(fashion.log_likelihood, evaluated.reconstruction, rtol=1e-4, atol=0.01)


def test_digits_under_a_learnt_prior_score_what_the_manifest_says(mnist: Shipped) -> None:
    agrees_with_its_manifest(mnist)


def test_digits_under_a_learnt_prior_score_what_evaluation_gives_them(mnist: Shipped) -> None:
    evaluated = mnist.evaluated()
    np.testing.assert_allclose(mnist.log_likelihood, evaluated.reconstruction, rtol=1e-4, atol=0.01)
    np.testing.assert_allclose(mnist.kl, evaluated.kl["own"], rtol=1e-4, atol=1e-3)


def test_the_density_is_that_of_scipy() -> None:
    mean, logvar = posteriors()
    z = mean + 1.5
    wanted = scipy.stats.norm(mean, np.exp(logvar.astype(np.float64) / 2)).logpdf(z).sum(1)
    np.testing.assert_allclose(log_density(z, mean, logvar), wanted, rtol=1e-6)
