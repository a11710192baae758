"""What is said of latents, on posteriors whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from training.evaluation import latents
from training.loss import log_standard_normal


def test_latents_are_active_if_their_means_vary_over_images() -> None:
    mean = torch.zeros(100, 3)
    mean[:, 1] = torch.linspace(-1, 1, 100)
    mean[:, 2] = 0.05 * torch.linspace(-1, 1, 100)
    assert latents.active_units(mean) == 1


class TestAggregate:
    def test_its_density_is_that_of_torchs_mixture(self) -> None:
        mean, logvar = torch.randn(300, 4), torch.randn(300, 4) - 2
        whole = latents.aggregate(mean, logvar, 0)
        components = Independent(Normal(mean.double(), (0.5 * logvar.double()).exp()), 1)
        mixture = MixtureSameFamily(Categorical(torch.ones(300, dtype=torch.float64)), components)
        torch.testing.assert_close(whole.log_aggregate, mixture.log_prob(whole.z))
        torch.testing.assert_close(whole.log_posterior, components.log_prob(whole.z))

    def test_its_density_bears_posteriors_that_are_very_narrow(self) -> None:
        mean, logvar = 3 * torch.randn(200, 8), torch.full((200, 8), -10.0)
        whole = latents.aggregate(mean, logvar, 0)
        components = Independent(Normal(mean.double(), (0.5 * logvar.double()).exp()), 1)
        mixture = MixtureSameFamily(Categorical(torch.ones(200, dtype=torch.float64)), components)
        torch.testing.assert_close(whole.log_aggregate, mixture.log_prob(whole.z), rtol=0, atol=1e-6)

    def test_its_moments_are_those_of_draws(self) -> None:
        mean, logvar = torch.randn(2000, 3) * torch.tensor([0.1, 1.0, 2.0]), torch.tensor([0.0, -1.0, -4.0])
        whole = latents.aggregate(mean, logvar.expand(2000, 3), 0)
        np.testing.assert_allclose(whole.mean, whole.z.mean(0), atol=0.1)
        np.testing.assert_allclose(whole.variance, whole.z.var(0), rtol=0.15)

    def test_latents_that_ignore_the_image_tell_nothing(self) -> None:
        whole = latents.aggregate(torch.zeros(500, 4), torch.zeros(500, 4), 0)
        assert whole.mutual_information == pytest.approx(0, abs=1e-9)
        assert whole.kl(log_standard_normal(whole.z)) == pytest.approx(0, abs=1e-9)

    def test_posteriors_far_apart_tell_the_image_and_no_more(self) -> None:
        mean = 100 * torch.arange(64.0)[:, None]
        assert latents.aggregate(mean, torch.zeros(64, 1), 0).mutual_information == pytest.approx(math.log(64))

    def test_of_two_groups_of_images_the_group_is_told(self) -> None:
        mean = torch.tensor([[-50.0], [50.0]]).repeat(100, 1)
        assert latents.aggregate(mean, torch.zeros(200, 1), 0).mutual_information == pytest.approx(math.log(2))

    def test_in_a_linear_channel_it_is_shannons(self) -> None:
        """z = m + noise with m ~ N(0, 3), noise of variance 1: ½ log(1 + 3) nats, far below log N."""
        torch.manual_seed(0)
        whole = latents.aggregate(math.sqrt(3) * torch.randn(4000, 1), torch.zeros(4000, 1), 0)
        assert whole.mutual_information == pytest.approx(0.5 * math.log(4), abs=0.04)

    def test_what_the_latents_tell_and_their_misfit_are_the_kl(self) -> None:
        torch.manual_seed(0)
        mean, logvar = torch.randn(3000, 2), torch.full((3000, 2), -1.0)
        whole = latents.aggregate(mean, logvar, 0)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean().item()
        assert whole.mutual_information + whole.kl(log_standard_normal(whole.z)) == pytest.approx(kl, abs=0.1)


class TestAccuracy:
    labels = np.arange(400) % 4
    apart = torch.from_numpy(np.eye(4)[labels] + 0.05 * np.random.default_rng(0).normal(size=(400, 4))).float()

    @pytest.mark.parametrize("accuracy", [latents.neighbour_accuracy, latents.probe_accuracy])
    def test_classes_apart_are_told(self, accuracy) -> None:
        assert accuracy(self.apart[:300], self.labels[:300], self.apart[300:], self.labels[300:]) == 1.0

    @pytest.mark.parametrize("accuracy", [latents.neighbour_accuracy, latents.probe_accuracy])
    def test_noise_tells_no_more_than_chance(self, accuracy) -> None:
        torch.manual_seed(0)
        noise = torch.randn(2000, 3)
        labels = np.arange(2000) % 4
        assert accuracy(noise[:1000], labels[:1000], noise[1000:], labels[1000:]) == pytest.approx(0.25, abs=0.05)

    def test_constant_latents_do_no_harm(self) -> None:
        assert latents.probe_accuracy(torch.ones(8, 2), self.labels[:8], torch.ones(8, 2), self.labels[:8]) == 0.25
