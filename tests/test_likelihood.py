"""Likelihoods against torch.distributions, and sigma against its definition: the best one for the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from training_fixtures import fashion_images

from training import likelihood


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real_images(n: int = 16) -> torch.Tensor:
    return torch.from_numpy(fashion_images()[:n].copy()).unsqueeze(1) / 255


def test_bernoulli_log_prob_is_that_of_torch() -> None:
    bernoulli = likelihood.Bernoulli()
    x = bernoulli.observe(real_images(), noise())
    logits = 3 * torch.randn(x.shape, generator=noise(1))
    expected = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli.log_prob(x, logits), expected)


def test_binarised_images_are_draws_with_the_grey_values_as_probabilities() -> None:
    x = real_images(1).expand(20_000, -1, -1, -1)
    drawn = likelihood.Bernoulli().observe(x, noise())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.mean(0) - x[0]).abs().max() < 0.02
    assert torch.equal(drawn.amax(0)[x[0] == 0], torch.zeros(int((x[0] == 0).sum())))


def test_gaussian_log_prob_is_that_of_torch() -> None:
    gaussian = likelihood.Gaussian().eval()
    gaussian.mean_squared_error.fill_(0.04)
    x = real_images()
    output = torch.randn(x.shape, generator=noise())
    sigma = gaussian.parameters_by_name()["sigma"]
    assert sigma == pytest.approx(0.2, rel=0.02)
    expected = Normal(torch.sigmoid(output), sigma).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(gaussian.log_prob(x, output), expected)


def test_in_training_sigma_is_the_best_one_for_the_batch() -> None:
    gaussian = likelihood.Gaussian().train()
    x = real_images()
    output = torch.randn(x.shape, generator=noise())
    got = gaussian.log_prob(x, output).sum()
    candidates = torch.linspace(0.2, 1.0, 400)
    mean = torch.sigmoid(output)
    best = max(Normal(mean, sigma).log_prob(x).sum() for sigma in candidates)
    assert got == pytest.approx(best.item(), rel=1e-3)
    root = (x - mean).square().mean().sqrt()
    assert candidates[torch.stack([Normal(mean, s).log_prob(x).sum() for s in candidates]).argmax()] == pytest.approx(
        root.item(), abs=0.01
    )


def test_sigma_has_a_gentle_floor() -> None:
    gaussian = likelihood.Gaussian()
    gaussian.mean_squared_error.zero_()
    assert gaussian.parameters_by_name()["sigma"] == pytest.approx(math.exp(-6), rel=1e-3)
    assert torch.isfinite(gaussian.train().log_prob(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), -200.0))).all()


def test_the_running_error_follows_training_only() -> None:
    gaussian = likelihood.Gaussian()
    x, output = real_images(), torch.zeros(16, 1, 28, 28)
    error = (x - 0.5).square().mean()
    for _ in range(200):
        gaussian.train().log_prob(x, output)
    torch.testing.assert_close(gaussian.mean_squared_error, error, rtol=1e-3, atol=0)
    gaussian.eval().log_prob(x, output + 5)
    torch.testing.assert_close(gaussian.mean_squared_error, error, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_samples_have_the_mean_of_the_likelihood(name: str) -> None:
    chosen = likelihood.build(name)
    output = torch.tensor([-2.0, 0.0, 3.0]).expand(50_000, -1)
    mean = chosen.mean(output)
    assert ((mean >= 0) & (mean <= 1)).all()
    torch.testing.assert_close(chosen.sample(output, noise()).mean(0), mean[0], atol=0.02, rtol=0)


def test_names_in_configs_are_the_likelihoods() -> None:
    assert isinstance(likelihood.build("bernoulli"), likelihood.Bernoulli)
    assert isinstance(likelihood.build("gaussian"), likelihood.Gaussian)
