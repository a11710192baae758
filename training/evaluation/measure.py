"""All figures of a model: which are asked for, in which order, and from which images each comes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training import binarise
from training.differences import decibels
from training.errors import ConfigError, RunError
from training.evaluation import baselines, bound, distances, features, images, latents
from training.evaluation.bound import Prior, Scored
from training.evaluation.densities import LogProb, log_prob_of
from training.evaluation.graphs import Graphs
from training.evaluation.held_out import Parts
from training.evaluation.report import Section
from training.evaluation.throughput import throughput
from training.images import spread
from training.loss import log_standard_normal
from training.progress import Progress, say

_MOST = 10_000  # images that neighbours, aggregates and distances are measured on: some of it grows as the square
_FEW_EFFECTIVE = 0.05  # of k
_LONG_S = 60.0
_MANY_ERRORS = 6
_LEAST = 10  # images: statistics of fewer say nothing
_NORMAL = "N(0, I)"
_BINARY = ("bernoulli",)


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. `k` draws for the importance-weighted bound, 0 for none, on the first `k_images` images (None:
    all). `quick` leaves out what needs more than the model and the images it is scored on."""

    k: int = 0
    k_images: int | None = None
    images: int | None = None
    binarize: str | None = None
    seed: int = 0
    quick: bool = False


