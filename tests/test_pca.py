"""PCA as a model: the likeliest weights, a posterior that is exact, the linear autoencoder's subspace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn import functional
from training_fixtures import fashion_images

from training import model, pca
from training.config import ModelConfig, ObjectiveConfig
from training.errors import ConfigError
from training.model import VAE
from training.pca import exact_log_likelihood, fit_pca


def real_pixels(n: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(N, H, W, 1): real images, made smaller."""
    images = torch.from_numpy(fashion_images()[:n, np.newaxis].astype(np.float32))
    return functional.interpolate(images, size, mode="area").round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def coloured(n: int) -> NDArray[np.uint8]:
    """Three channels that differ, so that their order matters, of images that are not square."""
    grey = real_pixels(n, (9, 12))
    return np.concatenate([grey, grey[::-1], 255 - grey[:, ::-1] // 2], axis=3)


def tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels / np.float32(255)).permute(0, 3, 1, 2)


def covariance_of(vae: VAE) -> NDArray[np.float64]:
    """W Wᵀ + s² I."""
    weight = vae.decoder.layer.weight.detach().double().numpy()
    return weight @ weight.T + vae.likelihood.parameters_by_name()["sigma"] ** 2 * np.eye(len(weight))


def elbo(vae: VAE, x: Tensor) -> Tensor:
    """In float64: E_q[log p(x|z)], which has a closed form here, less KL(q ‖ N(0, I))."""
    mean, logvar = (each.double() for each in vae.encoder(x))
    weight, sigma = vae.decoder.layer.weight.double(), vae.likelihood.parameters_by_name()["sigma"]
    centre = torch.distributions.Normal(mean @ weight.T + vae.decoder.layer.bias.double(), sigma)
    spread = (logvar.exp() @ weight.square().sum(0)) / (2 * sigma**2)
    q = torch.distributions.Normal(mean, torch.exp(logvar / 2))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(mean), 1.0)).sum(1)
    return centre.log_prob(x.flatten(1).double()).sum(1) - spread - kl


@pytest.fixture(scope="module")
def small() -> tuple[VAE, Tensor]:
    """Fitted to 400 clothes of 10 by 10 pixels; and those."""
    pixels = real_pixels(400, (10, 10))
    return fit_pca(pixels, 6).requires_grad_(False), tensor(pixels)


