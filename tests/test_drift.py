"""Drift: running moments that are right from the first, and figures that move when the data does."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, running_service, settings_for
from hypothesis import given
from hypothesis import strategies as st

from latentry import Client, manifest
from latentry.manifest import AggregatePosterior, embedded_models
from serving.drift import Drift, Figures, Reconstruction, compare
from serving.metrics import Metrics

Array = np.ndarray[Any, np.dtype[Any]]
FASHION = ROOT / "models" / "fashion" / "1"


def standard(z: int) -> AggregatePosterior:
    return AggregatePosterior((0.0,) * z, (1.0,) * z)


def moments(calls: list[Array], half_life: float = 1e12) -> tuple[Array, Array]:
    """The running mean and variance after `calls`; with so long a half-life those of all items."""
    drift = Drift(standard(calls[0].shape[1]), lambda figures: None, half_life=half_life)
    for call in calls:
        drift.observe(call)
    assert drift._gathered_rows == 0, "choose calls that fill whole groups"
    return drift._mean, drift._squares / (drift._weight - drift._weight_of_squares / drift._weight)


def test_what_is_no_number_is_not_no_drift() -> None:
    assert math.isnan(compare(np.array([math.nan]), np.array([1.0]), standard(1)).nats)


# ---- moments ----


def test_before_anything_fades_the_moments_are_those_of_the_items() -> None:
    x = np.random.default_rng(0).normal(3.0, [0.1, 1.0, 10.0], (640, 3)).astype(np.float32)
    mean, variance = moments(np.split(x, 10))
    assert mean == pytest.approx(x.astype(np.float64).mean(0), rel=1e-9)
    assert variance == pytest.approx(x.astype(np.float64).var(0, ddof=1), rel=1e-3), "weights are sums of 1 - 2^-1e-12"


def test_a_large_mean_costs_no_digits() -> None:
    x = np.random.default_rng(0).normal(0, 1e-2, (1280, 2)) + 1e6
    _, variance = moments(np.split(x, 20), half_life=1e9)
    assert variance == pytest.approx(x.var(0, ddof=1), rel=1e-4)


def test_early_values_are_not_pulled_towards_zero() -> None:
    x = np.full((64, 2), 5.0)
    mean, variance = moments([x], half_life=10_000)
    assert mean == pytest.approx(5.0)
    assert variance == pytest.approx(0.0, abs=1e-12)


def test_the_variance_is_unbiased_from_the_first() -> None:
    """The mean of many estimates from 64 items each, with a half-life as short: 1 within five standard errors."""
    rng = np.random.default_rng(1)
    estimates = [moments([rng.normal(size=(16, 50))] * 1 + [rng.normal(size=(48, 50))], 64)[1] for _ in range(100)]
    assert abs(np.mean(estimates) - 1) < 5 * math.sqrt(2 / 63 / 5000)


def test_what_came_a_half_life_ago_counts_half() -> None:
    drift = Drift(standard(1), lambda figures: None, half_life=640)
    for value in (0.0, 1.0):
        for _ in range(10):
            drift.observe(np.full((64, 1), value))
    assert drift._mean[0] == pytest.approx(2 / 3)


def test_faded_moments_are_the_weighted_ones() -> None:
    """Against each item's weight written out: 2^(-age / half-life), averaged over the items that came together."""
    rng, sizes, half_life = np.random.default_rng(6), [64, 100, 700, 64, 300], 150
    groups = [rng.normal(k, 0.5 + k, (size, 3)) for k, size in enumerate(sizes)]
    ages = np.arange(sum(sizes))[::-1]
    weights = np.concatenate(
        [np.full(len(part), part.mean()) for part in np.split(0.5 ** (ages / half_life), np.cumsum(sizes)[:-1])]
    )
    x, total = np.concatenate(groups), weights.sum()
    mean = weights @ x / total
    variance = weights @ (x - mean) ** 2 / (total - (weights**2).sum() / total)
    got_mean, got_variance = moments(groups, half_life)
    assert got_mean == pytest.approx(mean, rel=1e-9)
    assert got_variance == pytest.approx(variance, rel=1e-9)


