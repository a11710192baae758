"""A small network that looks at pixels and says whether they show an attribute: a judge of edits that knows nothing of
latents. It is trained on real images, some of them blurred, so that it also knows what it looks for unsharp."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_PASSES = 5
_BATCH = 128
_RATE = 2e-3
_WIDTHS = (32, 64, 96, 128)
_CELLS = 4  # the picture's last grid is at least so wide: where something is matters


class PictureProbe:
    """Made by `fit`."""

    def __init__(self, network: nn.Sequential) -> None:
        self._network = network.eval()

    @torch.inference_mode()
    def says(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether each of the images, uint8 (N, H, W, C), shows the attribute."""
        parts = np.array_split(pixels, math.ceil(len(pixels) / _BATCH))
        return np.asarray(torch.cat([self._network(_tensor(part))[:, 0] > 0 for part in parts]).numpy())


def fit(pixels: NDArray[np.uint8], chosen: NDArray[np.intp], has: NDArray[np.bool_], seed: int) -> PictureProbe:
    """A network that has learnt from the images `chosen` of `pixels` (N, H, W, C) whether they `has` it. The same
    images and seed give the same one, as far as one machine rounds alike."""
    order = np.random.default_rng(seed)
    steps = _PASSES * math.ceil(len(chosen) / _BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(pixels.shape[1:])
        optimiser = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        for _ in range(_PASSES):
            for batch in np.array_split(order.permutation(len(chosen)), math.ceil(len(chosen) / _BATCH)):
                x = _varied(_tensor(pixels[chosen[batch]]), order)
                wanted = torch.from_numpy(has[batch].astype(np.float32))
                loss = functional.binary_cross_entropy_with_logits(network(x)[:, 0], wanted)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
    return PictureProbe(network)


def _varied(x: Tensor, order: np.random.Generator) -> Tensor:
    """Half of the batches mirrored, half of them blurred."""
    if order.random() < 0.5:
        x = x.flip(3)
    if order.random() < 0.5:
        x = functional.interpolate(functional.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear")
    return x


def _network(shape: tuple[int, ...]) -> nn.Sequential:
    height, width, inner = shape
    layers: list[nn.Module] = []
    for outer in _WIDTHS:
        stride = 2 if min(height, width) >= 2 * _CELLS else 1
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        height, width, inner = -(-height // stride), -(-width // stride), outer
    layers += [nn.AdaptiveAvgPool2d(_CELLS), nn.Flatten(), nn.Dropout(0.3), nn.Linear(inner * _CELLS**2, 1)]
    network = nn.Sequential(*layers)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    tensor = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(255)
    return tensor.contiguous(memory_format=torch.channels_last)
