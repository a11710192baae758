"""How a foreign graph holds images: their layout and their range, and the way there and back in numpy.

The same way in ONNX is in `wrap`; the two are held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from training.importing.foreign import Dims, Port
from training.importing.options import FLAT, FLAT_CHW, LEVELS, NCHW, NHWC, SIGNED, UNIT

NUMPY: Mapping[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
CHANNELS_FIRST = (NCHW, FLAT_CHW)
ImageShape = tuple[int, int, int]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Range:
    """Foreign numbers are (x - mean) / std of pixel values x in [0, 1]; one number, or one for each channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


KNOWN = {
    UNIT: Range(UNIT, (0.0,), (1.0,)),
    SIGNED: Range(SIGNED, (0.5,), (0.5,)),
    LEVELS: Range(LEVELS, (0.0,), (1 / 255,)),
}


@dataclass(frozen=True, slots=True)
class ImagePort:
    """Where images go in or come out: the value's name, its type in ONNX's numbers, one item's shape `item`, and
    whether they are the logits of what they mean."""

    name: str
    kind: int
    layout: str
    item: tuple[int, ...]
    range: Range
    shape: ImageShape
    logits: bool = False

    def given(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 (N, H, W, C) -> what the graph takes."""
        if self.kind == TensorProto.UINT8:
            x: NDArray[Any] = images
        else:
            x = (images / 255 - np.array(self.range.mean)) / np.array(self.range.std)
        if self.layout in CHANNELS_FIRST:
            x = x.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x.reshape(len(x), *self.item).astype(NUMPY[self.kind]))

    def means(self, output: NDArray[Any]) -> NDArray[np.float64]:
        """What the graph gives -> (N, H, W, C), in [0, 1] if the range is the right one."""
        height, width, channels = self.shape
        x = output.astype(np.float64)
        if self.layout in CHANNELS_FIRST:
            x = x.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        x = x.reshape(-1, *self.shape)
        if self.logits:
            x = 1 / (1 + np.exp(-np.clip(x, -700, 700)))
        means: NDArray[np.float64] = x * np.array(self.range.std) + np.array(self.range.mean)
        return means


def layouts(port: Port, shape: ImageShape | None) -> list[str]:
    """The layouts that a port's shape may be, for images of `shape` if that is known."""
    item = port.shape[1:]
    if shape is not None:
        possible = [NCHW, NHWC, FLAT, FLAT_CHW] if shape[2] > 1 else [NCHW, NHWC, FLAT]
        return [layout for layout in possible if any(_fits(item, each) for each in items(layout, shape))]
    if len(item) == 3:
        return [NCHW] * (item[0] in (1, 3)) + [NHWC] * (item[2] in (1, 3))
    return [NHWC] if len(item) == 2 else [FLAT] if len(item) == 1 else []


def items(layout: str, shape: ImageShape) -> list[tuple[int, ...]]:
    """The shapes that one image of `shape` may have in a layout."""
    height, width, channels = shape
    if layout == NCHW:
        return [(channels, height, width)]
    if layout == NHWC:
        return [(height, width, channels), *([(height, width)] if channels == 1 else [])]
    return [(math.prod(shape),)]


def item_of(port: Port, layout: str, shape: ImageShape) -> tuple[int, ...] | None:
    """One item's whole shape at a port that may leave sides open; None if it does not fit."""
    return next((each for each in items(layout, shape) if _fits(port.shape[1:], each)), None)


def image_shape(port: Port, layout: str) -> ImageShape | None:
    """The image shape that a port tells, None if it leaves it open."""
    item = port.shape[1:]
    if None in item:
        return None
    sides = [side for side in item if side is not None]
    if len(sides) == 3:
        height, width, channels = (*sides[1:], sides[0]) if layout == NCHW else sides
        return (height, width, channels) if channels in (1, 3) else None
    return (sides[0], sides[1], 1) if len(sides) == 2 and layout == NHWC else None


def _fits(item: Dims, wanted: Sequence[int]) -> bool:
    return len(item) == len(wanted) and all(got in (None, want) for got, want in zip(item, wanted, strict=True))
