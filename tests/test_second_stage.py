"""The second stage: its bound against known densities, a better prior than N(0, I) of what is not normal, no chance."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from training import graphs, parity
from training.errors import RunError
from training.second_stage import SecondStage, fit_second_stage, hidden_for

BATCHES = (1, 2, 7, 33)
SHIFT = torch.tensor([5.0, -3.0])
SCALE = torch.tensor([2.0, 0.1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring(n: int, seed: int = 0) -> Tensor:
    """A blurred circle, empty inside, in units far from N(0, I)'s."""
    angle = 2 * math.pi * torch.rand(n, generator=generator(seed))
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return (circle + 0.1 * torch.randn(n, 2, generator=generator(seed + 1000))) * SCALE + SHIFT


def gaussian_of(z: Tensor, fitted_to: Tensor) -> float:
    """The held-out log-density of the best Gaussian."""
    moments = fitted_to.double().numpy()
    return float(multivariate_normal(moments.mean(0), np.cov(moments.T)).logpdf(z.double().numpy()).mean())


@functools.cache
def fitted() -> SecondStage:
    return fit_second_stage(ring(3000), seed=0, steps=500)


def linear() -> tuple[SecondStage, np.ndarray, np.ndarray]:
    """A second stage without hidden layers, whose density is N(shift + scale·b, scale (W Wᵀ + s² I) scale), and an
    encoder that knows little of its posterior."""
    weight, offset, log_sigma = torch.tensor([[1.0, -0.5], [0.3, 0.8]]), torch.tensor([0.2, -0.4]), math.log(0.7)
    model = SecondStage(2, ())
    decoder, encoder = model.decoder[-1], model.encoder[-1]
    assert isinstance(decoder, nn.Linear)
    assert isinstance(encoder, nn.Linear)
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([weight, torch.zeros(2, 2)]))
        decoder.bias.copy_(torch.cat([offset, torch.full((2,), 5 * math.atanh(log_sigma / 5))]))
        encoder.weight.copy_(torch.cat([0.3 * torch.eye(2), torch.zeros(2, 2)]))
        encoder.bias.zero_()
    model.shift.copy_(SHIFT)
    model.scale.copy_(SCALE)
    covariance = (weight @ weight.T + 0.49 * torch.eye(2)) * torch.outer(SCALE, SCALE)
    return model.requires_grad_(False).eval(), (SHIFT + SCALE * offset).double().numpy(), covariance.double().numpy()


def test_the_bound_grows_to_a_known_gaussian_density() -> None:
    model, mean, covariance = linear()
    z = torch.from_numpy(np.random.default_rng(0).multivariate_normal(mean, covariance, 200)).float()
    truth = torch.from_numpy(multivariate_normal(mean, covariance).logpdf(z.double().numpy())).float()
    gaps = [(truth - model.log_prob_bound(z, k, generator())).mean().item() for k in (1, 10, 2000)]
    assert gaps[0] > gaps[1] > 0.01
    assert gaps[2] == pytest.approx(0, abs=0.01)
    torch.testing.assert_close(model.log_prob_bound(z, 2000, generator()), truth, atol=0.25, rtol=0)


def test_draws_have_the_known_gaussians_moments() -> None:
    model, mean, covariance = linear()
    z = model.latents(torch.randn(40_000, 4, generator=generator())).double().numpy()
    unit = SCALE.numpy()
    np.testing.assert_allclose((z.mean(0) - mean) / unit, 0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T) / np.outer(unit, unit), covariance / np.outer(unit, unit), atol=0.05)


def test_it_bends_the_normal_into_a_ring() -> None:
    held_out = ring(500, seed=1)
    got = fitted().log_prob_bound(held_out, 100, generator()).mean().item()
    assert got > gaussian_of(held_out, ring(3000)) + 0.3
    assert got > torch.distributions.Normal(0.0, 1.0).log_prob(held_out).sum(1).mean().item() + 1


def test_draws_lie_on_the_ring() -> None:
    z = fitted().latents(torch.randn(1000, 4, generator=generator()))
    radius = ((z - SHIFT) / SCALE).norm(dim=1)
    assert ((radius > 0.5) & (radius < 1.5)).float().mean() > 0.8  # N(0, 1/2)'s draws: two thirds
    assert z.mean(0).tolist() == pytest.approx(SHIFT.tolist(), abs=0.5)


def test_its_density_integrates_to_at_most_one() -> None:
    side = torch.linspace(-2.5, 2.5, 41)
    points = torch.cartesian_prod(side, side) * SCALE + SHIFT
    mass = fitted().log_prob_bound(points, 200, generator()).double().exp().sum().item() * (5 / 40) ** 2 * 2.0 * 0.1
    assert 0.85 < mass < 1.02


def test_on_gaussian_latents_it_is_nearly_as_good_as_the_gaussian() -> None:
    z = torch.randn(2000, 2, generator=generator()) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]])
    model = fit_second_stage(z[:1500], seed=0, steps=300)
    got = model.log_prob_bound(z[1500:], 100, generator()).mean().item()
    assert gaussian_of(z[1500:], z[:1500]) - 0.15 < got < gaussian_of(z[1500:], z[:1500]) + 0.1


def test_each_row_is_made_alone() -> None:
    noise = torch.randn(33, 4, generator=generator())
    whole = fitted().latents(noise)
    assert torch.equal(fitted().latents(noise), whole)
    torch.testing.assert_close(torch.cat([fitted().latents(row) for row in noise.split(1)]), whole)


def test_fitting_twice_gives_the_same_bits_and_leaves_torchs_generator_alone() -> None:
    z, before = ring(300), torch.random.get_rng_state()
    one, other = (fit_second_stage(z, seed=3, steps=10) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    different = fit_second_stage(z, seed=4, steps=10)
    assert not torch.equal(one.encoder[0].weight, different.encoder[0].weight)


def test_hidden_layers_grow_with_the_latents() -> None:
    assert [hidden_for(n)[0] for n in (2, 32, 64, 500)] == [128, 256, 512, 1024]


def test_a_latent_that_never_varies_is_refused() -> None:
    z = ring(30)
    z[:, 0] = 4
    with pytest.raises(RunError, match="latent 0 is the same for all 30 images"):
        fit_second_stage(z, 0)


def test_its_graph_agrees_with_torch_and_with_itself() -> None:
    data = graphs.export_prior(fitted(), 4, {})
    parity.check_graph(data, "prior")
    assert parity.BATCHES == BATCHES
    parity.measure_prior(data, None, fitted(), None, 4)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    noise = torch.randn(33, 4, generator=generator()).numpy()
    (whole,) = session.run(None, {"noise": noise})
    assert whole.shape == (33, 2)
    assert np.array_equal(session.run(None, {"noise": noise})[0], whole)
