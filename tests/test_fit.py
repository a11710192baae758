"""The loop: it learns, it survives what goes wrong, and a killed run repeats the numbers of an unbroken one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fixtures import ONE_THREAD, fashion_images, small_run, small_set, tiny

from training import batches, checkpoint, data, fit, state, step, trained
from training.config import Config
from training.errors import CheckpointError, ConfigError, DataError, RunError
from training.events import EventLog
from training.step import train_step

# `latentry`, without the curves that `undrawn` leaves out too.
_UNDRAWN = """
import sys
from training import figures
figures.write_training_curve = lambda log, path: None
from latentry.cli import main
sys.exit(main())
"""
STEPS_PER_EPOCH = 8  # 270 images to train on, in batches of 32


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return small_set(tmp_path)


@pytest.fixture
def finished() -> Path:
    return small_run()


def log(run: Path, *, timed: bool = False) -> list[dict[str, Any]]:
    """The run's events; without `timed`, but for the one figure that depends on the clock."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if timed or k != "images_per_s"} for event in events]


def final(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints", pytest.fail)


def tensors(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in items for name, leaf in tensors(item, f"{path}/{key}").items()}
    return {path: value}


def assert_same_run(got: Path, wanted: Path) -> None:
    """The same log and the same final checkpoint, bit for bit."""
    assert log(got) == log(wanted)
    assert_same_leaves(tensors(final(got)), tensors(final(wanted)))


def assert_same_leaves(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, leaf in wanted.items():
        if name in ("/log_bytes", "/config/data/path"):  # the digits of images_per_s differ
            continue
        same = torch.equal(got[name], leaf) if isinstance(leaf, torch.Tensor) else got[name] == leaf
        assert same, name


def clipped(config: Config, norm: float) -> Config:
    return replace(config, optimiser=replace(config.optimiser, clip_norm=norm))


class TestLearning:
    @pytest.mark.usefixtures("undrawn")
    def test_the_held_out_elbo_rises(self, images: Path, tmp_path: Path) -> None:
        fit.fit(tiny(images, epochs=12), tmp_path / "run", resume=False)
        epochs = [event for event in log(tmp_path / "run") if event["event"] == "epoch"]
        assert epochs[-1]["elbo"] > epochs[0]["elbo"] + 100

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize(
        ("kind", "objective"),
        [
            ("dense", {"likelihood": "laplace", "estimator": "stl"}),
            ("conv", {"likelihood": "bernoulli", "prior": "flow", "samples": 2, "estimator": "dreg"}),
            ("plain", {"likelihood": "gaussian-predicted", "perceptual": "laplacian", "perceptual_weight": 1.0}),
            ("dense-norm", {"likelihood": "discretised-logistic", "free_bits": 0.1, "beta_cycles": 2}),
            ("denoising", {"likelihood": "continuous-bernoulli"}),
        ],
    )
    def test_models_and_objectives_train(
        self, images: Path, tmp_path: Path, kind: str, objective: dict[str, Any]
    ) -> None:
        config = tiny(images, epochs=6)
        config = replace(
            config,
            model=replace(config.model, kind=kind),
            objective=replace(config.objective, **objective),
            optimiser=replace(config.optimiser, learning_rate=3e-3),
        )
        fit.fit(config, tmp_path / "run", resume=False)
        steps = [event["reconstruction"] for event in log(tmp_path / "run") if event["event"] == "step"]
        assert np.mean(steps[-5:]) > np.mean(steps[:5]) + 20

    @pytest.mark.usefixtures("undrawn")
    def test_pca_is_solved_and_then_like_any_other_run(self, images: Path, tmp_path: Path) -> None:
        config = tiny(images)
        config = replace(config, model=replace(config.model, kind="pca"))
        fit.fit(config, tmp_path / "run", resume=False)
        found = trained.load(tmp_path / "run")
        assert found.step == 1
        pixels = found.dataset.train.pixels.reshape(270, -1) / 255
        leading = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)[2][:4]
        learnt = np.linalg.qr(found.model.decoder.layer.weight.numpy()).Q
        assert np.linalg.svd(leading @ learnt)[1].min() > 0.9999, "the same subspace"

    def test_a_conditional_model_needs_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "unlabelled.npz", images=fashion_images()[:50])
        config = tiny(tmp_path / "unlabelled.npz")
        with pytest.raises(DataError, match="got no labels"):
            fit.fit(replace(config, model=replace(config.model, conditional=True)), tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()

    def test_a_prior_that_cannot_be_fitted_is_refused_before_training(self, images: Path, tmp_path: Path) -> None:
        config = tiny(images)  # 270 images to train on, of which every tenth is scored
        config = replace(
            config, model=replace(config.model, latent_dim=250), prior=replace(config.prior, fit="mixture")
        )
        with pytest.raises(ConfigError, match="got mixture for 243 images"):
            fit.fit(config, tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"kind": "pca", "latent_dim": 300}, "latent_dim: got 300, wanted at most 269"),
            ({"kind": "dense", "latent_dim": 800}, "latent_dim: got 800, wanted at most 784"),
        ],
    )
    def test_more_latents_than_the_images_can_tell_are_refused(
        self, images: Path, tmp_path: Path, changed: dict[str, Any], said: str
    ) -> None:
        config = tiny(images)
        with pytest.raises(ConfigError, match=said):
            fit.fit(replace(config, model=replace(config.model, **changed)), tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()

    @pytest.mark.usefixtures("undrawn")
    def test_bf16_learns_what_fp32_learns(self, images: Path, tmp_path: Path) -> None:
        curves = {}
        for precision in ("fp32", "bf16"):
            config = tiny(images, epochs=2)
            config = replace(config, run=replace(config.run, precision=precision))
            fit.fit(config, tmp_path / precision, resume=False)
            curves[precision] = [event["elbo"] for event in log(tmp_path / precision) if event["event"] == "step"]
        np.testing.assert_allclose(curves["bf16"], curves["fp32"], atol=10)
        assert curves["bf16"] != curves["fp32"]

    @pytest.mark.usefixtures("undrawn")
    def test_two_images_are_enough(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "two.npz", images=fashion_images()[:2])
        fit.fit(tiny(tmp_path / "two.npz", epochs=2), tmp_path / "run", resume=False)
        assert final(tmp_path / "run")["step"] == 2


class TestRunFolder:
    def test_the_log_has_each_step_once_with_all_its_figures(self, finished: Path) -> None:
        steps = [event for event in log(finished, timed=True) if event["event"] == "step"]
        assert [event["step"] for event in steps] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
        for event in steps:
            assert event["elbo"] == pytest.approx(event["reconstruction"] - event["kl"], abs=1e-2)
            assert event["images_per_s"] > 0
            assert event["skipped_steps"] == 0

    def test_tensorboard_has_scalars_and_images(self, finished: Path) -> None:
        events = EventAccumulator(str(finished / "tensorboard")).Reload()
        assert {"training/elbo", "held_out/elbo", "held_out/kl"} <= set(events.Tags()["scalars"])
        assert set(events.Tags()["images"]) == {"reconstructions", "samples"}
        assert [event.step for event in events.Scalars("held_out/elbo")] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]

    def test_figures_are_drawn(self, finished: Path) -> None:
        figures = sorted(path.name for path in (finished / "figures").iterdir())
        assert figures == ["reconstructions.png", "samples.png", "training.png"]

    def test_one_that_holds_a_run_is_refused(self, images: Path, finished: Path) -> None:
        before = log(finished, timed=True)
        with pytest.raises(RunError, match="holds a run already: add --resume"):
            fit.fit(tiny(images), finished, resume=False)
        assert log(finished, timed=True) == before

    def test_bad_data_makes_no_run_folder(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "one.npz", images=fashion_images()[:1])
        with pytest.raises(DataError, match="got 1, wanted at least 2"):
            fit.fit(tiny(tmp_path / "one.npz"), tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()


class TestStep:
    @pytest.fixture
    def training(self, images: Path) -> state.TrainingState:
        config = tiny(images)
        return state.initial(config, data.load(config.data, 0))

    def x(self, n: int = 32) -> torch.Tensor:
        return batches.to_tensor(fashion_images()[:n, ..., np.newaxis].copy(), torch.device("cpu"))

    def step(self, training: state.TrainingState, x: torch.Tensor) -> dict[str, float]:
        return train_step(training, x, None, beta=1.0, learning_rate=1e-3)

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_one_that_is_not_finite_changes_nothing_but_the_count(
        self, training: state.TrainingState, poison: float
    ) -> None:
        self.step(training, self.x())
        before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
        average = {name: tensor.clone() for name, tensor in training.average.model.state_dict().items()}
        x = self.x()
        x[0, 0, 0, 0] = poison
        result = self.step(training, x)
        assert result["skipped_steps"] == training.skipped == 1
        assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())
        assert all(torch.equal(tensor, average[name]) for name, tensor in training.average.model.state_dict().items())
        assert training.skipped_in_a_row == 1
        assert self.step(training, self.x())["skipped_steps"] == 1
        assert training.skipped_in_a_row == 0
        assert training.step == 3

    def test_a_run_goes_on_past_a_step_that_is_not_finite_and_says_so(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = batches.to_tensor
        calls = iter(range(1000))

        def poisoned(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
            x = whole(pixels, device)
            return x * float("nan") if next(calls) == 2 else x

        monkeypatch.setattr(batches, "to_tensor", poisoned)
        fit.fit(tiny(images, epochs=1), tmp_path / "run", resume=False)
        lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        assert [line["step"] for line in steps if line["elbo"] is None] == [3]
        assert steps[-1]["skipped_steps"] == 1
        assert (tmp_path / "run" / "figures" / "training.png").exists()
        assert "1 of 8 steps were skipped" in capsys.readouterr().err

    @pytest.mark.usefixtures("undrawn")
    def test_a_run_that_learnt_nothing_does_not_end_well(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step, "_clip_gradients", lambda training, limit: float("nan"))
        with pytest.raises(RunError, match="all 8 steps were skipped"):
            fit.fit(tiny(images, epochs=1), tmp_path / "run", resume=False)

    def test_beta_weighs_the_kl_in_what_is_minimised(self, images: Path) -> None:
        config = clipped(tiny(images), 1e9)
        gradients = {}
        for beta in (0.0, 1.0):
            training = state.initial(config, data.load(config.data, 0))
            train_step(training, self.x(), None, beta=beta, learning_rate=0.0)
            gradients[beta] = [p.grad.clone() for p in training.model.encoder.parameters() if p.grad is not None]
        assert any(not torch.equal(a, b) for a, b in zip(gradients[0.0], gradients[1.0], strict=True))

    def test_a_long_gradient_is_shortened(self, images: Path) -> None:
        config = clipped(tiny(images), 0.5)
        training = state.initial(config, data.load(config.data, 0))
        norm = train_step(training, self.x(), None, beta=1.0, learning_rate=0.0)["gradient_norm"]
        assert norm > 0.5
        squares = [p.grad.square().sum() for p in training.model.parameters() if p.grad is not None]
        assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.5, rel=1e-3)

    def test_a_diverged_run_stops(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fit, "_MAX_SKIPPED_IN_A_ROW", 10)
        monkeypatch.setattr(step, "_clip_gradients", lambda training, limit: float("nan"))
        with pytest.raises(RunError, match="10 steps in a row were not finite"):
            fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=False)

    def test_weights_decay_but_norms_and_biases_do_not(self, training: state.TrainingState) -> None:
        for group in training.optimiser.param_groups:
            decays = group["weight_decay"] > 0
            assert all((parameter.ndim > 1) == decays for parameter in group["params"])

    def test_the_average_follows_the_weights(self, training: state.TrainingState) -> None:
        start = [parameter.clone() for parameter in training.model.parameters()]
        self.step(training, self.x())
        decay = 1 / 10  # of the first step
        for old, new, average in zip(
            start, training.model.parameters(), training.average.model.parameters(), strict=True
        ):
            torch.testing.assert_close(average.data, decay * old.data + (1 - decay) * new.data)

    def test_each_epoch_sees_every_image_once_in_its_own_order(self) -> None:
        first, second = batches.epoch_order(50, 7, 0), batches.epoch_order(50, 7, 1)
        assert sorted(first) == sorted(second) == list(range(50))
        assert first.tolist() != second.tolist()
        assert first.tolist() == batches.epoch_order(50, 7, 0).tolist()


