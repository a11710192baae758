"""The bounds of log p(x) are what they claim to be, on a model whose log p(x) is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian_model import LOG_PROB, SIGMA, GaussianModel, make
from scipy.special import logsumexp
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from latentry.manifest import Likelihood
from training.errors import ExportError
from training.evaluation import bound
from training.evaluation.bound import Scored
from training.evaluation.densities import log_prob_of
from training.evaluation.graphs import Graphs
from training.loss import log_standard_normal

PRIORS = {"normal": log_standard_normal}


@pytest.fixture(scope="module")
def model() -> GaussianModel:
    return make()


def nothing(_: int) -> None:
    """Stands for the progress bar."""


def iw(model: GaussianModel, scored: Scored, k: int, seed: int = 0) -> bound.Bound:
    return bound.importance_weighted(model.graphs(), LOG_PROB, scored, k, PRIORS, seed, nothing)["normal"]


class TestImportanceWeighted:
    def test_it_lies_below_log_p_and_rises_to_it_with_k(self, model: GaussianModel) -> None:
        images = model.images(200)
        scored, truth = model.scored(images), model.log_p(images)
        gaps = [truth - iw(model, scored, k).values for k in (1, 4, 32, 2000)]
        means = [gap.mean() for gap in gaps]
        errors = [gap.std(ddof=1) / np.sqrt(len(gap)) for gap in gaps]
        assert all(mean > -4 * error for mean, error in zip(means, errors, strict=True))
        assert means[0] > means[1] > means[2] > means[3]
        assert means[0] > 0.05
        assert means[1] > 5 * means[3]
        assert abs(means[3]) < 0.005

    def test_of_one_sample_it_is_the_elbo_on_average(self, model: GaussianModel) -> None:
        images = model.images(50)
        scored = model.scored(images)
        repeats = np.stack([iw(model, scored, 1, seed).values for seed in range(100)])
        error = repeats.mean(1).std(ddof=1) / np.sqrt(100)
        assert abs(repeats.mean() - exact_elbo(model, images).mean()) < 4 * error

    @pytest.mark.parametrize("rows", [1, 7, 100, 1000])
    def test_it_does_not_depend_on_the_size_of_chunks(
        self, model: GaussianModel, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        scored = model.scored(model.images(9))
        whole = iw(model, scored, 50)
        monkeypatch.setattr(Graphs, "rows", rows)
        parts = iw(model, scored, 50)
        np.testing.assert_allclose(parts.values, whole.values, atol=2e-4)
        np.testing.assert_allclose(parts.effective_samples, whole.effective_samples, rtol=1e-3)

    def test_an_image_is_scored_alike_whatever_is_scored_beside_it(self, model: GaussianModel) -> None:
        scored = model.scored(model.images(20))
        np.testing.assert_allclose(iw(model, scored.first(6), 20).values, iw(model, scored, 20).values[:6], atol=2e-4)

    def test_a_seed_gives_the_same_figures_and_another_seed_others(self, model: GaussianModel) -> None:
        scored = model.scored(model.images(5))
        assert np.array_equal(iw(model, scored, 10).values, iw(model, scored, 10).values)
        assert not np.array_equal(iw(model, scored, 10).values, iw(model, scored, 10, seed=1).values)

    def test_every_prior_is_scored_from_the_same_draws(self, model: GaussianModel) -> None:
        images = model.images(60)

        def wide(z: torch.Tensor) -> torch.Tensor:
            return Normal(0.0, np.sqrt(2)).log_prob(z).sum(1)

        priors = {"normal": log_standard_normal, "wide": wide}
        scored = model.scored(images)
        both = bound.importance_weighted(model.graphs(), LOG_PROB, scored, 2000, priors, 0, nothing)
        assert abs((both["wide"].values - model.log_p(images, 2.0)).mean()) < 0.02
        assert np.array_equal(both["normal"].values, iw(model, scored, 2000).values)
        assert model.log_p(images, 2.0).mean() < model.log_p(images).mean() - 0.1

    def test_draws_are_counted_one_by_one(self, model: GaussianModel) -> None:
        counts: list[int] = []
        scored = model.scored(model.images(3))
        bound.importance_weighted(model.graphs(), LOG_PROB, scored, 700, PRIORS, 0, counts.append)
        assert sum(counts) == 3 * 700


class TestWeights:
    def test_sums_are_those_of_logsumexp_over_hundreds_of_nats(self) -> None:
        log_weights = np.random.default_rng(0).normal(-900, 300, (4, 1000))
        weights = bound._Weights(4)
        for part in np.array_split(log_weights, 13, axis=1):
            weights.add(slice(0, 4), part)
        result = weights.bound(1000)
        expected = logsumexp(log_weights, axis=1) - np.log(1000)
        np.testing.assert_allclose(result.values, expected, rtol=1e-12)
        ess = np.exp(2 * logsumexp(log_weights, axis=1) - logsumexp(2 * log_weights, axis=1))
        np.testing.assert_allclose(result.effective_samples, ess, rtol=1e-9)

    def test_equal_weights_are_all_effective(self) -> None:
        weights = bound._Weights(2)
        weights.add(slice(0, 2), np.full((2, 40), -1000.0))
        np.testing.assert_allclose(weights.bound(40).effective_samples, 40)
        np.testing.assert_allclose(weights.bound(40).values, -1000)

    def test_weights_of_zero_are_counted_and_an_image_of_none_else_has_no_likelihood(self) -> None:
        weights = bound._Weights(2)
        weights.add(slice(0, 2), np.full((2, 1), -np.inf))
        weights.add(slice(0, 2), np.array([[np.log(3.0)], [-np.inf]]))
        np.testing.assert_allclose(weights.bound(2).values, [np.log(1.5), -np.inf])


def exact_elbo(model: GaussianModel, images: np.ndarray) -> np.ndarray:
    """E[log p(x|z)] less KL, with the expectation of the square in closed form."""
    mean, variance = model.posterior(images)
    x = images.reshape(len(images), -1) / 255.0
    squares = ((x - model.b - mean @ model.u) ** 2).sum(1) + (variance * (model.u**2).sum(1)).sum(1)
    reconstruction = -squares / (2 * SIGMA**2) - x.shape[1] * (np.log(SIGMA) + 0.5 * np.log(2 * np.pi))
    q = Normal(torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance)))
    return reconstruction - kl_divergence(q, Normal(0.0, 1.0)).sum(1).numpy()


class TestElbo:
    def elbo(self, model: GaussianModel, scored: Scored, priors: dict[str, bound.Prior], seed: int = 0) -> bound.Elbo:
        return bound.elbo(model.graphs(), LOG_PROB, scored, priors, seed, nothing)

    def test_it_is_its_closed_form_on_average(self, model: GaussianModel) -> None:
        images = model.images(3000)
        parts = self.elbo(model, model.scored(images), PRIORS)
        difference = parts.reconstruction - parts.kl["normal"] - exact_elbo(model, images)
        mean, error = bound.mean_and_error(difference)
        assert abs(mean) < 4 * error
        assert error < 0.05

    def test_kl_to_n01_is_that_of_torch_distributions(self, model: GaussianModel) -> None:
        scored = model.scored(model.images(40))
        q = Independent(Normal(scored.mean.double(), (0.5 * scored.logvar.double()).exp()), 1)
        p = Independent(Normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)), 1)
        expected = kl_divergence(q, p).numpy()
        np.testing.assert_allclose(self.elbo(model, scored, PRIORS).kl["normal"], expected, rtol=1e-9)

    def test_kl_to_another_prior_is_right_on_average(self, model: GaussianModel) -> None:
        """The same prior without its closed form."""
        scored = model.scored(model.images(3000))
        drawn = self.elbo(model, scored, {"drawn": lambda z: log_standard_normal(z)}).kl["drawn"]
        mean, error = bound.mean_and_error(drawn - self.elbo(model, scored, PRIORS).kl["normal"])
        assert 0 < error < 0.1
        assert abs(mean) < 4 * error

    def test_the_kl_of_each_latent_is_that_of_torch_distributions(self) -> None:
        mean, logvar = torch.randn(6, 4), torch.randn(6, 4)
        expected = kl_divergence(Normal(mean.double(), (logvar.double() / 2).exp()), Normal(0.0, 1.0))
        torch.testing.assert_close(bound.kl_per_latent(mean, logvar), expected)


def test_the_standard_error_is_what_repeats_on_other_images_show(model: GaussianModel) -> None:
    results = [
        bound.mean_and_error(iw(model, model.scored(model.images(60, seed)), 5, seed).values) for seed in range(100)
    ]
    means, errors = np.array(results).T
    assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.25)


def test_one_image_has_a_mean_and_no_error() -> None:
    mean, error = bound.mean_and_error(np.array([-3.0]))
    assert mean == -3.0
    assert np.isnan(error)


class TestDensities:
    x = torch.rand(3, 1, 4, 5, 2)
    decoded = torch.rand(3, 6, 4, 5, 2)

    def test_bernoulli_is_that_of_torch_distributions(self) -> None:
        x = (self.x > 0.5).float()
        expected = Bernoulli(self.decoded.double()).log_prob(x.double().expand_as(self.decoded)).sum((2, 3, 4))
        got = log_prob_of(Likelihood("bernoulli"), 1, 0)(x, self.decoded.clone())
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)

    def test_bernoulli_means_of_0_and_1_cost_much_and_not_all(self) -> None:
        x, decoded = torch.ones(1, 1, 1, 2, 1), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2, 1)
        got = log_prob_of(Likelihood("bernoulli"), 1, 0)(x, decoded)
        assert got.item() == pytest.approx(-24 * np.log(2), rel=1e-6)

    @pytest.mark.parametrize(
        ("likelihood", "distribution"),
        [
            (Likelihood("gaussian", {"sigma": 0.2}), lambda mean: Normal(mean, 0.2)),
            (Likelihood("gaussian-fixed", {"variance": 0.3}), lambda mean: Normal(mean, 0.3**0.5)),
            (Likelihood("laplace", {"scale": 0.2}), lambda mean: torch.distributions.Laplace(mean, 0.2)),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_densities_of_a_mean_are_those_of_torch_distributions(self, likelihood: Likelihood, distribution) -> None:
        expected = distribution(self.decoded).log_prob(self.x).sum((2, 3, 4))
        torch.testing.assert_close(log_prob_of(likelihood, 1, 0)(self.x, self.decoded), expected, rtol=1e-5, atol=1e-4)

    def test_parameters_are_the_decoders_output_channels_last(self) -> None:
        parameters = torch.randn(3, 6, 4, 5, 4)
        module = log_prob_of(Likelihood("gaussian-predicted"), 1, 2)
        from training.likelihood import GaussianPredicted

        one = GaussianPredicted().log_prob(self.x[1, :1].permute(0, 3, 1, 2), parameters[1, 2:3].permute(0, 3, 1, 2))
        torch.testing.assert_close(module(self.x, parameters)[1, 2], one[0])

    def test_an_unknown_likelihood_is_named(self) -> None:
        with pytest.raises(ExportError, match="got cauchy"):
            log_prob_of(Likelihood("cauchy"), 1, 0)
