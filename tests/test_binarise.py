"""Black and white from grey, by the published protocol."""

from __future__ import annotations

import numpy as np
import pytest
from training_fixtures import fashion_images, outside_data

from training import binarise, idx
from training.binarise import binarise as make_binary
from training.errors import DataError
from training.images import in_memory

PIXELS = fashion_images()[:200, ..., np.newaxis]


def test_dynamic_is_one_draw_of_numpys_seed_777_over_the_whole_array() -> None:
    pixels = idx.read(outside_data("mnist"), "t10k", in_memory).pixels
    expected = np.random.RandomState(777).binomial(1, pixels / 255)
    assert np.array_equal(make_binary(pixels, "dynamic"), 255 * expected)


def test_dynamic_goes_on_from_block_to_block_as_in_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binarise, "_BLOCK", 1000)
    expected = np.random.RandomState(777).binomial(1, PIXELS / 255)
    assert np.array_equal(make_binary(PIXELS, "dynamic"), 255 * expected)


def test_dynamic_is_white_as_often_as_the_pixel_is_bright() -> None:
    drawn = make_binary(np.full((1000, 8, 8, 1), 51, np.uint8), "dynamic")
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 255}
    assert drawn.mean() / 255 == pytest.approx(0.2, abs=0.01)


def test_threshold_is_white_from_half_grey() -> None:
    assert make_binary(np.array([0, 127, 128, 255], np.uint8), "threshold").tolist() == [0, 0, 255, 255]


def test_binary_images_stay_as_they_are_in_every_way() -> None:
    binary = make_binary(PIXELS, "threshold")
    assert all(np.array_equal(make_binary(binary, how), binary) for how in binarise.WAYS)


def test_none_refuses_grey_images() -> None:
    with pytest.raises(DataError, match="got grey pixels, wanted black and white"):
        make_binary(PIXELS, "none")


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(DataError, match="got static, wanted dynamic, threshold or none"):
        make_binary(PIXELS, "static")
