"""log p(x|z) as it is served, against training's, on real images and decoder outputs; and against what must be so."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT

from latentry.manifest import Likelihood
from serving import likelihoods
from serving.likelihoods import PARAMETERS_PER_CHANNEL, log_prob, outputs
from training import likelihood as training_likelihood
from training.config import LIKELIHOODS
from training.graphs import DecoderGraph
from training.likelihoods import bernoulli

Array = np.ndarray[Any, np.dtype[Any]]

NUMBERS = {
    "gaussian": {"sigma": 0.079},
    "gaussian-fixed": {"variance": 0.02},
    "laplace": {"scale": 0.03},
    "discretised-logistic": {"scale": 0.021},
}


def named(name: str) -> Likelihood:
    return Likelihood(name, NUMBERS.get(name, {}))


@pytest.fixture(scope="module")
def images(fashion_images: Array) -> Array:
    """62 real images, a black and a white one."""
    return np.concatenate([fashion_images[:62], np.zeros((1, 28, 28, 1), np.uint8), np.full((1, 28, 28, 1), 255, "u1")])


@pytest.fixture(scope="module")
def mean(images: Array) -> Array:
    """What the shipped decoder makes of them, float32 [64, 28, 28, 1]."""
    encoder, decoder = (
        onnxruntime.InferenceSession(ROOT / f"models/fashion/1/{half}.onnx", providers=["CPUExecutionProvider"])
        for half in ("encoder", "decoder")
    )
    (latents,) = encoder.run(["mean"], {"images": images})
    decoded: Array = decoder.run(["mean"], {"latents": latents})[0]
    return decoded


def output_of(name: str, mean: Array) -> Array:
    """A decoder's output with this mean: the mean itself, or parameters that have it, float32 [N, H, W, ...]."""
    if name not in PARAMETERS_PER_CHANNEL:
        return mean
    if name == "discretised-logistic":
        return 4 * (mean - np.float32(0.5))
    clipped = np.clip(mean.astype(np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(clipped / (1 - clipped)).astype(np.float32)
    logvars = np.random.default_rng(1).uniform(-14, 4, logits.shape).astype(np.float32)  # beyond both soft bounds
    return np.concatenate([logits, logvars], 3) if PARAMETERS_PER_CHANNEL[name] == 2 else logits


def by_training(likelihood: Likelihood, images: Array, output: Array, dtype: torch.dtype) -> Array:
    """log p(x|z) [N] by the module that training has for it."""
    module = training_likelihood.from_manifest(likelihood.name, likelihood.parameters).to(dtype)
    x, decoded = (torch.from_numpy(each.copy()).to(dtype).permute(0, 3, 1, 2) for each in (images, output))
    score = module.log_prob if module.needs_parameters else module.log_prob_of_mean
    with torch.no_grad():
        return score(x / 255, decoded).double().numpy()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_real_images_score_as_in_training(name: str, images: Array, mean: Array) -> None:
    output = output_of(name, mean)
    scores = log_prob(named(name), images, output)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, by_training(named(name), images, output, torch.float32), rtol=2e-5)
    np.testing.assert_allclose(scores, by_training(named(name), images, output, torch.float64), rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_black_and_white_score_finitely_whatever_the_decoder_says(name: str) -> None:
    images = np.stack([np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)]).repeat(6, 0)
    width = PARAMETERS_PER_CHANNEL.get(name, 1)
    said = [-1e30, -800.0, 0.0, 1e-30, 800.0, 1e30] if name in PARAMETERS_PER_CHANNEL else [0.0, 0, 0, 1, 1, 1]
    output = np.tile(np.array(said, np.float32), 2)[:, None, None, None] * np.ones((1, 2, 2, width), np.float32)
    scores = log_prob(named(name), images, output)
    assert np.isfinite(scores).all()
    assert scores[0] > scores[5], "of black: black was said, and white was"
    assert scores[11] > scores[6] or name == "gaussian-predicted", "of white, and there with the largest variance"


def test_no_pixel_costs_a_bernoulli_more_than_in_training() -> None:
    black, certain = np.zeros((1, 28, 28, 1), np.uint8), np.ones((1, 28, 28, 1), np.float32)
    (wrong,) = log_prob(Likelihood("bernoulli"), black, certain)
    (right,) = log_prob(Likelihood("bernoulli"), black, 1 - certain)
    assert wrong == pytest.approx(784 * math.log(bernoulli.RESOLUTION))
    assert -1e-4 < right <= 0


def test_grey_images_score_what_binarised_ones_do_on_average() -> None:
    grey = np.array([13, 128, 251], np.uint8).reshape(1, 1, 3, 1)
    mean = np.array([0.2, 0.9, 0.4], np.float32).reshape(1, 1, 3, 1)
    expected = 0.0
    for whites in itertools.product((0, 1), repeat=3):
        white = np.array(whites)
        chance = np.where(white, grey.ravel() / 255, 1 - grey.ravel() / 255).prod()
        seen = np.where(white, mean.ravel(), 1 - mean.ravel()).astype(np.float64)
        expected += chance * np.log(seen).sum()
    assert log_prob(Likelihood("bernoulli"), grey, mean) == pytest.approx([expected], rel=1e-7)


LEVELS = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)


