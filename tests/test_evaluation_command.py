"""`latentry evaluate` from the command line: what it measures, prints and writes, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gaussian_model
import linear_model
import numpy as np
import pytest
from gaussian_model import GaussianModel

from latentry import manifest
from training import data
from training.binarise import binarise
from training.config import DataConfig
from training.errors import ExportError
from training.evaluation import baselines, evaluate_command, graphs, measure, throughput
from training.evaluation.held_out import of_dataset
from training.evaluation.record import record

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"data": {"holdout": 0.4}, "run": {"seed": 3}}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds for good figures takes none here."""
    monkeypatch.setattr(throughput, "_SECONDS", 0.01)
    monkeypatch.setattr(baselines, "_STEPS", 20)


@pytest.fixture(scope="module")
def model() -> GaussianModel:
    return gaussian_model.make()


@pytest.fixture
def images(tmp_path: Path, model: GaussianModel) -> Path:
    """100 draws of the model with labels, of which 40 are held out."""
    path = tmp_path / "images.npz"
    np.savez(path, images=model.images(100), labels=np.arange(100) % 2)
    return path


@pytest.fixture
def folder(tmp_path: Path, model: GaussianModel, images: Path) -> Path:
    digest = data.load(DataConfig(path=str(images), holdout=0.4), 3).digest
    provenance = {"config": CONFIG, "data": {"sha256": digest, "split": "0.4 held out, drawn with seed 3"}}
    return gaussian_model.write(tmp_path / "models", model, provenance=provenance, evaluation={"elbo": -1.5})


