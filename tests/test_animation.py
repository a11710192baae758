"""Animations: every image is a frame with its time, whoever reads it again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentry import animation, pixels

Uint8s = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
def greys(fashion_images: Uint8s) -> Uint8s:
    return fashion_images[:12]


@pytest.fixture
def colours(fashion_images: Uint8s) -> Uint8s:
    """RGB frames with a few hundred colours each."""
    return np.concatenate([fashion_images[:12], fashion_images[12:24], fashion_images[24:36]], -1)


def frames(data: bytes) -> tuple[Uint8s, list[int]]:
    """What a viewer shows, RGB [N, H, W, 3], and for how many milliseconds each."""
    shown, times = [], []
    with Image.open(io.BytesIO(data)) as file:
        assert file.info.get("loop") == 0  # for ever
        for at in range(file.n_frames):  # type: ignore[attr-defined]  # of animations
            file.seek(at)
            shown.append(np.asarray(file.convert("RGB")))
            times.append(file.info["duration"])
    return np.stack(shown), times


def as_rgb(images: Uint8s) -> Uint8s:
    return np.broadcast_to(images, (*images.shape[:3], 3))


def test_greys_come_back_exactly(greys: Uint8s) -> None:
    for kind, quality in [("gif", 1), ("webp", 100)]:
        shown, times = frames(animation.write(greys, kind, 120, quality))
        assert (shown == as_rgb(greys)).all()
        assert times == [120] * len(greys)


def test_colours_come_back_exactly_from_webp_and_nearly_from_gif(colours: Uint8s) -> None:
    shown, _ = frames(animation.write(colours, "webp", quality=100))
    assert (shown == colours).all()
    shown, _ = frames(animation.write(colours, "gif"))
    error = np.abs(shown.astype(int) - colours)
    assert error.max() <= 20
    assert error.mean() <= 2


def test_each_frame_of_a_gif_has_its_own_256_colours() -> None:
    draws = np.random.default_rng(0)
    images = np.stack([draws.integers(0, 256, (256, 3), np.uint8)[draws.permutation(256)] for _ in range(4)])
    images = images.reshape(4, 16, 16, 3)
    shown, _ = frames(animation.write(images, "gif"))
    assert (shown == images).all()


def test_a_lossy_frame_is_the_same_picture_as_a_lossy_file(colours: Uint8s) -> None:
    shown, _ = frames(animation.write(colours, "webp", quality=30))
    for frame, image in zip(shown, colours, strict=True):
        with Image.open(io.BytesIO(pixels.to_file(image, "WEBP", 30))) as still:
            assert (np.asarray(still.convert("RGB")) == frame).all()
    assert not (shown == colours).all()


@pytest.mark.parametrize("kind", animation.KINDS)
def test_a_walk_that_stands_still_keeps_its_time(greys: Uint8s, kind: str) -> None:
    """Pillow's own writers join frames that are alike: 100 of 10 s are more than a GIF's longest time."""
    order = [0, 0, 0, 1, 1, 2, *[3] * 100, 4, 4]
    shown, times = frames(animation.write(greys[order], kind, 10_000, 100))
    assert sum(times) == 10_000 * len(order)
    ends = np.cumsum(times)
    for second in range(5, 10 * len(order), 10):
        at = int(np.searchsorted(ends, 1000 * second))
        assert (shown[at] == as_rgb(greys)[order[second // 10]]).all()
    assert len(shown) == len(order)


@pytest.mark.parametrize(
    ("asked", "given"), [(20, 20), (24, 20), (25, 30), (84, 80), (85, 90), (99, 100), (10_000, 10_000)]
)
def test_a_gif_rounds_to_hundredths_of_a_second_and_a_webp_does_not(greys: Uint8s, asked: int, given: int) -> None:
    assert frames(animation.write(greys[:2], "gif", asked))[1] == [given, given]
    assert frames(animation.write(greys[:2], "webp", asked))[1] == [asked, asked]


@pytest.mark.parametrize("kind", animation.KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (3, 5, 1), (5, 3, 3), (1, 300, 1), (257, 1, 3)])
def test_every_shape_and_a_single_frame(kind: str, shape: tuple[int, int, int]) -> None:
    image = np.linspace(0, 255, int(np.prod(shape))).astype(np.uint8).reshape(1, *shape)
    for count in (1, 2):
        data = animation.write(image.repeat(count, 0), kind, quality=100)
        shown, times = frames(data)
        assert times == [animation.DEFAULT_FRAME_MS] * count
        assert np.abs(shown.astype(int) - as_rgb(image)).max() <= (2 if kind == "gif" and shape[2] == 3 else 0)


def test_the_same_images_are_the_same_bytes(greys: Uint8s, colours: Uint8s) -> None:
    for images in (greys, colours):
        for kind in animation.KINDS:
            assert animation.write(images, kind) == animation.write(images.copy(), kind)


def test_images_are_taken_one_at_a_time(greys: Uint8s) -> None:
    """So that who waits no more can stop the work, and memory holds the file and one frame."""
    taken = 0

    def until_somebody_stops() -> Iterator[Uint8s]:
        nonlocal taken
        for image in greys:
            if taken == 3:
                raise InterruptedError
            taken += 1
            yield image

    for kind in animation.KINDS:
        taken = 0
        with pytest.raises(InterruptedError):
            animation.write(until_somebody_stops(), kind)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "apng"}, "kind: got 'apng', wanted one of 'gif', 'webp'"),
        ({"frame_ms": 19}, "frame_ms: got 19, wanted 20 to 10000"),
        ({"frame_ms": 10_001}, "frame_ms: got 10001, wanted 20 to 10000"),
        ({"images": []}, "images: got none, wanted one or more"),
        ({"images": [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 5, 1), np.uint8)]}, r"got \[4, 5, 1\], wanted"),
        ({"images": np.zeros((4, 4, 1), np.uint8)}, r"images: got \[4, 1\], wanted"),
    ],
)
def test_what_is_no_animation_is_refused(greys: Uint8s, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        animation.write(**{"images": greys, "kind": "gif", **change})
