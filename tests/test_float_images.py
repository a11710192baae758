"""Images as floats are rounded to the nearest level as a whole array would be, however many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentry.messages import write_tensor
from latentry.v1 import vae_pb2 as pb
from serving.api import codec
from serving.errors import InvalidArgument

Array = np.ndarray[Any, np.dtype[Any]]

SHAPE = (28, 28, 1)


def read(images: Array) -> Array:
    return codec.read_images(pb.Images(tensor=write_tensor(images)), SHAPE, 1000, pb.RESIZE_UNSPECIFIED)


@pytest.mark.parametrize("items", [1, 83, 84, 200])  # 65,536 numbers are rounded together: 83.6 of these images
def test_floats_are_rounded_to_the_nearest_level(fashion_images: Array, items: int) -> None:
    levels = fashion_images[:items]
    unit = levels / np.float32(255)
    np.testing.assert_array_equal(read(unit), levels)
    between = np.clip(unit + np.linspace(-0.6, 0.6, unit.size, dtype=np.float32).reshape(unit.shape) / 255, 0, 1)
    np.testing.assert_array_equal(read(between), np.rint(between * np.float32(255)).astype(np.uint8))


@pytest.mark.parametrize(("bad", "told"), [(np.nan, "NaN"), (1.0001, "0 to 1.0001"), (-1e-6, "-1e-06 to 1")])
@pytest.mark.parametrize("place", [0, -1])
def test_one_number_that_is_no_pixel_is_found_wherever_it_is(
    fashion_images: Array, bad: float, told: str, place: int
) -> None:
    unit = fashion_images[:200] / np.float32(255)
    unit.reshape(-1)[place] = bad
    with pytest.raises(InvalidArgument, match=rf"images.tensor.data: got {told}"):
        read(unit)