@given(st.permutations(range(64)), st.lists(st.integers(1, 63), min_size=1, max_size=5))
def test_neither_order_nor_cuts_within_a_group_matter(order: list[int], cuts: list[int]) -> None:
    x = np.random.default_rng(2).normal(1.0, 2.0, (64, 4)).astype(np.float32)
    whole, pieces = moments([x], 100), moments(np.split(x[order], sorted(set(cuts))), 100)
    for got, wanted in zip(pieces, whole, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9)


def test_a_mean_that_is_no_number_leaves_no_trace() -> None:
    x = np.random.default_rng(3).normal(size=(128, 2))
    broken = np.concatenate([x[:64], np.full((64, 2), np.nan), [[np.inf, 0]] * 64, x[64:]])
    got, wanted = moments(np.split(broken, 4)), moments(np.split(x, 2))
    assert got[0] == pytest.approx(wanted[0])
    assert got[1] == pytest.approx(wanted[1])


# ---- figures ----


def test_the_divergence_is_that_of_the_gaussians() -> None:
    """Against numerical integration of one latent with large variances, where the blur is small."""
    x = np.linspace(-400, 400, 400_001)

    def density(mean: float, variance: float) -> Array:
        v = variance + 0.01
        return np.exp(-((x - mean) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)

    p, q = density(1.5, 4.0), density(-0.5, 9.0)
    expected = np.sum(p * (np.log(p + 1e-300) - np.log(q + 1e-300))) * (x[1] - x[0])
    figures = compare(np.array([1.5]), np.array([4.0]), AggregatePosterior((-0.5,), (9.0,)))
    assert figures.nats == pytest.approx(expected, rel=1e-4)
    assert figures.mean_shift == pytest.approx(2 / math.sqrt(9.01))
    assert figures.variance_ratio == pytest.approx(4.01 / 9.01)


def test_the_same_moments_are_no_drift() -> None:
    training = AggregatePosterior((0.5, -3.0, 0.0), (2.0, 1e-9, 0.0))
    same = compare(np.array(training.mean), np.array(training.variance), training)
    assert (same.nats, same.mean_shift, same.variance_ratio) == pytest.approx((0, 0, 1))


def test_noise_in_an_unused_latent_is_no_drift_but_its_use_is() -> None:
    training = AggregatePosterior((0.0, 0.0), (1.0, 0.0005))
    noise = compare(np.zeros(2), np.array([1.0, 0.002]), training)
    used = compare(np.zeros(2), np.array([1.0, 1.0]), training)
    assert noise.nats < 0.01, "four times the variance, of next to nothing"
    assert used.nats > 10


def test_nothing_is_reported_before_enough_items_were_seen() -> None:
    reports: list[Figures] = []
    drift = Drift(standard(2), reports.append, least=256)
    rng = np.random.default_rng(4)
    for _ in range(255):
        drift.observe(rng.normal(size=(1, 2)))
    assert reports == []
    drift.observe(rng.normal(size=(1, 2)))
    assert len(reports) == 1
    for _ in range(640):
        drift.observe(rng.normal(size=(1, 2)))
    assert len(reports) == 11, "once in 64 items"


# ---- reconstruction ----


@pytest.mark.parametrize("share", [0.0, 0.003, 0.01, 0.25, 0.5, 0.999, 1.0])
def test_the_share_is_kept_however_items_come(share: float) -> None:
    at_once, one_by_one = Reconstruction(share, print), Reconstruction(share, print)
    chosen = at_once.pick(10_000)
    assert abs(len(chosen) - share * 10_000) <= 5
    assert chosen == [i for i in range(10_000) if one_by_one.pick(1)]


def test_traffic_in_hundreds_does_not_show_the_same_place_each_time() -> None:
    sampler = Reconstruction(0.01, print)
    places = {place for _ in range(1000) for place in sampler.pick(100)}
    assert len(places) == 100


def test_the_error_is_the_one_that_psnr_is_made_of() -> None:
    reports: list[float] = []
    images = np.stack([np.full((4, 3, 1), 255, np.uint8), np.zeros((4, 3, 1), np.uint8)])
    reconstructed = np.full((2, 4, 3, 1), [[[[0.9]]], [[[0.5]]]], np.float32)
    Reconstruction(1.0, reports.append).observe(images, reconstructed)
    assert reports == pytest.approx([0.01, 0.25], rel=1e-5)


# ---- metrics ----


def test_the_page_says_nothing_of_drift_before_there_is_anything_to_say() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    labels = {"model": "m", "version": "2"}
    assert value("latentry_latent_drift_nats", labels) is None
    metrics.drifted("m", 2, Figures(1.5, 0.25, 2.0))
    metrics.reconstructed("m", 2, 0.004)
    assert value("latentry_latent_drift_nats", labels) == 1.5
    assert value("latentry_latent_mean_shift", labels) == 0.25
    assert value("latentry_latent_variance_ratio", labels) == 2.0
    assert value("latentry_reconstruction_error_sum", labels) == 0.004
    assert value("latentry_reconstruction_error_bucket", {**labels, "le": "0.00316"}) == 0, "25 dB"
    assert value("latentry_reconstruction_error_bucket", {**labels, "le": "0.00562"}) == 1, "22.5 dB"


# ---- real images ----


def read_idx(file: Path) -> Array:
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28, 1)