def evaluate(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate_command.add_evaluate_arguments(parser)
    return evaluate_command.run_evaluate(parser.parse_args([str(argument) for argument in arguments]))


def figures(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["figures"])


class TestFigures:
    def test_they_are_of_the_held_out_images_and_near_the_closed_form(
        self, folder: Path, images: Path, tmp_path: Path, model: GaussianModel
    ) -> None:
        out = tmp_path / "out.json"
        assert evaluate(folder, "--data", images, "--quick", "--k", 1000, "--json", out) == 0
        held_out = data.load(DataConfig(path=str(images), holdout=0.4), 3).test.pixels
        measured = figures(out)
        assert measured["bound_k1000_images"] == len(held_out) == 40
        assert measured["bound_k1000"] == pytest.approx(model.log_p(held_out).mean(), abs=0.02)
        assert measured["elbo"] < measured["bound_k1000"]
        assert measured["elbo"] == pytest.approx(measured["reconstruction"] - measured["kl"])
        assert 1 <= measured["bound_k1000_effective_samples"] <= 1000

    def test_the_table_says_what_the_json_says(
        self, folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert evaluate(folder, "--data", images, "--quick", "--json", tmp_path / "out.json") == 0
        measured = figures(tmp_path / "out.json")
        out = capsys.readouterr().out
        for name in ("elbo", "psnr_db", "mutual_information"):
            assert f"{measured[name]:,.2f}" in next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert "binarize    none" in out

    def test_all_of_them_are_finite_and_repeat(self, folder: Path, images: Path, tmp_path: Path) -> None:
        for name in ("first.json", "second.json"):
            assert evaluate(folder, "--data", images, "--k", 5, "--json", tmp_path / name) == 0
        first, second = figures(tmp_path / "first.json"), figures(tmp_path / "second.json")
        timed = {name for name in first if "per_s" in name}
        assert {name: first[name] for name in first if name not in timed} == {
            name: second[name] for name in second if name not in timed
        }
        assert len(timed) == 6
        assert {"frechet_distance", "precision", "pca_psnr_db", "probe_accuracy", "ssim"} < set(first)
        assert np.isfinite(list(first.values())).all()

    def test_without_k_a_folder_has_a_bound_and_the_quick_set_none(
        self, folder: Path, images: Path, tmp_path: Path
    ) -> None:
        assert evaluate(folder, "--data", images, "--json", tmp_path / "out.json") == 0
        assert figures(tmp_path / "out.json")["bound_k100_images"] == 40
        assert evaluate(folder, "--data", images, "--quick", "--json", tmp_path / "out.json") == 0
        assert not [name for name in figures(tmp_path / "out.json") if name.startswith("bound")]

    def test_fewer_images_can_be_asked_for(self, folder: Path, images: Path, tmp_path: Path) -> None:
        arguments = ["--quick", "--images", 30, "--k", 3, "--k-images", 7, "--json", tmp_path / "out.json"]
        assert evaluate(folder, "--data", images, *arguments) == 0
        assert figures(tmp_path / "out.json")["images"] == 30
        assert figures(tmp_path / "out.json")["bound_k3_images"] == 7

    def test_images_without_labels_have_all_but_accuracies(
        self, folder: Path, tmp_path: Path, model: GaussianModel, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "bare.npz", images=model.images(100))
        assert evaluate(folder, "--data", tmp_path / "bare.npz", "--json", tmp_path / "out.json") == 0
        assert "no accuracies" in capsys.readouterr().out
        assert "frechet_distance" in figures(tmp_path / "out.json")
        assert "probe_accuracy" not in figures(tmp_path / "out.json")

    def test_one_held_out_image_has_figures_without_errors(
        self, folder: Path, tmp_path: Path, model: GaussianModel
    ) -> None:
        np.savez(tmp_path / "two.npz", images=model.images(2))
        assert evaluate(folder, "--data", tmp_path / "two.npz", "--k", 3, "--json", tmp_path / "out.json") == 0
        measured = figures(tmp_path / "out.json")
        assert measured["images"] == 1
        assert not [name for name in measured if name.endswith("_standard_error")]

    def test_nearly_constant_images_do_no_harm(self, folder: Path, tmp_path: Path) -> None:
        pixels = np.full((60, 8, 9, 1), 128, np.uint8)
        pixels[0, 0, 0, 0] = 129
        np.savez(tmp_path / "flat.npz", images=pixels, labels=np.zeros(60, np.int64))
        assert evaluate(folder, "--data", tmp_path / "flat.npz", "--k", 3) == 0


class TestBinary:
    @pytest.fixture
    def binary(self, tmp_path: Path) -> Path:
        return linear_model.write(tmp_path / "binary").folder

    @pytest.fixture
    def grey(self, tmp_path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (60, 12, 10, 1), np.uint8)
        np.savez(tmp_path / "grey.npz", images=pixels)
        return tmp_path / "grey.npz"

    def test_a_bernoulli_model_is_scored_on_the_one_draw(self, binary: Path, grey: Path, tmp_path: Path) -> None:
        assert evaluate(binary, "--data", grey, "--quick", "--json", tmp_path / "out.json") == 0
        assert json.loads((tmp_path / "out.json").read_text())["about"]["binarize"] == "dynamic"
        test = data.load(DataConfig(path=str(grey)), 0).test.pixels
        drawn = binarise(test, "dynamic")
        model = graphs.Graphs(manifest.read(binary).manifest, _files(binary), "cpu")
        mean, logvar = model.encode(drawn)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        assert figures(tmp_path / "out.json")["kl"] == pytest.approx(float(kl), rel=1e-5)

    def test_the_whole_set_is_drawn_before_the_first_images_are_taken(self, binary: Path, grey: Path) -> None:
        model = graphs.Graphs(manifest.read(binary).manifest, _files(binary), "cpu")
        pixels = data.load(DataConfig(path=str(grey), holdout=0.5), 0)
        few = measure.Subject(model, of_dataset(pixels, "test"), measure.Options(images=4))
        assert np.array_equal(few.scored.observed, binarise(pixels.test.pixels, "dynamic")[:4])
        assert np.array_equal(few.pixels, pixels.test.pixels[:4])

    def test_grey_images_as_they_are_have_no_bernoulli_likelihood(
        self, binary: Path, grey: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert evaluate(binary, "--data", grey, "--binarize", "none") == 2
        assert "got grey pixels" in capsys.readouterr().err


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestRecord:
    def test_figures_are_written_into_the_manifest_and_the_card(self, folder: Path, images: Path) -> None:
        (folder / "notes.txt").write_text("mine")
        for k in (3, 4):
            assert evaluate(folder, "--data", images, "--quick", "--k", k, "--record") == 0
        recorded = manifest.read(folder).manifest.evaluation
        assert {"bound_k3", "bound_k4", "bound_k4_standard_error", "bound_k4_images", "ssim"} < set(recorded)
        assert recorded["elbo"] == -1.5  # the export's
        assert (folder / "notes.txt").read_text() == "mine"

    def test_the_cards_section_is_replaced_and_the_rest_stays(self, folder: Path, images: Path) -> None:
        card = "# linear\n\n## Figures\n\nsome\n\n## Use\n\nthus\n"
        (folder / "README.md").write_text(card)
        about = manifest.read(folder).manifest
        files = {**about.files, "README.md": manifest.sha256(card.encode())}
        (folder / "manifest.json").write_text(replace(about, files=files).to_json())
        for k in (3, 4):
            assert evaluate(folder, "--data", images, "--quick", "--k", k, "--record") == 0
        text = (folder / "README.md").read_text()
        bound = manifest.read(folder).manifest.evaluation["bound_k4"]
        assert text.count("## Measured from the graphs") == 1
        assert text.startswith("# linear\n\n## Figures\n\nsome\n\n## Measured")
        assert text.endswith("\n\n## Use\n\nthus\n")
        assert f"| bound_k4 | {bound:.2f} ± " in text
        assert "| bound_k3 |" in text

    @pytest.mark.parametrize("part", [["--images", "5"], ["--part", "train"]], ids=lambda flags: flags[0])
    def test_figures_of_some_images_are_not_recorded(
        self, folder: Path, images: Path, part: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (folder / "manifest.json").read_bytes()
        assert evaluate(folder, "--data", images, "--quick", "--record", *part) == 2
        assert "wanted all test images" in capsys.readouterr().err
        assert (folder / "manifest.json").read_bytes() == before

    def test_a_folder_behind_a_link_is_left_alone(self, folder: Path, images: Path, tmp_path: Path) -> None:
        link = tmp_path / "linked" / folder.parent.name / folder.name
        link.parent.mkdir(parents=True)
        link.symlink_to(folder)
        before = (folder / "manifest.json").read_bytes()
        assert evaluate(link, "--data", images, "--quick", "--record") == 2
        assert link.is_symlink()
        assert (folder / "manifest.json").read_bytes() == before

    def test_a_model_that_was_replaced_meanwhile_is_left_alone(self, folder: Path, model: GaussianModel) -> None:
        before = _files(folder)
        other = replace(model.manifest, files={**model.manifest.files, "decoder.onnx": "0" * 64})
        with pytest.raises(ExportError, match=r"decoder\.onnx is another than was measured"):
            record(folder, other, {}, {"ssim": 1.0})
        assert _files(folder) == before

    def test_stopped_nothing_is_written(
        self, folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = _files(folder)

        def stop(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(measure, "_latents", stop)
        arguments = ["--quick", "--record", "--json", tmp_path / "out.json", "--save-images", tmp_path / "saved.npz"]
        assert evaluate(folder, "--data", images, *arguments) == 130
        assert _files(folder) == before
        assert not (tmp_path / "out.json").exists()
        assert not (tmp_path / "saved.npz").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--k", "0"], "--k: got 0, wanted a whole number from 1"),
            (["--k", "-5"], "--k: got -5"),
            (["--images", "0"], "--images: got 0"),
            (["--k-images", "0"], "--k-images: got 0"),
            (["--json", "/nowhere/x.json"], "--json: got /nowhere/x.json, wanted a file in a folder that is there"),
            (["--record", "--seed", "3"], "--record: got --seed 3; wanted all test images"),
            (["--seed", "-1"], "--seed: got -1"),
            (["--binarize", "dynamic"], "--binarize: got dynamic, but the model is of grey values (gaussian)"),
            (["--part", "validation"], "--part: got validation, but images.npz has no such images"),
            (["--data", "absent.npz"], "absent.npz does not exist"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_flags(
        self, folder: Path, images: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert evaluate(folder, "--data", images, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("latentry: error: ")
        assert message in line

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (np.arange(900).astype(np.uint8).reshape(9, 10, 10), "of shape [10, 10, 1], wanted [8, 9, 1]"),
            (np.full((9, 8, 9), np.nan), "648 NaN or infinite values"),
            (np.zeros((1, 8, 9), np.uint8), "got 1, wanted at least 2"),
        ],
        ids=["shape", "nan", "one"],
    )
    def test_images(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: np.ndarray, message: str
    ) -> None:
        np.savez(tmp_path / "bad.npz", images=pixels)
        assert evaluate(folder, "--data", tmp_path / "bad.npz") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: (folder / "decoder.onnx").unlink(), "decoder.onnx: No such file"),
            (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
            (lambda folder: (folder / "encoder.onnx").write_bytes(b"no graph"), "SHA-256"),
            (lambda folder: (folder / "manifest.json").unlink(), "nor a model: it has no manifest.json"),
        ],
        ids=["no graph", "manifest", "digest", "nothing"],
    )
    def test_folders(
        self,
        folder: Path,
        images: Path,
        capsys: pytest.CaptureFixture[str],
        damage: Callable[[Path], object],
        message: str,
    ) -> None:
        damage(folder)
        assert evaluate(folder, "--data", images) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

    def test_a_graph_that_is_none_though_its_digest_is_right(
        self, folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "decoder.onnx").write_bytes(b"no graph")
        about = manifest.parse((folder / "manifest.json").read_text())
        files = {**about.files, "decoder.onnx": manifest.sha256(b"no graph")}
        (folder / "manifest.json").write_text(replace(about, files=files).to_json())
        assert evaluate(folder, "--data", images) == 2
        assert "decoder.onnx: ONNX Runtime cannot load it" in capsys.readouterr().err

    def test_other_images_are_scored_with_a_warning(
        self, folder: Path, tmp_path: Path, model: GaussianModel, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "other.npz", images=model.images(50, seed=9))
        assert evaluate(folder, "--data", tmp_path / "other.npz", "--quick") == 0
        assert "these are other images or labels than linear was trained on" in capsys.readouterr().err

    def test_its_own_images_are_scored_without(
        self, folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert evaluate(folder, "--data", images, "--quick") == 0
        assert capsys.readouterr().err == ""

    def test_a_folder_needs_images(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate(folder) == 2
        assert "--data: got nothing" in capsys.readouterr().err


def test_the_shipped_model_scores_as_its_manifest_says(tmp_path: Path) -> None:
    """All 10,000 test images from the graphs alone; the one sample for each leaves some tenths of a nat to chance."""
    arguments = ["--data", ROOT / "data" / "fashion-mnist", "--quick", "--json", tmp_path / "out.json"]
    assert evaluate(ROOT / "models" / "fashion" / "1", *arguments) == 0
    recorded = manifest.read(ROOT / "models" / "fashion" / "1").manifest.evaluation
    measured = figures(tmp_path / "out.json")
    assert measured["images"] == 10_000
    assert measured["elbo"] == pytest.approx(recorded["elbo"], abs=0.5)
    assert measured["kl"] == pytest.approx(recorded["kl"], abs=0.01)
    assert measured["psnr_db"] == pytest.approx(recorded["psnr_db"], abs=0.001)
    assert measured["active_units"] == recorded["active_units"]


def test_help_comes_without_torch() -> None:
    code = (
        "import sys, training.evaluation.evaluate_command; print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "False False\n"
