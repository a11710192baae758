"""Grey images made black and white, as the published likelihoods of binary images want them."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

WAYS = ("dynamic", "threshold", "none")
_SEED = 777  # that of the published protocol: one fixed draw, so that all score the same images
_BLOCK = 1 << 22  # pixels drawn at a time, so that no copy of a large set in float64 is made


def binarise(pixels: NDArray[np.uint8], how: str) -> NDArray[np.uint8]:
    """`pixels` uint8 (N, H, W, C) as 0 and 255.

    dynamic     each pixel is white with its grey value as probability: one draw of `np.random.RandomState(777)` over
                the whole array in order. The seed is that of VampPrior's code (Tomczak & Welling 2018), which draws
                its validation images from the same stream first, so that its test images are another draw
    threshold   white from half grey upwards
    none        as they are, which must be 0 and 255 already

    Raises `DataError` for other names, and for grey pixels with none.
    """
    if how == "dynamic":
        return _drawn(pixels)
    if how == "threshold":
        return np.where(pixels >= 128, np.uint8(255), np.uint8(0))
    if how != "none":
        raise DataError(f"binarize: got {how}, wanted {', '.join(WAYS[:-1])} or {WAYS[-1]}")
    if not np.isin(pixels, (0, 255)).all():
        raise DataError("images: got grey pixels, wanted black and white ones: --binarize dynamic or threshold")
    return pixels


def seen_by(likelihood: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a model of that likelihood is shown of `pixels`: a Bernoulli's images are black and white."""
    return binarise(pixels, "dynamic") if likelihood == "bernoulli" else pixels


def _drawn(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    random = np.random.RandomState(_SEED)  # its stream goes on from block to block as in one draw
    flat = pixels.reshape(-1)
    white = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        white[start : start + _BLOCK] = random.binomial(1, block / 255)
    return cast(NDArray[np.uint8], (white * np.uint8(255)).reshape(pixels.shape))
