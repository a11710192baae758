"""The parts of the bound: the KL against torch.distributions, sums and means where they belong."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from training import likelihood, loss


def posteriors(n: int = 7, latents: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, latents, generator=generator), torch.randn(n, latents, generator=generator)


def test_kl_is_that_of_torch_summed_over_latents() -> None:
    mean, logvar = posteriors()
    expected = kl_divergence(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0))
    torch.testing.assert_close(loss.kl_to_standard_normal(mean, logvar), expected.sum(1))
    torch.testing.assert_close(loss.kl_by_latent(mean, logvar), expected)


def test_kl_of_the_prior_is_zero() -> None:
    assert torch.equal(loss.kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_the_log_density_is_that_of_torch() -> None:
    mean, logvar = posteriors()
    z = mean + 0.7
    torch.testing.assert_close(loss.log_normal(z, mean, logvar), Normal(mean, torch.exp(logvar / 2)).log_prob(z))


def test_terms_are_sums_over_pixels_and_latents_and_means_over_the_batch() -> None:
    x, output = torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    mean = torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, 3.0], [3.0, 3.0]])
    terms = loss.elbo(x, output, mean, torch.zeros(4, 2), likelihood.Bernoulli())
    assert terms.reconstruction.item() == pytest.approx(-192 * 0.693147, rel=1e-5)  # 192 pixels of log(1/2)
    assert terms.kl.item() == pytest.approx((1 + 9) / 2)
    assert terms.value.item() == pytest.approx(terms.reconstruction.item() - terms.kl.item())


def test_the_importance_bound_is_the_log_of_the_mean_weight() -> None:
    log_weights = torch.tensor([[0.0, -1000.0], [math.log(3), -1001.0]])
    expected = [math.log(2), -1000 + math.log((1 + math.exp(-1)) / 2)]
    assert loss.importance_bound(log_weights).tolist() == pytest.approx(expected)
