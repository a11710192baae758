"""The models: shapes for any image size, noise that is the run's own, every kind learns, labels are heard."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_fixtures import fashion_images, fashion_labels

from training import config_file, model, state
from training.config import KINDS, ModelConfig, ObjectiveConfig
from training.errors import ConfigError
from training.model import VAE
from training.networks import scales
from training.networks.dropout import Dropout

LEARNT = [kind for kind in KINDS if kind != "pca"]  # pca has a closed form: tests/test_pca.py
LABELLED = [kind for kind in LEARNT if kind != "linear"]
POINTS = ("autoencoder", "denoising", "linear")
SMALL = ModelConfig(latent_dim=5, width=8, max_width=16, head=16, hidden=(32, 16))
GAUSSIAN = ObjectiveConfig(likelihood="gaussian")


def build(kind: str, shape: tuple[int, int, int] = (28, 28, 1), likelihood: str = "gaussian", classes: int = 0) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(SMALL, kind=kind, conditional=classes > 0)
        return model.build(config, ObjectiveConfig(likelihood=likelihood), shape, classes)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real_images(n: int) -> Tensor:
    """(N, 1, 28, 28) in [0, 1]."""
    return torch.from_numpy(fashion_images()[:n, np.newaxis] / np.float32(255))


def real_labels(n: int) -> Tensor:
    return torch.from_numpy(fashion_labels()[:n].astype(np.int64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [(8, 8, 1), (9, 13, 3), (28, 28, 1), (33, 64, 3), (8, 129, 1), (65, 17, 1)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_the_decoders_output_has_the_images_shape(kind: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    x = torch.rand(3, channels, height, width)
    output, z, mean, logvar = build(kind, shape)(x, noise())
    assert output.shape == x.shape
    assert z.shape == mean.shape == logvar.shape == (3, 5)


@pytest.mark.parametrize("kind", LABELLED)
def test_a_likelihood_of_two_numbers_a_pixel_gets_them(kind: str) -> None:
    vae = build(kind, (9, 13, 3), "gaussian-predicted").eval()
    vae.decoder.centre(torch.full((3, 9, 13), 0.2))
    start = vae.decoder(torch.zeros(2, 5))
    assert start.shape == (2, 6, 9, 13)
    means, logvars = torch.sigmoid(start[:, :3]), start[:, 3:]
    assert (means.mean() - 0.2).abs() < 0.05
    assert (logvars.mean() + 2).abs() < 0.3


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), [(28, 28), (14, 14), (7, 7), (4, 4)]),
        ((8, 8), [(8, 8), (4, 4)]),
        ((9, 13), [(9, 13), (5, 7), (3, 4)]),
        ((8, 64), [(8, 64), (4, 32), (4, 16), (4, 8), (4, 4)]),
    ],
)
def test_depth_follows_from_the_image_size(size: scales.Size, sizes: list[scales.Size]) -> None:
    assert scales.scale_sizes(size) == sizes


@pytest.mark.parametrize("kind", ["conv", "plain"])
def test_widths_double_up_to_the_limit(kind: str) -> None:
    layers = build(kind).encoder.modules()
    strided = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [layer.out_channels for layer in strided] == [8, 16, 16]


def linear_sizes(part: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in part.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("kind", "statistics"), [("dense", 10), ("dense-norm", 10), ("autoencoder", 5), ("denoising", 5)]
)
def test_the_dense_models_are_those_of_the_textbooks(kind: str, statistics: int) -> None:
    vae = model.build(ModelConfig(kind=kind, latent_dim=5), GAUSSIAN, (28, 28, 1))
    assert linear_sizes(vae.encoder) == [(784, 256), (256, 128), (128, statistics)]
    assert linear_sizes(vae.decoder) == [(5, 128), (128, 256), (256, 784)]


def test_dense_norm_has_norm_dropout_and_leak_behind_each_hidden_layer() -> None:
    vae = build("dense-norm")
    for part in (vae.encoder, vae.decoder):
        names = [type(layer).__name__ for layer in part.layers]
        assert names == 2 * ["Linear", "LeakyReLU", "BatchNorm1d", "Dropout"] + ["Linear"]
        assert {layer.rate for layer in part.modules() if isinstance(layer, Dropout)} == {0.3}


def test_a_linear_autoencoder_is_one_map_each_way() -> None:
    vae = build("linear").eval()
    assert (linear_sizes(vae.encoder), linear_sizes(vae.decoder)) == ([(784, 5)], [(5, 784)])
    a, b = torch.randn(2, 1, 5, generator=noise())
    mixed = vae.decoder(0.3 * a + 0.7 * b)
    torch.testing.assert_close(mixed, 0.3 * vae.decoder(a) + 0.7 * vae.decoder(b))
    shown = vae.likelihood.mean(100 * mixed.detach())
    assert (shown.amin(), shown.amax()) == (0, 1)
    inside = torch.full((1, 1, 28, 28), 0.25)
    assert torch.equal(vae.likelihood.mean(inside), inside)


class TestCheckpointsOfEarlierReleases:
    """They are loaded by these names."""

    def test_conv(self) -> None:
        names = set(model.build(replace(SMALL, blocks=1), GAUSSIAN, (8, 8, 1)).state_dict())
        trained = {name for name in names if "running" not in name and "num_batches" not in name}
        block = ("0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "7.weight", "7.bias")
        assert trained == {
            *(f"encoder.features.{name}" for name in ("0.weight", "1.weight", "1.bias")),
            *(f"encoder.features.3.bottleneck.{name}" for name in block),
            *(f"decoder.features.0.bottleneck.{name}" for name in block),
            *(f"{part}.head.{layer}.{name}" for part in ("encoder", "decoder") for layer in (0, 2) for name in WB),
            *(f"decoder.output.{name}" for name in WB),
            "likelihood.mean_squared_error",
        }

    def test_dense(self) -> None:
        names = set(build("dense", likelihood="bernoulli").state_dict())
        assert names == {f"{part}.layers.{i}.{n}" for part in ("encoder", "decoder") for i in (0, 2, 4) for n in WB}


WB = ("weight", "bias")


def test_noise_is_standard_normal() -> None:
    z = model.reparameterize(torch.zeros(1000, 100), torch.zeros(1000, 100), noise()).flatten()
    assert z.mean().abs() < 0.01
    assert (z.std() - 1).abs() < 0.01
    assert abs((z.abs() > 2).float().mean().item() - 0.0455) < 0.002  # a uniform draw has none beyond √3


def test_a_sample_is_mean_plus_sigma_times_noise() -> None:
    mean, logvar = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    expected = mean + torch.exp(logvar / 2) * torch.randn(1, 2, generator=noise(4))
    assert torch.equal(model.reparameterize(mean, logvar, noise(4)), expected)


def test_sample_s_of_image_n_is_row_sn_plus_n() -> None:
    vae = build("dense").eval()
    output, z, mean, logvar = vae(real_images(4), noise(), samples=500)
    assert output.shape == (2000, 1, 28, 28)
    assert mean.shape == logvar.shape == (4, 5)
    assert torch.equal(output, vae.decoder(z))
    standardised = (z.unflatten(0, (500, 4)) - mean) / torch.exp(logvar / 2)
    assert standardised.mean(0).abs().max() < 0.2  # 4 standard errors
    assert (standardised.std(0) - 1).abs().max() < 0.15


@pytest.mark.parametrize("kind", ["conv", "plain", "dense", "dense-norm"])
def test_logvar_is_kept_where_exp_is_finite(kind: str) -> None:
    _, logvar = build(kind, (8, 8, 1)).eval().encoder(torch.full((2, 1, 8, 8), 1e9))
    assert logvar.abs().max() <= model.LOGVAR_LIMIT


@pytest.mark.parametrize("kind", POINTS)
def test_an_autoencoder_gives_a_point(kind: str) -> None:
    vae = build(kind).eval()
    output, z, mean, logvar = vae(real_images(3), noise(), samples=2)
    assert torch.equal(z, torch.cat([mean, mean]))
    assert torch.equal(logvar, torch.full((3, 5), model.POINT_LOGVAR))
    assert torch.equal(output[:3], output[3:])
    assert vae.gives_point


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_decoder_draw_nothing_at_random(kind: str) -> None:
    vae = build(kind).eval()
    x, z = real_images(2), torch.randn(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(vae.encoder(x), vae.encoder(x), strict=True))
    assert torch.equal(vae.decoder(z), vae.decoder(z))


@pytest.mark.parametrize("kind", ["dense-norm", "denoising", "conv"])
def test_all_noise_of_training_comes_from_the_given_generator(kind: str) -> None:
    """Else a resumed run would not be the unbroken one: a checkpoint keeps this generator and no other."""
    vae, x, generator = build(kind), real_images(8), noise(3)
    before = torch.get_rng_state()
    vae(x, generator)
    saved = generator.get_state()
    first, resumed = vae(x, generator), vae(x, torch.Generator().set_state(saved))
    for a, b in zip(first, resumed, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.output, vae(x, generator).output)


def test_a_copy_of_a_model_has_none_of_its_generator() -> None:
    vae = build("dense-norm")
    vae(real_images(8), noise())
    assert all(layer.generator is None for layer in copy.deepcopy(vae).modules() if isinstance(layer, Dropout))


def test_dropout_keeps_the_expectation() -> None:
    layer = Dropout(0.3)
    layer.generator = noise()
    dropped = layer(torch.ones(1000, 100))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert ((dropped == 0).float().mean() - 0.3).abs() < 0.005
    assert torch.equal(layer.eval()(torch.ones(3)), torch.ones(3))


def test_a_denoiser_is_shown_noise_in_training_only() -> None:
    x = real_images(50)
    seen = model.corrupt(x, 0.3, noise())
    assert seen.min() == 0
    assert seen.max() == 1
    grey = (x > 0.4) & (x < 0.6)  # where clamping is rare
    assert ((seen - x)[grey].std() - 0.3).abs() < 0.03
    vae = build("denoising")
    assert vae.corruption == 0.3
    clean = vae.encoder(x)[0]
    assert not torch.allclose(vae(x, noise()).mean, clean)
    assert torch.equal(vae.eval()(x, noise()).mean, clean)


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_the_datas_mean(kind: str) -> None:
    vae = build(kind).eval()
    vae.decoder.centre(torch.full((1, 28, 28), 0.2))
    start = vae.likelihood.mean(vae.decoder(torch.zeros(1, 5)))
    assert abs(start.mean().item() - 0.2) < 0.05


@pytest.mark.parametrize("kind", LEARNT)
def test_every_kind_learns_from_real_images(kind: str) -> None:
    vae, x, generator = build(kind), real_images(64), noise()
    vae.decoder.centre(x.mean(0))
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    errors = []
    for _ in range(150 if kind == "linear" else 40):  # it first unlearns its random weights
        output, _, mean, logvar = vae(x, generator)
        squares = (vae.likelihood.mean(output) - x).square().flatten(1).sum(1).mean()
        kl = 0 if vae.gives_point else 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        optimiser.zero_grad()
        (squares + 0.1 * kl).backward()
        optimiser.step()
        errors.append(squares.item())
    assert np.mean(errors[-5:]) < 0.75 * np.mean(errors[:3])


class TestLabels:
    @pytest.mark.parametrize("kind", LABELLED)
    def test_both_halves_hear_them(self, kind: str) -> None:
        vae = build(kind, classes=10).eval()
        x, z, labels = real_images(3), torch.randn(3, 5), torch.tensor([0, 3, 9])
        assert not torch.equal(vae.encoder(x, labels)[0], vae.encoder(x, labels.flip(0))[0])
        assert not torch.equal(vae.decoder(z, labels), vae.decoder(z, labels.flip(0)))
        assert torch.equal(vae.encoder(x, labels)[0][1], vae.encoder(x, labels.flip(0))[0][1])

    @pytest.mark.parametrize("kind", LABELLED)
    def test_each_sample_has_its_images_label(self, kind: str) -> None:
        vae, labels = build(kind, classes=10).eval(), torch.tensor([0, 3, 9])
        output, z, _, _ = vae(real_images(3), noise(), labels, samples=2)
        torch.testing.assert_close(output, vae.decoder(z, torch.tensor([0, 3, 9, 0, 3, 9])))

    def test_without_them_a_conditional_model_says_so(self) -> None:
        with pytest.raises(ValueError, match="labels: got none, wanted one of 10 classes"):
            build("dense", classes=10)(real_images(2), noise())

    def test_labelled_images_alone_make_no_model_conditional(self) -> None:
        vae = model.build(SMALL, GAUSSIAN, (28, 28, 1), classes=10)
        assert vae.classes == 0
        plain = vae.eval()(real_images(2), noise())
        assert torch.equal(plain.output, vae(real_images(2), noise(), real_labels(2)).output)

    def test_a_decoder_that_knows_the_class_draws_the_classes_means(self) -> None:
        """With nothing in z, what is learnt of each label is its images' mean."""
        vae, x, labels = build("dense", classes=10), real_images(200), real_labels(200)
        optimiser = torch.optim.Adam(vae.parameters(), 1e-2)
        for _ in range(80):
            loss = (vae.likelihood.mean(vae.decoder(torch.zeros(200, 5), labels)) - x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        drawn = vae.likelihood.mean(vae.decoder(torch.zeros(10, 5), torch.arange(10)))
        means = torch.stack([x[labels == label].mean(0) for label in range(10)])
        assert (drawn - means).square().mean() < 0.1 * means.var(0).mean()


class TestWhatDoesNotGoTogether:
    @pytest.mark.parametrize("kind", ["linear", "pca"])
    @pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian-predicted", "continuous-bernoulli"])
    def test_linear_models_and_logits(self, kind: str, likelihood: str) -> None:
        with pytest.raises(
            ConfigError, match=f"objective.likelihood: got {likelihood}, wanted gaussian.* for .*{kind}"
        ):
            model.build(replace(SMALL, kind=kind), ObjectiveConfig(likelihood=likelihood), (28, 28, 1))

    @pytest.mark.parametrize("kind", KINDS)
    def test_latents_wider_than_the_data(self, kind: str) -> None:
        config = replace(SMALL, kind=kind, latent_dim=65)
        with pytest.raises(ConfigError, match=r"model.latent_dim: got 65, wanted at most 64, the images' pixels"):
            model.build(config, GAUSSIAN, (8, 8, 1))
        model.build(replace(config, latent_dim=64), GAUSSIAN, (8, 8, 1))

    @pytest.mark.parametrize("kind", ["linear", "pca"])
    def test_labels_and_linear_models(self, kind: str) -> None:
        with pytest.raises(ConfigError, match=f"model.conditional: got true, wanted false for model.kind {kind}"):
            model.build(replace(SMALL, kind=kind, conditional=True), GAUSSIAN, (28, 28, 1), 10)

    def test_a_conditional_model_and_images_without_labels(self) -> None:
        with pytest.raises(ConfigError, match=r"model.conditional: got true for images without labels"):
            model.build(replace(SMALL, conditional=True), GAUSSIAN, (28, 28, 1), 0)

    @pytest.mark.parametrize("kind", [*POINTS, "pca"])
    def test_a_learnt_prior_and_codes_that_are_points(self, kind: str) -> None:
        with pytest.raises(ConfigError, match=f"objective.prior: got flow, wanted normal for model.kind {kind}"):
            model.build(replace(SMALL, kind=kind), replace(GAUSSIAN, prior="flow"), (28, 28, 1))


def test_the_log_prior_is_that_of_the_standard_normal_or_of_the_flow() -> None:
    z = torch.randn(7, 5, generator=noise())
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(build("dense").log_prior(z), expected)
    vae = model.build(SMALL, replace(GAUSSIAN, prior="flow"), (28, 28, 1))
    assert vae.prior is not None
    nn.init.ones_(vae.prior.couplings[0].net[-1].bias)
    torch.testing.assert_close(vae.log_prior(z), vae.prior.log_prob(z))
    assert not torch.allclose(vae.log_prior(z), expected)


def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    config = config_file.read_preset("tiny")
    dataset = SimpleNamespace(image_shape=(28, 28, 1), classes=0)
    before = torch.get_rng_state()
    first, again = (state.build_model(config, dataset).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_shipped_model_is_small() -> None:
    config = config_file.read_preset("fashion")
    vae = model.build(config.model, config.objective, (28, 28, 1))
    assert 0.8e6 < sum(parameter.numel() for parameter in vae.parameters()) < 1.5e6
