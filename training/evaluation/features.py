"""Features in which images are compared: those of a small classifier, trained here on the training images.

Where they have no classes, it learns to tell by how many quarter turns an image was rotated (Gidaris et al. 2018).
Knows nothing of models. The same images and seed give the same network, as far as one machine rounds alike.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.images import spread
from training.progress import Progress

WIDTH = 64  # numbers that an image is described by
_PASSES = 3
_MOST_IMAGES = 20_000
_LEAST_OF_A_CLASS = 20  # on average; of fewer a class is learnt by heart
_BATCH = 128
_RATE = 3e-3
_QUARTER_TURNS = 4


class Features:
    """A trained network, and `task`: what it was trained to tell, in words."""

    def __init__(self, network: nn.Sequential, task: str) -> None:
        self._network = network
        self.task = task

    @torch.inference_mode()
    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """uint8 (N, H, W, C) -> (N, 64)."""
        parts = [self._network(_tensor(part)) for part in np.array_split(pixels, math.ceil(len(pixels) / _BATCH))]
        return torch.cat(parts).double().numpy()


def train(pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None, seed: int) -> Features:
    """A network that has learnt the classes of images, uint8 (N, H, W, C); in a minute or so."""
    chosen = spread(len(pixels), _MOST_IMAGES)
    if labels is not None and _tell_apart(labels[chosen]):
        classes, targets = np.unique(labels[chosen], return_inverse=True)
        task, images = f"{len(classes)} classes", pixels[chosen]
    else:
        images, targets = _turned(pixels[chosen], seed)
        task = "quarter turns"
    return Features(_trained(images, targets, seed), task)


def _tell_apart(labels: NDArray[np.int64]) -> bool:
    classes = len(np.unique(labels))
    return 2 <= classes <= len(labels) / _LEAST_OF_A_CLASS


def _turned(pixels: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The square middle of each image, turned by chance, and by how many quarters."""
    side = min(pixels.shape[1:3])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = pixels[:, top : top + side, left : left + side]
    turns = np.random.default_rng(seed).integers(0, _QUARTER_TURNS, len(pixels))
    return np.stack([np.rot90(image, turn) for image, turn in zip(square, turns, strict=True)]), turns


def _trained(pixels: NDArray[np.uint8], targets: NDArray[np.int64], seed: int) -> nn.Sequential:
    order = np.random.default_rng(seed)
    steps = _PASSES * math.ceil(len(pixels) / _BATCH)
    with torch.random.fork_rng(devices=[]), Progress("features", steps, "steps") as progress:
        torch.manual_seed(seed)
        network = _network(pixels.shape[3])
        head = nn.Linear(WIDTH, int(targets.max()) + 1)
        optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], _RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for batch in (part for _ in range(_PASSES) for part in _batches(order.permutation(len(pixels)))):
            predicted = head(network(_tensor(pixels[batch])))
            optimiser.zero_grad()
            loss = functional.cross_entropy(predicted, torch.from_numpy(targets[batch].astype(np.int64)))
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            progress.add(1)
    return network.eval()


def _batches(order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(order, math.ceil(len(order) / _BATCH))


def _network(channels: int) -> nn.Sequential:
    """Three strides, then a mean over what is left of the image, so that any size will do."""
    layers: list[nn.Module] = []
    for inner, outer in ((channels, 32), (32, WIDTH), (WIDTH, WIDTH)):
        layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return cast(nn.Sequential, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    tensor = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(255)
    return tensor.contiguous(memory_format=torch.channels_last)
