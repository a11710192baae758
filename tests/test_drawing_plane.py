"""Two latents: the scatter, the manifold on the quantiles of N(0, 1), and both over training; learning curves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from drawing_fixtures import run_of, run_subject
from PIL import Image
from scipy.stats import norm

from training import run
from training.drawing import animation, canvas, latent_space, manifold
from training.drawing.curves import learning_curves, read_events, smooth
from training.drawing.from_run import from_run
from training.drawing.subject import Subject, encoded
from training.errors import CheckpointError


@pytest.fixture(scope="module")
def subject() -> Subject:
    return run_subject()


def test_the_grid_is_even_in_the_probability_of_the_prior(subject: Subject) -> None:
    grid = manifold.grid(subject)
    quantiles = norm.ppf(np.linspace(0.05, 0.95, 15))
    assert grid.shape == (15, 15, 2)
    for row, column in ((0, 0), (3, 11), (14, 14)):
        np.testing.assert_allclose(grid[row, column], [quantiles[column], quantiles[14 - row]], rtol=1e-6, atol=1e-6)


def test_each_cell_of_the_manifold_is_the_decoder_at_its_grid_point(subject: Subject) -> None:
    picture = np.asarray(manifold.manifold(subject))[:, :, None]
    picture = picture[-(15 * 58 + 2) :, -(15 * 58 + 2) :]
    quantiles = norm.ppf(np.linspace(0.05, 0.95, 15)).astype(np.float32)
    for row, column in ((0, 0), (5, 9), (14, 2)):
        wanted = subject.decode(np.array([[quantiles[column], quantiles[14 - row]]]), None)[0].astype(int)
        top, left = row * 58 + 2, column * 58 + 2
        got = picture[top : top + 56 : 2, left : left + 56 : 2].astype(int)
        assert np.abs(got - wanted).max() <= 1  # a rounding may differ with the size of the batch


def test_an_autoencoders_manifold_lies_where_its_latents_are() -> None:
    points = run_subject("autoencoder")
    seen = encoded(points)
    grid = manifold.grid(points)
    np.testing.assert_allclose(grid[7, 7], seen.mean.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grid[0, 14] - grid[7, 7], seen.mean.std(0) * norm.ppf(0.95), rtol=1e-3)


def test_the_scatter_has_a_dot_of_its_class_for_each_image(subject: Subject) -> None:
    assert subject.pixels is not None
    assert subject.labels is not None
    points = latent_space.means(encoded(subject))
    np.testing.assert_allclose(points.latents, subject.encode(subject.pixels, None)[0], atol=1e-6)
    lines = latent_space.scatter(subject).axes[0].lines
    drawn = {line.get_color(): len(line.get_xdata()) for line in lines}  # type: ignore[arg-type]
    counts = np.bincount(subject.labels)
    assert drawn == {canvas.PALETTE[label]: count for label, count in enumerate(counts) if count}


def test_draws_of_the_posterior_have_its_noise(subject: Subject) -> None:
    seen = encoded(subject)
    noise = (latent_space.draws(seen).latents - seen.mean) / np.exp(0.5 * seen.logvar)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_animations_have_a_frame_for_each_snapshot(subject: Subject) -> None:
    assert [snapshot.epoch for snapshot in subject.snapshots] == [1, 2, 3]
    for frames in (animation.manifold_frames(subject), animation.scatter_frames(subject)):
        with Image.open(io.BytesIO(canvas.gif(frames))) as picture:
            assert picture.n_frames == 3
            assert picture.size == frames[0].size
            assert len(picture.getcolors(1 << 16) or []) <= 64
            assert picture.info["loop"] == 0


def test_the_last_snapshot_is_the_model_itself_and_the_first_is_not(subject: Subject) -> None:
    assert subject.pixels is not None
    means = [
        each.encode(subject.pixels, None)[0]
        for each in (subject, subject.snapshots[-1].open(), subject.snapshots[0].open())
    ]
    np.testing.assert_allclose(means[1], means[0], atol=1e-6)
    assert np.abs(means[2] - means[0]).max() > 1e-3


def test_a_snapshot_of_another_model_is_refused(tmp_path: Path) -> None:
    here = tmp_path / "run"
    here.mkdir()
    for entry in run_of("dense").iterdir():
        (here / entry.name).symlink_to(entry)
    (here / run.SNAPSHOTS).unlink()
    (here / run.SNAPSHOTS).symlink_to(run_of("autoencoder") / run.SNAPSHOTS)
    with pytest.raises(CheckpointError, match=r"epoch-00001.pt: got weights of another model"):
        from_run(here).snapshots[0].open()


def test_learning_curves_have_every_figure_with_its_unit(subject: Subject) -> None:
    assert subject.log is not None
    axes = learning_curves(subject.log).axes
    assert [each.get_ylabel() for each in axes] == [
        "nats per image",
        "nats per image",
        "β, the KL's weight",
        "learning rate",
    ]
    names = {line.get_label() for each in axes for line in each.lines}
    assert {f"{name}, {of}" for name in ("elbo", "reconstruction", "kl") for of in ("training", "held out")} <= names
    steps = [event for event in read_events(subject.log) if event["event"] == "step"]
    (rate,) = axes[3].lines
    np.testing.assert_array_equal(rate.get_ydata(), [event["learning_rate"] for event in steps])


def test_curves_are_smoothed_over_a_hundredth() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    np.testing.assert_allclose(smooth(list(values))[100], values[96:101].mean())
    np.testing.assert_array_equal(smooth([3.0, 4.0]), [3.0, 4.0])


def test_a_log_with_a_damaged_line_and_a_null_is_drawn(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"event": "step", "step": step, "elbo": None if step == 3 else step}) for step in range(9)]
    log.write_text("\n".join([*lines[:5], '{"event": "st', *lines[5:]]))
    events = read_events(log)
    assert len(events) == 9
    assert np.isnan(events[3]["elbo"])
    assert canvas.png(learning_curves(log)).startswith(b"\x89PNG")
