"""Who says whether an image looks like one of the data: a small classifier, and the nearest training image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from training import batches
from training.images import Images

_EPOCHS = 6
_BATCH = 128
_LEARNING_RATE = 2e-3
_SEED = 11
_DEVICE = torch.device("cpu")


class Judge:
    """Trained on labelled images. The same images make the same judge, on the same machine."""

    def __init__(self, images: Images, epochs: int = _EPOCHS) -> None:
        assert images.labels is not None  # noqa: S101 - the gallery is of labelled images
        _, height, width, channels = images.pixels.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self._network = nn.Sequential(
                nn.Conv2d(channels, 24, 3, stride=2, padding=1), nn.ReLU(),
                nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                nn.Linear(48 * -(-height // 4) * -(-width // 4), 128), nn.ReLU(),
                nn.Linear(128, int(images.labels.max()) + 1),
            )  # fmt: skip
        self._neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_flat(images.pixels))
        self._learn(images.pixels, images.labels, epochs)

    def _learn(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int) -> None:
        optimiser = torch.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE)
        for epoch in tqdm(range(epochs), desc="a classifier to judge by", unit=" epochs", disable=None):
            order = batches.epoch_order(len(pixels), _SEED, epoch)
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                logits = self._network(batches.to_tensor(pixels[chosen], _DEVICE))
                optimiser.zero_grad()
                functional.cross_entropy(logits, torch.from_numpy(labels[chosen])).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    @torch.no_grad()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The classes' probabilities (N, K) for images (N, H, W, C)."""
        pixels = np.ascontiguousarray(pixels)
        parts = [
            self._network(batches.to_tensor(pixels[start : start + 500], _DEVICE)).softmax(1)
            for start in range(0, len(pixels), 500)
        ]
        probabilities: NDArray[np.float64] = torch.cat(parts).double().numpy()
        return probabilities

    def confidence(self, pixels: NDArray[np.uint8]) -> float:
        """The mean probability of the likeliest class: low for what is no class or two at once."""
        return float(self.probabilities(pixels).max(1).mean())

    def agreement(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """The share of images whose likeliest class is their label."""
        return float((self.probabilities(pixels).argmax(1) == labels).mean())

    def distance(self, pixels: NDArray[np.uint8]) -> float:
        """The root mean square difference, in grey levels of 255, to the nearest training image; mean over images."""
        distances, _ = self._neighbours.kneighbors(_flat(pixels))
        return float(distances.mean() / np.sqrt(pixels[0].size))


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.reshape(len(pixels), -1).astype(np.float32)
