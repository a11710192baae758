"""The gallery: its arithmetic against closed forms and other libraries, its runs, and its page against its figures."""

from __future__ import annotations

import json
import re
import shutil
import string
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy import ndimage
from training_fixtures import FASHION, fashion_images, fashion_labels, small_set

from latentry.cli import main
from training import data
from training.config import DataConfig
from training.errors import DataError, RunError
from training.gallery import __main__ as command
from training.gallery import faces, kl, measures, overfit, page, ring, subspaces
from training.gallery.judge import Judge
from training.gallery.workshop import Chapter, Workshop
from training.images import Images

GALLERY = ROOT / "docs" / "gallery"


class TestFivePoints:
    def test_pca_is_that_of_the_singular_value_decomposition(self) -> None:
        points = subspaces.FIVE_POINTS
        values, vectors = subspaces.principal_components(points)
        assert not points.mean(0).any()
        _, singular, rows = np.linalg.svd(points)
        np.testing.assert_allclose(values, singular**2)
        np.testing.assert_allclose(np.abs(vectors.T), np.abs(rows), atol=1e-12)

    def test_the_figures_are_those_that_one_finds_by_hand(self) -> None:
        """The scatter matrix is [[10, 8], [8, 10]]: eigenvalues 18 and 2, directions (1, ±1)/√2."""
        numbers = subspaces.five_points().numbers
        wanted = {
            "larger_eigenvalue": 18.0,
            "smaller_eigenvalue": 2.0,
            "direction_x": 0.5**0.5,
            "direction_y": 0.5**0.5,
            "pca_error": 2.0,
            "linear_error": 2.0,
            "pca_code_0": -4 * 0.5**0.5,
            "pca_code_3": 3 * 0.5**0.5,
        }
        for name, value in wanted.items():
            assert numbers[f"five_{name}"] == pytest.approx(value, abs=1e-9), name

    def test_the_linear_autoencoder_finds_the_same_line_in_another_basis(self) -> None:
        numbers = subspaces.five_points().numbers
        assert numbers["five_angle_degrees"] < 1e-5
        length = np.hypot(numbers["five_decoder_x"], numbers["five_decoder_y"])
        assert abs(length - 1) > 0.1
        codes = [[numbers[f"five_{kind}_code_{index}"] for index in range(5)] for kind in ("pca", "linear")]
        ratio = np.divide(*codes)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)

    def test_the_angle_is_the_arc_cosine_of_the_least_singular_value(self) -> None:
        random = np.random.default_rng(0)
        a, b = random.standard_normal((2, 7, 3))
        least = np.linalg.svd(np.linalg.qr(a).Q.T @ np.linalg.qr(b).Q)[1].min()
        assert subspaces.angle_degrees(a, b) == pytest.approx(np.degrees(np.arccos(least)))


class TestClosedForms:
    def test_the_ring_has_the_radius_that_the_rayleigh_distribution_gives_it(self) -> None:
        z = np.random.default_rng(1).standard_normal((100_000, 2))
        mapped = ring.to_ring(z)
        np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1 + np.linalg.norm(z, axis=1) / 10)
        numbers = ring.ring().numbers
        assert np.linalg.norm(mapped, axis=1).mean() == pytest.approx(numbers["ring_radius_expected"], abs=1e-3)
        assert numbers["ring_radius"] == pytest.approx(numbers["ring_radius_expected"], abs=0.01)

    def test_both_gradients_are_right_and_one_is_far_noisier(self) -> None:
        numbers = kl.gradients().numbers
        assert numbers["gradients_path_mean"] == pytest.approx(2, abs=0.02)
        assert numbers["gradients_score_mean"] == pytest.approx(2, abs=0.06)
        assert numbers["gradients_path_variance"] == pytest.approx(4, rel=0.02)
        assert numbers["gradients_score_variance"] == pytest.approx(30, rel=0.06)


