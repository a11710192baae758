"""The scales of a convolutional network, which follow from the image size alone. Knows nothing of torch."""

from __future__ import annotations

import math

from training.config import ModelConfig

_STRIDE_ABOVE = 4  # a side of at most this many pixels is left to the dense layers

Size = tuple[int, int]  # (H, W)
Shape = tuple[int, int, int]  # (C, H, W)


def scale_sizes(size: Size) -> list[Size]:
    """The (H, W) of each scale, largest first: sides above four are halved, rounding up, until none is left."""
    sizes = [size]
    while max(sizes[-1]) > _STRIDE_ABOVE:
        height, width = sizes[-1]
        sizes.append((_halved(height), _halved(width)))
    return sizes


def widths(sizes: list[Size], config: ModelConfig) -> list[int]:
    """The channels of each scale after the first, which is the image itself."""
    return [min(config.width * 2**scale, config.max_width) for scale in range(len(sizes) - 1)]


def strides(large: Size, small: Size) -> Size:
    """By how much each side is divided between two scales: 2 or 1."""
    return (2 if large[0] > small[0] else 1, 2 if large[1] > small[1] else 1)


def _halved(side: int) -> int:
    return math.ceil(side / 2) if side > _STRIDE_ABOVE else side
