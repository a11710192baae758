"""Training: images in, a run folder out. `fit` is the loop around `training.step`.

    images -> train_step -> log, TensorBoard, progress bar -> checkpoint
                 each epoch: the averaged weights, evaluated and drawn
                                                    in the end: a prior fitted to what was encoded

Stopped at any moment, even by kill -9, and resumed, a run gives the same numbers as one that was never stopped, bit
for bit on a CPU in float32.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor

from training import batches, checkpoint, data, figures, prior, processes, run, schedule, snapshots, state, trained
from training.config import Config
from training.config_file import to_dict
from training.data import Dataset
from training.ema import calibrate
from training.errors import ConfigError, DataError, RunError
from training.evaluate import evaluate
from training.events import Board, EventLog, Progress
from training.pca import fit_pca
from training.progress import say
from training.state import TrainingState
from training.step import train_step

_EPOCH_IMAGES = 2048  # to calibrate and to evaluate with after each epoch; `latentry evaluate` takes them all
_MAX_SKIPPED_IN_A_ROW = 100
_SLOW_STEPS = 5  # of a process: kernels are chosen and memory is first touched
_CURVE_S = 5.0  # between drawings of the training curve


def fit(config: Config, folder: Path, *, resume: bool) -> None:
    """Train `config` in the run folder, from the start or from its newest checkpoint.

    Raises a `TrainingError` for what is not our fault: data, a full disk, a damaged checkpoint, divergence.
    """
    fabric = state.build_fabric(config.run)
    with processes.together(fabric):
        dataset = _load(config, fabric)
        training = state.initial(config, dataset, fabric)
        with run.writing(folder, say) if fabric.global_rank == 0 else contextlib.nullcontext():
            if fabric.global_rank == 0:
                _announce(dataset, training)
                if not resume:
                    run.create(folder, config)
            training_run = _Run(config, folder, dataset, training, resume=resume)
            if resume and fabric.global_rank == 0:
                run.moved(folder, config)
            training_run.to_the_end()


def _load(config: Config, fabric: Fabric) -> Dataset:
    """The images, fit for `config`; the first process reads them before the others, which find its cache of pixels."""
    read = functools.partial(data.load, config.data, config.run.seed)
    dataset = read() if fabric.global_rank == 0 else None
    digest = processes.from_first(lambda: dataset and dataset.digest, fabric)
    dataset = dataset or read()
    if dataset.digest != digest:
        raise DataError(f"data: process {fabric.global_rank} has other images in {config.data.path} than process 0")
    if config.model.conditional:
        data.require_labels(dataset)
    _check(config, dataset)
    prior.check(config.prior, config.objective.prior != "normal", prior.images_to_fit(dataset), config.model.latent_dim)
    return dataset


def _check(config: Config, dataset: Dataset) -> None:
    """Raises `ConfigError` for what the images show to be out of the question, before a folder is made."""
    world = config.run.devices * config.run.nodes
    share = min(config.run.batch_size, len(dataset.train)) // world
    if not share:
        raise DataError(f"images: got {len(dataset.train)}, wanted at least one for each of {world} processes")
    if config.model.kind == "dense-norm" and share < 2:
        raise ConfigError(f"run.batch_size: got {share} for each process, wanted at least 2 for model.kind dense-norm")
    steps = len(dataset.train) // (share * world) * config.run.epochs
    if config.objective.beta_cycles * 2 > steps:
        raise ConfigError(
            f"objective.beta_cycles: got {config.objective.beta_cycles}, wanted at most {steps // 2} here"
        )
    most = min(len(dataset.train), dataset.train.pixels[0].size) - 1
    if config.model.kind == "pca" and config.model.latent_dim > most:
        raise ConfigError(f"model.latent_dim: got {config.model.latent_dim}, wanted at most {most} for these images")


def _announce(dataset: Dataset, training: TrainingState) -> None:
    if dataset.unreadable:
        say(f"left out {len(dataset.unreadable)} unreadable files: {'; '.join(dataset.unreadable[:5])}")
    for warning in dataset.warnings:
        say(warning)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    shape = "x".join(map(str, dataset.image_shape))
    classes = f" in {dataset.classes} classes" if dataset.classes else ""
    say(
        f"{dataset.name}: {len(dataset.train)} images of {shape}{classes} to train on, {len(dataset.test)} held out; "
        f"{parameters} parameters; {training.fabric.device}, {training.fabric._precision.precision}"
    )


class _Run:
    """A run in progress: the state, the folder, and where events go."""

    def __init__(
        self, config: Config, folder: Path, dataset: Dataset, training: TrainingState, *, resume: bool
    ) -> None:
        self.config, self.folder, self.dataset, self.training = config, folder, dataset, training
        self.first, world = training.fabric.global_rank == 0, training.fabric.world_size
        self.batch_size = min(config.run.batch_size, len(dataset.train)) // world * world
        self.steps_per_epoch = len(dataset.train) // self.batch_size  # what is left over comes in another epoch's order
        self.steps = self.steps_per_epoch * config.run.epochs
        if config.model.kind == "pca":
            self.steps_per_epoch = self.steps = 1
        # a run that was stopped before its first checkpoint has nothing to go back to but its beginning
        begun = processes.from_first(lambda: resume and run.has_begun(folder), training.fabric)
        position = self._restore() if begun else 0
        if self.first:  # the others neither write nor speak
            self.log = EventLog(folder / run.LOG, position)
            self.board = Board(folder / run.TENSORBOARD, training.step)
            self.progress = Progress(training.step, self.steps)
        self.last_s, self.step_s, self.timed = time.monotonic(), 0.0, 0
        self.curve_drawn_s = -math.inf

    def to_the_end(self) -> None:
        with contextlib.ExitStack() as stack:
            for sink in (self.progress, self.board, self.log) if self.first else ():
                stack.callback(sink.close)
            if self.training.step == 0:
                self._save()  # so that a run can be resumed from its first moment
            while self.training.step < self.steps:
                self._epoch(self.training.step // self.steps_per_epoch)
            if self.first:
                self._fit_prior()
        skipped = self.training.skipped
        if skipped == self.steps:
            raise RunError(f"all {skipped} steps were skipped, not being finite: nothing was learnt")
        if skipped and self.first:
            say(f"{skipped} of {self.steps} steps were skipped, not being finite")

    def _epoch(self, epoch: int) -> None:
        if self.config.model.kind == "pca":
            self._solve()
        else:
            self._train(epoch)
        if not self.first:
            return
        grids = self._score(epoch + 1)
        if self.config.run.snapshots:
            snapshots.keep(self.folder, epoch + 1, self.training.average.model)
        self._draw(grids)
        self._save()  # last: a run that stops before it comes by here again

    def _solve(self) -> None:
        """The one model that is not trained in steps."""
        solution = fit_pca(self.dataset.train.pixels, self.config.model.latent_dim).state_dict()
        for model in (self.training.model, self.training.average.model):
            model.load_state_dict(solution)
        self.training.step = 1

    def _train(self, epoch: int) -> None:
        order = batches.epoch_order(len(self.dataset.train), self.config.run.seed, epoch)
        self.last_s = time.monotonic()  # what came after the epoch before is no step's time
        for index in range(self.training.step % self.steps_per_epoch, self.steps_per_epoch):
            training = self.training
            chosen = processes.share_of(order[index * self.batch_size :][: self.batch_size], training.fabric)
            self._step(*batches.batch(self.dataset.train, chosen, training.model, training.fabric.device))
            last = index + 1 == self.steps_per_epoch
            if self.training.step % self.config.run.checkpoint_steps == 0 and not last:
                self._save()

    def _step(self, x: Tensor, labels: Tensor | None) -> None:
        training, config = self.training, self.config
        beta = schedule.beta(config.objective, training.step, self.steps)
        learning_rate = schedule.learning_rate(config.optimiser, training.step, self.steps)
        processes.reseed(training.generator, config.run.seed, training.step, training.fabric)
        result = train_step(training, x, labels, beta=beta, learning_rate=learning_rate)
        if training.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row were not finite: lower --learning-rate, or try fp32"
            )
        if not self.first:
            return
        result["images_per_s"] = self.batch_size / self._smoothed_step_s()
        self.log.write("step", {"step": training.step, **result})
        self.board.step(training.step, result)
        self.progress.step(training.step, result, (self.steps - training.step) * self.step_s)

    def _smoothed_step_s(self) -> float:
        """Seconds for a step, lately: a mean over some twenty, without the first few, which are slow."""
        now_s = time.monotonic()
        took_s, self.last_s = now_s - self.last_s, now_s
        self.timed += 1
        share = 1.0 if self.timed <= _SLOW_STEPS else max(0.05, 1 / (self.timed - _SLOW_STEPS))
        self.step_s += share * (took_s - self.step_s)
        return self.step_s

    def _score(self, epoch: int) -> dict[str, figures.Grid]:
        """Evaluate the averaged weights; returns the pictures that show them."""
        model = self.training.average.model
        calibrate(model, self.dataset.train.spread(_EPOCH_IMAGES))
        held_out = self.dataset.held_out.spread(_EPOCH_IMAGES)
        result: Mapping[str, float] = asdict(evaluate(model, held_out))
        grids = {
            "reconstructions": figures.reconstructions(model, held_out),
            "samples": figures.samples(model, self.config.model.latent_dim),
        }
        step = self.training.step
        self.log.write("epoch", {"epoch": epoch, "step": step, **result})
        self.board.epoch(step, result, grids)
        say(
            f"epoch {epoch}/{self.config.run.epochs}: held-out ELBO {result['elbo']:.2f} nats "
            f"(reconstruction {result['reconstruction']:.2f}, KL {result['kl']:.2f}), PSNR {result['psnr_db']:.2f} dB"
        )
        return grids

    def _draw(self, grids: Mapping[str, figures.Grid]) -> None:
        try:
            for name, grid in grids.items():
                figures.write_png(grid, self.folder / run.FIGURES / f"{name}.png")
            # It takes half a second, which epochs of a small data set do not: then every few of them, and the last.
            if self.training.step == self.steps or time.monotonic() - self.curve_drawn_s > _CURVE_S:
                figures.write_training_curve(self.folder / run.LOG, self.folder / run.FIGURES / "training.png")
                self.curve_drawn_s = time.monotonic()
        except OSError as error:
            raise RunError(f"{self.folder / run.FIGURES}: cannot be written: {error.strerror}") from error

    def _fit_prior(self) -> None:
        """Fit the prior that the config asks for, unless the run has it already."""
        path = self.folder / run.PRIOR
        if self.config.prior.fit == "none" or checkpoint.is_whole(path):
            return
        model = self.training.average.model
        calibrate(model, trained.to_calibrate(self.dataset))
        fitted = prior.fit_to(model, self.dataset, self.config.prior, self.config.run.seed)
        checkpoint.write(path, {"step": self.training.step, **fitted.to_state()})

    def _save(self) -> None:
        if not self.first:
            return
        saved = {
            **self.training.to_checkpoint(),
            "config": to_dict(self.config),
            "data_sha256": self.dataset.digest,
            "labels_sha256": self.dataset.labels_digest,
            "log_bytes": self.log.sync(),
        }
        checkpoint.save(self.folder / run.CHECKPOINTS, self.training.step, saved)

    def _restore(self) -> int:
        read = functools.partial(checkpoint.load, self.folder / run.CHECKPOINTS, warn=say)
        saved = processes.from_first(read, self.training.fabric)
        trained.check(saved, self.config, self.dataset)
        self.training.restore(saved)
        return int(saved["log_bytes"])
