"""Distances of sets of features, against closed forms and sets whose answer is plain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from training.evaluation import distances

RNG = np.random.default_rng(0)


class TestFrechet:
    def test_it_is_the_closed_form_of_the_sets_own_gaussians(self) -> None:
        a = RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6)) + 1
        b = RNG.normal(size=(400, 6)) @ RNG.normal(size=(6, 6))
        first, second = np.cov(a.T), np.cov(b.T)
        root = sqrtm(first @ second).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
        assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-8)

    def test_it_is_the_closed_form_of_the_gaussians_that_were_drawn_from(self) -> None:
        scales, shift = np.array([1.0, 2.0, 0.5]), np.array([0.3, -1.0, 2.0])
        a, b = RNG.normal(size=(200_000, 3)), RNG.normal(size=(200_000, 3)) * scales + shift
        expected = (shift**2).sum() + ((1 - scales) ** 2).sum()
        assert distances.frechet(a, b) == pytest.approx(expected, rel=0.02)

    def test_a_set_is_at_0_from_itself_whatever_its_rank(self) -> None:
        flat = RNG.normal(size=(50, 2)) @ RNG.normal(size=(2, 30))
        assert distances.frechet(flat, flat) == pytest.approx(0, abs=1e-5)
        assert distances.frechet(np.ones((9, 4)), np.ones((9, 4))) == 0

    def test_it_is_symmetric(self) -> None:
        a, b = RNG.normal(size=(60, 5)), 2 * RNG.normal(size=(70, 5))
        assert distances.frechet(a, b) == pytest.approx(distances.frechet(b, a))


class TestKernel:
    def test_it_is_0_on_average_for_sets_of_one_distribution(self) -> None:
        results = [distances._discrepancy(RNG.normal(size=(80, 4)), RNG.normal(size=(90, 4))) for _ in range(200)]
        assert min(results) < 0 < max(results)
        assert abs(np.mean(results)) < 4 * np.std(results) / np.sqrt(200)

    def test_it_is_the_mean_over_all_pairs_but_those_of_a_point_with_itself(self) -> None:
        a, b = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 1

        def kernel(x: np.ndarray, y: np.ndarray) -> float:
            return float((x @ y / 3 + 1) ** 3)

        within_a = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
        within_b = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
        across = np.mean([kernel(x, y) for x in a for y in b])
        assert distances._discrepancy(a, b) == pytest.approx(within_a + within_b - 2 * across)

    def test_it_grows_with_the_distance_and_says_how_sure_it_is(self) -> None:
        real = RNG.normal(size=(4000, 4))
        near, error = distances.kernel(real, RNG.normal(size=(4000, 4)) + 0.1)
        far, _ = distances.kernel(real, RNG.normal(size=(4000, 4)) + 1)
        assert 0 < error < 0.1
        assert abs(near) < far / 5

    def test_the_order_of_the_images_makes_no_difference_to_speak_of(self) -> None:
        """Folders of classes come class by class, so that a stretch of such a set is one class."""
        rng = np.random.default_rng(3)
        classes = np.repeat(np.arange(4), 750)
        real, fake = (rng.standard_normal((3000, 8)) + 3 * classes[:, None] for _ in range(2))
        shuffled, error = distances.kernel(real[rng.permutation(3000)], fake[rng.permutation(3000)])
        in_order, _ = distances.kernel(real, fake[rng.permutation(3000)])
        assert abs(in_order - shuffled) < 5 * error

    def test_one_subset_has_no_error(self) -> None:
        assert np.isnan(distances.kernel(RNG.normal(size=(50, 4)), RNG.normal(size=(60, 4)))[1])


class TestPrecisionAndRecall:
    def test_a_set_covers_itself(self) -> None:
        points = RNG.normal(size=(700, 5))
        assert distances.precision_recall(points, points) == (1.0, 1.0)

    def test_sets_far_apart_cover_nothing_of_each_other(self) -> None:
        assert distances.precision_recall(RNG.normal(size=(60, 5)), RNG.normal(size=(60, 5)) + 100) == (0.0, 0.0)

    def test_samples_of_one_mode_are_precise_and_recall_half(self) -> None:
        modes = np.concatenate([RNG.normal(size=(300, 2)), RNG.normal(size=(300, 2)) + 50])
        precision, recall = distances.precision_recall(modes, RNG.normal(size=(600, 2)))
        assert precision > 0.9
        assert recall == pytest.approx(0.5, abs=0.05)

    def test_balls_reach_to_the_third_neighbour(self) -> None:
        line = np.arange(5.0)[:, np.newaxis]
        precision, _ = distances.precision_recall(line, np.array([[-2.9], [-3.1], [7.1], [2.5]]))
        assert precision == 0.5  # the ends' third neighbours are 3 away

    def test_constant_features_do_no_harm(self) -> None:
        assert distances.precision_recall(np.ones((20, 3)), np.ones((20, 3))) == (1.0, 1.0)
        assert distances.kernel(np.ones((20, 3)), np.ones((20, 3)))[0] == pytest.approx(0)
