"""The choice of a prior: held-out nats decide, on real encodings too; states survive; senseless latents are refused."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from training_fixtures import fashion_images, fashion_labels, small_run

from training import checkpoint, model, prior, trained
from training.config import ModelConfig, ObjectiveConfig, PriorConfig
from training.errors import CheckpointError, ConfigError, RunError
from training.images import Images
from training.mixture import Density, Mixture
from training.prior import FittedPrior
from training.second_stage import SecondStage


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=generator(seed))


def clusters(n: int, seed: int = 0) -> Tensor:
    """Two small clusters, three apart."""
    side = torch.where(torch.rand(n, 1, generator=generator(seed)) < 0.5, -1.5, 1.5)
    return 0.2 * normal(n, seed=seed + 100) + side


@functools.cache
def images(n: int = 300) -> Images:
    return Images(fashion_images()[:n, :, :, None], fashion_labels()[:n].astype("int64"))


@functools.cache
def run() -> trained.Trained:
    return trained.load(small_run())


@functools.cache
def on_clusters() -> FittedPrior:
    return prior.fit("best", clusters(400), clusters(200, seed=1), 2, seed=0)


def test_the_best_is_the_one_of_the_highest_held_out_density() -> None:
    fitted = on_clusters()
    assert set(fitted.scores) == {"normal", "mixture", "second-stage"}
    assert fitted.kind == "mixture" == max(fitted.scores, key=lambda kind: fitted.scores[kind])
    assert fitted.held_out_log_density == fitted.scores["mixture"]
    assert isinstance(fitted.module, Mixture)
    assert fitted.noise_dim == 3


def test_scores_are_mean_nats_of_the_held_out_latents() -> None:
    held_out = clusters(200, seed=1)
    fitted = on_clusters()
    assert isinstance(fitted.module, Mixture)
    assert fitted.scores["normal"] == pytest.approx(norm.logpdf(held_out.numpy()).sum(1).mean(), abs=1e-4)
    assert fitted.scores["mixture"] == pytest.approx(fitted.module.log_prob(held_out).mean().item(), abs=1e-4)
    truth = 2 * (-0.5 * math.log(2 * math.pi) - math.log(0.2) - 0.5) - math.log(2)
    assert fitted.scores["mixture"] == pytest.approx(truth, abs=0.3)


def test_where_the_latents_are_normal_nothing_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = prior.fit("best", normal(60), normal(2000, seed=1), 4, 0)
    assert (fitted.kind, fitted.module, fitted.noise_dim, fitted.density) == ("none", None, 2, None)
    assert fitted.held_out_log_density == fitted.scores["normal"]
    assert "prior: N(0, I) is kept" in capsys.readouterr().err
    assert torch.equal(fitted.latents(normal(3)), normal(3))


def test_what_was_asked_for_is_kept_though_the_normal_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    assert prior.fit("mixture", normal(60), normal(2000, seed=1), 4, 0).kind == "mixture"
    assert "N(0, I) would be better: prior.fit best takes it" in capsys.readouterr().err


def test_none_scores_the_normal_alone() -> None:
    fitted = prior.fit("none", clusters(50), clusters(50, seed=1), 4, 0)
    assert (fitted.kind, list(fitted.scores)) == ("none", ["normal"])


class TestOfARealModel:
    def test_the_mixture_says_more_of_held_out_latents_than_the_normal(self) -> None:
        fitted = prior.fit_to(run().model, run().dataset, PriorConfig("mixture", 5), seed=0)
        assert fitted.scores["mixture"] > fitted.scores["normal"] + 0.05
        assert fitted.latents(normal(7, fitted.noise_dim)).shape == (7, run().config.model.latent_dim)

    def test_no_test_image_is_looked_at(self) -> None:
        dataset = run().dataset
        other = replace(dataset, test=replace(dataset.test, pixels=255 - dataset.test.pixels))
        one, two = (prior.fit_to(run().model, each, PriorConfig("mixture", 2), 0) for each in (dataset, other))
        assert one.scores == two.scores

    def test_images_set_aside_to_choose_by_are_those_it_is_scored_on(self) -> None:
        dataset = run().dataset
        asked = replace(dataset, validation=replace(dataset.test, pixels=255 - dataset.test.pixels))
        odd = prior.fit_to(run().model, asked, PriorConfig("none"), 0)
        draws = generator()
        prior.aggregate_posterior(run().model, dataset.train, draws)  # first, from the same generator
        z = prior.aggregate_posterior(run().model, asked.validation, draws)
        assert odd.scores["normal"] == pytest.approx(norm.logpdf(z.numpy()).sum(1).mean(), abs=1e-4)

    def test_the_same_seed_gives_the_same_bits(self) -> None:
        one, two = (prior.fit_to(run().model, run().dataset, PriorConfig("mixture", 3), 5) for _ in range(2))
        assert one.scores == two.scores
        assert one.module is not None
        assert two.module is not None
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, two.module.state_dict()[name]), name


class TestAggregatePosterior:
    def test_it_is_one_draw_for_each_image_not_its_mean(self) -> None:
        many = Images(run().dataset.train.pixels[:1].repeat(2000, 0))
        z = prior.aggregate_posterior(run().model, many, generator())
        with torch.no_grad():
            x = torch.from_numpy(many.pixels[:1]).permute(0, 3, 1, 2).float() / 255
            mean, logvar = run().model.encoder(x, None)
        torch.testing.assert_close(z.mean(0), mean[0], atol=0.1, rtol=0)
        torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0, rtol=0.15)

    def test_a_conditional_model_is_given_the_labels(self) -> None:
        config = ModelConfig(kind="dense", latent_dim=3, hidden=(16,), conditional=True)
        vae = model.build(config, ObjectiveConfig(), (28, 28, 1), classes=10)
        wrong = replace(images(), labels=9 - images().labels)
        z, other = (prior.aggregate_posterior(vae, each, generator()) for each in (images(), wrong))
        assert z.shape == (300, 3)
        assert not torch.equal(z, other)

    def test_a_point_posterior_gives_its_means(self) -> None:
        vae = model.build(ModelConfig(kind="linear", latent_dim=3), ObjectiveConfig(), (28, 28, 1))
        one, two = (prior.aggregate_posterior(vae, images(), generator(seed)) for seed in (0, 1))
        assert torch.equal(one, two)


class TestState:
    @pytest.mark.parametrize("kind", ["none", "mixture", "second-stage"])
    def test_it_comes_back_from_a_file_bit_for_bit(self, kind: str, tmp_path: Path) -> None:
        fitted = prior.fit(kind, clusters(120), clusters(40, seed=1), 2, 0)
        checkpoint.write(tmp_path / "prior.ckpt", {"step": 7, **fitted.to_state()})
        back = prior.from_state(checkpoint.read(tmp_path / "prior.ckpt"))
        assert (back.kind, back.noise_dim, back.scores) == (fitted.kind, fitted.noise_dim, fitted.scores)
        assert back.held_out_log_density == fitted.held_out_log_density
        noise = normal(9, fitted.noise_dim)
        assert torch.equal(back.latents(noise), fitted.latents(noise))
        assert isinstance(back.density, Density) == (kind == "mixture")
        assert isinstance(back.module, SecondStage) == (kind == "second-stage")
        if back.density is not None and fitted.density is not None:
            assert torch.equal(back.density(normal(9)), fitted.density(normal(9)))

    def test_another_version_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="prior format: got 99, wanted 1"):
            prior.from_state({**on_clusters().to_state(), "prior_format": 99})

    @pytest.mark.parametrize(("key", "value"), [("kind", "flow"), ("kind", "second-stage"), ("module", {})])
    def test_a_state_that_does_not_fit_is_refused(self, key: str, value: object) -> None:
        with pytest.raises(CheckpointError, match="prior: got "):
            prior.from_state({**on_clusters().to_state(), key: value})

    def test_a_state_without_its_scores_is_refused(self) -> None:
        state = on_clusters().to_state()
        del state["scores"]
        with pytest.raises(CheckpointError, match="lacks something"):
            prior.from_state(state)


class TestWhatCannotBeFitted:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("kind", ["none", "mixture", "second-stage", "best"])
    def test_latents_that_are_not_finite(self, kind: str, bad: float) -> None:
        z = normal(50)
        z[3:5, 1] = bad
        with pytest.raises(RunError, match="prior: training latents: got 2 of 50 that are not finite, wanted numbers"):
            prior.fit(kind, z, normal(5), 2, 0)
        with pytest.raises(RunError, match="prior: held-out latents: got 2 of 50 that are not finite"):
            prior.fit(kind, normal(5), z, 2, 0)

    def test_no_latents(self) -> None:
        with pytest.raises(RunError, match=r"held-out latents: got shape \(0, 2\), wanted at least one row"):
            prior.fit("best", normal(50), normal(0), 2, 0)

    def test_an_unknown_kind(self) -> None:
        with pytest.raises(ConfigError, match=r"prior\.fit: got gmm, wanted none or mixture or second-stage or best"):
            prior.fit("gmm", normal(50), normal(5), 2, 0)

    @pytest.mark.parametrize("kind", ["mixture", "second-stage"])
    def test_fewer_images_than_latents(self, kind: str) -> None:
        with pytest.raises(ConfigError, match=rf"prior\.fit: got {kind} for 5 images, wanted none, or more images"):
            prior.fit(kind, normal(5, 8), normal(5, 8), 2, 0)

    def test_the_best_of_too_few_images_is_the_normal(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert prior.fit("best", normal(5, 8), normal(5, 8), 2, 0).kind == "none"
        assert "5 images are too few to fit a density of 8 latents: N(0, I) is kept" in capsys.readouterr().err

    def test_a_model_that_learns_its_prior(self) -> None:
        with pytest.raises(ConfigError, match=r"prior\.fit: got best, wanted none, as the model learns its prior"):
            prior.check(PriorConfig("best"), True, 1000, 8)
        prior.check(PriorConfig("none"), True, 1000, 8)