class Subject:
    """A model's graphs and the images to score it on, encoded: `pixels` as they are, `scored` as the model sees them.

    Raises `ConfigError` if the images are to be binarised for a model of grey ones.
    """

    def __init__(self, graphs: Graphs, parts: Parts, options: Options) -> None:
        self.graphs, self.parts, self.options = graphs, parts, options
        self.how = _how(graphs.manifest.likelihood.name, options.binarize)
        n = len(parts.scored) if options.images is None else min(options.images, len(parts.scored))
        observed = self.observe(parts.scored.pixels)[:n]  # the whole set is drawn first, as the protocol has it
        self.pixels = parts.scored.pixels[:n]
        self.labels = None if parts.scored.labels is None else parts.scored.labels[:n]
        self.scored = self.encode(observed, self.labels)
        self.log_prob: LogProb = log_prob_of(
            graphs.manifest.likelihood, graphs.manifest.image_shape[2], graphs.parameters
        )
        self.priors = _priors(graphs)

    @property
    def given(self) -> NDArray[np.int64] | None:
        """The labels, if the model takes any."""
        return self.scored.labels

    def observe(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the model is shown of images."""
        return pixels if self.how is None else binarise.binarise(pixels, self.how)

    def encode(self, observed: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> Scored:
        """The posteriors of observed images."""
        given = labels if self.graphs.conditional else None
        return Scored(observed, *self.graphs.encode(observed, given), given)


def measure(subject: Subject) -> Iterator[Section]:
    """The sections that are asked for, each as soon as it is measured."""
    start = time.monotonic()
    yield _elbo(subject)
    rate = len(subject.scored) / (time.monotonic() - start)
    if subject.options.k:
        yield _bound(subject, rate)
    yield _images(subject)
    yield _latents(subject)
    if not subject.options.quick:
        yield _samples(subject)
        yield _baselines(subject)
        yield Section("Images a second", throughput(subject.graphs, subject.pixels, subject.given))


def _how(likelihood: str, asked: str | None) -> str | None:
    if likelihood in _BINARY:
        return asked or "dynamic"
    if asked not in (None, "none"):
        raise ConfigError(
            f"--binarize: got {asked}, but the model is of grey values ({likelihood}), not of binary ones"
        )
    return None


def _priors(graphs: Graphs) -> dict[str, Prior]:
    """The densities of latents by name, that which the model was trained with first."""
    about = graphs.manifest.prior
    if about is not None and about.kind == "flow":
        return {about.kind: graphs.log_density}
    if about is None or not graphs.has_density:
        return {_NORMAL: log_standard_normal}
    return {_NORMAL: log_standard_normal, about.kind: graphs.log_density}


def _suffix(subject: Subject, prior: str) -> str:
    """What is put behind the names of figures under another prior than the model's first."""
    return "" if prior == next(iter(subject.priors)) else f"_{prior.replace('-', '_')}"


def _elbo(subject: Subject) -> Section:
    seed, scored = subject.options.seed, subject.scored
    with Progress("ELBO", len(scored), "images") as progress:
        parts = bound.elbo(subject.graphs, subject.log_prob, scored, subject.priors, seed, progress.add)
    figures: dict[str, float] = {}
    for prior, kl in parts.kl.items():
        mean, error = bound.mean_and_error(parts.reconstruction - kl)
        _finite("the ELBO", mean)
        if len(scored) >= _LEAST:
            _not_negative(f"the KL from {prior}", *bound.mean_and_error(kl))
        suffix = _suffix(subject, prior)
        figures |= {f"elbo{suffix}": mean, f"elbo{suffix}_standard_error": error}
        if not suffix:
            figures["reconstruction"] = float(parts.reconstruction.mean())
        figures[f"kl{suffix}"] = float(kl.mean())
    figures["images"] = float(len(scored))
    each = bound.kl_per_latent(scored.mean, scored.logvar).mean(0).tolist()
    notes = [f"kl{_suffix(subject, prior)}: from {prior}" for prior in subject.priors]
    return Section("ELBO, nats for each image", figures, {"kl_per_latent": each}, notes)


def _bound(subject: Subject, rate: float) -> Section:
    options, k = subject.options, subject.options.k
    scored = subject.scored if options.k_images is None else subject.scored.first(options.k_images)
    seconds = k * len(scored) / rate
    if seconds > _LONG_S:
        say(f"bound of k = {k:,} on {len(scored):,} images: some {tqdm.format_interval(seconds)} (--k-images N: fewer)")
    with Progress(f"bound, k = {k:,}", k * len(scored), "draws") as progress:
        bounds = bound.importance_weighted(
            subject.graphs, subject.log_prob, scored, k, subject.priors, options.seed, progress.add
        )
    figures: dict[str, float] = {}
    for prior, each in bounds.items():
        name = f"bound_k{k}{_suffix(subject, prior)}"
        mean, error = bound.mean_and_error(each.values)
        _finite(name, mean)
        figures |= {name: mean, f"{name}_standard_error": error}
        figures[f"{name}_effective_samples"] = float(each.effective_samples.mean())
    figures[f"bound_k{k}_images"] = float(len(scored))
    notes = []
    if len(scored) < len(subject.scored):
        notes.append(f"the first {len(scored):,} of {len(subject.scored):,} images, whose ELBO may be another")
    if figures[f"bound_k{k}_effective_samples"] < _FEW_EFFECTIVE * k:
        notes.append("few effective samples: the posterior fits badly, and more draws would raise the bound")
    return Section("Importance-weighted bound of log p(x), nats for each image", figures, notes=notes)


def _images(subject: Subject) -> Section:
    figures = images.reconstruction(subject.graphs, subject.pixels, subject.scored.mean, subject.given)
    return Section("Reconstructions at the posterior's mean", figures)


def _latents(subject: Subject) -> Section:
    scored = subject.scored.take(spread(len(subject.scored), _MOST))
    whole = latents.aggregate(scored.mean, scored.logvar, subject.options.seed)
    prior = next(iter(subject.priors.values()))
    log_prior = prior(whole.z.float().to(subject.graphs.device)).cpu()
    figures = {
        "active_units": float(latents.active_units(subject.scored.mean)),
        "mutual_information": whole.mutual_information,
        "mutual_information_most": math.log(len(scored)),
        "aggregate_kl": whole.kl(log_prior),
        "aggregate_mean_largest": float(np.abs(whole.mean).max()),
        "aggregate_variance_least": float(whole.variance.min()),
        "aggregate_variance_largest": float(whole.variance.max()),
    }
    notes = [f"mutual information of an image's index and its latents, among {len(scored):,}: at most their logarithm"]
    if not subject.options.quick:
        figures |= _accuracies(subject, notes)
    lists = {"aggregate_mean": whole.mean.tolist(), "aggregate_variance": whole.variance.tolist()}
    return Section("Latents", figures, lists, notes)


def _accuracies(subject: Subject, notes: list[str]) -> dict[str, float]:
    """What the latents tell of the classes, if there are any."""
    train, labels = subject.parts.train, subject.labels
    if subject.graphs.conditional:
        notes.append("no accuracies: the encoder is told the classes")
        return {}
    if subject.parts.scored is train:
        notes.append("no accuracies: these are the images that they would be fitted to")
        return {}
    if train is None or train.labels is None or labels is None or len(np.unique(train.labels)) < 2:
        notes.append("no accuracies: they need training images of several classes")
        return {}
    chosen = spread(len(train), _MOST)
    known = subject.encode(subject.observe(train.pixels[chosen]), train.labels[chosen]).mean
    scored = spread(len(subject.scored), _MOST)
    test, truth = subject.scored.mean[scored], labels[scored]
    return {
        "neighbour_accuracy": latents.neighbour_accuracy(known, train.labels[chosen], test, truth),
        "probe_accuracy": latents.probe_accuracy(known, train.labels[chosen], test, truth),
    }


def _samples(subject: Subject) -> Section:
    title, train, shown = "Samples beside held-out images", subject.parts.train, spread(len(subject.pixels), _MOST)
    real = subject.pixels[shown]
    if train is None or len(real) < max(_LEAST, distances.LEAST_IMAGES) or len(train) < _LEAST:
        return Section(title, notes=[f"left out: they need training images, and {_LEAST} of each part"])
    seed, labels = subject.options.seed, None if subject.given is None else subject.given[shown]
    network = features.train(train.pixels, train.labels, seed)
    about = subject.graphs.manifest.prior
    if about is not None and about.learnt:  # N(0, I) is no prior of this model's
        fake = {"": images.samples(subject.graphs, len(real), labels, seed, fitted=True)}
    else:
        fake = {"": images.samples(subject.graphs, len(real), labels, seed, fitted=False)}
        if subject.graphs.has_prior:
            fake["_own_prior"] = images.samples(subject.graphs, len(real), labels, seed, fitted=True)
    note = f"in {features.WIDTH} features of a classifier of our own, which tells {network.task}; {len(real):,} of each"
    return Section(title, images.compare(network, real, fake), notes=[note])


def _baselines(subject: Subject) -> Section:
    title, train, z = "Linear models with as many latents", subject.parts.train, subject.graphs.manifest.latent_dim
    if train is None or z > baselines.most_latents(train.pixels):
        return Section(title, notes=["left out: they need training images, more than there are latents"])
    pca = baselines.pca_error(train.pixels, subject.pixels, z)
    linear = baselines.linear_autoencoder_error(train.pixels, subject.pixels, z, subject.options.seed)
    return Section(
        title,
        {
            "pca_mean_squared_error": pca,
            "pca_psnr_db": decibels(pca),
            "linear_autoencoder_mean_squared_error": linear,
            "linear_autoencoder_psnr_db": decibels(linear),
        },
        notes=["of the images as they are, grey where the model was shown black and white"] if subject.how else [],
    )


def _not_negative(what: str, value: float, error: float) -> None:
    """An estimate may be below zero by chance, but not by many standard errors."""
    if value < -_MANY_ERRORS * error:
        raise RunError(f"{what}: got {value:.2f} ± {error:.2g} nats, wanted 0 or more: a density is not normalised")


def _finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise RunError(f"{what}: got {value}, wanted a finite number: the model is broken")