def test_the_elbo_is_the_log_likelihood(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    torch.testing.assert_close(elbo(vae, x), exact_log_likelihood(vae, x), atol=1e-3, rtol=1e-5)


def test_the_exact_log_likelihood_is_that_of_the_normal_distribution(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    mean = vae.decoder.layer.bias.double().numpy()
    expected = multivariate_normal(mean, covariance_of(vae)).logpdf(x.flatten(1).double().numpy())
    np.testing.assert_allclose(exact_log_likelihood(vae, x), expected, rtol=1e-6)


def test_the_posterior_is_that_of_bayes(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    weight, mean = vae.decoder.layer.weight.double().numpy(), vae.decoder.layer.bias.double().numpy()
    gain = weight.T @ np.linalg.inv(covariance_of(vae))
    got_mean, got_logvar = vae.encoder(x)
    np.testing.assert_allclose(got_mean, (x.flatten(1).double().numpy() - mean) @ gain.T, atol=1e-4)
    variance = np.eye(6) - gain @ weight
    np.testing.assert_allclose(np.diag(got_logvar[0].double().exp().numpy()), variance, atol=1e-6)


def test_no_other_weights_make_the_images_likelier(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    best = exact_log_likelihood(vae, x).mean()
    for name, change in (("weight", 0.01), ("bias", 0.01)):
        for sign in (-1, 1):
            other = pca.fit_pca(real_pixels(400, (10, 10)), 6).requires_grad_(False)
            parameter = getattr(other.decoder.layer, name)
            parameter += sign * change * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            assert exact_log_likelihood(other, x).mean() < best
    for factor in (0.9, 1.1):
        other = pca.fit_pca(real_pixels(400, (10, 10)), 6).requires_grad_(False)
        other.likelihood.mean_squared_error *= factor
        assert exact_log_likelihood(other, x).mean() < best


def test_the_subspace_is_the_data_matrixs(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    rows = x.flatten(1).double().numpy()
    directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:6].T
    assert subspace_angles(vae.decoder.layer.weight.double().numpy(), directions).max() < 1e-5


def test_the_first_latent_varies_most(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    mean, logvar = vae.encoder(x)
    spread = mean.var(0, correction=0)
    assert (spread.diff() < 0).all()
    torch.testing.assert_close(spread + logvar[0].exp(), torch.ones(6), atol=1e-4, rtol=0)  # the prior's own


def test_pixels_and_channels_keep_their_places() -> None:
    pixels = coloured(300)
    vae = fit_pca(pixels, 40).requires_grad_(False)
    x = tensor(pixels)
    mean = vae.encoder(x)[0]
    errors = (vae.likelihood.mean(vae.decoder(mean)) - x).square()
    assert errors.shape == x.shape
    assert errors.mean() < 0.1 * x.var(0).mean()


def test_larger_images_are_fitted_by_iteration_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = coloured(500)
    exact = fit_pca(pixels, 8)
    monkeypatch.setattr(pca, "_COVARIANCE_UP_TO", 100)
    monkeypatch.setattr(pca, "_BYTES", 1 << 18)
    iterated = fit_pca(pixels, 8)
    x = tensor(pixels)
    torch.testing.assert_close(exact_log_likelihood(iterated, x), exact_log_likelihood(exact, x), rtol=1e-4, atol=0.05)
    weights = [vae.decoder.layer.weight.detach().numpy() for vae in (exact, iterated)]
    assert subspace_angles(*weights).max() < 0.01


def test_a_linear_autoencoder_finds_pcas_subspace() -> None:
    """Another basis of the same plane (Baldi & Hornik 1989), by the loss that it is trained with."""
    pixels = real_pixels(300, (14, 14))  # most of them black: to cut means to [0, 1] would give another plane
    x = tensor(pixels)
    wanted = fit_pca(pixels, 2).decoder.layer.weight.detach().numpy()
    torch.manual_seed(0)
    vae = model.build(ModelConfig(kind="linear", latent_dim=2), ObjectiveConfig(), (14, 14, 1))
    vae.decoder.centre(x.mean(0))
    optimiser = torch.optim.Adam(vae.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    start = subspace_angles(vae.decoder.layer.weight.detach().numpy(), wanted).max()
    for _ in range(600):
        output = vae(x, torch.Generator()).output
        optimiser.zero_grad()
        (-vae.likelihood.log_prob(x, output).mean()).backward()
        optimiser.step()
        schedule.step()
    assert start > 1
    assert subspace_angles(vae.decoder.layer.weight.detach().numpy(), wanted).max() < 0.02


class TestTooManyLatents:
    @pytest.mark.parametrize(("images", "size", "most"), [(5, (10, 10), 4), (200, (8, 8), 63)])
    def test_they_are_refused_with_the_number_that_is_not(self, images: int, size: tuple[int, int], most: int) -> None:
        with pytest.raises(ConfigError, match=rf"model.latent_dim: got {most + 1}, wanted at most {most}$"):
            fit_pca(real_pixels(images, size), most + 1)
        assert torch.isfinite(exact_log_likelihood(fit_pca(real_pixels(images, size), most), torch.zeros(1, 1, *size)))

    def test_directions_without_variance_are_left_unused(self) -> None:
        """Eight images that are two: one direction."""
        pixels = np.repeat(real_pixels(2, (8, 8)), 4, axis=0)
        vae = fit_pca(pixels, 3).requires_grad_(False)
        mean, logvar = vae.encoder(tensor(pixels))
        assert (mean[:, 1:].abs() < 1e-3).all()
        assert (logvar[:, 1:].abs() < 1e-3).all()
        assert torch.isfinite(exact_log_likelihood(vae, tensor(pixels))).all()

    def test_constant_images_give_finite_numbers(self) -> None:
        pixels = np.full((9, 8, 8, 1), 77, np.uint8)
        vae = fit_pca(pixels, 2)
        assert torch.isfinite(exact_log_likelihood(vae, tensor(pixels))).all()
        torch.testing.assert_close(vae.decoder(torch.zeros(9, 2)), tensor(pixels))


def test_a_fitted_model_is_loaded_like_any_other(small: tuple[VAE, Tensor]) -> None:
    vae, x = small
    config = replace(ModelConfig(), kind="pca", latent_dim=6)
    other = model.build(config, ObjectiveConfig(), (10, 10, 1)).eval()
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.encoder(x)[0], vae.encoder(x)[0])
    assert torch.equal(exact_log_likelihood(other, x), exact_log_likelihood(vae, x))