class TestMeasures:
    def test_psnr_is_that_of_a_known_error(self) -> None:
        images = np.full((3, 9, 9, 1), 100, np.uint8)
        assert measures.psnr_db(images, images + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
        assert measures.mean_absolute_error(images, images - np.uint8(7)) == 7

    def test_sharpness_is_the_energy_of_scipys_laplacian_and_blur_lowers_it(self) -> None:
        images = fashion_images()[:20, :, :, None]
        edges = np.stack([ndimage.laplace(image[:, :, 0].astype(float)) for image in images])
        assert measures.sharpness(images) == pytest.approx(np.square(edges[:, 1:-1, 1:-1]).mean())
        blurred = np.stack([ndimage.gaussian_filter(image, (1, 1, 0)) for image in images])
        assert measures.sharpness(blurred) < 0.5 * measures.sharpness(images)


@pytest.fixture(scope="module")
def judge() -> Judge:
    images, labels = fashion_images()[:2000, :, :, None], fashion_labels()[:2000].astype(np.int64)
    return Judge(Images(images, labels), epochs=4)


class TestJudge:
    def test_it_knows_the_classes_of_images_that_it_has_not_seen(self, judge: Judge) -> None:
        unseen, labels = fashion_images()[5000:6000, :, :, None], fashion_labels()[5000:6000].astype(np.int64)
        assert judge.agreement(unseen, labels) > 0.7
        np.testing.assert_allclose(judge.probabilities(unseen).sum(1), 1, atol=1e-5)

    def test_it_is_less_sure_of_two_images_at_once(self, judge: Judge) -> None:
        images = fashion_images()[5000:6000, :, :, None]
        blends = images.reshape(2, 500, 28, 28, 1).mean(0).astype(np.uint8)
        assert judge.confidence(blends) < judge.confidence(images)

    def test_the_distance_is_to_the_nearest_image_it_was_trained_on(self, judge: Judge) -> None:
        images = fashion_images()[:2000].reshape(2000, -1).astype(float)
        asked = fashion_images()[5000:5003]
        wanted = [np.sqrt(np.square(images - one.reshape(-1)).mean(1)).min() for one in asked]
        assert judge.distance(asked[..., None]) == pytest.approx(np.mean(wanted), rel=1e-4)
        assert judge.distance(fashion_images()[:5, :, :, None]) == pytest.approx(0, abs=1e-2)


def test_an_autoencoder_learns_a_few_images_by_heart() -> None:
    images = fashion_images()[:8, :, :, None]
    before, after = (overfit._through(overfit.memorise(images, steps), images)[0] for steps in (1, 120))
    assert measures.psnr_db(after, images) > measures.psnr_db(before, images) + 2


class TestFaces:
    """With clothes for faces: the shipped model, and trousers among shoes for glasses."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        rows = ["file,eyeglasses"]
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            chosen = np.concatenate([np.flatnonzero(fashion_labels() == label)[:150] for label in (1, 7)])
            for image, label in zip(fashion_images()[chosen], fashion_labels()[chosen], strict=True):
                Image.fromarray(image).save(tmp_path / "one.png")
                archive.write(tmp_path / "one.png", f"{len(rows)}.png")
                rows.append(f"{len(rows)}.png,{0.95 if label == 1 else 0.01}")
        (tmp_path / "attributes.csv").write_text("\n".join(rows))
        return tmp_path

    def model(self, folder: Path) -> Path:
        """As if it had been trained on these images."""
        model = folder / "fashion" / "1"
        shutil.copytree(ROOT / "models" / "fashion" / "1", model)
        about = json.loads((model / "manifest.json").read_text())
        about["provenance"]["data"] |= {"sha256": data.load(DataConfig(str(folder / "images.zip")), 0).digest}
        (model / "manifest.json").write_text(json.dumps(about))
        flags = ["--data", folder / "images.zip", "--table", folder / "attributes.csv", "--linear-only"]
        assert main(["attributes", str(model), *map(str, flags)]) == 0
        return model

    def glasses(self, folder: Path, model: Path) -> Chapter:
        read = faces.read(folder / "images.zip", model)
        return faces.glasses(*read, folder / "attributes.csv", folder / "work")

    def test_what_is_added_is_seen_more_with_each_step(self, folder: Path) -> None:
        chapter = self.glasses(folder, self.model(folder))
        numbers = chapter.numbers
        assert (numbers["faces_held_out_yes"], numbers["faces_held_out_no"]) == (14, 16)
        assert numbers["faces_judge_right"] > 0.9
        assert numbers["faces_added_0"] < 0.2
        assert numbers["faces_added_2"] > 0.8
        assert numbers["faces_removed_2"] > 0.8
        assert list(chapter.pictures) == ["glasses.png"]  # and the faces themselves elsewhere:
        assert [path.name for path in (folder / "work").iterdir()] == ["faces-with-glasses.png"]

    def test_a_model_without_the_direction_is_refused(self, folder: Path) -> None:
        with pytest.raises(DataError, match="no attribute eyeglasses, wanted it: run latentry attributes first"):
            self.glasses(folder, ROOT / "models" / "fashion" / "1")

    def test_other_faces_than_the_models_are_refused(self, folder: Path) -> None:
        model = self.model(folder)
        with zipfile.ZipFile(folder / "images.zip", "a") as archive:
            archive.write(folder / "one.png", "more.png")
        with pytest.raises(DataError, match="these are other images or labels than fashion was trained on"):
            self.glasses(folder, model)

    def test_one_of_the_two_flags_is_refused(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            command.main(["--faces", str(folder)])
        assert "--faces, --faces-model: got one of them" in capsys.readouterr().err


class TestWorkshop:
    def test_a_finished_run_is_kept_until_its_config_changes(self, tmp_path: Path) -> None:
        shop = Workshop(small_set(tmp_path), tmp_path / "runs")
        changes = {"model": {"latent_dim": 2, "hidden": [16]}}
        shop.train("one", changes, 2)
        log = tmp_path / "runs" / "one" / "log.jsonl"
        made = log.stat().st_mtime_ns
        shop.train("one", changes, 2)
        assert log.stat().st_mtime_ns == made
        assert shop.scores("one")["epoch"] == 2
        shop.train("one", {"model": {"latent_dim": 3, "hidden": [16]}}, 2)
        assert log.stat().st_mtime_ns != made
        assert shop.subject("one", {"model": {"latent_dim": 3, "hidden": [16]}}, 2).latent_dim == 3

    def test_a_share_of_the_epochs_is_one_at_least(self, tmp_path: Path) -> None:
        shop = Workshop(small_set(tmp_path), tmp_path / "runs", share=0.01)
        shop.train("one", {"model": {"latent_dim": 2, "hidden": [8]}}, 40)
        assert shop.scores("one")["epoch"] == 1


class TestCommand:
    def test_pictures_figures_and_page_are_written_and_other_figures_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "docs" / "gallery"
        out.mkdir(parents=True)
        wanted = {field for _, field, _, _ in string.Formatter().parse(page._TEMPLATE.read_text()) if field}
        (out / page.NUMBERS).write_text(json.dumps(dict.fromkeys(wanted, 7)))
        made = [("one", lambda: Chapter({"ring_radius": 1.125}, {"ring.png": b"picture"}))]
        monkeypatch.setattr(command, "chapters", lambda workshop, faces_folder: made)
        assert command.main(["--data", str(FASHION), "--out", str(out), "--work", str(tmp_path / "runs")]) == 0
        assert (out / "ring.png").read_bytes() == b"picture"
        text = (tmp_path / "docs" / "gallery.md").read_text()
        assert "radius 1.1250 (expected: 1 + √(π/2)/10 = 7.0000)" in text

    def test_a_page_that_lacks_a_figure_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, "chapters", lambda workshop, faces_folder: [])
        assert command.main(["--data", str(FASHION), "--out", str(tmp_path / "gallery")]) == 2
        assert "gallery: error: gallery: no figure five_larger_eigenvalue" in capsys.readouterr().err
        assert not (tmp_path / "gallery.md").exists()

    def test_damaged_figures_are_named(self, tmp_path: Path) -> None:
        (tmp_path / page.NUMBERS).write_text('{"a": ')
        with pytest.raises(RunError, match=r"numbers.json: cannot be read"):
            page.read_numbers(tmp_path)

    def test_absent_images_are_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["--data", str(tmp_path / "absent"), "--out", str(tmp_path), "--work", str(tmp_path)]) == 2
        assert "absent does not exist" in capsys.readouterr().err.splitlines()[-1]


class TestPage:
    def test_the_page_is_the_template_with_the_figures_of_the_last_run(self) -> None:
        assert (ROOT / "docs" / "gallery.md").read_text() == page.render(page.read_numbers(GALLERY))

    def test_every_picture_is_there_is_shown_and_is_small(self) -> None:
        shown = set(re.findall(r"\]\(gallery/([^)]+)\)", (ROOT / "docs" / "gallery.md").read_text()))
        assert shown == {path.name for path in GALLERY.iterdir()}
        assert sum(path.stat().st_size for path in GALLERY.iterdir()) < 3 << 20
        for name in shown - {page.NUMBERS}:
            with Image.open(GALLERY / name) as picture:
                picture.load()

    def test_the_page_shows_every_figure_that_was_measured_or_says_less_on_purpose(self) -> None:
        wanted = {field for _, field, _, _ in string.Formatter().parse(page._TEMPLATE.read_text()) if field}
        assert wanted <= set(page.read_numbers(GALLERY))

    def test_no_picture_is_of_faces(self) -> None:
        assert not [path.name for path in GALLERY.iterdir() if "face" in path.name]
