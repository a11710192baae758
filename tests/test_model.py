"""The VAEs: shapes for any image size, noise that is normal, graphs that draw nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training import config_file, likelihood, model, state
from training.config import ModelConfig

SMALL = ModelConfig(latent_dim=5, width=8, max_width=16, head=16, hidden=(32, 16))
DENSE = ModelConfig(kind="dense", latent_dim=5, hidden=(256, 128))


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize(
    "shape",
    [(8, 8, 1), (9, 13, 3), (28, 28, 1), (33, 64, 3), (8, 129, 1), (65, 17, 1)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_the_decoders_output_has_the_images_shape(kind: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    config = ModelConfig(kind=kind, latent_dim=5, width=8, max_width=16, head=16, hidden=(32, 16))
    vae = model.build(config, likelihood.Gaussian(), shape)
    x = torch.rand(3, channels, height, width)
    output, mean, logvar = vae(x, noise())
    assert output.shape == x.shape
    assert mean.shape == logvar.shape == (3, 5)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), [(28, 28), (14, 14), (7, 7), (4, 4)]),
        ((8, 8), [(8, 8), (4, 4)]),
        ((9, 13), [(9, 13), (5, 7), (3, 4)]),
        ((8, 64), [(8, 64), (4, 32), (4, 16), (4, 8), (4, 4)]),
    ],
)
def test_depth_follows_from_the_image_size(size: model.Size, sizes: list[model.Size]) -> None:
    assert model.scale_sizes(size) == sizes


def test_widths_double_up_to_the_limit() -> None:
    vae = model.build(ModelConfig(width=8, max_width=16), likelihood.Gaussian(), (28, 28, 1))
    strided = [layer for layer in vae.encoder.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [layer.out_channels for layer in strided] == [8, 16, 16]


def test_the_dense_vae_is_that_of_the_textbooks() -> None:
    vae = model.build(DENSE, likelihood.Bernoulli(), (28, 28, 1))
    encoder, decoder = (
        [(layer.in_features, layer.out_features) for layer in part.modules() if isinstance(layer, nn.Linear)]
        for part in (vae.encoder, vae.decoder)
    )
    assert encoder == [(784, 256), (256, 128), (128, 10)]
    assert decoder == [(5, 128), (128, 256), (256, 784)]


def test_noise_is_standard_normal() -> None:
    z = model.reparameterize(torch.zeros(1000, 100), torch.zeros(1000, 100), noise()).flatten()
    assert z.mean().abs() < 0.01
    assert (z.std() - 1).abs() < 0.01
    assert abs((z.abs() > 2).float().mean().item() - 0.0455) < 0.002  # a uniform draw has none beyond √3


def test_a_sample_is_mean_plus_sigma_times_noise() -> None:
    mean, logvar = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    expected = mean + torch.exp(logvar / 2) * torch.randn(1, 2, generator=noise(4))
    assert torch.equal(model.reparameterize(mean, logvar, noise(4)), expected)


def test_logvar_is_kept_where_exp_is_finite() -> None:
    vae = model.build(SMALL, likelihood.Gaussian(), (8, 8, 1)).eval()
    _, logvar = vae.encoder(torch.full((2, 1, 8, 8), 1e6))
    assert logvar.abs().max() <= model.LOGVAR_LIMIT


@pytest.mark.parametrize("config", [SMALL, DENSE], ids=["conv", "dense"])
def test_encoder_and_decoder_draw_nothing_at_random(config: ModelConfig) -> None:
    vae = model.build(config, likelihood.Gaussian(), (28, 28, 1)).eval()
    x, z = torch.rand(2, 1, 28, 28), torch.randn(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(vae.encoder(x), vae.encoder(x), strict=True))
    assert torch.equal(vae.decoder(z), vae.decoder(z))


@pytest.mark.parametrize("config", [SMALL, DENSE], ids=["conv", "dense"])
def test_training_starts_from_the_datas_mean(config: ModelConfig) -> None:
    vae = model.build(config, likelihood.Gaussian(), (28, 28, 1)).eval()
    vae.decoder.centre(torch.full((1, 28, 28), 0.2))
    start = vae.likelihood.mean(vae.decoder(torch.zeros(1, 5)))
    assert abs(start.mean().item() - 0.2) < 0.05


def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    config = config_file.read_preset("tiny")
    before = torch.get_rng_state()
    first, again = (state.build_model(config, (28, 28, 1)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_shipped_model_is_small() -> None:
    vae = state.build_model(config_file.read_preset("fashion"), (28, 28, 1))
    assert 0.8e6 < sum(parameter.numel() for parameter in vae.parameters()) < 1.5e6
