"""The figures of a model: what they mean, and that they are the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_fixtures import fashion_images, small_run

from training import batches, ema, evaluate, model, trained
from training.config import ModelConfig, ObjectiveConfig
from training.images import Images
from training.trained import Trained


def built(config: ModelConfig, likelihood: str = "gaussian") -> model.VAE:
    return model.build(config, ObjectiveConfig(likelihood=likelihood), (28, 28, 1))


def first_images(n: int) -> Images:
    return Images(fashion_images()[:n, ..., np.newaxis].copy())


@pytest.fixture(scope="module")
def small() -> Trained:
    return trained.load(small_run())


def test_the_same_model_and_images_give_the_same_figures(small: Trained) -> None:
    again = trained.load(small_run())
    images = small.dataset.test
    assert evaluate.evaluate(small.model, images) == evaluate.evaluate(again.model, images)


def test_the_elbo_is_reconstruction_less_kl(small: Trained) -> None:
    result = evaluate.evaluate(small.model, small.dataset.test)
    assert result.elbo == pytest.approx(result.reconstruction - result.kl)
    assert result.images == 30


def test_figures_are_means_over_images_however_they_are_batched(
    small: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small.dataset.test
    whole = evaluate.evaluate(small.model, images)
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    parts = evaluate.evaluate(small.model, images)
    assert parts.kl == pytest.approx(whole.kl, rel=1e-5)
    assert parts.psnr_db == pytest.approx(whole.psnr_db, rel=1e-5)
    assert parts.elbo == pytest.approx(whole.elbo, rel=0.1)  # other noise falls on each image


def test_psnr_is_that_of_reconstructions_from_the_posteriors_mean(small: Trained) -> None:
    x = batches.to_tensor(small.dataset.test.pixels, torch.device("cpu"))
    with torch.inference_mode():
        drawn = small.model.likelihood.mean(small.model.decoder(small.model.encoder(x)[0]))
    expected = -10 * np.log10((drawn - x).square().mean().item())
    assert evaluate.evaluate(small.model, small.dataset.test).psnr_db == pytest.approx(expected, abs=1e-3)


def test_active_units_are_those_that_vary_with_the_image() -> None:
    vae = built(ModelConfig(kind="dense", latent_dim=4, hidden=(16,))).eval()
    last = vae.encoder.layers[-1]
    assert isinstance(last, nn.Linear)
    last.weight.data[:4] = 0
    last.weight.data[1] = 1  # of four means, one sees the image
    assert evaluate.evaluate(vae, first_images(100)).active_units == 1


def test_bernoulli_is_scored_on_one_fixed_binarisation() -> None:
    vae = built(ModelConfig(kind="dense", latent_dim=4, hidden=(16,)), "bernoulli")
    assert evaluate.evaluate(vae, first_images(50)) == evaluate.evaluate(vae, first_images(50))


def test_encoded_moments_are_those_of_the_means(small: Trained) -> None:
    images = small.dataset.train
    with torch.inference_mode():
        means = small.model.encoder(batches.to_tensor(images.pixels, torch.device("cpu")))[0].double()
    mean, variance = evaluate.encoded_moments(small.model, images)
    assert mean == pytest.approx(means.mean(0).tolist(), abs=1e-5)
    assert variance == pytest.approx(means.var(0, correction=0).tolist(), rel=1e-4)


class TestCalibration:
    def test_batch_statistics_become_those_of_the_images(self, small: Trained) -> None:
        vae = built(ModelConfig(latent_dim=4, width=8))
        images = small.dataset.train.part(0, 256)
        ema.calibrate(vae, images)
        first = vae.encoder.features[0]
        with torch.inference_mode():
            halves = [first(x) for x, _ in batches.in_order(images, 128, vae, torch.device("cpu"))]
        expected = torch.stack([half.mean((0, 2, 3)) for half in halves]).mean(0)
        torch.testing.assert_close(vae.encoder.features[1].running_mean, expected, atol=1e-5, rtol=1e-4)
        assert not vae.training

    def test_sigma_becomes_the_root_of_the_error(self, small: Trained) -> None:
        error = small.model.likelihood.mean_squared_error
        ema.calibrate(small.model, small.dataset.train)
        assert 0.01 < error.item() < 0.3
        assert small.model.likelihood.parameters_by_name()["sigma"] == pytest.approx(error.item() ** 0.5, rel=0.01)

    def test_it_is_the_same_each_time(self, small: Trained) -> None:
        ema.calibrate(small.model, small.dataset.train)
        first = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
        ema.calibrate(small.model, small.dataset.train)
        assert all(torch.equal(tensor, first[name]) for name, tensor in small.model.state_dict().items())


def test_images_that_moved_are_found_where_told(tmp_path: Path, small: Trained) -> None:
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(small.config.data.path).read_bytes())
    found = trained.load(small_run(), str(moved))
    assert found.dataset.name == "moved.npz"
    assert found.dataset.digest == small.dataset.digest