@pytest.mark.usefixtures("undrawn")
class TestResume:
    def test_killed_runs_repeat_the_unbroken_run_bit_for_bit(self, images: Path, tmp_path: Path) -> None:
        """Weights, their average, schedules, the order, all noise with that of dropout, and the prior fitted last."""
        config = tiny(images, epochs=6)
        config = replace(
            config,
            model=replace(config.model, kind="dense-norm", conditional=True),
            objective=replace(config.objective, beta_cycles=2, samples=2),
            prior=replace(config.prior, fit="mixture", components=3),
            run=replace(config.run, snapshots=True),
        )
        fit.fit(config, tmp_path / "unbroken", resume=False)
        moment = random.Random()  # noqa: S311 - any moment will do
        self._train_and_kill(tmp_path / "killed", images, moment.randint(1, 20), moment.uniform(0, 0.05))
        self._train_and_kill(tmp_path / "killed", images, moment.randint(21, 40), moment.uniform(0, 0.05))
        fit.fit(config, tmp_path / "killed", resume=True)
        assert_same_run(tmp_path / "killed", tmp_path / "unbroken")
        for name in ("prior.ckpt", *(f"snapshots/epoch-0000{epoch}.pt" for epoch in (1, 2, 3, 4, 6))):
            assert_same_leaves(*(tensors(checkpoint.read(tmp_path / run / name)) for run in ("killed", "unbroken")))

    def _train_and_kill(self, run: Path, images: Path, step: int, delay_s: float) -> None:
        """Train in a process of its own until the log has `step` steps and `delay_s` has gone by; then kill -9."""
        command = [sys.executable, "-c", _UNDRAWN, "train", "--preset", "tiny", "--data", str(images)]
        command += ["--device", "cpu", "--epochs", "6", "--out", str(run), *(["--resume"] if run.exists() else [])]
        command += ["--model", "dense-norm", "--conditional", "--beta-cycles", "2", "--samples", "2"]
        command += ["--fit-prior", "mixture", "--components", "3", "--snapshots"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ONE_THREAD) as process:
            while not (run / "log.jsonl").exists() or f'"step": {step},' not in (run / "log.jsonl").read_text():
                assert process.poll() is None, f"finished before step {step}"
                time.sleep(0.002)
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL

    def test_from_a_checkpoint_cut_short_it_falls_back_and_says_so(
        self, images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=False)
        newest = tmp_path / "run" / "checkpoints" / "step-000000016.ckpt"
        newest.write_bytes(newest.read_bytes()[:1000])
        fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=True)
        assert "step-000000016.ckpt: cut short or damaged" in capsys.readouterr().err
        assert_same_run(tmp_path / "run", finished)

    def test_after_a_full_disk_it_goes_on_from_the_last_good_checkpoint(
        self, images: Path, finished: Path, tmp_path: Path
    ) -> None:
        checkpoints = tmp_path / "run" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / ".step-000000010.ckpt.partial").symlink_to("/dev/full")
        with pytest.raises(RunError, match="No space left on device; what was there before is intact"):
            fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=False)
        assert final(tmp_path / "run")["step"] == STEPS_PER_EPOCH
        fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", finished)

    @pytest.mark.parametrize("full", ["snapshots/.epoch-00001.pt.partial", ".prior.ckpt.partial"])
    def test_after_a_full_disk_snapshots_and_priors_are_made_up_for(
        self, images: Path, tmp_path: Path, full: str
    ) -> None:
        config = tiny(images, epochs=1)
        prior = replace(config.prior, fit="mixture", components=2)
        config = replace(config, prior=prior, run=replace(config.run, snapshots=True))
        (tmp_path / "run" / "snapshots").mkdir(parents=True)
        (tmp_path / "run" / full).symlink_to("/dev/full")
        with pytest.raises(RunError, match="No space left on device; what was there before is intact"):
            fit.fit(config, tmp_path / "run", resume=False)
        fit.fit(config, tmp_path / "run", resume=True)
        assert checkpoint.read(tmp_path / "run" / "snapshots" / "epoch-00001.pt")["epoch"] == 1
        assert checkpoint.read(tmp_path / "run" / "prior.ckpt")["step"] == STEPS_PER_EPOCH

    def test_pictures_that_a_full_disk_does_not_take_are_said_and_lose_nothing(
        self, images: Path, finished: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "run" / "figures").mkdir(parents=True)
        (tmp_path / "run" / "figures" / "samples.png").symlink_to("/dev/full")
        with pytest.raises(RunError, match="figures: cannot be written: No space left on device"):
            fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=False)
        (tmp_path / "run" / "figures" / "samples.png").unlink()
        fit.fit(tiny(images, epochs=2), tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", finished)

    def test_a_log_on_a_full_disk_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        full = EventLog(tmp_path / "log.jsonl")
        with pytest.raises(RunError, match=r"log.jsonl: cannot be written: No space left on device"):
            full.write("step", {"step": 1})
        with pytest.raises(RunError):  # the line is still in the buffer
            full.close()

    def test_one_killed_before_its_first_checkpoint_begins_again(
        self, images: Path, finished: Path, tmp_path: Path
    ) -> None:
        config = tiny(images, epochs=2)
        fit.run.create(tmp_path / "run", config)
        fit.fit(config, tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", finished)

    def test_a_config_that_was_changed_is_refused(self, finished: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(finished, tmp_path / "run")
        text = (folder / "config.toml").read_text()
        (folder / "config.toml").write_text(text.replace("latent_dim = 4", "latent_dim = 5"))
        with pytest.raises(CheckpointError, match=r"model\.latent_dim: got 5, the run was trained with 4"):
            trained.load(folder)

    def test_a_run_without_its_config_is_not_overwritten(self, images: Path, finished: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(finished, tmp_path / "run")
        (folder / "config.toml").unlink()
        with pytest.raises(RunError, match="holds what is left of a run"):
            fit.fit(tiny(images), folder, resume=False)

    def test_other_images_are_refused(self, images: Path, finished: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", images=fashion_images()[1000:1300])
        with pytest.raises(CheckpointError, match=r"other.npz: these are other images or labels than the run was"):
            fit.fit(tiny(tmp_path / "other.npz", epochs=2), finished, resume=True)

    def test_other_labels_are_refused_of_a_conditional_model(self, images: Path, tmp_path: Path) -> None:
        config = tiny(images, epochs=1)
        config = replace(config, model=replace(config.model, kind="dense", conditional=True))
        fit.fit(config, tmp_path / "run", resume=False)
        fit.fit(config, tmp_path / "run", resume=True)
        with np.load(images) as arrays:
            np.savez(tmp_path / "other.npz", images=arrays["images"], labels=np.roll(arrays["labels"], 7))
        other = replace(config, data=replace(config.data, path=str(tmp_path / "other.npz")))
        with pytest.raises(CheckpointError, match=r"other.npz: these are other images or labels than the run was"):
            fit.fit(other, tmp_path / "run", resume=True)

    def test_a_finished_run_stays_as_it_is(self, images: Path, finished: Path) -> None:
        before = (finished / "log.jsonl").read_bytes()
        fit.fit(tiny(images, epochs=2), finished, resume=True)
        assert (finished / "log.jsonl").read_bytes() == before


def test_precision_follows_the_hardware_unless_told() -> None:
    def precision(name: str) -> str:
        return str(state.build_fabric(replace(Config().run, device="cpu", precision=name))._precision.precision)

    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert precision("auto") == ("bf16-mixed" if has_bf16 else "32-true")
    assert precision("fp32") == "32-true"
    assert precision("bf16") == "bf16-mixed"
