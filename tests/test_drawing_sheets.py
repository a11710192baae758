"""What the sheets of images show, held against the model itself."""

from __future__ import annotations

import io

import numpy as np
import torch
from drawing_fixtures import run_of, run_subject, shipped_subject
from numpy.typing import NDArray
from PIL import Image

from training import trained
from training.drawing import canvas, sheets
from training.drawing.subject import encoded
from training.figures import tile


def cell(picture: NDArray[np.uint8], row: int, column: int, scale: int = 2, side: int = 28) -> NDArray[np.uint8]:
    """The image at a place of a sheet without names, at its own size."""
    step = side * scale + 2
    top, left = row * step + 2, column * step + 2
    return picture[top : top + side * scale : scale, left : left + side * scale : scale]


def test_reconstructions_are_originals_above_what_the_model_makes_of_them() -> None:
    subject = shipped_subject()
    picture = sheets.reconstructions(subject)
    assert subject.pixels is not None
    first = subject.pixels[:1]
    assert (cell(picture, 0, 0) == first[0]).all()
    assert (cell(picture, 1, 0) == subject.decode(subject.encode(first, None)[0], None)[0]).all()
    assert picture.shape == (8 * 58 + 2, 8 * 58 + 2, 1)


def test_samples_are_decoded_from_standard_normal_draws() -> None:
    subject = shipped_subject()
    z = sheets.normal_latents(64, 32)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)
    assert (cell(sheets.samples(subject), 3, 5) == subject.decode(z[29:30], None)[0]).all()


def test_walks_are_straight_and_end_at_the_means_of_their_images() -> None:
    subject = shipped_subject()
    found = sheets.walks(subject, rows=3, steps=5)
    for row in range(3):
        ends = subject.encode(found.ends[row], None)[0]
        np.testing.assert_allclose(found.latents[row, [0, -1]], ends, atol=1e-5)
        np.testing.assert_allclose(found.latents[row, 2], ends.mean(0), atol=1e-5)
        steps = np.diff(found.latents[row], axis=0)
        np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-5)


def test_the_middle_column_of_a_traversal_is_the_mean_and_each_row_moves_one_latent() -> None:
    subject = shipped_subject()
    seen = encoded(subject)
    found = sheets.traversal(seen)
    np.testing.assert_allclose(found.latents[:, 3], np.tile(seen.mean.mean(0), (32, 1)), atol=1e-5)
    for row, latent in enumerate(found.order):
        moved = found.latents[row] - found.latents[row, 3]
        np.testing.assert_allclose(moved[:, latent], seen.spread[latent] * np.arange(-3, 4), rtol=1e-4, atol=1e-6)
        assert not np.delete(moved, latent, axis=1).any()


def test_a_traversal_begins_with_the_most_active_latent() -> None:
    seen = encoded(shipped_subject())
    activity = seen.mean.astype(np.float64).var(0)[sheets.traversal(seen).order]
    assert (np.diff(activity) <= 0).all()
    assert activity[0] > 100 * activity[-1]  # the shipped model leaves some latents unused


def test_the_spread_is_that_of_draws_of_the_aggregate_posterior() -> None:
    seen = encoded(shipped_subject())
    noise = np.random.default_rng(0).standard_normal(seen.mean.shape)
    drawn = seen.mean + np.exp(0.5 * seen.logvar) * noise
    np.testing.assert_allclose(seen.spread, drawn.std(0), rtol=4 / np.sqrt(2 * len(drawn)))


def test_an_autoencoders_spread_is_that_of_its_points() -> None:
    seen = encoded(run_subject("autoencoder"))
    assert seen.are_points
    np.testing.assert_allclose(seen.spread, seen.mean.std(0), rtol=1e-4)
    assert not encoded(run_subject()).are_points


def test_a_run_is_drawn_with_the_weights_that_are_exported() -> None:
    subject, source = run_subject(), trained.load(run_of("dense"))
    assert subject.pixels is not None
    x = torch.from_numpy(subject.pixels[:5]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        mean, logvar = source.model.encoder(x)
        image = source.model.likelihood.mean(source.model.decoder(mean))
    got_mean, got_logvar = subject.encode(subject.pixels[:5], None)
    np.testing.assert_allclose(got_mean, mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(got_logvar, logvar.numpy(), atol=1e-6)
    levels = subject.decode(got_mean, None).astype(float) - 255 * image.permute(0, 2, 3, 1).numpy()
    assert np.abs(levels).max() <= 0.51


def test_each_row_of_classes_has_the_same_latents_and_one_label() -> None:
    subject = run_subject(conditional=True)
    picture = np.asarray(sheets.classes(subject, columns=3))
    z = sheets.normal_latents(3, 2)
    left = picture.shape[1] - (3 * 58 + 2)
    for label in range(subject.classes):
        drawn = subject.decode(z, np.full(3, label))
        for column in range(3):
            assert (cell(picture[:, left:, None], label, column) == drawn[column]).all()
    assert not np.array_equal(subject.decode(z, np.zeros(3, np.int64)), subject.decode(z, np.ones(3, np.int64)))


def test_style_transfer_keeps_the_latents_and_changes_the_label() -> None:
    subject = run_subject(conditional=True)
    assert subject.pixels is not None
    assert subject.labels is not None
    present = np.unique(subject.labels)
    assert len(present) > 3
    picture = np.asarray(sheets.style_transfer(subject))[:, :, None]
    picture = picture[-(len(present) * 58 + 2) :, -(11 * 58 + 2) :]
    for row, own in enumerate(present):
        chosen = np.flatnonzero(subject.labels == own)[:1]
        z, _ = subject.encode(subject.pixels[chosen], subject.labels[chosen])
        assert (cell(picture, row, 0) == subject.pixels[chosen][0]).all()
        for label in (0, 3, 9):
            wanted = subject.decode(z, np.array([label]))[0].astype(int)
            assert np.abs(cell(picture, row, 1 + label) - wanted).max() <= 1  # a rounding may differ with the batch


def test_names_stand_beside_the_tiles_and_cover_none_of_them() -> None:
    images = np.zeros((6, 28, 28, 1), np.uint8)
    bare, named = tile(images, 3), np.asarray(canvas.labelled(images, 3, ["a row", "σ"], ["x", "y", "z"]))
    assert (named[-bare.shape[0] :, -bare.shape[1] :] == bare[:, :, 0]).all()
    assert (named[: -bare.shape[0]] < 128).any()  # ink above
    assert (named[:, : -bare.shape[1]] < 128).any()  # and to the left


def test_pngs_and_gifs_keep_what_they_are_given() -> None:
    grid = tile(shipped_subject().pixels[:6], 3)  # type: ignore[index]
    assert (np.asarray(Image.open(io.BytesIO(canvas.png(grid)))) == grid[:, :, 0]).all()
    frames = [canvas.captioned(Image.fromarray(grid[:, :, 0]), f"epoch {epoch}") for epoch in (1, 2, 3)]
    with Image.open(io.BytesIO(canvas.gif(frames))) as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        difference = np.asarray(animation.convert("L")).astype(float) - np.asarray(frames[2].convert("L"))
    assert np.abs(difference).mean() < 4
