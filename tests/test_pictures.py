"""What calls return, as files: grids, animations, arrays."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentry import Pictures, Reconstruction, grid, whole_file
from latentry.provenance import ModelRef, Provenance, Timings

ABOUT = (ModelRef("fashion", 1, "0" * 64), Provenance("CPUExecutionProvider", "fp32", Timings(0, 0, 0, 0)))


@pytest.fixture
def pictures(fashion_images: np.ndarray[Any, Any]) -> Pictures:
    return Pictures(fashion_images[:6], np.arange(12, dtype=np.float32).reshape(6, 2), 2**64 - 1, *ABOUT)


def frames(data: bytes) -> list[np.ndarray[Any, Any]]:
    with Image.open(io.BytesIO(data)) as file:
        assert getattr(file, "n_frames", 1) > 1
        assert file.info["loop"] == 0
        shown = []
        for at in range(file.n_frames):
            file.seek(at)
            shown.append(np.asarray(file.convert("L")))
            assert file.info["duration"] == 40
        return shown


def test_an_animated_gif_shows_each_image_enlarged_and_exactly(pictures: Pictures) -> None:
    shown = frames(pictures.animation(frame_ms=40, scale=2))
    assert len(shown) == 6
    for frame, image in zip(shown, pictures.images, strict=True):
        assert (frame[::2, ::2] == image[:, :, 0]).all()
        assert (frame[1::2, 1::2] == image[:, :, 0]).all()


def test_an_animated_webp_has_as_many_frames_and_is_close(pictures: Pictures) -> None:
    shown = np.stack(frames(pictures.animation("webp", frame_ms=40)))
    assert np.abs(shown.astype(float) - pictures.images[..., 0]).mean() < 4  # of 255 levels, at quality 90


def test_saving_goes_by_the_ending(pictures: Pictures, tmp_path: Path) -> None:
    pictures.save(tmp_path / "grid.png", columns=3, scale=2)
    with Image.open(tmp_path / "grid.png") as opened:
        assert opened.size == (3 * 58 - 2, 2 * 58 - 2)
    pictures.save(str(tmp_path / "walk.gif"), frame_ms=40)
    assert (tmp_path / "walk.gif").read_bytes() == pictures.animation("gif", frame_ms=40)
    pictures.save(tmp_path / "walk.webp", scale=2)
    assert (tmp_path / "walk.webp").read_bytes() == pictures.animation("webp", scale=2)
    pictures.save(tmp_path / "arrays.npz")
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert (arrays["images"] == pictures.images).all()
        assert (arrays["latents"] == pictures.latents).all()
        assert arrays["seed"] == 2**64 - 1


def test_scores_are_saved_beside_images(pictures: Pictures, tmp_path: Path) -> None:
    scores = np.arange(6, dtype=np.float32)
    seen = Reconstruction(pictures.images, pictures.latents, None, *ABOUT, scores, scores + 1, None)
    seen.save(tmp_path / "seen.npz")
    with np.load(tmp_path / "seen.npz") as arrays:
        assert {name: arrays[name].shape[0] for name in arrays} == dict.fromkeys(
            ("images", "latents", "squared_error", "kl"), 6
        )


def test_what_cannot_be_drawn_says_so_and_leaves_no_file(pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending: got '\.bmp', wanted one of \.png, \.gif, \.webp, \.npz"):
        pictures.save(tmp_path / "grid.bmp")
    with pytest.raises(ValueError, match="frame_ms: got 1, wanted 20 to 10000"):
        pictures.save(tmp_path / "walk.gif", frame_ms=1)
    with pytest.raises(ValueError, match="kind: got 'avi', wanted one of 'gif', 'webp'"):
        pictures.animation("avi")  # type: ignore[arg-type]
    for wrong, message in {
        ("grid.png", "scale", 0): "scale: got 0, wanted 1 or more",
        ("walk.gif", "scale", -1): "scale: got -1, wanted 1 or more",
        ("grid.png", "columns", 0): "columns: got 0, wanted 1 or more",
        ("grid.png", "frame_ms", 40): "frame_ms: got 40 for .png, wanted it for .gif and .webp only",
        ("walk.gif", "columns", 3): "columns: got 3 for .gif, wanted it for .png only",
        ("arrays.npz", "scale", 2): "scale: got 2 for .npz, wanted it for pictures only",
    }.items():
        name, option, value = wrong
        with pytest.raises(ValueError, match=re.escape(message)):
            pictures.save(tmp_path / name, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images: got none"):
        grid(pictures.images[:0])
    with pytest.raises(FileNotFoundError):
        pictures.save(tmp_path / "nowhere" / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_is_interrupted_leaves_the_old_file(pictures: Pictures, tmp_path: Path) -> None:

    pictures.save(tmp_path / "grid.png")
    before = (tmp_path / "grid.png").read_bytes()

    def interrupted(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole_file.write(tmp_path / "grid.png", interrupted)
    assert (tmp_path / "grid.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