def what_it_says(images: Array) -> tuple[Figures, float]:
    """The figures, and the mean squared error of a tenth, of these images in the shipped model."""
    about = manifest.read(FASHION).manifest
    cpu = {"providers": ["CPUExecutionProvider"]}
    encoder, decoder = (onnxruntime.InferenceSession(FASHION / f"{g}.onnx", **cpu) for g in ("encoder", "decoder"))
    assert about.aggregate_posterior is not None
    reports: list[Figures] = []
    errors: list[float] = []
    drift, reconstruction = Drift(about.aggregate_posterior, reports.append), Reconstruction(0.1, errors.append)
    for batch in np.split(images, 64):
        (mean,) = encoder.run(["mean"], {"images": batch})
        drift.observe(mean)
        chosen = reconstruction.pick(len(batch))
        (decoded,) = decoder.run(["mean"], {"latents": mean[chosen]})
        reconstruction.observe(batch[chosen], decoded)
    return reports[-1], float(np.mean(errors))


def test_digits_in_the_clothes_model_are_drift_and_clothes_are_not(fashion_images: Array, shared_data: Path) -> None:
    clothes, clothes_error = what_it_says(fashion_images[:4096])
    digits, digits_error = what_it_says(read_idx(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz")[:4096])
    assert clothes.nats < 0.1, clothes
    assert digits.nats > 100 * clothes.nats, (digits, clothes)
    assert clothes.mean_shift < 0.05
    assert digits.mean_shift > 0.5
    assert 0.9 < clothes.variance_ratio < 1.1
    assert digits.variance_ratio > 1.4
    expected = 10 ** (-manifest.read(FASHION).manifest.evaluation["psnr_db"] / 10)
    assert clothes_error == pytest.approx(expected, rel=0.1), "as the manifest's PSNR says"
    assert digits_error > 3 * clothes_error


def test_a_service_reports_drift_and_a_rising_error_when_it_is_fed_digits(
    fashion_images: Array, shared_data: Path
) -> None:
    digits = read_idx(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz")
    with (
        running_service(settings_for(embedded_models(), reconstruct_share=0.5)) as service,
        Client(f"localhost:{service.port}", model="fashion") as client,
    ):

        def after(images: Array) -> dict[str, float]:
            for part in np.split(images, len(images) // 256):
                client.encode(part)
            names = ("latent_drift_nats", "latent_mean_shift", "latent_variance_ratio")
            names += ("reconstruction_error_sum", "reconstruction_error_count")
            labels = {"model": "fashion", "version": "1"}
            return {n: service.metrics.registry.get_sample_value(f"latentry_{n}", labels) or 0.0 for n in names}

        clothes = after(fashion_images[:2048])
        both = after(digits[:4096])
    assert 0 < clothes["latent_drift_nats"] < 0.1, clothes
    assert both["latent_drift_nats"] > 100 * clothes["latent_drift_nats"], (both, clothes)
    assert both["latent_mean_shift"] > 10 * clothes["latent_mean_shift"]
    assert both["latent_variance_ratio"] > 1.3
    error = clothes["reconstruction_error_sum"] / clothes["reconstruction_error_count"]
    later = both["reconstruction_error_sum"] - clothes["reconstruction_error_sum"]
    later /= both["reconstruction_error_count"] - clothes["reconstruction_error_count"]
    assert later > 2.5 * error, (later, error)
