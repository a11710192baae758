"""The commands train, evaluate and export, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import ONE_THREAD, fashion_images, small_run, small_set

from latentry import cli, manifest
from training import config_file
from training.config import Config
from training.errors import ConfigError


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments)])


class TestConfig:
    @pytest.mark.parametrize("preset", config_file.presets())
    def test_presets_survive_being_written_and_read(self, preset: str) -> None:
        config = config_file.read_preset(preset)
        assert config_file.parse(config_file.to_toml(config), "text") == config

    def test_what_is_none_is_left_out_and_stays_none(self) -> None:
        text = config_file.to_toml(Config())
        assert "image_size" not in text
        assert config_file.parse(text, "text") == Config()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[model]\nlatent_dims = 3", r"unknown key in \[model\]: latent_dims; did you mean latent_dim\?"),
            ("[modle]\nlatent_dim = 3", r"unknown section: modle; did you mean model\?"),
            ("[model]\nzzz = 3", r"unknown key in \[model\]: zzz; known: kind, latent_dim"),
            ("[run]\nseed = 'a'", "run.seed: got 'a', wanted a whole number"),
            ("[run]\nepochs = true", "run.epochs: got True, wanted a whole number"),
            ("[run]\nepochs = 0", "run.epochs: got 0, wanted 1 to"),
            ("[objective]\nbeta = nan", "objective.beta: got nan, wanted 0 to 1000000.0"),
            (
                "[objective]\nlikelihood = 'gausian'",
                "objective.likelihood: got gausian, .*did you mean gaussian",
            ),
            ("[data]\nimage_size = [28]", "data.image_size: got .28., wanted a list of 2 whole numbers"),
            ("[data]\nimage_size = [28, 7]", "data.image_size: got 7, wanted 8 to 4096"),
            ("[data]\nchannels = 2", "data.channels: got 2, wanted 1 or 3"),
            ("[model]\nhidden = 3", "model.hidden: got 3, wanted a list of whole numbers"),
            (
                "[objective]\nvariance = 2.0",
                "objective.variance: got 2.0 with gaussian, wanted .* gaussian-fixed",
            ),
            ("[prior]\ncomponents = 9", "prior.components: got 9 with prior.fit none, wanted fit mixture or best"),
            ("run = 3", r"run: got 3, wanted a section \[run\]"),
            ("[run", "not TOML"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=f"my.toml: {message}"):
            config_file.parse(text, "my.toml")

    def test_an_unknown_preset_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"got fashon, wanted one of .*; did you mean fashion\?"):
            config_file.read_preset("fashon")


class TestTrain:
    def test_flags_override_the_preset_and_are_recorded(self, tmp_path: Path) -> None:
        images, out = small_set(tmp_path, 100), tmp_path / "run"
        arguments = ["--preset", "tiny", "--data", images, "--image-size", "16x12", "--channels", 3, "--seed", 5]
        assert run("train", *arguments, "--latent-dim", 3, "--beta", 0.5, "--out", out) == 0
        config = config_file.read(out / "config.toml")
        assert config.data.image_size == (16, 12)
        assert (config.data.channels, config.run.seed) == (3, 5)
        assert (config.model.latent_dim, config.objective.beta) == (3, 0.5)
        assert config.model.width == config_file.read_preset("tiny").model.width

    def test_resuming_with_another_value_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("train", "--out", small_run(), "--resume", "--latent-dim", 8) == 2
        assert "model.latent_dim: got 8, wanted 4: a run resumes as it was begun" in capsys.readouterr().err

    def test_resuming_with_the_same_command_goes_on(self, tmp_path: Path) -> None:
        arguments = ["train", "--preset", "tiny", "--data", small_set(tmp_path), "--out", tmp_path / "run"]
        assert run(*arguments) == 0
        assert run(*arguments, "--resume") == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--preset", "tiny"], "wanted --data PATH"),
            (["--preset", "tinny", "--data", "."], "did you mean tiny?"),
            (["--config", "absent.toml"], "absent.toml: cannot read the config"),
            (["--config", "a.toml", "--preset", "tiny"], "wanted one of the two"),
            (["--resume"], "holds no run"),
            (["--data", "absent"], "absent does not exist"),
            (["--epochs", "0"], "run.epochs: got 0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes_are_one_line_and_status_2(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("train", *arguments, "--out", "run") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("latentry: error: ")
        assert message in line

    def test_unreadable_files_are_named_in_the_output(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        from PIL import Image

        (tmp_path / "images").mkdir()
        for index, image in enumerate(fashion_images()[:40]):
            Image.fromarray(image).save(tmp_path / "images" / f"{index:02d}.png")
        (tmp_path / "images" / "05.png").write_bytes(b"no picture")
        arguments = ["--preset", "tiny", "--data", tmp_path / "images", "--out", tmp_path / "run"]
        assert run("train", *arguments) == 0
        assert "left out 1 unreadable files: 05.png: " in capsys.readouterr().err

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_stopped_it_says_how_to_go_on(self, tmp_path: Path, stop: signal.Signals) -> None:
        out = tmp_path / "run"
        arguments = ["--preset", "tiny", "--data", str(small_set(tmp_path)), "--epochs", "500", "--out", str(out)]
        whole = [sys.executable, "-m", "latentry", "train", *arguments]
        with subprocess.Popen(whole, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
            while not (out / "log.jsonl").exists() or '"step": 6,' not in (out / "log.jsonl").read_text():
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, stop)
            error = process.stderr.read() if process.stderr else ""
        assert process.returncode == 130
        assert f"To go on: latentry train --out {out} --resume" in error
        assert "Traceback" not in error

    def test_more_cycles_of_beta_than_steps_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--preset", "tiny", "--data", small_set(tmp_path, 100), "--epochs", 1, "--beta-cycles", 9]
        assert run("train", *arguments, "--out", tmp_path / "run") == 2
        assert "objective.beta_cycles: got 9, wanted at most " in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


class TestResume:
    def test_images_that_are_not_the_runs_change_nothing(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        before = (small_run() / "config.toml").read_bytes()
        np.savez(tmp_path / "other.npz", images=fashion_images()[500:800])
        for path, said in ((tmp_path / "nowhere.npz", "does not exist"), (tmp_path / "other.npz", "other images")):
            assert run("train", "--out", small_run(), "--resume", "--data", path) == 2
            assert said in capsys.readouterr().err
            assert (small_run() / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cache", ""], "--cache: got ''"),
        (["--perceptual", "laplacian"], "wanted a perceptual_weight above 0 too"),
        (["--model", "autoencoder", "--beta", "4"], "wanted 1.0 for model.kind autoencoder"),
        (["--model", "pca", "--samples", "5"], "wanted 1 for model.kind pca"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert run("train", "--data", small_set(tmp_path), "--out", tmp_path / "run", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class TestEvaluateAndExport:
    def test_evaluate_prints_and_keeps_the_figures_and_saves_the_held_out_images(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert run("evaluate", small_run(), "--save-images", tmp_path / "held_out.npz") == 0
        kept = json.loads((small_run() / "evaluation.json").read_text())
        assert f"{kept['elbo']:.2f}" in capsys.readouterr().out
        assert kept["step"] == 16
        assert kept["images"] == 30
        with np.load(tmp_path / "held_out.npz") as arrays:
            assert arrays["images"].shape == (30, 28, 28, 1)
            assert arrays["labels"].shape == (30,)
            held_out = {image.tobytes() for image in arrays["images"]}
        assert held_out < {image.tobytes() for image in fashion_images()[:300]}

    def test_export_writes_a_model_folder(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert run("export", small_run(), "--to", tmp_path / "small" / "2") == 0
        assert manifest.read(tmp_path / "small" / "2").manifest.version == 2
        assert "encoder_relative" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [["evaluate"], ["export", "--to", "m/1"]], ids=lambda value: value[0])
    def test_a_folder_without_a_run_is_refused(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: list[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(*arguments, "nowhere") == 2
        assert "nowhere holds no run: it has no config.toml" in capsys.readouterr().err

    def test_other_images_are_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", images=fashion_images()[500:800])
        assert run("evaluate", small_run(), "--data", tmp_path / "other.npz") == 2
        assert "other.npz: these are other images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["init", "train", "evaluate", "draw", "attributes", "export"])
def test_help_teaches_with_an_example_and_without_torch(name: str) -> None:
    code = f"""
import atexit, sys
from latentry import cli
atexit.register(lambda: print("torch:", "torch" in sys.modules))
cli.main(["{name}", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"latentry {name} " in done.stdout
    assert "example" in done.stdout
    assert done.stdout.endswith("torch: False\n")