def of_levels(likelihood: Likelihood, *output: float) -> Array:
    """p(x|z) of each of the 256 levels of one pixel."""
    given = np.broadcast_to(np.array(output, np.float32), (256, 1, 1, len(output)))
    return np.exp(log_prob(likelihood, LEVELS, given))


def trapezoidal(density: Array) -> float:
    """The integral over [0, 1]."""
    return float(density.sum() - (density[0] + density[-1]) / 2) / 255


@pytest.mark.parametrize("scale", [1.05 / 255, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("output", [-2.5, -0.3, 0.0, 0.011, 1.9, 40.0])
def test_the_256_levels_have_a_probability_of_one(scale: float, output: float) -> None:
    levels = of_levels(Likelihood("discretised-logistic", {"scale": scale}), output)
    assert levels.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("logit", [-6.0, -0.7, -1e-3, -1e-9, 0.0, 1e-5, 0.2, 3.0])
def test_a_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    density = of_levels(Likelihood("continuous-bernoulli"), logit)
    coarse = 1 + (logit / 255) ** 2 / 12  # what the trapezoidal rule makes of an exponential, to the fourth power
    assert trapezoidal(density) == pytest.approx(coarse, rel=1e-7)


@pytest.mark.parametrize(
    ("likelihood", "output"),
    [
        (Likelihood("gaussian", {"sigma": 0.05}), (0.5,)),
        (Likelihood("gaussian-fixed", {"variance": 0.0016}), (0.45,)),
        (Likelihood("gaussian-predicted"), (0.1, -6.5)),
        (Likelihood("gaussian-predicted"), (0.1, -1e4)),  # at its floor, a sigma of one level
    ],
)
def test_densities_that_lie_between_black_and_white_integrate_to_one(
    likelihood: Likelihood, output: tuple[float, ...]
) -> None:
    assert trapezoidal(of_levels(likelihood, *output)) == pytest.approx(1, rel=1e-6)


def test_a_laplacian_is_its_formula() -> None:
    density = of_levels(Likelihood("laplace", {"scale": 0.1}), 0.25)
    expected = [math.exp(-abs(level / 255 - 0.25) / 0.1) / 0.2 for level in range(256)]
    np.testing.assert_allclose(density, expected, rtol=1e-12)


# ---- which output, and in which layout ----


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_of_training_is_known(name: str) -> None:
    module = training_likelihood.from_manifest(name, NUMBERS.get(name, {}))
    assert outputs(named(name), True) == ("parameters" if module.needs_parameters else "mean")
    assert outputs(named(name), False) == (None if module.needs_parameters else "mean")
    if module.needs_parameters:
        assert PARAMETERS_PER_CHANNEL[name] == module.outputs_per_channel


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", [0, -0.1, math.nan, math.inf, 1e-9, 1e9, 10**400, -(10**400)])
def test_numbers_that_make_no_sense_tell_nothing(name: str, number: float) -> None:
    (key,) = NUMBERS[name]
    assert outputs(Likelihood(name, {key: number}), True) is None


@pytest.mark.parametrize("name", ["unknown", "", "Gaussian", "poisson", "bernoulli "])
def test_names_from_elsewhere_tell_nothing(name: str) -> None:
    assert outputs(Likelihood(name, {"sigma": 1.0}), True) is None


@pytest.mark.parametrize("name", NUMBERS)
def test_a_missing_number_tells_nothing(name: str) -> None:
    assert outputs(Likelihood(name, {"another": 1.0}), True) is None


class Says(torch.nn.Module):
    """A decoder that says the same of all latents."""

    def __init__(self, raw: torch.Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self.raw


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_exported_decoder_lays_its_output_out_as_it_is_read(name: str) -> None:
    """Of RGB images: its channels are not to be taken for one another, nor means for variances."""
    module = training_likelihood.from_manifest(name, NUMBERS.get(name, {}))
    raw = torch.randn(4, 3 * module.outputs_per_channel, 5, 6, generator=torch.Generator().manual_seed(0))
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    exported = DecoderGraph(Says(raw), module)
    with torch.no_grad():
        given = dict(zip(exported.outputs, exported(torch.zeros(4, 2)), strict=True))
        expected = module.log_prob(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, raw)
    wanted = outputs(named(name), "parameters" in given)
    assert wanted is not None
    np.testing.assert_allclose(log_prob(named(name), images, given[wanted].numpy()), expected.numpy(), rtol=2e-5)


def test_an_output_of_another_shape_is_refused() -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(
        ValueError, match=r"gaussian-predicted: got a decoder's output \[2, 4, 4, 1\], wanted \[2, 4, 4, 2\]"
    ):
        log_prob(Likelihood("gaussian-predicted"), images, np.zeros((2, 4, 4, 1), np.float32))


def test_what_is_not_finite_scores_so_without_a_word() -> None:
    images = np.array([0, 0, 255, 255], np.uint8).reshape(4, 1, 1, 1)
    output = np.array([math.nan, math.inf, -math.inf, math.inf], np.float32).reshape(4, 1, 1, 1)
    for name in ("continuous-bernoulli", "discretised-logistic", "laplace"):
        assert math.isnan(log_prob(named(name), images, output)[0])


# ---- many and large images ----


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_an_image_scores_the_sum_of_its_parts(name: str) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (2, 70, 90, 3), np.uint8)  # more than is scored at a time
    output = rng.random((2, 70, 90, 3 * PARAMETERS_PER_CHANNEL.get(name, 1)), np.float32)
    assert images[0].size > likelihoods._BLOCK
    whole = log_prob(named(name), images, output)
    parts = sum(
        log_prob(named(name), images[:, top : top + 35, left : left + 30], output[:, top : top + 35, left : left + 30])
        for top in (0, 35)
        for left in (0, 30, 60)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-12)


def test_an_image_scores_the_same_in_any_company(images: Array, mean: Array) -> None:
    for name in LIKELIHOODS:
        output = output_of(name, mean)
        alone = [log_prob(named(name), images[i : i + 1], output[i : i + 1])[0] for i in range(0, 64, 7)]
        np.testing.assert_allclose(log_prob(named(name), images, output)[::7], alone, rtol=1e-12)


def test_large_images_take_little_memory() -> None:
    images, output = np.zeros((2, 512, 512, 3), np.uint8), np.zeros((2, 512, 512, 6), np.float32)
    tracemalloc.start()
    try:
        log_prob(Likelihood("gaussian-predicted"), images, output)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20, "what is scored is 12.6 MB"


def test_no_images_have_no_scores() -> None:
    assert log_prob(named("gaussian"), np.zeros((0, 4, 4, 1), np.uint8), np.zeros((0, 4, 4, 1), np.float32)).shape == (
        0,
    )
