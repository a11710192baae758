"""The features that images are compared in, and the linear models that a VAE is held against, on real images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from training.evaluation import baselines, distances, features

ROOT = Path(__file__).resolve().parent.parent
FASHION = ROOT / "data" / "fashion-mnist"
torch.set_num_threads(1)

IMAGES = np.frombuffer(gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
IMAGES = IMAGES.reshape(-1, 28, 28, 1)
LABELS = np.frombuffer(gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
LABELS = LABELS.astype(np.int64)


@pytest.fixture(scope="module")
def network() -> features.Features:
    return features.train(IMAGES[:1000], LABELS[:1000], 0)


class TestFeatures:
    def test_they_tell_the_classes_of_images_never_seen(self, network: features.Features) -> None:
        from sklearn.neighbors import KNeighborsClassifier

        neighbours = KNeighborsClassifier(5).fit(network.of(IMAGES[:1000]), LABELS[:1000])
        assert network.task == "10 classes"
        assert neighbours.score(network.of(IMAGES[1500:1800]), LABELS[1500:1800]) > 0.6

    def test_the_same_seed_gives_the_same_features(self) -> None:
        first, again = (features.train(IMAGES[:300], LABELS[:300], 1).of(IMAGES[300:310]) for _ in range(2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, features.train(IMAGES[:300], LABELS[:300], 2).of(IMAGES[300:310]))

    def test_training_leaves_the_random_numbers_of_others_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        features.train(IMAGES[:100], LABELS[:100], 1)
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize(
        "labels", [None, np.zeros(200, np.int64), np.arange(200)], ids=["none", "one class", "a class each"]
    )
    def test_without_classes_to_tell_it_tells_turns(self, labels: np.ndarray | None) -> None:
        wide = np.repeat(IMAGES[:200], 2, axis=2)
        network = features.train(wide, labels, 0)
        assert network.task == "quarter turns"
        assert network.of(wide[:3]).shape == (3, features.WIDTH)

    def test_a_damaged_set_is_farther_than_a_real_one_the_more_the_worse(self, network: features.Features) -> None:
        real = network.of(IMAGES[2000:2400])
        noise = np.random.default_rng(0).normal(size=(400, 28, 28, 1))
        sets = [np.clip(IMAGES[3000:3400] + level * noise, 0, 255).astype(np.uint8) for level in (0, 30, 80)]
        described = [network.of(images) for images in sets]
        frechet = [distances.frechet(real, each) for each in described]
        kernel = [distances.kernel(real, each)[0] for each in described]
        precision = [distances.precision_recall(real, each)[0] for each in described]
        assert frechet[0] < frechet[1] / 2 < frechet[2] / 2
        assert kernel[0] < kernel[1] < kernel[2]
        assert precision[0] > precision[1] >= precision[2]


class TestBaselines:
    train, test = IMAGES[:400, ::2, ::2], IMAGES[2000:2100, ::2, ::2]

    def test_pca_is_the_projection_on_the_first_singular_vectors(self) -> None:
        known, seen = (part.reshape(len(part), -1) / 255.0 for part in (self.train, self.test))
        mean = known.mean(0)
        _, _, vectors = np.linalg.svd(known - mean, full_matrices=False)
        projected = (seen - mean) @ vectors[:8].T @ vectors[:8] + mean
        expected = ((projected - seen) ** 2).mean()
        assert baselines.pca_error(self.train, self.test, 8) == pytest.approx(expected, rel=1e-4)

    def test_a_linear_autoencoder_comes_near_pca_and_not_below_it_on_training_images(self) -> None:
        trained = baselines.linear_autoencoder_error(self.train, self.train, 8, 0)
        best = baselines.pca_error(self.train, self.train, 8)
        assert best * 0.9999 < trained < best * 1.05

    def test_constant_images_cost_nothing(self) -> None:
        flat = np.full((20, 8, 8, 1), 7, np.uint8)
        assert baselines.linear_autoencoder_error(flat, flat, 2, 0) == pytest.approx(0, abs=1e-9)
        assert baselines.pca_error(flat, flat, 2) == pytest.approx(0, abs=1e-9)

    def test_as_many_latents_as_images_are_too_many(self) -> None:
        assert baselines.most_latents(self.train[:20]) == 19
        assert baselines.most_latents(self.train) == 196
