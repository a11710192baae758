"""The flow: an exact density, an exact inverse, N(0, I) to begin with, and a better prior than it once learnt."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from training_fixtures import fashion_images

from training.flow import Flow
from training.pca import fit_pca


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bent_flow(latent_dim: int, layers: int = 4) -> Flow:
    """A flow far from the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        flow = Flow(latent_dim, layers, 16)
        for coupling in flow.couplings:
            nn.init.normal_(cast(Tensor, coupling.net[-1].weight), std=0.7)
            nn.init.normal_(cast(Tensor, coupling.net[-1].bias), std=0.5)
    return flow.requires_grad_(False)


def to_noise(flow: Flow, z: Tensor) -> Tensor:
    for coupling in flow.couplings:
        z, _ = coupling(z)
    return z


@pytest.mark.parametrize("latent_dim", [1, 2, 7, 32])
def test_it_starts_as_the_standard_normal(latent_dim: int) -> None:
    flow, z = Flow(latent_dim, 5, 16), torch.randn(9, latent_dim, generator=generator())
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(z), expected)
    torch.testing.assert_close(flow.latents(z), z)


@pytest.mark.parametrize("latent_dim", [1, 2, 7, 32])
@pytest.mark.parametrize("layers", [1, 4, 9])
def test_latents_are_the_inverse_of_noise(latent_dim: int, layers: int) -> None:
    flow, noise = bent_flow(latent_dim, layers).double(), torch.randn(50, latent_dim, generator=generator()).double()
    z = flow.latents(noise)
    assert (z - noise).abs().max() > 0.1 or latent_dim == layers == 1  # the first coupling has nothing to change
    torch.testing.assert_close(to_noise(flow, z), noise, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("latent_dim", [1, 2, 7])
def test_the_density_is_that_of_the_change_of_variables(latent_dim: int) -> None:
    flow, z = bent_flow(latent_dim).double(), torch.randn(5, latent_dim, generator=generator()).double()
    for one, got in zip(z, flow.log_prob(z), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda each: to_noise(flow, each[None])[0], one)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(to_noise(flow, one[None])).sum()
        torch.testing.assert_close(got, normal + torch.linalg.slogdet(jacobian).logabsdet)


def test_the_density_integrates_to_one() -> None:
    flow, sides = bent_flow(2, layers=2).double(), torch.linspace(-30, 30, 1001).double()
    across, down = torch.meshgrid(sides, sides, indexing="ij")
    points = torch.stack([across.flatten(), down.flatten()], 1)
    mass = flow.log_prob(points).exp().sum().item() * (60 / 1000) ** 2
    assert mass == pytest.approx(1, abs=0.01)


def test_draws_have_the_density() -> None:
    """The mean of -log p over draws is the entropy: that of the noise, less the mean of log|det|."""
    flow, noise = bent_flow(3).double(), torch.randn(20_000, 3, generator=generator()).double()
    z = flow.latents(noise)
    assert kstest(to_noise(flow, z).flatten().numpy(), "norm").pvalue > 0.01
    noise_density = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)
    log_det = torch.linalg.slogdet(torch.func.vmap(torch.func.jacrev(lambda each: flow.latents(each[None])[0]))(noise))
    torch.testing.assert_close(flow.log_prob(z), noise_density - log_det.logabsdet)


def test_every_latent_is_changed_by_two_couplings() -> None:
    flow, z = bent_flow(6, layers=2), torch.randn(4, 6, generator=generator())
    assert ((to_noise(flow, z) - z).abs() > 1e-3).all()


def test_far_from_the_data_it_stays_finite() -> None:
    flow, far = bent_flow(8, layers=8), torch.full((2, 8), 1e6)
    assert torch.isfinite(flow.log_prob(far)).all()
    assert torch.isfinite(flow.latents(far)).all()


def test_it_learns_the_shape_of_real_codes() -> None:
    """PCA's first codes of real clothes are of unit variance and yet far from normal: nats are to be learnt."""
    pixels = fashion_images()[:, ::2, ::2, np.newaxis]
    with torch.no_grad():
        codes = fit_pca(pixels, 4).encoder(torch.from_numpy(pixels / np.float32(255)).permute(0, 3, 1, 2))[0]
    train, held_out = codes[:8000], codes[8000:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Flow(4, 6, 32)
    before = flow.log_prob(held_out).mean().item()
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    order = torch.randperm(8000, generator=generator())
    for step in range(100):
        batch = train[order[step * 80 % 8000 : step * 80 % 8000 + 500]]
        optimiser.zero_grad()
        (-flow.log_prob(batch).mean()).backward()
        optimiser.step()
    assert flow.log_prob(held_out).mean().item() > before + 1
