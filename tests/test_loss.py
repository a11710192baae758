"""The ELBO: the KL against torch.distributions, sums and means where they belong."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from training import likelihood, loss, schedule
from training.config import ObjectiveConfig, OptimiserConfig


def test_kl_is_that_of_torch_summed_over_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = 2 * torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    expected = kl_divergence(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(loss.kl_to_standard_normal(mean, logvar), expected)


def test_kl_of_the_prior_is_zero() -> None:
    assert torch.equal(loss.kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_terms_are_sums_over_pixels_and_latents_and_means_over_the_batch() -> None:
    x, output = torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    mean = torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, 3.0], [3.0, 3.0]])
    terms = loss.elbo(x, output, mean, torch.zeros(4, 2), likelihood.Bernoulli())
    assert terms.reconstruction.item() == pytest.approx(-192 * 0.693147, rel=1e-5)  # 192 pixels of log(1/2)
    assert terms.kl.item() == pytest.approx((1 + 9) / 2)
    assert terms.value.item() == pytest.approx(terms.reconstruction.item() - terms.kl.item())


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_objective_and_not_the_elbo(beta: float) -> None:
    terms = loss.Elbo(torch.tensor(-100.0), torch.tensor(20.0))
    assert terms.objective(beta).item() == 100 + beta * 20
    assert terms.value.item() == -120


def test_beta_grows_in_a_straight_line_and_stays() -> None:
    config = ObjectiveConfig(beta=2.0, beta_warmup=0.5)
    assert [schedule.beta(config, step, 8) for step in range(8)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert schedule.beta(ObjectiveConfig(beta=1.0, beta_warmup=0.0), 0, 8) == 1.0


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=10)
    rates = [schedule.learning_rate(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_short_run_is_not_all_warm_up() -> None:
    assert schedule.learning_rate(OptimiserConfig(learning_rate=1.0, warmup_steps=300), 10, 50) == 1.0
