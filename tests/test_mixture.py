"""The mixture prior: scipy's densities, the moments asked for, no chance, and a better fit than N(0, I)."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

from training import graphs, parity
from training.errors import RunError
from training.mixture import Density, Mixture, fit_mixture, spread_of

BATCHES = (1, 2, 7, 33)
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 0.0, 3.0], [4.0, -1.0, 0.0], [-4.0, 2.0, -2.0]])
COVARIANCES = np.array(
    [
        [[1.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]],
        [[0.2, 0.0, 0.1], [0.0, 2.0, 0.9], [0.1, 0.9, 1.0]],
        [[0.5, -0.2, 0.1], [-0.2, 0.4, 0.0], [0.1, 0.0, 3.0]],
    ]
)


def known() -> Mixture:
    return Mixture.of(WEIGHTS, MEANS, COVARIANCES).float()


def noise(n: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def of_scipy(z: Tensor) -> np.ndarray:
    parts = zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    return logsumexp([np.log(w) + multivariate_normal(m, c).logpdf(z.double().numpy()) for w, m, c in parts], axis=0)


@functools.cache
def fitted() -> Mixture:
    return fit_mixture(known().latents(noise(2000)), 3, seed=0)


@pytest.mark.parametrize("spread", [1, 5, 100])
def test_the_density_is_that_of_scipy(spread: float) -> None:
    z = spread * noise(50, 3)
    expected = torch.from_numpy(of_scipy(z))
    torch.testing.assert_close(known().log_prob(z).double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(Mixture.of(WEIGHTS, MEANS, COVARIANCES).log_prob(z.double()), expected)


def test_draws_have_the_weights_means_and_covariances() -> None:
    given = noise(40_000)
    z = known().latents(given).double().numpy()
    cumulative = torch.distributions.Normal(0.0, 1.0).cdf(given[:, 0]).numpy()
    chosen = np.searchsorted(np.cumsum(WEIGHTS), cumulative)
    assert np.bincount(chosen) / len(z) == pytest.approx(WEIGHTS, abs=0.01)
    for component in range(3):
        mine = z[chosen == component]
        np.testing.assert_allclose(mine.mean(0), MEANS[component], atol=0.06)
        np.testing.assert_allclose(np.cov(mine.T), COVARIANCES[component], atol=0.1)


def test_noise_in_the_tails_chooses_the_first_and_the_last_component() -> None:
    extremes = torch.tensor([[-40.0, 0, 0, 0], [40.0, 0, 0, 0]])
    np.testing.assert_allclose(known().latents(extremes), MEANS[[0, 2]])


def test_a_component_of_no_weight_is_left_out() -> None:
    mixture = Mixture.of(np.array([0.5, 0.0, 0.5]), MEANS, COVARIANCES)
    assert mixture.components == 2
    assert torch.isfinite(mixture.log_prob(torch.zeros(1, 3).double())).all()


def test_one_component_is_a_gaussian() -> None:
    mixture = Mixture.of(np.ones(1), MEANS[:1], COVARIANCES[:1]).float()
    given = noise(5)
    expected = MEANS[0] + given[:, 1:].double().numpy() @ np.linalg.cholesky(COVARIANCES[0]).T
    np.testing.assert_allclose(mixture.latents(given), expected, atol=1e-5)


def test_each_row_is_made_alone_and_always_alike() -> None:
    given = noise(33)
    whole = known().latents(given)
    assert torch.equal(known().latents(given), whole)
    assert torch.equal(torch.cat([known().latents(row) for row in given.split(1)]), whole)


def test_it_finds_a_known_mixture() -> None:
    held_out = known().latents(noise(2000, seed=1))
    truth = known().log_prob(held_out).mean().item()
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(held_out).sum(1).mean().item()
    got = fitted().log_prob(held_out).mean().item()
    assert got > normal + 3
    assert truth - 0.03 < got < truth + 0.005
    order = torch.cdist(torch.from_numpy(MEANS).float(), fitted().means).argmin(1)
    np.testing.assert_allclose(fitted().means[order], MEANS, atol=0.25)


def test_the_scale_of_a_latent_changes_its_density_by_its_logarithm() -> None:
    z = known().latents(noise(600))
    scale = torch.tensor([1e-4, 1.0, 1e4])
    apart = fit_mixture(z, 2, 0).log_prob(z) - fit_mixture(z * scale + 7 * scale, 2, 0).log_prob(z * scale + 7 * scale)
    torch.testing.assert_close(apart.mean(), torch.zeros(()), atol=2e-2, rtol=0)


def test_fitting_twice_gives_the_same_bits() -> None:
    z = known().latents(noise(500))
    one, other = fit_mixture(z, 4, seed=3), fit_mixture(z, 4, seed=3)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_more_components_than_the_latents_can_tell_apart_are_not_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    z = known().latents(noise(50))
    assert fit_mixture(z, 100, 0).components == 2
    assert "prior.components: 100 are too many for 50 images and 3 latents: 2 fitted" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_latent_that_never_varies_is_refused(value: float) -> None:
    z = noise(50, 3)
    z[:, 1] = value
    with pytest.raises(RunError, match="prior: latent 1 is the same for all 50 images, wanted latents that vary"):
        spread_of(z)


def test_latents_that_are_repeated_can_be_fitted() -> None:
    mixture = fit_mixture(noise(3, 2).repeat(50, 1), 10, 0)
    assert torch.isfinite(mixture.log_prob(noise(9, 2))).all()


@pytest.mark.parametrize(("components", "latent_dim"), [(1, 1), (60, 40)])
def test_its_graphs_agree_with_torch_and_with_themselves(components: int, latent_dim: int) -> None:
    random = np.random.default_rng(0)
    roots = np.eye(latent_dim) + 0.2 * random.standard_normal((components, latent_dim, latent_dim))
    weights = random.dirichlet(np.ones(components))
    means = random.standard_normal((components, latent_dim))
    mixture = Mixture.of(weights, means, roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(latent_dim)).float()
    prior = graphs.export_prior(mixture, latent_dim + 1, {})
    density = graphs.export_density(Density(mixture), latent_dim, {})
    for data in (prior, density):
        parity.check_graph(data, "prior")
    assert parity.BATCHES == BATCHES
    parity.measure_prior(prior, density, mixture, Density(mixture), latent_dim + 1)
    session = onnxruntime.InferenceSession(prior, providers=["CPUExecutionProvider"])
    given = noise(33, latent_dim + 1).numpy()
    (whole,) = session.run(None, {"noise": given})
    assert np.array_equal(session.run(None, {"noise": given})[0], whole)
    for n in BATCHES:
        assert np.array_equal(session.run(None, {"noise": given[:n]})[0], whole[:n])
